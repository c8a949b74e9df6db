//! `cargo xtask prove failover`: the manager that leads is killed, stopped or cut off, again and again,
//! under clients at all managers. Nothing that was acknowledged is lost, nothing that is read is stale,
//! writing goes on soon, and containers do not notice.

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::{
    cluster::{Cluster, node_name, wait_for},
    fault::{Blow, Fault},
    figures::Samples,
    load::{Load, StopAtEnd},
    verdict::{Verdict, told},
};
use crate::{
    lab, machine,
    process::{complain, say},
    prove::Args,
    signals, system,
    traffic::Talk,
    workspace::Programs,
};

/// Runs the settings asked for; fails if one of them shows what must not be.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    system::need(system::LAB)?;
    let programs = Programs::build()?;
    if let Some(code) = lab::reenter(&programs)? {
        return Ok(code);
    }
    let _alone = machine::alone()?;
    let rounds = args.points.map_or(Ok(ROUNDS), usize::try_from).context("a number of rounds")?;
    let managers = args.managers.map_or(vec![3, 5], |managers| vec![managers]);
    let faults = args.fault.map_or(vec![Fault::Kill, Fault::Stop, Fault::Cut], |fault| vec![fault]);
    let mut reports = Vec::new();
    for managers in managers {
        for fault in &faults {
            let setting = Setting { managers, fault: *fault, rounds, plant: args.plant };
            let report = setting.run(&programs)?;
            report.tell();
            reports.push(report);
        }
    }
    say("");
    for report in &reports {
        say(report.line());
    }
    let figures: Vec<_> = reports.iter().map(Report::json).collect();
    let name = if args.plant { "failover-planted" } else { "failover" };
    super::super::keep(name, &serde_json::to_string_pretty(&figures)?)?;
    let faults: Vec<String> = reports.iter().flat_map(Report::faults).collect();
    if !faults.is_empty() {
        bail!("{}", faults.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}

/// One run of rounds on one cluster.
struct Setting {
    managers: usize,
    fault: Fault,
    rounds: usize,
    plant: bool,
}

/// What a setting came to.
struct Report {
    setting: Setting,
    found: Found,
    verdict: Verdict,
}

/// What a setting's rounds find.
#[derive(Default)]
struct Found {
    /// How long no write was done after the manager that leads was hit.
    gaps: Samples,
    /// The same where it was not.
    others: Samples,
    /// The longest time without a write after a fault was over.
    healings: Samples,
    longest_pause: Duration,
    /// What was done at a manager that was cut off.
    minority: Vec<String>,
}

impl Setting {
    fn run(self, programs: &Programs) -> anyhow::Result<Report> {
        complain(format_args!(
            "{} managers, {}: {} rounds",
            self.managers, self.fault, self.rounds
        ));
        let mut cluster = Cluster::lay(programs, self.managers, 0)?;
        Blow::prepare(&cluster)?;
        let found = self.rounds(&mut cluster);
        if found.as_ref().is_err_and(|error| !error.is::<signals::Interrupted>()) {
            let name = format!("failover-{}-{}", self.managers, self.fault);
            let folder = cluster.keep_logs(&name)?;
            complain(format_args!("what the daemons said is in {}", folder.display()));
        }
        let found = found?;
        let verdict = Verdict::of(&cluster);
        if !verdict.violations.is_empty() && !self.plant {
            cluster.keep_logs(&format!("failover-{}-{}", self.managers, self.fault))?;
        }
        Ok(Report { setting: self, found, verdict })
    }

    /// Runs the rounds under the clients, and reads all at the end.
    fn rounds(&self, cluster: &mut Cluster) -> anyhow::Result<Found> {
        let load = Load::new(self.plant);
        let talk = cluster.talk()?;
        let mut found = Found::default();
        let nodes = cluster.nodes.clone();
        thread::scope(|scope| {
            let _stop = StopAtEnd(&load);
            nodes.iter().for_each(|node| load.start(scope, node));
            for round in 0..self.rounds {
                self.round(round, cluster, &load, &talk, &mut found)
                    .with_context(|| format!("round {}", round + 1))?;
                load.check()?;
            }
            cluster.await_decided()
        })?;
        load.check()?;
        if !self.plant {
            cluster.await_same()?;
        }
        found.longest_pause = found.longest_pause.max(talk.longest()?);
        for node in &cluster.nodes {
            let flags: &[&str] = if self.plant { &["--stale"] } else { &[] };
            let listed = node.list(flags, LAST_READ)?;
            ensure!(listed.is_some(), "{} lists no networks at the end", node_name(node.manager));
        }
        Ok(found)
    }

    fn round(
        &self,
        round: usize,
        cluster: &mut Cluster,
        load: &Load,
        talk: &Talk,
        found: &mut Found,
    ) -> anyhow::Result<()> {
        let everyone: Vec<usize> = (0..self.managers).collect();
        let ready = cluster.history().now();
        let leader = cluster.await_decided()?;
        cluster.await_writes(ready, &everyone)?;

        let blow = self.fault.blow(round, self.managers, leader);
        let others: Vec<usize> =
            everyone.iter().copied().filter(|manager| !blow.whom.contains(manager)).collect();
        let history = cluster.history().clone();
        let before = history.now();
        blow.strike(cluster)?;
        let struck = history.now();
        let others_nodes: Vec<_> =
            others.iter().map(|manager| cluster.nodes[*manager].clone()).collect();
        let late = || signals::stopped() || history.now() > struck + GONE_ON_WITHIN;
        load.probe(&others_nodes, late)?;
        signals::check()?;
        let gone_on = history.first_acknowledged(struck, &others);
        let gone_on = gone_on.with_context(|| {
            format!(
                "no write is done in {GONE_ON_WITHIN:?} after {blow} ({} led)",
                node_name(leader)
            )
        })?;
        // Every manager on this side works, and one on the other has tried.
        cluster.await_writes(struck, &others)?;
        if blow.is_cut() {
            for manager in &blow.whom {
                let tried = || history.has_ended(struck, *manager).then_some(());
                wait_for(GONE_ON_WITHIN, tried)?.context("no client is left")?;
            }
        }
        let over = history.now();
        let done_there = history.acknowledged_at(struck..over, &blow.whom);
        found.minority.extend(done_there.map(|operation| format!("{blow}: {}", told(&operation))));
        blow.heal(cluster)?;
        let leader_after = cluster.await_decided()?;
        cluster.await_writes(over, &everyone)?;
        if self.plant
            && let Some(name) = load.take_oldest()
        {
            // Nobody takes it down.
            cluster.nodes[0].call(&["network", "rm", &name.to_string()], LAST_READ)?;
        }

        let gap = gone_on - before;
        let hit = blow.whom.contains(&leader);
        if hit { &mut found.gaps } else { &mut found.others }.0.push(gap);
        let healing = longest_between(over, &history.acknowledged_between(over, history.now()));
        found.healings.0.push(healing);
        let pause = talk.longest()?;
        found.longest_pause = found.longest_pause.max(pause);
        say(format_args!(
            "{} managers, {}, {} of {}: {} led, {blow}: {:.2} s without a write, {:.2} s after it was over, then {} leads; traffic paused {} ms",
            self.managers,
            self.fault,
            round + 1,
            self.rounds,
            node_name(leader),
            gap.as_secs_f64(),
            healing.as_secs_f64(),
            node_name(leader_after),
            pause.as_millis()
        ));
        Ok(())
    }
}

impl Report {
    /// Prints all of it.
    fn tell(&self) {
        say(format_args!("\n{}", self.line()));
        for line in self.found.gaps.histogram() {
            say(format_args!("  {line}"));
        }
        let Found { others, healings, .. } = &self.found;
        if !others.0.is_empty() {
            say(format_args!("  without a write while others are cut off: {others}"));
        }
        say(format_args!("  without a write after a fault was over: {healings}"));
        self.verdict.tell();
        for done in &self.found.minority {
            say(format_args!("  WRONG: done by a manager that was cut off: {done}"));
        }
        say("");
    }

    fn line(&self) -> String {
        let Setting { managers, fault, rounds, plant: _ } = &self.setting;
        format!(
            "{managers} managers, {fault}, {rounds} rounds: gap {}; {}; longest pause of traffic {} ms",
            self.found.gaps,
            self.verdict.words(),
            self.found.longest_pause.as_millis()
        )
    }

    fn json(&self) -> serde_json::Value {
        let Found { gaps, others, healings, longest_pause, minority } = &self.found;
        json!({
            "managers": self.setting.managers,
            "fault": self.setting.fault.to_string(),
            "rounds": self.setting.rounds,
            "gaps_ms": gaps.ms(),
            "gaps_of_others_ms": others.ms(),
            "gaps_after_ms": healings.ms(),
            "longest_pause_ms": longest_pause.as_secs_f64() * 1000.0,
            "verdict": self.verdict.json(),
            "done_by_minority": minority,
            "faults": self.faults(),
        })
    }

    /// What must not be; of a planted defect, that it was not found.
    fn faults(&self) -> Vec<String> {
        let of = format!("{} managers, {}", self.setting.managers, self.setting.fault);
        if self.setting.plant {
            let missed = self.verdict.violations.is_empty();
            return missed
                .then(|| format!("{of}: the planted defect is not found"))
                .into_iter()
                .collect();
        }
        let Found { gaps, others, healings, longest_pause, minority } = &self.found;
        let mut faults: Vec<String> = self.verdict.fault().into_iter().collect();
        if let Some(first) = minority.first() {
            faults.push(format!("a manager that was cut off acknowledged: {first}"));
        }
        let bounds = [
            ("gap", gaps, 50, GAP_P50),
            ("gap", gaps, 99, GAP_P99),
            ("gap while others are cut off", others, 100, NO_GAP),
            ("gap after a fault", healings, 99, GAP_P99),
        ];
        for (what, samples, hundredths, bound) in bounds {
            if let Some(time) = samples.percentile(hundredths).filter(|time| *time > bound) {
                faults.push(format!(
                    "the {what} has a p{hundredths} of {:.2} s, at most {:.2} s",
                    time.as_secs_f64(),
                    bound.as_secs_f64()
                ));
            }
        }
        if *longest_pause > PAUSE {
            faults.push(format!("traffic paused for {} ms", longest_pause.as_millis()));
        }
        faults.into_iter().map(|fault| format!("{of}: {fault}")).collect()
    }
}

/// The longest time without a write from `from` to the last one.
pub fn longest_between(from: Duration, ends: &[Duration]) -> Duration {
    let begins = std::iter::once(&from).chain(ends);
    let between = begins.zip(ends).map(|(begin, end)| end.saturating_sub(*begin));
    between.max().unwrap_or_default()
}

const ROUNDS: usize = 100;
const GAP_P50: Duration = Duration::from_millis(1200);
const GAP_P99: Duration = Duration::from_millis(2500);
/// Shorter than an election.
const NO_GAP: Duration = Duration::from_millis(750);
/// Less than what a connection that was cut would take.
pub const PAUSE: Duration = Duration::from_secs(1);
/// How long it is waited for a write, which then is the gap that fails.
const GONE_ON_WITHIN: Duration = Duration::from_secs(20);
const LAST_READ: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_without_a_write_begins_with_the_end_of_the_fault() {
        let ms = Duration::from_millis;
        assert_eq!(longest_between(ms(100), &[ms(150), ms(400), ms(420)]), ms(250));
        assert_eq!(longest_between(ms(100), &[ms(500), ms(600)]), ms(400));
        assert_eq!(longest_between(ms(100), &[]), ms(0));
    }
}
