//! `cargo xtask fuzz`: cargo-fuzz on the targets of tests/fuzz.

use std::{fs, process::ExitCode};

use anyhow::{Context, bail};

use crate::{
    process::{self, command, say},
    workspace,
};

/// Runs one fuzz target, or lists them.
///
/// Needs a nightly toolchain and cargo-fuzz.
#[derive(clap::Args)]
pub struct Args {
    /// The target, a file of tests/fuzz/fuzz_targets without its ending
    target: Option<String>,
    /// How long to run
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs the target until its time is over or it finds something.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let targets = targets()?;
    let Some(target) = &args.target else {
        targets.iter().for_each(say);
        return Ok(ExitCode::SUCCESS);
    };
    if !targets.contains(target) {
        bail!("there is no fuzz target '{target}'; there are: {}", targets.join(", "));
    }
    let tried = |words: &[&str], advice: &str| {
        process::output(&mut command(words))
            .map_err(|error| error.context(format!("not found: {} ({advice})", words.join(" "))))
    };
    tried(&["cargo", "+nightly", "--version"], "rustup toolchain install nightly")?;
    tried(&["cargo", "fuzz", "--version"], "cargo install cargo-fuzz")?;
    let time = format!("-max_total_time={}", args.seconds);
    let mut fuzz = command([
        "cargo",
        "+nightly",
        "fuzz",
        "run",
        "--fuzz-dir",
        "tests/fuzz",
        target,
        "--",
        &time,
    ]);
    // The toolchain that runs us must not choose that of the child.
    fuzz.current_dir(workspace::root()).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    process::run(&mut fuzz)?;
    Ok(ExitCode::SUCCESS)
}

fn targets() -> anyhow::Result<Vec<String>> {
    let folder = workspace::root().join("tests/fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}
