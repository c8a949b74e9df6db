//! Drives the [`Orchestrator`] while this manager leads: the log tells it what was applied, and what it
//! asks for is proposed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};
use tracing::{debug, error, warn};

use super::{Shared, after, log::ProposeError, random};
use crate::{
    engine::cluster::{
        Event, State,
        orchestrator::{Orchestrator, Surroundings},
    },
    io::clock,
};

/// The orchestrator, as the log sees it; none while another manager leads.
#[derive(Default)]
pub struct Orchestration {
    orchestrator: Mutex<Option<Orchestrator>>,
    changed: Notify,
}

impl Orchestration {
    /// Takes in what a command changed. Called under the state's lock.
    pub fn handle_events(&self, state: &State, events: &[Event]) {
        if let Some(orchestrator) = &mut *self.locked() {
            let now = clock::now();
            events.iter().for_each(|event| orchestrator.handle_event(state, event, now));
            self.changed.notify_one();
        }
    }

    /// Another state came in the place of the one before.
    pub fn replace(&self, state: &State) {
        if let Some(orchestrator) = &mut *self.locked() {
            *orchestrator = Orchestrator::new(state, clock::now());
            self.changed.notify_one();
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<Orchestrator>> {
        // A panic leaves what the next leader makes anew.
        self.orchestrator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task; may be aborted.
pub struct OrchestrationTask {
    shared: Arc<Shared>,
}

impl OrchestrationTask {
    /// Makes the task.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Asks for what is wanted for as long as it is polled, which is while this manager leads.
    pub async fn run(self) {
        let Shared { log, orchestration, .. } = &*self.shared;
        let begin = |state: &State| {
            *orchestration.locked() = Some(Orchestrator::new(state, clock::now()));
        };
        log.read(begin);
        let _leading = Leading { orchestration };
        loop {
            let mut draw = || {
                random::bytes().map(u128::from_be_bytes).unwrap_or_else(|failed| {
                    // An id that is there already makes nothing.
                    error!(error = format!("{failed:#}"), "no ids for tasks");
                    0
                })
            };
            let (commands, wait) = log.read(|state| {
                let mut orchestrator = orchestration.locked();
                let Some(orchestrator) = &mut *orchestrator else { return (Vec::new(), None) };
                let now = clock::now();
                let mut around = Surroundings { draw: &mut draw, now_ms: clock::now_ms(), now };
                let commands = orchestrator.poll(state, &mut around);
                (commands, orchestrator.poll_timeout().map(|at| at.since(now)))
            });
            let asked = !commands.is_empty();
            for command in commands {
                match log.propose_leading(command).await {
                    Ok(_) => {}
                    // It was changed meanwhile, and is looked at again.
                    Err(ProposeError::Refused(refusal)) => debug!(%refusal, "left as it is"),
                    Err(failed) => {
                        warn!(error = %failed, "what services want is not asked for");
                        sleep(RETRY).await;
                        log.read(begin);
                    }
                }
            }
            if asked {
                continue;
            }
            tokio::select! {
                () = after(wait) => {}
                () = orchestration.changed.notified() => {}
            }
        }
    }
}

/// That this manager decides.
struct Leading<'a> {
    orchestration: &'a Orchestration,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        *self.orchestration.locked() = None;
    }
}

const RETRY: Duration = Duration::from_secs(1);
