//! Whether all members have the same state. At a checkpoint, an entry without commands, each of them makes
//! the digest of its state there and asks the others for theirs: what is bent in a memory, or applied in
//! another way by one of them, is found. One whose digest is not that of more than half of the
//! members ends, and says so.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, BufWriter, Write as _},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::future::join_all;
use openraft::RaftMetrics;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Common, Stopped, locked,
    machine::Made,
    network::{Request, Response},
    raft::{Batch, Raft, batch_id},
    writer::Writer,
};
use crate::types::NodeId;

/// The SHA-256 of a state as a snapshot has it.
pub type StateDigest = [u8; 32];

/// The state as of an entry, and who decided then.
#[derive(Clone)]
pub(super) struct Checkpoint {
    pub entry: u64,
    pub made: Made,
    pub members: BTreeSet<NodeId>,
}

/// The digests of the last checkpoints, for the others.
#[derive(Default)]
pub(super) struct Digests(VecDeque<(u64, StateDigest)>);

impl Digests {
    /// Returns that of an entry, if it is there yet, and still.
    pub fn find(&self, entry: u64) -> Option<StateDigest> {
        self.0.iter().find(|(at, _)| *at == entry).map(|(_, digest)| *digest)
    }

    /// Returns the newest, and its entry.
    #[cfg(test)]
    pub fn newest(&self) -> Option<(u64, StateDigest)> {
        self.0.back().copied()
    }

    fn note(&mut self, entry: u64, digest: StateDigest) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((entry, digest));
    }
}

/// What a member's digest says beside those of the others.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All that answered have it.
    Equal,
    /// More than half of the members have another one.
    Wrong,
    /// These have another one.
    Others(Vec<NodeId>),
}

/// The one task that compares.
pub(super) struct Comparer {
    pub own: NodeId,
    pub common: Arc<Common>,
    pub writer: Writer,
}

impl Comparer {
    /// Compares at each checkpoint until this member's state is wrong, or the log ends.
    pub async fn run(self, mut checkpoints: watch::Receiver<Option<Checkpoint>>, raft: Raft) {
        let mut changed = checkpoints.changed().await;
        while changed.is_ok() {
            let Some(checkpoint) = checkpoints.borrow_and_update().clone() else { return };
            let entry = checkpoint.entry;
            let verdict = tokio::select! {
                biased;
                verdict = self.compare(checkpoint) => verdict,
                // What a member has missed it will not say any more.
                newer = checkpoints.changed() => {
                    changed = newer;
                    continue;
                }
            };
            match verdict {
                None | Some(Verdict::Equal) => {}
                Some(Verdict::Others(others)) => {
                    warn!(entry, ?others, "the state of other managers is not the one here");
                }
                Some(Verdict::Wrong) => {
                    let path = self.common.path.clone();
                    self.writer.stop(Stopped::Differs { path, entry }).await;
                    if let Err(error) = raft.shutdown().await {
                        debug!(%error, "openraft broke off");
                    }
                    return;
                }
            }
            changed = checkpoints.changed().await;
        }
    }

    /// Compares at one; `None` if there is no digest.
    async fn compare(&self, checkpoint: Checkpoint) -> Option<Verdict> {
        let Checkpoint { entry, made, members } = checkpoint;
        let own = self.common.place.run(move || digest(&made)).await;
        let own = own.inspect_err(|error| warn!(entry, %error, "the state has no digest")).ok()?;
        locked(&self.common.digests).note(entry, own);
        let others: Vec<_> = members.iter().copied().filter(|id| *id != self.own).collect();
        let asked = join_all(others.iter().map(|member| self.ask(*member, entry)));
        let answers = others.iter().copied().zip(asked.await);
        let answers: BTreeMap<_, _> =
            answers.filter_map(|(member, digest)| Some((member, digest?))).collect();
        let verdict = judge(own, &answers, members.len());
        if verdict == Verdict::Equal && !answers.is_empty() {
            let digest: String = own.iter().map(|byte| format!("{byte:02x}")).collect();
            let (same, managers) = (answers.len() + 1, members.len());
            info!(entry, same, managers, digest, "states compared");
        }
        Some(verdict)
    }

    /// Asks another member until it has its digest, but not for long.
    async fn ask(&self, member: NodeId, entry: u64) -> Option<StateDigest> {
        let asking = async {
            loop {
                let call = self.common.transport.call(member, Request::Digest(entry));
                if let Ok(Response::Digest(Some(digest))) = call.await {
                    return digest;
                }
                sleep(BETWEEN_ASKS).await;
            }
        };
        timeout(PATIENCE, asking).await.ok()
    }
}

fn judge(own: StateDigest, others: &BTreeMap<NodeId, StateDigest>, members: usize) -> Verdict {
    let differ: BTreeMap<_, _> = others.iter().filter(|(_, digest)| **digest != own).collect();
    let have = |digest: &StateDigest| others.values().filter(|other| *other == digest).count();
    if differ.is_empty() {
        Verdict::Equal
    } else if differ.values().any(|digest| 2 * have(digest) > members) {
        Verdict::Wrong
    } else {
        Verdict::Others(differ.into_keys().copied().collect())
    }
}

fn digest(made: &Made) -> StateDigest {
    struct Hashing(Context);

    impl io::Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut hashing = BufWriter::new(Hashing(Context::new(&SHA256)));
    let written = serde_json::to_writer(&mut hashing, made).map_err(io::Error::from);
    written.and_then(|()| hashing.flush()).expect("a state has no keys but strings");
    let hashing = hashing.into_inner().unwrap_or_else(|_| unreachable!("it is flushed"));
    let mut digest = StateDigest::default();
    digest.copy_from_slice(hashing.0.finish().as_ref());
    digest
}

/// Puts checkpoints into the log while this member leads others: when it begins to, when the members
/// have changed, and every now and then.
pub(super) async fn mark(raft: Raft) {
    let mut metrics = raft.metrics();
    loop {
        let leads = |metrics: &RaftMetrics<_, _>| {
            metrics.running_state.is_err()
                || metrics.state.is_leader() && metrics.membership_config.voter_ids().count() > 1
        };
        let members = match metrics.wait_for(leads).await {
            Ok(metrics) if metrics.running_state.is_ok() => metrics.membership_config.clone(),
            Ok(_) | Err(_) => return,
        };
        // One that leads no more leaves it to the next.
        let _ = raft.client_write(batch()).await;
        let changed = metrics.wait_for(|metrics| {
            metrics.running_state.is_err()
                || !metrics.state.is_leader()
                || *metrics.membership_config != *members
        });
        // Whatever comes first.
        let _ = timeout(BETWEEN_CHECKPOINTS, changed).await;
    }
}

/// A checkpoint's batch, which is nobody's.
pub(super) fn batch() -> Batch {
    Batch { id: batch_id(0, 0), commands: Vec::new() }
}

/// A digest of the largest state takes seconds.
const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(600);
const BETWEEN_ASKS: Duration = Duration::from_millis(200);
/// Longer than a busy member takes for its own digest.
const PATIENCE: Duration = Duration::from_secs(30);
const KEPT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(own: u8, others: &[u8], members: usize) -> Verdict {
        let others = others.iter().zip(2_u128..);
        let others = others.map(|(digest, id)| (NodeId::from_u128(id), [*digest; 32]));
        judge([own; 32], &others.collect(), members)
    }

    #[test]
    fn more_than_half_of_the_members_are_right() {
        let others =
            |ids: &[u128]| Verdict::Others(ids.iter().map(|id| NodeId::from_u128(*id)).collect());
        assert_eq!(judged(1, &[1, 1], 3), Verdict::Equal);
        assert_eq!(judged(1, &[1], 3), Verdict::Equal);
        assert_eq!(judged(1, &[], 3), Verdict::Equal);
        assert_eq!(judged(1, &[2, 2], 3), Verdict::Wrong);
        assert_eq!(judged(1, &[1, 2], 3), others(&[3]));
        // Nobody knows which of two, or of three, is right.
        assert_eq!(judged(1, &[2], 2), others(&[2]));
        assert_eq!(judged(1, &[2], 3), others(&[2]));
        assert_eq!(judged(1, &[2, 3], 3), others(&[2, 3]));
        assert_eq!(judged(1, &[2, 2, 1], 5), others(&[2, 3]));
        assert_eq!(judged(1, &[2, 2, 2], 5), Verdict::Wrong);
    }
}
