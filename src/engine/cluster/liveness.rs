//! Whether nodes are alive, as their manager decides it.
//!
//! ```text
//!             stream closed, or silent for 2           all witnesses silent
//!   heard  ------------------------------> suspected --------------------> down
//!     ^                                     |     ^                          |
//!     |            a witness hears it       v     | 2.7 later                |
//!     |                                  management lost                     |
//!     '---- heard on a stream <-------------'-------------------------------'
//! ```
//! Times are in keepalive intervals. A suspect is asked after by witnesses, over the data plane, from
//! 2.7 after the last sign of life for 0.8; it is down at 3.5 at the earliest and before 4.0. So a gap of
//! 2 between two keepalives, which is 3 without a sign of life, ends while witnesses still look. Where
//! no witness answers, streams alone decide, unless many vanished together, or all of one manager's:
//! then it is the manager that is cut off, and they are held to be management lost until 60 after their last sign of life.
//! What the manager's own node does not hear is cut off with it, so it denies nobody.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::types::{Moment, NodeId};

/// The watch over all nodes.
pub struct Liveness {
    interval: Duration,
    /// The manager's own node.
    own: NodeId,
    nodes: BTreeMap<NodeId, Watch>,
    outputs: VecDeque<Verdict>,
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Have witnesses look for the node, and name them by [`Liveness::handle_asked`].
    Ask(NodeId),
    /// It is ready.
    Ready(NodeId),
    /// It is down.
    Down(NodeId),
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The node's host said so, which is a sign of life.
    ByNode,
    /// The manager gave it up.
    ByManager,
}

struct Watch {
    /// The last sign of life.
    heard: Moment,
    /// The number of its newest stream.
    session: u64,
    stream: Stream,
    standing: Standing,
}

/// The newest stream, and the node of the manager that it was to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Open(NodeId),
    Closed(NodeId),
}

enum Standing {
    /// Nothing speaks against it.
    Alive,
    /// Witnesses look for it until then; `denied` if one of another host did not hear it.
    Asked { waiting: BTreeSet<NodeId>, denied: bool, until: Moment },
    /// A witness hears it, the manager does not; or the manager hears too few to tell. It is asked for
    /// again then.
    ManagementLost { again: Moment },
    /// It is down.
    Down,
}

impl Liveness {
    /// Watches nobody yet. `interval` is how often agent and manager say something, `own` the
    /// manager's own node.
    pub fn new(interval: Duration, own: NodeId) -> Self {
        Self { interval, own, nodes: BTreeMap::new(), outputs: VecDeque::new() }
    }

    /// Takes another interval. Nodes that are not told yet go on with the one before, so for a
    /// shorter one all count as heard now.
    pub fn set_interval(&mut self, interval: Duration, now: Moment) {
        if interval < self.interval {
            let up = |watch: &&mut Watch| !matches!(watch.standing, Standing::Down);
            self.nodes.values_mut().filter(up).for_each(|watch| watch.heard = now);
        }
        self.interval = interval;
    }

    /// Takes a node in that the cluster holds to be ready, as if it was heard just now: a manager
    /// that starts does not know since when nothing was.
    pub fn handle_known(&mut self, node: NodeId, now: Moment) {
        self.nodes.entry(node).or_insert(Watch {
            heard: now,
            session: 0,
            stream: Stream::Closed(self.own),
            standing: Standing::Alive,
        });
    }

    /// A node's stream opened, to the manager on node `via`. Only the newest counts, whichever is told
    /// of first; a host that started anew numbers its streams anew.
    pub fn handle_opened(&mut self, node: NodeId, session: u64, via: NodeId, at: Moment) {
        let is_older =
            |watch: &Watch| watch.session > session && matches!(watch.stream, Stream::Open(_));
        if self.nodes.get(&node).is_some_and(is_older) {
            return;
        }
        let (stream, standing) = (Stream::Open(via), Standing::Alive);
        self.nodes.insert(node, Watch { heard: at, session, stream, standing });
        self.outputs.push_back(Verdict::Ready(node));
    }

    /// Something came on the stream of that number, which may not be known yet.
    pub fn handle_seen(&mut self, node: NodeId, session: u64, via: NodeId, at: Moment) {
        let is_it = |watch: &Watch| watch.session == session && watch.stream == Stream::Open(via);
        match self.nodes.get(&node).is_some_and(is_it) {
            true => self.handle_heard(node, at),
            false => self.handle_opened(node, session, via, at),
        }
    }

    /// Something came on a node's stream, or is told of later.
    pub fn handle_heard(&mut self, node: NodeId, at: Moment) {
        let Some(watch) = self.nodes.get_mut(&node) else { return };
        if at < watch.heard {
            return;
        }
        watch.heard = at;
        match watch.standing {
            Standing::Alive => {}
            Standing::Asked { .. } | Standing::ManagementLost { .. } => {
                watch.standing = Standing::Alive;
            }
            // Its stream was open all the time, and read late.
            Standing::Down if matches!(watch.stream, Stream::Open(_)) => {
                watch.standing = Standing::Alive;
                self.outputs.push_back(Verdict::Ready(node));
            }
            // Of a stream that was given up; it comes back by a new one.
            Standing::Down => {}
        }
    }

    /// A node's stream ended.
    pub fn handle_closed(&mut self, node: NodeId, session: u64, closed: Closed, at: Moment) {
        let Some(watch) = self.nodes.get_mut(&node) else { return };
        if watch.session != session {
            return;
        }
        let Stream::Open(via) = watch.stream else { return };
        watch.stream = Stream::Closed(via);
        match closed {
            Closed::ByNode => watch.heard = watch.heard.max(at),
            Closed::ByManager => {}
        }
    }

    /// A node left the cluster.
    pub fn handle_removed(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        for watch in self.nodes.values_mut() {
            if let Standing::Asked { waiting, .. } = &mut watch.standing {
                waiting.remove(&node);
            }
        }
    }

    /// Says who looks for a node.
    pub fn handle_asked(&mut self, node: NodeId, witnesses: BTreeSet<NodeId>, now: Moment) {
        let until = now + self.times(WITNESSES_TAKE);
        let Some(watch) = self.nodes.get_mut(&node) else { return };
        if matches!(watch.standing, Standing::Asked { .. }) {
            watch.standing = Standing::Asked { waiting: witnesses, denied: false, until };
        }
    }

    /// A witness has looked for a node.
    pub fn handle_witness(&mut self, witness: NodeId, node: NodeId, heard: Heard, now: Moment) {
        let again = now + self.times(ASK_AFTER);
        let Some(watch) = self.nodes.get_mut(&node) else { return };
        let Standing::Asked { waiting, denied, .. } = &mut watch.standing else { return };
        if !waiting.remove(&witness) {
            return;
        }
        match heard {
            Heard::Yes => {
                watch.standing = Standing::ManagementLost { again };
                watch.heard = now;
            }
            Heard::No => *denied |= witness != self.own,
        }
    }

    /// Whether a witness hears a node that the manager does not.
    pub fn is_management_lost(&self, node: NodeId) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|watch| matches!(watch.standing, Standing::ManagementLost { .. }))
    }

    /// Lists the nodes whose streams are too silent to ask them about others.
    pub fn silent(&self, now: Moment) -> BTreeSet<NodeId> {
        let silent = |watch: &Watch| match watch.standing {
            Standing::Alive => now.since(watch.heard) >= self.times(SUSPECT_AFTER),
            Standing::Asked { .. } | Standing::ManagementLost { .. } | Standing::Down => true,
        };
        self.nodes.iter().filter(|(_, watch)| silent(watch)).map(|(id, _)| *id).collect()
    }

    /// How long ago the last sign of life of a node was.
    pub fn silent_for(&self, node: NodeId, now: Moment) -> Option<Duration> {
        self.nodes.get(&node).map(|watch| now.since(watch.heard))
    }

    /// Returns when to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.nodes.values().filter_map(|watch| self.due(watch)).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Moment) {
        let (again, held_for) = (now + self.times(ASK_AFTER), self.times(HELD_FOR));
        let due = |watch: &Watch| self.due(watch).is_some_and(|at| at <= now);
        let nodes: Vec<NodeId> =
            self.nodes.iter().filter(|(_, watch)| due(watch)).map(|(id, _)| *id).collect();
        if nodes.is_empty() {
            // Who vanished is counted for those only, which is more than looking at each once.
            return;
        }
        let vanished = self.vanished(now);
        for id in nodes {
            let Some(watch) = self.nodes.get_mut(&id) else { continue };
            match &watch.standing {
                Standing::Alive | Standing::ManagementLost { .. } => {
                    // Until somebody is named the deadline stands in for all of them.
                    let until = now + self.interval;
                    let waiting = BTreeSet::from([id]);
                    watch.standing = Standing::Asked { waiting, denied: false, until };
                    self.outputs.push_back(Verdict::Ask(id));
                }
                Standing::Asked { denied: false, .. }
                    if vanished.is_with_others(watch) && now.since(watch.heard) < held_for =>
                {
                    watch.standing = Standing::ManagementLost { again };
                }
                Standing::Asked { .. } => {
                    watch.standing = Standing::Down;
                    self.outputs.push_back(Verdict::Down(id));
                }
                Standing::Down => {}
            }
        }
    }

    /// Takes the next thing to do.
    pub fn poll_output(&mut self) -> Option<Verdict> {
        self.outputs.pop_front()
    }

    /// Whether there is something to do.
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// When something is due for a node.
    fn due(&self, watch: &Watch) -> Option<Moment> {
        match &watch.standing {
            Standing::Alive => Some(watch.heard + self.times(ASK_AFTER)),
            Standing::ManagementLost { again } => Some(*again),
            Standing::Asked { waiting, until, .. } => {
                let earliest = watch.heard + self.times(DOWN_AFTER);
                Some(if waiting.is_empty() { earliest } else { earliest.max(*until) })
            }
            Standing::Down => None,
        }
    }

    /// Counts who is silent.
    fn vanished(&self, now: Moment) -> Vanished {
        let silent = self.silent(now);
        let (mut alive, mut vanished, mut heard_by) = (0, 0, BTreeMap::new());
        for (id, watch) in &self.nodes {
            if matches!(watch.standing, Standing::Down) {
                continue;
            }
            let (heard, of): &mut (usize, usize) = heard_by.entry(watch.stream.via()).or_default();
            let is_silent = silent.contains(id);
            (alive, *of) = (alive + 1, *of + 1);
            match is_silent {
                true => vanished += 1,
                false => *heard += 1,
            }
        }
        let deaf = heard_by.into_iter().filter(|(_, (heard, of))| *heard == 0 && *of > 1);
        let deaf = deaf.map(|(manager, _)| manager).collect();
        Vanished { many: vanished > 1 && vanished * 10 > alive * 3, deaf }
    }

    fn times(&self, tenths: u32) -> Duration {
        self.interval * tenths / 10
    }
}

/// What speaks for it that managers do not hear, rather than that nodes are gone.
struct Vanished {
    /// Over three in ten nodes, and not just one, are silent at once.
    many: bool,
    /// The managers none of whose agents, and not just one, are heard.
    deaf: BTreeSet<NodeId>,
}

impl Vanished {
    fn is_with_others(&self, watch: &Watch) -> bool {
        self.many || self.deaf.contains(&watch.stream.via())
    }
}

impl Stream {
    fn via(self) -> NodeId {
        match self {
            Self::Open(via) | Self::Closed(via) => via,
        }
    }
}

/// Whether a witness heard a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It did.
    Yes,
    /// It did not.
    No,
}

// In tenths of the interval.
/// Two keepalives in a row are missing.
const SUSPECT_AFTER: u32 = 20;
/// Late enough that witnesses, who look for 0.8, do so beyond 3.
const ASK_AFTER: u32 = 27;
const DOWN_AFTER: u32 = 35;
/// A switch that starts anew is back by then, and who is gone for good does not stay ready.
const HELD_FOR: u32 = 600;
/// What witnesses have from when they are asked until they count as silent.
const WITNESSES_TAKE: u32 = 11;
const _: () = assert!(ASK_AFTER >= SUSPECT_AFTER && ASK_AFTER + WITNESSES_TAKE < 40);

#[cfg(test)]
mod tests;
