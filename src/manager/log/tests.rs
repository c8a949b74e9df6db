//! What openraft asks of those who store its log, by its own tests.

use std::{
    path::Path,
    sync::{Arc, OnceLock, RwLock},
};

use openraft::testing::{StoreBuilder, Suite};
use redb::backends::InMemoryBackend;
use tokio::sync::Notify;

use super::{
    Alone, Common, LogFile, Snapshots, Watch,
    machine::Machine,
    raft::{StorageError, TypeConfig},
    store::Store,
    writer::{Op, Writer, WriterThread},
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
            stopped: OnceLock::new(),
            transport: Arc::new(Alone),
            raft: OnceLock::new(),
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
fn the_log_passes_openrafts_own_tests() {
    Suite::test_all(InMemory).unwrap();
}
