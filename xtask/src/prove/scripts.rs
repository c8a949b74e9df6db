//! Those scripts of `netns-scripts` that take a number of rounds, at the numbers of a long run. A
//! script's own sentences are its samples.

use std::process::ExitCode;

use anyhow::bail;

use super::Args;
use crate::{
    process::{self, command, say},
    workspace::{self, Programs},
};

/// The agents of a sender, of a receiver and of both, killed again and again.
pub fn agents(args: &Args) -> anyhow::Result<ExitCode> {
    // A round is one kill of each of the three, and a second one straight after the first.
    rounds("agents", "restart.sh", args.points.unwrap_or(13), args)
}

/// The manager, killed again and again under a writer.
pub fn manager(args: &Args) -> anyhow::Result<ExitCode> {
    rounds("manager", "manager-restart.sh", args.points.unwrap_or(50), args)
}

/// A worker's kills, cut links and blips.
pub fn alive(args: &Args) -> anyhow::Result<ExitCode> {
    rounds("alive", "alive.sh", args.points.unwrap_or(20), args)
}

fn rounds(name: &str, script: &str, rounds: u64, args: &Args) -> anyhow::Result<ExitCode> {
    if args.plant {
        bail!("no defect is planted for '{name}'; 'powercut' has one");
    }
    let programs = Programs::build()?;
    let mut run = command([workspace::root().join("netns-scripts").join(script)]);
    run.arg(rounds.to_string()).env("OVERLAY_BIN", &programs.folder);
    let mut said = Vec::new();
    let own = format!("{}: ", script.trim_end_matches(".sh"));
    let status = process::lines(&mut run, |line| {
        if let Some(sentence) = line.strip_prefix(&own) {
            said.push(format!("{sentence:?}"));
        }
        say(line);
    })?;
    let figures = format!("{{\"rounds\": {rounds}, \"said\": [{}]}}", said.join(", "));
    super::keep(name, &figures)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
