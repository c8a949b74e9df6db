//! Power cuts at seeded points of a workload, of the opening after it, and of the workload after
//! that. `cargo xtask prove powercut` runs many points; a few are always run.

use std::{env, time::Instant};

use overlay::{
    manager::log::{OpenError, Stopped},
    plant,
};
use tokio::runtime;

use crate::{
    disk::{Disk, Fault, Random},
    workload::{History, create, open, start},
};

/// What was seen over all points.
#[derive(Default)]
struct Seen {
    cuts: u64,
    twice: u64,
    acknowledged: u64,
    /// Commands that were found although nobody was told so.
    unacknowledged: u64,
    wrong: Vec<String>,
}

#[test]
fn acknowledged_writes_survive_power_cuts() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let points = number("POWERCUT_POINTS").unwrap_or(60);
    let planted = env::var("POWERCUT_PLANT").is_ok();
    if planted {
        plant::set("acknowledge");
    }
    let started = Instant::now();
    let mut seen = Seen::default();
    for seed in 0..points {
        if let Err(wrong) = point(seed, &mut seen) {
            println!("seed {seed}: {wrong}");
            seen.wrong.push(format!("seed {seed}: {wrong}"));
        }
        if (seed + 1) % 100 == 0 {
            println!("{} of {points} points, {} wrong", seed + 1, seen.wrong.len());
        }
    }
    println!(
        "figures: {{\"points\": {points}, \"cuts\": {}, \"cuts_while_opening\": {}, \"acknowledged\": {}, \"unacknowledged_found\": {}, \"wrong\": {}, \"planted\": {planted}, \"seconds\": {:.1}}}",
        seen.cuts,
        seen.twice,
        seen.acknowledged,
        seen.unacknowledged,
        seen.wrong.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(seen.cuts > points / 2, "the cuts missed the workload");
    assert_eq!(planted, !seen.wrong.is_empty(), "{:#?}", seen.wrong);
}

/// The checker's own proof: the same run with the defect planted finds it. The defect is one of the
/// whole process, so it is planted in another one.
#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    let test = "powercut::acknowledged_writes_survive_power_cuts";
    let mut run = std::process::Command::new(env::current_exe().unwrap());
    run.args(["--exact", test, "--nocapture"]);
    run.env("POWERCUT_PLANT", "1").env("POWERCUT_POINTS", "20");
    let output = run.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("were acknowledged of"), "{text}");
}

/// One point: a workload is cut, and so is what comes after every second time; then all is as it was.
fn point(seed: u64, seen: &mut Seen) -> Result<(), String> {
    let mut random = Random::new(seed);
    let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (disk, mut history) = (Disk::default(), History::new());
    let log = runtime.block_on(create(&disk));
    disk.plan(random.below(OPERATIONS) as u64, Fault::PowerCut);
    let cut = runtime.block_on(history.go_on(&log, ROUNDS, &mut random));
    seen.cuts += u64::from(matches!(cut, Err(Stopped::Failed { .. })));
    seen.acknowledged += history.acknowledged as u64;
    drop(log);

    let mut disk = disk.survivor(&mut random);
    if random.below(2) == 0 {
        disk.plan(random.below(40) as u64, Fault::PowerCut);
        match open(&disk) {
            Ok(file) => {
                history.check(file.state())?;
                history.forget_lost(file.state());
                let cut = runtime.block_on(async {
                    match start(file).await {
                        Ok(log) => history.go_on(&log, 3, &mut random).await.is_err(),
                        Err(_) => true,
                    }
                });
                seen.twice += u64::from(cut);
            }
            Err(OpenError::Io { .. }) => seen.twice += 1,
            Err(error) => return Err(format!("cut while opening: {error}")),
        }
        disk = disk.survivor(&mut random);
    }
    let file = open(&disk).map_err(|error| error.to_string())?;
    history.check(file.state())?;
    let found = usize::try_from(file.state().revision()).unwrap();
    seen.unacknowledged += (found - history.acknowledged) as u64;
    history.forget_lost(file.state());

    // It goes on from there, and an orderly end keeps all of it.
    let log = runtime.block_on(start(file)).map_err(|error| error.to_string())?;
    let gone_on = runtime.block_on(history.go_on(&log, 3, &mut random));
    gone_on.map_err(|stopped| stopped.to_string())?;
    runtime.block_on(log.close());
    let file = open(&disk).map_err(|error| error.to_string())?;
    history.check(file.state())
}

const ROUNDS: usize = 16;
/// About as many as the rounds begin, snapshots included.
const OPERATIONS: usize = 220;
