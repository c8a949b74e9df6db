//! The log of commands behind the few calls that a manager needs of it: propose a command and learn
//! its revision and outcome, read the state, and be told of every applied command in order.
//!
//! ```text
//! propose -> (bounded) -> writer thread: what waits is one transaction of the file, durable
//!                              -> then applied to the state, told to the watcher, answered
//! read    -> state
//! ```
//! What was answered stays through a power cut. The first failure of the disk ends the writing: a
//! later success says nothing about what the disk dropped before. Reading goes on.

mod file;
mod record;
mod writer;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot};

use self::writer::{Proposal, WriterThread};
pub use self::{
    file::{LogFile, OpenError},
    writer::{Snapshots, Watcher},
};
use crate::{
    engine::cluster::{Command, Outcome, Refusal, State},
    types::Revision,
};

/// The log and the state that it makes.
pub struct Log {
    common: Arc<Common>,
    /// Taken at the end; the writer ends when it has answered what it was sent.
    proposals: Mutex<Option<mpsc::Sender<Proposal>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the callers and the writer have in common. Only the writer changes the state.
struct Common {
    path: PathBuf,
    state: RwLock<State>,
    stopped: OnceLock<Stopped>,
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The state refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing is written any more. Whether this command was is known after the next start.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// No command is that large.
    #[error(
        "the request has {bytes} bytes in the log, at most {MAX_COMMAND_BYTES}; make it smaller"
    )]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
}

/// Why the log takes no more commands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The disk is full.
    #[error("the log {} is stopped: {why}; free space on that disk, then start overlayd again", .path.display())]
    Full {
        /// The log's file.
        path: PathBuf,
        /// What the disk said.
        why: String,
    },
    /// The disk, or what is on it, fails.
    #[error("the log {} is stopped: {why}; check that disk, then start overlayd again", .path.display())]
    Failed {
        /// The log's file.
        path: PathBuf,
        /// What the disk said.
        why: String,
    },
    /// The manager ends.
    #[error("this manager is ending; ask again when overlayd is started")]
    Ending,
}

impl Log {
    /// Starts writing to a file; `watcher` is told of every applied command while the state stands
    /// right after it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(file: LogFile, snapshots: Snapshots, watcher: Watcher) -> std::io::Result<Self> {
        let LogFile { database, path, state, grown } = file;
        let common = Arc::new(Common { path, state: RwLock::new(state), stopped: OnceLock::new() });
        let (proposals, proposed) = mpsc::channel(MAX_WAITING);
        let writer =
            WriterThread::new(common.clone(), database, grown, snapshots, watcher, proposed);
        let writer = std::thread::Builder::new().name("log".into()).spawn(|| writer.run())?;
        let (proposals, writer) = (Mutex::new(Some(proposals)), Mutex::new(Some(writer)));
        Ok(Self { common, proposals, writer })
    }

    /// Has a command written and applied, and returns its revision and outcome when it is durable.
    ///
    /// # Errors
    /// The state refuses the command, it is too large, or the log is stopped.
    pub async fn propose(&self, command: Command) -> Result<(Revision, Outcome), ProposeError> {
        let body = serde_json::to_vec(&command).expect("a command has no keys but strings");
        if body.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes: body.len() });
        }
        let (answer, answered) = oneshot::channel();
        let sender = locked(&self.proposals).clone();
        let sender = sender.ok_or_else(|| self.stopped())?;
        let sent = sender.send(Proposal { command, body, answer }).await;
        drop(sender);
        sent.map_err(|_| self.stopped())?;
        Ok(answered.await.map_err(|_| self.stopped())??)
    }

    /// Reads the state. What is read is as of one revision, and nothing is applied meanwhile; a
    /// reader does not read within.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        // A panic elsewhere cannot leave a half-applied command: `apply` checks before it changes.
        read(&self.common.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the writing when what was proposed is answered, and closes the file.
    pub async fn close(&self) {
        drop(locked(&self.proposals).take());
        let writer = locked(&self.writer).take();
        if let Some(writer) = writer {
            // A writer that panicked has stopped the log, which was told to whoever proposed.
            let _ = tokio::task::spawn_blocking(|| writer.join()).await;
        }
    }

    fn stopped(&self) -> Stopped {
        match (self.common.stopped.get(), &*locked(&self.proposals)) {
            (Some(stopped), _) => stopped.clone(),
            (None, None) => Stopped::Ending,
            (None, Some(_)) => self.failed("its writer broke off".to_owned()),
        }
    }

    fn failed(&self, why: String) -> Stopped {
        Stopped::Failed { path: self.common.path.clone(), why }
    }
}

impl Drop for Log {
    /// Waits for the writer, so that the file is closed when the log is gone.
    fn drop(&mut self) {
        drop(locked(&self.proposals).take());
        if let Some(writer) = locked(&self.writer).take() {
            let _ = writer.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Proposals that wait for the writer, which takes all of them as one transaction: the more wait
/// for a sync of the disk, the more one sync is shared by. With those being written at most 128 MB.
const MAX_WAITING: usize = 256;
/// Labels, the largest part of any command, have 16 KB, which may be six times that as JSON.
const MAX_COMMAND_BYTES: usize = 256 << 10;
