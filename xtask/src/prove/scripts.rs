//! Those scripts of `netns-scripts` that can do more than the tests ask of them, at the numbers of a
//! long run. A script's own sentences are its samples.

use std::process::ExitCode;

use anyhow::bail;

use super::Args;
use crate::{
    process::{self, command, say},
    system,
    workspace::{self, Programs},
};

/// The agents of a sender, of a receiver and of both, killed again and again.
pub fn agents(args: &Args) -> anyhow::Result<ExitCode> {
    // A round is one kill of each of the three, and a second one straight after the first.
    script("agents", "restart.sh", &args.points.unwrap_or(13).to_string(), args)
}

/// The manager, killed again and again under a writer.
pub fn manager(args: &Args) -> anyhow::Result<ExitCode> {
    script("manager", "manager-restart.sh", &args.points.unwrap_or(50).to_string(), args)
}

/// A worker's kills, cut links and blips.
pub fn alive(args: &Args) -> anyhow::Result<ExitCode> {
    script("alive", "alive.sh", &args.points.unwrap_or(20).to_string(), args)
}

/// Certificates, a token and the root, changed under connections and a writer.
pub fn trust(args: &Args) -> anyhow::Result<ExitCode> {
    if args.points.is_some() {
        bail!("'trust' has no number of points");
    }
    script("trust", "trust.sh", "iperf3", args)
}

fn script(name: &str, script: &str, argument: &str, args: &Args) -> anyhow::Result<ExitCode> {
    if args.plant {
        bail!("no defect is planted for '{name}'; 'powercut' has one");
    }
    for programs in [system::LAB, system::TESTS, system::PROVE] {
        system::need(programs)?;
    }
    let programs = Programs::build()?;
    let mut run = command([workspace::root().join("netns-scripts").join(script)]);
    run.arg(argument).env("OVERLAY_BIN", &programs.folder);
    let mut said = Vec::new();
    let own = format!("{}: ", script.trim_end_matches(".sh"));
    let status = process::lines(&mut run, |line| {
        if let Some(sentence) = line.strip_prefix(&own) {
            said.push(format!("{sentence:?}"));
        }
        say(line);
    })?;
    let figures = format!("{{\"argument\": {argument:?}, \"said\": [{}]}}", said.join(", "));
    super::keep(name, &figures)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
