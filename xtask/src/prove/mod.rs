//! `cargo xtask prove`: the registry of long acceptance runs.

use std::process::ExitCode;

use anyhow::bail;

use crate::process::say;

/// Runs a long acceptance run, or lists them.
#[derive(clap::Args)]
pub struct Args {
    /// The run
    name: Option<String>,
}

/// A run, its sentence in the list, and what it does.
type Proof = (&'static str, &'static str, fn() -> anyhow::Result<ExitCode>);

/// The runs there are.
const PROOFS: &[Proof] = &[];

/// Runs one, or lists all.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let names: Vec<&str> = PROOFS.iter().map(|proof| proof.0).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let Some(name) = &args.name else {
        say(format_args!("long runs: {known}"));
        for (name, sentence, _) in PROOFS {
            say(format_args!("  {name:<16} {sentence}"));
        }
        return Ok(ExitCode::SUCCESS);
    };
    match PROOFS.iter().find(|proof| proof.0 == name) {
        Some(proof) => proof.2(),
        None => bail!("there is no long run '{name}'; there are: {known}"),
    }
}
