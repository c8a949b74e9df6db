//! `cargo xtask prove sim`: the simulation of tests/durability with many seeds, each of which is one run of
//! several managers with faults. A seed that fails is printed with its events, and is the same again with
//! `--first SEED --seeds 1`.

use std::{process::ExitCode, thread};

use anyhow::bail;

use super::{Args, durability};
use crate::process::say;

/// Fails if a seed does; with `--plant`, if a defect is not found.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.plant {
        let (code, figures) = seeds(args, args.points.unwrap_or(SEEDS), None)?;
        super::keep("sim", &figures)?;
        return Ok(code);
    }
    let mut all = Vec::new();
    for defect in DEFECTS {
        say(format_args!("planted: {defect}"));
        let (code, figures) = seeds(args, args.points.unwrap_or(FOUND_WITHIN), Some(defect))?;
        if code != ExitCode::SUCCESS {
            bail!("the planted defect '{defect}' is not found");
        }
        all.push(figures);
    }
    super::keep("sim-planted", &format!("[{}]", all.join(", ")))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs seeds, and returns their figures.
fn seeds(args: &Args, count: u64, defect: Option<&str>) -> anyhow::Result<(ExitCode, String)> {
    // One a thread: a seed keeps one busy.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut settings = vec![
        ("SIM_SEEDS", count.to_string()),
        ("SIM_FIRST", args.first.unwrap_or(0).to_string()),
        ("SIM_THREADS", threads.to_string()),
    ];
    settings.extend(defect.map(|defect| ("SIM_PLANT", defect.to_owned())));
    durability("sim::seeds_hold", &settings)
}

const SEEDS: u64 = 10_000;
/// What the simulation finds at all it finds within so many seeds.
const FOUND_WITHIN: u64 = 200;
/// See `plant` in the library.
const DEFECTS: [&str; 5] = ["acknowledge", "vote", "gap", "allocate", "snapshot"];
