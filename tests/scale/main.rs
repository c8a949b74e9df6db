//! Many agents against one manager: the product's own link code without a data plane, over TLS and the
//! loopback, in several processes. `cargo xtask scale` runs this.
//!
//! ```text
//! driver -- starts --> manager process (log on disk)
//!    |                     ^  streams, attachments
//!    '----- starts --> agents processes, some hundred agents each
//! ```
//! Agent `i` takes part in network `k` of `1..=K` if `i` is a multiple of `k`: the largest network has all
//! agents, the others follow Zipf's law.

mod agents;
mod driver;
mod manager;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let done = match words[..] {
        ["manager", folder] => runtime.block_on(manager::run(folder)),
        ["agents", first, count, networks] => runtime.block_on(agents::run(first, count, networks)),
        [agents, networks] => runtime.block_on(driver::run(agents, networks)),
        _ => Err(anyhow::anyhow!("say AGENTS NETWORKS")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}
