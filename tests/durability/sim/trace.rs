//! What happened in a run, in order: the newest events to read, and a hash of all of them.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
};

/// The events of a run.
pub struct Trace {
    /// Milliseconds since the run began.
    pub now: u64,
    hash: u64,
    newest: VecDeque<String>,
}

impl Trace {
    /// Makes one without events.
    pub fn new() -> Self {
        Self { now: 0, hash: FNV_OFFSET, newest: VecDeque::new() }
    }

    /// Notes an event.
    pub fn note(&mut self, event: fmt::Arguments<'_>) {
        let mut line = format!("{:>7} ms  ", self.now);
        // A string takes everything.
        let _ = line.write_fmt(event);
        self.mix(line.as_bytes());
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(line);
    }

    /// Counts an event that is too frequent to be read.
    pub fn count(&mut self, words: &[u64]) {
        self.mix(&self.now.to_be_bytes());
        for word in words {
            self.mix(&word.to_be_bytes());
        }
    }

    /// Returns the hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Lists the newest events.
    pub fn newest(&self) -> Vec<String> {
        self.newest.iter().cloned().collect()
    }

    /// FNV-1a.
    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
/// Enough for what led to a violation, few enough to be read.
const KEPT: usize = 400;
