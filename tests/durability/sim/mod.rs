//! Managers, agents and clients in one process under a time of their own, with faults drawn from a seed:
//! what was acknowledged stays, histories are linearizable, no number is given twice, tables are what
//! the cluster was, and the same seed gives the same events. `cargo xtask prove sim` runs many seeds; 200
//! are always run.
//!
//! ```text
//! client -> Log -> openraft -> Bus -> Network -> Log of another manager      each manager has a runtime of
//!             '-> Disk          |                                            its own, whose clock stands
//!             '-> Dispatcher -> Bus -> Network -> Agent -> Replica           still until World lets it go on
//!             '-> History: one state a revision
//! ```

mod agent;
mod cases;
mod client;
mod faults;
mod history;
mod manager;
mod members;
mod network;
mod stream;
mod streams;
mod trace;
mod world;

use std::{
    collections::BTreeSet,
    env,
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use overlay::{
    manager::simulated::{ManagerKey, Trust},
    plant,
};

use self::world::{Ended, Figures};

/// The secrets of the run's cluster; nothing in a run depends on what they are.
fn trust() -> &'static Arc<Trust> {
    static TRUST: OnceLock<Arc<Trust>> = OnceLock::new();
    TRUST.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let key = ManagerKey::create(folder.path()).unwrap();
        Arc::new(Trust::new([9; 16], key).unwrap())
    })
}

/// Runs seeds on some threads until one fails, and returns what was seen, and that one.
fn run(first: u64, seeds: u64, threads: u64) -> (Seen, Option<(u64, Ended)>) {
    let next = Arc::new(AtomicU64::new(first));
    let (ended, endings) = mpsc::channel();
    for _ in 0..threads {
        let (next, ended) = (next.clone(), ended.clone());
        // Not waited for: a run that does not end is said to.
        thread::spawn(move || {
            loop {
                let seed = next.fetch_add(1, Relaxed);
                if seed >= first + seeds || ended.send((seed, world::run(seed, trust()))).is_err() {
                    return;
                }
            }
        });
    }
    drop(ended);
    let mut seen = Seen::default();
    while seen.seeds < seeds {
        let newest = next.load(Relaxed);
        let (seed, run) = endings
            .recv_timeout(LONGEST)
            .unwrap_or_else(|_| panic!("a run before seed {newest} does not end, or has panicked"));
        if run.wrong.is_some() {
            return (seen, Some((seed, run)));
        }
        seen.add(&run);
        if seen.seeds.is_multiple_of(100) {
            println!("{} of {seeds} seeds", seen.seeds);
        }
    }
    (seen, None)
}

/// What was seen in runs that went well.
#[derive(Default)]
struct Seen {
    seeds: u64,
    /// Of all events of all seeds, in whichever order they ended.
    hash: u64,
    sums: Figures,
    fewest_faults: u64,
    fewest_writes: u64,
    fewest_reads: u64,
}

impl Seen {
    fn add(&mut self, ended: &Ended) {
        let figures = &ended.figures;
        let first = self.seeds == 0;
        let fewest = |so_far: u64, now: u64| if first { now } else { so_far.min(now) };
        self.fewest_faults = fewest(self.fewest_faults, figures.faults);
        self.fewest_writes = fewest(self.fewest_writes, figures.writes);
        self.fewest_reads = fewest(self.fewest_reads, figures.reads);
        self.seeds += 1;
        self.hash = self.hash.wrapping_add(ended.hash);
        self.sums.add(figures);
    }

    fn json(&self, planted: Option<&str>, failed: Option<u64>, started: Instant) -> String {
        let Figures { ms, faults, writes, reads, refused, unknown, .. } = self.sums;
        let Figures { leaders, terms_of_two, tables, resyncs, bent, replaced, .. } = self.sums;
        let numbers = [
            ("seeds", self.seeds),
            ("virtual_s", ms / 1000),
            ("faults", faults),
            ("fewest_faults", self.fewest_faults),
            ("writes", writes),
            ("fewest_writes", self.fewest_writes),
            ("reads", reads),
            ("fewest_reads", self.fewest_reads),
            ("refused", refused),
            ("unknown", unknown),
            ("leaders", leaders),
            ("terms_of_two_leaders", terms_of_two),
            ("tables", tables),
            ("resyncs", resyncs),
            ("snapshots_bent", bent),
            ("managers_replaced", replaced),
        ];
        let numbers = numbers.map(|(name, number)| format!("\"{name}\": {number}")).join(", ");
        let planted = planted.map_or("null".to_owned(), |defect| format!("\"{defect}\""));
        let failed = failed.map_or("null".to_owned(), |seed| seed.to_string());
        let seconds = started.elapsed().as_secs_f64();
        format!(
            "{{{numbers}, \"hash\": \"{:016x}\", \"planted\": {planted}, \"failed_seed\": {failed}, \"seconds\": {seconds:.1}}}",
            self.hash
        )
    }
}

fn say(seed: u64, ended: &Ended) -> String {
    let wrong = ended.wrong.as_deref().unwrap_or("nothing is wrong");
    format!("{}\nseed {seed}: {wrong}", ended.events.join("\n"))
}

/// Runs seeds on this thread, and checks that they ask enough.
fn hold(first: u64) {
    let (seen, failed) = run(first, QUARTER, 1);
    if let Some((seed, ended)) = failed {
        panic!("{}", say(seed, &ended));
    }
    assert!(seen.fewest_faults >= 20, "{} faults", seen.fewest_faults);
    assert!(seen.fewest_writes >= 200, "{} writes", seen.fewest_writes);
    assert!(seen.fewest_reads >= 200, "{} reads", seen.fewest_reads);
    assert!(seen.sums.bent > 0, "no snapshot was bent");
    assert!(seen.sums.resyncs > 0, "no agent asked for a snapshot");
    assert!(seen.sums.replaced > 0, "no manager was replaced");
}

#[test]
fn the_first_50_seeds_hold() {
    hold(0);
}

#[test]
fn the_second_50_seeds_hold() {
    hold(QUARTER);
}

#[test]
fn the_third_50_seeds_hold() {
    hold(2 * QUARTER);
}

#[test]
fn the_last_50_seeds_hold() {
    hold(3 * QUARTER);
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let mut hashes = BTreeSet::new();
    for seed in 1000..1004 {
        let [one, other] = [(), ()].map(|()| {
            let run = thread::spawn(move || world::run(seed, trust()));
            run.join().expect("a run does not panic")
        });
        let differ = one.events.iter().zip(&other.events).find(|(one, other)| one != other);
        assert_eq!(one.hash, other.hash, "seed {seed}: {differ:?}");
        assert!(hashes.insert(one.hash), "all seeds are the same");
    }
}

/// As many seeds as `SIM_SEEDS` says, from `SIM_FIRST` on, with the defect of `SIM_PLANT`, which must
/// be found then.
#[test]
fn seeds_hold() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (first, seeds) = (number("SIM_FIRST").unwrap_or(2000), number("SIM_SEEDS").unwrap_or(1));
    let planted = env::var("SIM_PLANT").ok();
    plant::set(planted.as_deref().unwrap_or("none"));
    let threads = number("SIM_THREADS").unwrap_or(1);
    let started = Instant::now();
    let (seen, failed) = run(first, seeds, threads);
    if let Some((seed, ended)) = &failed {
        println!("{}", say(*seed, ended));
    }
    let wrong = failed.is_some();
    println!("figures: {}", seen.json(planted.as_deref(), failed.map(|(seed, _)| seed), started));
    assert_eq!(planted.is_some(), wrong);
}

/// The checks' own proof: each defect is found. A defect is one of the whole process, so each is planted
/// in another one.
fn is_found(defect: &str) {
    let mut run = Command::new(env::current_exe().unwrap());
    run.args(["--exact", "sim::seeds_hold", "--nocapture"]);
    run.env("SIM_PLANT", defect).env("SIM_FIRST", "0").env("SIM_SEEDS", "200");
    let output = run.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    is_found("acknowledge");
}

#[test]
fn a_forgotten_vote_is_found() {
    is_found("vote");
}

#[test]
fn a_delta_that_does_not_go_on_is_found() {
    is_found("gap");
}

#[test]
fn an_allocation_outside_the_log_is_found() {
    is_found("allocate");
}

#[test]
fn a_snapshot_that_is_not_checked_is_found() {
    is_found("snapshot");
}

const QUARTER: u64 = 50;
/// Many times what a run takes on a machine that is busy.
const LONGEST: Duration = Duration::from_secs(120);
