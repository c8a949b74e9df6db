//! Defects on request, for tests that prove that a checker can fail. Only in builds with the
//! feature `plant`, which no release build has.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

static PLANTED: AtomicU8 = AtomicU8::new(NONE);

/// Plants `alloc` (a box a packet), `copy` (a copy of the payload a packet), `index` (an index
/// that the parser of inner packets does not check), `acknowledge` (a command is acknowledged before
/// it is durable), `vote` (a vote is not kept), `gap` (an agent takes a delta that does not go on from
/// its table), `drop` (an agent loses one change), `allocate` (what is handed out does not come of the log alone) or `snapshot` (the
/// checksum of a snapshot that comes from another manager is not looked at); anything else, none.
pub fn set(defect: &str) {
    let number = match defect {
        "alloc" => ALLOC,
        "copy" => COPY,
        "index" => INDEX,
        "acknowledge" => ACKNOWLEDGE,
        "vote" => VOTE,
        "gap" => GAP,
        "drop" => DROP,
        "allocate" => ALLOCATE,
        "snapshot" => SNAPSHOT,
        _ => NONE,
    };
    PLANTED.store(number, Relaxed);
}

/// Does the planted defect to a packet on its way.
pub fn defect(packet: &[u8]) {
    match PLANTED.load(Relaxed) {
        ALLOC => {
            std::hint::black_box(Box::new(packet.len()));
        }
        COPY => {
            let mut copy = [0; 1 << 16];
            copy[..packet.len()].copy_from_slice(packet);
            std::hint::black_box(&copy);
        }
        _ => {}
    }
}

/// Reads a byte of a packet without asking whether it is there, if that defect is planted.
pub fn index(packet: &[u8], at: usize) {
    if PLANTED.load(Relaxed) == INDEX {
        std::hint::black_box(packet[at]);
    }
}

/// Tells whether commands are acknowledged before they are durable.
pub fn acknowledges_early() -> bool {
    PLANTED.load(Relaxed) == ACKNOWLEDGE
}

/// Tells whether votes are not kept.
pub fn forgets_votes() -> bool {
    PLANTED.load(Relaxed) == VOTE
}

/// Tells whether an agent takes deltas wherever they go on from.
pub fn takes_gaps() -> bool {
    PLANTED.load(Relaxed) == GAP
}

/// Tells once that a change is lost, if that defect is planted.
pub fn loses_a_change() -> bool {
    PLANTED.compare_exchange(DROP, NONE, Relaxed, Relaxed).is_ok()
}

/// Tells now and then to leave a number out, if that defect is planted.
pub fn skips_a_number() -> bool {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    PLANTED.load(Relaxed) == ALLOCATE && ASKED.fetch_add(1, Relaxed).is_multiple_of(7)
}

/// Tells whether the checksum of a snapshot from another manager is not looked at.
pub fn takes_bent_snapshots() -> bool {
    PLANTED.load(Relaxed) == SNAPSHOT
}

const NONE: u8 = 0;
const ALLOC: u8 = 1;
const COPY: u8 = 2;
const INDEX: u8 = 3;
const ACKNOWLEDGE: u8 = 4;
const VOTE: u8 = 5;
const GAP: u8 = 6;
const ALLOCATE: u8 = 7;
const SNAPSHOT: u8 = 8;
const DROP: u8 = 9;
