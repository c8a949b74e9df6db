//! The stream to one agent. A task a stream: it answers hello with what the agent's table lacks, then
//! sends what is due, hears acknowledgements, and ends when the agent is silent, gone, removed, or connected anew. What
//! comes of that for the node's status is `liveness`'s to say.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use super::{
    Shared,
    dispatch::{Due, SessionHandle},
};
use crate::{
    api::{
        HEARTBEAT, MAX_MESSAGE_BYTES, parse_id,
        proto::{
            self, AgentMessage, Bookmark, Delta, Hello, Looked, ManagerMessage, Ping, Roots,
            agent_message, manager_message,
        },
        read_scope_digests, read_scopes, scope_digests, scopes, silence,
    },
    engine::{
        cluster::liveness::{Closed, Heard},
        membership::{Change, Snapshot},
    },
    types::{Node, Position, ScopeId},
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
        let first = timeout(silence(HEARTBEAT), inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(agent_message::Message::Hello(hello)) = first.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument("the first message is not hello"));
        };
        let opened = self.open(&node, &hello)?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let task = SessionTask { shared: self.shared.clone(), node, inbound, outbound };
        self.shared.spawn(task.run(opened));
        let messages = stream::unfold(messages, async |mut messages| {
            messages.recv().await.map(|message| (Ok(message), messages))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

impl Dispatch {
    /// Opens the session of a node whose table stands where its hello says.
    fn open(&self, node: &Node, hello: &Hello) -> Result<(SessionHandle, Snapshot), Status> {
        let held = Position { epoch: hello.epoch, revision: hello.revision };
        let digests = read_scope_digests(&hello.scopes)?;
        let dispatcher = &self.shared.dispatcher;
        self.shared.log.read(|state| {
            // The node may have been removed since the call was let in.
            if state.node(node.id).is_none() {
                return Err(Status::unauthenticated("the node was removed; join the cluster anew"));
            }
            let opened = dispatcher.open(state, node.id, held, &digests);
            opened.map_err(|ahead| {
                Status::failed_precondition(format!(
                    "{ahead}; it may have been restored from an old backup: see its log"
                ))
            })
        })
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
    async fn run(mut self, (handle, snapshot): (SessionHandle, Snapshot)) {
        let shared = self.shared.clone();
        shared.watch.handle_opened(self.node.id);
        info!(node = %self.node.name, "agent connected");
        let ended = self.serve(&handle, snapshot).await;
        if shared.dispatcher.close(&handle) {
            let closed = match ended {
                Ended::Closed => Closed::ByNode,
                Ended::ByManager | Ended::Silent => Closed::ByManager,
            };
            shared.watch.handle_closed(self.node.id, closed);
        }
        info!(node = %self.node.name, reason = ended.reason(), "agent disconnected");
    }

    /// Serves the stream until it ends, and says why.
    async fn serve(&mut self, handle: &SessionHandle, snapshot: Snapshot) -> Ended {
        let shared = self.shared.clone();
        let mut told = shared.dispatcher.heartbeat();
        let mut heartbeat = *told.borrow_and_update();
        let begun = self.send_heartbeat(heartbeat).await
            && self.send_snapshot(snapshot).await
            && self.handle_wake(handle).await.is_ok();
        if !begun {
            return Ended::Closed;
        }
        let mut pings = ticks(heartbeat);
        let mut heard = Instant::now();
        let mut bookmarks = ticks(BETWEEN_BOOKMARKS);
        let mut due = true;
        // What comes soon after goes with the same message.
        let mut next_delta = Instant::now();
        loop {
            tokio::select! {
                // The end first, which no flood of messages may put off. What came is heard before the
                // time is looked at: a late reader is no silent agent.
                biased;
                () = handle.wake.notified() => {
                    due = true;
                    if let Err(ended) = self.handle_wake(handle).await {
                        return ended;
                    }
                }
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => {
                        heard = Instant::now();
                        shared.watch.handle_heard(self.node.id);
                        // An acknowledgement makes room for what came meanwhile.
                        due = true;
                        if !self.handle_message(handle, message).await {
                            return Ended::Closed;
                        }
                    }
                    Ok(None) | Err(_) => return Ended::Closed,
                },
                // Only a stream with room is asked what is due: until then changes are coalesced.
                () = room(&self.outbound, next_delta), if due => {
                    let sent = match shared.dispatcher.take(handle) {
                        Due::Nothing => {
                            due = false;
                            true
                        }
                        Due::Ended => return Ended::ByManager,
                        Due::Delta { from, to, changes } => {
                            next_delta = Instant::now() + COALESCED;
                            self.send_delta(handle, delta(from, to, changes)).await
                        }
                        Due::Snapshot(scopes) => self.resync(handle, scopes).await,
                    };
                    if !sent {
                        return Ended::Closed;
                    }
                }
                _ = pings.tick() => {
                    // A full stream carries data, which is heard as well.
                    let ping = message(manager_message::Message::Ping(Ping {}));
                    let _ = self.outbound.try_send(ping);
                }
                _ = bookmarks.tick() => {
                    if !self.send_bookmark(handle).await {
                        return Ended::Silent;
                    }
                }
                Ok(()) = told.changed() => {
                    heartbeat = *told.borrow_and_update();
                    pings = ticks(heartbeat);
                    if !self.send_heartbeat(heartbeat).await {
                        return Ended::Closed;
                    }
                    // The agent has kept to the one before until now.
                    heard = Instant::now();
                }
                () = sleep_until(heard + silence(heartbeat)) => return Ended::Silent,
            }
        }
    }

    /// Sends what is due beside the table.
    async fn handle_wake(&self, handle: &SessionHandle) -> Result<(), Ended> {
        let dispatcher = &self.shared.dispatcher;
        for node in dispatcher.take_wanted(handle).ok_or(Ended::ByManager)? {
            let look = manager_message::Message::LookFor(node.to_bytes().to_vec());
            if !self.send(look).await {
                return Err(Ended::Closed);
            }
        }
        let Some(digests) = dispatcher.take_roots(handle) else { return Ok(()) };
        let roots = Roots { digests: digests.iter().map(|digest| digest.to_vec()).collect() };
        match self.send(manager_message::Message::Roots(roots)).await {
            true => Ok(()),
            false => Err(Ended::Closed),
        }
    }

    async fn send_heartbeat(&self, heartbeat: Duration) -> bool {
        let ms = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX);
        self.send(manager_message::Message::HeartbeatMs(ms)).await
    }

    /// Sends a message; tells whether the stream goes on. An agent that takes nothing for long is
    /// silent too.
    async fn send(&self, what: manager_message::Message) -> bool {
        matches!(timeout(SEND_TIMEOUT, self.outbound.send(message(what))).await, Ok(Ok(())))
    }

    async fn handle_message(&self, handle: &SessionHandle, message: AgentMessage) -> bool {
        match message.message {
            Some(agent_message::Message::Acknowledged(revision)) => {
                self.shared.dispatcher.handle_acknowledged(handle, revision);
                true
            }
            Some(agent_message::Message::Resync(resync)) => {
                debug!(node = %self.node.name, scopes = resync.scopes.len(), "agent asks for a snapshot");
                let Ok(scopes) = read_scopes(&resync.scopes) else { return false };
                self.resync(handle, Some(scopes).filter(|scopes| !scopes.is_empty())).await
            }
            Some(agent_message::Message::Looked(Looked { node, heard })) => {
                let Ok(node) = parse_id("node", &node) else { return false };
                let heard = if heard { Heard::Yes } else { Heard::No };
                self.shared.watch.handle_witness(self.node.id, node, heard);
                true
            }
            Some(agent_message::Message::Ping(_)) => true,
            Some(agent_message::Message::Hello(_)) | None => false,
        }
    }

    /// Sends a snapshot of some scopes, or of the whole table; tells whether the stream goes on.
    async fn resync(&self, handle: &SessionHandle, scopes: Option<BTreeSet<ScopeId>>) -> bool {
        let take = |scopes| {
            let dispatcher = &self.shared.dispatcher;
            self.shared.log.read(|state| dispatcher.take_snapshot(state, handle, scopes))
        };
        // Where changes are due first, the whole table stands for both.
        match take(scopes).or_else(|| take(None)) {
            Some(snapshot) => self.send_snapshot(snapshot).await,
            None => false,
        }
    }

    /// Sends a bookmark if one is due; tells whether the stream goes on.
    async fn send_bookmark(&self, handle: &SessionHandle) -> bool {
        let Some((position, digests)) = self.shared.dispatcher.take_bookmark(handle) else {
            return true;
        };
        let Position { epoch, revision } = position;
        let bookmark = Bookmark { epoch, revision, scopes: scope_digests(&digests) };
        self.send(manager_message::Message::Bookmark(bookmark)).await
    }

    /// Sends changes, or the whole table where they are more than one message takes.
    async fn send_delta(&self, handle: &SessionHandle, delta: Delta) -> bool {
        if delta.encoded_len() <= MAX_MESSAGE_BYTES / 2 {
            self.send(manager_message::Message::Delta(delta)).await
        } else {
            self.resync(handle, None).await
        }
    }

    async fn send_snapshot(&self, snapshot: Snapshot) -> bool {
        for part in parts(snapshot) {
            if !self.send(manager_message::Message::Snapshot(part)).await {
                return false;
            }
        }
        true
    }
}

/// Why a stream ended.
#[derive(Clone, Copy)]
enum Ended {
    /// The node, or its host, closed it.
    Closed,
    /// Nothing came for too long, or nothing was taken.
    Silent,
    /// The node was removed, has opened another, or the manager ends.
    ByManager,
}

impl Ended {
    fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::ByManager => "ended by the manager",
        }
    }
}

/// Waits until then, and until the stream has room or is closed, which the next message finds.
async fn room(outbound: &mpsc::Sender<ManagerMessage>, from: Instant) {
    sleep_until(from).await;
    drop(outbound.reserve().await);
}

/// Ticks from now on; a late tick puts off those after it.
fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn message(message: manager_message::Message) -> ManagerMessage {
    ManagerMessage { message: Some(message) }
}

fn delta(from: Position, to: Position, changes: Vec<Change>) -> Delta {
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
    let changes = changes.iter().map(change).collect();
    Delta { epoch: to.epoch, from: from.revision, to: to.revision, changes }
}

/// Cuts a snapshot into messages that every agent takes.
fn parts(snapshot: Snapshot) -> Vec<proto::Snapshot> {
    let Position { epoch, revision } = snapshot.position;
    let partial = snapshot.scopes.is_some();
    let scopes = scopes(snapshot.scopes.iter().flatten());
    let empty = || proto::Snapshot { epoch, revision, partial, ..Default::default() };
    let first = proto::Snapshot { scopes, ..empty() };
    let (mut parts, mut bytes) = (vec![first], 0);
    let mut room = |size: usize, parts: &mut Vec<proto::Snapshot>| {
        if bytes + size > PART_BYTES {
            parts.push(empty());
            bytes = 0;
        }
        bytes += size;
        parts.len() - 1
    };
    for network in snapshot.networks.iter().map(proto::Network::from) {
        let part = room(network.encoded_len(), &mut parts);
        parts[part].networks.push(network);
    }
    for peer in snapshot.peers.iter().map(proto::Peer::from) {
        let part = room(peer.encoded_len(), &mut parts);
        parts[part].peers.push(peer);
    }
    for endpoint in snapshot.endpoints.iter().map(proto::Endpoint::from) {
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
/// A first change is sent at once; what follows within this time goes together.
const COALESCED: Duration = Duration::from_millis(50);
/// A mistake is found within this time, and a quiet table is asked nothing.
const BETWEEN_BOOKMARKS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Endpoint, EndpointId, NetworkId, NodeId};

    fn snapshot(endpoints: u128) -> Snapshot {
        let endpoint = |id| Endpoint {
            id: EndpointId::from_u128(id),
            name: "e".parse().unwrap(),
            network: NetworkId::from_u128(1),
            node: NodeId::from_u128(1),
            addresses: vec!["10.0.0.2/24".parse().unwrap()],
            aliases: Vec::new(),
        };
        Snapshot {
            position: Position { epoch: 2, revision: 7 },
            scopes: None,
            networks: Vec::new(),
            peers: Vec::new(),
            endpoints: (0..endpoints).map(endpoint).collect(),
        }
    }

    #[test]
    fn a_large_table_is_cut_into_messages_that_agents_take() {
        let parts = parts(snapshot(40_000));
        assert!(parts.len() > 1, "the table is too small for this test");
        assert!(parts.iter().all(|part| part.encoded_len() < MAX_MESSAGE_BYTES));
        assert!(parts.iter().all(|part| (part.epoch, part.revision) == (2, 7)));
        assert_eq!(parts.iter().map(|part| part.endpoints.len()).sum::<usize>(), 40_000);
        let last: Vec<bool> = parts.iter().map(|part| part.last).collect();
        assert_eq!(last.iter().filter(|last| **last).count(), 1);
        assert_eq!(last.last(), Some(&true));
    }

    #[test]
    fn an_empty_table_is_one_message() {
        let parts = parts(snapshot(0));
        assert_eq!((parts.len(), parts[0].last), (1, true));
    }
}
