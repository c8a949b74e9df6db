//! Commands as a manager proposes them, and the state that they must make.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use futures_util::future::join_all;
use overlay::{
    engine::cluster::{
        Cluster, Command, CreateEndpoint, CreateNetwork, Event, Ipv6, NameChoice, Outcome, Refusal,
        RegisterNode, Secrets, State, TokenUse,
    },
    manager::log::{
        Alone, Log, LogFile, Member, OpenError, ProposeError, Snapshots, StartError, Stopped, Watch,
    },
    types::{
        Availability, EndpointId, NetworkId, Node, NodeId, NodeStatus, Revision, Role, VersionRange,
    },
};

use crate::disk::{Disk, Random};

/// What was proposed, in order, and how many of it were acknowledged.
pub struct History {
    pub issued: Vec<Command>,
    pub acknowledged: usize,
    made: u128,
}

impl History {
    pub fn new() -> Self {
        Self { issued: Vec::new(), acknowledged: 0, made: 0 }
    }

    /// Proposes some rounds of commands, a few at once; ends early when the log stops.
    pub async fn go_on(
        &mut self,
        log: &Log,
        rounds: usize,
        random: &mut Random,
    ) -> Result<(), Stopped> {
        for _ in 0..rounds {
            let first = self.issued.len();
            let commands: Vec<Command> =
                (0..1 + random.below(6)).map(|_| self.command(random)).collect();
            // They enter the log in this order.
            let answers = join_all(commands.into_iter().map(|command| log.propose(command))).await;
            for (index, answer) in (first..).zip(answers) {
                match answer {
                    Ok((revision, outcome)) => {
                        let (wanted, state) = self.replayed(index);
                        assert_eq!(revision, state.revision());
                        assert_eq!(wanted, Ok(outcome), "revision {revision}");
                    }
                    Err(ProposeError::Refused(refusal)) => {
                        assert_eq!(self.replayed(index).0, Err(refusal));
                    }
                    Err(ProposeError::Stopped(stopped)) => return Err(stopped),
                    Err(other) => panic!("{other}"),
                }
                assert_eq!(self.acknowledged, index, "acknowledged in order");
                self.acknowledged += 1;
            }
        }
        Ok(())
    }

    /// Checks that a state is that of all that was acknowledged, and of nothing by halves.
    pub fn check(&self, state: &State) -> Result<(), String> {
        let revision = usize::try_from(state.revision()).unwrap();
        if !(self.acknowledged..=self.issued.len()).contains(&revision) {
            return Err(format!(
                "revision {revision} was found, {} were acknowledged of {}",
                self.acknowledged,
                self.issued.len()
            ));
        }
        let wanted = self.state_at(revision);
        (*state == wanted).then_some(()).ok_or(format!("the state of revision {revision} differs"))
    }

    /// Takes what was found for what was issued.
    pub fn forget_lost(&mut self, state: &State) {
        self.issued.truncate(usize::try_from(state.revision()).unwrap());
        self.acknowledged = self.issued.len();
    }

    /// The state after the first `count` commands.
    pub fn state_at(&self, count: usize) -> State {
        let mut state = State::default();
        for (revision, command) in (1..).zip(&self.issued[..count]) {
            let _ = state.apply(revision, command.clone());
        }
        state
    }

    fn replayed(&self, index: usize) -> (Result<Outcome, Refusal>, State) {
        let mut state = self.state_at(index);
        let revision = index as Revision + 1;
        let applied = state.apply(revision, self.issued[index].clone());
        (applied.map(|applied| applied.outcome), state)
    }

    /// The next command: a few kinds of objects, made and removed; some are refused.
    fn command(&mut self, random: &mut Random) -> Command {
        self.made += 1;
        let made = self.made;
        let some = random.below(usize::try_from(made).unwrap()) as u128 + 1;
        let command = match (made, random.below(10)) {
            (1, _) => cluster(),
            (2 | 3, _) => node(made),
            (4, _) => network(made),
            (_, 0 | 1) => network(made),
            (_, 2) => Command::RemoveNetwork(NetworkId::from_u128(some)),
            (_, 3) => {
                let status =
                    if some.is_multiple_of(2) { NodeStatus::Ready } else { NodeStatus::Down };
                Command::SetNodeStatus { node: NodeId::from_u128(2), status }
            }
            (_, 4 | 5) => {
                let endpoint = EndpointId::from_u128(some);
                Command::RemoveEndpoint { endpoint, node: NodeId::from_u128(2) }
            }
            (_, _) => endpoint(made, 4),
        };
        self.issued.push(command.clone());
        command
    }
}

/// Starts a log with snapshots often enough to be in the way.
pub async fn start(file: LogFile) -> Result<Log, StartError> {
    let snapshots = Snapshots { entries: 16, bytes: 1 << 20, part: 1024 };
    Log::start(file, Member { snapshots, ..alone() }).await
}

/// A member that decides alone, and whose watcher does nothing.
pub fn alone() -> Member {
    Member {
        manager: MANAGER,
        joins: false,
        snapshots: Snapshots::default(),
        transport: Arc::new(Alone),
        watcher: Box::new(Nobody),
    }
}

/// Is told, and does nothing.
pub struct Nobody;

impl Watch for Nobody {
    fn handle_applied(&mut self, _state: &State, _revision: Revision, _events: &[Event]) {}
    fn handle_replaced(&mut self, _state: &State) {}
}

pub async fn create(disk: &Disk) -> Log {
    start(LogFile::create_on(disk.clone(), Path::new("log.redb")).unwrap()).await.unwrap()
}

pub fn open(disk: &Disk) -> Result<LogFile, OpenError> {
    LogFile::open_on(disk.clone(), Path::new("log.redb"))
}

pub fn cluster() -> Command {
    let cluster = Cluster {
        id: [9; 16],
        pool: "10.0.0.0/8".parse().unwrap(),
        mask_length: 24,
        ula: "fd12:3456:789a::/48".parse().unwrap(),
        data_port: 7790,
        certificate_life_s: 3600,
        heartbeat_ms: 1000,
    };
    let secrets = Secrets {
        root: vec![1; 400],
        root_key: vec![2; 150],
        token_key: vec![3; 60],
        cluster_secret: vec![4; 60],
        epoch: 1,
        older: None,
        root_rotations: 0,
        former_roots: Vec::new(),
    };
    Command::CreateCluster { cluster, secrets }
}

pub fn node(id: u128) -> Command {
    let last = u8::try_from(id).unwrap();
    let node = Node {
        id: NodeId::from_u128(id),
        name: format!("n{id}").parse().unwrap(),
        role: Role::Worker,
        availability: Availability::Active,
        status: NodeStatus::Down,
        advertise_addr: ([192, 0, 2, last], 2377).into(),
        data_addr: ([192, 0, 2, last], 7790).into(),
        underlay_mtu: 1500,
        public_key: [last; 32],
        versions: VersionRange { lowest: 1, highest: 1 },
        version: "0.1.0".into(),
        labels: BTreeMap::new(),
    };
    let underlays = vec!["10.0.0.0/24".parse().unwrap()];
    let token = TokenUse::Standing { generation: 1 };
    Command::RegisterNode(RegisterNode { node, name: NameChoice::Exact, underlays, token })
}

pub fn network(id: u128) -> Command {
    Command::CreateNetwork(CreateNetwork {
        id: NetworkId::from_u128(id),
        name: format!("net{id}").parse().unwrap(),
        subnets: Vec::new(),
        gateways: Vec::new(),
        ipv6: Ipv6::Automatic,
        mtu: None,
        internal: false,
        vni: None,
        labels: BTreeMap::from([("key".into(), "a \"value\" \u{1}".into())]),
    })
}

pub fn endpoint(id: u128, network: u128) -> Command {
    Command::CreateEndpoint(CreateEndpoint {
        id: EndpointId::from_u128(id),
        name: None,
        network: NetworkId::from_u128(network),
        node: NodeId::from_u128(2),
        addresses: Vec::new(),
        aliases: vec!["alias".parse().unwrap()],
    })
}

/// Whose log it is.
pub const MANAGER: NodeId = NodeId::from_u128(1);
