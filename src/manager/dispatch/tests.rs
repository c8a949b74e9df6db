//! Sessions against a log: what is due to whom, and when it is acknowledged.

use std::path::Path;

use redb::backends::InMemoryBackend;

use super::*;
use crate::{
    engine::cluster::{
        Cluster, Command, CreateEndpoint, CreateNetwork, Ipv6, NameChoice, RegisterNode, TokenUse,
    },
    engine::membership::{Replica, Table},
    manager::{Log, LogFile, Tell, log::Alone, manager_key::ManagerKey, start_log},
    types::{Availability, EndpointId, Node, NodeStatus, Role, VersionRange},
};

struct Fixture {
    log: Log,
    dispatcher: Arc<Dispatcher>,
}

impl Fixture {
    /// Nodes 1 to 3, network 1.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = ManagerKey::create(folder.path()).unwrap();
        let trust = Trust::new([9; 16], key).unwrap();
        let secrets = trust.sealed().unwrap();
        let dispatcher = Arc::new(Dispatcher::new(Arc::new(trust)));
        let file = LogFile::create_on(InMemoryBackend::new(), Path::new("memory")).unwrap();
        let tell = Tell(dispatcher.clone(), Arc::default());
        let log =
            start_log(file, NodeId::from_u128(1), false, tell, Arc::new(Alone)).await.unwrap();
        let fixture = Self { log, dispatcher };
        let cluster = Cluster {
            id: [9; 16],
            pool: "10.0.0.0/8".parse().unwrap(),
            mask_length: 16,
            ula: "fd00::/48".parse().unwrap(),
            data_port: 7790,
            certificate_life_s: 3600,
            heartbeat_ms: 1000,
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

    /// Opens the session of a node that knows nothing yet.
    fn open(&self, node: u128) -> (SessionHandle, Replica) {
        let mut replica = Replica::new(Table::empty(NodeId::from_u128(node)));
        let (handle, _) = self.resume(&mut replica).unwrap();
        (handle, replica)
    }

    /// Opens the session of a node with this copy, which takes the snapshot; tells which scopes that
    /// was.
    fn resume(
        &self,
        replica: &mut Replica,
    ) -> Result<(SessionHandle, Option<BTreeSet<ScopeId>>), Ahead> {
        let (node, held) = (replica.table().node, replica.position());
        let open = |state: &State| self.dispatcher.open(state, node, held, &replica.digests());
        let (handle, snapshot) = self.log.read(open)?;
        let scopes = snapshot.scopes.clone();
        replica.handle_snapshot(snapshot).unwrap();
        self.acknowledge(&handle, replica);
        Ok((handle, scopes))
    }

    fn acknowledge(&self, handle: &SessionHandle, replica: &Replica) {
        self.dispatcher.handle_acknowledged(handle, replica.table().revision);
    }

    /// Has others look for a node while these are silent; tells who does.
    fn look_for(&self, node: u128, silent: &[u128]) -> Vec<u128> {
        let silent = silent.iter().copied().map(NodeId::from_u128).collect();
        let node = NodeId::from_u128(node);
        let look = |state: &State| self.dispatcher.look_for(state, node, &silent, 3);
        self.log.read(look).into_iter().map(NodeId::as_u128).collect()
    }

    fn lagging(&self, revision: Revision) -> Vec<u128> {
        let lagging = self.dispatcher.lagging(NetworkId::from_u128(1), revision);
        lagging.into_iter().map(NodeId::as_u128).collect()
    }

    /// Plays what is due onto a copy, and acknowledges it.
    fn follow(&self, handle: &SessionHandle, replica: &mut Replica) {
        match self.dispatcher.take(handle) {
            Due::Nothing => {}
            Due::Delta { from, to, changes } => {
                replica.handle_delta(from, to, changes).unwrap();
            }
            Due::Snapshot(scopes) => {
                let take = |state: &State| {
                    let part = self.dispatcher.take_snapshot(state, handle, scopes);
                    part.or_else(|| self.dispatcher.take_snapshot(state, handle, None))
                };
                replica.handle_snapshot(self.log.read(take).unwrap()).unwrap();
            }
            Due::Ended => panic!("the session ended"),
        }
        self.acknowledge(handle, replica);
    }
}

fn register(id: u16) -> Command {
    let [high, low] = id.to_be_bytes();
    let mut public_key = [0; 32];
    public_key[..2].copy_from_slice(&[high, low]);
    let node = Node {
        id: NodeId::from_u128(id.into()),
        name: format!("n{id}").parse().unwrap(),
        role: Role::Worker,
        availability: Availability::Active,
        status: NodeStatus::Down,
        advertise_addr: ([198, 18, high, low], 2377).into(),
        data_addr: ([198, 18, high, low], 7790).into(),
        underlay_mtu: 1500,
        public_key,
        versions: VersionRange { lowest: 1, highest: 1 },
        version: String::new(),
        labels: BTreeMap::new(),
    };
    let token = TokenUse::Standing { generation: 1 };
    let underlays = Vec::new();
    Command::RegisterNode(RegisterNode { node, name: NameChoice::Exact, underlays, token })
}

#[tokio::test]
async fn deltas_have_no_gaps_and_are_coalesced_for_a_slow_agent() {
    let fixture = Fixture::new().await;
    let (handle, mut replica) = fixture.open(1);
    assert_eq!(fixture.dispatcher.take(&handle), Due::Nothing);
    fixture.endpoint(11, 1).await;
    fixture.follow(&handle, &mut replica);
    assert_eq!(replica.table().endpoints.len(), 1);
    // What does not concern the node is not sent, and leaves no gap.
    fixture.apply(register(4)).await;
    assert_eq!(fixture.dispatcher.take(&handle), Due::Nothing);
    fixture.endpoint(12, 2).await;
    let newest = fixture.endpoint(13, 3).await;
    fixture.follow(&handle, &mut replica);
    let table = replica.table();
    assert_eq!((table.revision, table.endpoints.len(), table.peers.len()), (newest, 3, 2));
}

#[tokio::test]
async fn what_changes_before_an_acknowledgement_is_one_delta_after_it() {
    let fixture = Fixture::new().await;
    let (handle, mut replica) = fixture.open(1);
    let first = fixture.endpoint(11, 1).await;
    let Due::Delta { from, to, changes } = fixture.dispatcher.take(&handle) else {
        panic!("a change is due");
    };
    assert_eq!(to.revision, first);
    replica.handle_delta(from, to, changes).unwrap();
    for id in 12..20 {
        fixture.endpoint(id, 2).await;
        assert_eq!(fixture.dispatcher.take(&handle), Due::Nothing, "the first is on its way");
    }
    let newest = fixture.endpoint(20, 3).await;
    fixture.dispatcher.handle_acknowledged(&handle, first - 1);
    assert_eq!(fixture.dispatcher.take(&handle), Due::Nothing, "an older one says nothing");
    fixture.acknowledge(&handle, &replica);
    fixture.follow(&handle, &mut replica);
    let table = replica.table();
    assert_eq!((table.revision, table.endpoints.len()), (newest, 10));
}

#[tokio::test]
async fn above_a_thousand_nodes_the_heartbeat_grows_with_them() {
    let fixture = Fixture::new().await;
    let mut heartbeat = fixture.dispatcher.heartbeat();
    heartbeat.mark_unchanged();
    let ms = |heartbeat: &watch::Receiver<Duration>| heartbeat.borrow().as_millis();
    for id in 4..=1000 {
        fixture.apply(register(id)).await;
    }
    assert_eq!((ms(&heartbeat), heartbeat.has_changed().unwrap()), (1000, false));
    fixture.apply(register(1001)).await;
    assert_eq!((ms(&heartbeat), heartbeat.has_changed().unwrap()), (1100, true));
    fixture.apply(Command::RemoveNode(NodeId::from_u128(7))).await;
    assert_eq!(ms(&heartbeat), 1000);
}

#[tokio::test]
async fn an_agent_slower_than_its_queue_gets_a_snapshot() {
    let fixture = Fixture::new().await;
    let (handle, mut replica) = fixture.open(1);
    fixture.endpoint(11, 1).await;
    fixture.follow(&handle, &mut replica);
    for _ in 0..MAX_QUEUED {
        fixture.endpoint(12, 2).await;
        fixture.remove(12, 2).await;
    }
    let newest = fixture.endpoint(13, 3).await;
    assert_eq!(fixture.dispatcher.take(&handle), Due::Snapshot(None));
    fixture.follow(&handle, &mut replica);
    assert_eq!((replica.table().revision, replica.table().peers.len()), (newest, 1));
    fixture.endpoint(14, 2).await;
    fixture.follow(&handle, &mut replica);
    let table = replica.table();
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
    assert_eq!(fixture.lagging(revision), [0u128; 0]);
    // A revision that does not concern it need not be acknowledged.
    let unrelated = fixture.apply(register(4)).await;
    assert_eq!(fixture.lagging(unrelated), [0u128; 0]);
    let revision = fixture.endpoint(13, 2).await;
    assert_eq!(fixture.lagging(revision), [1]);
    fixture.dispatcher.close(&one);
    assert_eq!(fixture.lagging(revision), [0u128; 0]);
}

#[tokio::test]
async fn a_newer_session_and_a_removal_end_the_older_one() {
    let fixture = Fixture::new().await;
    fixture.endpoint(11, 1).await;
    let (older, _) = fixture.open(1);
    let (newer, _) = fixture.open(1);
    assert_eq!(fixture.dispatcher.take(&older), Due::Ended);
    fixture.dispatcher.close(&older);
    assert!(!fixture.dispatcher.is_open(&older) && fixture.dispatcher.is_open(&newer));
    assert_eq!(fixture.dispatcher.take(&newer), Due::Nothing);
    fixture.apply(Command::RemoveNode(NodeId::from_u128(1))).await;
    assert_eq!(fixture.dispatcher.take(&newer), Due::Ended);
    assert_eq!(fixture.lagging(u64::MAX), [0u128; 0]);
}

#[tokio::test]
async fn an_agent_that_comes_back_is_sent_only_what_it_lacks() {
    let fixture = Fixture::new().await;
    let blue = ScopeId::Network(NetworkId::from_u128(1));
    fixture.endpoint(11, 1).await;
    fixture.endpoint(12, 2).await;
    let (_, mut replica) = fixture.open(1);
    let (_, scopes) = fixture.resume(&mut replica).unwrap();
    assert_eq!(scopes, Some(BTreeSet::new()), "nothing has changed");
    fixture.endpoint(13, 2).await;
    let (_, scopes) = fixture.resume(&mut replica).unwrap();
    assert_eq!(scopes, Some(BTreeSet::from([blue])), "an endpoint more, of a peer that it knows");
    fixture.endpoint(14, 3).await;
    let (_, scopes) = fixture.resume(&mut replica).unwrap();
    assert_eq!(scopes, Some(BTreeSet::from([blue, ScopeId::Peers])), "and a peer more");
    fixture.remove(11, 1).await;
    let (_, scopes) = fixture.resume(&mut replica).unwrap();
    assert_eq!(scopes, Some(BTreeSet::from([blue, ScopeId::Peers])), "all is gone");
    let table = replica.table();
    assert!(table.networks.is_empty() && table.endpoints.is_empty() && table.peers.is_empty());
}

#[tokio::test]
async fn a_manager_that_knows_less_than_an_agent_does_not_serve_it() {
    let fixture = Fixture::new().await;
    let revision = fixture.endpoint(11, 1).await;
    let ahead = Table { epoch: 1, revision: revision + 1, ..Table::empty(NodeId::from_u128(1)) };
    let refused = fixture.resume(&mut Replica::new(ahead)).err().unwrap().to_string();
    assert_eq!(
        refused,
        format!(
            "the node has heard of position 1.{}, and this manager stands at 1.{revision}",
            revision + 1
        )
    );
}

#[tokio::test]
async fn a_bookmark_finds_what_an_agent_has_wrong_and_a_part_mends_it() {
    let fixture = Fixture::new().await;
    let (handle, mut replica) = fixture.open(1);
    assert_eq!(fixture.dispatcher.take_bookmark(&handle), None, "nothing was sent since");
    fixture.endpoint(11, 1).await;
    fixture.endpoint(12, 2).await;
    assert_eq!(fixture.dispatcher.take_bookmark(&handle), None, "changes are due first");
    fixture.follow(&handle, &mut replica);
    let (position, digests) = fixture.dispatcher.take_bookmark(&handle).unwrap();
    assert_eq!(replica.handle_bookmark(position, &digests), Ok(BTreeSet::new()));
    assert_eq!(fixture.dispatcher.take_bookmark(&handle), None, "once is enough");

    // The copy takes a change that nobody made.
    let mut bent = replica.table().endpoints[&EndpointId::from_u128(12)].clone();
    bent.addresses = vec!["10.0.7.7/16".parse().unwrap()];
    let at = replica.position();
    replica.handle_delta(at, at, vec![Change::Endpoint(bent)]).unwrap();
    fixture.endpoint(13, 2).await;
    fixture.follow(&handle, &mut replica);
    let (position, digests) = fixture.dispatcher.take_bookmark(&handle).unwrap();
    let differ = replica.handle_bookmark(position, &digests).unwrap();
    assert_eq!(differ, BTreeSet::from([ScopeId::Network(NetworkId::from_u128(1))]));
    let take = |state: &State| fixture.dispatcher.take_snapshot(state, &handle, Some(differ));
    let part = fixture.log.read(take).unwrap();
    assert_eq!((part.endpoints.len(), part.peers.len()), (3, 0), "of that scope only");
    replica.handle_snapshot(part).unwrap();
    assert_eq!(replica.handle_bookmark(position, &digests), Ok(BTreeSet::new()));
}

#[tokio::test]
async fn a_part_of_the_table_waits_for_changes_that_come_before_it() {
    let fixture = Fixture::new().await;
    let (handle, mut replica) = fixture.open(1);
    let part = || {
        let peers = Some(BTreeSet::from([ScopeId::Peers]));
        fixture.log.read(|state| fixture.dispatcher.take_snapshot(state, &handle, peers))
    };
    fixture.endpoint(11, 1).await;
    assert_eq!(part(), None, "a change is due");
    // The agent asked while the change was under way to it: it throws that away.
    assert!(matches!(fixture.dispatcher.take(&handle), Due::Delta { .. }));
    assert_eq!(part(), None, "a change is on its way");
    let whole = fixture.log.read(|state| fixture.dispatcher.take_snapshot(state, &handle, None));
    replica.handle_snapshot(whole.unwrap()).unwrap();
    fixture.acknowledge(&handle, &replica);
    assert!(replica.table().endpoints.contains_key(&EndpointId::from_u128(11)));
    assert_eq!(part().unwrap().scopes, Some(BTreeSet::from([ScopeId::Peers])));
}

#[tokio::test]
async fn only_who_was_told_to_look_has_looked() {
    let fixture = Fixture::new().await;
    let (handle, _) = fixture.open(1);
    let (other, silent) = (fixture.open(3).0, NodeId::from_u128(2));
    fixture.endpoint(11, 1).await;
    fixture.endpoint(12, 2).await;
    let looked = |handle| fixture.dispatcher.handle_looked(handle, silent);
    assert_eq!(fixture.look_for(2, &[]), [1]);
    assert!(!looked(&handle), "before it was told");
    assert_eq!(fixture.dispatcher.take_wanted(&handle), Some(silent));
    assert_eq!(fixture.look_for(2, &[]), [1], "what it finds is for both");
    assert_eq!(fixture.dispatcher.take_wanted(&handle), None);
    assert!(!looked(&other) && looked(&handle) && !looked(&handle), "once, by who was told");
}

#[tokio::test]
async fn who_answers_nothing_is_asked_for_only_so_many() {
    let fixture = Fixture::new().await;
    let (handle, _) = fixture.open(1);
    fixture.endpoint(1, 1).await;
    for id in 4..=200 {
        fixture.apply(register(id)).await;
        fixture.endpoint(id.into(), id.into()).await;
    }
    let asked = |id| !fixture.look_for(id, &[]).is_empty();
    let all: Vec<u128> = (4..=200).filter(|id| asked(*id)).collect();
    assert_eq!(all.len(), MAX_WANTED);
    while fixture.dispatcher.take_wanted(&handle).is_some() {}
    assert!(!asked(200), "it looks for as many");
    assert!(fixture.dispatcher.handle_looked(&handle, NodeId::from_u128(4)));
    assert!(asked(200));
}

#[tokio::test]
async fn who_has_no_table_yet_or_is_silent_itself_is_no_witness() {
    let fixture = Fixture::new().await;
    let mut replica = Replica::new(Table::empty(NodeId::from_u128(1)));
    let held = replica.position();
    let open = |state: &State| fixture.dispatcher.open(state, NodeId::from_u128(1), held, &[]);
    let (handle, snapshot) = fixture.log.read(open).unwrap();
    fixture.endpoint(11, 1).await;
    fixture.endpoint(12, 2).await;
    assert_eq!(fixture.look_for(2, &[]), [0; 0], "its first table is on its way");
    replica.handle_snapshot(snapshot).unwrap();
    fixture.acknowledge(&handle, &replica);
    assert_eq!(fixture.look_for(2, &[1]), [0; 0], "it may have vanished with the suspect");
    assert_eq!(fixture.look_for(2, &[]), [1]);
}

#[tokio::test]
async fn a_node_opens_only_so_many_sessions() {
    let fixture = Fixture::new().await;
    let (now, node) = (Instant::now(), NodeId::from_u128(1));
    let turn = |node, now| fixture.dispatcher.turn(node, now);
    assert!(
        (0..OPENINGS_AT_ONCE).all(|_| turn(node, now) == Some(now)),
        "it may have to come back"
    );
    assert_eq!(turn(node, now), Some(now + OPENING), "then one after the other");
    let waiting = (0..1000).filter(|_| turn(node, now).is_some()).count();
    assert_eq!(waiting, OPENINGS_AT_ONCE as usize - 1, "and no more of them wait");
    assert_eq!(turn(NodeId::from_u128(2), now), Some(now), "that is one node's affair");
    let later = now + 3 * OPENINGS_AT_ONCE * OPENING;
    assert_eq!(turn(node, later), Some(later));
}

fn epochs_of(replica: &Replica, peer: u128) -> Vec<u32> {
    let peer = &replica.table().peers[&NodeId::from_u128(peer)];
    peer.psks.iter().map(|psk| psk.epoch).collect()
}

#[tokio::test]
async fn new_keys_come_as_one_snapshot_of_the_peers_before_anything_newer() {
    let fixture = Fixture::new().await;
    let (handle, mut replica) = fixture.open(1);
    fixture.endpoint(11, 1).await;
    fixture.endpoint(12, 2).await;
    fixture.follow(&handle, &mut replica);
    assert_eq!(epochs_of(&replica, 2), [1]);
    let node =
        |id| Command::SetNodeStatus { node: NodeId::from_u128(id), status: NodeStatus::Ready };
    fixture.apply(node(1)).await;
    let lacks = |revision| fixture.log.read(|state| fixture.dispatcher.lacks_keys(state, revision));

    let secret = fixture.dispatcher.trust.draw_secret().unwrap();
    let rotated = fixture.apply(Command::RotateSecret { secret: secret.clone() }).await;
    let peers = Some(BTreeSet::from([ScopeId::Peers]));
    assert_eq!(fixture.dispatcher.take(&handle), Due::Snapshot(peers));
    assert_eq!(fixture.dispatcher.take_bookmark(&handle), None, "keys are due first");
    fixture.dispatcher.handle_acknowledged(&handle, rotated);
    assert!(lacks(rotated), "nothing was sent yet");
    fixture.follow(&handle, &mut replica);
    assert_eq!((epochs_of(&replica, 2), replica.table().revision), (vec![2, 1], rotated));
    assert!(!lacks(rotated));
    let refused = fixture.log.propose(Command::RotateSecret { secret }).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the cluster secret has a successor already; wait until all nodes have its keys"
    );

    // What changes beside comes with it, and the digests agree.
    fixture.apply(Command::DropOlderSecret { epoch: 1 }).await;
    fixture.endpoint(13, 3).await;
    fixture.follow(&handle, &mut replica);
    assert_eq!((epochs_of(&replica, 2), epochs_of(&replica, 3)), (vec![2], vec![2]));
    fixture.endpoint(14, 2).await;
    fixture.follow(&handle, &mut replica);
    let (position, digests) = fixture.dispatcher.take_bookmark(&handle).unwrap();
    assert_eq!(replica.handle_bookmark(position, &digests), Ok(BTreeSet::new()));
    let before = fixture.apply(Command::DropOlderSecret { epoch: 1 }).await;
    assert_eq!(fixture.dispatcher.take(&handle), Due::Nothing, "it was dropped before {before}");

    // A node that is ready and not connected may lack them; one that is down does not count.
    fixture.apply(node(2)).await;
    fixture.dispatcher.handle_acknowledged(&handle, u64::MAX);
    assert!(lacks(rotated));
    let down = Command::SetNodeStatus { node: NodeId::from_u128(2), status: NodeStatus::Down };
    fixture.apply(down).await;
    assert!(!lacks(rotated));
}
