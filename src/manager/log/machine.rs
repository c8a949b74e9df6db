//! The state as openraft sees it: what committed entries make of it, and snapshots of it.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot,
    StorageIOError, storage::RaftStateMachine,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    Common, Stopped, Watch,
    checkpoint::Checkpoint,
    raft::{
        Answers, Batch, BatchId, Entry, LogId, SnapshotMeta, StorageError, StoredMembership,
        TypeConfig, proposer,
    },
    snapshot::{Body, Draft, Stored},
    writer::{Op, Place, Writer},
};
use crate::{
    engine::cluster::{Event, State},
    types::Revision,
};

/// The state, and which entries made it.
#[derive(Clone, Debug, Default)]
pub(super) struct Replica {
    pub made: Made,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
}

/// What entries make, the same on every member; a snapshot is this, as `serde` writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Made {
    pub state: State,
    pub answered: Answered,
}

/// The newest batch of each proposer and what came of it, so that one that is proposed again, because
/// nobody knows what became of the first try, is answered and not applied again. A proposer begins
/// the next one when it has the answer or has given up: of one that is older nobody awaits an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Answered(VecDeque<(BatchId, Answers)>);

impl Answered {
    /// Returns what came of a batch, which is nothing if it comes too late; `None` if it is to be
    /// applied.
    fn find(&self, id: BatchId) -> Option<Answers> {
        let newest = self.0.iter().find(|(known, _)| proposer(*known) == proposer(id));
        let (known, answers) = newest.filter(|(known, _)| id <= *known)?;
        Some(if *known == id { answers.clone() } else { Answers(Vec::new()) })
    }

    fn note(&mut self, id: BatchId, answers: &Answers) {
        self.0.retain(|(known, _)| proposer(*known) != proposer(id));
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((id, answers.clone()));
    }
}

impl Replica {
    /// Applies a committed entry; `watch` is told of every command that is not refused.
    pub fn apply(
        &mut self,
        entry: Entry,
        mut watch: impl FnMut(&State, Revision, &[Event]),
    ) -> Answers {
        self.applied = Some(entry.log_id);
        let Batch { id, commands } = match entry.payload {
            EntryPayload::Normal(batch) => batch,
            EntryPayload::Blank => return Answers(Vec::new()),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                return Answers(Vec::new());
            }
        };
        let Made { state, answered } = &mut self.made;
        // A checkpoint is nobody's.
        if commands.is_empty() {
            return Answers(Vec::new());
        }
        if let Some(answers) = answered.find(id) {
            return answers;
        }
        let answers = commands.into_iter().map(|command| {
            let revision = state.revision() + 1;
            let applied = state.apply(revision, command)?;
            watch(state, revision, &applied.events);
            Ok((revision, applied.outcome))
        });
        let answers = Answers(answers.collect());
        answered.note(id, &answers);
        answers
    }

    fn meta(&self) -> SnapshotMeta {
        meta(self.applied, self.membership.clone())
    }
}

/// Whether an entry only asks for the digest of the state there.
fn is_checkpoint(entry: &Entry) -> bool {
    matches!(&entry.payload, EntryPayload::Normal(batch) if batch.commands.is_empty())
}

/// Names a snapshot: by what made it, so that two members name the same one alike.
pub(super) fn meta(last_log_id: Option<LogId>, last_membership: StoredMembership) -> SnapshotMeta {
    let snapshot_id = last_log_id.map_or_else(String::new, |last| last.to_string());
    SnapshotMeta { last_log_id, last_membership, snapshot_id }
}

/// See the module.
pub(super) struct Machine {
    common: Arc<Common>,
    writer: Writer,
    /// Only so that what is shared between threads may hold it.
    watcher: Mutex<Box<dyn Watch>>,
    checkpoints: watch::Sender<Option<Checkpoint>>,
}

impl Machine {
    pub fn new(
        common: Arc<Common>,
        writer: Writer,
        watcher: Box<dyn Watch>,
        checkpoints: watch::Sender<Option<Checkpoint>>,
    ) -> Self {
        Self { common, writer, watcher: Mutex::new(watcher), checkpoints }
    }

    fn replica(&self) -> RwLockReadGuard<'_, Replica> {
        self.common.replica.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn replica_mut(common: &Common) -> RwLockWriteGuard<'_, Replica> {
        common.replica.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let replica = self.replica();
        Ok((replica.applied, replica.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let Self { common, watcher, checkpoints, .. } = self;
        let watcher = watcher.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut replica = Self::replica_mut(common);
        let mut answers = Vec::new();
        for entry in entries {
            let before = matches!(entry.payload, EntryPayload::Membership(_))
                .then(|| replica.membership.voter_ids().collect::<BTreeSet<_>>());
            let watch = |state: &State, revision, events: &[Event]| {
                watcher.handle_applied(state, revision, events);
            };
            let checkpoint = is_checkpoint(&entry).then_some(entry.log_id.index);
            answers.push(replica.apply(entry, watch));
            if let Some(entry) = checkpoint {
                let members = replica.membership.voter_ids().collect();
                let made = replica.made.clone();
                checkpoints.send_replace(Some(Checkpoint { entry, made, members }));
            }
            if let Some(before) = before {
                let changed = replica.membership.voter_ids().chain(before).collect();
                watcher.handle_members(&changed);
            }
        }
        Ok(answers)
    }

    /// Takes a copy, so that applying goes on while it is written out.
    async fn get_snapshot_builder(&mut self) -> Builder {
        let replica = self.replica();
        let (meta, made) = (replica.meta(), replica.made.clone());
        Builder { meta, made, place: self.common.place, writer: self.writer.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Body>, StorageError> {
        Ok(Box::new(Body::Here(Bytes::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Body>,
    ) -> Result<(), StorageError> {
        let unread = |error: &(dyn std::error::Error + 'static)| {
            StorageIOError::read_snapshot(Some(meta.signature()), AnyError::from_dyn(error, None))
        };
        let snapshot = snapshot.read().await.map_err(|error| unread(&error))?;
        let state = snapshot.clone();
        let read = self.common.place.run(move || serde_json::from_slice::<Made>(&state)).await;
        let read = read.map_err(|error| unread(&error))?;
        let made = read.map_err(|error| unread(&error))?;
        keep(&self.writer, meta, snapshot).await?;
        let Self { common, watcher, .. } = self;
        let watcher = watcher.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut replica = Self::replica_mut(common);
        let (applied, membership) = (meta.last_log_id, meta.last_membership.clone());
        *replica = Replica { made, applied, membership };
        watcher.handle_replaced(&replica.made.state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            let error = AnyError::from_dyn(error, None);
            StorageIOError::new(ErrorSubject::Snapshot(None), ErrorVerb::Read, error)
        };
        let read = self.writer.have_done(Op::ReadSnapshot).await.map_err(|error| failed(&error))?;
        let read = match read {
            Ok(read) => read,
            Err(failure) => {
                let failed = failed(&failure);
                self.writer.stop(Stopped::by(&self.common.path, &failure)).await;
                return Err(failed.into());
            }
        };
        Ok(read.map(|reading| {
            let Common { place, path, .. } = &*self.common;
            let (place, path, writer) = (*place, path.clone(), self.writer.clone());
            let meta = reading.meta.clone();
            let stored = Box::new(Stored { reading, place, path, writer });
            Snapshot { meta, snapshot: Box::new(Body::Stored(stored)) }
        }))
    }
}

/// Writes a copy of the state out.
pub(super) struct Builder {
    meta: SnapshotMeta,
    made: Made,
    place: Place,
    writer: Writer,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let made = std::mem::take(&mut self.made);
        let written = self.place.run(move || super::store::json(&made)).await;
        let snapshot = written.map_err(|error| {
            StorageIOError::write_snapshot(Some(self.meta.signature()), AnyError::new(&error))
        })?;
        let snapshot = Bytes::from(snapshot);
        keep(&self.writer, &self.meta, snapshot.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Box::new(Body::Here(snapshot)) })
    }
}

async fn keep(writer: &Writer, meta: &SnapshotMeta, state: Bytes) -> Result<(), StorageError> {
    let draft = Draft::new(meta.clone(), state);
    let kept = writer.have_done(|done| Op::Snapshot { draft, done }).await;
    kept.map_err(|error| {
        StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error)).into()
    })
}

/// Proposers that are remembered. A manager is another one with each start; more than start while one
/// tries.
const REMEMBERED: usize = 64;

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;
    use crate::{engine::cluster::Command, types::NodeId};

    fn entry(index: u64, batch: u128) -> Entry {
        let log_id = LogId::new(CommittedLeaderId::new(1, NodeId::from_u128(1)), index);
        let commands = vec![Command::StartEpoch, Command::RemoveNode(NodeId::from_u128(9))];
        let batch = Batch { id: BatchId::from_u128(batch), commands };
        Entry { log_id, payload: EntryPayload::Normal(batch) }
    }

    #[test]
    fn a_batch_that_is_proposed_again_is_answered_and_not_applied_again() {
        let mut replica = Replica::default();
        let mut told = 0;
        let first = replica.apply(entry(1, 1), |_, _, _| told += 1);
        assert_eq!((first.0.len(), told), (2, 1), "a refused command tells nothing");
        let again = replica.apply(entry(2, 1), |_, _, _| told += 1);
        assert_eq!((again, told, replica.made.state.revision()), (first.clone(), 1, 2));
        let other = replica.apply(entry(3, 2), |_, _, _| told += 1);
        assert_ne!(other, first);
        assert_eq!((told, replica.made.state.revision()), (2, 4));
        assert_eq!(replica.applied.map(|applied| applied.index), Some(3));
    }

    #[test]
    fn a_second_try_is_known_by_whoever_has_only_a_snapshot() {
        let mut replica = Replica::default();
        let first = replica.apply(entry(1, 1), |_, _, _| {});
        let json = serde_json::to_vec(&replica.made).unwrap();
        let made: Made = serde_json::from_slice(&json).unwrap();
        let mut late = Replica { made, ..Replica::default() };
        assert_eq!(late.apply(entry(2, 1), |_, _, _| {}), first);
        assert_eq!(late.made, replica.made);
    }

    #[test]
    fn a_second_try_is_known_however_many_others_came_between() {
        let (own, other) = (1u128 << 64, 2u128 << 64);
        let mut replica = Replica::default();
        let first = replica.apply(entry(1, own + 1), |_, _, _| {});
        for number in 1..=200 {
            replica.apply(entry(2, other + number), |_, _, _| {});
        }
        let revision = replica.made.state.revision();
        assert_eq!(replica.apply(entry(3, own + 1), |_, _, _| {}), first);
        replica.apply(entry(4, own + 2), |_, _, _| {});
        let late = replica.apply(entry(5, own + 1), |_, _, _| {});
        assert_eq!((late.0.len(), replica.made.state.revision()), (0, revision + 2), "too late");
        // Proposers that are gone are forgotten some time.
        for gone in 3..3 + REMEMBERED as u128 {
            replica.apply(entry(6, gone << 64), |_, _, _| {});
        }
        assert_eq!(replica.made.answered.0.len(), REMEMBERED);
        assert_eq!(replica.apply(entry(7, own + 2), |_, _, _| {}).0.len(), 2);
    }
}
