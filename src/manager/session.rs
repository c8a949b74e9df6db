//! The stream to one agent. A task a stream: it says hello with a snapshot, then sends what is due,
//! hears acknowledgements, and ends when the agent is silent, gone, removed, or connected anew. The
//! node is Ready while its newest stream is open.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use super::{
    Shared,
    dispatch::{Due, SessionHandle},
};
use crate::{
    api::{
        HEARTBEAT, MAX_MESSAGE_BYTES, SILENCE,
        proto::{
            self, AgentMessage, Delta, ManagerMessage, Ping, Snapshot, agent_message,
            manager_message,
        },
    },
    engine::{
        cluster::{Command, State},
        membership::{Change, Table},
    },
    types::{Node, NodeStatus},
};

/// The service.
pub struct Dispatch {
    pub(super) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl proto::dispatch_server::Dispatch for Dispatch {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = self.shared.member(&request)?;
        let mut inbound = request.into_inner();
        let first = timeout(SILENCE, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(agent_message::Message::Hello(_)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message is not hello"));
        };
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let task = SessionTask { shared: self.shared.clone(), node, inbound, outbound };
        self.shared.spawn(task.run());
        let messages = stream::unfold(messages, async |mut messages| {
            messages.recv().await.map(|message| (Ok(message), messages))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// Serves one stream; may be aborted.
struct SessionTask {
    shared: Arc<Shared>,
    node: Node,
    inbound: Streaming<AgentMessage>,
    outbound: mpsc::Sender<ManagerMessage>,
}

impl SessionTask {
    async fn run(mut self) {
        let shared = self.shared.clone();
        let open = |state: &State| {
            // The node may have been removed since the call was let in.
            state.node(self.node.id).map(|node| shared.dispatcher.open(state, node.id))
        };
        let Some((handle, table)) = shared.log.read(open) else { return };
        self.note_status(NodeStatus::Ready).await;
        info!(node = %self.node.name, "agent connected");
        let reason = self.serve(&handle, table).await;
        if shared.dispatcher.close(&handle) {
            self.note_status(NodeStatus::Down).await;
        }
        info!(node = %self.node.name, reason, "agent disconnected");
    }

    /// Serves the stream until it ends, and says why.
    async fn serve(&mut self, handle: &SessionHandle, table: Table) -> &'static str {
        if !self.send_snapshot(&table).await {
            return "closed";
        }
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut due = true;
        loop {
            tokio::select! {
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => {
                        heard = Instant::now();
                        if !self.handle_message(handle, message).await {
                            return "closed";
                        }
                    }
                    Ok(None) | Err(_) => return "closed",
                },
                () = handle.wake.notified() => due = true,
                // Only a stream with room is asked what is due: until then changes are coalesced.
                permit = self.outbound.reserve(), if due => match permit {
                    Err(_) => return "closed",
                    Ok(permit) => match self.shared.dispatcher.take(handle) {
                        Due::Nothing => due = false,
                        Due::Ended => return "ended by the manager",
                        Due::Delta { from, to, changes } => {
                            let delta = delta(from, to, changes);
                            if delta.encoded_len() <= MAX_MESSAGE_BYTES / 2 {
                                permit.send(message(manager_message::Message::Delta(delta)));
                            } else {
                                drop(permit);
                                if !self.resync(handle).await {
                                    return "closed";
                                }
                            }
                        }
                        Due::Snapshot => {
                            drop(permit);
                            if !self.resync(handle).await {
                                return "closed";
                            }
                        }
                    },
                },
                _ = heartbeat.tick() => {
                    // A full stream carries data, which is heard as well.
                    let ping = message(manager_message::Message::Ping(Ping {}));
                    let _ = self.outbound.try_send(ping);
                }
                () = sleep_until(heard + SILENCE) => return "silent",
            }
        }
    }

    async fn handle_message(&self, handle: &SessionHandle, message: AgentMessage) -> bool {
        match message.message {
            Some(agent_message::Message::Acknowledged(revision)) => {
                self.shared.dispatcher.handle_acknowledged(handle, revision);
                true
            }
            Some(agent_message::Message::Resync(_)) => {
                debug!(node = %self.node.name, "agent asks for a snapshot");
                self.resync(handle).await
            }
            Some(agent_message::Message::Ping(_)) => true,
            Some(agent_message::Message::Hello(_)) | None => false,
        }
    }

    /// Sends a fresh snapshot; tells whether the stream goes on.
    async fn resync(&self, handle: &SessionHandle) -> bool {
        let dispatcher = &self.shared.dispatcher;
        match self.shared.log.read(|state| dispatcher.take_snapshot(state, handle)) {
            Some(table) => self.send_snapshot(&table).await,
            None => false,
        }
    }

    async fn send_snapshot(&self, table: &Table) -> bool {
        for part in parts(table) {
            let part = message(manager_message::Message::Snapshot(part));
            // An agent that takes nothing for this long is silent too.
            match timeout(SEND_TIMEOUT, self.outbound.send(part)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        true
    }

    async fn note_status(&self, status: NodeStatus) {
        let command = Command::SetNodeStatus { node: self.node.id, status };
        if let Err(error) = self.shared.log.propose(command).await {
            // The node was removed meanwhile, or the log is stopped, which it has said itself.
            debug!(node = %self.node.name, %error, "status not noted");
        }
    }
}

fn message(message: manager_message::Message) -> ManagerMessage {
    ManagerMessage { message: Some(message) }
}

fn delta(from: u64, to: u64, changes: Vec<Change>) -> Delta {
    use proto::change::Change as Wire;
    let change = |change: &Change| {
        let change = match change {
            Change::Network(network) => Wire::Network(network.into()),
            Change::NetworkGone(id) => Wire::NetworkGone(id.to_bytes().to_vec()),
            Change::Peer(peer) => Wire::Peer(peer.into()),
            Change::PeerGone(id) => Wire::PeerGone(id.to_bytes().to_vec()),
            Change::Endpoint(endpoint) => Wire::Endpoint(endpoint.into()),
            Change::EndpointGone(id) => Wire::EndpointGone(id.to_bytes().to_vec()),
        };
        proto::Change { change: Some(change) }
    };
    Delta { from, to, changes: changes.iter().map(change).collect() }
}

/// Cuts a snapshot into messages that every agent takes.
fn parts(table: &Table) -> Vec<Snapshot> {
    let empty = || Snapshot { revision: table.revision, ..Snapshot::default() };
    let (mut parts, mut bytes) = (vec![empty()], 0);
    let mut room = |size: usize, parts: &mut Vec<Snapshot>| {
        if bytes + size > PART_BYTES {
            parts.push(empty());
            bytes = 0;
        }
        bytes += size;
        parts.len() - 1
    };
    for network in table.networks.values().map(proto::Network::from) {
        let part = room(network.encoded_len(), &mut parts);
        parts[part].networks.push(network);
    }
    for peer in table.peers.values().map(proto::Peer::from) {
        let part = room(peer.encoded_len(), &mut parts);
        parts[part].peers.push(peer);
    }
    for endpoint in table.endpoints.values().map(proto::Endpoint::from) {
        let part = room(endpoint.encoded_len(), &mut parts);
        parts[part].endpoints.push(endpoint);
    }
    if let Some(last) = parts.last_mut() {
        last.last = true;
    }
    parts
}

/// Messages waiting for the connection. Few: what waits here cannot be coalesced any more.
const OUTBOUND: usize = 4;
const PART_BYTES: usize = MAX_MESSAGE_BYTES / 4;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Endpoint, EndpointId, NetworkId, NodeId};

    #[test]
    fn a_large_table_is_cut_into_messages_that_agents_take() {
        let mut table = Table { revision: 7, ..Table::empty(NodeId::from_u128(1)) };
        for id in 0..40_000 {
            let endpoint = Endpoint {
                id: EndpointId::from_u128(id),
                name: "e".parse().unwrap(),
                network: NetworkId::from_u128(1),
                node: NodeId::from_u128(1),
                addresses: vec!["10.0.0.2/24".parse().unwrap()],
                aliases: Vec::new(),
            };
            table.endpoints.insert(endpoint.id, endpoint);
        }
        let parts = parts(&table);
        assert!(parts.len() > 1, "the table is too small for this test");
        assert!(parts.iter().all(|part| part.encoded_len() < MAX_MESSAGE_BYTES));
        assert!(parts.iter().all(|part| part.revision == 7));
        assert_eq!(parts.iter().map(|part| part.endpoints.len()).sum::<usize>(), 40_000);
        let last: Vec<bool> = parts.iter().map(|part| part.last).collect();
        assert_eq!(last.iter().filter(|last| **last).count(), 1);
        assert_eq!(last.last(), Some(&true));
    }

    #[test]
    fn an_empty_table_is_one_message() {
        let parts = parts(&Table::empty(NodeId::from_u128(1)));
        assert_eq!((parts.len(), parts[0].last), (1, true));
    }
}
