//! `cargo xtask prove roles`: nodes become managers and cease to be, the one that leads too, under
//! clients at all of them. Nothing that was acknowledged is lost, nothing that is read is stale, and all
//! managers come to the same in the end.

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::{
    cluster::{Cluster, node_name, wait_for},
    failover::{PAUSE, longest_between},
    load::{Load, StopAtEnd},
    node::{Node, Said},
    verdict::Verdict,
};
use crate::{
    lab, machine,
    process::{complain, say},
    prove::Args,
    signals, system,
    traffic::Talk,
    workspace::Programs,
};

/// Runs the cycles; fails if one of them shows what must not be.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.plant {
        bail!("no defect is planted for 'roles'; 'failover' has some");
    }
    system::need(system::LAB)?;
    let programs = Programs::build()?;
    if let Some(code) = lab::reenter(&programs)? {
        return Ok(code);
    }
    let _alone = machine::alone()?;
    let rounds = args.points.unwrap_or(ROUNDS);
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()));
    complain(format_args!("{rounds} cycles of roles, seed {seed}"));
    let mut cluster = Cluster::lay(&programs, 3, 2)?;
    let mut cycles = Cycles { random: Random(seed | 1 << 63), longest_pause: Duration::ZERO };
    let done = cycles.run(rounds, &mut cluster);
    if done.as_ref().is_err_and(|error| !error.is::<signals::Interrupted>()) {
        let folder = cluster.keep_logs("roles")?;
        complain(format_args!("seed {seed}; what the daemons said is in {}", folder.display()));
    }
    let longest_gap = done?;
    let (verdict, pause) = (Verdict::of(&cluster), cycles.longest_pause);
    say(format_args!(
        "\n{rounds} cycles of roles, seed {seed}: {}, all managers show the same and have the same digest; longest time without a write {:.2} s; longest pause of traffic {} ms",
        verdict.words(),
        longest_gap.as_secs_f64(),
        pause.as_millis()
    ));
    verdict.tell();
    let figures = json!({
        "rounds": rounds,
        "seed": seed,
        "longest_gap_ms": longest_gap.as_secs_f64() * 1000.0,
        "longest_pause_ms": pause.as_secs_f64() * 1000.0,
        "verdict": verdict.json(),
    });
    super::super::keep("roles", &serde_json::to_string_pretty(&figures)?)?;
    if let Some(fault) = verdict.fault() {
        bail!("{fault}");
    }
    ensure!(pause <= PAUSE, "traffic paused for {} ms", pause.as_millis());
    Ok(ExitCode::SUCCESS)
}

/// Who becomes what.
struct Cycles {
    random: Random,
    longest_pause: Duration,
}

/// A xorshift, never zero.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }

    /// One of some.
    fn one_of(&mut self, some: Vec<usize>) -> usize {
        let at = self.below(some.len());
        some[at]
    }
}

impl Cycles {
    /// Runs all cycles under clients; returns the longest time without a write.
    fn run(&mut self, rounds: u64, cluster: &mut Cluster) -> anyhow::Result<Duration> {
        let load = Load::new(false);
        let talk = cluster.talk()?;
        let nodes = cluster.nodes.clone();
        let history = cluster.history().clone();
        let (from, to) = thread::scope(|scope| {
            let _stop = StopAtEnd(&load);
            nodes.iter().for_each(|node| load.start(scope, node));
            cluster.await_decided()?;
            cluster.await_writes(Duration::ZERO, &cluster.managers)?;
            let from = history.now();
            for round in 1..=rounds {
                self.cycle(round, rounds, cluster, &talk)
                    .with_context(|| format!("cycle {round}"))?;
                load.check()?;
            }
            anyhow::Ok((from, history.now()))
        })?;
        load.check()?;
        cluster.await_decided()?;
        cluster.await_same()?;
        say(format_args!("equal states: entry {}", cluster.await_equal_states()?));
        for manager in &cluster.managers {
            let listed = cluster.nodes[*manager].list(&[], COMMAND)?;
            ensure!(listed.is_some(), "{} lists no networks at the end", node_name(*manager));
        }
        Ok(longest_between(from, &history.acknowledged_between(from, to)))
    }

    fn cycle(
        &mut self,
        round: u64,
        rounds: u64,
        cluster: &mut Cluster,
        talk: &Talk,
    ) -> anyhow::Result<()> {
        let leader = cluster.await_decided()?;
        let workers = (0..cluster.nodes.len()).filter(|node| !cluster.managers.contains(node));
        let promoted = self.random.one_of(workers.collect());
        let by = self.manager(cluster);
        command(&cluster.nodes[by], &["node", "promote", &node_name(promoted)])?;
        cluster.managers.insert(promoted);
        settle(cluster)?;

        // The one that leads more often than by chance.
        let demoted = if self.random.below(3) == 0 { leader } else { self.manager(cluster) };
        let by = self.manager(cluster);
        command(&cluster.nodes[by], &["node", "demote", &node_name(demoted)])?;
        cluster.managers.remove(&demoted);
        settle(cluster)?;

        let left = self.manager(cluster);
        once(&cluster.nodes[left], &["leave"])?;
        cluster.managers.remove(&left);
        settle(cluster)?;
        let by = self.manager(cluster);
        let token = command(&cluster.nodes[by], &["join-token", "manager", "-q"])?;
        let (_, addr) = cluster.lab.nodes().swap_remove(by);
        let (name, addr) = (node_name(left), lab::manager(&addr));
        once(&cluster.nodes[left], &["join", "--token", token.trim(), &addr, "--name", &name])?;
        cluster.managers.insert(left);
        settle(cluster)?;

        let pause = talk.longest()?;
        self.longest_pause = self.longest_pause.max(pause);
        let led = |node: usize| if node == leader { ", which led," } else { "" };
        say(format_args!(
            "{round} of {rounds}: {} promoted, {}{} demoted, {}{} left and joined; traffic paused {} ms",
            node_name(promoted),
            node_name(demoted),
            led(demoted),
            node_name(left),
            led(left),
            pause.as_millis()
        ));
        Ok(())
    }

    fn manager(&mut self, cluster: &Cluster) -> usize {
        self.random.one_of(cluster.managers.iter().copied().collect())
    }
}

/// Waits until those that are managers decide together, and each takes writes.
fn settle(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = cluster.history().now();
    cluster.await_decided()?;
    cluster.await_writes(begun, &cluster.managers)
}

/// Runs a command that may be asked for again, until it is done.
fn command(node: &Node, words: &[&str]) -> anyhow::Result<String> {
    let mut last = None;
    let done = wait_for(COMMAND, || match once(node, words) {
        Ok(said) => Some(said),
        Err(error) => {
            last = Some(error);
            None
        }
    })?;
    match (done, last) {
        (Some(said), _) => Ok(said),
        (None, Some(error)) => Err(error),
        (None, None) => bail!("{} was not tried", words.join(" ")),
    }
}

/// Runs a command.
fn once(node: &Node, words: &[&str]) -> anyhow::Result<String> {
    match node.call(words, COMMAND)? {
        Said::Well(said) => Ok(said),
        Said::Failed(why) => bail!("{}: {why}", node_name(node.manager)),
        Said::Nothing => {
            bail!("{}: {} has no answer in {COMMAND:?}", node_name(node.manager), words.join(" "))
        }
    }
}

const ROUNDS: u64 = 100;
/// How long a command may take, with what it waits for.
const COMMAND: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_follows_from_the_seed() {
        let draw = |seed: u64| {
            let mut random = Random(seed | 1 << 63);
            (0..20).map(|_| random.one_of(vec![4, 5, 6])).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!([4, 5, 6].iter().all(|one| draw(7).contains(one)));
    }
}
