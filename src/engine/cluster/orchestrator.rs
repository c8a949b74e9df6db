//! What has to be done so that the tasks are those that the services want. It belongs to the manager that
//! leads, holds nothing that the state does not (but for how long it has waited), and decides nothing by
//! itself: what it asks for comes to be when the log has it.
//!
//! ```text
//! Event --> handle_event: which slots to look at --.
//! time  -----------------------------------------> poll: Plan (what each slot needs)
//!                                                    |-> Scheduler (where what is new runs)
//!                                                    '-> Commands, to be proposed and applied
//!                                                        before the next poll
//! ```
//! A slot is looked at when something in it changed, so the work of a change is that of the change.

mod plan;
mod rollout;
mod scheduler;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::{
    plan::{Create, Plan},
    rollout::Rollout,
    scheduler::Scheduler,
};
use super::{Command, CreateTask, Event, State, TaskChange};
use crate::types::{
    Desired, Mode, Moment, NodeId, Service, ServiceId, Slot, Task, TaskId, TaskState,
};

/// The orchestrator and its scheduler.
pub struct Orchestrator {
    services: BTreeMap<ServiceId, Tended>,
    scheduler: Scheduler,
    /// What is to be looked at.
    slots: BTreeSet<(ServiceId, Slot)>,
    rollouts: BTreeSet<ServiceId>,
    /// When something is to be looked at again.
    timers: BTreeSet<(Moment, Timer)>,
    /// Tasks that no node has, by what they are alike in.
    unplaced: BTreeMap<(ServiceId, u64), BTreeSet<TaskId>>,
    /// Those of them that a node had room for and a network had not.
    without_address: BTreeSet<TaskId>,
    /// Whether there may be a place for them since they were looked at.
    places_changed: bool,
}

/// What is remembered of a service beside the state.
#[derive(Default)]
struct Tended {
    /// How many slots a replicated one had when it was looked at.
    replicas: u32,
    version: u64,
    task_version: u64,
    /// When tasks that are ready may start.
    starts: BTreeMap<TaskId, Moment>,
    rollout: Rollout,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Slot(ServiceId, Slot),
    Rollout(ServiceId),
    /// A node's failures are long enough ago.
    Places,
}

/// What the caller's clocks and random source say.
pub struct Surroundings<'a> {
    /// Draws 128 bits for a new id.
    pub draw: &'a mut dyn FnMut() -> u128,
    /// The time of day, in milliseconds since 1970.
    pub now_ms: u64,
    /// The monotonic clock.
    pub now: Moment,
}

impl Orchestrator {
    /// Looks at everything once. Times that have to pass begin now.
    pub fn new(state: &State, now: Moment) -> Self {
        let mut orchestrator = Self {
            services: BTreeMap::new(),
            scheduler: Scheduler::default(),
            slots: BTreeSet::new(),
            rollouts: BTreeSet::new(),
            timers: BTreeSet::new(),
            unplaced: BTreeMap::new(),
            without_address: BTreeSet::new(),
            places_changed: true,
        };
        for node in state.nodes() {
            orchestrator.scheduler.set_node(node, state.capacity(node.id));
        }
        state.services().for_each(|service| orchestrator.look_at_service(state, service));
        for task in state.tasks() {
            orchestrator.look_at_task(state, task, now);
            if task.desired == Desired::Ready {
                let delay = state
                    .definition(task.service, task.version)
                    .map_or(Duration::ZERO, |spec| spec.restart.delay);
                orchestrator.start_at(task.service, task.slot, task.id, now + delay);
            }
        }
        orchestrator
    }

    /// Takes in what a command changed, while the state stands right after it.
    pub fn handle_event(&mut self, state: &State, event: &Event, now: Moment) {
        match event {
            Event::ServiceChanged(id) => {
                if let Some(service) = state.service(*id) {
                    self.look_at_service(state, service);
                }
            }
            Event::ServiceRemoved(id) => {
                self.services.remove(id);
                self.rollouts.remove(id);
                self.scheduler.forget_service(*id);
            }
            Event::TaskChanged(id) => {
                if let Some(task) = state.task(*id) {
                    self.look_at_task(state, task, now);
                }
            }
            Event::TaskRemoved(task) => {
                self.scheduler.forget_task(task.id);
                self.note_unplaced(task, Unplaced::No);
                if let Some(tended) = self.services.get_mut(&task.service) {
                    tended.starts.remove(&task.id);
                    self.slots.insert((task.service, task.slot));
                }
                self.places_changed = true;
            }
            Event::NodeChanged(id)
            | Event::NodeStatusChanged(id, _)
            | Event::RoleChanged(id, _)
            | Event::NodeUpdated(id) => {
                if let Some(node) = state.node(*id) {
                    self.scheduler.set_node(node, state.capacity(*id));
                }
                self.look_at_node(state, *id);
            }
            Event::NodeRemoved(id) => {
                self.scheduler.forget_node(*id);
                self.look_at_node(state, *id);
            }
            // An address may be free now.
            Event::EndpointRemoved(_) | Event::NetworkChanged(_) => {
                self.without_address.clear();
                self.places_changed = true;
            }
            Event::EndpointCreated(_)
            | Event::NetworkRemoved(_)
            | Event::SecretsChanged
            | Event::RootsChanged => {}
        }
    }

    /// Returns when to poll again if nothing happens.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let now = Moment::default();
        let waits = self.slots.is_empty() && self.rollouts.is_empty();
        let retries = self.places_changed && !self.unplaced.is_empty();
        match waits && !retries {
            true => self.timers.first().map(|(when, _)| *when),
            false => Some(now),
        }
    }

    /// Returns what is to be proposed now, in order; empty when all is as it is wanted. It is called again
    /// when all of that is applied and its events were handled.
    pub fn poll(&mut self, state: &State, around: &mut Surroundings<'_>) -> Vec<Command> {
        self.handle_timers(around.now);
        let mut plan = Plan::default();
        while plan.len() < MAX_CHANGES
            && let Some((service, slot)) = self.slots.pop_first()
        {
            self.settle(state, service, slot, around, &mut plan);
        }
        // An update goes on when all is seen that is to be replaced.
        while self.slots.is_empty()
            && plan.len() < MAX_CHANGES
            && let Some(service) = self.rollouts.pop_first()
        {
            self.roll_out(state, service, around, &mut plan);
        }
        if std::mem::take(&mut self.places_changed) {
            self.place_pending(state, around, &mut plan);
        }
        self.place_new(state, around, &mut plan);
        let Plan { changes, commands, .. } = plan;
        let changes = (!changes.is_empty())
            .then_some(Command::ChangeTasks { changes, now_ms: around.now_ms });
        changes.into_iter().chain(commands).collect()
    }

    fn handle_timers(&mut self, now: Moment) {
        while self.timers.first().is_some_and(|(when, _)| *when <= now) {
            match self.timers.pop_first() {
                Some((_, Timer::Slot(service, slot))) => drop(self.slots.insert((service, slot))),
                Some((_, Timer::Rollout(service))) => drop(self.rollouts.insert(service)),
                Some((_, Timer::Places)) => self.places_changed = true,
                None => {}
            }
        }
    }

    fn look_at_service(&mut self, state: &State, service: &Service) {
        let id = service.id;
        let tended = self.services.entry(id).or_default();
        match service.mode() {
            Mode::Replicated { replicas } => {
                let (before, now) = (tended.replicas, replicas);
                let changed = before.min(now) + 1..=before.max(now);
                self.slots.extend(changed.map(|number| (id, Slot::Replica(number))));
                tended.replicas = replicas;
            }
            Mode::Global => {
                self.slots.extend(state.nodes().map(|node| (id, Slot::Node(node.id))));
            }
        }
        if tended.version != service.version {
            tended.version = service.version;
            tended.rollout.forgive();
        }
        if tended.task_version != service.task_version {
            tended.task_version = service.task_version;
            tended.rollout = Rollout::default();
            self.slots.extend(state.tasks_of(id).map(|task| (id, task.slot)));
        }
        self.rollouts.insert(id);
    }

    fn look_at_task(&mut self, state: &State, task: &Task, now: Moment) {
        self.slots.insert((task.service, task.slot));
        let is_unplaced = task.status.state == TaskState::Pending && task.is_wanted();
        if let Some(again) = self.scheduler.set_task(state, task, now) {
            // A place that came to nothing was refused an address, and said so.
            match is_unplaced && task.status.message.is_some() {
                true => drop(self.without_address.insert(task.id)),
                false => self.places_changed = true,
            }
            self.timers.extend(again.map(|when| (when, Timer::Places)));
        }
        if !is_unplaced {
            self.without_address.remove(&task.id);
        }
        self.note_unplaced(task, if is_unplaced { Unplaced::Yes } else { Unplaced::No });
    }

    fn look_at_node(&mut self, state: &State, node: NodeId) {
        let tasks = state.tasks_on(node).map(|task| (task.service, task.slot));
        self.slots.extend(tasks);
        let global = state.services().filter(|service| service.mode() == Mode::Global);
        self.slots.extend(global.map(|service| (service.id, Slot::Node(node))));
        self.places_changed = true;
    }

    fn note_unplaced(&mut self, task: &Task, is: Unplaced) {
        let alike = (task.service, task.version);
        match is {
            Unplaced::Yes => drop(self.unplaced.entry(alike).or_default().insert(task.id)),
            Unplaced::No => {
                if let Some(tasks) = self.unplaced.get_mut(&alike) {
                    tasks.remove(&task.id);
                    if tasks.is_empty() {
                        self.unplaced.remove(&alike);
                    }
                }
            }
        }
    }

    fn start_at(&mut self, service: ServiceId, slot: Slot, task: TaskId, when: Moment) {
        self.services.entry(service).or_default().starts.insert(task, when);
        self.timers.insert((when, Timer::Slot(service, slot)));
    }

    /// Looks for places for what waits for one, and says why there is none.
    fn place_pending(&mut self, state: &State, around: &mut Surroundings<'_>, plan: &mut Plan) {
        let mut waiting: Vec<&Task> = Vec::new();
        for tasks in self.unplaced.values() {
            waiting.extend(tasks.iter().filter_map(|task| state.task(*task)));
        }
        waiting.retain(|task| !self.without_address.contains(&task.id));
        // One that this plan changes is looked at when it has.
        let all = waiting.len();
        waiting.retain(|task| !plan.touched.contains(&(task.service, task.slot)));
        self.places_changed = waiting.len() < all;
        for alike in waiting.chunk_by(|one, other| {
            (one.service, one.version, one.slot.node())
                == (other.service, other.version, other.slot.node())
        }) {
            let Some(spec) = state.definition(alike[0].service, alike[0].version) else { continue };
            let wanted = scheduler::Wanted::new(alike[0].service, alike[0].slot, spec, around.now);
            let places = self.scheduler.place(state, &wanted, alike.len());
            let mut places = places.into_iter();
            for task in alike {
                let node = places.next().flatten();
                match node {
                    Some(node) => {
                        let to = plan::assignment(node, spec, around);
                        self.scheduler.hold(task.id, task.service, node, spec);
                        plan.changes.push(TaskChange::Assign { task: task.id, to });
                    }
                    None => {
                        let message = self.scheduler.explain(state, &wanted);
                        if task.status.message.as_ref() != Some(&message) {
                            plan.changes.push(TaskChange::Explain { task: task.id, message });
                        }
                    }
                }
            }
        }
    }

    /// Gives what the plan makes a place, those that are alike together.
    fn place_new(&mut self, state: &State, around: &mut Surroundings<'_>, plan: &mut Plan) {
        let mut creates = std::mem::take(&mut plan.creates);
        creates.sort_by_key(|create| (create.service, create.version, create.slot));
        for alike in creates.chunk_by(|one, other| {
            (one.service, one.version, one.slot.node())
                == (other.service, other.version, other.slot.node())
        }) {
            let first = &alike[0];
            let Some(spec) = state.definition(first.service, first.version) else { continue };
            let wanted = scheduler::Wanted::new(first.service, first.slot, spec, around.now);
            let mut places = self.scheduler.place(state, &wanted, alike.len()).into_iter();
            let mut why = None;
            for create in alike {
                let id = TaskId::from_u128((around.draw)());
                let to = match places.next().flatten() {
                    Some(node) => {
                        self.scheduler.hold(id, create.service, node, spec);
                        Ok(plan::assignment(node, spec, around))
                    }
                    None => Err(why
                        .get_or_insert_with(|| self.scheduler.explain(state, &wanted))
                        .clone()),
                };
                let Create { service, slot, version, desired, start, attempt, window_start_ms } =
                    *create;
                if let Some(when) = start {
                    self.start_at(service, slot, id, when);
                }
                plan.changes.push(TaskChange::Create(CreateTask {
                    id,
                    service,
                    slot,
                    version,
                    desired,
                    attempt,
                    window_start_ms,
                    to,
                }));
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Unplaced {
    Yes,
    No,
}

/// What one entry of the log holds at most: it stays below a megabyte.
const MAX_CHANGES: usize = 1000;
