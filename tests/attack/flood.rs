//! 100,000 initiations a second from many sources, each with a right mac1: whoever knows the
//! victim's public key can make them. Honest peers still get their sessions, and memory stays
//! bounded. The victim is a process of its own, so that its memory can be told apart.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use aws_lc_rs::{digest, hmac};
use overlay::{
    engine::session::public_key,
    io::udp::{DataSocket, open_sender},
    wire::handshake::{INITIATION_LEN, INITIATION_NOISE_LEN, Initiation, MAC_LEN},
};

use crate::{
    lab::{self, Host, Lab},
    member::Member,
    process::VictimProcess,
    victim::{VICTIM_NODE, private_key},
};

const RATE: u64 = 100_000;
const HONEST: u16 = 100;
/// The flood alone, so that load is noticed before the first honest peer comes.
const LEAD: Duration = Duration::from_secs(1);
/// What each honest handshake may take.
const LIMIT: Duration = Duration::from_secs(5);
const MAX_GROWTH_KIB: u64 = 16 << 10;

/// The test.
pub fn a_handshake_flood_does_not_keep_peers_out() {
    let lab = Lab::new();
    let mut process = VictimProcess::start(&lab);
    let mut members: Vec<Member> =
        (0..HONEST).map(|i| Member::new(&lab, 10 + i, lab::honest_address(10 + i))).collect();
    process.ask(&format!("peers 10 {HONEST}"));
    let initiations = initiations();
    let resting = process.memory_kib("VmRSS");
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let (flood, took) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let flooding = async || flood(&initiations, &stop);
            lab.inside(Host::Third, flooding)
        });
        while begun.elapsed() < LEAD {
            std::thread::sleep(Duration::from_millis(10));
        }
        let took = handshakes(&mut members);
        while begun.elapsed() < LEAD + LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Relaxed);
        (flood.join().expect("no panic"), took)
    });
    let peak = process.memory_kib("VmHWM");
    let done = took.iter().flatten().count();
    let slowest = took.iter().flatten().max().copied().unwrap_or_default();
    println!(
        "{} initiations a second from {} sources for {:.1} s; {done} of {HONEST} honest handshakes, slowest {slowest:.2?}; memory {resting} KiB, then at most {peak} KiB",
        (flood.sent as f64 / flood.lasted.as_secs_f64()) as u64,
        flood.sources,
        flood.lasted.as_secs_f64(),
    );
    println!("the victim's drops: {}", process.ask("drops"));
    assert!(
        flood.sent as f64 >= 0.9 * RATE as f64 * flood.lasted.as_secs_f64(),
        "too slow a flood"
    );
    assert!(done * 100 >= usize::from(HONEST) * 99, "{done} of {HONEST} within {LIMIT:?}");
    assert!(peak - resting <= MAX_GROWTH_KIB, "memory grew by {} KiB", peak - resting);
}

/// Lets every member shake hands; tells how long each took, if it was within the limit.
pub fn handshakes(members: &mut [Member]) -> Vec<Option<Duration>> {
    let begun = Instant::now();
    let mut took = vec![None; members.len()];
    members.iter_mut().for_each(Member::demand);
    while begun.elapsed() < LIMIT && took.contains(&None) {
        for (member, took) in members.iter_mut().zip(&mut took) {
            member.drive();
            if took.is_none() && member.is_up() {
                *took = Some(begun.elapsed());
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    took
}

/// What was sent.
struct Flood {
    sent: u64,
    sources: u64,
    lasted: Duration,
}

/// Sends at the rate until it is told to stop: a few datagrams a call, each call from another source
/// than the one before, and new sources all the time.
fn flood(initiations: &[u8], stop: &AtomicBool) -> anyhow::Result<Flood> {
    let victim = lab::socket(lab::VICTIM);
    let mut sources = 0;
    let mut open = || {
        sources += 1;
        open_sender(crowd_address(sources))
    };
    let mut senders = (0..SENDERS).map(|_| open()).collect::<anyhow::Result<Vec<DataSocket>>>()?;
    let mut turn = initiations.chunks(RUN * INITIATION_LEN).cycle().zip((0..SENDERS).cycle());
    let (begun, mut sent, mut refreshed) = (Instant::now(), 0u64, Instant::now());
    while !stop.load(Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * RATE as f64) as u64;
        if sent >= due {
            std::thread::sleep(Duration::from_micros(500));
        }
        for (run, sender) in
            turn.by_ref().take((due.saturating_sub(sent) as usize).min(BURST) / RUN)
        {
            // What the host cannot send was not sent.
            if senders[sender].send(run, INITIATION_LEN, &victim).is_ok() {
                sent += RUN as u64;
            }
        }
        if refreshed.elapsed() >= Duration::from_millis(10) {
            refreshed = Instant::now();
            for sender in senders.iter_mut().take(FRESH) {
                *sender = open()?;
            }
            senders.rotate_left(FRESH);
        }
    }
    Ok(Flood { sent, sources, lasted: begun.elapsed() })
}

/// Datagrams a call.
const RUN: usize = 4;
/// Sockets open at a time, and how many of them are exchanged for new sources every 10 ms.
const SENDERS: usize = 256;
const FRESH: usize = 16;
/// The clock is looked at after so many.
const BURST: usize = 500;

fn crowd_address(number: u64) -> IpAddr {
    // A step that is odd reaches all 65,536 addresses before one comes again.
    let [a, b] = ((number as u16).wrapping_mul(40_503)).to_be_bytes();
    IpAddr::from([198, 19, a, b])
}

/// One after the other, as many initiations as a second has, which are right as far as can be told
/// without their sender's key.
fn initiations() -> Vec<u8> {
    let public = public_key(&private_key(VICTIM_NODE)).expect("a key");
    let label = [&b"overlay mac1 v1"[..], &public].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, digest::digest(&digest::SHA256, &label).as_ref());
    let make = |number: u32| {
        let mut noise = [0; INITIATION_NOISE_LEN];
        aws_lc_rs::rand::fill(&mut noise).expect("randomness");
        let mut made =
            Initiation { sender: number, epoch: 1, noise, mac1: [0; MAC_LEN], mac2: [0; MAC_LEN] };
        let mac = hmac::sign(&key, &made.emit()[..INITIATION_LEN - 2 * MAC_LEN]);
        made.mac1.copy_from_slice(&mac.as_ref()[..MAC_LEN]);
        made.emit()
    };
    (0..RATE as u32).flat_map(make).collect()
}
