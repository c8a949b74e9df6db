//! `cargo xtask`: the project's own tools. One file per verb; what they share is in `process`
//! (children that end with us), `signals` (Ctrl-C), `workspace` (paths) and `system` (tools of the
//! distribution).

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod check;
mod demo;
mod dist;
mod fuzz;
mod lab;
mod machine;
mod process;
mod prove;
mod scale;
mod signals;
mod system;
mod test;
mod tidy;
mod traffic;
mod userns;
mod workspace;

/// The project's own tools.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Format, clippy, tidy and documentation: what must hold before a commit
    Check(check::Args),
    /// Who may import whom, where `unsafe` may be, how long files and functions may be
    Tidy(tidy::Args),
    /// All tests, those in network namespaces included
    Test(test::Args),
    /// Three nodes on this machine, a network, containers, traffic between them
    Demo(demo::Args),
    /// What is put on hosts: static programs, unit file, completions
    Dist(dist::Args),
    /// Nodes in network namespaces on a shared underlay, to try things on
    Lab(lab::Args),
    /// Measurements: functions, and containers beside the kernel's VXLAN
    Bench(bench::Args),
    /// Runs a fuzz target, or lists them
    Fuzz(fuzz::Args),
    /// Many agents against one manager
    Scale(scale::Args),
    /// The long acceptance runs
    Prove(prove::Args),
    #[command(hide = true)]
    Traffic(traffic::Args),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    // One end of a load has nothing to clean up: it ends when it is told to.
    let installed = match verb {
        Verb::Traffic(_) => Ok(()),
        _ => signals::install(),
    };
    let result = installed.and_then(|()| match verb {
        Verb::Check(args) => check::run(&args),
        Verb::Tidy(args) => tidy::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Dist(args) => dist::run(&args),
        Verb::Lab(args) => lab::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Scale(args) => scale::run(&args),
        Verb::Prove(args) => prove::run(&args),
        Verb::Traffic(args) => traffic::run(&args),
    });
    match result {
        Ok(code) => code,
        Err(error) if error.is::<signals::Interrupted>() => ExitCode::from(130),
        Err(error) => {
            process::complain(format_args!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
