//! Figures, and what they must be.

use std::fmt;

use super::wire::{Change, now_ns};

/// How many delays took so many milliseconds.
pub struct Delays(pub Vec<u64>);

/// What was judged so far.
#[derive(Default)]
pub struct Verdict {
    missed: Vec<String>,
}

impl Delays {
    /// How long changes took to be answered.
    pub fn of_answers(changes: &[Change]) -> Self {
        let mut by_ms = vec![0; 60_000];
        for change in changes {
            let ms = change.answered_ns.saturating_sub(change.asked_ns) / 1_000_000;
            by_ms[(ms as usize).min(59_999)] += 1;
        }
        Self(by_ms)
    }

    /// The time within which that share of all was.
    pub fn percentile(&self, share: f64) -> u64 {
        let mut left = (self.0.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let place = self.0.iter().position(|here| {
            let found = *here >= left && left > 0;
            left = left.saturating_sub(*here);
            found
        });
        place.unwrap_or(0) as u64
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: u64 = self.0.iter().sum();
        let (p50, p99) = (self.percentile(0.5), self.percentile(0.99));
        let longest = self.0.iter().rposition(|here| *here > 0).unwrap_or(0);
        write!(f, "{count} times, p50 {p50} ms, p99 {p99} ms, longest {longest} ms")
    }
}

impl Verdict {
    /// Prints a figure and whether it is as it must be.
    pub fn judge(&mut self, line: String, held: bool, bar: &str) {
        println!("{line}: {} ({bar})", if held { "held" } else { "MISSED" });
        if !held {
            self.missed.push(line);
        }
    }

    /// Fails if something was not as it must be.
    pub fn end(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.missed.is_empty(), "missed: {}", self.missed.join("; "));
        Ok(())
    }
}

/// The one of sorted values below which that share of them is.
pub fn at(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

pub fn since(begun: u64) -> f64 {
    seconds(now_ns() - begun)
}

pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
