//! Functions of the packet path and the tables, measured: nanoseconds a call, the median of many
//! runs. `cargo xtask bench` runs this; `cargo bench --bench bench WORD` measures what has WORD in
//! its name.

use std::{hint::black_box, time::Instant};

use overlay::types::{DropCounts, DropReason, NodeId};

/// How many runs the median is of.
const RUNS: usize = 31;
/// How long a run takes at least, in nanoseconds: far above the clock's grain.
const RUN_NS: u128 = 2_000_000;

/// Measures the functions whose name holds the wanted word.
struct Bench {
    wanted: Option<String>,
}

impl Bench {
    fn measure<T>(&self, name: &str, mut function: impl FnMut() -> T) {
        if self.wanted.as_ref().is_some_and(|word| !name.contains(word)) {
            return;
        }
        let mut run = |calls: u32| {
            let start = Instant::now();
            for _ in 0..calls {
                black_box(function());
            }
            start.elapsed().as_nanos()
        };
        let mut calls = 1;
        while run(calls) < RUN_NS {
            calls *= 2;
        }
        let mut runs: Vec<f64> = (0..RUNS).map(|_| run(calls) as f64 / f64::from(calls)).collect();
        runs.sort_by(f64::total_cmp);
        println!("{name:<40} {:>12.1} ns", runs[RUNS / 2]);
    }
}

fn main() {
    // cargo passes `--bench`; a word is a name's part.
    let bench = Bench { wanted: std::env::args().skip(1).find(|word| !word.starts_with('-')) };

    let mut counts = DropCounts::default();
    bench.measure("types: count a drop", || {
        counts.add(black_box(DropReason::Replay), 1);
    });
    let id = NodeId::from_bytes([7; 16]).to_string();
    bench.measure("types: parse an id", || black_box(&id).parse::<NodeId>());
}
