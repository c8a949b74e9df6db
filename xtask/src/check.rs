//! `cargo xtask check`: everything that needs no test run.

use std::process::ExitCode;

use crate::{
    process::{complain, run as run_command},
    tidy,
    workspace::cargo,
};

/// Runs fmt --check, clippy -D warnings, tidy and doc -D warnings over the whole workspace.
#[derive(clap::Args)]
pub struct Args {}

/// Fails at the first of the four that does.
pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    complain("check: format");
    run_command(&mut cargo(["fmt", "--all", "--check"]))?;
    complain("check: tidy");
    tidy::run(&tidy::Args {})?;
    complain("check: clippy");
    run_command(&mut cargo([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))?;
    complain("check: documentation");
    let mut doc = cargo(["doc", "--quiet", "--workspace", "--no-deps"]);
    run_command(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    complain("check: all is well");
    Ok(ExitCode::SUCCESS)
}
