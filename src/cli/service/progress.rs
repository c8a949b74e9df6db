//! Waits until a service has what it wants, and shows how far that is: on a terminal in one line that
//! changes, elsewhere in a line whenever something does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{IsTerminal as _, Write as _, stderr},
    process::ExitCode,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    super::{
        Failure,
        client::{Client, answer},
    },
    parse,
};
use crate::{
    api::proto::{ListTasksRequest, ServiceRequest},
    types::{Mode, Service, Slot, Task, TaskId, TaskState, UpdateState},
};

/// Waits; ends with 1 if it does not come to be.
pub async fn wait(client: &Client, what: &str, service: &Service) -> Result<ExitCode, Failure> {
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::new(what, error.to_string()))?;
    let mut before = None;
    let mut line = Line { shown: String::new(), in_place: stderr().is_terminal() };
    loop {
        let seen = look(client, what, service, &mut before).await?;
        line.show(&seen.text);
        match seen.verdict {
            Verdict::Waits => {}
            Verdict::Done => {
                line.end();
                return Ok(ExitCode::SUCCESS);
            }
            Verdict::Fails(why) => {
                line.end();
                return Err(Failure::new(
                    what,
                    format!(
                        "{why}; the service stays: see 'overlayctl service ps {}'",
                        service.name
                    ),
                ));
            }
        }
        tokio::select! {
            () = sleep(BETWEEN_LOOKS) => {}
            _ = interrupt.recv() => {
                line.end();
                eprintln!("overlayctl: the service goes on by itself; 'overlayctl service ps {}' shows how far it is", service.name);
                return Ok(ExitCode::from(130));
            }
        }
    }
}

struct Seen {
    text: String,
    verdict: Verdict,
}

enum Verdict {
    Waits,
    Done,
    Fails(String),
}

async fn look(
    client: &Client,
    what: &str,
    asked: &Service,
    before: &mut Option<BTreeSet<TaskId>>,
) -> Result<Seen, Failure> {
    let mut services = client.services().await?;
    let reference = asked.id.to_string();
    let find = ServiceRequest { reference: reference.clone() };
    let service = parse(what, &answer(what, services.find(find)).await?.service)?;
    let list = ListTasksRequest { service: Some(reference), node: None };
    let listed = answer(what, services.list_tasks(list)).await?;
    let tasks = listed.tasks.iter().map(|summary| serde_json::from_slice(&summary.task));
    let mut tasks = tasks.collect::<Result<Vec<Task>, _>>().map_err(|_| Failure::bent(what))?;
    // What ended before a change says nothing of it.
    let ended = tasks.iter().filter(|task| asked.version > 1 && !task.is_wanted());
    let before = before.get_or_insert_with(|| ended.map(|task| task.id).collect());
    tasks.retain(|task| !before.contains(&task.id) || !task.has_ended());
    Ok(judge(asked, &service, &tasks))
}

/// How far a service is that was changed to be as `asked`.
fn judge(asked: &Service, service: &Service, tasks: &[Task]) -> Seen {
    let mut slots: BTreeMap<Slot, bool> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.is_wanted()) {
        let is_new = task.version == service.task_version;
        let is_up = match task.status.state {
            TaskState::Running | TaskState::Complete => is_new,
            TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Preparing
            | TaskState::Ready
            | TaskState::Starting
            | TaskState::Shutdown
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Orphaned => false,
        };
        *slots.entry(task.slot).or_default() |= is_up;
    }
    let wanted = match service.spec.mode {
        Mode::Replicated { replicas } => replicas as usize,
        Mode::Global => slots.len(),
    };
    let up = slots.values().filter(|up| **up).count();
    let leaving = tasks.iter().filter(|task| !task.is_wanted() && !task.has_ended()).count();
    let mut text = format!("{up} of {wanted} tasks run");
    if leaving > 0 {
        text = format!("{text}, {leaving} are being stopped");
    }
    let state = service.update.as_ref().map(|update| update.state);
    let why = || service.update.as_ref().map(|update| update.message.clone()).unwrap_or_default();
    let verdict = match state {
        _ if service.version != asked.version
            && !matches!(
                state,
                Some(UpdateState::RollbackStarted | UpdateState::RollbackCompleted)
            ) =>
        {
            Verdict::Fails("it was changed again meanwhile".to_owned())
        }
        Some(UpdateState::Paused | UpdateState::RollbackPaused) => Verdict::Fails(why()),
        Some(UpdateState::RollbackCompleted) if service.version != asked.version => {
            Verdict::Fails("the update failed, and was rolled back".to_owned())
        }
        Some(UpdateState::Updating | UpdateState::RollbackStarted) => Verdict::Waits,
        None | Some(UpdateState::Completed | UpdateState::RollbackCompleted) => {
            let failed = tasks.iter().filter(|task| task.version == service.task_version);
            let failed = failed.filter(|task| {
                matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
            });
            let unplaced = tasks.iter().find(|task| {
                task.is_wanted()
                    && task.status.state == TaskState::Pending
                    && task.status.message.is_some()
            });
            if up == wanted && leaving == 0 {
                Verdict::Done
            } else if let Some(task) = failed.max_by_key(|task| task.status.since_ms) {
                Verdict::Fails(format!("a task {}", reason(task)))
            } else if let Some(task) = unplaced {
                Verdict::Fails(format!("a task has no place: {}", reason(task)))
            } else {
                Verdict::Waits
            }
        }
    };
    Seen { text, verdict }
}

fn reason(task: &Task) -> String {
    let message = task.status.message.clone();
    let exit = task.status.exit.map(|exit| format!("ended: {exit}"));
    message.or(exit).unwrap_or_else(|| format!("is {}", task.status.state))
}

/// What is shown.
struct Line {
    shown: String,
    in_place: bool,
}

impl Line {
    fn show(&mut self, text: &str) {
        if self.shown == text {
            return;
        }
        let mut out = stderr();
        // Nobody is told of a terminal that is gone.
        let _ = match self.in_place {
            true => write!(out, "\r\x1b[K{text}"),
            false => writeln!(out, "{text}"),
        };
        let _ = out.flush();
        text.clone_into(&mut self.shown);
    }

    fn end(&self) {
        if self.in_place {
            eprintln!();
        }
    }
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        Desired, ServiceId, ServiceSpec, TaskSpec, TaskStatus, UpdatePolicy, UpdateStatus,
    };

    fn service(version: u64, update: Option<UpdateState>) -> Service {
        let status = |state| UpdateStatus {
            state,
            started_ms: 0,
            ended_ms: None,
            message: "paused because of it".to_owned(),
        };
        Service {
            id: ServiceId::from_u128(1),
            name: "web".parse().unwrap(),
            version,
            task_version: 1,
            spec: ServiceSpec {
                mode: Mode::Replicated { replicas: 2 },
                task: TaskSpec::default(),
                update: UpdatePolicy::default(),
                rollback: UpdatePolicy::default(),
                labels: BTreeMap::new(),
            },
            previous: None,
            update: update.map(status),
            leaving: false,
        }
    }

    fn task(slot: u32, desired: Desired, state: TaskState, message: Option<&str>) -> Task {
        let message = message.map(str::to_owned);
        Task {
            id: TaskId::from_u128(slot.into()),
            service: ServiceId::from_u128(1),
            slot: Slot::Replica(slot),
            version: 1,
            desired,
            status: TaskStatus { state, since_ms: 0, message, exit: None },
            node: None,
            endpoints: Vec::new(),
            attempt: 0,
            window_start_ms: 0,
        }
    }

    fn check(update: Option<UpdateState>, tasks: &[Task]) -> (String, Option<Result<(), String>>) {
        let seen = judge(&service(2, None), &service(2, update), tasks);
        let verdict = match seen.verdict {
            Verdict::Waits => None,
            Verdict::Done => Some(Ok(())),
            Verdict::Fails(why) => Some(Err(why)),
        };
        (seen.text, verdict)
    }

    #[test]
    fn it_waits_until_all_run_and_says_why_they_do_not() {
        let runs = |slot| task(slot, Desired::Running, TaskState::Running, None);
        let text = |text: &str| text.to_owned();
        assert_eq!(check(None, &[runs(1)]), (text("1 of 2 tasks run"), None));
        assert_eq!(check(None, &[runs(1), runs(2)]), (text("2 of 2 tasks run"), Some(Ok(()))));
        let stops = task(3, Desired::Remove, TaskState::Running, None);
        let said = text("2 of 2 tasks run, 1 are being stopped");
        assert_eq!(check(None, &[runs(1), runs(2), stops]), (said, None));
        let rejected = task(2, Desired::Shutdown, TaskState::Rejected, Some("is not well"));
        let why = Some(Err(text("a task is not well")));
        assert_eq!(check(None, &[runs(1), rejected]), (text("1 of 2 tasks run"), why));
        let pending = task(2, Desired::Running, TaskState::Pending, Some("1 node: 1 drained"));
        let why = Some(Err(text("a task has no place: 1 node: 1 drained")));
        assert_eq!(check(None, &[runs(1), pending]).1, why);
    }

    #[test]
    fn an_update_is_over_when_it_is_and_fails_when_it_does() {
        let both = [1, 2].map(|slot| task(slot, Desired::Running, TaskState::Running, None));
        assert_eq!(check(Some(UpdateState::Updating), &both).1, None);
        assert_eq!(check(Some(UpdateState::Completed), &both).1, Some(Ok(())));
        let why = Some(Err("paused because of it".to_owned()));
        assert_eq!(check(Some(UpdateState::Paused), &both).1, why);
        let back = service(3, Some(UpdateState::RollbackCompleted));
        let Verdict::Fails(why) = judge(&service(2, None), &back, &both).verdict else { panic!() };
        assert_eq!(why, "the update failed, and was rolled back");
        let Verdict::Fails(why) = judge(&service(2, None), &service(3, None), &both).verdict else {
            panic!()
        };
        assert_eq!(why, "it was changed again meanwhile");
    }
}
