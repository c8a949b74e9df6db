//! Commits on this machine's disk: many proposals share a sync.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use overlay::{
    engine::cluster::Command,
    manager::log::{Log, LogFile},
    types::{NodeId, NodeStatus},
};

use crate::workload::{alone, cluster, node};

#[tokio::test]
async fn a_thousand_proposals_at_once_are_durable_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let file = LogFile::create(&folder.path().join("log.redb")).unwrap();
    let log = Log::start(file, alone()).await.unwrap();
    log.propose(cluster()).await.unwrap();
    log.propose(node(2)).await.unwrap();
    let command =
        || Command::SetNodeStatus { node: NodeId::from_u128(2), status: NodeStatus::Ready };
    let started = Instant::now();
    for answer in join_all((0..1000).map(|_| log.propose(command()))).await {
        answer.unwrap();
    }
    let together = started.elapsed();
    let started = Instant::now();
    for _ in 0..100 {
        log.propose(command()).await.unwrap();
    }
    let alone = started.elapsed() / 100;
    println!("1000 commits at once: {together:?}; one alone: {alone:?}");
    // Three times the goal of 1,000 commits a second.
    assert!(together < Duration::from_secs(3), "{together:?}");
}
