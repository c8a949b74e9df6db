//! What openraft asks of those who store its log, by its own tests, and what a file says of members.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, OnceLock, RwLock},
};

use openraft::{
    CommittedLeaderId, EmptyNode, EntryPayload, Membership,
    testing::{StoreBuilder, Suite},
};
use redb::backends::InMemoryBackend;
use tokio::sync::Notify;

use super::{
    Alone, Common, LogFile, Snapshots, Watch,
    machine::Machine,
    raft::{Entry, LogId, StorageError, StoredMembership, TypeConfig},
    store::Store,
    writer::{Op, Place, Writer, WriterThread},
};
use crate::{
    engine::cluster::{Event, State},
    types::{NodeId, Revision},
};

impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self::from_u128(number.into())
    }
}

/// Is told, and does nothing.
struct Nobody;

impl Watch for Nobody {
    fn handle_applied(&mut self, _state: &State, _revision: Revision, _events: &[Event]) {}
    fn handle_replaced(&mut self, _state: &State) {}
}

/// Makes empty logs in memory.
struct InMemory;

/// Ends the writer.
struct Guard(Writer);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(Op::End);
    }
}

impl StoreBuilder<TypeConfig, Store, Machine, Guard> for InMemory {
    async fn build(&self) -> Result<(Guard, Store, Machine), StorageError> {
        let file = LogFile::create_on(InMemoryBackend::new(), Path::new("memory")).unwrap();
        let LogFile { database, path, held } = file;
        let common = Arc::new(Common {
            path,
            replica: RwLock::new(held.replica),
            place: Place::Threads,
            stopped: OnceLock::new(),
            transport: Arc::new(Alone),
            raft: OnceLock::new(),
            led_at: Mutex::default(),
        });
        let due = Arc::new(Notify::new());
        let (thread, writer) =
            WriterThread::new(common.clone(), database, held.grown, Snapshots::default(), due);
        std::thread::spawn(|| thread.run());
        let machine = Machine::new(common, writer.clone(), Box::new(Nobody));
        Ok((Guard(writer.clone()), Store::new(held.kept, writer), machine))
    }
}

#[test]
fn whoever_may_decide_by_what_is_not_known_to_be_committed_does() {
    let ids = |ids: &[u64]| ids.iter().map(|id| NodeId::from(*id)).collect::<BTreeSet<_>>();
    let at = |index| LogId::new(CommittedLeaderId::new(1, NodeId::from(1)), index);
    let members = |all: &[&[u64]]| {
        let configs = all.iter().map(|voters| ids(voters)).collect();
        Membership::<NodeId, EmptyNode>::new(configs, None)
    };
    let mut file = LogFile::create_on(InMemoryBackend::new(), Path::new("memory")).unwrap();
    let held = &mut file.held;
    held.replica.applied = Some(at(4));
    held.replica.membership = StoredMembership::new(Some(at(4)), members(&[&[1, 2]]));
    let mut append = |index, all: &[&[u64]]| {
        let entry = Entry { log_id: at(index), payload: EntryPayload::Membership(members(all)) };
        held.kept.entries.insert(index, (entry, 1));
    };
    append(3, &[&[1, 2, 3]]);
    append(5, &[&[1, 2], &[1, 4]]);
    append(6, &[&[1, 4]]);
    let decide =
        |file: &LogFile| (1..=5).filter(|id| file.decides((*id).into())).collect::<Vec<_>>();
    assert_eq!(decide(&file), [1, 2, 4], "3 was out before");
    file.held.replica.applied = Some(at(6));
    file.held.replica.membership = StoredMembership::new(Some(at(6)), members(&[&[1, 4]]));
    assert_eq!(decide(&file), [1, 4]);
}

#[test]
fn the_log_passes_openrafts_own_tests() {
    Suite::test_all(InMemory).unwrap();
}
