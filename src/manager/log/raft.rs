//! What the log is to openraft: the types that it is made of, and how it keeps time.

use std::time::Duration;

use openraft::{Config, EmptyNode, SnapshotPolicy};
use serde::{Deserialize, Serialize};

use super::{runtime::Runtime, snapshot::Body};
use crate::{
    engine::cluster::{Command, Outcome, Refusal},
    types::{Id, NodeId, Revision},
};

openraft::declare_raft_types!(
    /// A log whose entries are batches of commands, and whose members are known by their nodes' ids:
    /// where they are reached stands in the state.
    pub TypeConfig:
        D = Batch,
        R = Answers,
        NodeId = NodeId,
        Node = EmptyNode,
        SnapshotData = Body,
        AsyncRuntime = Runtime,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<NodeId>;
/// A member's vote.
pub type Vote = openraft::Vote<NodeId>;
pub(super) type StoredMembership = openraft::StoredMembership<NodeId, EmptyNode>;
/// What a snapshot is of.
pub type SnapshotMeta = openraft::SnapshotMeta<NodeId, EmptyNode>;
pub(super) type StorageError = openraft::StorageError<NodeId>;

/// Marks the identifiers of batches.
pub enum BatchKind {}
/// Identifies a batch, by which a second try is known as one.
///
/// ```text
/// 0          8          16
/// +----------+----------+
/// | proposer | number   |   a proposer draws its name and counts its batches from 1
/// +----------+----------+
/// ```
pub type BatchId = Id<BatchKind>;

/// Makes the identifier of a proposer's batch.
pub(super) fn batch_id(proposer: u64, number: u64) -> BatchId {
    BatchId::from_u128((u128::from(proposer) << 64) | u128::from(number))
}

/// Returns whose a batch is.
pub(super) fn proposer(batch: BatchId) -> u64 {
    (u128::from_be_bytes(batch.to_bytes()) >> 64) as u64
}

/// Commands that are one entry of the log: what waited while the one before was made durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The same in each try.
    pub id: BatchId,
    /// In order.
    pub commands: Vec<Command>,
}

/// For each command of an entry its revision and outcome, or its refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers(pub Vec<Result<(Revision, Outcome), Refusal>>);

/// `kept` entries stay behind a snapshot, for members that are a little late.
pub(super) fn config(kept: u64) -> Config {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "overlay".to_owned(),
        heartbeat_interval: millis(HEARTBEAT),
        election_timeout_min: millis(ELECTION / 2),
        election_timeout_max: millis(ELECTION),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: kept,
        ..Config::default()
    }
}

/// Asks a member that leads, for as long as it does as far as is known here: one that stands still is
/// not waited for once the others go on without it.
pub(super) async fn while_leads<T>(
    raft: &Raft,
    leader: NodeId,
    asking: impl Future<Output = T>,
) -> Option<T> {
    let mut metrics = raft.metrics();
    let other = metrics.wait_for(|metrics| metrics.current_leader != Some(leader));
    tokio::select! {
        biased;
        answer = asking => Some(answer),
        _ = other => None,
    }
}

/// A leader says something at least this often.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(100);
/// After so long without a leader, or half of it, there is an election: openraft adds a lease of the
/// same length, and the gap in writing is 0.9 s in the middle.
const ELECTION: Duration = Duration::from_millis(500);
/// So long a snapshot may take on its way to a member.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
