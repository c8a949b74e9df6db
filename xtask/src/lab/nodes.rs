//! The daemons of a lab: started in their namespaces, made one cluster, ended.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::Signal;

use super::{Lab, ledger::Process};
use crate::{
    process::{output, shown},
    signals,
    system::tool,
    workspace::Programs,
};

/// How long a daemon may take to open its socket, and how long to end.
const PATIENCE: Duration = Duration::from_secs(10);

impl Lab {
    /// Starts the daemon of a node, once more if it has ended, and waits for its socket.
    pub fn start(&mut self, node: &str, programs: &Programs) -> anyhow::Result<Process> {
        let folder = self.ledger.folder.join(node);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.with_context(|| format!("make {}", folder.display()))?;
        let (overlayd, state, socket) =
            (programs.overlayd(), folder.join("state"), self.socket(node));
        let words = [
            overlayd.as_os_str(),
            "--state-dir".as_ref(),
            state.as_os_str(),
            "--socket".as_ref(),
            socket.as_os_str(),
        ];
        let process = self.spawn(node, &folder.join("log"), &words)?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket(node)).is_err() {
            signals::check()?;
            if !process.is_running() {
                bail!("overlayd on {node} ended: {}", self.log_end(node));
            }
            if Instant::now() > deadline {
                bail!(
                    "overlayd on {node} opened no socket in {PATIENCE:?}: {}",
                    self.log_end(node)
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(process)
    }

    /// Starts a command in a node's namespace, which ends with the lab; what it says goes to a file.
    pub fn spawn(&mut self, node: &str, log: &Path, words: &[&OsStr]) -> anyhow::Result<Process> {
        let said = fs::File::options().create(true).append(true).open(log);
        let said = said.with_context(|| format!("open {}", log.display()))?;
        // `setsid` and `nsenter` become the command: the pid stays, and no terminal's signal reaches it.
        let mut command = tool("setsid");
        command
            .arg("nsenter")
            .arg(format!("--net=/run/netns/{}", self.full(node)))
            .args(words)
            .stdin(Stdio::null())
            .stdout(said.try_clone().context("share a log")?)
            .stderr(said);
        let child = command.spawn().with_context(|| format!("start `{}`", shown(&command)))?;
        let pid = i32::try_from(child.id()).context("a pid fits")?;
        let Some(process) = Process::running(pid) else {
            bail!("`{}` ended at once: {}", shown(&command), end_of(log));
        };
        self.ledger.add(process.entry(node))?;
        Ok(process)
    }

    /// Makes the started nodes one cluster, so many of the first ones its managers.
    pub fn form_cluster(&self, programs: &Programs, managers: usize) -> anyhow::Result<()> {
        let nodes = self.nodes();
        let Some(((first, address), others)) = nodes.split_first() else { return Ok(()) };
        output(self.overlayctl(programs, first).args(["init", "--name", first]))?;
        let manager = manager(address);
        for (number, (node, _)) in (2..).zip(others) {
            let role = if number <= managers { "manager" } else { "worker" };
            let mut token = self.overlayctl(programs, first);
            let token = output(token.args(["join-token", role, "-q"]))?;
            let mut join = self.overlayctl(programs, node);
            output(join.args(["join", "--token", token.trim(), &manager, "--name", node]))?;
        }
        Ok(())
    }

    /// `overlayctl`, speaking to a node.
    pub fn overlayctl(&self, programs: &Programs, node: &str) -> Command {
        let mut command = Command::new(programs.overlayctl());
        command.env("OVERLAY_SOCKET", self.socket(node));
        command
    }

    /// The socket of a node's daemon.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.ledger.folder.join(node).join("sock")
    }

    fn log_end(&self, node: &str) -> String {
        end_of(&self.ledger.folder.join(node).join("log"))
    }
}

/// The last lines of what a daemon said.
pub fn end_of(log: &Path) -> String {
    let log = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// Where the manager takes joins, as `join` wants it.
pub fn manager(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:2377") } else { format!("{address}:2377") }
}

/// Ends processes: asked first, then made to. Returns those that would not.
pub fn end(processes: &[Process]) -> Vec<Process> {
    for signal in [Signal::TERM, Signal::KILL] {
        processes.iter().for_each(|process| process.signal(signal));
        let deadline = Instant::now() + PATIENCE;
        while processes.iter().any(Process::is_running) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
    processes.iter().filter(|process| process.is_running()).copied().collect()
}
