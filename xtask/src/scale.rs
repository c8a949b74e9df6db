//! `cargo xtask scale`: many agents against one manager, by tests/scale.

use std::process::ExitCode;

use crate::{
    machine,
    process::{self, say},
    workspace::cargo,
};

/// Many agents, without a data plane, against one manager over the loopback.
#[derive(clap::Args)]
pub struct Args {
    /// How many agents
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    agents: u32,
    /// How many networks; the largest has all agents, the others follow Zipf's law
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=4000))]
    networks: u32,
}

/// Prints the figures as they come.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (agents, networks) = (args.agents.to_string(), args.networks.to_string());
    process::run(&mut cargo(["bench", "--bench", "scale", "--no-run"]))?;
    let _alone = machine::alone()?;
    let mut run = cargo(["bench", "--quiet", "--bench", "scale", "--"]);
    run.args([&agents, &networks]);
    let status = process::lines(&mut run, |line| say(line))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
