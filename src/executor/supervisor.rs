//! The first process of a task's namespaces. It prepares what the command needs, starts it when told,
//! keeps what it says, asks whether it is well, stops it, reaps all that ends, and leaves word of how the
//! command ended. Everything else in its namespaces ends with it.
//!
//! ```text
//! prepare --ready--> waits --Start--> command --ends, or Stop: signal, grace, SIGKILL--> all else killed
//!    `-> rejected      `--Stop---------------------------------------------------------------> ended
//! ```

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    pin::Pin,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait},
    stdio,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::pipe},
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

use super::{
    Definition, Order, TaskFolder,
    cgroup::Cgroup,
    mounts,
    output::{Cutter, Line, Output, Stream},
};
use crate::{
    io::{clock, disk, machine},
    sys::kill_namespace,
    types::{Exit, HealthCheck, TaskState, TaskStatus},
};

/// Runs the task in a folder to its end, as the first process of its namespaces. Standard output is
/// closed when the socket is there, or the status is.
pub fn supervise(folder: &Path) -> ExitCode {
    let folder = TaskFolder(folder.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            Supervisor::prepare(folder.clone())?.run().await;
            Ok(())
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let report = report(TaskState::Rejected, Some(why), None);
            // Whoever waits finds no status if this fails, and says so.
            let _ = keep(&folder, &report);
            ExitCode::FAILURE
        }
    }
}

struct Supervisor {
    folder: TaskFolder,
    definition: Definition,
    cgroup: Cgroup,
    listener: UnixListener,
    report: watch::Sender<TaskStatus>,
    output: Arc<Mutex<Output>>,
    /// What copies the command's output, and ends with that.
    copying: JoinSet<()>,
    command: Option<Pid>,
    health: Health,
    /// It was told to stop.
    stopping: bool,
    /// Why the command is stopped although nobody told so.
    unwell: Option<String>,
    /// When what is left is killed.
    kill_at: Option<Pin<Box<Sleep>>>,
}

/// The health check as it stands.
#[derive(Default)]
struct Health {
    /// When the next one starts.
    next: Option<Instant>,
    /// The one that runs, and until when.
    running: Option<(Pid, Instant)>,
    failures: u32,
    started: Option<Instant>,
}

impl Supervisor {
    fn prepare(folder: TaskFolder) -> Result<Self, String> {
        let text = fs::read(folder.definition())
            .map_err(|error| format!("read {}: {error}", folder.definition().display()))?;
        let definition: Definition =
            serde_json::from_slice(&text).map_err(|error| format!("read task.json: {error}"))?;
        check_machine(&definition)?;
        // The folder may be under something that is mounted over.
        let listener = bind(&folder)?;
        mounts::prepare(&definition)?;
        let hostname = definition.spec.hostname.as_ref().unwrap_or(&definition.name);
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|error| format!("set the host name: {error}"))?;
        let cgroup = Cgroup::create(definition.id, &definition.spec.limits)?;
        let output = Output::open(folder.log());
        let ready = report(TaskState::Ready, None, None);
        let supervisor = Self {
            folder,
            definition,
            cgroup,
            listener,
            report: watch::Sender::new(ready),
            output: Arc::new(Mutex::new(output)),
            copying: JoinSet::new(),
            command: None,
            health: Health::default(),
            stopping: false,
            unwell: None,
            kill_at: None,
        };
        let null = File::options().write(true).open("/dev/null");
        null.and_then(|null| Ok(stdio::dup2_stdout(&null)?))
            .map_err(|error| format!("let standard output go: {error}"))?;
        Ok(supervisor)
    }

    async fn run(mut self) {
        let (orders, mut ordered) = mpsc::channel(8);
        let mut clients = JoinSet::new();
        let Ok(mut children) = signal(SignalKind::child()) else { return };
        let ended = loop {
            let kill_at = self.kill_at.as_mut();
            let killed = async {
                match kill_at {
                    Some(at) => at.await,
                    None => std::future::pending().await,
                }
            };
            let health_due = self.health.due();
            tokio::select! {
                Ok((client, _)) = self.listener.accept() => {
                    let (orders, reports) = (orders.clone(), self.report.subscribe());
                    clients.spawn(serve(client, orders, reports));
                }
                Some(order) = ordered.recv() => {
                    if let Some(ended) = self.handle_order(order).await {
                        break ended;
                    }
                }
                _ = children.recv() => {
                    if let Some(status) = self.reap() {
                        break self.ended(status);
                    }
                }
                () = killed => {
                    self.kill_at = None;
                    kill_namespace();
                }
                () = until(health_due) => self.handle_health(),
            }
        };
        self.end(ended, children, clients).await;
    }

    /// Tells how the task ended if the order ended it.
    async fn handle_order(&mut self, order: Order) -> Option<TaskStatus> {
        match order {
            Order::Start if self.command.is_none() && !self.stopping => self.start().await.err(),
            Order::Stop if self.command.is_none() => Some(report(TaskState::Shutdown, None, None)),
            Order::Stop if !self.stopping => {
                self.stopping = true;
                self.stop();
                None
            }
            Order::Start | Order::Stop => None,
        }
    }

    async fn start(&mut self) -> Result<(), TaskStatus> {
        let rejected = |why: String| report(TaskState::Rejected, Some(why), None);
        let (pid, said) =
            self.spawn().await.map_err(|error| rejected(format!("start the command: {error}")))?;
        if !said.is_empty() {
            return Err(rejected(said));
        }
        self.command = Some(pid);
        let state = match &self.definition.spec.health {
            Some(health) => {
                let now = Instant::now();
                self.health.started = Some(now);
                self.health.next = Some(now + health.interval);
                TaskState::Starting
            }
            None => TaskState::Running,
        };
        self.tell(report(state, None, None));
        Ok(())
    }

    /// Starts the command; returns what kept it from that.
    async fn spawn(&mut self) -> io::Result<(Pid, String)> {
        let (mut said, saying) = pipe_pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("overlayd").args(["task", "exec"]).arg(self.folder.path());
        let [(out, into_out), (err, into_err)] = [pipe_pair()?, pipe_pair()?];
        command.stdin(Stdio::from(saying)).stdout(Stdio::from(into_out)).stderr(into_err);
        let child = command.spawn()?;
        // The ends that the child has are its own.
        drop(command);
        let pid = number(&child)?;
        for (pipe, stream) in [(out, Stream::Out), (err, Stream::Err)] {
            self.copying.spawn(copy(pipe, stream, self.output.clone()));
        }
        let mut text = Vec::new();
        (&mut said).take(MAX_SAID).read_to_end(&mut text).await?;
        Ok((pid, String::from_utf8_lossy(&text).into_owned()))
    }

    fn stop(&mut self) {
        let stop = &self.definition.spec.stop;
        if let (Some(command), Some(signal)) = (self.command, Signal::from_named_raw(stop.signal)) {
            // It may have ended this moment.
            let _ = kill_process(command, signal);
        }
        self.kill_at = Some(Box::pin(sleep(stop.grace_period)));
    }

    /// Takes note of all that has ended; returns how the command did, if it is among that.
    fn reap(&mut self) -> Option<WaitStatus> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if Some(pid) == self.command {
                ended = Some(status);
            } else if self.health.running.is_some_and(|(running, _)| running == pid) {
                self.health.running = None;
                self.handle_checked(status.exit_status() == Some(0));
            }
        }
        ended
    }

    fn handle_health(&mut self) {
        let Some(check) = self.definition.spec.health.clone() else { return };
        let now = Instant::now();
        if let Some((pid, until)) = self.health.running {
            if now >= until {
                // Its end is reaped as a failure.
                let _ = kill_process(pid, Signal::KILL);
                self.health.running = Some((pid, now + check.timeout));
            }
            return;
        }
        self.health.next = None;
        match self.spawn_check() {
            Ok(pid) => self.health.running = Some((pid, now + check.timeout)),
            Err(_) => self.handle_checked(false),
        }
    }

    fn spawn_check(&mut self) -> io::Result<Pid> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("overlayd").args(["task", "check"]).arg(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        number(&command.spawn()?)
    }

    fn handle_checked(&mut self, well: bool) {
        let Some(check) = self.definition.spec.health.clone() else { return };
        let HealthCheck { interval, retries, start_period, .. } = check;
        self.health.next = Some(Instant::now() + interval);
        if well {
            self.health.failures = 0;
            if self.report.borrow().state == TaskState::Starting {
                self.tell(report(TaskState::Running, None, None));
            }
            return;
        }
        let started = self.health.started.unwrap_or_else(Instant::now);
        let is_new = self.report.borrow().state == TaskState::Starting;
        if is_new && started.elapsed() < start_period {
            return;
        }
        self.health.failures += 1;
        if self.health.failures >= retries && !self.stopping && self.unwell.is_none() {
            self.unwell = Some(format!("unhealthy: its check failed {retries} times in a row"));
            self.stop();
        }
    }

    /// How the task ended, of which the command ended so.
    fn ended(&self, status: WaitStatus) -> TaskStatus {
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => Exit::Status(status),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        };
        let memory = matches!(exit, Exit::Signal(9)) && self.cgroup.ran_out_of_memory();
        let out_of_memory = || "killed because its memory limit was reached".to_owned();
        let message = self.unwell.clone().or_else(|| memory.then(out_of_memory));
        let state = match (self.stopping, &message, exit) {
            (true, ..) => TaskState::Shutdown,
            (false, None, Exit::Status(0)) => TaskState::Complete,
            (false, ..) => TaskState::Failed,
        };
        report(state, message, Some(exit))
    }

    /// Ends all that is left, keeps how it ended, and tells whoever listens.
    async fn end(mut self, ended: TaskStatus, mut children: Signals, mut clients: JoinSet<()>) {
        kill_namespace();
        // Nothing is left when there is nobody to wait for.
        while !matches!(wait(WaitOptions::NOHANG), Err(Errno::CHILD)) {
            let _ = timeout(LOOK, children.recv()).await;
        }
        let drained = async { while self.copying.join_next().await.is_some() {} };
        let _ = timeout(DRAINED_WITHIN, drained).await;
        self.cgroup.remove();
        let _ = keep(&self.folder, &ended);
        self.tell(ended);
        drop(self.report);
        let told = async { while clients.join_next().await.is_some() {} };
        let _ = timeout(TOLD_WITHIN, told).await;
        let _ = fs::remove_file(self.folder.socket());
    }

    fn tell(&self, mut report: TaskStatus) {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lost) = output.lost.as_ref().filter(|_| report.message.is_none()) {
            report.message = Some(format!("its log is not kept: {lost}"));
        }
        drop(output);
        self.report.send_replace(report);
    }
}

impl Health {
    /// When there is something to do.
    fn due(&self) -> Option<Instant> {
        self.running.map(|(_, until)| until).or(self.next)
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Serves one that listens: each report, the newest first, and its orders.
async fn serve(
    client: UnixStream,
    orders: mpsc::Sender<Order>,
    mut reports: watch::Receiver<TaskStatus>,
) {
    let (read, mut write) = client.into_split();
    let mut lines = BufReader::new(read.take(MAX_ORDERS)).lines();
    reports.mark_changed();
    loop {
        tokio::select! {
            changed = reports.changed() => {
                let newest = reports.borrow_and_update().clone();
                let Ok(mut line) = serde_json::to_vec(&newest) else { return };
                line.push(b'\n');
                if write.write_all(&line).await.is_err() || changed.is_err() {
                    return;
                }
            }
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                let Ok(order) = serde_json::from_str(&line) else { return };
                if orders.send(order).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Copies what the command says until nobody can say more.
async fn copy(mut pipe: pipe::Receiver, stream: Stream, output: Arc<Mutex<Output>>) {
    let (mut cutter, mut buffer) = (Cutter::default(), vec![0; 8192]);
    let write = |text: Vec<u8>, is_whole: bool| {
        let line = Line { at_ms: clock::now_ms(), stream, text, is_whole };
        output.lock().unwrap_or_else(PoisonError::into_inner).write(&line);
    };
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        cutter.cut(&buffer[..length], write);
    }
    cutter.finish(write);
}

/// The number of a child, which is reaped by it and not by its handle.
fn number(child: &Child) -> io::Result<Pid> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("the child has no number"))
}

fn pipe_pair() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(read.into())?, write.into()))
}

/// A limit that no machine of this size can reach is a mistake.
fn check_machine(definition: &Definition) -> Result<(), String> {
    let limits = &definition.spec.limits;
    let cpus = machine::cpu_milli();
    if let Some(milli) = limits.cpu_milli.filter(|milli| *milli > cpus) {
        let [wanted, cpus] = [milli, cpus].map(|milli| milli as f64 / 1000.0);
        return Err(format!("a limit of {wanted} cpus is above the {cpus} of this node"));
    }
    let memory = machine::memory_bytes().unwrap_or(u64::MAX);
    if let Some(bytes) = limits.memory_bytes.filter(|bytes| *bytes > memory) {
        return Err(format!(
            "a memory limit of {bytes} bytes is above the {memory} bytes of this node"
        ));
    }
    Ok(())
}

/// A path of a socket has 107 bytes at most: by the folder's descriptor it is as short as that.
fn bind(folder: &TaskFolder) -> Result<UnixListener, String> {
    use std::os::fd::AsRawFd as _;
    let bind = || {
        let _ = fs::remove_file(folder.socket());
        let open = File::open(folder.path())?;
        UnixListener::bind(format!("/proc/self/fd/{}/socket", open.as_raw_fd()))
    };
    bind().map_err(|error| format!("listen in {}: {error}", folder.path().display()))
}

fn report(state: TaskState, message: Option<String>, exit: Option<Exit>) -> TaskStatus {
    TaskStatus { state, since_ms: clock::now_ms(), message, exit }
}

/// Keeps how the task ended.
fn keep(folder: &TaskFolder, report: &TaskStatus) -> io::Result<()> {
    disk::replace(&folder.status(), &serde_json::to_vec(report)?)
}

/// What keeps a command from starting is one sentence.
const MAX_SAID: u64 = 4096;
/// Orders of one connection; there are two.
const MAX_ORDERS: u64 = 4096;
/// What was killed ends at once; only a disk that hangs keeps it.
const LOOK: Duration = Duration::from_millis(100);
/// What the pipes hold is read at once.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);
const TOLD_WITHIN: Duration = Duration::from_secs(1);
