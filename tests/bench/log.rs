//! The managers' log on this machine's disk: commits a second and how long one takes, and what a snapshot
//! of a large state and a new member cost those who write meanwhile. `cargo bench --bench bench --
//! log [SECONDS]` runs it; an hour shows that memory does not grow.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{future::join_all, join};
use overlay::{
    engine::cluster::{
        Cluster, Command, CreateEndpoint, CreateNetwork, Event, Ipv6, NameChoice, RegisterNode,
        Secrets, State, TokenUse, UpdateNode,
    },
    manager::log::{
        Alone, Answering, Log, LogFile, Member, NotReached, Request, Snapshots, Transport, Watch,
    },
    types::{
        Availability, EndpointId, NetworkId, Node, NodeId, NodeStatus, Revision, Role, VersionRange,
    },
};
use tokio::{task::JoinSet, time::interval};

/// Measures all of it.
pub fn run(seconds: u64) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    runtime.block_on(commits(folder.path(), Duration::from_secs(seconds)));
    runtime.block_on(large_state(folder.path()));
}

/// As fast as 64 writers can, then a thousand a second for `time`, with the memory that is resident after
/// each tenth of it.
async fn commits(folder: &Path, time: Duration) {
    let file = LogFile::create(&folder.join("small.redb")).expect("a log");
    let log = Arc::new(Log::start(file, member(1, false, Arc::new(Alone))).await.expect("a start"));
    for command in [cluster(), node(2)] {
        log.propose(command).await.expect("a commit");
    }
    let started = Instant::now();
    let writers = (0..64).map(|_| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            while started.elapsed() < Duration::from_secs(5) {
                took.push(timed(&log, status()).await);
            }
            took
        })
    });
    let mut took = Took::default();
    for writer in join_all(writers).await {
        writer.expect("a writer").into_iter().for_each(|each| took.add(each));
    }
    let rate = took.count as f64 / started.elapsed().as_secs_f64();
    println!("log: 64 writers: {rate:.0} commits/s, {took}");
    let mut resident = vec![resident_mb()];
    let mut took = Took::default();
    for _ in 0..10 {
        took.join(paced(&log, time / 10).await);
        resident.push(resident_mb());
    }
    println!("log: 1,000 commits/s: {took}");
    println!("log: MB resident before, and after each tenth of {time:?}: {resident:?}");
    log.close().await;
}

/// A thousand commits a second while a snapshot of 100 MB is written, and while a member gets it.
async fn large_state(folder: &Path) {
    let state = large();
    let megabytes = serde_json::to_vec(&state).expect("JSON").len() >> 20;
    let way = Arc::new(Way::default());
    let file = LogFile::create_with(&folder.join("large.redb"), state).expect("a log");
    let log = Log::start(file, member(1, false, way.clone())).await.expect("a start");
    let log = Arc::new(log);
    let _ = way.first.set(log.clone());
    let took = paced(&log, Duration::from_secs(3)).await;
    println!("log: {megabytes} MB of state: {}", took);

    // As many bytes of entries as the state has make another snapshot due: in the middle of it.
    let labels = Command::UpdateNode(UpdateNode {
        node: NodeId::from_u128(2),
        availability: None,
        labels_added: BTreeMap::from([("key".to_owned(), "v".repeat(16_000))]),
        labels_removed: Vec::new(),
    });
    let fill = async |megabytes: usize| {
        for _ in 0..megabytes {
            join_all((0..64).map(|_| log.propose(labels.clone()))).await;
        }
    };
    fill(megabytes - 4).await;
    let (took, ()) = join!(paced(&log, Duration::from_secs(8)), fill(8));
    println!("log: while a snapshot of it is written: {}", took);

    let file = LogFile::create(&folder.join("second.redb")).expect("a log");
    let second = Log::start(file, member(2, true, way.clone())).await.expect("a start");
    let _ = way.second.set(Arc::new(second));
    let joins = {
        let log = log.clone();
        tokio::spawn(async move {
            let started = Instant::now();
            let members = [1, 2].map(NodeId::from_u128).into();
            log.set_members(members).await.expect("it joins");
            started.elapsed()
        })
    };
    let took = paced(&log, Duration::from_secs(10)).await;
    println!(
        "log: while a member gets it, which takes {:?}: {}",
        joins.await.expect("a join"),
        took
    );
    log.close().await;
}

/// The two logs, and the ways between them.
#[derive(Default)]
struct Way {
    first: OnceLock<Arc<Log>>,
    second: OnceLock<Arc<Log>>,
}

impl Transport for Way {
    fn call(&self, member: NodeId, request: Request) -> Answering<'_> {
        Box::pin(async move {
            let log = if member == NodeId::from_u128(1) { &self.first } else { &self.second };
            let log = log.get().ok_or_else(|| NotReached("it is not there yet".to_owned()))?;
            Ok(log.handle(request).await)
        })
    }
}

/// Is told, and does nothing.
struct Nobody;

impl Watch for Nobody {
    fn handle_applied(&mut self, _state: &State, _revision: Revision, _events: &[Event]) {}
    fn handle_replaced(&mut self, _state: &State) {}
}

fn member(id: u128, joins: bool, transport: Arc<dyn Transport>) -> Member {
    Member {
        manager: NodeId::from_u128(id),
        joins,
        snapshots: Snapshots::default(),
        transport,
        watcher: Box::new(Nobody),
    }
}

async fn timed(log: &Log, command: Command) -> Duration {
    let started = Instant::now();
    log.propose(command).await.expect("a commit");
    started.elapsed()
}

/// Ten commits each hundredth of a second, whatever became of those before.
async fn paced(log: &Arc<Log>, time: Duration) -> Took {
    let mut ticks = interval(Duration::from_millis(10));
    let mut commits = JoinSet::new();
    let mut took = Took::default();
    let started = Instant::now();
    while started.elapsed() < time {
        ticks.tick().await;
        while let Some(each) = commits.try_join_next() {
            took.add(each.expect("a commit"));
        }
        for _ in 0..10 {
            let log = log.clone();
            commits.spawn(async move { timed(&log, status()).await });
        }
    }
    for each in commits.join_all().await {
        took.add(each);
    }
    took
}

/// How long commits took, in memory that does not grow with their number: how many by tenths of a
/// millisecond, the last for all that took longer.
struct Took {
    by_tenths: Vec<u64>,
    count: u64,
    longest: Duration,
}

impl Default for Took {
    fn default() -> Self {
        Took { by_tenths: vec![0; 100_000], count: 0, longest: Duration::ZERO }
    }
}

impl Took {
    fn add(&mut self, took: Duration) {
        let tenth = (took.as_micros() / 100) as usize;
        self.by_tenths[tenth.min(99_999)] += 1;
        self.count += 1;
        self.longest = self.longest.max(took);
    }

    fn join(&mut self, other: Took) {
        for (here, there) in self.by_tenths.iter_mut().zip(&other.by_tenths) {
            *here += there;
        }
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    /// The upper end of the tenth of a millisecond that holds the commit at that part of them.
    fn at(&self, part: f64) -> Duration {
        let wanted = (self.count as f64 * part) as u64;
        let mut before = 0;
        let tenth = self.by_tenths.iter().position(|count| {
            before += count;
            before > wanted
        });
        Duration::from_micros(100) * (tenth.unwrap_or(99_999) as u32 + 1)
    }
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99] = [0.5, 0.99].map(|part| self.at(part));
        write!(f, "p50 {p50:?}, p99 {p99:?}, longest {:.1?}", self.longest)
    }
}

fn resident_mb() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    (pages * 4096) >> 20
}

fn status() -> Command {
    Command::SetNodeStatus { node: NodeId::from_u128(2), status: NodeStatus::Ready }
}

/// A state of about 100 MB: 300,000 endpoints on 20 networks.
fn large() -> State {
    let mut state = State::default();
    let mut apply = |command| {
        let revision = state.revision() + 1;
        state.apply(revision, command).expect("a command");
    };
    apply(cluster());
    apply(node(2));
    for network in 1..=20 {
        apply(Command::CreateNetwork(CreateNetwork {
            id: NetworkId::from_u128(network),
            name: format!("net{network}").parse().expect("a name"),
            subnets: Vec::new(),
            gateways: Vec::new(),
            ipv6: Ipv6::None,
            mtu: None,
            internal: false,
            vni: None,
            labels: BTreeMap::new(),
        }));
        for endpoint in 0..15_000 {
            let id = network << 64 | endpoint;
            apply(Command::CreateEndpoint(CreateEndpoint {
                id: EndpointId::from_u128(id),
                name: Some(
                    format!("a-service-of-some-name-{network}-{endpoint}").parse().expect("a name"),
                ),
                network: NetworkId::from_u128(network),
                node: NodeId::from_u128(2),
                addresses: Vec::new(),
                aliases: Vec::new(),
            }));
        }
    }
    state
}

/// Makes a cluster.
pub fn cluster() -> Command {
    let cluster = Cluster {
        id: [9; 16],
        pool: "10.0.0.0/8".parse().expect("a subnet"),
        mask_length: 16,
        ula: "fd12:3456:789a::/48".parse().expect("a subnet"),
        data_port: 7790,
        certificate_life_s: 3600,
        heartbeat_ms: 1000,
    };
    let secrets = Secrets {
        root: Vec::new(),
        root_key: Vec::new(),
        token_key: Vec::new(),
        cluster_secret: Vec::new(),
        epoch: 1,
        older: None,
        root_rotations: 0,
        former_roots: Vec::new(),
    };
    Command::CreateCluster { cluster, secrets }
}

/// Takes a worker in, of which nothing is heard yet.
pub fn node(id: u128) -> Command {
    let mut public_key = [0; 32];
    public_key[..16].copy_from_slice(&id.to_be_bytes());
    let node = Node {
        id: NodeId::from_u128(id),
        name: format!("n{id}").parse().expect("a name"),
        role: Role::Worker,
        availability: Availability::Active,
        status: NodeStatus::Down,
        advertise_addr: "192.0.2.2:2377".parse().expect("an address"),
        data_addr: "192.0.2.2:7790".parse().expect("an address"),
        underlay_mtu: 1500,
        public_key,
        versions: VersionRange { lowest: 1, highest: 1 },
        version: "0.1.0".into(),
        labels: BTreeMap::new(),
    };
    let token = TokenUse::Standing { generation: 1 };
    Command::RegisterNode(RegisterNode {
        node,
        name: NameChoice::Exact,
        underlays: Vec::new(),
        token,
    })
}
