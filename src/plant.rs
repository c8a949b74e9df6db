//! Defects on request, for tests that prove that a checker can fail. Only in builds with the
//! feature `plant`, which no release build has.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

static PLANTED: AtomicU8 = AtomicU8::new(NONE);

/// Plants `alloc` (a box a packet), `copy` (a copy of the payload a packet), `index` (an index
/// that the parser of inner packets does not check) or `acknowledge` (a command is acknowledged
/// before it is durable); anything else, none.
pub fn set(defect: &str) {
    let number = match defect {
        "alloc" => ALLOC,
        "copy" => COPY,
        "index" => INDEX,
        "acknowledge" => ACKNOWLEDGE,
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

const NONE: u8 = 0;
const ALLOC: u8 = 1;
const COPY: u8 = 2;
const INDEX: u8 = 3;
const ACKNOWLEDGE: u8 = 4;
