//! `cargo xtask prove powercut`: the power cuts of tests/durability at many points.

use std::process::ExitCode;

use anyhow::Context;

use super::Args;
use crate::{process, process::say, workspace::cargo};

/// Fails if a write is lost, or if a planted defect is not found.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut run = cargo([
        "test",
        "--quiet",
        "--all-features",
        "--test",
        "durability",
        "--",
        "--exact",
        "--nocapture",
        "powercut::acknowledged_writes_survive_power_cuts",
    ]);
    run.env("POWERCUT_POINTS", args.points.unwrap_or(POINTS).to_string());
    if args.plant {
        run.env("POWERCUT_PLANT", "1");
    }
    let mut figures = None;
    let status = process::lines(&mut run, |line| {
        if let Some(found) = line.strip_prefix("figures: ") {
            figures = Some(found.to_owned());
        }
        say(line);
    })?;
    let figures = figures.context("the run ended before its figures")?;
    super::keep(if args.plant { "powercut-planted" } else { "powercut" }, &figures)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const POINTS: u64 = 1000;
