//! The agent's side of a task: its supervisor is started, or found again, told what to do, and listened to.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    time::{Instant, sleep, timeout},
};

use super::{Definition, Order, TaskFolder};
use crate::{
    io::{clock, disk},
    sys::enter_task_namespaces,
    types::{TaskId, TaskState, TaskStatus},
};

/// A task whose supervisor is listened to.
pub struct Process {
    folder: TaskFolder,
    reports: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    /// The supervisor, as this process sees it.
    supervisor: u32,
}

/// What became of a task that was started before.
pub enum Found {
    /// Its supervisor is there.
    Runs(Process),
    /// It has ended.
    Ended(TaskStatus),
}

/// Why a task does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What it needs cannot be made here.
    #[error("{0}")]
    Rejected(String),
    /// The node cannot start any.
    #[error("{what}: {error}")]
    Failed {
        /// What was being done.
        what: String,
        /// Why not.
        error: io::Error,
    },
}

impl Process {
    /// Starts a supervisor, by `program`, which is this one; returns when the task is ready to start. The
    /// child is the caller's to wait for.
    ///
    /// # Errors
    /// The task cannot be run here; its folder is there.
    pub async fn start(
        program: PathBuf,
        folder: &TaskFolder,
        definition: &Definition,
    ) -> Result<(Self, Child), StartError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error| StartError::Failed { what, error }
        };
        let path = folder.path().to_owned();
        let text = serde_json::to_vec(definition).map_err(io::Error::from);
        let keep = |text: Vec<u8>| {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            let lock = File::create(folder.lock())?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            disk::replace(&folder.definition(), &text)?;
            Ok(lock)
        };
        let lock = text.and_then(keep).map_err(failed("keep the task"))?;
        let (said, saying) = io::pipe().map_err(failed("make a pipe"))?;
        // A thread of its own, which ends in the namespaces that it goes to.
        let spawn = move || {
            enter_task_namespaces()?;
            Command::new(program)
                .arg0("overlayd")
                .args(["task", "run"])
                .arg(path)
                // What it holds is let go with it.
                .stdin(Stdio::from(lock))
                .stdout(Stdio::from(saying))
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
        };
        let thread = thread::Builder::new().name("task".into()).spawn(spawn);
        let thread = thread.map_err(failed("start a thread"))?;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        let broken = || io::Error::other("its thread broke off");
        let spawned = joined.ok().and_then(Result::ok).ok_or_else(broken);
        let mut child =
            spawned.and_then(|spawned| spawned).map_err(failed("start a supervisor"))?;
        let said = pipe::Receiver::from_owned_fd(said.into()).map_err(failed("read a pipe"))?;
        let mut nothing = Vec::new();
        let ready = timeout(READY_WITHIN, said.take(64).read_to_end(&mut nothing)).await;
        let why = match ready {
            Ok(_) => match Self::find(folder).await {
                Found::Runs(process) => return Ok((process, child)),
                Found::Ended(report) => report.message.unwrap_or_default(),
            },
            Err(_) => {
                "its supervisor does not get ready; see whether a mount of it hangs".to_owned()
            }
        };
        // Nobody else waits for this one, which ends at once unless its disk hangs.
        drop(tokio::task::spawn_blocking(move || child.kill().and_then(|()| child.wait())));
        Err(StartError::Rejected(why))
    }

    /// Finds the supervisor of a task that was started before, maybe by another process of the agent.
    pub async fn find(folder: &TaskFolder) -> Found {
        let until = Instant::now() + READY_WITHIN;
        let stream = loop {
            match connect(folder).await {
                Ok(stream) => break stream,
                // It is about to listen, or has just ended.
                Err(_) if is_alive(folder) && Instant::now() < until => sleep(LOOK).await,
                Err(_) => return Found::Ended(ended(folder)),
            }
        };
        let supervisor = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let supervisor = supervisor.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        let (read, orders) = stream.into_split();
        let (folder, reports) = (folder.clone(), BufReader::new(read).lines());
        Found::Runs(Self { folder, reports, orders, supervisor })
    }

    /// Returns the number of the supervisor, as this process sees it; it is in the task's namespaces.
    pub fn supervisor(&self) -> u32 {
        self.supervisor
    }

    /// Has the command start.
    ///
    /// # Errors
    /// The supervisor has ended; [`Self::next`] says how.
    pub async fn start_command(&mut self) -> io::Result<()> {
        self.order(Order::Start).await
    }

    /// Has the command stop, as its definition says.
    ///
    /// # Errors
    /// The supervisor has ended; [`Self::next`] says how.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.order(Order::Stop).await
    }

    async fn order(&mut self, order: Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        self.orders.write_all(&line).await
    }

    /// Waits for the next report; after the one that the task has ended by, none is to be waited for. It
    /// may be dropped while it waits.
    pub async fn next(&mut self) -> TaskStatus {
        match self.reports.next_line().await {
            Ok(Some(line)) => match serde_json::from_str(&line) {
                Ok(report) => report,
                Err(_) => ended(&self.folder),
            },
            Ok(None) | Err(_) => ended(&self.folder),
        }
    }
}

async fn connect(folder: &TaskFolder) -> io::Result<UnixStream> {
    let open = File::open(folder.path())?;
    // As long as a path of a socket may be.
    UnixStream::connect(format!("/proc/self/fd/{}/socket", open.as_raw_fd())).await
}

/// Whether a supervisor lives, whether or not it listens.
fn is_alive(folder: &TaskFolder) -> bool {
    let locked = |file: File| flock(&file, FlockOperation::NonBlockingLockShared);
    File::open(folder.lock()).is_ok_and(|file| locked(file).is_err())
}

/// How a task ended whose supervisor is gone.
fn ended(folder: &TaskFolder) -> TaskStatus {
    let kept = fs::read(folder.status()).ok();
    let kept = kept.and_then(|text| serde_json::from_slice(&text).ok());
    kept.unwrap_or_else(|| TaskStatus {
        state: TaskState::Failed,
        since_ms: clock::now_ms(),
        message: Some("its supervisor was killed, and the command with it".to_owned()),
        exit: None,
    })
}

/// Forgets all that is kept of a task that has ended.
///
/// # Errors
/// Something stays.
pub fn forget(folder: &TaskFolder) -> io::Result<()> {
    match fs::remove_dir_all(folder.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Lists the tasks that a node keeps something of.
///
/// # Errors
/// The folder cannot be read.
pub fn kept(state_dir: &Path) -> io::Result<Vec<TaskId>> {
    let folder = match fs::read_dir(state_dir.join("tasks")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder?,
    };
    let id = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
    };
    folder.filter_map(|entry| id(entry).transpose()).collect()
}

/// Longer than a disk takes to mount a volume.
const READY_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
