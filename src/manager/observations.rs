//! What agents say of their tasks and hosts, on its way to the log: of each only the newest, many in one
//! entry, and nothing that the state has already.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};
use tracing::warn;

use super::{Shared, log::ProposeError};
use crate::{
    api::{Malformed, parse_id, proto::TaskReport},
    engine::cluster::{Command, Observed, State, TaskChange},
    io::clock,
    types::{NodeId, Resources, TaskId, TaskState, TaskStatus},
};

/// What waits.
#[derive(Default)]
pub struct Observations {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    tasks: BTreeMap<TaskId, Observed>,
    capacities: BTreeMap<NodeId, Resources>,
}

impl Observations {
    /// Takes what a node says of one of its tasks.
    ///
    /// # Errors
    /// It is not what a node may say.
    pub fn handle_report(&self, node: NodeId, report: &TaskReport) -> Result<(), Malformed> {
        let observed = read(node, report)?;
        let mut waiting = self.locked();
        // One that says more than it can run is heard as far as that goes.
        if waiting.tasks.len() < MAX_WAITING || waiting.tasks.contains_key(&observed.task) {
            waiting.tasks.insert(observed.task, observed);
        }
        self.news.notify_one();
        Ok(())
    }

    /// Takes what a node says that it has for tasks.
    pub fn handle_capacity(&self, node: NodeId, capacity: Resources) {
        self.locked().capacities.insert(node, capacity);
        self.news.notify_one();
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a report says, as far as the state takes it.
fn read(node: NodeId, report: &TaskReport) -> Result<Observed, Malformed> {
    let bent = |why: String| Malformed { field: "report", why };
    let task = parse_id("task", &report.task)?;
    let mut status: TaskStatus =
        serde_json::from_slice(&report.report).map_err(|error| bent(error.to_string()))?;
    match status.state {
        TaskState::Pending | TaskState::Assigned | TaskState::Orphaned => {
            return Err(bent(format!("a node does not say that a task is {}", status.state)));
        }
        TaskState::Accepted
        | TaskState::Preparing
        | TaskState::Ready
        | TaskState::Starting
        | TaskState::Running
        | TaskState::Complete
        | TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected => {}
    }
    let short = |message: String| message.chars().take(MAX_MESSAGE_CHARS).collect();
    status.message = status.message.map(short);
    Ok(Observed { task, node, status })
}

/// The task; may be aborted, and nodes say all of it again to another manager.
pub struct ObservationTask {
    shared: Arc<Shared>,
}

impl ObservationTask {
    /// Makes the task.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Brings it to the log for as long as it is polled.
    pub async fn run(self) {
        let Shared { observations, log, .. } = &*self.shared;
        loop {
            observations.news.notified().await;
            // What comes together goes together.
            sleep(COALESCED).await;
            for command in log.read(|state| observations.take(state)) {
                let again = command.clone();
                match log.propose(command).await {
                    Ok(_) | Err(ProposeError::Refused(_)) => {}
                    Err(error) => {
                        warn!(%error, "what nodes say of tasks is not noted yet");
                        sleep(RETRY).await;
                        observations.put_back(again);
                    }
                }
            }
        }
    }
}

impl Observations {
    fn take(&self, state: &State) -> Vec<Command> {
        let mut waiting = self.locked();
        let is_new = |observed: &Observed| {
            state.task(observed.task).is_some_and(|task| {
                task.node == Some(observed.node)
                    && !task.has_ended()
                    && task.status
                        != TaskStatus { since_ms: task.status.since_ms, ..observed.status.clone() }
            })
        };
        let tasks = std::mem::take(&mut waiting.tasks);
        let changes: Vec<TaskChange> =
            tasks.into_values().filter(is_new).map(TaskChange::Observe).collect();
        let now_ms = clock::now_ms();
        let tasks = changes
            .chunks(MAX_CHANGES)
            .map(|changes| Command::ChangeTasks { changes: changes.to_vec(), now_ms });
        let capacities = std::mem::take(&mut waiting.capacities);
        let capacities = capacities
            .into_iter()
            .filter(|(node, capacity)| {
                state.node(*node).is_some() && state.capacity(*node) != *capacity
            })
            .map(|(node, capacity)| Command::SetCapacity { node, capacity });
        capacities.chain(tasks).collect()
    }

    /// What was not noted waits again, unless there is something newer.
    fn put_back(&self, command: Command) {
        let mut waiting = self.locked();
        if let Command::SetCapacity { node, capacity } = command {
            waiting.capacities.entry(node).or_insert(capacity);
        } else if let Command::ChangeTasks { changes, .. } = command {
            for change in changes {
                if let TaskChange::Observe(observed) = change {
                    waiting.tasks.entry(observed.task).or_insert(observed);
                }
            }
        }
        self.news.notify_one();
    }
}

/// More than all nodes of a manager have to say at once.
const MAX_WAITING: usize = 262_144;
/// What one entry of the log holds at most.
const MAX_CHANGES: usize = 1000;
/// A sentence.
const MAX_MESSAGE_CHARS: usize = 500;
const COALESCED: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Exit;

    fn report(text: &str) -> TaskReport {
        let task = TaskId::from_u128(7).to_bytes().to_vec();
        TaskReport { task, report: text.as_bytes().to_vec() }
    }

    #[test]
    fn a_node_says_only_what_is_its_to_say() {
        let node = NodeId::from_u128(1);
        let read = |text: &str| read(node, &report(text)).map_err(|error| error.to_string());
        let said = r#"{"state":"failed","since_ms":5,"message":"oops","exit":{"status":3}}"#;
        let observed = Observed {
            task: TaskId::from_u128(7),
            node,
            status: TaskStatus {
                state: TaskState::Failed,
                since_ms: 5,
                message: Some("oops".to_owned()),
                exit: Some(Exit::Status(3)),
            },
        };
        assert_eq!(read(said), Ok(observed));
        for state in ["pending", "assigned", "orphaned"] {
            let said = format!(r#"{{"state":"{state}","since_ms":5,"message":null,"exit":null}}"#);
            let error = format!("report: a node does not say that a task is {state}");
            assert_eq!(read(&said), Err(error));
        }
        assert!(read("{").is_err());
        let long = "x".repeat(10_000);
        let said = format!(r#"{{"state":"running","since_ms":5,"message":"{long}","exit":null}}"#);
        let message = read(&said).unwrap().status.message.unwrap();
        assert_eq!(message.len(), MAX_MESSAGE_CHARS);
    }

    #[test]
    fn only_the_newest_waits_and_what_was_not_noted_waits_again() {
        let observations = Observations::default();
        let node = NodeId::from_u128(1);
        let say = |state: &str| {
            let text = format!(r#"{{"state":"{state}","since_ms":5,"message":null,"exit":null}}"#);
            observations.handle_report(node, &report(&text)).unwrap();
        };
        let waiting =
            || observations.locked().tasks.values().map(|of| of.status.state).collect::<Vec<_>>();
        say("starting");
        say("running");
        assert_eq!(waiting(), [TaskState::Running]);
        let observed = observations.locked().tasks.values().next().cloned().unwrap();
        say("failed");
        let changes = vec![TaskChange::Observe(observed.clone())];
        observations.put_back(Command::ChangeTasks { changes: changes.clone(), now_ms: 1 });
        assert_eq!(waiting(), [TaskState::Failed], "there is something newer");
        observations.locked().tasks.clear();
        observations.put_back(Command::ChangeTasks { changes, now_ms: 1 });
        assert_eq!(waiting(), [TaskState::Running]);
        // Of a task that the state does not know nothing is noted.
        assert_eq!(observations.take(&State::default()), []);
    }
}
