//! The driver: starts the processes, makes what is to be measured happen, prints the figures, and
//! judges them.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use overlay::api::proto::Role;
use tokio::time::sleep;

use super::{
    cluster::Cluster,
    figures::{Delays, Verdict, at, seconds, since},
    layout::Layout,
    process::{Process, hear, tell},
    wire::{Answer, Change, Faults, Order, What, now_ns},
};

/// What is run.
pub struct Run {
    pub managers: usize,
    pub layout: [String; 3],
    pub churn_s: u64,
    /// One agent loses one change, and that must be found.
    pub plant: bool,
}

/// A cluster, and its agents.
struct Stage {
    layout: Layout,
    cluster: Cluster,
    agents: Vec<Process>,
    verdict: Verdict,
    /// What must not be with any agent's table.
    faults: Faults,
    tables: u64,
}

impl Run {
    pub async fn run(&self) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let mut stage = self.set_up(folder.path()).await?;
        stage.cold_start().await?;
        stage.changes(self.churn_s, self.plant).await?;
        if self.managers >= 3 && !self.plant {
            stage.lose_leader().await?;
        }
        stage.compare(folder.path()).await?;
        let peaks = stage.cluster.peaks_mb()?;
        let largest = peaks.iter().copied().fold(0.0, f64::max);
        let peaks: Vec<String> = peaks.iter().map(|peak| format!("{peak:.0}")).collect();
        let line = format!("managers' peak RSS {} MB", peaks.join(", "));
        stage.verdict.judge(line, largest <= PEAK_MB, "at most 1500 MB each");
        match self.plant {
            false => stage.verdict.end(),
            true if stage.faults.count == 0 => bail!("the planted defect is not found"),
            true => {
                println!("the planted defect was found");
                Ok(())
            }
        }
    }

    /// Makes the cluster, its nodes, networks and endpoints; nobody has a stream yet.
    async fn set_up(&self, folder: &Path) -> anyhow::Result<Stage> {
        let [agents, endpoints, largest] = &self.layout;
        let layout = Layout::new(agents.parse()?, endpoints.parse()?, largest.parse()?)?;
        let begun = now_ns();
        let cluster = Cluster::found(folder, self.managers).await?;
        cluster.create_networks(&layout).await?;
        println!(
            "{} managers, {} networks, the largest of {} agents, made in {:.1} s",
            self.managers,
            layout.networks(),
            layout.size(0),
            since(begun)
        );
        let mut all = Vec::new();
        let each = layout.agents.div_ceil(PROCESSES);
        for first in (0..layout.agents).step_by(each) {
            let (count, first) = (each.min(layout.agents - first).to_string(), first.to_string());
            all.push(Process::start(&["agents", &first, &count, agents, endpoints, largest])?);
        }
        let begun = now_ns();
        let (managers, token) = (cluster.addrs(), cluster.token(Role::Worker).await?);
        tell(&mut all, &Order::Join { managers, token }).await?;
        println!("{agents} agents joined in {:.1} s", since(begun));
        let begun = now_ns();
        tell(&mut all, &Order::Enter).await?;
        let took = since(begun);
        let known: usize = (0..layout.agents).map(|agent| layout.peers_of(agent).len()).sum();
        let on = layout.endpoints_on();
        let told: usize = (0..layout.networks()).map(|one| on[one] * layout.size(one)).sum();
        println!(
            "{endpoints} endpoints made in {took:.1} s; an agent's table has {} peers and {} endpoints on average",
            known / layout.agents,
            told / layout.agents
        );
        let (verdict, faults) = (Verdict::default(), Faults::default());
        Ok(Stage { layout, cluster, agents: all, verdict, faults, tables: 0 })
    }
}

impl Stage {
    async fn cold_start(&mut self) -> anyhow::Result<()> {
        let before = self.cluster.peaks_mb()?;
        self.cluster.stop().await?;
        let begun = now_ns();
        self.cluster.start().await?;
        let serving = since(begun);
        let cpu = self.cluster.cpu_s()?;
        let agents_cpu = self.agents_cpu_s()?;
        let answer = tell(&mut self.agents, &Order::Connect { revision: 1 }).await?;
        let mut took: Vec<u64> = answer.done_ns.iter().map(|done| done - begun).collect();
        took.sort_unstable();
        let last = seconds(took[took.len() - 1]);
        let line = format!(
            "cold start of {} agents: managers decide after {serving:.1} s; half have their tables after {:.1} s, 99 of 100 after {:.1} s, all after {last:.1} s",
            took.len(),
            seconds(at(&took, 0.5)),
            seconds(at(&took, 0.99))
        );
        self.verdict.judge(line, last <= COLD_START_S, "at most 60 s");
        let used = |before: Vec<f64>, after: Vec<f64>| -> f64 {
            after.iter().sum::<f64>() - before.iter().sum::<f64>()
        };
        println!(
            "  processor time: managers {:.1} s, agents {:.1} s; managers' peak RSS while setting up {before:.0?} MB",
            used(cpu, self.cluster.cpu_s()?),
            used(agents_cpu, self.agents_cpu_s()?)
        );
        let nodes = self.layout.agents + self.cluster.alive().len();
        let ready = self.cluster.await_ready(0, nodes).await?;
        println!("  all nodes are noted as ready {ready:.1} s later");
        Ok(())
    }

    async fn changes(&mut self, for_s: u64, plant: bool) -> anyhow::Result<()> {
        // Until what was put off for the start is over.
        sleep(QUIET).await;
        if plant {
            self.agents[0].say(&Order::Plant).await?;
            let _: Answer = self.agents[0].hear().await?;
        }
        let (cpu, agents_cpu, begun) = (self.cluster.cpu_s()?, self.agents_cpu_s()?, now_ns());
        let changes = self.churn(for_s).await?;
        let took = since(begun);
        let share = |before: &[f64], after: &[f64]| -> Vec<String> {
            let used = after.iter().zip(before).map(|(after, before)| (after - before) / took);
            used.map(|share| format!("{:.0} %", share * 100.0)).collect()
        };
        let managers = share(&cpu, &self.cluster.cpu_s()?);
        let agents = share(&agents_cpu, &self.agents_cpu_s()?);
        let unknown = changes.iter().filter(|change| change.what == What::Unknown).count();
        ensure!(unknown == 0, "{unknown} changes were not answered");
        let answered = Delays::of_answers(&changes);
        let delays = self.report(changes).await?;
        let line = format!(
            "{CHANGES_A_SECOND} changes/s for {took:.0} s, from asked to in use at each of the agents concerned: {delays}"
        );
        let (p50, p99) = (delays.percentile(0.5), delays.percentile(0.99));
        self.verdict.judge(line, p50 <= P50_MS && p99 <= P99_MS, "p50 at most 200 ms, p99 1000 ms");
        println!(
            "  answered: {answered}; of a processor: managers {}, agents {}",
            managers.join(", "),
            agents.join(", ")
        );
        Ok(())
    }

    async fn lose_leader(&mut self) -> anyhow::Result<()> {
        let leader = self.cluster.await_leader(&[]).await?;
        let begun = now_ns();
        let from = self.cluster.kill(leader).await?;
        for process in &mut self.agents {
            process.say(&Order::Back { from }).await?;
        }
        let next = self.cluster.await_leader(&[leader]).await?;
        let leads = since(begun);
        let answer = hear(&mut self.agents).await?;
        let mut took: Vec<u64> =
            answer.done_ns.iter().map(|done| done.saturating_sub(begun)).collect();
        took.sort_unstable();
        let back = seconds(took[took.len() - 1]).max(leads);
        // What changes now must come to all, which shows that the tables are current.
        let changes = self.churn(AFTERWARDS_S).await?;
        let delays = self.report(changes).await?;
        let line = format!(
            "leader killed: m{next} leads after {leads:.1} s, 90 of 100 agents have a stream to a living manager and its table after {:.1} s, and all this after {back:.1} s",
            seconds(at(&took, 0.9)),
        );
        self.verdict.judge(line, back <= BACK_S, "at most 30 s");
        println!("  changes afterwards: {delays}");
        Ok(())
    }

    /// Makes changes in all processes together; returns them.
    async fn churn(&mut self, for_s: u64) -> anyhow::Result<Vec<Change>> {
        let count = self.agents.len() as u64;
        let a_second = CHANGES_A_SECOND / count;
        for (number, process) in (1u64..).zip(&mut self.agents) {
            process.say(&Order::Churn { a_second, for_s, seed: number }).await?;
            // So that they take turns.
            sleep(Duration::from_secs(1) / (CHANGES_A_SECOND as u32)).await;
        }
        Ok(hear(&mut self.agents).await?.changes)
    }

    async fn report(&mut self, changes: Vec<Change>) -> anyhow::Result<Delays> {
        let answer = tell(&mut self.agents, &Order::Report { changes }).await?;
        self.tables += answer.tables;
        self.faults.extend(answer.faults);
        Ok(Delays(answer.by_ms))
    }

    /// Compares every agent's table with the leader's state, and the managers with each other.
    async fn compare(&mut self, folder: &Path) -> anyhow::Result<()> {
        let leader = self.cluster.await_leader(&[]).await?;
        let truth = serde_json::to_vec(&self.cluster.truth(leader).await?)?;
        let mut same = true;
        for manager in self.cluster.alive() {
            same &= serde_json::to_vec(&self.cluster.truth(manager).await?)? == truth;
        }
        let path = folder.join("truth.json");
        std::fs::write(&path, truth).context("write what the leader has")?;
        let answer = tell(&mut self.agents, &Order::Compare { truth: path }).await?;
        let compared = answer.tables;
        self.faults.extend(answer.faults);
        let line = format!(
            "{} tables that came into use looked at, none of which may be older than the one before or lack a change; at the end {compared} compared with the leader's state, digest by digest: {} differences",
            self.tables, self.faults.count
        );
        let right = self.faults.count == 0 && compared == self.layout.agents as u64;
        self.verdict.judge(line, right, "all, and no difference");
        self.faults.sentences.iter().for_each(|fault| println!("  {fault}"));
        self.verdict.judge("the managers have the same state".to_owned(), same, "so it must be");
        Ok(())
    }

    fn agents_cpu_s(&self) -> anyhow::Result<Vec<f64>> {
        self.agents.iter().map(Process::cpu_s).collect()
    }
}

/// Agents' processes, of one thread each: as many as share two processors well.
const PROCESSES: usize = 4;
const CHANGES_A_SECOND: u64 = 20;
const AFTERWARDS_S: u64 = 10;
const QUIET: Duration = Duration::from_secs(5);
const COLD_START_S: f64 = 60.0;
const BACK_S: f64 = 30.0;
const P50_MS: u64 = 200;
const P99_MS: u64 = 1000;
const PEAK_MB: f64 = 1500.0;
