//! The log of commands behind the few calls that a manager needs of it: propose a command and learn
//! its revision and outcome, read the state, and be told of every applied command in order.
//!
//! This one lives in memory: the state is as old as the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::dispatch::Dispatcher;
use crate::{
    engine::cluster::{Command, Outcome, Refusal, State},
    types::Revision,
};

/// The log and the state that it makes.
pub struct Log {
    state: Mutex<State>,
    dispatcher: Arc<Dispatcher>,
}

impl Log {
    /// Opens an empty log; `dispatcher` is told of every applied command while the state stands
    /// right after it.
    pub fn new(dispatcher: Arc<Dispatcher>) -> Self {
        Self { state: Mutex::new(State::default()), dispatcher }
    }

    /// Has a command applied and returns its revision and outcome.
    ///
    /// # Errors
    /// The state refuses the command.
    pub async fn propose(&self, command: Command) -> Result<(Revision, Outcome), Refusal> {
        let mut state = self.locked();
        let revision = state.revision() + 1;
        let applied = state.apply(revision, command)?;
        self.dispatcher.handle_events(&state, revision, &applied.events);
        Ok((revision, applied.outcome))
    }

    /// Reads the state. What is read is as of one revision, and nothing is applied meanwhile.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.locked())
    }

    /// A panic elsewhere cannot leave a half-applied command: `apply` checks before it changes.
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
