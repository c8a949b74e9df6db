//! `cargo xtask prove powercut`: the power cuts of tests/durability at many points.

use std::process::ExitCode;

use super::{Args, durability, keep};

/// Fails if a write is lost, or if a planted defect is not found.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut settings = vec![("POWERCUT_POINTS", args.points.unwrap_or(POINTS).to_string())];
    if args.plant {
        settings.push(("POWERCUT_PLANT", "1".to_owned()));
    }
    let case = "powercut::acknowledged_writes_survive_power_cuts";
    let (code, figures) = durability(case, &settings)?;
    keep(if args.plant { "powercut-planted" } else { "powercut" }, &figures)?;
    Ok(code)
}

const POINTS: u64 = 1000;
