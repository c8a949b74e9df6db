//! The stream to one agent. A task a stream: it answers hello with what the agent's table lacks, then
//! sends what is due, hears acknowledgements, and ends when the agent is silent, gone, removed, or connected anew. What
//! comes of that for the node's status is `liveness`'s to say.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, stream};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use super::{
    KEEPALIVE, Shared,
    dispatch::{Due, SessionHandle},
    status,
};
use crate::{
    api::{
        HEARTBEAT, OPENS_WITHIN, parse_id,
        proto::{
            self, AgentMessage, Bookmark, Delta, Hello, Looked, ManagerMessage, Managers, Ping,
            Roots, agent_message, manager_message,
        },
        read_scope_digests, read_scopes, scope_digests, scopes, silence,
    },
    engine::{
        cluster::{
            State,
            liveness::{Closed, Heard},
        },
        membership::{Change, Snapshot},
    },
    types::{Node, Position, Resources, ScopeId},
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
        self.shared.check_serves().await?;
        let node = self.shared.member(&request)?;
        let mut inbound = request.into_inner();
        let first = timeout(OPENS_WITHIN, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(agent_message::Message::Hello(hello)) = first.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument("the first message is not hello"));
        };
        let turn = self.shared.dispatcher.turn(node.id, Instant::now()).ok_or_else(|| {
            Status::resource_exhausted(format!("node {} opens too many streams", node.name))
        })?;
        sleep_until(turn).await;
        if self.shared.log.read(State::position) < position(&hello) {
            // Another manager was ahead of this one.
            self.shared.log.catch_up().await.map_err(status::of_proposal)?;
        }
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let opening = Opening { shared: self.shared.clone(), node, hello, inbound, outbound };
        match self.shared.openings.try_acquire() {
            Ok(_turn) => self.shared.spawn(opening.open()?.run()),
            Err(_) => self.shared.spawn(opening.run()),
        }
        let messages = stream::unfold(messages, async |mut messages| {
            messages.recv().await.map(|message| (message, messages))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// A stream whose agent waits for its table. Only a few tables are gathered at a time: of thousands at
/// once each would keep the others waiting, and with them what the managers say to each other.
struct Opening {
    shared: Arc<Shared>,
    node: Node,
    hello: Hello,
    inbound: Streaming<AgentMessage>,
    outbound: mpsc::Sender<Result<ManagerMessage, Status>>,
}

impl Opening {
    /// Waits for its turn, and tells the agent meanwhile that it is not forgotten; then serves it.
    async fn run(self) {
        let (shared, outbound) = (self.shared.clone(), self.outbound.clone());
        let heartbeat = *shared.dispatcher.heartbeat().borrow();
        // The agent waits by it from now on.
        let _ = outbound.try_send(Ok(message(heartbeat_ms(heartbeat))));
        let mut pings = ticks(heartbeat);
        let turn = shared.openings.clone().acquire_owned();
        tokio::pin!(turn);
        let turn = loop {
            tokio::select! {
                turn = &mut turn => break turn,
                () = outbound.closed() => return,
                _ = pings.tick() => {
                    let ping = message(manager_message::Message::Ping(Ping {}));
                    let _ = outbound.try_send(Ok(ping));
                }
            }
        };
        let opened = self.open();
        drop(turn);
        match opened {
            Ok(task) => {
                // Its stream ends with it.
                drop(outbound);
                task.run().await;
            }
            Err(status) => drop(outbound.send(Err(status)).await),
        }
    }

    /// Opens the session.
    fn open(self) -> Result<SessionTask, Status> {
        let (handle, snapshot) = self.take_snapshot()?;
        let Self { shared, node, hello, inbound, outbound } = self;
        let Hello { cpu_milli, memory_bytes, .. } = hello;
        shared.observations.handle_capacity(node.id, Resources { cpu_milli, memory_bytes });
        Ok(SessionTask {
            shared,
            node,
            handle,
            number: hello.number,
            inbound,
            outbound,
            heartbeat: HEARTBEAT,
            heard: Instant::now(),
            heartbeat_due: true,
            parts: parts(snapshot).into(),
            resync: None,
        })
    }

    /// Opens the session of a node whose table stands where its hello says.
    fn take_snapshot(&self) -> Result<(SessionHandle, Snapshot), Status> {
        let held = position(&self.hello);
        let digests = read_scope_digests(&self.hello.scopes)?;
        let dispatcher = &self.shared.dispatcher;
        self.shared.log.read(|state| {
            // The node may have been removed since the call was let in.
            if state.node(self.node.id).is_none() {
                return Err(Status::unauthenticated("the node was removed; join the cluster anew"));
            }
            let opened = dispatcher.open(state, self.node.id, held, &digests);
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
    handle: SessionHandle,
    /// Which of the node's streams it is, as its agent counts them.
    number: u64,
    inbound: Streaming<AgentMessage>,
    /// Of which only this task is a sender.
    outbound: mpsc::Sender<Result<ManagerMessage, Status>>,
    /// How often each side says something.
    heartbeat: Duration,
    /// When the agent last said something.
    heard: Instant,
    /// The agent is to be told the heartbeat.
    heartbeat_due: bool,
    /// What is left to send of a snapshot.
    parts: VecDeque<proto::Snapshot>,
    /// The scopes that the agent asks for; none of them for the whole table.
    resync: Option<BTreeSet<ScopeId>>,
}

impl SessionTask {
    async fn run(mut self) {
        let watch = &self.shared.clone().watch;
        watch.handle_opened(self.node.id, self.number);
        info!(node = %self.node.name, "agent connected");
        let Err(ended) = self.serve().await;
        self.shared.dispatcher.close(&self.handle);
        let closed = match ended {
            Ended::Closed => Closed::ByNode,
            Ended::ByManager | Ended::Silent => Closed::ByManager,
        };
        watch.handle_closed(self.node.id, self.number, closed);
        info!(node = %self.node.name, reason = ended.reason(), "agent disconnected");
    }

    /// Serves the stream until it ends.
    async fn serve(&mut self) -> Result<Infallible, Ended> {
        let mut told = self.shared.dispatcher.heartbeat();
        self.heartbeat = *told.borrow_and_update();
        let mut pings = ticks(self.heartbeat);
        let mut bookmarks = ticks(BETWEEN_BOOKMARKS);
        let (mut due, mut due_beside) = (true, true);
        // What comes soon after goes with the same message.
        let mut next_delta = Instant::now();
        let mut next_resync = Instant::now();
        // An agent that takes nothing for long is silent too.
        let mut taken = Instant::now();
        loop {
            let sending = !self.parts.is_empty();
            if !sending && !due_beside {
                taken = Instant::now();
            }
            tokio::select! {
                // The end first, which no flood of messages may put off. What came is heard before the
                // time is looked at: a late reader is no silent agent.
                biased;
                () = self.handle.wake.notified() => {
                    if !self.shared.dispatcher.is_open(&self.handle) {
                        return Err(Ended::ByManager);
                    }
                    (due, due_beside) = (true, true);
                }
                message = self.inbound.message() => {
                    let Ok(Some(message)) = message else { return Err(self.by_end()) };
                    self.heard = Instant::now();
                    self.shared.watch.handle_heard(self.node.id, self.number);
                    // An acknowledgement makes room for what came meanwhile.
                    due = true;
                    self.handle_message(message)?;
                }
                // One message a turn, so that the agent is heard in between.
                () = room(&self.outbound, taken), if due_beside => {
                    taken = Instant::now();
                    due_beside = self.send_beside()?;
                }
                () = room(&self.outbound, taken), if sending => {
                    taken = Instant::now();
                    self.send_part()?;
                }
                // Only a stream with room is asked what is due: until then changes are coalesced.
                () = room(&self.outbound, next_delta), if due && !sending => {
                    taken = Instant::now();
                    due = self.send_due(&mut next_delta)?;
                }
                // Only after a snapshot that is on its way, of which an agent tells this one by its end.
                () = sleep_until(next_resync), if self.resync.is_some() && !sending => {
                    next_resync = Instant::now() + BETWEEN_RESYNCS;
                    let scopes = self.resync.take().filter(|scopes| !scopes.is_empty());
                    self.start_snapshot(scopes)?;
                }
                _ = pings.tick() => {
                    // A full stream carries data, which is heard as well.
                    let ping = message(manager_message::Message::Ping(Ping {}));
                    let _ = self.outbound.try_send(Ok(ping));
                }
                // A full stream carries data, which need not be checked yet.
                _ = bookmarks.tick(), if !sending && self.outbound.capacity() > 0 => {
                    self.send_bookmark()?;
                }
                Ok(()) = told.changed() => {
                    self.handle_heartbeat(*told.borrow_and_update());
                    pings = ticks(self.heartbeat);
                }
                () = sleep_until(self.heard + silence(self.heartbeat)) => {
                    return Err(Ended::Silent);
                }
                () = sleep_until(taken + SEND_TIMEOUT), if sending || due_beside => {
                    return Err(Ended::Silent);
                }
            }
        }
    }

    fn handle_heartbeat(&mut self, heartbeat: Duration) {
        self.heartbeat = heartbeat;
        self.heartbeat_due = true;
        self.handle.wake.notify_one();
        // The agent has kept to the one before until now.
        self.heard = Instant::now();
    }

    /// Sends one message of what is due beside the table; tells whether more may be.
    fn send_beside(&mut self) -> Result<bool, Ended> {
        let dispatcher = &self.shared.dispatcher;
        let beside = if std::mem::take(&mut self.heartbeat_due) {
            heartbeat_ms(self.heartbeat)
        } else if let Some(node) = dispatcher.take_wanted(&self.handle) {
            manager_message::Message::LookFor(node.to_bytes().to_vec())
        } else if let Some(addrs) = dispatcher.take_managers(&self.handle) {
            let addrs = addrs.iter().map(ToString::to_string).collect();
            manager_message::Message::Managers(Managers { addrs })
        } else if dispatcher.take_role_due(&self.handle) {
            manager_message::Message::Role(self.shared.role_of(self.node.id))
        } else if let Some(digests) = dispatcher.take_roots(&self.handle) {
            let digests = digests.iter().map(|digest| digest.to_vec()).collect();
            manager_message::Message::Roots(Roots { digests })
        } else {
            return Ok(false);
        };
        self.send(beside).map(|()| true)
    }

    /// Sends a message once the stream was found to have room.
    fn send(&self, what: manager_message::Message) -> Result<(), Ended> {
        self.outbound.try_send(Ok(message(what))).map_err(|_| self.by_end())
    }

    /// Why the connection under the stream ended.
    fn by_end(&self) -> Ended {
        Ended::by_end(self.heard.elapsed(), self.heartbeat)
    }

    fn handle_message(&mut self, message: AgentMessage) -> Result<(), Ended> {
        match message.message {
            Some(agent_message::Message::Acknowledged(revision)) => {
                self.shared.dispatcher.handle_acknowledged(&self.handle, revision);
            }
            Some(agent_message::Message::Resync(resync)) => {
                debug!(node = %self.node.name, scopes = resync.scopes.len(), "agent asks for a snapshot");
                let scopes = read_scopes(&resync.scopes).map_err(|_| Ended::Closed)?;
                self.resync = Some(merged(self.resync.take(), scopes));
            }
            Some(agent_message::Message::Looked(Looked { node, heard })) => {
                let node = parse_id("node", &node).map_err(|_| Ended::Closed)?;
                let heard = if heard { Heard::Yes } else { Heard::No };
                // Nobody else wakes whoever waits for witnesses.
                if self.shared.dispatcher.handle_looked(&self.handle, node) {
                    self.shared.watch.handle_witness(self.node.id, node, heard);
                }
            }
            Some(agent_message::Message::Task(report)) => {
                let told = self.shared.observations.handle_report(self.node.id, &report);
                told.map_err(|_| Ended::Closed)?;
            }
            Some(agent_message::Message::Ping(_)) => {}
            Some(agent_message::Message::Hello(_)) | None => return Err(Ended::Closed),
        }
        Ok(())
    }

    /// Sends what is due of the table; tells whether more may be.
    fn send_due(&mut self, next_delta: &mut Instant) -> Result<bool, Ended> {
        match self.shared.dispatcher.take(&self.handle) {
            Due::Nothing => return Ok(false),
            Due::Ended => return Err(Ended::ByManager),
            Due::Snapshot(scopes) => self.start_snapshot(scopes)?,
            Due::Delta { from, to, changes } => {
                *next_delta = Instant::now() + COALESCED;
                let delta = delta(from, to, changes);
                match delta.encoded_len() <= MAX_DELTA_BYTES {
                    true => self.send(manager_message::Message::Delta(delta))?,
                    false => self.start_snapshot(None)?,
                }
            }
        }
        Ok(true)
    }

    /// Has a snapshot of some scopes sent, or of the whole table.
    fn start_snapshot(&mut self, scopes: Option<BTreeSet<ScopeId>>) -> Result<(), Ended> {
        let take = |scopes| {
            let dispatcher = &self.shared.dispatcher;
            self.shared.log.read(|state| dispatcher.take_snapshot(state, &self.handle, scopes))
        };
        // Where changes are due first, the whole table stands for both.
        let snapshot = take(scopes).or_else(|| take(None)).ok_or(Ended::ByManager)?;
        self.parts = parts(snapshot).into();
        Ok(())
    }

    fn send_part(&mut self) -> Result<(), Ended> {
        match self.parts.pop_front() {
            Some(part) => self.send(manager_message::Message::Snapshot(part)),
            None => Ok(()),
        }
    }

    /// Sends a bookmark if one is due.
    fn send_bookmark(&self) -> Result<(), Ended> {
        let due = self.shared.dispatcher.take_bookmark(&self.handle);
        let Some((position, digests)) = due else { return Ok(()) };
        let Position { epoch, revision } = position;
        let bookmark = Bookmark { epoch, revision, scopes: scope_digests(&digests) };
        self.send(manager_message::Message::Bookmark(bookmark))
    }
}

/// Where the table of an agent stands that says hello.
fn position(hello: &Hello) -> Position {
    Position { epoch: hello.epoch, revision: hello.revision }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The node, or its host, closed it.
    Closed,
    /// Nothing came for too long, or nothing was taken.
    Silent,
    /// The node was removed, has opened another, or the manager ends.
    ByManager,
}

impl Ended {
    /// Why the connection under a stream ended: a host that lives has said something within the
    /// heartbeat, and a connection that is given up was without a frame for twice its keepalive.
    fn by_end(silent: Duration, heartbeat: Duration) -> Self {
        match silent < (heartbeat * 3 / 2).min(2 * KEEPALIVE) {
            true => Self::Closed,
            false => Self::Silent,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::ByManager => "ended by the manager",
        }
    }
}

/// What two requests ask for together; nothing named is everything.
fn merged(before: Option<BTreeSet<ScopeId>>, asked: BTreeSet<ScopeId>) -> BTreeSet<ScopeId> {
    match before {
        // More than any table has, or a set without end: the whole table is less.
        _ if before.as_ref().map_or(0, BTreeSet::len) + asked.len() > MAX_ASKED => BTreeSet::new(),
        None => asked,
        Some(before) if before.is_empty() || asked.is_empty() => BTreeSet::new(),
        Some(before) => before.union(&asked).copied().collect(),
    }
}

/// Waits until then, and until the stream has room or is closed, which the next message finds.
async fn room(outbound: &mpsc::Sender<Result<ManagerMessage, Status>>, from: Instant) {
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

fn heartbeat_ms(heartbeat: Duration) -> manager_message::Message {
    let ms = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX);
    manager_message::Message::HeartbeatMs(ms)
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
            Change::Task(task) => Wire::Task(json(task)),
            Change::TaskGone(id) => Wire::TaskGone(id.to_bytes().to_vec()),
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
        let size = size + FRAMING_BYTES;
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
    for task in snapshot.tasks.iter().map(json) {
        let part = room(task.len(), &mut parts);
        parts[part].tasks.push(task);
    }
    if let Some(last) = parts.last_mut() {
        last.last = true;
    }
    parts
}

/// A task as messages have it.
fn json(task: impl serde::Serialize) -> Vec<u8> {
    // Of plain data, which is always written.
    serde_json::to_vec(&task).unwrap_or_default()
}

/// Messages waiting for the connection. Few: what waits here cannot be coalesced any more.
const OUTBOUND: usize = 4;
/// The agent hears whole messages: on a link of 1 Mbit/s this is one a second.
const PART_BYTES: usize = 128 << 10;
/// The tag and the length of one of them, at most.
const FRAMING_BYTES: usize = 4;
/// A larger one goes as a snapshot, in parts.
const MAX_DELTA_BYTES: usize = PART_BYTES;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A first change is sent at once; what follows within this time goes together.
const COALESCED: Duration = Duration::from_millis(50);
/// Scopes asked for by themselves.
const MAX_ASKED: usize = 256;
/// What an agent asks for meanwhile is one snapshot.
const BETWEEN_RESYNCS: Duration = Duration::from_secs(1);
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
            tasks: Vec::new(),
        }
    }

    #[test]
    fn a_large_table_is_cut_into_messages_that_agents_take() {
        let parts = parts(snapshot(40_000));
        assert!(parts.len() > 1, "the table is too small for this test");
        assert!(parts.iter().all(|part| part.encoded_len() <= PART_BYTES + 64));
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

    #[test]
    fn requests_for_parts_of_the_table_come_together() {
        let network = |id| ScopeId::Network(NetworkId::from_u128(id));
        let [blue, green] = [network(1), network(2)].map(|scope| BTreeSet::from([scope]));
        assert_eq!(merged(None, blue.clone()), blue);
        assert_eq!(merged(Some(blue.clone()), green), BTreeSet::from([network(1), network(2)]));
        let whole = BTreeSet::new();
        assert_eq!(merged(Some(blue.clone()), whole.clone()), whole);
        assert_eq!(merged(Some(whole.clone()), blue), whole);
        let many: BTreeSet<ScopeId> = (0..200).map(network).collect();
        let others = (200..400).map(network).collect();
        assert_eq!(merged(Some(many), others), whole, "no set grows without end");
    }

    #[test]
    fn only_an_end_soon_after_a_message_is_a_sign_of_life() {
        let ended = |silent_ms, heartbeat_s| {
            Ended::by_end(Duration::from_millis(silent_ms), Duration::from_secs(heartbeat_s))
        };
        assert_eq!(ended(1400, 1), Ended::Closed);
        assert_eq!(ended(1600, 1), Ended::Silent, "it would have said something");
        assert_eq!(ended(19_000, 60), Ended::Closed);
        assert_eq!(ended(20_000, 60), Ended::Silent, "the connection was given up");
    }
}
