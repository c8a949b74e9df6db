//! A cluster of several managers and two workers in a lab.
//!
//! ```text
//!   c1 --- n4 ===underlay=== n5 --- c2      network blue; n1, n2, n3 are managers
//! ```

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use super::{
    history::History,
    node::{Node, Said},
};
use crate::{
    lab::{Lab, Offloads, Process, Underlay},
    process::output,
    signals,
    traffic::{Route, Talk},
    workspace::{self, Programs},
};

/// The cluster. What was stopped goes on when it is dropped, so that it can be ended.
pub struct Cluster {
    /// Where it is.
    pub lab: Lab,
    /// The managers' nodes.
    pub nodes: Vec<Node>,
    /// What it runs.
    programs: Programs,
    /// Those of the managers.
    daemons: Vec<Process>,
}

/// A row of `node ls --json`.
#[derive(Debug, serde::Deserialize)]
struct Row {
    name: String,
    status: String,
    manager_status: Option<String>,
}

impl Cluster {
    /// Makes a cluster of so many managers and two workers, each with a container.
    pub fn lay(programs: &Programs, managers: usize) -> anyhow::Result<Self> {
        let name = format!("prove-{}", std::process::id());
        let lab = Lab::lay(&name, managers + 2, Underlay::Ipv4, Offloads::On)?;
        let (history, sentences) = (Arc::new(History::new()), Arc::default());
        let node = |manager| Node {
            manager,
            overlayctl: programs.overlayctl(),
            socket: lab.socket(&node_name(manager)),
            history: Arc::clone(&history),
            sentences: Arc::clone(&sentences),
        };
        let nodes: Vec<Node> = (0..managers).map(node).collect();
        let mut cluster = Self { lab, nodes, programs: programs.clone(), daemons: Vec::new() };
        for number in 0..managers + 2 {
            let daemon = cluster.lab.start(&node_name(number), programs)?;
            if number < managers {
                cluster.daemons.push(daemon);
            }
        }
        cluster.lab.form_cluster(programs, managers)?;
        // Another manager puts itself right where the clients' networks come from the pool.
        let create = ["network", "create", "blue", "--subnet", "192.168.77.0/24"];
        output(cluster.lab.overlayctl(programs, "n1").args(create))?;
        for (number, container) in [(managers, "c1"), (managers + 1, "c2")] {
            cluster.lab.netns(container)?;
            let target = format!("netns:{}", cluster.lab.full(container));
            let attach = ["attach", &target, "--network", "blue", "--name", container];
            output(cluster.lab.overlayctl(programs, &node_name(number)).args(attach))?;
        }
        Ok(cluster)
    }

    /// Lets the containers talk.
    pub fn talk(&self) -> anyhow::Result<Talk> {
        let addr = self.lab.address("c2", Underlay::Ipv4)?;
        Route { lab: &self.lab, from: "c1", to: "c2", addr }.talk()
    }

    /// What all have taken down.
    pub fn history(&self) -> &Arc<History> {
        &self.nodes[0].history
    }

    /// Waits until every manager's node says that all decide together and all nodes are ready, and who
    /// leads; returns that one.
    pub fn await_decided(&self) -> anyhow::Result<usize> {
        let mut said = Vec::new();
        let is_decided = || {
            said = self.nodes.iter().map(|node| self.leader_at(node)).collect();
            let leaders: Vec<usize> = said.iter().flatten().copied().collect();
            let all_agree = leaders.iter().all(|leader| *leader == leaders[0]);
            (leaders.len() == said.len() && all_agree).then(|| leaders[0])
        };
        let decided = wait_for(BACK_WITHIN, is_decided)?;
        decided.with_context(|| {
            let lines = (0..).zip(&said).map(|(manager, said)| match said {
                Ok(leader) => format!("{} says {} leads", node_name(manager), node_name(*leader)),
                Err(error) => format!("{}: {error:#}", node_name(manager)),
            });
            let lines: Vec<String> = lines.collect();
            format!("the managers do not decide together in {BACK_WITHIN:?}: {}", lines.join("; "))
        })
    }

    /// Who leads while all decide and are ready, as one node says.
    fn leader_at(&self, node: &Node) -> anyhow::Result<usize> {
        let json = match node.call(&["node", "ls", "--json"], ASKED)? {
            Said::Well(json) => json,
            Said::Failed(why) => bail!("{why}"),
            Said::Nothing => bail!("no answer in {ASKED:?}"),
        };
        let rows: Vec<Row> = serde_json::from_str(&json).context("read 'node ls --json'")?;
        if let Some(row) = rows.iter().find(|row| row.status != "ready") {
            bail!("{} is {}", row.name, row.status);
        }
        let of = |status: &str| {
            let rows = rows.iter().filter(|row| row.manager_status.as_deref() == Some(status));
            rows.map(|row| row.name.as_str()).collect::<Vec<_>>()
        };
        let (leaders, others) = (of("leader"), of("reachable"));
        match leaders[..] {
            [leader] if others.len() + 1 == self.nodes.len() => {
                let number = leader.strip_prefix('n').and_then(|number| number.parse().ok());
                number.map(|number: usize| number - 1).context("a leader without a number")
            }
            _ => bail!("{} lead and {} are reachable", leaders.len(), others.len()),
        }
    }

    /// Waits until a write that was begun from `begun` on is done at each of these managers.
    pub fn await_writes(&self, begun: Duration, managers: &[usize]) -> anyhow::Result<()> {
        for manager in managers {
            let is_done = || self.history().first_acknowledged(begun, &[*manager]);
            if wait_for(BACK_WITHIN, is_done)?.is_none() {
                bail!("{} takes no write in {BACK_WITHIN:?}", node_name(*manager));
            }
        }
        Ok(())
    }

    /// Sends a manager's daemon a signal; after SIGKILL it is gone when this returns.
    pub fn signal(&self, manager: usize, signal: Signal) -> anyhow::Result<()> {
        let daemon = self.daemons[manager];
        daemon.signal(signal);
        if signal == Signal::KILL {
            // A child of ours; with its last thread.
            let gone = waitpid(Pid::from_raw(daemon.pid), WaitOptions::empty());
            gone.with_context(|| format!("wait for the end of pid {}", daemon.pid))?;
        }
        Ok(())
    }

    /// Starts a manager's daemon again.
    pub fn start(&mut self, manager: usize) -> anyhow::Result<()> {
        self.daemons[manager] = self.lab.start(&node_name(manager), &self.programs)?;
        Ok(())
    }

    /// Keeps what the daemons said, where figures are kept; returns that folder.
    pub fn keep_logs(&self, name: &str) -> anyhow::Result<std::path::PathBuf> {
        let folder = workspace::target()?.join("prove").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for (node, _) in self.lab.nodes() {
            let from = self.lab.folder().join(&node).join("log");
            let to = folder.join(format!("{node}.log"));
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        Ok(folder)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.daemons.iter().for_each(|daemon| daemon.signal(Signal::CONT));
    }
}

/// The name of a manager's node.
pub fn node_name(manager: usize) -> String {
    format!("n{}", manager + 1)
}

/// Waits until there is something, at most for a time.
pub fn wait_for<T>(
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> anyhow::Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        signals::check()?;
        if Instant::now() > deadline {
            return Ok(None);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// How long the managers may take to decide together again.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ASKED: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
