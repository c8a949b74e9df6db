//! The command line of a node.

use std::process::ExitCode;

use clap::Parser as _;
use overlay::cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    Cli::parse().run().await
}
