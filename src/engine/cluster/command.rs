//! What the log holds and what applying it gives. Ids and other random values were drawn by the
//! proposer and stand in the command, so that every replica comes to the same state.
//!
//! Commands are read again for as long as they stand in a log: a new field has a `serde` default
//! that means what its absence meant.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{
    root::RotateRoot,
    secrets::Secrets,
    service::{CreateService, RollBackService, SetUpdateState, UpdateService},
    task::TaskChange,
    token::{CreateToken, TokenUse},
};
use crate::types::{
    Availability, Endpoint, EndpointId, Name, Network, NetworkId, Node, NodeId, NodeStatus,
    Resources, Role, Service, ServiceId, Task, TaskId, Vni,
};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Makes the cluster; always the first.
    CreateCluster {
        /// Its settings.
        cluster: Cluster,
        /// Its secrets, sealed.
        secrets: Secrets,
    },
    /// Takes a node in.
    RegisterNode(RegisterNode),
    /// Makes a token with an end.
    CreateToken(CreateToken),
    /// Has the standing token of a role take the place of the one before.
    RotateToken {
        /// The role.
        role: Role,
        /// The proposer's clock, in seconds since 1970.
        now_s: u64,
    },
    /// Gives the cluster secret a successor.
    RotateSecret {
        /// The next secret, sealed.
        secret: Vec<u8>,
    },
    /// Ends the keys of the cluster secret before the newest.
    DropOlderSecret {
        /// Its epoch.
        epoch: u32,
    },
    /// Gives the root certificate a successor.
    RotateRoot(RotateRoot),
    /// Ends the trust in the roots before the newest.
    DropFormerRoot {
        /// How often the root was rotated.
        rotations: u32,
    },
    /// Notes that a node gets a certificate.
    NoteCertified {
        /// Which node.
        node: NodeId,
        /// How often the root was rotated that signs it.
        rotations: u32,
    },
    /// Notes whether a node is heard.
    SetNodeStatus {
        /// Which node.
        node: NodeId,
        /// Its new status.
        status: NodeStatus,
    },
    /// Takes a node and its endpoints out.
    RemoveNode(NodeId),
    /// Makes a node a manager, or one no more.
    SetRole {
        /// Which node.
        node: NodeId,
        /// What it is from now on.
        role: Role,
    },
    /// Changes what the operator says of a node.
    UpdateNode(UpdateNode),
    /// Makes a network.
    CreateNetwork(CreateNetwork),
    /// Ends a network that nothing uses.
    RemoveNetwork(NetworkId),
    /// Makes an endpoint.
    CreateEndpoint(CreateEndpoint),
    /// Takes in an endpoint as it was in an earlier epoch.
    AdoptEndpoint(Endpoint),
    /// Starts a new epoch, after a recovery that may have lost the newest entries.
    StartEpoch,
    /// Notes that in this epoch addresses may be handed out.
    SettleEpoch,
    /// Notes what a node has for tasks.
    SetCapacity {
        /// Which node.
        node: NodeId,
        /// What it has.
        capacity: Resources,
    },
    /// Makes a service.
    CreateService(CreateService),
    /// Changes what is wanted of a service.
    UpdateService(UpdateService),
    /// Takes a service back to what was wanted before.
    RollBackService(RollBackService),
    /// Notes how far the update of a service is.
    SetUpdateState(SetUpdateState),
    /// Ends a service and its tasks.
    RemoveService {
        /// Which service.
        service: ServiceId,
        /// The proposer's clock, in milliseconds since 1970.
        now_ms: u64,
    },
    /// Makes tasks and has them go on, one change after the other.
    ChangeTasks {
        /// Each stands for itself.
        changes: Vec<TaskChange>,
        /// The proposer's clock, in milliseconds since 1970.
        now_ms: u64,
    },
    /// Ends an endpoint; only its own node may.
    RemoveEndpoint {
        /// Which endpoint.
        endpoint: EndpointId,
        /// The node that asks.
        node: NodeId,
    },
}

/// What holds for the whole cluster for as long as it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The cluster's identity.
    pub id: [u8; 16],
    /// Where the IPv4 subnets of networks come from.
    pub pool: Ipv4Net,
    /// How long their prefixes are.
    pub mask_length: u8,
    /// A random /48 of fd00::/8, where `--ipv6` takes its subnets (RFC 4193).
    pub ula: Ipv6Net,
    /// The port that every node takes sealed datagrams on.
    pub data_port: u16,
    /// How long certificates of nodes are valid.
    #[serde(default = "thirty_days")]
    pub certificate_life_s: u64,
    /// How often agents and managers say something to each other, while the nodes are few.
    #[serde(default = "a_second")]
    pub heartbeat_ms: u64,
}

fn thirty_days() -> u64 {
    30 * 24 * 3600
}

fn a_second() -> u64 {
    1000
}

/// See [`Command::RegisterNode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterNode {
    /// The node as it will stand in the state.
    pub node: Node,
    /// Whether its name is the operator's.
    pub name: NameChoice,
    /// The networks of its host, which automatic subnets leave out.
    pub underlays: Vec<IpNet>,
    /// What lets it in.
    pub token: TokenUse,
}

/// See [`Command::UpdateNode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateNode {
    /// Which node.
    pub node: NodeId,
    /// Whether it takes tasks, or as it is.
    pub availability: Option<Availability>,
    /// Labels to set.
    pub labels_added: BTreeMap<String, String>,
    /// Labels to take away, by key.
    pub labels_removed: Vec<String>,
}

/// What to do if a node's name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameChoice {
    /// The operator chose it: refuse.
    Exact,
    /// It is the host's: append `-2`, `-3` ...
    Near,
}

/// See [`Command::CreateNetwork`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNetwork {
    /// Its identity.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// The chosen subnets; without any, an IPv4 one is taken from the pool.
    pub subnets: Vec<IpNet>,
    /// The chosen gateways; otherwise the first address of each subnet.
    pub gateways: Vec<IpAddr>,
    /// Whether an IPv6 subnet is wanted where none was chosen.
    pub ipv6: Ipv6,
    /// The device MTU in bytes, or automatic.
    pub mtu: Option<u16>,
    /// Whether it has no way out.
    pub internal: bool,
    /// The chosen VNI, or serial.
    pub vni: Option<Vni>,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// Whether a network without a chosen IPv6 subnet gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ipv6 {
    /// It gets a /64 of the cluster's /48.
    Automatic,
    /// It gets none.
    None,
}

/// See [`Command::CreateEndpoint`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateEndpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Its name, or none to be called by the first characters of its id.
    pub name: Option<Name>,
    /// The network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// The chosen addresses; the other families are served serially.
    pub addresses: Vec<IpAddr>,
    /// Further names.
    pub aliases: Vec<Name>,
}

/// What a command gave to whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is done.
    Done,
    /// Which standing token lets in now, from 1.
    Generation(u64),
    /// The node as registered.
    Node(Node),
    /// The network as made.
    Network(Network),
    /// The endpoint as made.
    Endpoint(Endpoint),
    /// The service as it is now.
    Service(Box<Service>),
}

/// What a command changed, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node was added, or what peers know of it changed.
    NodeChanged(NodeId),
    /// What decides which tasks a node takes changed: availability, labels, capacity.
    NodeUpdated(NodeId),
    /// A node is heard or not.
    NodeStatusChanged(NodeId, NodeStatus),
    /// A node became a manager, or is one no more.
    RoleChanged(NodeId, Role),
    /// A node is out; its endpoints went before.
    NodeRemoved(NodeId),
    /// A network was made or changed.
    NetworkChanged(NetworkId),
    /// A network ended.
    NetworkRemoved(NetworkId),
    /// An endpoint was made; it stays as it is until it ends.
    EndpointCreated(Endpoint),
    /// An endpoint ended.
    EndpointRemoved(Endpoint),
    /// A service was made or changed, or leaves.
    ServiceChanged(ServiceId),
    /// A service's last task is gone, and so is it.
    ServiceRemoved(ServiceId),
    /// A task was made or changed.
    TaskChanged(TaskId),
    /// A task is forgotten; this is what it was.
    TaskRemoved(Box<Task>),
    /// The keys of all pairs of nodes changed.
    SecretsChanged,
    /// Other roots are trusted, or another signs.
    RootsChanged,
}

/// An applied command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// For whoever asked.
    pub outcome: Outcome,
    /// For whoever watches.
    pub events: Vec<Event>,
}
