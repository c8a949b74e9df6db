//! Several managers with one log, in one process: what one of them acknowledged is on all of them, whoever
//! of them dies, is cut off, or comes late.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use overlay::{
    engine::cluster::{Event, Outcome, State},
    manager::log::{
        Answering, Log, LogFile, Member, MembersError, NotReached, ProposeError, Request,
        Snapshots, Transport, Watch,
    },
    types::{NetworkId, NodeId, Revision},
};

use crate::{
    disk::{Disk, Fault, Random},
    workload::{cluster, network},
};

/// Managers, and the ways between them.
#[derive(Clone, Default)]
struct Managers(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    running: BTreeMap<NodeId, (Arc<Log>, Disk)>,
    cut_off: BTreeSet<NodeId>,
    /// Those that answer nobody, and of whom nobody knows that.
    silent: BTreeSet<NodeId>,
    /// After how many entries the state is written out, if not after a few.
    entries: Option<u64>,
}

/// The way from one manager to the others.
struct Way {
    own: NodeId,
    managers: Managers,
}

impl Transport for Way {
    fn call(&self, member: NodeId, request: Request) -> Answering<'_> {
        Box::pin(async move {
            let called = self.managers.reach(self.own, member);
            let called = called.ok_or_else(|| NotReached(format!("{member} is away")))?;
            if self.managers.is_silent(self.own, member) {
                return std::future::pending().await;
            }
            let response = called.handle(request).await;
            // An answer may be lost as well.
            let reached = self.managers.reach(self.own, member).is_some();
            reached.then_some(response).ok_or_else(|| NotReached(format!("{member} is gone")))
        })
    }
}

/// Counts how often the state was replaced.
struct Replaced(Arc<AtomicUsize>);

impl Watch for Replaced {
    fn handle_applied(&mut self, _state: &State, _revision: Revision, _events: &[Event]) {}

    fn handle_replaced(&mut self, _state: &State) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Managers {
    /// The first, alone, with a cluster.
    async fn founded() -> Self {
        let managers = Self::default();
        managers.start(1, &Disk::default(), false).await;
        managers.log(1).propose(cluster()).await.unwrap();
        managers
    }

    /// Three that decide together.
    async fn three() -> Self {
        let managers = Self::founded().await;
        managers.start(2, &Disk::default(), true).await;
        managers.start(3, &Disk::default(), true).await;
        managers.log(1).set_members(ids(&[1, 2, 3])).await.unwrap();
        managers
    }

    /// Starts one with what is on its disk; returns how often its state is replaced.
    async fn start(&self, id: u128, disk: &Disk, joins: bool) -> Arc<AtomicUsize> {
        let (manager, path) = (NodeId::from_u128(id), Path::new("log.redb"));
        let file = match disk.image().is_empty() {
            true => LogFile::create_on(disk.clone(), path),
            false => LogFile::open_on(disk.clone(), path),
        };
        let replaced = Arc::new(AtomicUsize::new(0));
        let entries = self.inner().entries.unwrap_or(16);
        let member = Member {
            manager,
            joins,
            snapshots: Snapshots { entries, bytes: 1 << 20, part: 1024 },
            transport: Arc::new(Way { own: manager, managers: self.clone() }),
            watcher: Box::new(Replaced(replaced.clone())),
        };
        let log = Log::start(file.unwrap(), member).await.unwrap();
        self.inner().running.insert(manager, (Arc::new(log), disk.clone()));
        replaced
    }

    /// Cuts the power of one; returns what is left on its disk.
    fn kill(&self, id: u128) -> Disk {
        let (_, disk) = self.inner().running.remove(&NodeId::from_u128(id)).unwrap();
        disk.survivor(&mut Random::new(id as u64))
    }

    fn log(&self, id: u128) -> Arc<Log> {
        self.inner().running[&NodeId::from_u128(id)].0.clone()
    }

    fn cut_off(&self, id: u128) {
        self.inner().cut_off.insert(NodeId::from_u128(id));
    }

    /// Nothing that goes to one or comes from it arrives any more.
    fn silence(&self, id: u128) {
        self.inner().silent.insert(NodeId::from_u128(id));
    }

    fn is_silent(&self, from: NodeId, to: NodeId) -> bool {
        let inner = self.inner();
        inner.silent.contains(&from) || inner.silent.contains(&to)
    }

    fn heal(&self) {
        self.inner().cut_off.clear();
        self.inner().silent.clear();
    }

    fn reach(&self, from: NodeId, to: NodeId) -> Option<Arc<Log>> {
        let inner = self.inner();
        let both = !inner.cut_off.contains(&from) && !inner.cut_off.contains(&to);
        inner.running.get(&to).filter(|_| both).map(|(log, _)| log.clone())
    }

    /// Waits until all that run stand at the same state, and returns it.
    async fn settled(&self) -> State {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let logs: Vec<Arc<Log>> =
                self.inner().running.values().map(|(log, _)| log.clone()).collect();
            let states: Vec<State> = logs.iter().map(|log| log.read(State::clone)).collect();
            if states.windows(2).all(|pair| pair[0] == pair[1]) {
                return states[0].clone();
            }
            assert!(Instant::now() < deadline, "they stay apart");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until one of these leads, as it says itself.
    async fn leader_of(&self, some: &[u128]) -> u128 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            for id in some {
                if self.log(*id).leader() == Some(NodeId::from_u128(*id)) {
                    return *id;
                }
            }
            assert!(Instant::now() < deadline, "none of them leads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

fn ids(ids: &[u128]) -> BTreeSet<NodeId> {
    ids.iter().map(|id| NodeId::from_u128(*id)).collect()
}

/// Proposes networks of these ids one after the other until told to end; returns those that were made, and
/// the longest time without one.
async fn write(log: Arc<Log>, mut id: u128, end: Arc<AtomicUsize>) -> (Vec<u128>, Duration) {
    let (mut made, mut last, mut longest) = (Vec::new(), Instant::now(), Duration::ZERO);
    while end.load(SeqCst) == 0 {
        match log.propose(network(id)).await {
            Ok(_) => {
                made.push(id);
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Err(ProposeError::NoLeader) => {}
            Err(error) => panic!("{error}"),
        }
        id += 1;
    }
    (made, longest)
}

fn holds_all(state: &State, made: &[u128]) {
    for id in made {
        assert!(state.network(NetworkId::from_u128(*id)).is_some(), "network {id} is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_manager_takes_any_command() {
    let managers = Managers::three().await;
    let proposals = (0..30u128).map(|id| {
        let log = managers.log(id % 3 + 1);
        async move {
            let (revision, _) = log.propose(network(100 + id)).await.unwrap();
            // Whoever has the answer reads what came of it.
            log.read(|state| {
                assert!(state.revision() >= revision);
                assert!(state.network(NetworkId::from_u128(100 + id)).is_some());
            });
            revision
        }
    });
    let revisions: BTreeSet<Revision> = join_all(proposals).await.into_iter().collect();
    assert_eq!(revisions.len(), 30, "each is applied once");
    let refused = managers.log(3).propose(network(100)).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Refused(_)), "{refused}");
    let state = managers.settled().await;
    assert_eq!(state.revision(), 32);
    let leader = managers.log(2).leader();
    assert_eq!(leader, Some(NodeId::from_u128(1)));
    let follower = managers.log(2).set_members(ids(&[1])).await.unwrap_err();
    assert_eq!(follower, MembersError::NotLeader(leader));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_loses_nothing_that_was_acknowledged() {
    let managers = Managers::three().await;
    let end = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = [2, 3]
        .map(|id| tokio::spawn(write(managers.log(id), id * 10_000, end.clone())))
        .into_iter()
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let disk = managers.kill(1);
    let leader = managers.leader_of(&[2, 3]).await;
    let other = 5 - leader;
    managers.log(other).propose(network(5)).await.unwrap();
    end.store(1, SeqCst);
    let written = join_all(writers).await;
    managers.start(1, &disk, false).await;
    let state = managers.settled().await;
    holds_all(&state, &[5]);
    for written in written {
        let (made, longest) = written.unwrap();
        println!("{} made, at most {longest:?} without one", made.len());
        assert!(made.len() > 10, "{}", made.len());
        holds_all(&state, &made);
    }
    assert_eq!(managers.log(1).members(), ids(&[1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_decides_nothing() {
    let managers = Managers::three().await;
    managers.cut_off(1);
    let lonely = managers.log(1);
    let lonely = tokio::spawn(async move { lonely.propose(network(7)).await });
    managers.leader_of(&[2, 3]).await;
    managers.log(2).propose(network(8)).await.unwrap();
    managers.log(3).propose(network(9)).await.unwrap();
    assert_eq!(lonely.await.unwrap().unwrap_err(), ProposeError::NoLeader);
    managers.heal();
    let state = managers.settled().await;
    holds_all(&state, &[8, 9]);
    assert!(state.network(NetworkId::from_u128(7)).is_none(), "it was acknowledged to nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_comes_back_without_its_log_decides_nothing_by_the_log_of_before() {
    let managers = Managers::default();
    managers.inner().entries = Some(100_000);
    managers.start(1, &Disk::default(), false).await;
    managers.log(1).propose(cluster()).await.unwrap();
    // More than what is sent at once.
    for id in 100..500 {
        managers.log(1).propose(network(id)).await.unwrap();
    }
    managers.start(2, &Disk::default(), true).await;
    managers.start(3, &Disk::default(), true).await;
    managers.log(1).set_members(ids(&[1, 2, 3])).await.unwrap();
    managers.log(1).set_members(ids(&[2, 3])).await.unwrap();
    managers.kill(1);
    let leader = managers.leader_of(&[2, 3]).await;
    managers.start(1, &Disk::default(), true).await;
    let log = managers.log(leader);
    let joins = tokio::spawn(async move { log.set_members(ids(&[1, 2, 3])).await });
    // It is on its own as soon as it has heard anything.
    let former = managers.log(1);
    while former.members().is_empty() && former.read(|state| state.revision()) == 0 {
        tokio::task::yield_now().await;
    }
    managers.cut_off(1);
    let decided = former.propose(network(1000)).await.unwrap_err();
    assert_eq!(decided, ProposeError::NoLeader);
    managers.heal();
    joins.await.unwrap().unwrap();
    assert!(managers.settled().await.network(NetworkId::from_u128(1000)).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stands_still_holds_nobody_up() {
    let managers = Managers::three().await;
    managers.silence(1);
    // Both are on their way to it when the others go on.
    let (writer, reader) = (managers.log(2), managers.log(3));
    let written = tokio::spawn(async move { writer.propose(network(8)).await });
    let read = tokio::spawn(async move { reader.catch_up().await });
    written.await.unwrap().unwrap();
    read.await.unwrap().unwrap();
    managers.heal();
    holds_all(&managers.settled().await, &[8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_decides_as_the_leader_no_later_leader_writes() {
    let managers = Managers::three().await;
    let (_, outcome) = managers.log(1).propose_leading(network(6)).await.unwrap();
    assert!(matches!(outcome, Outcome::Network(_)));
    managers.cut_off(1);
    let former = managers.log(1);
    let decided = tokio::spawn(async move { former.propose_leading(network(7)).await });
    managers.leader_of(&[2, 3]).await;
    managers.log(2).propose(network(8)).await.unwrap();
    managers.heal();
    assert_eq!(decided.await.unwrap().unwrap_err(), ProposeError::NoLeader);
    let follower = managers.log(1).propose_leading(network(9)).await.unwrap_err();
    assert_eq!(follower, ProposeError::NoLeader);
    let state = managers.settled().await;
    holds_all(&state, &[6, 8]);
    for id in [7, 9] {
        assert!(state.network(NetworkId::from_u128(id)).is_none(), "{id} was written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_comes_late_is_given_the_state() {
    let managers = Managers::founded().await;
    for id in 100..200 {
        managers.log(1).propose(network(id)).await.unwrap();
    }
    let replaced = managers.start(2, &Disk::default(), true).await;
    managers.log(1).set_members(ids(&[1, 2])).await.unwrap();
    managers.log(2).propose(network(200)).await.unwrap();
    let state = managers.settled().await;
    assert_eq!(replaced.load(SeqCst), 1, "entries that were removed cannot be sent");
    holds_all(&state, &(100..=200).collect::<Vec<_>>());

    // It keeps it, and while it is away nobody decides.
    let disk = managers.kill(2);
    let file = LogFile::open_on(disk.clone(), Path::new("log.redb")).unwrap();
    assert!(file.state().revision() > 90, "{}", file.state().revision());
    drop(file);
    managers.start(2, &disk, false).await;
    managers.log(1).propose(network(201)).await.unwrap();
    assert!(managers.settled().await.network(NetworkId::from_u128(201)).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_loses_power_while_it_is_given_the_state_is_given_it_again() {
    let managers = Managers::founded().await;
    for id in 100..130 {
        managers.log(1).propose(network(id)).await.unwrap();
    }
    let mut cuts = 0;
    loop {
        let disk = Disk::default();
        managers.start(2, &disk, true).await;
        disk.plan(cuts, Fault::PowerCut);
        let log = managers.log(1);
        let joins = tokio::spawn(async move { log.set_members(ids(&[1, 2])).await });
        while !disk.is_off() && !joins.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let joined_before = joins.is_finished();
        let disk = managers.kill(2);
        managers.start(2, &disk, true).await;
        joins.await.unwrap().unwrap();
        holds_all(&managers.settled().await, &(100..130).collect::<Vec<_>>());
        managers.log(1).set_members(ids(&[1])).await.unwrap();
        managers.kill(2);
        if joined_before {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 10, "the state was given with {cuts} operations of the disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_change_while_others_write() {
    let managers = Managers::founded().await;
    let end = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn(write(managers.log(1), 1000, end.clone()));
    for id in 2..=5 {
        managers.start(id, &Disk::default(), true).await;
    }
    for members in [&[1, 2, 3][..], &[1, 2, 3, 4, 5], &[1, 2, 3], &[1]] {
        managers.log(1).set_members(ids(members)).await.unwrap();
        assert_eq!(managers.log(1).members(), ids(members));
    }
    end.store(1, SeqCst);
    let (made, _) = writer.await.unwrap();
    for id in 2..=5 {
        managers.kill(id);
    }
    managers.log(1).propose(network(1)).await.unwrap();
    holds_all(&managers.log(1).read(State::clone), &made);
    assert!(!made.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_is_no_older_than_the_question() {
    let managers = Managers::three().await;
    for id in 0..60u128 {
        let (writer, reader) = (managers.log(id % 3 + 1), managers.log((id + 1) % 3 + 1));
        let (revision, _) = writer.propose(network(100 + id)).await.unwrap();
        reader.catch_up().await.unwrap();
        let read = reader.read(|state| state.revision());
        assert!(read >= revision, "{read} was read after {revision} was acknowledged");
    }

    // A leader that is cut off may still hold itself for one: it reads nothing.
    managers.cut_off(1);
    assert_eq!(managers.log(1).catch_up().await.unwrap_err(), ProposeError::NoLeader);
    assert!(!managers.log(1).is_confirmed().await);
    let leader = managers.leader_of(&[2, 3]).await;
    managers.log(5 - leader).catch_up().await.unwrap();
    assert!(managers.log(leader).is_confirmed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_alone_with_all_that_it_has() {
    let managers = Managers::three().await;
    for id in 100..150 {
        managers.log(2).propose(network(id)).await.unwrap();
    }
    managers.settled().await;
    managers.kill(1);
    managers.kill(2);
    let disk = managers.kill(3);
    let path = Path::new("log.redb");
    let mut file = LogFile::open_on(disk.clone(), path).unwrap();
    file.force_alone(NodeId::from_u128(3)).unwrap();
    holds_all(file.state(), &(100..150).collect::<Vec<_>>());
    drop(file);

    managers.start(3, &disk, false).await;
    let log = managers.log(3);
    assert_eq!(log.members(), ids(&[3]));
    log.propose(network(150)).await.unwrap();
    // Another can join it, and is given the state.
    let replaced = managers.start(4, &Disk::default(), true).await;
    log.set_members(ids(&[3, 4])).await.unwrap();
    managers.log(4).propose(network(151)).await.unwrap();
    let state = managers.settled().await;
    assert_eq!(replaced.load(SeqCst), 1);
    holds_all(&state, &(100..152).collect::<Vec<_>>());

    // It stays so after the next start.
    let disk = managers.kill(3);
    let file = LogFile::open_on(disk, path).unwrap();
    holds_all(file.state(), &(100..151).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_comes_is_in_nobodys_way() {
    let managers = Managers::founded().await;
    let log = managers.log(1);
    // Nobody is there; the caller gives it up.
    let never = log.set_members(ids(&[1, 9]));
    assert!(tokio::time::timeout(Duration::from_millis(300), never).await.is_err());
    assert_eq!(log.members(), ids(&[1]));
    log.propose(network(1)).await.unwrap();
    managers.start(2, &Disk::default(), true).await;
    log.set_members(ids(&[1, 2])).await.unwrap();
    managers.log(2).propose(network(2)).await.unwrap();
    assert_eq!(managers.settled().await.revision(), 3);
}

/// The disk of the one that leads, or of one that follows, fails once; it stops, and the others go on.
async fn go_on_without(failing: u128, errno: i32) {
    let managers = Managers::three().await;
    let disk = managers.inner().running[&NodeId::from_u128(failing)].1.clone();
    let end = Arc::new(AtomicUsize::new(0));
    let other = failing % 3 + 1;
    let writer = tokio::spawn(write(managers.log(other), 10_000, end.clone()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    disk.plan(3, Fault::Error(errno));
    let stopped = loop {
        match managers.log(failing).propose(network(1_000_000)).await {
            Err(ProposeError::Stopped(stopped)) => break stopped,
            // Before that, it is written, was written, or the leader's end is not known yet.
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert!(stopped.to_string().starts_with("the log log.redb is stopped: "), "{stopped}");
    let rest: Vec<u128> = (1..=3).filter(|id| *id != failing).collect();
    managers.leader_of(&rest).await;
    managers.log(other).propose(network(5)).await.unwrap();
    assert!(!managers.log(failing).is_current(), "its agents go to the others");
    end.store(1, SeqCst);
    let (made, _) = writer.await.unwrap();
    // With another start, on the same disk, it is one of them again.
    let disk = managers.kill(failing);
    managers.start(failing, &disk, false).await;
    let state = managers.settled().await;
    holds_all(&state, &made);
    holds_all(&state, &[5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_fails_gives_way() {
    go_on_without(1, EIO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_gives_way() {
    go_on_without(1, ENOSPC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_fails_is_in_nobodys_way() {
    go_on_without(3, EIO).await;
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_taken_out_and_comes_back_without_its_log_is_taken_in_again() {
    let managers = Managers::three().await;
    for id in 100..110 {
        managers.log(1).propose(network(id)).await.unwrap();
    }
    managers.settled().await;
    managers.kill(3);
    let log = managers.log(1);
    let taken_out = tokio::spawn(async move { log.set_members(ids(&[1, 2])).await });
    // While the others wait for it to hear that it is out, it is there with nothing.
    while managers.log(1).members() != ids(&[1, 2]) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    managers.start(3, &Disk::default(), true).await;
    taken_out.await.unwrap().unwrap();
    let again = managers.log(1);
    let again = tokio::time::timeout(Duration::from_secs(10), again.set_members(ids(&[1, 2, 3])));
    again.await.expect("it catches up").unwrap();
    managers.log(3).propose(network(200)).await.unwrap();
    holds_all(&managers.settled().await, &[100, 200]);
}
