//! What one slot needs. Of the tasks in it some are wanted; the others are on their way out, or have ended
//! and are kept to be looked at.
//!
//! ```text
//! wanted and ended, another to come  ->  let go; one more in its place, ready, started after the delay
//! wanted on a node that lost it      ->  let go; one more, started when the lost one is out of the way
//! none wanted                        ->  one
//! ready, its time come, no other on
//!   a node that can be reached       ->  started
//! the new definition's runs          ->  the old one's let go
//! ```

use std::{collections::BTreeSet, time::Duration};

use super::{Orchestrator, Surroundings};
use crate::{
    engine::cluster::{Assignment, Command, State, TaskChange},
    types::{
        Availability, Desired, EndpointId, Mode, Moment, Node, NodeId, NodeStatus,
        RestartCondition, Service, ServiceId, Slot, Task, TaskId, TaskSpec, TaskState,
    },
};

/// What is to be done, as it comes together.
#[derive(Default)]
pub struct Plan {
    pub changes: Vec<TaskChange>,
    /// What is made, before it has a place.
    pub creates: Vec<Create>,
    pub commands: Vec<Command>,
    /// The slots that it changes.
    pub touched: BTreeSet<(ServiceId, Slot)>,
}

/// A task to be made.
#[derive(Clone, Copy)]
pub struct Create {
    pub service: ServiceId,
    pub slot: Slot,
    pub version: u64,
    pub desired: Desired,
    /// When it may start, if it waits for that.
    pub start: Option<Moment>,
    pub attempt: u32,
    pub window_start_ms: u64,
}

/// Whether a service wants a task in a slot.
enum Place {
    Wanted,
    /// What is there stays; nothing new comes.
    Kept,
    /// What is there goes, so far.
    Unwanted(Desired),
}

impl Plan {
    pub fn len(&self) -> usize {
        self.changes.len() + self.creates.len()
    }

    pub fn create(&mut self, create: Create) {
        self.touched.insert((create.service, create.slot));
        self.creates.push(create);
    }

    pub fn want(&mut self, task: &Task, desired: Desired) {
        if task.desired < desired {
            self.touched.insert((task.service, task.slot));
            self.changes.push(TaskChange::Want { task: task.id, desired });
        }
    }
}

impl Orchestrator {
    /// Plans what a slot needs.
    pub(super) fn settle(
        &mut self,
        state: &State,
        id: ServiceId,
        slot: Slot,
        around: &Surroundings<'_>,
        plan: &mut Plan,
    ) {
        let Some(service) = state.service(id) else { return };
        let tasks: Vec<&Task> = state.tasks_in(id, slot).collect();
        forget_old(&tasks, plan);
        let is_open = match place(state, service, slot) {
            Place::Wanted => true,
            Place::Kept => false,
            Place::Unwanted(desired) => {
                tasks.iter().for_each(|task| plan.want(task, desired));
                self.rollout_of(id).forget_slot(slot);
                return;
            }
        };
        let wanted: Vec<&Task> = tasks.iter().copied().filter(|task| task.is_wanted()).collect();
        let is_new = |task: &Task| task.version == service.task_version;
        let has_new = wanted.iter().any(|task| is_new(task) && !task.has_ended());
        for task in &wanted {
            if has_new && !is_new(task) && (task.has_ended() || is_lost(state, task)) {
                // What is to take its place is there.
                plan.want(task, Desired::Shutdown);
            } else if task.has_ended() {
                self.handle_ended(state, service, task, is_open, around, plan);
            } else if is_lost(state, task) {
                plan.want(task, Desired::Shutdown);
                if is_open {
                    let start = self.start_of(id, task.id).unwrap_or(around.now);
                    plan.create(Create::in_place_of(task, start));
                }
            }
        }
        if wanted.is_empty() && is_open {
            // What was there before may still be on its way out.
            let is_free = tasks.iter().all(|task| task.has_ended());
            plan.create(Create {
                service: id,
                slot,
                version: service.task_version,
                desired: if is_free { Desired::Running } else { Desired::Ready },
                start: None,
                attempt: 0,
                window_start_ms: around.now_ms,
            });
        }
        self.start_ready(state, &tasks, around.now, plan);
        match wanted.is_empty() && !is_open {
            true => self.rollout_of(id).forget_slot(slot),
            false => {
                let is_settled = !plan.touched.contains(&(id, slot));
                self.note_rollout(service, slot, &wanted, is_settled, around.now);
            }
        }
        hand_over(service, &wanted, plan);
    }

    /// Another takes the place of a task that has ended, if its policy says so.
    fn handle_ended(
        &mut self,
        state: &State,
        service: &Service,
        task: &Task,
        is_open: bool,
        around: &Surroundings<'_>,
        plan: &mut Plan,
    ) {
        self.note_failure(service, task, around.now);
        let Some(spec) = state.definition(task.service, task.version) else { return };
        let policy = spec.restart;
        let failed = match task.status.state {
            TaskState::Complete => false,
            TaskState::Failed | TaskState::Rejected => true,
            // Nobody wanted it to end: it went with its node.
            TaskState::Shutdown | TaskState::Orphaned => {
                plan.want(task, Desired::Shutdown);
                if is_open {
                    plan.create(Create::in_place_of(task, around.now));
                }
                return;
            }
            TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Preparing
            | TaskState::Ready
            | TaskState::Starting
            | TaskState::Running => return,
        };
        let again = match policy.condition {
            RestartCondition::None => false,
            RestartCondition::OnFailure => failed,
            RestartCondition::Any => true,
        };
        let since_ms = around.now_ms.saturating_sub(task.window_start_ms);
        let is_over = policy.window.is_some_and(|window| Duration::from_millis(since_ms) > window);
        let (attempt, window_start_ms) = match is_over || task.attempt == 0 {
            true => (1, around.now_ms),
            false => (task.attempt + 1, task.window_start_ms),
        };
        if !again || policy.max_attempts.is_some_and(|most| attempt > most) {
            // It is the last of its slot, and stays to be seen.
            return;
        }
        plan.want(task, Desired::Shutdown);
        if is_open {
            let start = around.now + policy.delay;
            plan.create(Create { attempt, window_start_ms, ..Create::in_place_of(task, start) });
        }
    }

    /// Starts what is ready when its time has come and nothing else of the slot may still run.
    fn start_ready(&mut self, state: &State, tasks: &[&Task], now: Moment, plan: &mut Plan) {
        let is_in_the_way =
            |task: &&&Task| !task.is_wanted() && !task.has_ended() && is_reached(state, task);
        if tasks.iter().any(|task| is_in_the_way(&task)) {
            return;
        }
        for task in tasks.iter().filter(|task| task.desired == Desired::Ready) {
            if self.start_of(task.service, task.id).is_none_or(|start| start <= now) {
                plan.want(task, Desired::Running);
                if let Some(tended) = self.services.get_mut(&task.service) {
                    tended.starts.remove(&task.id);
                }
            }
        }
    }

    fn start_of(&self, service: ServiceId, task: TaskId) -> Option<Moment> {
        self.services.get(&service)?.starts.get(&task).copied()
    }
}

impl Create {
    /// One of the same definition, ready, that may start at that time.
    pub fn in_place_of(task: &Task, start: Moment) -> Self {
        Self {
            service: task.service,
            slot: task.slot,
            version: task.version,
            desired: Desired::Ready,
            start: Some(start),
            attempt: task.attempt,
            window_start_ms: task.window_start_ms,
        }
    }
}

/// Gives a task to a node, with new ids for what it gets on its networks.
pub fn assignment(node: NodeId, spec: &TaskSpec, around: &mut Surroundings<'_>) -> Assignment {
    let draw = |_| EndpointId::from_u128((around.draw)());
    Assignment { node, endpoints: spec.networks.iter().map(draw).collect() }
}

fn place(state: &State, service: &Service, slot: Slot) -> Place {
    match (service.mode(), slot) {
        (Mode::Replicated { replicas }, Slot::Replica(number)) if number <= replicas => {
            Place::Wanted
        }
        (Mode::Global, Slot::Node(node)) => match state.node(node) {
            Some(node) => place_on(service, node),
            None => Place::Unwanted(Desired::Remove),
        },
        (Mode::Replicated { .. } | Mode::Global, _) => Place::Unwanted(Desired::Remove),
    }
}

fn place_on(service: &Service, node: &Node) -> Place {
    let constraints = &service.spec.task.placement.constraints;
    if !constraints.iter().all(|constraint| constraint.holds(node)) {
        return Place::Unwanted(Desired::Shutdown);
    }
    match (node.availability, node.status) {
        (Availability::Drain, _) => Place::Unwanted(Desired::Shutdown),
        (Availability::Active, NodeStatus::Ready) => Place::Wanted,
        (Availability::Active, NodeStatus::Down) | (Availability::Pause, _) => Place::Kept,
    }
}

/// Whether a task cannot stay where it is.
fn is_lost(state: &State, task: &Task) -> bool {
    let Some(id) = task.node else { return false };
    let Some(node) = state.node(id) else { return true };
    let spec = state.definition(task.service, task.version);
    let fits = |spec: &TaskSpec| {
        spec.placement.constraints.iter().all(|constraint| constraint.holds(node))
    };
    node.status == NodeStatus::Down
        || node.availability == Availability::Drain
        || !spec.is_none_or(fits)
}

/// Whether the managers reach the node of a task, so that it can be waited for.
fn is_reached(state: &State, task: &Task) -> bool {
    let node = task.node.and_then(|node| state.node(node));
    node.is_some_and(|node| node.status == NodeStatus::Ready)
}

/// When a task of the newest definition runs, those of others are not needed any more.
fn hand_over(service: &Service, wanted: &[&Task], plan: &mut Plan) {
    let is_new = |task: &&&Task| task.version == service.task_version;
    let runs = |task: &&Task| task.status.state == TaskState::Running;
    if wanted.iter().filter(is_new).any(runs) {
        let old = wanted.iter().filter(|task| !is_new(task));
        old.for_each(|task| plan.want(task, Desired::Shutdown));
    }
}

/// Forgets all but the newest of what has ended in a slot.
fn forget_old(tasks: &[&Task], plan: &mut Plan) {
    let mut ended: Vec<&&Task> =
        tasks.iter().filter(|task| task.has_ended() && !task.is_wanted()).collect();
    if ended.len() > KEPT {
        ended.sort_by_key(|task| (task.status.since_ms, task.id));
        let old = &ended[..ended.len() - KEPT];
        plan.changes.extend(old.iter().map(|task| TaskChange::Forget(task.id)));
    }
}

/// As many of a slot's tasks that have ended as Swarm keeps too.
const KEPT: usize = 5;
