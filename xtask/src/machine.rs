//! Where and of what a figure was measured, and that nothing else was measured meanwhile.

use std::{
    fs::{self, File},
    thread,
    time::Duration,
};

use anyhow::Context;
use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    process::{self, complain},
    signals, workspace,
};

/// Waits until no other measurement runs on this machine, and holds others up for as long as what it
/// returns is kept: two at once would measure each other.
pub fn alone() -> anyhow::Result<File> {
    let path = std::env::temp_dir().join("bench.lock");
    let open = || format!("open {}", path.display());
    let file = File::options().create(true).append(true).open(&path).with_context(open)?;
    let mut told = false;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
        }
        signals::check()?;
        if !told {
            complain(format_args!("waiting for another measurement ({})", path.display()));
            told = true;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Returns commit and machine as two members of a JSON object.
pub fn json() -> anyhow::Result<String> {
    let commit = process::output(
        process::command(["git", "describe", "--always", "--dirty"]).current_dir(workspace::root()),
    )?;
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read the processor's name")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    Ok(format!(
        "  \"commit\": {:?},\n  \"machine\": {{\"kernel\": {:?}, \"model\": {:?}, \"cpus\": {cpus}}}",
        commit.trim(),
        kernel.trim(),
        model.map_or("", |(_, name)| name)
    ))
}
