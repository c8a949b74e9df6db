//! What openraft asks of those who store its log, by its own tests, and what a file says of members.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, RwLock},
    time::Duration,
};

use openraft::{
    CommittedLeaderId, EmptyNode, EntryPayload, Membership,
    testing::{StoreBuilder, Suite},
};
use redb::backends::InMemoryBackend;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::sleep,
};

use super::{
    Alone, Answering, Common, Log, LogFile, Member, NotReached, ProposeError, Request, Snapshots,
    Stopped, Transport, Watch,
    checkpoint::{self, StateDigest},
    file::Held,
    locked,
    machine::{self, Machine, Replica},
    raft::{Entry, LogId, StorageError, StoredMembership, TypeConfig, Vote},
    snapshot::Draft,
    store::{Store, json},
    writer::{Op, Place, Writer, WriterThread},
};
use crate::{
    engine::cluster::{Command, Event, State},
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

fn common(path: PathBuf, replica: Replica) -> Common {
    Common {
        path,
        replica: RwLock::new(replica),
        place: Place::Threads,
        stopped: OnceLock::new(),
        transport: Arc::new(Alone),
        raft: OnceLock::new(),
        led_at: Mutex::default(),
        digests: Mutex::default(),
    }
}

impl StoreBuilder<TypeConfig, Store, Machine, Guard> for InMemory {
    async fn build(&self) -> Result<(Guard, Store, Machine), StorageError> {
        let file = LogFile::create_on(InMemoryBackend::new(), Path::new("memory")).unwrap();
        let LogFile { database, path, held } = file;
        let common = Arc::new(common(path, held.replica));
        let due = Arc::new(Notify::new());
        let (thread, writer) =
            WriterThread::new(common.clone(), database, held.extent, Snapshots::default(), due);
        std::thread::spawn(|| thread.run());
        let machine =
            Machine::new(common, writer.clone(), Box::new(Nobody), watch::channel(None).0);
        Ok((Guard(writer.clone()), Store::new(held.kept, writer), machine))
    }
}

/// Has a writer do these, and returns what the file holds afterwards.
async fn written(path: &Path, ops: Vec<Op>) -> Held {
    let mut file = LogFile::create(path).unwrap();
    file.claim(NodeId::from(1), true).unwrap();
    let LogFile { database, path, held } = file;
    let common = Arc::new(common(path, held.replica));
    let due = Arc::new(Notify::new());
    let (thread, writer) =
        WriterThread::new(common.clone(), database, held.extent, Snapshots::default(), due);
    let thread = std::thread::spawn(|| thread.run());
    ops.into_iter().for_each(|op| writer.send(op).unwrap());
    // What waits has its turn with the second at the latest.
    for term in [1, 2] {
        let vote = Vote::new(term, NodeId::from(1));
        writer.have_done(|done| Op::Vote { vote, done }).await.unwrap();
    }
    writer.send(Op::End).unwrap();
    thread.join().unwrap();
    LogFile::open(&common.path).unwrap().held
}

#[tokio::test]
async fn behind_entries_that_only_a_snapshot_stands_for_nothing_is_written_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |index| LogId::new(CommittedLeaderId::new(1, NodeId::from(1)), index);
    let append = |indices: std::ops::RangeInclusive<u64>| {
        let entry = |index| Entry { log_id: at(index), payload: EntryPayload::Blank };
        let entries = indices.map(|index| (index, json(&entry(index)))).collect();
        Op::Append { entries, flushed: None }
    };
    let ops = || vec![append(0..=3), Op::Purge(at(10)), append(11..=11), Op::Committed(at(11))];
    let held = written(&folder.path().join("without.redb"), ops()).await;
    assert!(held.kept.entries.keys().eq(&[0, 1, 2, 3]));
    assert_eq!((held.kept.purged, held.kept.committed), (None, None));
    assert_eq!(held.replica.applied, None, "nobody knows that they are committed");

    let mut ops = ops();
    let state = json(&machine::Made::default()).into();
    let draft = Draft::new(machine::meta(Some(at(10)), StoredMembership::default()), state);
    let (done, is_done) = oneshot::channel();
    ops.push(Op::Snapshot { draft, done });
    let held = written(&folder.path().join("with.redb"), ops).await;
    is_done.await.unwrap();
    assert!(held.kept.entries.keys().eq(&[11]));
    assert_eq!((held.kept.purged, held.kept.committed), (Some(at(10)), Some(at(11))));
    assert_eq!(held.replica.applied, Some(at(11)));
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

/// Three logs in one process, each of which reaches the others.
#[derive(Default)]
struct Three([OnceLock<Arc<Log>>; 3]);

/// The way to them.
struct Way(Arc<Three>);

impl Three {
    fn log(&self, id: u64) -> &Arc<Log> {
        self.0[id as usize - 1].get().expect("it was started")
    }

    async fn start(self: &Arc<Self>, id: u64) {
        let file = LogFile::create_on(InMemoryBackend::new(), Path::new("log.redb")).unwrap();
        let member = Member {
            manager: NodeId::from(id),
            joins: id != 1,
            snapshots: Snapshots::default(),
            transport: Arc::new(Way(self.clone())),
            watcher: Box::new(Nobody),
        };
        let log = Arc::new(Log::start(file, member).await.unwrap());
        assert!(self.0[id as usize - 1].set(log).is_ok());
    }

    /// Waits until a member has the digest of a checkpoint behind an entry; returns which.
    async fn compared(&self, id: u64, after: u64) -> (u64, StateDigest) {
        loop {
            let newest = locked(&self.log(id).common.digests).newest();
            if let Some(newest) = newest.filter(|(entry, _)| *entry > after) {
                return newest;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Transport for Way {
    fn call(&self, member: NodeId, request: Request) -> Answering<'_> {
        Box::pin(async move {
            let number = (1..=3).find(|number| NodeId::from(*number) == member);
            let called = number.and_then(|number| self.0.0[number as usize - 1].get());
            let called = called.ok_or_else(|| NotReached(format!("{member} is away")))?;
            Ok(called.handle(request).await)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_state_is_not_that_of_the_others_ends_and_says_so() {
    let three = Arc::new(Three::default());
    for id in 1..=3 {
        three.start(id).await;
    }
    let members = [1, 2, 3].map(NodeId::from);
    three.log(1).set_members(members.into()).await.unwrap();
    // Equal states go on.
    let (entry, digest) = three.compared(1, 0).await;
    for id in [2, 3] {
        while locked(&three.log(id).common.digests).find(entry) != Some(digest) {
            sleep(Duration::from_millis(1)).await;
        }
    }
    // A command that no log holds, as of a bent memory.
    {
        let mut replica = three.log(3).common.replica.write().unwrap();
        let revision = replica.made.state.revision() + 1;
        let rotate = Command::StartEpoch;
        replica.made.state.apply(revision, rotate).unwrap();
    }
    let raft = three.log(1).common.raft.get().unwrap();
    raft.client_write(checkpoint::batch()).await.unwrap();
    let stopped = loop {
        match three.log(3).check_state() {
            Ok(()) => sleep(Duration::from_millis(1)).await,
            Err(stopped) => break stopped,
        }
    };
    let Stopped::Differs { entry, .. } = stopped else { panic!("{stopped}") };
    assert_eq!(
        stopped.to_string(),
        format!(
            "the log log.redb is stopped: the state after entry {entry} is not the one that the other managers have; start overlayd again, and if this comes again, check this machine's memory, demote this node and promote it anew"
        )
    );
    // Nobody is told anything by it any more, and the others go on.
    let read = three.log(3).catch_up().await;
    assert_eq!(read, Err(ProposeError::Stopped(stopped)));
    while three.log(3).is_current() {
        sleep(Duration::from_millis(1)).await;
    }
    for id in [1, 2] {
        three.log(id).propose(Command::StartEpoch).await.unwrap();
        assert_eq!(three.log(id).check_state(), Ok(()));
    }
}
