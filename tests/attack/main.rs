//! Attacks on a node, by those who may not and by those who may: forged and replayed datagrams, a
//! flood of handshakes, and every input that the fuzz targets ever found worth keeping.
//!
//! ```text
//!   [member]---veth---\
//!   [third]----veth----(victim)--tun--[container]
//! ```
//! The victim is a real data plane. The tests run one after the other, because they count exactly
//! what they send and because one of them measures time; so this file has its own `main`.

mod corpus;
mod crowd;
mod flood;
mod forged;
mod lab;
mod member;
mod process;
mod replayed;
mod victim;

use std::{panic::catch_unwind, process::ExitCode};

const TESTS: [(&str, fn()); 5] = [
    ("corpus_is_replayed", corpus::corpus_is_replayed),
    ("forged_datagrams_are_dropped_and_counted", forged::forged_datagrams_are_dropped_and_counted),
    (
        "replayed_datagrams_are_dropped_and_counted",
        replayed::replayed_datagrams_are_dropped_and_counted,
    ),
    (
        "a_thousand_peers_and_endpoints_are_held_in_little",
        crowd::a_thousand_peers_and_endpoints_are_held_in_little,
    ),
    ("a_handshake_flood_does_not_keep_peers_out", flood::a_handshake_flood_does_not_keep_peers_out),
];

fn main() -> ExitCode {
    if std::env::var_os(process::VICTIM).is_some() {
        process::victim();
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(*f));
    let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| wanted(name)).collect();
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, test) in &chosen {
        let result = if catch_unwind(*test).is_ok() { "ok" } else { "FAILED" };
        failed += usize::from(result != "ok");
        println!("test {name} ... {result}");
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out\n",
        chosen.len() - failed,
        TESTS.len() - chosen.len()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
