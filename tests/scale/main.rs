//! Many agents against several managers: the product's own link code without a data plane, over TLS
//! and the loopback, in several processes. `cargo xtask scale` runs this.
//!
//! ```text
//! driver -- starts --> manager processes (a log on disk each, and their nodes' agents)
//!    |                     ^  streams, attachments
//!    '----- starts --> agents processes, some thousand agents each
//! ```
//! A cluster is made with nodes, networks and endpoints; then all of it starts cold, changes, loses the
//! manager that leads, and is compared at the end. Who takes part where is in `layout`.

mod agent;
mod agents;
mod cluster;
mod driver;
mod figures;
mod layout;
mod manager;
mod process;
mod truth;
mod wire;

use std::process::ExitCode;

use tokio::runtime::Builder;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let one = || Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let several = || Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
    let done = match words[..] {
        ["manager", folder] => several().block_on(manager::run(folder, None)),
        ["manager", folder, addr, token, name] => {
            several().block_on(manager::run(folder, Some([addr, token, name])))
        }
        ["agents", first, count, agents, endpoints, largest] => {
            one().block_on(agents::run(first, count, [agents, endpoints, largest]))
        }
        [managers, agents, endpoints, largest, churn_s, ref plant @ ..] => {
            let layout = [agents, endpoints, largest].map(str::to_owned);
            match (managers.parse(), churn_s.parse()) {
                (Ok(managers), Ok(churn_s)) => {
                    let plant = !plant.is_empty();
                    one().block_on(driver::Run { managers, layout, churn_s, plant }.run())
                }
                _ => Err(anyhow::anyhow!("MANAGERS and SECONDS are numbers")),
            }
        }
        _ => Err(anyhow::anyhow!("say MANAGERS AGENTS ENDPOINTS LARGEST SECONDS")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}
