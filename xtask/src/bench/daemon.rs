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
    let most = after.1.iter().map(|(thread, count)| {
        let earlier = before.1.iter().find(|earlier| earlier.0 == *thread);
        count - earlier.map_or(0, |earlier| earlier.1)
    });
    let switches = most.max().unwrap_or(0);
    Ok((Cost { ticks: after.0 - before.0, switches }, done))
}

fn ticks(daemon: Process) -> anyhow::Result<u64> {
    let stat = read(&format!("/proc/{}/stat", daemon.pid))?;
    // The name before may hold anything, so the fields are counted from its end: state is the first.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    field(11).zip(field(12)).map(|(user, system)| user + system).context("a process's times")
}

/// The voluntary switches of each thread.
fn switches(daemon: Process) -> anyhow::Result<Vec<(u64, u64)>> {
    let folder = format!("/proc/{}/task", daemon.pid);
    let mut switches = Vec::new();
    for thread in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let thread = thread.with_context(|| format!("list {folder}"))?.file_name();
        let thread = thread.to_string_lossy();
        // One may end meanwhile.
        let Ok(status) = fs::read_to_string(format!("{folder}/{thread}/status")) else { continue };
        switches.push((thread.parse()?, number(&status, "voluntary_ctxt_switches:")?));
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
