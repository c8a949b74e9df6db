//! What a daemon costs, as the kernel counts it.

use std::{fs, thread, time::Duration};

use anyhow::{Context, anyhow};

use crate::{lab::Process, signals};

/// What a daemon did in some time.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Processor time, in hundredths of a second.
    pub ticks: u64,
    /// The most voluntary switches of one of its threads.
    pub switches: u64,
    /// The same of those threads that forward packets.
    pub forwarding: u64,
}

/// The voluntary switches of a thread.
struct Switches {
    thread: u64,
    forwards: bool,
    count: u64,
}

/// Processor time of the machine outside idling, in seconds.
pub fn busy_seconds() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    // "cpu user nice system idle iowait irq softirq steal ..."
    let ticks: Vec<f64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        return Err(anyhow!("/proc/stat begins with '{line}'"));
    };
    Ok((user + nice + system + irq + softirq) / TICKS_A_SECOND)
}

/// The most memory that a daemon ever held, in bytes.
pub fn peak_memory(daemon: Process) -> anyhow::Result<u64> {
    let status = read(&format!("/proc/{}/status", daemon.pid))?;
    Ok(number(&status, "VmHWM:")? * 1024)
}

/// What a daemon costs while time passes.
pub fn cost(daemon: Process, time: Duration) -> anyhow::Result<Cost> {
    cost_of(daemon, || {
        let step = Duration::from_millis(100);
        for _ in 0..time.as_millis() / step.as_millis() {
            signals::check()?;
            thread::sleep(step);
        }
        Ok(())
    })
    .map(|(cost, ())| cost)
}

/// What a daemon costs while something is done.
pub fn cost_of<T>(
    daemon: Process,
    act: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(Cost, T)> {
    let before = (ticks(daemon)?, switches(daemon)?);
    let done = act()?;
    let after = (ticks(daemon)?, switches(daemon)?);
    let most = |of_all: bool| {
        let asked = after.1.iter().filter(|now| of_all || now.forwards);
        let counts = asked.map(|now| {
            let earlier = before.1.iter().find(|earlier| earlier.thread == now.thread);
            now.count - earlier.map_or(0, |earlier| earlier.count)
        });
        counts.max().unwrap_or(0)
    };
    let (ticks, switches, forwarding) = (after.0 - before.0, most(true), most(false));
    Ok((Cost { ticks, switches, forwarding }, done))
}

fn ticks(daemon: Process) -> anyhow::Result<u64> {
    let stat = read(&format!("/proc/{}/stat", daemon.pid))?;
    // The name before may hold anything, so the fields are counted from its end: state is the first.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    field(11).zip(field(12)).map(|(user, system)| user + system).context("a process's times")
}

fn switches(daemon: Process) -> anyhow::Result<Vec<Switches>> {
    let folder = format!("/proc/{}/task", daemon.pid);
    let mut switches = Vec::new();
    for thread in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let thread = thread.with_context(|| format!("list {folder}"))?.file_name();
        let thread = thread.to_string_lossy();
        // One may end meanwhile.
        let Ok(status) = fs::read_to_string(format!("{folder}/{thread}/status")) else { continue };
        let name = status.lines().find_map(|line| line.strip_prefix("Name:"));
        switches.push(Switches {
            thread: thread.parse()?,
            forwards: name.is_some_and(|name| name.trim().starts_with("overlay-w")),
            count: number(&status, "voluntary_ctxt_switches:")?,
        });
    }
    Ok(switches)
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn number(status: &str, name: &str) -> anyhow::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("a status without {name}"))
}

/// As the kernel counts towards user space, on every architecture that we build for.
const TICKS_A_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_what_it_uses() {
        let own = Process::running(std::process::id().cast_signed()).unwrap();
        assert!(peak_memory(own).unwrap() > 100_000);
        let (cost, ()) = cost_of(own, || {
            let begun = ticks(own)?;
            while ticks(own)? < begun + 2 {}
            thread::sleep(Duration::from_millis(1));
            Ok(())
        })
        .unwrap();
        assert!(cost.ticks >= 2 && cost.switches >= 1, "{cost:?}");
        assert!(busy_seconds().unwrap() > 0.0);
    }
}
