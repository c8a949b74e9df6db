//! The node under attack: a data plane with four workers from a static table.

use std::{collections::BTreeMap, sync::Arc};

use overlay::{
    agent::{
        Target,
        dataplane::{Config, Dataplane, DefaultRoute},
    },
    engine::{membership::Table, session::public_key},
    types::{
        DropCounts, DropReason, Encap, Endpoint, EndpointId, Network, NetworkId, NodeId, Offloads,
        Peer, Psk, VersionRange, Vni,
    },
};

use crate::lab::{Host, Lab, MEMBER, VICTIM, socket};

/// The cluster of all nodes here.
pub const CLUSTER: [u8; 16] = [7; 16];
/// The key of every pair.
pub const PSK: [u8; 32] = [3; 32];
/// The victim's node.
pub const VICTIM_NODE: u16 = 1;
/// The node of the member that attacks.
pub const MEMBER_NODE: u16 = 2;
/// A node that shares both networks with the victim.
pub const OTHER_NODE: u16 = 3;
/// The network that the member is on.
pub const BLUE: u32 = 4097;
/// A network of the victim and the other node.
pub const GREEN: u32 = 4098;
/// A network of nobody.
pub const NOWHERE: u32 = 4099;

/// The private key of a node.
pub fn private_key(node: u16) -> [u8; 32] {
    let mut key = [0x40; 32];
    // Not the first byte, of which X25519 ignores some bits.
    key[8..10].copy_from_slice(&node.to_be_bytes());
    key
}

/// The id of a node.
pub fn node_id(node: u16) -> NodeId {
    NodeId::from_u128(u128::from(node))
}

/// A peer's entry in a table.
pub fn peer(node: u16, data_addr: &str) -> Peer {
    Peer {
        id: node_id(node),
        name: format!("n{node}").parse().expect("a name"),
        data_addr: socket(data_addr),
        underlay_mtu: 1500,
        public_key: public_key(&private_key(node)).expect("a key"),
        versions: VersionRange { lowest: 1, highest: 1 },
        psks: vec![Psk { epoch: 1, key: PSK }],
    }
}

/// Starts the victim inside its namespace, without any device.
pub fn start(table: &Arc<Table>) -> anyhow::Result<Dataplane> {
    let folder = tempfile::tempdir()?;
    let config = Config {
        node: table.node,
        cluster: CLUSTER,
        private_key: private_key(VICTIM_NODE),
        data_addr: socket(VICTIM),
        underlay_mtu: 1500,
        workers: 4,
        offloads: Offloads::ALL,
        rekey_interval: std::time::Duration::from_secs(120),
        state_dir: folder.path().to_owned(),
    };
    let (ended, _) = tokio::sync::mpsc::channel(4);
    let dataplane = Dataplane::start(config, ended)?;
    dataplane.publish(table.clone());
    Ok(dataplane)
}

/// The victim with its container.
pub struct Victim {
    /// The data plane.
    pub dataplane: Dataplane,
}

/// Everything that an attack could move.
///
/// The container's kernel announces its IPv6 groups when it likes, which the node drops as
/// link-local; so what the container sends is left out. Nothing that comes from a peer is counted
/// there: in the members' rows that reason is compared too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Drops of the whole node.
    pub drops: DropCounts,
    /// Drops of the member's datagrams.
    pub member_drops: DropCounts,
    /// Drops of the other node's.
    other_drops: DropCounts,
    /// Packets and bytes of every endpoint, as the data plane counts them.
    endpoints: BTreeMap<EndpointId, [u64; 4]>,
    /// What the container's kernel counts as received by its interface.
    interface: String,
}

impl Victim {
    /// Starts the data plane and attaches the container, on the blue network.
    pub fn new(lab: &Lab) -> Self {
        let table = Arc::new(table());
        let target = Target::Netns(lab.path(Host::Container));
        let dataplane = lab.inside(Host::Victim, async || {
            let dataplane = start(&table)?;
            let network = &table.networks[&NetworkId::from_u128(u128::from(BLUE))];
            let endpoint = &table.endpoints[&EndpointId::from_u128(1)];
            dataplane.attach(network, endpoint, &target, None, DefaultRoute::Leave).await?;
            Ok(dataplane)
        });
        Self { dataplane }
    }

    /// Reads every counter.
    pub fn counters(&self, lab: &Lab) -> Counters {
        let stats = self.dataplane.stats();
        let drops_of = |node: u16| {
            let rows = self.dataplane.peers();
            rows.iter().find(|row| row.id == node_id(node)).expect("a row a peer").drops
        };
        let endpoints = stats.endpoints.iter().map(|(id, traffic)| {
            let (rx, tx) = (traffic.rx, traffic.tx);
            (*id, [rx.packets, rx.bytes, tx.packets, tx.bytes])
        });
        Counters {
            drops: without_link_local(&stats.drops),
            member_drops: drops_of(MEMBER_NODE),
            other_drops: drops_of(OTHER_NODE),
            endpoints: endpoints.collect(),
            interface: lab.inside(Host::Container, async || {
                let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
                let line = devices.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
                let words = line.expect("the container's interface").split_whitespace();
                Ok(words.take(RECEIVE_COLUMNS).collect::<Vec<_>>().join(" "))
            }),
        }
    }

    /// How many packets the node has dropped.
    pub fn dropped(&self) -> u64 {
        without_link_local(&self.dataplane.stats().drops).total()
    }
}

fn without_link_local(drops: &DropCounts) -> DropCounts {
    let mut rest = DropCounts::default();
    for (reason, count) in drops.iter().filter(|(reason, _)| *reason != DropReason::LinkLocal) {
        rest.add(reason, count);
    }
    rest
}

/// Of a line of `/proc/net/dev`: what was received.
const RECEIVE_COLUMNS: usize = 8;

impl Counters {
    /// What the container's kernel counts of its interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// These, with so many more drops, in the node's sum and, where the sender was authentic or
    /// named a session, in the member's row.
    pub fn with_drops(mut self, reason: DropReason, count: u64, of_member: bool) -> Self {
        self.drops.add(reason, count);
        if of_member {
            self.member_drops.add(reason, count);
        }
        self
    }

    /// Lists what differs.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let mut found = self.difference_of_drops(other);
        if self.endpoints != other.endpoints {
            found.push(format!("endpoints: {:?}, not {:?}", self.endpoints, other.endpoints));
        }
        if self.interface != other.interface {
            found.push(format!("interface: {}, not {}", self.interface, other.interface));
        }
        found
    }

    /// Lists the drops that differ, where something was to be delivered too.
    pub fn difference_of_drops(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let sets = [
            ("node", self.drops, other.drops),
            ("member", self.member_drops, other.member_drops),
            ("other node", self.other_drops, other.other_drops),
        ];
        for (of, mine, theirs) in sets {
            for (reason, count) in mine.iter().filter(|(r, count)| *count != theirs.count(*r)) {
                let (name, theirs) = (reason.name(), theirs.count(reason));
                found.push(format!("{of} {name}: {count}, not {theirs}"));
            }
        }
        found
    }
}

/// Two networks, three nodes: the member is on one of the networks only.
fn table() -> Table {
    let mut table = Table::empty(node_id(VICTIM_NODE));
    for (name, vni, number) in [("blue", BLUE, 9), ("green", GREEN, 10)] {
        let id = NetworkId::from_u128(u128::from(vni));
        let network = Network {
            id,
            name: name.parse().expect("a name"),
            vni: Vni::new(vni).expect("24 bits"),
            subnets: vec![
                format!("10.{number}.0.0/24").parse().expect("a subnet"),
                format!("fd{number:02}::/64").parse().expect("a subnet"),
            ],
            gateways: vec![format!("10.{number}.0.1").parse().expect("an address")],
            mtu: None,
            encap: Encap::Sealed,
            internal: false,
            labels: Default::default(),
        };
        table.networks.insert(id, network);
    }
    let endpoints =
        [(1, BLUE, VICTIM_NODE, 9, 2), (2, BLUE, MEMBER_NODE, 9, 3), (3, BLUE, OTHER_NODE, 9, 4)];
    let green = [(4, GREEN, VICTIM_NODE, 10, 2), (5, GREEN, OTHER_NODE, 10, 4)];
    for (number, network, node, subnet, host) in endpoints.into_iter().chain(green) {
        let id = EndpointId::from_u128(number);
        let endpoint = Endpoint {
            id,
            name: format!("c{number}").parse().expect("a name"),
            network: NetworkId::from_u128(u128::from(network)),
            node: node_id(node),
            addresses: vec![
                format!("10.{subnet}.0.{host}/24").parse().expect("an address"),
                format!("fd{subnet:02}::{host}/64").parse().expect("an address"),
            ],
            aliases: Vec::new(),
        };
        table.endpoints.insert(id, endpoint);
    }
    for peer in [peer(MEMBER_NODE, MEMBER), peer(OTHER_NODE, "203.0.113.3:7790")] {
        table.peers.insert(peer.id, peer);
    }
    table
}
