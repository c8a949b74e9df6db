//! Where and of what a figure was measured.

use std::{fs, thread};

use anyhow::Context;

use crate::{process, workspace};

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
