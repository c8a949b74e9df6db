//! The state as openraft sees it: what committed entries make of it, and snapshots of it.

use std::sync::{Arc, Mutex, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot,
    StorageIOError, storage::RaftStateMachine,
};

use super::{
    Common, Watcher,
    raft::{Answers, Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig},
    writer::{Op, Writer},
};
use crate::{
    engine::cluster::{Event, State},
    types::Revision,
};

/// The state, and which entries made it.
#[derive(Clone, Debug, Default)]
pub(super) struct Replica {
    pub state: State,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
}

impl Replica {
    /// Applies a committed entry; `watch` is told of every command that is not refused.
    pub fn apply(
        &mut self,
        entry: Entry,
        mut watch: impl FnMut(&State, Revision, &[Event]),
    ) -> Answers {
        self.applied = Some(entry.log_id);
        let commands = match entry.payload {
            EntryPayload::Normal(batch) => batch.0,
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Vec::new()
            }
        };
        let answers = commands.into_iter().map(|command| {
            let revision = self.state.revision() + 1;
            let applied = self.state.apply(revision, command)?;
            watch(&self.state, revision, &applied.events);
            Ok((revision, applied.outcome))
        });
        Answers(answers.collect())
    }

    fn meta(&self) -> SnapshotMeta {
        meta(self.applied, self.membership.clone())
    }
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
    watcher: Mutex<Watcher>,
}

impl Machine {
    pub fn new(common: Arc<Common>, writer: Writer, watcher: Watcher) -> Self {
        Self { common, writer, watcher: Mutex::new(watcher) }
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
        let Self { common, watcher, .. } = self;
        let watcher = watcher.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut replica = Self::replica_mut(common);
        Ok(entries.into_iter().map(|entry| replica.apply(entry, &mut *watcher)).collect())
    }

    /// Takes a copy, so that applying goes on while it is written out.
    async fn get_snapshot_builder(&mut self) -> Builder {
        let replica = self.replica();
        Builder { meta: replica.meta(), state: replica.state.clone(), writer: self.writer.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), StorageError> {
        let signature = meta.signature();
        let read = serde_json::from_slice::<State>(&snapshot);
        let state = read.map_err(|error| {
            StorageIOError::read_snapshot(Some(signature.clone()), AnyError::new(&error))
        })?;
        keep(&self.writer, meta, *snapshot).await?;
        let mut replica = Self::replica_mut(&self.common);
        replica.applied = meta.last_log_id;
        replica.membership = meta.last_membership.clone();
        replica.state = state;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let read = self.writer.have_done(Op::ReadSnapshot).await;
        let read = read.map_err(|error| {
            StorageIOError::new(
                ErrorSubject::Snapshot(None),
                ErrorVerb::Read,
                AnyError::new(&error),
            )
        })?;
        Ok(read.map(|(meta, state)| Snapshot { meta, snapshot: Box::new(state) }))
    }
}

/// Writes a copy of the state out.
pub(super) struct Builder {
    meta: SnapshotMeta,
    state: State,
    writer: Writer,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let state = std::mem::take(&mut self.state);
        // A large one keeps a thread busy for a while.
        let write = tokio::task::spawn_blocking(move || super::store::json(&state));
        let snapshot = write.await.map_err(|error| {
            StorageIOError::write_snapshot(Some(self.meta.signature()), AnyError::new(&error))
        })?;
        keep(&self.writer, &self.meta, snapshot.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Box::new(snapshot) })
    }
}

async fn keep(writer: &Writer, meta: &SnapshotMeta, state: Vec<u8>) -> Result<(), StorageError> {
    let kept = writer.have_done(|done| Op::Snapshot { meta: meta.clone(), state, done }).await;
    kept.map_err(|error| {
        StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error)).into()
    })
}
