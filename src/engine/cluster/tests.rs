//! The machine through its public face: allocation, refusals, and need-to-know against slow models.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::{
    engine::membership::{Replica, Table},
    types::{
        Availability, Desired, Mode, NodeStatus, Peer, Psk, Role, ServiceSpec, Slot, TaskNetwork,
        TaskSpec, TaskState, TaskStatus, UpdatePolicy, VersionRange, Vni,
    },
};

/// A state with the command numbers that a log would give.
struct Log {
    state: State,
}

impl Log {
    fn with_pool(pool: &str, mask_length: u8) -> Self {
        let mut log = Self { state: State::default() };
        log.apply(create_cluster(pool, mask_length)).unwrap();
        log
    }

    fn new() -> Self {
        Self::with_pool("10.0.0.0/8", 24)
    }

    fn apply(&mut self, command: Command) -> Result<Applied, Refusal> {
        self.state.apply(self.state.revision() + 1, command)
    }

    /// Applies what must be refused, and checks that nothing but the revision changed.
    fn refused(&mut self, command: Command) -> String {
        let before = self.state.clone();
        let refusal = self.apply(command).unwrap_err();
        self.state.revision = before.revision;
        assert_eq!(self.state, before, "a refused command changed the state");
        refusal.to_string()
    }

    fn node(&mut self, id: u128) -> NodeId {
        self.apply(Command::RegisterNode(register(id))).unwrap();
        NodeId::from_u128(id)
    }

    fn network(&mut self, create: CreateNetwork) -> Network {
        match self.apply(Command::CreateNetwork(create)).unwrap().outcome {
            Outcome::Network(network) => network,
            other => panic!("{other:?}"),
        }
    }

    fn endpoint(&mut self, create: CreateEndpoint) -> Endpoint {
        match self.apply(Command::CreateEndpoint(create)).unwrap().outcome {
            Outcome::Endpoint(endpoint) => endpoint,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn create_cluster(pool: &str, mask_length: u8) -> Command {
    let cluster = Cluster {
        id: [9; 16],
        pool: pool.parse().unwrap(),
        mask_length,
        ula: "fd12:3456:789a::/48".parse().unwrap(),
        data_port: 7790,
        certificate_life_s: 3600,
        heartbeat_ms: 5000,
    };
    let secrets = Secrets {
        root: vec![1],
        root_key: vec![2],
        token_key: vec![3],
        cluster_secret: vec![4],
        epoch: 1,
        older: None,
        root_rotations: 0,
        former_roots: Vec::new(),
    };
    Command::CreateCluster { cluster, secrets }
}

pub(super) fn register(id: u128) -> RegisterNode {
    let last = u8::try_from(id % 250).unwrap();
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
    let token = TokenUse::Standing { generation: 1 };
    RegisterNode { node, name: NameChoice::Exact, underlays: Vec::new(), token }
}

pub(super) fn net(id: u128) -> CreateNetwork {
    CreateNetwork {
        id: NetworkId::from_u128(id),
        name: format!("net{id}").parse().unwrap(),
        subnets: Vec::new(),
        gateways: Vec::new(),
        ipv6: Ipv6::None,
        mtu: None,
        internal: false,
        vni: None,
        labels: BTreeMap::new(),
    }
}

fn net_on(id: u128, subnets: &[&str]) -> CreateNetwork {
    let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
    CreateNetwork { subnets, ..net(id) }
}

fn end(id: u128, network: u128, node: u128) -> CreateEndpoint {
    CreateEndpoint {
        id: EndpointId::from_u128(id),
        name: Some(format!("e{id}").parse().unwrap()),
        network: NetworkId::from_u128(network),
        node: NodeId::from_u128(node),
        addresses: Vec::new(),
        aliases: Vec::new(),
    }
}

fn end_at(id: u128, network: u128, addresses: &[&str]) -> CreateEndpoint {
    let addresses = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
    CreateEndpoint { addresses, ..end(id, network, 1) }
}

fn texts(nets: &[IpNet]) -> Vec<String> {
    nets.iter().map(ToString::to_string).collect()
}

#[test]
fn subnets_vnis_gateways_and_addresses_are_serial() {
    let mut log = Log::new();
    log.node(1);
    let first = log.network(net(1));
    assert_eq!(texts(&first.subnets), ["10.0.0.0/24"]);
    assert_eq!(first.gateways, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(first.vni, Vni::new(4097).unwrap());
    let second = log.network(CreateNetwork { ipv6: Ipv6::Automatic, ..net(2) });
    assert_eq!(texts(&second.subnets), ["10.0.1.0/24", "fd12:3456:789a::/64"]);
    assert_eq!(second.vni, Vni::new(4098).unwrap());

    assert_eq!(texts(&log.endpoint(end(1, 1, 1)).addresses), ["10.0.0.2/24"]);
    assert_eq!(texts(&log.endpoint(end(2, 1, 1)).addresses), ["10.0.0.3/24"]);
    let both = log.endpoint(end(3, 2, 1));
    assert_eq!(texts(&both.addresses), ["10.0.1.2/24", "fd12:3456:789a::2/64"]);
}

#[test]
fn a_freed_address_is_not_given_again_at_once() {
    let mut log = Log::new();
    let node = log.node(1);
    log.network(net_on(1, &["10.9.0.0/29"]));
    log.endpoint(end(1, 1, 1));
    log.apply(Command::RemoveEndpoint { endpoint: EndpointId::from_u128(1), node }).unwrap();
    let given: Vec<_> =
        (2..7).map(|id| log.endpoint(end(id, 1, 1)).addresses[0].addr().to_string()).collect();
    assert_eq!(given, ["10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6", "10.9.0.2"]);
    let sentence = log.refused(Command::CreateEndpoint(end(7, 1, 1)));
    assert_eq!(
        sentence,
        "no free address is left in 10.9.0.0/29 of network net1; detach an endpoint"
    );
}

#[test]
fn automatic_subnets_leave_out_what_nodes_stand_on() {
    let mut log = Log::with_pool("10.0.0.0/22", 24);
    let underlays = vec!["10.0.0.7/32".parse().unwrap(), "10.0.2.0/23".parse().unwrap()];
    log.apply(Command::RegisterNode(RegisterNode { underlays, ..register(1) })).unwrap();
    assert_eq!(texts(&log.network(net(1)).subnets), ["10.0.1.0/24"]);
    assert_eq!(
        log.refused(Command::CreateNetwork(net(2))),
        "no free subnet is left in 10.0.0.0/22; name one with --subnet, or remove a network"
    );
    log.apply(Command::RemoveNode(NodeId::from_u128(1))).unwrap();
    assert_eq!(texts(&log.network(net(2)).subnets), ["10.0.0.0/24"]);
}

#[test]
fn chosen_subnets_of_different_networks_may_overlap() {
    let mut log = Log::new();
    for id in 1..=3 {
        let made = log.network(net_on(id, &["fd00:1::/64", "10.1.0.0/24"]));
        assert_eq!(texts(&made.subnets), ["10.1.0.0/24", "fd00:1::/64"]);
    }
}

#[test]
fn what_a_network_held_comes_back() {
    let mut log = Log::with_pool("10.0.0.0/24", 24);
    let create = || CreateNetwork { vni: Vni::new(7), ..net(1) };
    let made = log.network(create());
    log.apply(Command::RemoveNetwork(made.id)).unwrap();
    assert_eq!(log.network(create()).subnets, made.subnets);
}

#[test]
fn bad_subnets_are_refused() {
    let check = |subnets: &[&str], sentence: &str| {
        let refused = Log::new().refused(Command::CreateNetwork(net_on(1, subnets)));
        assert_eq!(refused, sentence);
    };
    check(&["10.1.0.5/24"], "subnet 10.1.0.5/24 is not a network address; use 10.1.0.0/24");
    check(
        &["10.1.0.0/31"],
        "subnet 10.1.0.0/31 is too small for a gateway and one endpoint; use /30 or shorter",
    );
    check(
        &["fd00::/127"],
        "subnet fd00::/127 is too small for a gateway and one endpoint; use /126 or shorter",
    );
    check(&["0.0.0.0/0"], "subnet 0.0.0.0/0 is too large; use /8 or longer");
    check(
        &["127.0.0.0/24"],
        "subnet 127.0.0.0/24 is reserved; use a private one such as 10.1.0.0/24 or fd00:1::/64",
    );
    check(
        &["10.1.0.0/16", "10.1.2.0/24"],
        "subnets 10.1.0.0/16 and 10.1.2.0/24 of one network overlap; use subnets that do not",
    );
    check(
        &["10.1.0.0/24", "10.2.0.0/24"],
        "subnets 10.1.0.0/24 and 10.2.0.0/24 are of one family; a network takes one IPv4 and one IPv6 subnet",
    );
}

#[test]
fn bad_gateways_vnis_mtus_and_labels_are_refused() {
    let gateways = |list: &[&str]| list.iter().map(|addr| addr.parse().unwrap()).collect();
    let base = || net_on(1, &["10.1.0.0/24"]);
    let check = |create: CreateNetwork, sentence: &str| {
        assert_eq!(Log::new().refused(Command::CreateNetwork(create)), sentence);
    };
    check(
        CreateNetwork { gateways: gateways(&["10.2.0.1"]), ..base() },
        "gateway 10.2.0.1 is in no subnet of the network; use an address of 10.1.0.0/24",
    );
    check(
        CreateNetwork { gateways: gateways(&["10.1.0.255"]), ..base() },
        "gateway 10.1.0.255 is the network or broadcast address of 10.1.0.0/24; use another",
    );
    check(
        CreateNetwork { gateways: gateways(&["10.1.0.1", "10.1.0.2"]), ..base() },
        "gateways 10.1.0.1 and 10.1.0.2 are in one subnet; a subnet takes one",
    );
    check(CreateNetwork { vni: Vni::new(0), ..base() }, "vni 0 is reserved; use 1 to 16777215");
    let range = "out of range; use 576 to 65407, and with IPv6 at least 1280";
    check(CreateNetwork { mtu: Some(575), ..base() }, &format!("mtu 575 is {range}"));
    let ipv6 = CreateNetwork { mtu: Some(1279), ipv6: Ipv6::Automatic, ..base() };
    check(ipv6, &format!("mtu 1279 is {range}"));
    let labels = BTreeMap::from([("k".to_owned(), "v".repeat(16_384))]);
    check(
        CreateNetwork { labels, ..base() },
        "the labels are too large; at most 64, together 16384 bytes, none with an empty key",
    );
}

#[test]
fn taken_names_and_numbers_are_refused() {
    let mut log = Log::new();
    log.node(1);
    let made = log.network(CreateNetwork { vni: Vni::new(5000), ..net(1) });
    let name = made.name.clone();
    assert_eq!(
        log.refused(Command::CreateNetwork(CreateNetwork { name, ..net(2) })),
        format!("the name net1 is taken by network {}; choose another", made.id)
    );
    assert_eq!(
        log.refused(Command::CreateNetwork(CreateNetwork { vni: Vni::new(5000), ..net(2) })),
        "vni 5000 is taken by network net1; choose another"
    );
    log.endpoint(end_at(1, 1, &["10.0.0.9"]));
    assert_eq!(
        log.refused(Command::CreateEndpoint(end_at(2, 1, &["10.0.0.9"]))),
        "address 10.0.0.9 is in use by endpoint e1; use another, or detach that one"
    );
    let name = Some("e1".parse().unwrap());
    assert_eq!(
        log.refused(Command::CreateEndpoint(CreateEndpoint { name, ..end(2, 1, 1) })),
        format!("the name e1 is taken by endpoint {}; choose another", EndpointId::from_u128(1))
    );
    assert_eq!(
        log.refused(Command::RemoveNetwork(made.id)),
        "network net1 is in use by 1 endpoint(s); detach them first"
    );
}

#[test]
fn bad_addresses_are_refused() {
    let mut log = Log::new();
    log.node(1);
    log.network(net(1));
    let mut check = |addresses: &[&str], sentence: &str| {
        let refused = log.refused(Command::CreateEndpoint(end_at(1, 1, addresses)));
        assert_eq!(refused, sentence);
    };
    check(
        &["10.7.0.2"],
        "address 10.7.0.2 is in no subnet of network net1; use an address of 10.0.0.0/24",
    );
    check(
        &["10.0.0.0"],
        "address 10.0.0.0 is the network or broadcast address of 10.0.0.0/24; use another",
    );
    check(
        &["10.0.0.255"],
        "address 10.0.0.255 is the network or broadcast address of 10.0.0.0/24; use another",
    );
    check(&["10.0.0.1"], "address 10.0.0.1 is the gateway of network net1; use another");
    check(
        &["10.0.0.5", "10.0.0.6"],
        "addresses 10.0.0.5 and 10.0.0.6 are in one subnet; an endpoint takes one of each",
    );
}

#[test]
fn only_its_own_node_ends_an_endpoint() {
    let mut log = Log::new();
    log.node(1);
    let other = log.node(2);
    log.network(net(1));
    let endpoint = log.endpoint(end(1, 1, 1)).id;
    assert_eq!(
        log.refused(Command::RemoveEndpoint { endpoint, node: other }),
        "endpoint e1 is on another node; detach it there"
    );
}

#[test]
fn a_cluster_is_made_once_and_from_a_usable_pool() {
    let mut log = Log::new();
    assert_eq!(
        log.refused(create_cluster("10.0.0.0/8", 24)),
        "the cluster is made already; join it instead"
    );
    let check = |pool, mask_length, sentence: &str| {
        let mut log = Log { state: State::default() };
        let refused = log.refused(create_cluster(pool, mask_length));
        assert_eq!(refused, sentence);
    };
    check("10.0.0.1/8", 24, "subnet 10.0.0.1/8 is not a network address; use 10.0.0.0/8");
    check(
        "10.0.0.0/16",
        12,
        "address pool 10.0.0.0/16 cannot hold subnets of length 12; the length must be that of the pool or longer, and at most 30",
    );
}

#[test]
fn node_names_are_unique_and_a_returning_node_replaces_itself() {
    let mut log = Log::new();
    let first = log.node(1);
    log.network(net(1));
    log.endpoint(end(1, 1, 1));
    let again = |id: u128, key: u8, name: NameChoice| {
        let node = Node { id: NodeId::from_u128(id), public_key: [key; 32], ..register(1).node };
        Command::RegisterNode(RegisterNode { node, name, ..register(1) })
    };
    assert_eq!(
        log.refused(again(2, 2, NameChoice::Exact)),
        format!("the name n1 is taken by node {first}; choose another")
    );
    match log.apply(again(2, 2, NameChoice::Near)).unwrap().outcome {
        Outcome::Node(node) => assert_eq!(node.name.as_str(), "n1-2"),
        other => panic!("{other:?}"),
    }
    log.apply(Command::SetNodeStatus { node: first, status: NodeStatus::Ready }).unwrap();
    assert_eq!(
        log.refused(again(3, 1, NameChoice::Exact)),
        "this node is a member already, as node n1; leave it so, or end that daemon first"
    );
    log.apply(Command::SetNodeStatus { node: first, status: NodeStatus::Down }).unwrap();
    let applied = log.apply(again(3, 1, NameChoice::Exact)).unwrap();
    match &applied.events[..] {
        [Event::EndpointRemoved(_), Event::NodeRemoved(gone), Event::NodeChanged(new)] => {
            assert_eq!((*gone, *new), (first, NodeId::from_u128(3)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(log.state.endpoints().count(), 0);
}

fn limited(number: u8, expires_at_s: Option<u64>, uses: Option<u32>) -> Command {
    let hash = TokenHash([number; 32]);
    Command::CreateToken(CreateToken { hash, role: Role::Worker, expires_at_s, uses, now_s: 100 })
}

/// A node that comes by limited token `number`.
fn by_limited(id: u128, number: u8, now_s: u64) -> Command {
    let token = TokenUse::Limited { hash: TokenHash([number; 32]), now_s };
    Command::RegisterNode(RegisterNode { token, ..register(id) })
}

#[test]
fn a_rotated_token_is_refused_and_puts_nobody_out() {
    let mut log = Log::new();
    let node = log.node(1);
    let rotated = log.apply(Command::RotateToken { role: Role::Worker, now_s: 0 }).unwrap();
    assert_eq!(rotated.outcome, Outcome::Generation(2));
    assert!(log.state.node(node).is_some());
    assert_eq!(
        log.refused(Command::RegisterNode(register(2))),
        "the token was rotated; take the new one from a manager with 'overlayctl join-token worker'"
    );
    let token = TokenUse::Standing { generation: 2 };
    log.apply(Command::RegisterNode(RegisterNode { token, ..register(2) })).unwrap();
    assert_eq!(log.state.token_generation(Role::Manager), 1, "the other role's stays");
}

#[test]
fn a_used_up_token_is_refused_and_a_failed_join_uses_nothing() {
    let mut log = Log::new();
    log.node(1);
    log.apply(limited(7, None, Some(2))).unwrap();
    let Command::RegisterNode(taken) = by_limited(2, 7, 100) else { unreachable!("it registers") };
    let name = "n1".parse().unwrap();
    let taken = RegisterNode { node: Node { name, ..taken.node.clone() }, ..taken };
    let refused = log.refused(Command::RegisterNode(taken));
    assert!(refused.starts_with("the name n1 is taken"), "{refused}");
    log.apply(by_limited(2, 7, 100)).unwrap();
    log.apply(by_limited(3, 7, 100)).unwrap();
    let used_up =
        "the token is used up; take another from a manager with 'overlayctl join-token worker'";
    assert_eq!(log.refused(by_limited(4, 7, 100)), used_up);
    assert_eq!(
        log.refused(by_limited(4, 8, 100)),
        "the token's secret is wrong; take a token from a manager with 'overlayctl join-token worker'"
    );
    let Command::RegisterNode(manager) = by_limited(4, 7, 100) else {
        unreachable!("it registers")
    };
    let node = Node { role: Role::Manager, ..manager.node };
    let refused = log.refused(Command::RegisterNode(RegisterNode { node, ..manager }));
    assert!(refused.starts_with("the token's secret is wrong"), "a worker's token: {refused}");
}

#[test]
fn an_expired_token_is_refused_and_swept_by_the_next_change_of_tokens() {
    let mut log = Log::new();
    log.apply(limited(7, Some(200), None)).unwrap();
    log.apply(by_limited(1, 7, 199)).unwrap();
    let expired =
        "the token has expired; take another from a manager with 'overlayctl join-token worker'";
    assert_eq!(log.refused(by_limited(2, 7, 200)), expired);
    log.apply(Command::RotateToken { role: Role::Worker, now_s: 199 }).unwrap();
    assert_eq!(log.refused(by_limited(2, 7, 200)), expired);
    log.apply(Command::RotateToken { role: Role::Worker, now_s: 200 }).unwrap();
    assert!(log.refused(by_limited(2, 7, 200)).starts_with("the token's secret is wrong"));
}

#[test]
fn the_same_node_asks_again_with_the_same_use_until_it_is_heard() {
    let mut log = Log::new();
    log.apply(limited(7, None, Some(1))).unwrap();
    log.apply(by_limited(1, 7, 100)).unwrap();
    // Its answer was lost: it comes again with its key, and gets another id.
    let again = |id: u128| {
        let Command::RegisterNode(register) = by_limited(1, 7, 100) else {
            unreachable!("it registers")
        };
        let node = Node { id: NodeId::from_u128(id), ..register.node };
        Command::RegisterNode(RegisterNode { node, ..register })
    };
    log.apply(again(11)).unwrap();
    let nodes: Vec<u128> = log.state.nodes().map(|node| node.id.as_u128()).collect();
    assert_eq!(nodes, [11], "it is one node");
    assert!(log.refused(by_limited(2, 7, 100)).starts_with("the token is used up"));

    let status = |status| Command::SetNodeStatus { node: NodeId::from_u128(11), status };
    log.apply(status(NodeStatus::Ready)).unwrap();
    assert!(log.refused(again(12)).starts_with("the token is used up"));
    log.apply(status(NodeStatus::Down)).unwrap();
    assert!(log.refused(again(12)).starts_with("the token is used up"), "it had its answer");
}

#[test]
fn limited_tokens_are_bounded_and_the_ended_ones_make_room() {
    let mut log = Log::new();
    let token = |number: u16, expires_at_s, uses, now_s| {
        let mut hash = [0; 32];
        hash[..2].copy_from_slice(&number.to_be_bytes());
        let hash = TokenHash(hash);
        Command::CreateToken(CreateToken { hash, role: Role::Worker, expires_at_s, uses, now_s })
    };
    for number in 0..1024 {
        let end = (number == 0).then_some(200);
        log.apply(token(number, end, Some(1), 100)).unwrap();
    }
    assert_eq!(
        log.refused(token(1024, None, None, 199)),
        "the cluster has 1024 tokens made with --ttl or --uses, which is the most it keeps; use the standing one, or wait until some end"
    );
    log.apply(token(1024, None, None, 200)).unwrap();
    log.refused(token(1025, None, None, 200));
    let mut hash = [0; 32];
    hash[1] = 1;
    let use_it = TokenUse::Limited { hash: TokenHash(hash), now_s: 200 };
    log.apply(Command::RegisterNode(RegisterNode { token: use_it, ..register(1) })).unwrap();
    log.apply(token(1025, None, None, 200)).unwrap();
}

/// The keys of a pair, recognisable.
fn pair_keys(a: NodeId, b: NodeId) -> Vec<Psk> {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&a.min(b).to_bytes());
    key[16..].copy_from_slice(&a.max(b).to_bytes());
    vec![Psk { epoch: 1, key }]
}

#[test]
fn a_node_of_another_wire_version_is_refused() {
    let mut log = Log::new();
    let manager = Node { role: Role::Manager, ..register(1).node };
    log.apply(Command::RegisterNode(RegisterNode { node: manager, ..register(1) })).unwrap();
    let versions = VersionRange { lowest: 2, highest: 3 };
    let newer = Node { versions, ..register(2).node };
    let refused = log.refused(Command::RegisterNode(RegisterNode { node: newer, ..register(2) }));
    assert_eq!(
        refused,
        "the node speaks wire versions 2 to 3, and node n1 1 to 1; use the same overlayd"
    );
    let both = Node { versions: VersionRange { lowest: 1, highest: 3 }, ..register(2).node };
    log.apply(Command::RegisterNode(RegisterNode { node: both, ..register(2) })).unwrap();
}

/// The epochs of those keys, which is what digests look at.
fn epochs() -> Vec<Psk> {
    vec![Psk { epoch: 1, key: [0; 32] }]
}

/// The slow version of need-to-know: looks at everything.
fn rebuilt(state: &State, me: NodeId) -> Table {
    let own = state.endpoints().filter(|endpoint| endpoint.node == me);
    let networks: BTreeSet<NetworkId> = own.map(|endpoint| endpoint.network).collect();
    let known: Vec<&Endpoint> =
        state.endpoints().filter(|endpoint| networks.contains(&endpoint.network)).collect();
    let others = state.nodes().filter(|node| node.id != me).filter(|node| {
        let manages = |id| state.node(id).is_some_and(|node| node.role == Role::Manager);
        let shared = known.iter().any(|endpoint| endpoint.node == node.id);
        shared || manages(me) || manages(node.id)
    });
    let peer = |node: &Node| Peer::new(node, pair_keys(me, node.id));
    Table {
        node: me,
        epoch: state.position().epoch,
        revision: state.revision(),
        networks: state
            .networks()
            .filter(|network| networks.contains(&network.id))
            .map(|network| (network.id, network.clone()))
            .collect(),
        endpoints: known.iter().map(|endpoint| (endpoint.id, (*endpoint).clone())).collect(),
        peers: others.map(|node| (node.id, peer(node))).collect(),
        tasks: state
            .tasks()
            .filter(|task| task.node == Some(me))
            .filter_map(|task| Some((task.id, state.node_task(task.id)?)))
            .collect(),
    }
}

/// Service 1 is on no network, service 2 on network 1.
fn service(id: u128) -> Command {
    let networks = match id {
        2 => vec![TaskNetwork { network: NetworkId::from_u128(1), aliases: Vec::new() }],
        _ => Vec::new(),
    };
    let task = TaskSpec { command: vec!["true".into()], networks, ..TaskSpec::default() };
    let spec = ServiceSpec {
        mode: Mode::Replicated { replicas: 9 },
        task,
        update: UpdatePolicy::default(),
        rollback: UpdatePolicy::default(),
        labels: BTreeMap::new(),
    };
    let name = format!("s{id}").parse().unwrap();
    Command::CreateService(CreateService { id: ServiceId::from_u128(id), name, spec })
}

/// Something that happens to one of a few tasks, of which every second is service 2's.
fn task_change() -> impl Strategy<Value = Command> {
    let desired =
        prop_oneof![Just(Desired::Running), Just(Desired::Shutdown), Just(Desired::Remove)];
    let state = prop_oneof![Just(TaskState::Running), Just(TaskState::Failed)];
    (1..20u128, 1..5u128, 0..5, desired, state).prop_map(|(number, node, what, desired, state)| {
        let (task, node) = (TaskId::from_u128(number), NodeId::from_u128(node));
        let of_two = number % 2 == 0;
        let endpoints = of_two.then(|| EndpointId::from_u128(9000 + number)).into_iter().collect();
        let to = Assignment { node, endpoints };
        let change = match what {
            0 | 1 => TaskChange::Create(CreateTask {
                id: task,
                service: ServiceId::from_u128(if of_two { 2 } else { 1 }),
                slot: Slot::Replica(1),
                version: 1,
                desired: Desired::Ready,
                attempt: 0,
                window_start_ms: 0,
                to: Ok(to),
            }),
            2 => TaskChange::Want { task, desired },
            3 => TaskChange::Forget(task),
            _ => TaskChange::Observe(Observed {
                task,
                node,
                status: TaskStatus { state, since_ms: 1, message: None, exit: None },
            }),
        };
        Command::ChangeTasks { changes: vec![change], now_ms: 1 }
    })
}

fn command() -> impl Strategy<Value = Command> {
    let create = (1..1000u128, 1..5u128, 1..5u128)
        .prop_map(|(id, network, node)| Command::CreateEndpoint(end(id, network, node)));
    let remove = (any::<prop::sample::Index>(), 1..5u128).prop_map(|(index, node)| {
        // The node is replaced by the endpoint's own when the command is played.
        let endpoint = EndpointId::from_u128(index.index(1 << 20) as u128);
        Command::RemoveEndpoint { endpoint, node: NodeId::from_u128(node) }
    });
    prop_oneof![
        6 => create,
        4 => remove,
        1 => (1..3u128).prop_map(service),
        1 => (1..3u128).prop_map(|id| Command::RemoveService {
            service: ServiceId::from_u128(id),
            now_ms: 1,
        }),
        6 => task_change(),
        1 => (1..5u128).prop_map(|id| Command::CreateNetwork(net(id))),
        1 => (1..5u128).prop_map(|id| Command::RemoveNetwork(NetworkId::from_u128(id))),
        1 => (1..5u128).prop_map(|id| Command::RemoveNode(NodeId::from_u128(id))),
        1 => (1..5u128).prop_map(|id| Command::RegisterNode(register(id))),
        1 => (1..5u128, 1..3u8).prop_map(|(id, token)| by_limited(id, token, 100)),
        1 => (1..3u8).prop_map(|number| limited(number, None, Some(2))),
        1 => Just(Command::RotateSecret { secret: vec![5] }),
        1 => (1..4u32).prop_map(|epoch| Command::DropOlderSecret { epoch }),
        1 => (0..4u32).prop_map(|rotations| Command::RotateRoot(next_root(rotations))),
        1 => (0..4u32).prop_map(|rotations| Command::DropFormerRoot { rotations }),
        1 => (1..5u128, 0..4u32).prop_map(|(id, rotations)| Command::NoteCertified {
            node: NodeId::from_u128(id),
            rotations,
        }),
        1 => (1..5u128, any::<bool>()).prop_map(|(id, ready)| Command::SetNodeStatus {
            node: NodeId::from_u128(id),
            status: if ready { NodeStatus::Ready } else { NodeStatus::Down },
        }),
        2 => (1..5u128, any::<bool>()).prop_map(|(id, manager)| Command::SetRole {
            node: NodeId::from_u128(id),
            role: if manager { Role::Manager } else { Role::Worker },
        }),
    ]
}

#[test]
fn the_only_manager_stays_one_and_whoever_was_one_makes_another_secret_due() {
    let mut log = Log::new();
    let (first, second) = (log.node(1), log.node(2));
    let set = |node, role| Command::SetRole { node, role };
    let applied = log.apply(set(first, Role::Manager)).unwrap();
    assert_eq!(applied.events, [Event::RoleChanged(first, Role::Manager)]);
    assert_eq!(log.apply(set(first, Role::Manager)).unwrap().events, [], "nothing changed");
    let refused = log.refused(set(first, Role::Worker));
    assert_eq!(refused, "node n1 is the only manager; promote another node first");
    log.apply(set(second, Role::Worker)).unwrap();
    log.apply(set(second, Role::Manager)).unwrap();
    assert!(!log.state.is_secret_due());
    let applied = log.apply(set(first, Role::Worker)).unwrap();
    assert_eq!(applied.events, [Event::RoleChanged(first, Role::Worker)]);
    assert!(log.state.is_secret_due(), "it has seen the one that there is");
    log.refused(set(NodeId::from_u128(9), Role::Manager));
}

#[test]
fn a_node_that_goes_makes_another_secret_due_and_there_are_two_at_most() {
    let mut log = Log::new();
    log.node(1);
    log.node(2);
    assert!(!log.state.is_secret_due());
    // A node that comes back takes its own place: nobody has left.
    let again = RegisterNode {
        node: Node { public_key: register(1).node.public_key, ..register(3).node },
        ..register(3)
    };
    log.apply(Command::RegisterNode(again)).unwrap();
    assert!(!log.state.is_secret_due());
    log.apply(Command::RemoveNode(NodeId::from_u128(2))).unwrap();
    assert!(log.state.is_secret_due());

    let rotate = |secret| Command::RotateSecret { secret: vec![secret] };
    let applied = log.apply(rotate(5)).unwrap();
    assert_eq!(applied.events, [Event::SecretsChanged]);
    let since = log.state.revision();
    let secrets = log.state.secrets().unwrap().clone();
    assert_eq!((secrets.epoch, secrets.cluster_secret), (2, vec![5]));
    assert_eq!(secrets.older, Some(OlderSecret { epoch: 1, secret: vec![4], since }));
    assert!(!log.state.is_secret_due());
    log.refused(rotate(6));

    let drop = |epoch| Command::DropOlderSecret { epoch };
    assert_eq!(log.apply(drop(2)).unwrap().events, [], "that is the newest");
    assert_eq!(log.apply(drop(1)).unwrap().events, [Event::SecretsChanged]);
    assert_eq!(log.apply(drop(1)).unwrap().events, [], "it is gone already");
    log.apply(rotate(6)).unwrap();
    assert_eq!(log.state.secrets().unwrap().epoch, 3);
}

fn next_root(rotations: u32) -> RotateRoot {
    let number = u8::try_from(rotations).unwrap() + 1;
    RotateRoot { rotations, root: vec![number], root_key: vec![8], bridge: vec![number, 9] }
}

#[test]
fn a_root_is_trusted_until_no_ready_node_is_under_it() {
    let mut log = Log::new();
    let [one, two] = [log.node(1), log.node(2)];
    let status = |node, status| Command::SetNodeStatus { node, status };
    log.apply(status(one, NodeStatus::Ready)).unwrap();
    let rotated = log.apply(Command::RotateRoot(next_root(0))).unwrap();
    assert_eq!(rotated.events, [Event::RootsChanged]);
    let trusted = |log: &Log| -> Vec<bool> {
        log.state.secrets().unwrap().former_roots.iter().map(|former| former.trusted).collect()
    };
    assert_eq!((log.state.secrets().unwrap().root.clone(), trusted(&log)), (vec![1], vec![true]));
    let under =
        |log: &Log| -> Vec<NodeId> { log.state.under_former_roots().map(|node| node.id).collect() };
    assert_eq!(under(&log), [one], "the other is down");
    assert_eq!(
        log.refused(Command::RotateRoot(next_root(1))),
        "the root certificate is being rotated, and 1 node(s) that are ready have none under the new one yet; wait, or see 'overlayctl node ls'"
    );

    log.apply(Command::NoteCertified { node: one, rotations: 1 }).unwrap();
    log.apply(Command::RegisterNode(register(3))).unwrap();
    log.apply(status(NodeId::from_u128(3), NodeStatus::Ready)).unwrap();
    assert_eq!(under(&log), [], "whoever joins has a certificate under the newest");
    let drop = |rotations| Command::DropFormerRoot { rotations };
    assert_eq!(log.apply(drop(0)).unwrap().events, []);
    assert_eq!(log.apply(drop(1)).unwrap().events, [Event::RootsChanged]);
    assert_eq!(trusted(&log), [false], "its bridge stays");
    assert_eq!(log.apply(drop(1)).unwrap().events, []);
    log.apply(status(two, NodeStatus::Ready)).unwrap();
    assert_eq!(under(&log), [two], "it is back with what it had");

    // A root that does not follow on the newest is refused, and only some are remembered.
    log.refused(Command::RotateRoot(next_root(0)));
    for rotations in 1..7 {
        log.apply(Command::RotateRoot(next_root(rotations))).unwrap();
        log.apply(drop(rotations + 1)).unwrap();
    }
    let bridges: Vec<u8> =
        log.state.secrets().unwrap().former_roots.iter().map(|former| former.bridge[0]).collect();
    assert_eq!(bridges, [7, 6, 5, 4]);
    let gone = Command::NoteCertified { node: NodeId::from_u128(9), rotations: 1 };
    assert!(log.refused(gone).starts_with("there is no node"), "a node that went gets none");
}

#[test]
fn a_log_from_before_lives_and_rotations_is_read() {
    let json = serde_json::to_value(create_cluster("10.0.0.0/8", 24)).unwrap();
    let mut old = json.clone();
    for field in ["certificate_life_s", "heartbeat_ms"] {
        old["CreateCluster"]["cluster"].as_object_mut().unwrap().remove(field);
    }
    for field in ["older", "root_rotations", "former_roots"] {
        old["CreateCluster"]["secrets"].as_object_mut().unwrap().remove(field);
    }
    let mut log = Log { state: State::default() };
    log.apply(serde_json::from_value(old).unwrap()).unwrap();
    assert_eq!(log.state.cluster().unwrap().certificate_life_s, 30 * 24 * 3600);
    assert_eq!(log.state.heartbeat(), Duration::from_secs(1));
    let mut state = serde_json::to_value(&log.state).unwrap();
    for field in ["secret_due", "certified"] {
        state.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(serde_json::from_value::<State>(state).unwrap(), log.state);
}

/// Points a removal at an endpoint that exists, if there is one.
fn aimed(state: &State, command: Command) -> Command {
    match command {
        Command::RemoveEndpoint { endpoint, node } => {
            let count = state.endpoints().count().max(1);
            let index = usize::try_from(endpoint.as_u128()).unwrap() % count;
            match state.endpoints().nth(index) {
                Some(found) => Command::RemoveEndpoint { endpoint: found.id, node: found.node },
                None => Command::RemoveEndpoint { endpoint, node },
            }
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn deltas_make_the_table_that_the_state_says(
        commands in prop::collection::vec(command(), 1..120)
    ) {
        let mut log = Log::new();
        let mut views: BTreeMap<NodeId, (Scope, Replica)> = BTreeMap::new();
        let mut rosters = Rosters::default();
        let mut digests = Digests::default();
        for command in commands {
            let command = aimed(&log.state, command);
            let from = log.state.position();
            let events = log.apply(command).map(|applied| applied.events).unwrap_or_default();
            let to = log.state.position();
            for event in &events {
                digests.handle_event(&log.state, event, &epochs());
                rosters.handle_event(event);
            }
            for (id, (scope, replica)) in &mut views {
                let keys = |other| pair_keys(*id, other);
                let mut changes = Vec::new();
                for event in &events {
                    changes.extend(scope.handle_event(&log.state, event, &keys));
                }
                replica.handle_delta(from, to, changes).unwrap();
            }
            for event in &events {
                match event {
                    Event::NodeChanged(id) => {
                        let keys = |other| pair_keys(*id, other);
                        let mut roster = |network| rosters.find(&log.state, network);
                        let scope = Scope::new(&log.state, *id, &mut roster);
                        let mut replica = Replica::new(Table::empty(*id));
                        let snapshot = scope.snapshot(&log.state, None, &keys, roster);
                        replica.handle_snapshot(snapshot).unwrap();
                        views.insert(*id, (scope, replica));
                    }
                    Event::NodeRemoved(id) => drop(views.remove(id)),
                    Event::NodeStatusChanged(..)
                    | Event::RoleChanged(..)
                    | Event::NetworkChanged(_)
                    | Event::NetworkRemoved(_)
                    | Event::EndpointCreated(_)
                    | Event::EndpointRemoved(_)
                    | Event::SecretsChanged
                    | Event::NodeUpdated(_)
            | Event::ServiceChanged(_)
            | Event::ServiceRemoved(_)
            | Event::TaskChanged(_)
            | Event::TaskRemoved(_)
            | Event::RootsChanged => {}
                }
            }
            for (id, (scope, replica)) in &views {
                prop_assert_eq!(replica.table(), &rebuilt(&log.state, *id));
                let roster = |network| rosters.find(&log.state, network);
                prop_assert_eq!(scope, &Scope::new(&log.state, *id, roster));
                prop_assert_eq!(replica.digests(), digests.of_scope(scope));
                let fresh = Digests::new(&log.state, &epochs());
                prop_assert_eq!(replica.digests(), fresh.of_scope(scope));
            }
        }
    }

    #[test]
    fn commands_and_states_are_read_as_they_were_written(
        commands in prop::collection::vec(command(), 1..60)
    ) {
        let mut log = Log::new();
        log.network(CreateNetwork { ipv6: Ipv6::Automatic, vni: Vni::new(7), ..net(9) });
        log.apply(limited(7, Some(200), Some(2))).unwrap();
        log.apply(by_limited(1, 7, 100)).unwrap();
        log.apply(Command::RotateToken { role: Role::Manager, now_s: 0 }).unwrap();
        for command in commands {
            let command = aimed(&log.state, command);
            let json = serde_json::to_vec(&command).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<Command>(&json).unwrap(), &command);
            let _ = log.apply(command);
        }
        let json = serde_json::to_vec(&log.state).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<State>(&json).unwrap(), &log.state);
    }

    #[test]
    fn no_address_is_given_twice_and_every_one_comes_back(
        commands in prop::collection::vec(command(), 1..200)
    ) {
        let mut log = Log::new();
        log.node(1);
        for command in commands {
            let command = aimed(&log.state, command);
            let _ = log.apply(command);
            let mut seen = BTreeSet::new();
            for endpoint in log.state.endpoints() {
                let network = log.state.network(endpoint.network).unwrap();
                for address in &endpoint.addresses {
                    prop_assert!(seen.insert((network.id, address.addr())), "given twice");
                    prop_assert!(!network.gateways.contains(&address.addr()));
                }
            }
            let mut automatic: Vec<_> =
                log.state.networks().flat_map(|network| network.subnets.clone()).collect();
            let count = automatic.len();
            automatic.sort();
            automatic.dedup();
            prop_assert_eq!(automatic.len(), count, "a subnet was given twice");
        }
        let nodes: Vec<NodeId> = log.state.nodes().map(|node| node.id).collect();
        for node in nodes {
            log.apply(Command::RemoveNode(node)).unwrap();
        }
        let stay = log.state.services().filter(|service| !service.leaving);
        let services: Vec<ServiceId> = stay.map(|service| service.id).collect();
        for service in services {
            log.apply(Command::RemoveService { service, now_ms: 1 }).unwrap();
        }
        prop_assert_eq!((log.state.services().count(), log.state.tasks().count()), (0, 0));
        let networks: Vec<NetworkId> = log.state.networks().map(|network| network.id).collect();
        for network in networks {
            log.apply(Command::RemoveNetwork(network)).unwrap();
        }
        log.node(1);
        log.network(net_on(1, &["10.1.0.0/28"]));
        for id in 1..=13 {
            log.endpoint(end(id, 1, 1));
        }
        let exhausted = log.refused(Command::CreateEndpoint(end(14, 1, 1)));
        prop_assert!(exhausted.starts_with("no free address"), "{}", exhausted);
    }
}
