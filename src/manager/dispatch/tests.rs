//! Sessions against a log: what is due to whom, and when it is acknowledged.

use std::path::Path;

use redb::backends::InMemoryBackend;

use super::*;
use crate::{
    engine::cluster::{
        Cluster, Command, CreateEndpoint, CreateNetwork, Ipv6, NameChoice, RegisterNode,
    },
    manager::{Log, LogFile, manager_key::ManagerKey, start_log},
    types::{Availability, EndpointId, Node, NodeStatus, Role, VersionRange},
};

struct Fixture {
    log: Log,
    dispatcher: Arc<Dispatcher>,
}

impl Fixture {
    /// Nodes 1 to 3, network 1.
    async fn new() -> Self {
        let trust = Trust::new([9; 16]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let secrets = trust.sealed(&ManagerKey::create(folder.path()).unwrap()).unwrap();
        let dispatcher = Arc::new(Dispatcher::new(Arc::new(trust)));
        let file = LogFile::create_on(InMemoryBackend::new(), Path::new("memory")).unwrap();
        let fixture = Self { log: start_log(file, dispatcher.clone()).unwrap(), dispatcher };
        let cluster = Cluster {
            id: [9; 16],
            pool: "10.0.0.0/8".parse().unwrap(),
            mask_length: 16,
            ula: "fd00::/48".parse().unwrap(),
            data_port: 7790,
        };
        fixture.apply(Command::CreateCluster { cluster, secrets }).await;
        for id in 1..=3 {
            fixture.apply(register(id)).await;
        }
        fixture
            .apply(Command::CreateNetwork(CreateNetwork {
                id: NetworkId::from_u128(1),
                name: "blue".parse().unwrap(),
                subnets: Vec::new(),
                gateways: Vec::new(),
                ipv6: Ipv6::None,
                mtu: None,
                internal: false,
                vni: None,
                labels: BTreeMap::new(),
            }))
            .await;
        fixture
    }

    async fn apply(&self, command: Command) -> Revision {
        self.log.propose(command).await.unwrap().0
    }

    async fn endpoint(&self, id: u128, node: u128) -> Revision {
        self.apply(Command::CreateEndpoint(CreateEndpoint {
            id: EndpointId::from_u128(id),
            name: None,
            network: NetworkId::from_u128(1),
            node: NodeId::from_u128(node),
            addresses: Vec::new(),
            aliases: Vec::new(),
        }))
        .await
    }

    async fn remove(&self, id: u128, node: u128) -> Revision {
        let (endpoint, node) = (EndpointId::from_u128(id), NodeId::from_u128(node));
        self.apply(Command::RemoveEndpoint { endpoint, node }).await
    }

    fn open(&self, node: u128) -> (SessionHandle, Table) {
        self.log.read(|state| self.dispatcher.open(state, NodeId::from_u128(node)))
    }

    fn lagging(&self, revision: Revision) -> Vec<u128> {
        let lagging = self.dispatcher.lagging(NetworkId::from_u128(1), revision);
        lagging.into_iter().map(NodeId::as_u128).collect()
    }

    /// Plays what is due onto a table.
    fn follow(&self, handle: &SessionHandle, table: &mut Table) {
        match self.dispatcher.take(handle) {
            Due::Nothing => {}
            Due::Delta { from, to, changes } => {
                *table = table.handle_delta(from, to, changes).unwrap();
            }
            Due::Snapshot => {
                let take = |state: &State| self.dispatcher.take_snapshot(state, handle);
                table.handle_snapshot(self.log.read(take).unwrap()).unwrap();
            }
            Due::Ended => panic!("the session ended"),
        }
    }
}

fn register(id: u8) -> Command {
    let node = Node {
        id: NodeId::from_u128(id.into()),
        name: format!("n{id}").parse().unwrap(),
        role: Role::Worker,
        availability: Availability::Active,
        status: NodeStatus::Down,
        advertise_addr: ([192, 0, 2, id], 2377).into(),
        data_addr: ([192, 0, 2, id], 7790).into(),
        underlay_mtu: 1500,
        public_key: [id; 32],
        versions: VersionRange { lowest: 1, highest: 1 },
        version: String::new(),
        labels: BTreeMap::new(),
    };
    Command::RegisterNode(RegisterNode { node, name: NameChoice::Exact, underlays: Vec::new() })
}

#[tokio::test]
async fn deltas_have_no_gaps_and_are_coalesced_for_a_slow_agent() {
    let fixture = Fixture::new().await;
    let (handle, mut table) = fixture.open(1);
    assert_eq!(fixture.dispatcher.take(&handle), Due::Nothing);
    fixture.endpoint(11, 1).await;
    fixture.follow(&handle, &mut table);
    assert_eq!(table.endpoints.len(), 1);
    // What does not concern the node is not sent, and leaves no gap.
    fixture.apply(register(4)).await;
    assert_eq!(fixture.dispatcher.take(&handle), Due::Nothing);
    fixture.endpoint(12, 2).await;
    let newest = fixture.endpoint(13, 3).await;
    fixture.follow(&handle, &mut table);
    assert_eq!((table.revision, table.endpoints.len(), table.peers.len()), (newest, 3, 2));
}

#[tokio::test]
async fn an_agent_slower_than_its_queue_gets_a_snapshot() {
    let fixture = Fixture::new().await;
    let (handle, mut table) = fixture.open(1);
    fixture.endpoint(11, 1).await;
    fixture.follow(&handle, &mut table);
    for _ in 0..MAX_QUEUED {
        fixture.endpoint(12, 2).await;
        fixture.remove(12, 2).await;
    }
    let newest = fixture.endpoint(13, 3).await;
    assert_eq!(fixture.dispatcher.take(&handle), Due::Snapshot);
    fixture.follow(&handle, &mut table);
    assert_eq!((table.revision, table.peers.len()), (newest, 1));
    fixture.endpoint(14, 2).await;
    fixture.follow(&handle, &mut table);
    assert_eq!((table.endpoints.len(), table.peers.len()), (3, 2), "deltas go on from there");
}

#[tokio::test]
async fn only_connected_agents_of_the_network_are_waited_for() {
    let fixture = Fixture::new().await;
    let (one, _) = fixture.open(1);
    let (_three, _) = fixture.open(3);
    fixture.endpoint(12, 2).await;
    let revision = fixture.endpoint(11, 1).await;
    assert_eq!(fixture.lagging(revision), [1], "2 is not connected, 3 is not on the network");
    fixture.dispatcher.handle_acknowledged(&one, revision);
    assert_eq!(fixture.lagging(revision), []);
    // A revision that does not concern it need not be acknowledged.
    let unrelated = fixture.apply(register(4)).await;
    assert_eq!(fixture.lagging(unrelated), []);
    let revision = fixture.endpoint(13, 2).await;
    assert_eq!(fixture.lagging(revision), [1]);
    assert!(fixture.dispatcher.close(&one));
    assert_eq!(fixture.lagging(revision), []);
}

#[tokio::test]
async fn a_newer_session_and_a_removal_end_the_older_one() {
    let fixture = Fixture::new().await;
    fixture.endpoint(11, 1).await;
    let (older, _) = fixture.open(1);
    let (newer, _) = fixture.open(1);
    assert_eq!(fixture.dispatcher.take(&older), Due::Ended);
    assert!(!fixture.dispatcher.close(&older), "it is not the node's newest");
    assert_eq!(fixture.dispatcher.take(&newer), Due::Nothing);
    fixture.apply(Command::RemoveNode(NodeId::from_u128(1))).await;
    assert_eq!(fixture.dispatcher.take(&newer), Due::Ended);
    assert_eq!(fixture.lagging(u64::MAX), []);
}
