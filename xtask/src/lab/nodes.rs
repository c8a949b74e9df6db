//! The daemons of a lab: started in their namespaces, made one cluster, ended.

use std::{
    fs,
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::PathBuf,
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
    /// Starts the daemon of a node and waits for its socket.
    pub fn start(&mut self, node: &str, programs: &Programs) -> anyhow::Result<Process> {
        let folder = self.ledger.folder.join(node);
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        made.with_context(|| format!("make {}", folder.display()))?;
        let log = fs::File::create(folder.join("log")).context("make the daemon's log")?;
        // `setsid` and `nsenter` become the daemon: the pid stays, and no terminal's signal reaches it.
        let mut daemon = tool("setsid");
        daemon
            .arg("nsenter")
            .arg(format!("--net=/run/netns/{}", self.full(node)))
            .arg(programs.overlayd())
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--socket")
            .arg(self.socket(node))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the daemon's log")?)
            .stderr(log);
        let child = daemon.spawn().with_context(|| format!("start `{}`", shown(&daemon)))?;
        let pid = i32::try_from(child.id()).context("a pid fits")?;
        let Some(process) = Process::running(pid) else {
            bail!("overlayd on {node} ended at once: {}", self.log_end(node));
        };
        self.ledger.add(process.entry(node))?;
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

    /// Makes the started nodes one cluster, the first its manager.
    pub fn form_cluster(&self, programs: &Programs) -> anyhow::Result<()> {
        let nodes = self.nodes();
        let Some(((first, address), others)) = nodes.split_first() else { return Ok(()) };
        output(self.overlayctl(programs, first).args(["init", "--name", first]))?;
        let mut token = self.overlayctl(programs, first);
        let token = output(token.args(["join-token", "worker", "-q"]))?;
        let manager = manager(address);
        for (node, _) in others {
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
        let path = self.ledger.folder.join(node).join("log");
        let log = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
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
