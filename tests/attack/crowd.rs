//! A node with 1,000 peers, a session with each, and 1,000 endpoints on as many networks: what one of
//! them costs, and all of them together.

use std::time::Instant;

use crate::{
    flood::handshakes,
    lab::{Lab, honest_address},
    member::Member,
    process::VictimProcess,
};

const COUNT: u16 = 1000;
/// The first peer's node.
const FIRST: u16 = 1000;
/// Members at a time: each has tables of its own.
const AT_ONCE: usize = 100;
const MAX_MIB: u64 = 64;

/// The test.
pub fn a_thousand_peers_and_endpoints_are_held_in_little() {
    let lab = Lab::new();
    let mut process = VictimProcess::start(&lab);
    let alone = process.memory_kib("VmRSS");
    assert_eq!(process.ask(&format!("peers {FIRST} {COUNT}")), "known");
    let known = process.memory_kib("VmRSS");
    let nodes: Vec<u16> = (FIRST..FIRST + COUNT).collect();
    let mut up = 0;
    for nodes in nodes.chunks(AT_ONCE) {
        let member = |node: &u16| Member::new(&lab, *node, honest_address(*node));
        let mut members: Vec<Member> = nodes.iter().map(member).collect();
        up += handshakes(&mut members).iter().flatten().count();
    }
    assert_eq!(up, usize::from(COUNT), "sessions");
    let sessions = process.memory_kib("VmRSS");
    let begun = Instant::now();
    assert_eq!(process.ask(&format!("endpoints {COUNT}")), "attached");
    let endpoints = process.memory_kib("VmRSS");
    println!("{COUNT} endpoints attached in {:.1} s", begun.elapsed().as_secs_f64());
    let each = |from: u64, to: u64| to.saturating_sub(from) * 1024 / u64::from(COUNT);
    println!(
        "{alone} KiB alone; a known peer {} bytes, its session {} more; an endpoint with its network {} bytes",
        each(alone, known),
        each(known, sessions),
        each(sessions, endpoints),
    );
    let peak = process.memory_kib("VmHWM") / 1024;
    println!("at most {peak} MiB");
    assert!(peak <= MAX_MIB, "{peak} MiB");
}
