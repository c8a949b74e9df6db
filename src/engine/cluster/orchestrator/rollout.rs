//! How the tasks of a service come to be of another definition: some slots at a time, each looked at for a
//! while, until all are, or too many fail.
//!
//! ```text
//! stale --convert--> in hand --its new task runs, and the delay is over--> done
//!                              '-- watched for the monitor time: one that ends in it has failed
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::{Orchestrator, Plan, Surroundings, Timer, plan::Create};
use crate::{
    engine::cluster::{Command, RollBackBy, RollBackService, SetUpdateState, State},
    types::{
        Desired, FailureAction, Mode, Moment, Service, ServiceId, Slot, Task, TaskId, TaskState,
        UpdateOrder, UpdatePolicy, UpdateState,
    },
};

/// How far one service is.
#[derive(Default)]
pub struct Rollout {
    /// Slots that have no wanted task of the newest definition.
    stale: BTreeSet<Slot>,
    /// Slots whose new task does not run yet, or until when the next one waits.
    in_hand: BTreeMap<Slot, Option<Moment>>,
    /// The new task in a slot, and until when it is looked at; `None` before it runs.
    watched: BTreeMap<Slot, (TaskId, Option<Moment>)>,
    /// Those of them that have failed.
    failed: BTreeSet<TaskId>,
    why: Option<String>,
}

impl Rollout {
    /// A slot is not wanted any more.
    pub fn forget_slot(&mut self, slot: Slot) {
        self.stale.remove(&slot);
        self.in_hand.remove(&slot);
        self.watched.remove(&slot);
    }

    /// An operator has looked at what failed, and wants it to go on.
    pub fn forgive(&mut self) {
        self.failed.clear();
    }

    fn is_over(&self) -> bool {
        self.stale.is_empty() && self.in_hand.is_empty() && self.watched.is_empty()
    }
}

impl Orchestrator {
    pub(super) fn rollout_of(&mut self, service: ServiceId) -> &mut Rollout {
        &mut self.services.entry(service).or_default().rollout
    }

    /// Takes in how a slot stands, of which `wanted` are the wanted tasks; `is_settled` if it stays so until
    /// something else happens.
    pub(super) fn note_rollout(
        &mut self,
        service: &Service,
        slot: Slot,
        wanted: &[&Task],
        is_settled: bool,
        now: Moment,
    ) {
        let policy = policy(service);
        let new = wanted.iter().find(|task| task.version == service.task_version);
        let is_stale = new.is_none() && !wanted.is_empty();
        let rollout = self.rollout_of(service.id);
        let mut changed = match is_stale {
            true => rollout.stale.insert(slot),
            false => rollout.stale.remove(&slot),
        };
        let mut again = Vec::new();
        if let (Some(new), Some(done)) = (new, rollout.in_hand.get_mut(&slot)) {
            // What takes the place of one that failed is looked at as well.
            let watched = rollout.watched.entry(slot).or_insert((new.id, None));
            if watched.0 != new.id {
                *watched = (new.id, None);
            }
            let runs = new.status.state == TaskState::Running;
            let is_last = new.has_ended() && is_settled;
            if done.is_none() && (runs || is_last) {
                again.push(*done.insert(now + policy.delay));
                watched.1 = Some(now + policy.monitor);
                again.extend(watched.1);
            }
            if is_last {
                rollout.watched.remove(&slot);
                changed = true;
            }
        }
        let timers = again.into_iter().map(|when| (when, Timer::Rollout(service.id)));
        self.timers.extend(timers);
        if changed {
            self.rollouts.insert(service.id);
        }
    }

    /// A task has ended that nobody wanted to end.
    pub(super) fn note_failure(&mut self, service: &Service, task: &Task, now: Moment) {
        let rollout = self.rollout_of(service.id);
        let of_task = |(id, _): &&(TaskId, Option<Moment>)| *id == task.id;
        let Some((_, until)) = rollout.watched.get(&task.slot).filter(of_task).copied() else {
            return;
        };
        rollout.watched.remove(&task.slot);
        let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
        if failed && until.is_none_or(|until| now <= until) {
            rollout.failed.insert(task.id);
            let message = task.status.message.clone();
            let exit = task.status.exit.map(|exit| exit.to_string());
            let what = message.or(exit).unwrap_or_else(|| task.status.state.to_string());
            rollout.why = Some(format!("task {} failed: {what}", &task.id.to_string()[..12]));
            if let Some(done) = rollout.in_hand.get_mut(&task.slot) {
                *done = None;
            }
        }
        self.rollouts.insert(service.id);
    }

    /// Plans the next steps of a service's update.
    pub(super) fn roll_out(
        &mut self,
        state: &State,
        id: ServiceId,
        around: &mut Surroundings<'_>,
        plan: &mut Plan,
    ) {
        let service = state.service(id).filter(|service| !service.leaving);
        let Some(service) = service else { return };
        let Some(update) = service.update.as_ref().filter(|update| update.state.is_active()) else {
            return;
        };
        let policy = policy(service);
        let now = around.now;
        let rollout = self.rollout_of(id);
        rollout.in_hand.retain(|_, until| until.is_none_or(|until| until > now));
        rollout.watched.retain(|_, (_, until)| until.is_none_or(|until| until > now));
        if let Some(command) = fail(service, update.state, rollout, state, around) {
            plan.commands.push(command);
            return;
        }
        let most = policy.parallelism.map_or(usize::MAX, |most| most as usize);
        // A slot that changes otherwise now is looked at when it has.
        let free = rollout.stale.iter().filter(|slot| !plan.touched.contains(&(id, **slot)));
        let room = most.saturating_sub(rollout.in_hand.len());
        let converted: Vec<Slot> = free.copied().take(room).collect();
        for slot in &converted {
            rollout.stale.remove(slot);
            rollout.in_hand.insert(*slot, None);
        }
        if rollout.is_over() {
            let (state, message) = match update.state {
                UpdateState::RollbackStarted => {
                    (UpdateState::RollbackCompleted, "rollback completed")
                }
                UpdateState::Updating
                | UpdateState::Paused
                | UpdateState::Completed
                | UpdateState::RollbackPaused
                | UpdateState::RollbackCompleted => (UpdateState::Completed, "update completed"),
            };
            plan.commands.push(set(service, state, message.to_owned(), around));
        }
        for slot in converted {
            convert(state, service, slot, &policy, around, plan);
        }
    }
}

/// What there is to do about tasks that failed, if they are too many.
fn fail(
    service: &Service,
    update: UpdateState,
    rollout: &Rollout,
    state: &State,
    around: &Surroundings<'_>,
) -> Option<Command> {
    let all = match service.mode() {
        Mode::Replicated { replicas } => replicas as usize,
        Mode::Global => state.nodes().count(),
    };
    let allowed = policy(service).max_failure_ppm as usize * all / 1_000_000;
    if rollout.failed.len() <= allowed {
        return None;
    }
    let why = rollout.why.clone().unwrap_or_default();
    let (paused, what) = match update {
        UpdateState::RollbackStarted => (UpdateState::RollbackPaused, "rollback"),
        UpdateState::Updating
        | UpdateState::Paused
        | UpdateState::Completed
        | UpdateState::RollbackPaused
        | UpdateState::RollbackCompleted => (UpdateState::Paused, "update"),
    };
    match policy(service).failure_action {
        FailureAction::Continue => None,
        FailureAction::Rollback if service.previous.is_some() => {
            Some(Command::RollBackService(RollBackService {
                service: service.id,
                version: service.version,
                by: RollBackBy::Policy(format!("rolled back because {why}")),
                now_ms: around.now_ms,
            }))
        }
        FailureAction::Pause | FailureAction::Rollback => {
            Some(set(service, paused, format!("{what} paused because {why}"), around))
        }
    }
}

/// Puts a task of the newest definition in the place of another.
fn convert(
    state: &State,
    service: &Service,
    slot: Slot,
    policy: &UpdatePolicy,
    around: &Surroundings<'_>,
    plan: &mut Plan,
) {
    let wanted: Vec<&Task> =
        state.tasks_in(service.id, slot).filter(|task| task.is_wanted()).collect();
    let Some(last) = wanted.last() else { return };
    let new = Create {
        version: service.task_version,
        attempt: 0,
        window_start_ms: around.now_ms,
        ..Create::in_place_of(last, around.now)
    };
    let running = wanted.iter().filter(|task| task.status.state == TaskState::Running);
    let stays = match policy.order {
        UpdateOrder::StartFirst => running.max_by_key(|task| task.version).map(|task| task.id),
        UpdateOrder::StopFirst => None,
    };
    let go = wanted.iter().filter(|task| Some(task.id) != stays);
    go.for_each(|task| plan.want(task, Desired::Shutdown));
    plan.create(new);
}

/// The policy of what goes on: the update, or its way back.
fn policy(service: &Service) -> UpdatePolicy {
    match service.update.as_ref().map(|update| update.state) {
        Some(
            UpdateState::RollbackStarted
            | UpdateState::RollbackPaused
            | UpdateState::RollbackCompleted,
        ) => service.spec.rollback,
        Some(UpdateState::Updating | UpdateState::Paused | UpdateState::Completed) | None => {
            service.spec.update
        }
    }
}

fn set(
    service: &Service,
    state: UpdateState,
    message: String,
    around: &Surroundings<'_>,
) -> Command {
    Command::SetUpdateState(SetUpdateState {
        service: service.id,
        version: service.version,
        state,
        message,
        now_ms: around.now_ms,
    })
}
