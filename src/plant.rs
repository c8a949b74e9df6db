//! Defects on request, for tests that prove that a checker can fail. Only in builds with the
//! feature `plant`, which no release build has.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

static PLANTED: AtomicU8 = AtomicU8::new(0);

/// Plants `alloc` (a box a packet) or `copy` (a copy of the payload a packet); anything else, none.
pub fn set(defect: &str) {
    PLANTED.store(
        match defect {
            "alloc" => 1,
            "copy" => 2,
            _ => 0,
        },
        Relaxed,
    );
}

/// Does the planted defect to a packet on its way.
pub fn defect(packet: &[u8]) {
    match PLANTED.load(Relaxed) {
        1 => {
            std::hint::black_box(Box::new(packet.len()));
        }
        2 => {
            let mut copy = [0; 1 << 16];
            copy[..packet.len()].copy_from_slice(packet);
            std::hint::black_box(&copy);
        }
        _ => {}
    }
}
