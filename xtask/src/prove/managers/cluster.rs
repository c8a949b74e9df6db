//! A cluster of several managers, workers that may become managers, and two that have containers, in a lab.
//!
//! ```text
//!   c1 --- n6 ===underlay=== n7 --- c2      network blue; n1, n2, n3 are managers, n4 and n5 may be
//! ```

use std::{
    collections::BTreeSet,
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
    /// The nodes that are managers or may be.
    pub nodes: Vec<Node>,
    /// Those that are.
    pub managers: BTreeSet<usize>,
    /// What it runs.
    programs: Programs,
    /// Those of these nodes.
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
    /// Makes a cluster of so many managers, workers that may become managers, and two workers with a
    /// container each.
    pub fn lay(programs: &Programs, managers: usize, spare: usize) -> anyhow::Result<Self> {
        let name = format!("prove-{}", std::process::id());
        let all = managers + spare;
        let lab = Lab::lay(&name, all + 2, Underlay::Ipv4, Offloads::On)?;
        let (history, sentences) = (Arc::new(History::new()), Arc::default());
        let node = |manager| Node {
            manager,
            overlayctl: programs.overlayctl(),
            socket: lab.socket(&node_name(manager)),
            history: Arc::clone(&history),
            sentences: Arc::clone(&sentences),
        };
        let nodes = (0..all).map(node).collect();
        let mut cluster = Self {
            lab,
            nodes,
            managers: (0..managers).collect(),
            programs: programs.clone(),
            daemons: Vec::new(),
        };
        for number in 0..all + 2 {
            let daemon = cluster.lab.start(&node_name(number), programs)?;
            if number < all {
                cluster.daemons.push(daemon);
            }
        }
        cluster.lab.form_cluster(programs, managers)?;
        // Outside of the pool that the clients' networks come from.
        let create = ["network", "create", "blue", "--subnet", "192.168.77.0/24"];
        output(cluster.lab.overlayctl(programs, "n1").args(create))?;
        for (number, container) in [(all, "c1"), (all + 1, "c2")] {
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
            let managers = self.managers.iter().map(|manager| &self.nodes[*manager]);
            said = managers.map(|node| self.leader_at(node)).collect();
            let leaders: Vec<usize> = said.iter().flatten().copied().collect();
            let all_agree = leaders.iter().all(|leader| *leader == leaders[0]);
            (leaders.len() == said.len() && all_agree).then(|| leaders[0])
        };
        let decided = wait_for(BACK_WITHIN, is_decided)?;
        decided.with_context(|| {
            let lines = self.managers.iter().zip(&said).map(|(manager, said)| match said {
                Ok(leader) => format!("{} says {} leads", node_name(*manager), node_name(*leader)),
                Err(error) => format!("{}: {error:#}", node_name(*manager)),
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
        let wanted =
            |row: &&Row| self.managers.iter().any(|manager| node_name(*manager) == row.name);
        let is_right = |row: &Row| match row.manager_status.as_deref() {
            Some("leader" | "reachable") => wanted(&row),
            Some(_) => false,
            None => !wanted(&row),
        };
        if let Some(row) = rows.iter().find(|row| !is_right(row)) {
            bail!("{} is {}", row.name, row.manager_status.as_deref().unwrap_or("a worker"));
        }
        let leader = rows.iter().find(|row| row.manager_status.as_deref() == Some("leader"));
        let leader = leader.context("nobody leads")?;
        let number = leader.name.strip_prefix('n').and_then(|number| number.parse::<usize>().ok());
        Ok(number.context("the number of who leads")? - 1)
    }

    /// Waits until a write that was begun from `begun` on is done at each of these managers.
    pub fn await_writes<'a>(
        &self,
        begun: Duration,
        managers: impl IntoIterator<Item = &'a usize>,
    ) -> anyhow::Result<()> {
        for manager in managers {
            let is_done = || self.history().first_acknowledged(begun, &[*manager]);
            if wait_for(BACK_WITHIN, is_done)?.is_none() {
                bail!("{} takes no write in {BACK_WITHIN:?}", node_name(*manager));
            }
        }
        Ok(())
    }

    /// Waits until all managers show the same without asking each other.
    pub fn await_same(&self) -> anyhow::Result<()> {
        let shown = |manager: &usize| -> anyhow::Result<String> {
            let mut shown = String::new();
            for words in SHOWN {
                let words = [words, &["--json", "--stale"]].concat();
                match self.nodes[*manager].call(&words, ASKED)? {
                    // Which of the nodes is the asked one's is another thing at each.
                    Said::Well(json) => shown += &json.replace("\"self\": true", "\"self\": false"),
                    Said::Failed(why) => bail!("{why}"),
                    Said::Nothing => bail!("no answer in {ASKED:?}"),
                }
            }
            Ok(shown)
        };
        let mut last = Vec::new();
        let same = wait_for(BACK_WITHIN, || {
            last = self.managers.iter().map(shown).collect();
            let all: Vec<&String> = last.iter().flatten().collect();
            (all.len() == last.len() && all.windows(2).all(|pair| pair[0] == pair[1])).then_some(())
        })?;
        same.with_context(|| format!("the managers do not come to show the same: {last:#?}"))
    }

    /// Waits until all managers have found, since their members last changed, that their states have the
    /// same digest; returns it.
    pub fn await_equal_states(&self) -> anyhow::Result<String> {
        let all = format!(" same={0} managers={0} ", self.managers.len());
        let newest = |manager: &usize| {
            let log = self.lab.folder().join(node_name(*manager)).join("log");
            let log = fs::read_to_string(log).ok()?;
            let line = log.lines().rfind(|line| line.contains("states compared"))?;
            line.contains(&all)
                .then(|| line.split_once(" entry=").map(|(_, rest)| rest.to_owned()))?
        };
        let mut last = Vec::new();
        let equal = wait_for(BACK_WITHIN, || {
            last = self.managers.iter().map(newest).collect();
            let first = last.first().cloned().flatten();
            first.filter(|first| last.iter().all(|line| line.as_ref() == Some(first)))
        })?;
        equal.with_context(|| format!("the managers do not find the same digest: {last:#?}"))
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

/// What all managers show alike.
const SHOWN: [&[&str]; 3] = [&["node", "ls"], &["network", "ls"], &["endpoint", "ls", "--all"]];
/// How long the managers may take to decide together again.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ASKED: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
