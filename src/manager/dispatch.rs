//! What every connected agent still has to be told. Each agent has a session with its scope and a
//! bounded queue of changes; an agent that is slower than its queue gets a fresh snapshot instead,
//! so memory never grows with its slowness.
//!
//! The log calls [`Dispatcher::handle_events`] under the state's lock, so a session always sees the
//! state at the revision of its events. Lock order: state, then rosters or sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::error;

use super::{replication::Addresses, trust::Trust};
use crate::{
    api::{HEARTBEAT, tls::root_digest},
    engine::{
        cluster::{Digests, Event, Rosters, Scope, State},
        membership::{Change, Snapshot},
    },
    types::{Digest, NetworkId, NodeId, NodeStatus, Position, Psk, Revision, Role, ScopeId},
};

/// The sessions of all connected agents.
pub struct Dispatcher {
    trust: Arc<Trust>,
    sessions: Mutex<Sessions>,
    rosters: Mutex<Rosters>,
    /// Up to when nodes have used their share of openings; of those that have used any of late.
    turns: Mutex<BTreeMap<NodeId, Instant>>,
    /// Counts acknowledgements and ends of sessions.
    progress: watch::Sender<u64>,
    /// What agents are told of how often to say something.
    heartbeat: watch::Sender<Duration>,
    addresses: Arc<Addresses>,
}

#[derive(Default)]
struct Sessions {
    by_node: BTreeMap<NodeId, Session>,
    /// The connected nodes that take part in a network, by network for as long as it lives.
    interested: BTreeMap<NetworkId, BTreeSet<NodeId>>,
    /// The connected nodes that are managers'.
    managers: BTreeSet<NodeId>,
    /// The nodes that are connected to other managers, as those say: to which, and up to which revision
    /// they have all that they should.
    elsewhere: BTreeMap<NodeId, (NodeId, Revision)>,
    opened: u64,
    digests: Digests,
    /// Of the newest command.
    position: Position,
}

struct Session {
    number: u64,
    scope: Scope,
    queue: Queue,
    /// The revision that the agent's table will have with everything sent.
    sent: Revision,
    /// The revision of the newest change, sent or not.
    newest: Revision,
    acknowledged: Revision,
    /// What the newest bookmark, or snapshot, was as of.
    marked: Revision,
    /// The keys of all its peers changed: what is due is a snapshot of them.
    keys_due: bool,
    /// It is to be told which roots are trusted.
    roots_due: bool,
    /// It is to be told where the managers are.
    managers_due: bool,
    /// It is to be told whether its node is one.
    role_due: bool,
    /// The nodes that the agent is to look for.
    wanted: BTreeSet<NodeId>,
    /// Those that it was told, and has not answered for.
    looking: BTreeSet<NodeId>,
    wake: Arc<Notify>,
}

enum Queue {
    Changes(Vec<Change>),
    /// The queue was too long: a snapshot is due.
    Collapsed,
}

/// One agent's session, held by whoever serves its stream.
pub struct SessionHandle {
    node: NodeId,
    /// Counts the sessions that were opened, of all nodes.
    number: u64,
    /// Told whenever something is due.
    pub wake: Arc<Notify>,
}

/// What is due to an agent.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// The changes of `(from, to]`.
    Delta {
        /// What the agent's table stands at.
        from: Position,
        /// What it will stand at.
        to: Position,
        /// In order.
        changes: Vec<Change>,
    },
    /// A snapshot of some scopes, or of the whole table.
    Snapshot(Option<BTreeSet<ScopeId>>),
    /// The session ended: the node was removed, or has opened another.
    Ended,
}

impl Dispatcher {
    /// Makes a dispatcher without sessions.
    pub fn new(trust: Arc<Trust>) -> Self {
        let heartbeat = watch::Sender::new(HEARTBEAT);
        Self {
            trust,
            sessions: Mutex::default(),
            rosters: Mutex::default(),
            turns: Mutex::default(),
            progress: watch::Sender::new(0),
            heartbeat,
            addresses: Arc::default(),
        }
    }

    /// Returns where the managers of the state are.
    pub fn addresses(&self) -> &Arc<Addresses> {
        &self.addresses
    }

    /// Tells the sessions concerned of what a command changed.
    pub fn handle_events(&self, state: &State, revision: Revision, events: &[Event]) {
        let changed = |event: &Event| matches!(event, Event::SecretsChanged | Event::RootsChanged);
        if events.iter().any(changed) {
            self.follow_secrets(state);
        }
        let keys = self.trust.epoch_keys();
        events.iter().for_each(|event| self.rosters().handle_event(event));
        let mut sessions = self.locked();
        sessions.position = state.position();
        for event in events {
            sessions.digests.handle_event(state, event, &keys);
            for node in sessions.concerned(state, event) {
                sessions.handle_event(state, revision, event, node, &self.trust);
            }
            match event {
                Event::NodeRemoved(node) => {
                    sessions.end(*node);
                    sessions.elsewhere.remove(node);
                }
                Event::RoleChanged(node, role) => sessions.handle_role(*node, *role),
                Event::NetworkRemoved(network) => drop(sessions.interested.remove(network)),
                Event::SecretsChanged => sessions.make_keys_due(revision),
                Event::RootsChanged => sessions.make_roots_due(),
                Event::NodeChanged(_)
                | Event::NodeStatusChanged(..)
                | Event::NetworkChanged(_)
                | Event::EndpointCreated(_)
                | Event::EndpointRemoved(_)
                | Event::NodeUpdated(_)
                | Event::ServiceChanged(_)
                | Event::ServiceRemoved(_)
                | Event::TaskChanged(_)
                | Event::TaskRemoved(_) => {}
            }
        }
        if self.addresses.handle_events(state, events) {
            sessions.make_managers_due();
        }
        drop(sessions);
        self.follow_heartbeat(state);
        self.progress.send_modify(|count| *count += 1);
    }

    /// Ends all sessions.
    pub fn close_all(&self) {
        let mut sessions = self.locked();
        let nodes: Vec<NodeId> = sessions.by_node.keys().copied().collect();
        nodes.into_iter().for_each(|node| sessions.end(node));
        drop(sessions);
        self.progress.send_modify(|count| *count += 1);
    }

    /// Takes a state in that came in the place of the one before. The sessions end, and begin anew
    /// with what they lack of it.
    pub fn replace(&self, state: &State) {
        self.follow_secrets(state);
        self.adopt(state);
        self.close_all();
    }

    fn follow_secrets(&self, state: &State) {
        if let Some(secrets) = state.secrets()
            && let Err(failed) = self.trust.follow(secrets)
        {
            // All managers have one key, so this is of a log that was put together by hand.
            error!(error = format!("{failed:#}"), "the cluster's new secrets are not opened");
        }
    }

    /// Takes a state in that was there before this dispatcher.
    pub fn adopt(&self, state: &State) {
        self.rosters().clear();
        let mut sessions = self.locked();
        sessions.digests = Digests::new(state, &self.trust.epoch_keys());
        sessions.position = state.position();
        drop(sessions);
        self.addresses.adopt(state);
        self.follow_heartbeat(state);
    }

    /// Returns when a node may open a session, which costs a snapshot; `None` if too many wait for
    /// that already.
    pub fn turn(&self, node: NodeId, now: Instant) -> Option<Instant> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, used| *used > now);
        let used = turns.get(&node).map_or(now, |used| *used) + OPENING;
        let turn = now.max(used - OPENINGS_AT_ONCE * OPENING);
        let soon = turn <= now + OPENINGS_AT_ONCE * OPENING;
        soon.then(|| {
            turns.insert(node, used);
            turn
        })
    }

    /// Opens a node's session, in the place of an older one, and returns the snapshot of what the
    /// node's table, which stands at `held` with these digests, lacks.
    ///
    /// # Errors
    /// The node has heard of more than this manager has.
    pub fn open(
        &self,
        state: &State,
        node: NodeId,
        held: Position,
        digests: &[(ScopeId, Digest)],
    ) -> Result<(SessionHandle, Snapshot), Ahead> {
        let position = state.position();
        if held > position {
            return Err(Ahead { held, position });
        }
        let roster = |network| self.rosters().find(state, network);
        let scope = Scope::new(state, node, roster);
        let known = held.epoch == position.epoch && held.revision > 0;
        let scopes = known.then(|| differing(digests, &self.locked().digests.of_scope(&scope)));
        // Without the sessions' lock: it takes a while, and the state is held as it is.
        let snapshot = scope.snapshot(state, scopes, &self.keys_of(node), roster);
        let mut sessions = self.locked();
        sessions.end(node);
        sessions.opened += 1;
        let wake = Arc::new(Notify::new());
        let session = Session {
            number: sessions.opened,
            scope,
            queue: Queue::Changes(Vec::new()),
            sent: position.revision,
            newest: position.revision,
            acknowledged: 0,
            marked: position.revision,
            keys_due: false,
            roots_due: true,
            managers_due: true,
            role_due: true,
            wanted: BTreeSet::new(),
            looking: BTreeSet::new(),
            wake: wake.clone(),
        };
        for network in session.scope.networks() {
            sessions.interested.entry(network).or_default().insert(node);
        }
        if state.node(node).is_some_and(|node| node.role == Role::Manager) {
            sessions.managers.insert(node);
        }
        let handle = SessionHandle { node, number: session.number, wake };
        sessions.by_node.insert(node, session);
        Ok((handle, snapshot))
    }

    /// Takes what is due to the agent.
    pub fn take(&self, handle: &SessionHandle) -> Due {
        let mut sessions = self.locked();
        let epoch = sessions.position.epoch;
        let Some(session) = sessions.of(handle) else { return Due::Ended };
        // What comes before the acknowledgement is coalesced: an agent is sent no more than it takes.
        if session.acknowledged < session.sent {
            return Due::Nothing;
        }
        match &mut session.queue {
            Queue::Collapsed => Due::Snapshot(None),
            // Before anything newer, so that an acknowledgement of a later revision is one of these.
            Queue::Changes(_) if session.keys_due => {
                Due::Snapshot(Some(BTreeSet::from([ScopeId::Peers])))
            }
            Queue::Changes(changes) if changes.is_empty() => Due::Nothing,
            Queue::Changes(changes) => {
                let changes = std::mem::take(changes);
                let at = |revision| Position { epoch, revision };
                let (from, to) = (at(session.sent), at(session.newest));
                session.sent = session.newest;
                Due::Delta { from, to, changes }
            }
        }
    }

    /// Takes a snapshot for the agent of the whole table, in the place of all that is due; or of
    /// some scopes, which is `None` while changes are due that come before it.
    pub fn take_snapshot(
        &self,
        state: &State,
        handle: &SessionHandle,
        scopes: Option<BTreeSet<ScopeId>>,
    ) -> Option<Snapshot> {
        let mut sessions = self.locked();
        let session = sessions.of(handle)?;
        // The agent may have thrown away what it was sent and has not acknowledged.
        let on_its_way = session.acknowledged < session.sent;
        if scopes.is_some() && (!session.has_no_changes() || on_its_way) {
            return None;
        }
        let with_keys = scopes.as_ref().is_none_or(|scopes| scopes.contains(&ScopeId::Peers));
        session.keys_due &= !with_keys;
        session.queue = Queue::Changes(Vec::new());
        session.sent = state.revision();
        session.newest = state.revision();
        session.marked = state.revision();
        let scope = session.scope.clone();
        // Others need not wait for it: the state is held as it is.
        drop(sessions);
        let roster = |network| self.rosters().find(state, network);
        Some(scope.snapshot(state, scopes, &self.keys_of(handle.node), roster))
    }

    /// Returns what a bookmark for the agent says, if everything was sent since the last.
    pub fn take_bookmark(
        &self,
        handle: &SessionHandle,
    ) -> Option<(Position, Vec<(ScopeId, Digest)>)> {
        let mut sessions = self.locked();
        let epoch = sessions.position.epoch;
        let session = sessions.of(handle)?;
        if !session.is_up_to_date() || session.marked == session.sent {
            return None;
        }
        session.marked = session.sent;
        let position = Position { epoch, revision: session.sent };
        let session = sessions.by_node.get(&handle.node)?;
        Some((position, sessions.digests.of_scope(&session.scope)))
    }

    /// Has up to so many connected nodes look for one, and returns which: those that share a network
    /// with it, and managers' nodes, which may always; but none of the silent ones.
    pub fn look_for(
        &self,
        state: &State,
        node: NodeId,
        silent: &BTreeSet<NodeId>,
        most: usize,
    ) -> BTreeSet<NodeId> {
        let mut sessions = self.locked();
        let networks = state.endpoints_of(node).map(|endpoint| endpoint.network);
        let sharing = networks.filter_map(|network| sessions.interested.get(&network)).flatten();
        let can = |other: &&NodeId| **other != node && !silent.contains(other);
        let candidates: Vec<NodeId> =
            sharing.chain(&sessions.managers).filter(can).copied().collect();
        let mut witnesses = BTreeSet::new();
        for candidate in candidates {
            if witnesses.len() < most
                && let Some(session) = sessions.by_node.get_mut(&candidate)
                && session.want(node)
            {
                witnesses.insert(candidate);
            }
        }
        witnesses
    }

    /// Takes the next of the nodes that the agent is to look for.
    pub fn take_wanted(&self, handle: &SessionHandle) -> Option<NodeId> {
        let mut sessions = self.locked();
        let session = sessions.of(handle)?;
        let node = session.wanted.pop_first()?;
        session.looking.insert(node);
        Some(node)
    }

    /// Notes that the agent has looked for a node; tells whether it was to.
    pub fn handle_looked(&self, handle: &SessionHandle, node: NodeId) -> bool {
        let mut sessions = self.locked();
        sessions.of(handle).is_some_and(|session| session.looking.remove(&node))
    }

    /// Whether a session goes on: its node was not removed, and has not opened another.
    pub fn is_open(&self, handle: &SessionHandle) -> bool {
        self.locked().of(handle).is_some()
    }

    /// Takes where the managers are if the agent is to be told.
    pub fn take_managers(&self, handle: &SessionHandle) -> Option<Vec<SocketAddr>> {
        let due = {
            let mut sessions = self.locked();
            std::mem::take(&mut sessions.of(handle)?.managers_due)
        };
        due.then(|| self.addresses.list())
    }

    /// Takes whether the agent is to be told if its node is a manager.
    pub fn take_role_due(&self, handle: &SessionHandle) -> bool {
        let mut sessions = self.locked();
        sessions.of(handle).is_some_and(|session| std::mem::take(&mut session.role_due))
    }

    /// Notes that these may have begun or ceased to decide.
    pub fn handle_members(&self, nodes: &BTreeSet<NodeId>) {
        let mut sessions = self.locked();
        for node in nodes {
            if let Some(session) = sessions.by_node.get_mut(node) {
                session.role_due = true;
                session.wake.notify_one();
            }
        }
    }

    /// Takes the digests of the trusted roots if the agent is to be told them.
    pub fn take_roots(&self, handle: &SessionHandle) -> Option<Vec<[u8; 32]>> {
        let due = {
            let mut sessions = self.locked();
            std::mem::take(&mut sessions.of(handle)?.roots_due)
        };
        due.then(|| self.trust.authority().roots().iter().map(root_digest).collect())
    }

    /// Notes that the agent forwards by the table of a revision.
    pub fn handle_acknowledged(&self, handle: &SessionHandle, revision: Revision) {
        if let Some(session) = self.locked().of(handle) {
            session.acknowledged = session.acknowledged.max(revision);
        }
        self.progress.send_modify(|count| *count += 1);
    }

    /// Ends a session.
    pub fn close(&self, handle: &SessionHandle) {
        let mut sessions = self.locked();
        if sessions.of(handle).is_some() {
            sessions.end(handle.node);
        }
        drop(sessions);
        self.progress.send_modify(|count| *count += 1);
    }

    /// Lists the connected nodes of a network that do not forward by that revision yet.
    pub fn lagging(&self, network: NetworkId, revision: Revision) -> Vec<NodeId> {
        let sessions = self.locked();
        let nodes = sessions.interested.get(&network).into_iter().flatten();
        let lags = |node: &&NodeId| {
            sessions.by_node.get(*node).is_some_and(|session| {
                // A later revision that changes nothing for a node is never sent to it.
                session.acknowledged < revision.min(session.newest)
            })
        };
        nodes.filter(lags).copied().collect()
    }

    /// Returns the revision up to which a connected node has all that it should, keys too.
    pub fn acknowledged(&self, node: NodeId) -> Revision {
        self.locked().by_node.get(&node).map_or(0, Session::complete)
    }

    /// Notes up to which revision a node that is connected to another manager has all that it should;
    /// `None` if it is so no more.
    pub fn handle_elsewhere(&self, node: NodeId, via: NodeId, acknowledged: Option<Revision>) {
        let mut sessions = self.locked();
        match acknowledged {
            Some(acknowledged) => drop(sessions.elsewhere.insert(node, (via, acknowledged))),
            None => {
                if sessions.elsewhere.get(&node).is_some_and(|(known, _)| *known == via) {
                    sessions.elsewhere.remove(&node);
                }
            }
        }
        drop(sessions);
        self.progress.send_modify(|count| *count += 1);
    }

    /// Tells whether some node that is ready may not know the keys of a revision yet.
    pub fn lacks_keys(&self, state: &State, revision: Revision) -> bool {
        let sessions = self.locked();
        let mut ready = state.nodes().filter(|node| node.status == NodeStatus::Ready);
        ready.any(|node| {
            let here = sessions.by_node.get(&node.id).map(Session::complete);
            let elsewhere = sessions.elsewhere.get(&node.id).map(|(_, revision)| *revision);
            here.max(elsewhere).is_none_or(|complete| complete < revision)
        })
    }

    /// Changes whenever [`Self::lagging`] or [`Self::lacks_keys`] may answer otherwise.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Changes whenever agents and manager are to say something more or less often.
    pub fn heartbeat(&self) -> watch::Receiver<Duration> {
        self.heartbeat.subscribe()
    }

    fn follow_heartbeat(&self, state: &State) {
        let heartbeat = state.heartbeat();
        self.heartbeat.send_if_modified(|now| std::mem::replace(now, heartbeat) != heartbeat);
    }

    fn rosters(&self) -> MutexGuard<'_, Rosters> {
        // A panic leaves at most one network out, which is gathered anew.
        self.rosters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys_of(&self, node: NodeId) -> impl Fn(NodeId) -> Vec<Psk> {
        move |other| self.trust.pair_keys(node, other)
    }

    /// A panic while the lock is held loses at most that change's sessions, which then resync.
    fn locked(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that a node has heard of more than this manager has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has heard of position {held}, and this manager stands at {position}")]
pub struct Ahead {
    held: Position,
    position: Position,
}

/// The scopes that are not the same, or only on one side.
fn differing(ours: &[(ScopeId, Digest)], theirs: &[(ScopeId, Digest)]) -> BTreeSet<ScopeId> {
    let [ours, theirs] = [ours, theirs].map(|digests| digests.iter().collect::<BTreeSet<_>>());
    ours.symmetric_difference(&theirs).map(|(scope, _)| *scope).collect()
}

impl Session {
    /// Whether the agent was sent everything.
    fn is_up_to_date(&self) -> bool {
        self.has_no_changes() && !self.keys_due
    }

    /// Has the agent look for a node, or wait for what it finds if it does already; tells whether it
    /// will. Who is not asked is no witness, nor who has no table yet to find a node by.
    fn want(&mut self, node: NodeId) -> bool {
        if self.wanted.contains(&node) || self.looking.contains(&node) {
            return true;
        }
        let takes = self.acknowledged > 0 && self.wanted.len() + self.looking.len() < MAX_WANTED;
        if takes {
            self.wanted.insert(node);
            self.wake.notify_one();
        }
        takes
    }

    /// The revision up to which the agent has all that it should, keys too.
    fn complete(&self) -> Revision {
        if self.keys_due { 0 } else { self.acknowledged }
    }

    fn has_no_changes(&self) -> bool {
        matches!(&self.queue, Queue::Changes(changes) if changes.is_empty())
    }
}

impl Sessions {
    fn of(&mut self, handle: &SessionHandle) -> Option<&mut Session> {
        self.by_node.get_mut(&handle.node).filter(|session| session.number == handle.number)
    }

    fn end(&mut self, node: NodeId) {
        if let Some(session) = self.by_node.remove(&node) {
            session.wake.notify_one();
            for network in session.scope.networks() {
                self.interested.entry(network).or_default().remove(&node);
            }
            self.managers.remove(&node);
        }
    }

    /// Lists the connected nodes that an event may concern.
    fn concerned(&self, state: &State, event: &Event) -> BTreeSet<NodeId> {
        let on = |network: &NetworkId| self.interested.get(network).into_iter().flatten().copied();
        match event {
            Event::EndpointCreated(endpoint) | Event::EndpointRemoved(endpoint) => {
                on(&endpoint.network).chain([endpoint.node]).collect()
            }
            Event::NetworkChanged(network) => on(network).collect(),
            Event::NodeChanged(id) => match state.node(*id).map(|node| node.role) {
                Some(Role::Manager) => self.by_node.keys().copied().collect(),
                Some(Role::Worker) | None => {
                    let endpoints = state.endpoints_of(*id);
                    let sharing = endpoints.flat_map(|endpoint| on(&endpoint.network));
                    sharing.chain(self.managers.iter().copied()).collect()
                }
            },
            Event::TaskChanged(id) => {
                let task = state.task(*id);
                task.and_then(|task| task.node).into_iter().collect()
            }
            Event::TaskRemoved(task) => task.node.into_iter().collect(),
            // Its endpoints went before, so only who always knows it still does: every node may, if
            // it was a manager.
            Event::NodeRemoved(_) | Event::RoleChanged(..) => {
                self.by_node.keys().copied().collect()
            }
            Event::NetworkRemoved(_)
            | Event::NodeStatusChanged(..)
            | Event::SecretsChanged
            | Event::NodeUpdated(_)
            | Event::ServiceChanged(_)
            | Event::ServiceRemoved(_)
            | Event::RootsChanged => BTreeSet::new(),
        }
    }

    fn make_roots_due(&mut self) {
        for session in self.by_node.values_mut() {
            session.roots_due = true;
            session.wake.notify_one();
        }
    }

    fn handle_role(&mut self, node: NodeId, role: Role) {
        let Some(session) = self.by_node.get_mut(&node) else { return };
        match role {
            Role::Manager => self.managers.insert(node),
            Role::Worker => self.managers.remove(&node),
        };
        session.role_due = true;
        session.wake.notify_one();
    }

    fn make_managers_due(&mut self) {
        for session in self.by_node.values_mut() {
            session.managers_due = true;
            session.wake.notify_one();
        }
    }

    /// The keys themselves are derived when a session's turn comes, not under the state's lock.
    fn make_keys_due(&mut self, revision: Revision) {
        for session in self.by_node.values_mut() {
            session.keys_due = true;
            session.newest = revision;
            session.wake.notify_one();
        }
    }

    fn handle_event(
        &mut self,
        state: &State,
        revision: Revision,
        event: &Event,
        node: NodeId,
        trust: &Trust,
    ) {
        let Some(session) = self.by_node.get_mut(&node) else { return };
        let keys = |other| trust.pair_keys(node, other);
        let changes = session.scope.handle_event(state, event, &keys);
        if let Event::EndpointCreated(endpoint) | Event::EndpointRemoved(endpoint) = event {
            let nodes = self.interested.entry(endpoint.network).or_default();
            match session.scope.takes_part(endpoint.network) {
                true => nodes.insert(node),
                false => nodes.remove(&node),
            };
        }
        if !changes.is_empty() {
            session.newest = revision;
            session.queue.push(changes);
            session.wake.notify_one();
        }
    }
}

impl Queue {
    fn push(&mut self, changes: Vec<Change>) {
        match self {
            Self::Collapsed => {}
            Self::Changes(queued) if queued.len() + changes.len() > MAX_QUEUED => {
                *self = Self::Collapsed;
            }
            Self::Changes(queued) => queued.extend(changes),
        }
    }
}

/// At about 200 bytes a change a full queue is below one megabyte, and a snapshot of most networks
/// is smaller than that.
const MAX_QUEUED: usize = 4096;
/// More than one agent is asked to look for in the time that it takes: a manager whose nodes vanish
/// by the hundred does not need each of them looked for.
const MAX_WANTED: usize = 64;
/// A node has one opening in this time, and so many saved up.
const OPENING: Duration = Duration::from_millis(250);
const OPENINGS_AT_ONCE: u32 = 16;

#[cfg(test)]
mod tests;
