//! A disk that fails once and then works again: the log stays stopped, says so, and is read on.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use overlay::{
    engine::cluster::Command,
    manager::log::{Log, ProposeError, Stopped},
    types::NetworkId,
};

use crate::{
    disk::{Disk, Fault, Random},
    workload::{History, create, network, open},
};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

async fn refused(log: &Log) -> Stopped {
    match log.propose(network(1000)).await {
        Err(ProposeError::Stopped(stopped)) => stopped,
        other => panic!("{other:?}"),
    }
}

/// Fails each of the operations of a few commits in turn.
async fn check(errno: i32, sentence: &str) {
    let mut stops = 0;
    for after in 0..24 {
        let (disk, mut history) = (Disk::default(), History::new());
        let mut random = Random::new(after);
        let log = create(&disk).await;
        history.go_on(&log, 4, &mut random).await.unwrap();
        disk.plan(after, Fault::Error(errno));
        let stopped = history.go_on(&log, 12, &mut random).await.unwrap_err();
        assert_eq!(stopped.to_string(), sentence, "operation {after}");
        stops += 1;

        // Nothing is tried again, and reading goes on.
        assert_eq!(refused(&log).await, stopped);
        let read = log.read(|state| state.clone());
        assert_eq!(read, history.state_at(history.acknowledged), "operation {after}");
        let operations = disk.operations();
        assert_eq!(refused(&log).await, stopped);
        log.close().await;
        assert_eq!(refused(&log).await, stopped, "the reason stays");
        assert!(disk.operations() <= operations, "the disk is left alone");
        history.check(open(&disk).unwrap().state()).unwrap();
    }
    assert_eq!(stops, 24);
}

#[tokio::test]
async fn a_full_disk_stops_the_log_and_is_named() {
    check(
        ENOSPC,
        "the log log.redb is stopped: I/O error: No space left on device (os error 28); free space on that disk, then start overlayd again",
    )
    .await;
}

#[tokio::test]
async fn a_failing_disk_stops_the_log_and_is_named() {
    check(
        EIO,
        "the log log.redb is stopped: I/O error: Input/output error (os error 5); check that disk, then start overlayd again",
    )
    .await;
}

#[tokio::test]
async fn what_waits_when_the_log_stops_is_told_too() {
    let (disk, mut history) = (Disk::default(), History::new());
    let log = create(&disk).await;
    history.go_on(&log, 4, &mut Random::new(1)).await.unwrap();
    disk.plan(0, Fault::Error(EIO));
    // More than can wait: the last ones are still on their way in.
    let all = (0..1000u128).map(|id| log.propose(network(2000 + id)));
    for answer in join_all(all).await {
        assert!(matches!(answer, Err(ProposeError::Stopped(Stopped::Failed { .. }))), "{answer:?}");
    }
}

#[tokio::test]
async fn a_closed_log_says_that_it_ends() {
    let disk = Disk::default();
    let log = create(&disk).await;
    log.close().await;
    let stopped = refused(&log).await;
    assert_eq!(
        stopped.to_string(),
        "this manager is ending; ask again, or start overlayd again if it does not run"
    );
    assert_eq!(log.read(|state| state.revision()), 0);
}

#[tokio::test]
async fn a_command_that_no_snapshot_should_hold_is_refused_before_the_log() {
    let disk = Disk::default();
    let log = create(&disk).await;
    let Command::CreateNetwork(mut create) = network(1) else { unreachable!("it makes a network") };
    create.labels.insert("key".into(), "x".repeat(300_000));
    let refused = log.propose(Command::CreateNetwork(create)).await.unwrap_err().to_string();
    assert!(refused.starts_with("the request has 300"), "{refused}");
    assert!(refused.ends_with(" bytes in the log, at most 262144; make it smaller"), "{refused}");
    let revision = log.propose(Command::RemoveNetwork(NetworkId::from_u128(1))).await;
    assert!(matches!(revision, Err(ProposeError::Refused(_))));
    assert_eq!(log.read(|state| state.revision()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proposes_at_the_moment_of_the_stop_is_told_too() {
    let rounds = std::env::var("STOP_ROUNDS").map_or(2000, |text| text.parse().unwrap());
    for round in 0..rounds {
        let disk = Disk::default();
        let log = Arc::new(create(&disk).await);
        disk.plan(4 + round % 8, Fault::Error(EIO));
        let proposers = (0..8u128).map(|id| {
            let log = log.clone();
            tokio::spawn(async move {
                let stopped = |answer: &Result<_, ProposeError>| {
                    matches!(answer, Err(ProposeError::Stopped(_)))
                };
                while !stopped(&log.propose(network(id)).await) {}
            })
        });
        let all = tokio::time::timeout(Duration::from_secs(20), join_all(proposers)).await;
        assert!(all.is_ok(), "round {round}: a proposal has no answer");
    }
}
