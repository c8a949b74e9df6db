//! The manager's brain: the cluster's state as a deterministic machine. It owns every object and
//! every allocation; a command is applied whole or refused and without effect, and names and
//! numbers are given in the same step as the object that needs them.
//!
//! ```text
//! Command -> State::apply(revision) -> Applied { outcome, events }  | Refusal
//!                                                 `-> Scope (one a node) -> membership::Change
//! ```

mod command;
mod definition;
mod digests;
mod endpoint;
mod limits;
pub mod liveness;
mod network;
mod node;
pub mod orchestrator;
mod reference;
mod refusal;
mod root;
mod roster;
mod scope;
mod secrets;
mod serial;
mod service;
mod subnet;
mod task;
#[cfg(test)]
mod tests;
mod token;

use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::{
    command::{
        Applied, Cluster, Command, CreateEndpoint, CreateNetwork, Event, Ipv6, NameChoice, Outcome,
        RegisterNode, UpdateNode,
    },
    definition::{Field, Mistake, Mistakes},
    digests::Digests,
    reference::resolve,
    refusal::{Kind, Refusal},
    root::{FormerRoot, RotateRoot},
    roster::{Roster, Rosters},
    scope::Scope,
    secrets::{OlderSecret, Secrets},
    service::{CreateService, RollBackBy, RollBackService, SetUpdateState, UpdateService},
    task::{Assignment, CreateTask, Observed, TaskChange},
    token::{CreateToken, TokenHash, TokenUse},
};
use self::{network::NetworkEntry, serial::Serial, service::ServiceEntry, token::Tokens};
use crate::types::{
    Endpoint, EndpointId, Name, Network, NetworkId, Node, NodeId, Position, Resources, Revision,
    ServiceId, Task, TaskId,
};

/// Everything that the cluster knows. A snapshot of the log is this, as `serde` writes it; a copy costs
/// next to nothing, for it shares what does not change after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    epoch: u64,
    /// The newest epoch in which addresses may be handed out.
    settled_epoch: u64,
    revision: Revision,
    founded: Option<Founded>,
    nodes: OrdMap<NodeId, Node>,
    node_names: OrdMap<Name, NodeId>,
    underlays: OrdMap<NodeId, Vec<IpNet>>,
    networks: OrdMap<NetworkId, NetworkEntry>,
    network_names: OrdMap<Name, NetworkId>,
    endpoints: OrdMap<EndpointId, Endpoint>,
    node_endpoints: OrdMap<NodeId, OrdSet<EndpointId>>,
    #[serde(default)]
    tokens: Tokens,
    #[serde(default)]
    secret_due: bool,
    /// How often the root was rotated before a node's certificate was made; absent is never.
    #[serde(default)]
    certified: OrdMap<NodeId, u32>,
    /// What nodes have for tasks.
    #[serde(default)]
    capacities: OrdMap<NodeId, Resources>,
    #[serde(default)]
    services: OrdMap<ServiceId, ServiceEntry>,
    /// Of those that do not leave.
    #[serde(default)]
    service_names: OrdMap<Name, ServiceId>,
    /// How many tasks the services want together.
    #[serde(default)]
    replicas: usize,
    #[serde(default)]
    tasks: OrdMap<TaskId, Task>,
    #[serde(default)]
    node_tasks: OrdMap<NodeId, OrdSet<TaskId>>,
    #[serde(default)]
    endpoint_tasks: OrdMap<EndpointId, TaskId>,
}

/// The cluster's settings, and what is handed out cluster-wide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Founded {
    cluster: Cluster,
    secrets: Secrets,
    vnis: Serial<NetworkId>,
    /// Numbers of the pool's subnets.
    subnets: Serial<NetworkId>,
    /// Numbers of the /48's subnets.
    subnets_ipv6: Serial<NetworkId>,
}

impl State {
    /// Applies one entry of the log. A refused command takes its revision and changes nothing.
    ///
    /// # Errors
    /// The command is refused.
    pub fn apply(&mut self, revision: Revision, command: Command) -> Result<Applied, Refusal> {
        self.revision = revision;
        match command {
            Command::CreateCluster { cluster, secrets } => self.create_cluster(cluster, secrets),
            Command::RegisterNode(register) => self.register_node(register),
            Command::CreateToken(create) => self.create_token(create),
            Command::RotateSecret { secret } => self.rotate_secret(secret),
            Command::DropOlderSecret { epoch } => self.drop_older_secret(epoch),
            Command::RotateRoot(rotate) => self.rotate_root(rotate),
            Command::DropFormerRoot { rotations } => self.drop_former_root(rotations),
            Command::NoteCertified { node, rotations } => self.note_certified(node, rotations),
            Command::RotateToken { role, now_s } => self.rotate_token(role, now_s),
            Command::SetNodeStatus { node, status } => self.set_node_status(node, status),
            Command::UpdateNode(update) => self.update_node(update),
            Command::RemoveNode(node) => self.remove_node(node),
            Command::SetRole { node, role } => self.set_role(node, role),
            Command::CreateNetwork(create) => self.create_network(create),
            Command::RemoveNetwork(network) => self.remove_network(network),
            Command::CreateEndpoint(create) => self.create_endpoint(create),
            Command::AdoptEndpoint(endpoint) => self.adopt_endpoint(endpoint),
            Command::StartEpoch => {
                self.start_epoch();
                Ok(Applied { outcome: Outcome::Done, events: Vec::new() })
            }
            Command::SettleEpoch => {
                self.settled_epoch = self.epoch;
                Ok(Applied { outcome: Outcome::Done, events: Vec::new() })
            }
            Command::RemoveEndpoint { endpoint, node } => self.remove_endpoint(endpoint, node),
            Command::SetCapacity { node, capacity } => self.set_capacity(node, capacity),
            Command::CreateService(create) => self.create_service(create),
            Command::UpdateService(update) => self.update_service(update),
            Command::RollBackService(back) => self.roll_back_service(back),
            Command::SetUpdateState(set) => self.set_update_state(set),
            Command::RemoveService { service, now_ms } => self.remove_service(service, now_ms),
            Command::ChangeTasks { changes, now_ms } => Ok(self.change_tasks(changes, now_ms)),
        }
    }

    /// Returns the revision of the newest command.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Starts a new epoch: agents that heard of more than this state holds know it by that.
    pub fn start_epoch(&mut self) {
        self.epoch += 1;
    }

    /// Whether nodes have said what they have since the epoch began.
    pub fn is_settled(&self) -> bool {
        self.settled_epoch == self.epoch
    }

    /// Returns where the state stands.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, revision: self.revision }
    }

    /// Returns the cluster's settings.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.founded.as_ref().map(|founded| &founded.cluster)
    }

    /// Returns how often agents and managers say something to each other: as `init` had it, or so
    /// that no more than a thousand come in a second, in steps of a tenth of a second.
    pub fn heartbeat(&self) -> Duration {
        let chosen = self.cluster().map_or(0, |cluster| cluster.heartbeat_ms);
        let steps = self.nodes.len().div_ceil(limits::HEARTBEATS_A_SECOND / 10);
        Duration::from_millis(chosen.max(steps as u64 * 100))
    }

    /// Returns the cluster's secrets, sealed.
    pub fn secrets(&self) -> Option<&Secrets> {
        self.founded.as_ref().map(|founded| &founded.secrets)
    }

    /// Lists the nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Returns a node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// Returns what a node has for tasks; nothing as long as it has not said.
    pub fn capacity(&self, node: NodeId) -> Resources {
        self.capacities.get(&node).copied().unwrap_or_default()
    }

    /// Lists the networks by id.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.values().map(|entry| &entry.network)
    }

    /// Returns a network.
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(&id).map(|entry| &entry.network)
    }

    /// Lists the endpoints by id.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// Returns an endpoint.
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(&id)
    }

    /// Lists the endpoints of a network.
    pub fn endpoints_on(&self, network: NetworkId) -> impl Iterator<Item = &Endpoint> {
        let ids = self.networks.get(&network).into_iter().flat_map(|entry| entry.names.values());
        ids.filter_map(|id| self.endpoints.get(id))
    }

    /// Lists the endpoints of a node.
    pub fn endpoints_of(&self, node: NodeId) -> impl Iterator<Item = &Endpoint> {
        let ids = self.node_endpoints.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.endpoints.get(id))
    }

    /// Finds a node by name, id or the unique start of an id.
    ///
    /// # Errors
    /// No node, or more than one, is meant.
    pub fn find_node(&self, reference: &str) -> Result<&Node, Refusal> {
        // By name, as nearly always, without a look at all of them.
        if let Some(id) = named(&self.node_names, reference) {
            return self.node(id).ok_or_else(|| unknown(Kind::Node, id));
        }
        let id = resolve(Kind::Node, reference, self.nodes.values().map(|n| (n.id, &n.name)))?;
        self.node(id).ok_or_else(|| unknown(Kind::Node, id))
    }

    /// Finds a network by name, id or the unique start of an id.
    ///
    /// # Errors
    /// No network, or more than one, is meant.
    pub fn find_network(&self, reference: &str) -> Result<&Network, Refusal> {
        if let Some(id) = named(&self.network_names, reference) {
            return self.network(id).ok_or_else(|| unknown(Kind::Network, id));
        }
        let all = self.networks.values().map(|entry| (entry.network.id, &entry.network.name));
        let id = resolve(Kind::Network, reference, all)?;
        self.network(id).ok_or_else(|| unknown(Kind::Network, id))
    }

    fn founded(&mut self) -> Result<&mut Founded, Refusal> {
        self.founded.as_mut().ok_or(Refusal::NoCluster)
    }

    fn create_cluster(&mut self, cluster: Cluster, secrets: Secrets) -> Result<Applied, Refusal> {
        if self.founded.is_some() {
            return Err(Refusal::ClusterExists);
        }
        subnet::check_pool(&cluster.pool, cluster.mask_length)?;
        (self.epoch, self.settled_epoch) = (1, 1);
        let subnets = 1u128 << (cluster.mask_length - cluster.pool.prefix_len());
        self.founded = Some(Founded {
            vnis: Serial::new(limits::FIRST_VNI.into(), crate::types::Vni::MAX.get().into()),
            subnets: Serial::new(0, subnets - 1),
            subnets_ipv6: Serial::new(0, 0xffff),
            cluster,
            secrets,
        });
        Ok(Applied { outcome: Outcome::Done, events: Vec::new() })
    }
}

/// The object of that name, which goes before all else that a reference may mean.
fn named<I: Copy>(names: &OrdMap<Name, I>, reference: &str) -> Option<I> {
    reference.parse().ok().and_then(|name: Name| names.get(&name).copied())
}

/// The refusal of an id that names nothing.
fn unknown(kind: Kind, id: impl ToString) -> Refusal {
    Refusal::Unknown { kind, reference: id.to_string() }
}
