//! Drives [`Liveness`]: streams tell it what they hear, agents look for suspects, and what it decides
//! becomes a command. One task, which ends with the manager.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Notify, broadcast, watch},
    time::timeout,
};
use tracing::{info, warn};

use super::{
    Shared, after,
    report::{Said, Told},
    watching::Streams,
};
use crate::{
    api::HEARTBEAT,
    engine::cluster::{
        Command, State,
        liveness::{Closed, Heard, Liveness, Verdict},
    },
    io::clock,
    types::{Node, NodeId, NodeStatus},
};

/// The watch, as streams and calls see it. While another manager leads, what becomes of the streams to
/// this one is kept for [`watching`](super::watching) to tell it.
pub struct NodeWatch {
    own: NodeId,
    liveness: Mutex<Liveness>,
    /// Something is due sooner than it was.
    sooner: Notify,
    /// What witnesses say, for whoever else wants to know.
    looked: broadcast::Sender<(NodeId, Heard)>,
    /// Whether it is this manager that decides.
    leads: watch::Sender<bool>,
    streams: Mutex<Streams>,
    /// There is something to tell the leader at once.
    news: Notify,
}

impl NodeWatch {
    /// Watches nobody until this manager leads; `own` is its node.
    pub fn new(own: NodeId) -> Self {
        Self {
            own,
            liveness: Mutex::new(Liveness::new(HEARTBEAT, own)),
            sooner: Notify::new(),
            looked: broadcast::Sender::new(LOOKED),
            leads: watch::Sender::new(false),
            streams: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Begins with the nodes that the state holds to be ready, as if they were heard just now, and with
    /// the streams that this manager has.
    fn begin(&self, state: &State) {
        let mut liveness = Liveness::new(state.heartbeat(), self.own);
        for node in state.nodes().filter(|node| node.status == NodeStatus::Ready) {
            liveness.handle_known(node.id, clock::now());
        }
        let streams = locked(&self.streams);
        for (node, number, heard) in streams.open() {
            liveness.handle_opened(node, number, self.own, heard);
        }
        *self.locked() = liveness;
        self.leads.send_replace(true);
    }

    /// Tells whether this manager decides who is alive.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// A node's stream of that number opened to this manager.
    pub fn handle_opened(&self, node: NodeId, number: u64) {
        let now = clock::now();
        let mut streams = locked(&self.streams);
        streams.handle_opened(node, number, now);
        if self.is_leading() {
            self.locked().handle_opened(node, number, self.own, now);
            self.sooner.notify_one();
        } else {
            self.news.notify_one();
        }
    }

    /// Something came on a node's stream of that number to this manager.
    pub fn handle_heard(&self, node: NodeId, number: u64) {
        let now = clock::now();
        locked(&self.streams).handle_heard(node, number, now);
        if self.is_leading() {
            let mut liveness = self.locked();
            liveness.handle_seen(node, number, self.own, now);
            if liveness.has_output() {
                self.sooner.notify_one();
            }
        }
    }

    /// A node's stream of that number to this manager ended.
    pub fn handle_closed(&self, node: NodeId, number: u64, closed: Closed) {
        let now = clock::now();
        let mut streams = locked(&self.streams);
        streams.handle_closed(node, number, closed, now);
        if self.is_leading() {
            streams.forget_closed();
            self.locked().handle_closed(node, number, closed, now);
            self.sooner.notify_one();
        } else {
            self.news.notify_one();
        }
    }

    /// Takes what another manager tells of a stream to it.
    pub fn handle_told(&self, via: NodeId, told: &Told) {
        let at = told.stream.heard;
        let mut liveness = self.locked();
        match told.stream.closed {
            None => liveness.handle_seen(told.node, told.stream.number, via, at),
            Some(closed) => liveness.handle_closed(told.node, told.stream.number, closed, at),
        }
        self.sooner.notify_one();
    }

    /// Takes what is to be told the leader: of all streams, or of those of which there is something new.
    pub fn take_news(&self, of_all: bool) -> (Vec<Told>, Vec<Said>) {
        locked(&self.streams).take_news(of_all)
    }

    /// Waits until there is something to tell the leader at once.
    pub async fn has_news(&self) {
        self.news.notified().await;
    }

    /// A witness that was asked has looked for a node.
    pub fn handle_witness(&self, witness: NodeId, node: NodeId, heard: Heard) {
        // Mostly nobody wants to know.
        let _ = self.looked.send((node, heard));
        let mut streams = locked(&self.streams);
        if self.is_leading() {
            self.locked().handle_witness(witness, node, heard, clock::now());
            self.sooner.notify_one();
        } else {
            streams.handle_said(Said { witness, node, heard });
            self.news.notify_one();
        }
    }

    /// Forgets a node that left the cluster.
    pub fn handle_removed(&self, node: NodeId) {
        self.locked().handle_removed(node);
    }

    /// Whether a witness hears a node that this manager does not.
    pub fn is_management_lost(&self, node: NodeId) -> bool {
        self.locked().is_management_lost(node)
    }

    /// Lists the nodes whose streams are too silent to ask them about others, where one says something
    /// once a heartbeat.
    pub fn silent(&self, heartbeat: Duration) -> BTreeSet<NodeId> {
        match self.is_leading() {
            true => self.locked().silent(clock::now()),
            false => locked(&self.streams).silent(clock::now(), heartbeat),
        }
    }

    /// How long ago the last sign of life of a node was.
    pub fn silent_for(&self, node: NodeId) -> Option<Duration> {
        self.locked().silent_for(node, clock::now())
    }

    /// Waits until one of so many witnesses has heard a node, or all have not, or long enough.
    pub async fn any_heard(
        node: NodeId,
        witnesses: usize,
        mut looked: broadcast::Receiver<(NodeId, Heard)>,
    ) -> bool {
        let any = async {
            let mut silent = 0;
            while silent < witnesses {
                match looked.recv().await {
                    Ok((of, Heard::Yes)) if of == node => return true,
                    Ok((of, Heard::No)) if of == node => silent += 1,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return false,
                }
            }
            false
        };
        timeout(LOOKED_AFTER, any).await.unwrap_or(false)
    }

    /// Hears what witnesses say from now on.
    pub fn looked(&self) -> broadcast::Receiver<(NodeId, Heard)> {
        self.looked.subscribe()
    }

    fn is_leading(&self) -> bool {
        *self.leads.borrow()
    }

    fn locked(&self) -> MutexGuard<'_, Liveness> {
        locked(&self.liveness)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task; may be aborted.
pub struct LivenessTask {
    shared: Arc<Shared>,
    /// Nodes that are heard again, and have yet to stop what runs elsewhere by now.
    returning: BTreeSet<NodeId>,
}

impl LivenessTask {
    /// Makes the task.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, returning: BTreeSet::new() }
    }

    /// Decides for as long as it is polled, which is while this manager leads.
    pub async fn run(mut self) {
        let shared = self.shared.clone();
        let Shared { watch, log, .. } = &*shared;
        log.read(|state| watch.begin(state));
        let _leading = Leading { watch };
        let mut heartbeat = self.shared.dispatcher.heartbeat();
        heartbeat.mark_changed();
        let mut progress = shared.dispatcher.progress();
        loop {
            let (verdicts, wait) = {
                let mut liveness = watch.locked();
                let now = clock::now();
                liveness.handle_timeout(now);
                let verdicts: Vec<Verdict> = iter::from_fn(|| liveness.poll_output()).collect();
                (verdicts, liveness.poll_timeout().map(|at| at.since(now)))
            };
            if !verdicts.is_empty() {
                self.handle(verdicts).await;
                continue;
            }
            tokio::select! {
                () = after(wait) => {}
                () = watch.sooner.notified() => {}
                Ok(()) = progress.changed(), if !self.returning.is_empty() => {
                    self.note_returned().await;
                }
                Ok(()) = heartbeat.changed() => {
                    let interval = *heartbeat.borrow_and_update();
                    info!(?interval, "nodes are to be heard once an interval");
                    watch.locked().set_interval(interval, clock::now());
                }
            }
        }
    }

    /// Asks at once, and notes what nodes came to together: hundreds may vanish in one moment, and
    /// who is not asked for in time is down.
    async fn handle(&mut self, verdicts: Vec<Verdict>) {
        let (mut asked, mut statuses) = (Vec::new(), BTreeMap::new());
        for verdict in verdicts {
            match verdict {
                Verdict::Ask(node) => asked.push(node),
                Verdict::Ready(node) => drop(statuses.insert(node, NodeStatus::Ready)),
                Verdict::Down(node) => {
                    let silent = self.shared.watch.silent_for(node).unwrap_or_default();
                    warn!(%node, silent_ms = silent.as_millis(), "a node is down");
                    self.returning.remove(&node);
                    statuses.insert(node, NodeStatus::Down);
                }
            }
        }
        if !asked.is_empty() {
            self.ask(asked).await;
        }
        let is_late = |(node, status): &(NodeId, NodeStatus)| {
            let superseded = |state: &State| state.has_superseded(*node);
            *status == NodeStatus::Ready && self.shared.log.read(superseded)
        };
        let (late, statuses): (Vec<_>, Vec<_>) = statuses.into_iter().partition(is_late);
        self.returning.extend(late.into_iter().map(|(node, _)| node));
        join_all(statuses.into_iter().map(|(node, status)| self.note(node, status))).await;
    }

    /// Notes those that have stopped what they had to.
    async fn note_returned(&mut self) {
        let is_done = |node: &NodeId| !self.shared.log.read(|state| state.has_superseded(*node));
        let done: Vec<NodeId> = self.returning.iter().copied().filter(is_done).collect();
        self.returning.retain(|node| !done.contains(node));
        join_all(done.into_iter().map(|node| self.note(node, NodeStatus::Ready))).await;
    }

    /// Has agents of this manager look for nodes, and those of others where these are too few.
    async fn ask(&self, nodes: Vec<NodeId>) {
        let Shared { watch, log, .. } = &*self.shared;
        let (nodes, gone): (Vec<_>, Vec<_>) =
            log.read(|state| nodes.into_iter().partition(|node| state.node(*node).is_some()));
        gone.into_iter().for_each(|node| watch.handle_removed(node));
        for (node, witnesses) in self.shared.find_witnesses(nodes).await {
            info!(%node, witnesses = witnesses.len(), "a node is silent; others look for it");
            watch.locked().handle_asked(node, witnesses, clock::now());
        }
    }

    async fn note(&self, node: NodeId, status: NodeStatus) {
        let stands = |state: &State| state.node(node).map(|node: &Node| node.status);
        match self.shared.log.read(stands) {
            Some(now) if now == status => {}
            Some(_) => {
                let command = Command::SetNodeStatus { node, status };
                if let Err(error) = self.shared.log.propose_leading(command).await {
                    warn!(%node, %error, "the status of a node is not noted");
                }
            }
            None => self.shared.watch.handle_removed(node),
        }
    }
}

/// That this manager decides.
struct Leading<'a> {
    watch: &'a NodeWatch,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.watch.leads.send_replace(false);
        self.watch.news.notify_one();
    }
}

/// How many nodes look for one.
pub const WITNESSES: usize = 3;
/// What is said by the witnesses of some suspects at once.
const LOOKED: usize = 64;
/// Witnesses look for 0.8 s.
const LOOKED_AFTER: Duration = Duration::from_millis(1500);
