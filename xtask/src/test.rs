//! `cargo xtask test`: every test there is; its last line is the totals.

use std::process::ExitCode;

use crate::{process, process::say, system, userns, workspace::cargo};

/// Runs all tests: of the library, of this tool, and those of netns-scripts in network namespaces.
///
/// Nothing is skipped. As root missing system tools are installed by the distribution's package
/// manager; without root all of it runs in a user namespace.
#[derive(clap::Args)]
pub struct Args {}

/// Passed and failed tests, summed over the test programs.
#[derive(Default, Debug, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
}

impl Totals {
    /// Counts what a summary line of a test program says.
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let count = |word: &str| {
            let before = rest.split(';').find_map(|part| part.trim().strip_suffix(word))?;
            before.split_whitespace().last()?.parse::<u64>().ok()
        };
        self.passed += count(" passed").unwrap_or(0);
        self.failed += count(" failed").unwrap_or(0);
    }
}

/// Fails if a test does, or if they cannot be built.
pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    system::need(system::LAB)?;
    system::need(system::TESTS)?;
    if !rustix::process::geteuid().is_root() {
        // Inside there is no way to a registry.
        let built = process::status(cargo(TESTS).arg("--no-run"))?;
        anyhow::ensure!(built.success(), "the tests cannot be built: {built}");
    }
    if let Some(code) = userns::reenter(&[("CARGO_NET_OFFLINE", "true".as_ref())])? {
        return Ok(code);
    }
    // Docker's daemon works for the real root only, and its test says so elsewhere.
    if !userns::inside() {
        for programs in system::DOCKER {
            system::need(programs)?;
        }
    }
    let mut totals = Totals::default();
    let mut all = cargo(TESTS);
    let status = process::lines(&mut all, |line| {
        totals.add(line);
        say(line);
    })?;
    if !status.success() && totals.failed == 0 {
        process::complain(format_args!("xtask: `cargo test` ended with {status}"));
    }
    say(format_args!("{} passed, {} failed", totals.passed, totals.failed));
    let passed = status.success() && totals.failed == 0;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// With all features: a test that needs one (a planted defect, say) would otherwise be left out in
/// silence.
const TESTS: [&str; 4] = ["test", "--workspace", "--all-features", "--no-fail-fast"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_added_up() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
            "test tests::passed ... ok",
        ] {
            totals.add(line);
        }
        assert_eq!(totals, Totals { passed: 13, failed: 2 });
    }
}
