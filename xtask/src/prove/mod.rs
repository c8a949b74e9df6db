//! `cargo xtask prove`: the registry of long acceptance runs. A run prints its progress and a
//! summary, and leaves its figures with commit and machine in `target/prove/NAME.json`.

mod managers;
mod powercut;
mod scripts;
mod sim;

use std::{fs, process::ExitCode};

use anyhow::{Context, bail};

use crate::{machine, process, process::say, workspace};

/// Runs a long acceptance run, or lists them.
#[derive(clap::Args)]
pub struct Args {
    /// The run
    name: Option<String>,
    /// How many points, seeds or rounds; the run's own number unless given
    #[arg(
        long,
        visible_aliases = ["rounds", "seeds"],
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    points: Option<u64>,
    /// The first seed, of a run that has seeds
    #[arg(long, value_name = "SEED")]
    first: Option<u64>,
    /// Plant the run's defect: it succeeds only if it finds it
    #[arg(long)]
    plant: bool,
    /// Of 'failover': how many managers; 3 and then 5 unless given
    #[arg(long, value_name = "3|5", value_parser = managers)]
    managers: Option<usize>,
    /// Of 'failover': what befalls the one that leads; one fault after the other unless given
    #[arg(long, value_enum)]
    fault: Option<managers::Fault>,
    /// Of 'roles': what is drawn follows from it; printed, and another one each time unless given
    #[arg(long)]
    seed: Option<u64>,
}

fn managers(text: &str) -> Result<usize, String> {
    match text {
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("use 3 or 5".to_owned()),
    }
}

/// A run, its sentence in the list, and what it does.
type Proof = (&'static str, &'static str, fn(&Args) -> anyhow::Result<ExitCode>);

/// The runs there are.
const PROOFS: &[Proof] = &[
    ("agents", "agents killed 52 times cost no connection", scripts::agents),
    ("alive", "20 kills and 20 cuts take a worker down in time, 60 blips do not", scripts::alive),
    (
        "failover",
        "the manager that leads killed, stopped and cut off 100 times each, under clients",
        managers::failover,
    ),
    ("manager", "the manager killed 50 times under a writer loses nothing", scripts::manager),
    ("offloads", "every combination of offloads keeps the bytes", scripts::offloads),
    (
        "powercut",
        "power cuts at 1,000 points of a workload lose no acknowledged write",
        powercut::run,
    ),
    (
        "roles",
        "100 cycles of promote, demote, leave and join under clients lose nothing",
        managers::roles,
    ),
    ("sim", "10,000 seeds of managers with faults in a time of their own hold", sim::run),
    ("trust", "certificates, token and root change under iperf3 and a writer", scripts::trust),
];

/// Runs one, or lists all.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let names: Vec<&str> = PROOFS.iter().map(|proof| proof.0).collect();
    let known = names.join(", ");
    let Some(name) = &args.name else {
        say(format_args!("long runs: {known}"));
        for (name, sentence, _) in PROOFS {
            say(format_args!("  {name:<16} {sentence}"));
        }
        return Ok(ExitCode::SUCCESS);
    };
    if name != "failover" && (args.managers.is_some() || args.fault.is_some()) {
        bail!("'{name}' has neither --managers nor --fault; 'failover' has them");
    }
    if name != "roles" && args.seed.is_some() {
        bail!("'{name}' draws nothing; 'roles' has --seed");
    }
    if args.first.is_some() && name != "sim" {
        bail!("'{name}' has no seeds; 'sim' has");
    }
    match PROOFS.iter().find(|proof| proof.0 == name) {
        Some(proof) => proof.2(args),
        None => bail!("there is no long run '{name}'; there are: {known}"),
    }
}

/// Runs a case of tests/durability with these settings, and returns whether it held and its figures.
fn durability(case: &str, settings: &[(&str, String)]) -> anyhow::Result<(ExitCode, String)> {
    let mut run = workspace::cargo(["test", "--quiet", "--all-features", "--test", "durability"]);
    run.args(["--", "--exact", "--nocapture", case]);
    run.envs(settings.iter().map(|(name, value)| (name, value)));
    let mut figures = None;
    let status = process::lines(&mut run, |line| {
        if let Some(found) = line.strip_prefix("figures: ") {
            figures = Some(found.to_owned());
        }
        say(line);
    })?;
    let figures = figures.context("the run ended before its figures")?;
    Ok((if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }, figures))
}

/// Writes the figures of a run, a JSON value, with commit and machine.
fn keep(name: &str, figures: &str) -> anyhow::Result<()> {
    let folder = workspace::target()?.join("prove");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    let text = format!("{{\n{},\n  \"{name}\": {figures}\n}}\n", machine::json()?);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    say(format_args!("figures in {}", path.display()));
    Ok(())
}
