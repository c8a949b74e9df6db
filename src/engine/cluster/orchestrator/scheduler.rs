//! Where tasks run: first the nodes that can take one, then of those the one with the fewest. What it holds
//! of nodes and tasks is a mirror of the state, kept up to date change by change.
//!
//! The order of nodes: those where the service does not keep failing, then those with the fewest tasks of
//! the service, then with the fewest of all, then by id. With labels to spread over, the value with the
//! fewest tasks of the service comes first, label by label.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fmt::Write,
    time::Duration,
};

use crate::{
    engine::cluster::State,
    types::{
        Availability, Comparison, Constraint, Moment, Node, NodeAttribute, NodeId, NodeStatus,
        Resources, ServiceId, Slot, Task, TaskId, TaskSpec, TaskState,
    },
};

/// The mirror.
#[derive(Default)]
pub struct Scheduler {
    nodes: BTreeMap<NodeId, Room>,
    tasks: BTreeMap<TaskId, Held>,
    /// How many tasks of a service are on each node.
    counts: BTreeMap<ServiceId, BTreeMap<NodeId, u32>>,
    failures: BTreeMap<(ServiceId, NodeId), VecDeque<Moment>>,
}

/// What a node has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    status: Option<(NodeStatus, Availability)>,
    total: Resources,
    reserved: Resources,
    tasks: u32,
}

/// What a task takes of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    service: ServiceId,
    node: NodeId,
    reserved: Resources,
    /// Whether it is wanted there, and counts.
    counts: bool,
}

/// What is to be placed.
pub struct Wanted<'a> {
    service: ServiceId,
    /// The only node that may have it.
    node: Option<NodeId>,
    spec: &'a TaskSpec,
    now: Moment,
}

/// Why a node cannot take a task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    Down,
    Drained,
    Paused,
    Constraint(usize),
    Cpu,
    Memory,
    Full,
}

impl<'a> Wanted<'a> {
    pub fn new(service: ServiceId, slot: Slot, spec: &'a TaskSpec, now: Moment) -> Self {
        Self { service, node: slot.node(), spec, now }
    }
}

impl Scheduler {
    /// Takes in how a node stands.
    pub fn set_node(&mut self, node: &Node, capacity: Resources) {
        let room = self.nodes.entry(node.id).or_default();
        room.status = Some((node.status, node.availability));
        room.total = capacity;
    }

    pub fn forget_node(&mut self, node: NodeId) {
        // What its tasks hold there goes with them.
        if let Some(room) = self.nodes.get_mut(&node) {
            room.status = None;
        }
        self.forget_if_gone(node);
        self.failures.retain(|(_, of), _| *of != node);
    }

    /// Takes in how a task stands. Returns `Some` if what it takes of a node changed, and in it when what
    /// it spoiled by failing too often there is forgotten.
    pub fn set_task(&mut self, state: &State, task: &Task, now: Moment) -> Option<Option<Moment>> {
        let held = task.node.filter(|_| !task.has_ended()).map(|node| Held {
            service: task.service,
            node,
            reserved: state
                .definition(task.service, task.version)
                .map_or_else(Resources::default, |spec| spec.reservations),
            counts: task.is_wanted(),
        });
        let before = self.tasks.get(&task.id).copied();
        if before == held {
            return None;
        }
        self.replace(task.id, held);
        let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
        match (before, held) {
            (Some(before), None) if failed => {
                Some(self.note_failure(before.service, before.node, now))
            }
            (Some(_) | None, _) => Some(None),
        }
    }

    pub fn forget_service(&mut self, service: ServiceId) {
        self.failures.retain(|(of, _), _| *of != service);
    }

    pub fn forget_task(&mut self, task: TaskId) {
        self.replace(task, None);
    }

    /// A task is about to be given to a node.
    pub fn hold(&mut self, task: TaskId, service: ServiceId, node: NodeId, spec: &TaskSpec) {
        let held = Held { service, node, reserved: spec.reservations, counts: true };
        self.replace(task, Some(held));
    }

    fn replace(&mut self, task: TaskId, held: Option<Held>) {
        let before = match held {
            Some(held) => self.tasks.insert(task, held),
            None => self.tasks.remove(&task),
        };
        if let Some(before) = before {
            self.count(before, Count::Off);
        }
        if let Some(held) = held {
            self.count(held, Count::On);
        }
    }

    fn count(&mut self, held: Held, way: Count) {
        let change = |number: &mut u64, by: u64| match way {
            Count::On => *number += by,
            Count::Off => *number -= by,
        };
        let Held { service, node, reserved, counts } = held;
        let room = self.nodes.entry(node).or_default();
        change(&mut room.reserved.cpu_milli, reserved.cpu_milli);
        change(&mut room.reserved.memory_bytes, reserved.memory_bytes);
        if counts {
            let of_service = self.counts.entry(service).or_default();
            let here = of_service.entry(node).or_default();
            for number in [&mut room.tasks, here] {
                match way {
                    Count::On => *number += 1,
                    Count::Off => *number -= 1,
                }
            }
            if self.counts[&service].get(&node) == Some(&0) {
                let of_service = self.counts.entry(service).or_default();
                of_service.remove(&node);
                if of_service.is_empty() {
                    self.counts.remove(&service);
                }
            }
        }
        self.forget_if_gone(node);
    }

    /// A node that was taken out is remembered for as long as a task holds something of it.
    fn forget_if_gone(&mut self, node: NodeId) {
        let is_gone = |room: &Room| {
            room.status.is_none() && room.tasks == 0 && room.reserved == Resources::default()
        };
        if self.nodes.get(&node).is_some_and(is_gone) {
            self.nodes.remove(&node);
        }
    }

    fn note_failure(&mut self, service: ServiceId, node: NodeId, now: Moment) -> Option<Moment> {
        let failures = self.failures.entry((service, node)).or_default();
        failures.push_back(now);
        while failures.len() > TOO_MANY_FAILURES {
            failures.pop_front();
        }
        let first = *failures.front()?;
        (failures.len() == TOO_MANY_FAILURES).then(|| first + FAILURES_COUNT_FOR)
    }

    fn keeps_failing(&self, service: ServiceId, node: NodeId, now: Moment) -> bool {
        let failures = self.failures.get(&(service, node));
        failures.is_some_and(|failures| {
            failures.len() == TOO_MANY_FAILURES
                && failures.front().is_some_and(|first| now.since(*first) < FAILURES_COUNT_FOR)
        })
    }

    /// Checks that it holds what one holds that looks at the state anew.
    #[cfg(test)]
    pub fn assert_same(&self, fresh: &Self) {
        assert_eq!(self.nodes, fresh.nodes);
        assert_eq!(self.tasks, fresh.tasks);
        assert_eq!(self.counts, fresh.counts);
    }

    /// Finds nodes for so many tasks that are alike; `None` for each that has no place.
    pub fn place(&self, state: &State, wanted: &Wanted<'_>, number: usize) -> Vec<Option<NodeId>> {
        let mut places = Vec::with_capacity(number);
        if let Some(node) = wanted.node {
            let room = self.nodes.get(&node);
            let fits = room.is_some_and(|room| self.lack(state, wanted, node, room, 0).is_none());
            places.push(fits.then_some(node));
        } else {
            let mut tree = self.tree(state, wanted);
            while places.len() < number {
                let Some(node) = tree.take(wanted.spec) else { break };
                places.push(Some(node));
            }
        }
        places.resize(number, None);
        places
    }

    /// Says why no node takes another task, filter by filter.
    pub fn explain(&self, state: &State, wanted: &Wanted<'_>) -> String {
        let mut lacks: BTreeMap<Lack, usize> = BTreeMap::new();
        let mut nodes = 0;
        for (id, room, here) in self.nodes_for(wanted.service) {
            let asked = wanted.node.is_none_or(|node| node == id) && room.status.is_some();
            if asked {
                nodes += 1;
                let lack = self.lack(state, wanted, id, room, here);
                lack.into_iter().for_each(|lack| *lacks.entry(lack).or_default() += 1);
            }
        }
        let mut text = format!("{nodes} node{}: ", if nodes == 1 { "" } else { "s" });
        for (index, (lack, count)) in lacks.iter().enumerate() {
            let between = if index == 0 { "" } else { ", " };
            let _ = write!(text, "{between}{count} {}", lack.say(wanted.spec, *count));
        }
        if lacks.is_empty() {
            text.push_str("none has room");
        }
        text
    }

    /// All nodes with what they have left and how many tasks of a service they have.
    fn nodes_for(&self, service: ServiceId) -> impl Iterator<Item = (NodeId, &Room, u32)> {
        let mut counts = self.counts.get(&service).into_iter().flatten().peekable();
        self.nodes.iter().map(move |(id, room)| {
            while counts.peek().is_some_and(|(of, _)| *of < id) {
                counts.next();
            }
            let here = counts.peek().filter(|(of, _)| *of == id).map_or(0, |(_, count)| **count);
            (*id, room, here)
        })
    }

    fn lack(
        &self,
        state: &State,
        wanted: &Wanted<'_>,
        id: NodeId,
        room: &Room,
        here: u32,
    ) -> Option<Lack> {
        match room.status {
            None | Some((NodeStatus::Down, _)) => return Some(Lack::Down),
            Some((NodeStatus::Ready, Availability::Drain)) => return Some(Lack::Drained),
            Some((NodeStatus::Ready, Availability::Pause)) => return Some(Lack::Paused),
            Some((NodeStatus::Ready, Availability::Active)) => {}
        }
        let spec = wanted.spec;
        if !spec.placement.constraints.is_empty() {
            let Some(node) = state.node(id) else { return Some(Lack::Down) };
            let constraints = spec.placement.constraints.iter();
            let broken = constraints.enumerate().find(|(_, constraint)| !constraint.holds(node));
            if let Some((index, _)) = broken {
                return Some(Lack::Constraint(index));
            }
        }
        room.lack(spec, here)
    }

    /// Sorts the nodes that can take a task into the values of the labels to spread over.
    fn tree<'s>(&self, state: &'s State, wanted: &Wanted<'_>) -> Branch<'s> {
        let spread = &wanted.spec.placement.spread;
        let mut leaves: Vec<(Vec<&'s str>, u32, Option<Candidate>)> = Vec::new();
        for (id, room, here) in self.nodes_for(wanted.service) {
            let candidate = match self.lack(state, wanted, id, room, here) {
                None => Some(Candidate {
                    failing: self.keeps_failing(wanted.service, id, wanted.now),
                    here,
                    tasks: room.tasks,
                    id,
                    room: *room,
                }),
                // What it has counts for its branch, whether or not it takes more.
                Some(Lack::Cpu | Lack::Memory | Lack::Full) => None,
                Some(Lack::Down | Lack::Drained | Lack::Paused | Lack::Constraint(_)) => continue,
            };
            let labels = state.node(id).map(|node| &node.labels);
            let value =
                |key: &String| labels.and_then(|labels| labels.get(key)).map_or("", String::as_str);
            leaves.push((spread.iter().map(value).collect(), here, candidate));
        }
        Branch::new(leaves, 0, spread.len())
    }
}

#[derive(Clone, Copy)]
enum Count {
    On,
    Off,
}

impl Room {
    fn lack(&self, spec: &TaskSpec, here: u32) -> Option<Lack> {
        let Resources { cpu_milli, memory_bytes } = spec.reservations;
        let fits = |wanted: u64, total: u64, reserved: u64| {
            wanted == 0 || wanted <= total.saturating_sub(reserved)
        };
        if !fits(cpu_milli, self.total.cpu_milli, self.reserved.cpu_milli) {
            return Some(Lack::Cpu);
        }
        if !fits(memory_bytes, self.total.memory_bytes, self.reserved.memory_bytes) {
            return Some(Lack::Memory);
        }
        let is_full = spec.placement.max_per_node.is_some_and(|most| here >= most);
        is_full.then_some(Lack::Full)
    }

    fn take(&mut self, spec: &TaskSpec) {
        self.reserved.cpu_milli += spec.reservations.cpu_milli;
        self.reserved.memory_bytes += spec.reservations.memory_bytes;
        self.tasks += 1;
    }
}

impl Lack {
    /// What is wrong with so many nodes.
    fn say(self, spec: &TaskSpec, count: usize) -> String {
        let (lack, have, are) = match count {
            1 => ("lacks", "has", "is"),
            _ => ("lack", "have", "are"),
        };
        match self {
            Self::Down => "down".to_owned(),
            Self::Drained => "drained".to_owned(),
            Self::Paused => "paused".to_owned(),
            Self::Constraint(index) => match &spec.placement.constraints[index] {
                Constraint { attribute: NodeAttribute::Label(key), comparison, value } => {
                    let verb = match comparison {
                        Comparison::Equal => lack,
                        Comparison::Unequal => have,
                    };
                    format!("{verb} label {key}={value}")
                }
                other => format!("{are} not {other}"),
            },
            Self::Cpu => {
                format!("{lack} {} free cpus", spec.reservations.cpu_milli as f64 / 1000.0)
            }
            Self::Memory => format!("{lack} {} bytes of memory", spec.reservations.memory_bytes),
            Self::Full => format!("{have} as many as a node may"),
        }
    }
}

/// A node that can take a task, in the order of choice.
#[derive(Clone, Copy)]
struct Candidate {
    failing: bool,
    here: u32,
    tasks: u32,
    id: NodeId,
    room: Room,
}

impl Candidate {
    fn key(&self) -> (bool, u32, u32, NodeId) {
        (self.failing, self.here, self.tasks, self.id)
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// The nodes with one value of a label.
struct Branch<'a> {
    /// How many tasks of the service they have.
    tasks: u64,
    below: Below<'a>,
}

enum Below<'a> {
    /// The next label's values.
    Values(BTreeMap<&'a str, Branch<'a>>),
    Nodes(BinaryHeap<Reverse<Candidate>>),
}

impl<'a> Branch<'a> {
    fn new(
        leaves: Vec<(Vec<&'a str>, u32, Option<Candidate>)>,
        depth: usize,
        labels: usize,
    ) -> Self {
        let tasks = leaves.iter().map(|(_, here, _)| u64::from(*here)).sum();
        let below = if depth == labels {
            Below::Nodes(leaves.into_iter().filter_map(|(.., node)| node.map(Reverse)).collect())
        } else {
            let mut values: BTreeMap<&str, Vec<_>> = BTreeMap::new();
            for leaf in leaves {
                values.entry(leaf.0[depth]).or_default().push(leaf);
            }
            let branch = |(value, leaves)| (value, Self::new(leaves, depth + 1, labels));
            Below::Values(values.into_iter().map(branch).collect())
        };
        Self { tasks, below }
    }

    /// Takes the best place, if any is left.
    fn take(&mut self, spec: &TaskSpec) -> Option<NodeId> {
        let node = match &mut self.below {
            Below::Nodes(nodes) => {
                let Reverse(mut best) = nodes.pop()?;
                best.here += 1;
                best.room.take(spec);
                best.tasks = best.room.tasks;
                if best.room.lack(spec, best.here).is_none() {
                    nodes.push(Reverse(best));
                }
                best.id
            }
            Below::Values(values) => loop {
                let fewest = values.iter().min_by_key(|(value, branch)| (branch.tasks, **value));
                let value = *fewest?.0;
                match values.get_mut(value).and_then(|branch| branch.take(spec)) {
                    Some(node) => break node,
                    None => drop(values.remove(value)),
                }
            },
        };
        self.tasks += 1;
        Some(node)
    }
}

/// After so many in so long others go before a node, as with Swarm.
const TOO_MANY_FAILURES: usize = 5;
const FAILURES_COUNT_FOR: Duration = Duration::from_secs(300);
