//! `cargo xtask scale`: many agents against several managers, by tests/scale.

use std::process::ExitCode;

use anyhow::ensure;

use crate::{
    machine,
    process::{self, say},
    workspace::cargo,
};

/// Many agents, without a data plane, against managers over the loopback.
#[derive(clap::Args)]
pub struct Args {
    /// How many agents
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=16_000))]
    agents: u32,
    /// How many endpoints; each agent has as many as another
    #[arg(long, default_value_t = 100_000)]
    endpoints: u32,
    /// How many agents take part in the largest network; the others follow Zipf's law [default: a
    /// tenth of all]
    #[arg(long)]
    largest: Option<u32>,
    /// How many managers; of three or more the one that leads is killed
    #[arg(long, default_value_t = 3, value_parser = managers)]
    managers: u32,
    /// For how many seconds changes are made
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=3600))]
    seconds: u32,
    /// Has one agent lose one change: it succeeds only if that is found
    #[arg(long, hide = true)]
    plant: bool,
}

fn managers(text: &str) -> Result<u32, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("use 1, 3 or 5".to_owned()),
    }
}

/// Prints the figures as they come; fails if one of them is not as it must be.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let largest = args.largest.unwrap_or((args.agents / 10).max(5));
    ensure!(largest <= args.agents, "the largest network has at most all agents");
    let mut build = cargo(["bench", "--bench", "scale", "--no-run"]);
    let mut run = cargo(["bench", "--quiet", "--bench", "scale"]);
    if args.plant {
        build.args(["--features", "plant"]);
        run.args(["--features", "plant"]);
    }
    process::run(&mut build)?;
    let _alone = machine::alone()?;
    let numbers = [args.managers, args.agents, args.endpoints, largest, args.seconds];
    run.arg("--").args(numbers.map(|number| number.to_string()));
    if args.plant {
        run.arg("plant");
    }
    let status = process::lines(&mut run, |line| say(line))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
