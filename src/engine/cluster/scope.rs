//! Need to know: what one node is told of the cluster. It hears of the networks that it has an
//! endpoint on, of all endpoints there, of the nodes behind them, of the managers' nodes, which
//! may always ask whether it is alive, and of its own tasks; of nothing else. A manager's node hears of every node.
//!
//! A scope is fed every event of a command right after the command, while the state stands at its
//! revision. The work is that of the change: entering or leaving a network is the size of the
//! network, everything else is constant.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Event, Roster, State};
use crate::{
    engine::membership::{Change, Snapshot},
    types::{Desired, Endpoint, NetworkId, Node, NodeId, Peer, Psk, Role, ScopeId, TaskId},
};

/// What one node knows, as counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    node: NodeId,
    /// The node's own endpoints a network.
    own: BTreeMap<NetworkId, usize>,
    manager: bool,
    /// The endpoints that it knows behind each other node, and one more where it always knows it.
    peers: BTreeMap<NodeId, usize>,
    /// The node's tasks, and how far it was told that they go, with how many endpoints.
    tasks: BTreeMap<TaskId, (Desired, usize)>,
}

impl Scope {
    /// Makes the scope of a node as the state stands, of which `roster` gives the networks' endpoints.
    pub fn new(
        state: &State,
        node: NodeId,
        mut roster: impl FnMut(NetworkId) -> Arc<Roster>,
    ) -> Self {
        let manager = state.node(node).is_some_and(|node| node.role == Role::Manager);
        let tasks = state.tasks_on(node);
        let tasks = tasks.map(|task| (task.id, (task.desired, task.endpoints.len()))).collect();
        let (own, peers) = (BTreeMap::new(), BTreeMap::new());
        let mut scope = Self { node, manager, own, peers, tasks };
        let always = state.nodes().filter(|other| scope.always_knows(other));
        scope.peers = always.map(|other| (other.id, 1)).collect();
        for endpoint in state.endpoints_of(node) {
            *scope.own.entry(endpoint.network).or_default() += 1;
        }
        for id in scope.own.keys() {
            for (other, count) in roster(*id).behind.iter().filter(|(other, _)| **other != node) {
                *scope.peers.entry(*other).or_default() += count;
            }
        }
        scope
    }

    /// Returns what the node knows as the state stands: everything, or only some scopes. `pair_keys`
    /// gives the keys that the node shares with another, `roster` a network's endpoints.
    pub fn snapshot(
        &self,
        state: &State,
        scopes: Option<BTreeSet<ScopeId>>,
        pair_keys: &dyn Fn(NodeId) -> Vec<Psk>,
        mut roster: impl FnMut(NetworkId) -> Arc<Roster>,
    ) -> Snapshot {
        let wanted = |scope| scopes.as_ref().is_none_or(|scopes| scopes.contains(&scope));
        let mut snapshot = Snapshot {
            position: state.position(),
            scopes: None,
            networks: Vec::new(),
            peers: Vec::new(),
            endpoints: Vec::new(),
            tasks: Vec::new(),
        };
        for id in self.own.keys().filter(|id| wanted(ScopeId::Network(**id))) {
            snapshot.networks.extend(state.network(*id).cloned());
            snapshot.endpoints.extend_from_slice(&roster(*id).endpoints);
        }
        if wanted(ScopeId::Peers) {
            let nodes = self.peers.keys().filter_map(|id| state.node(*id));
            snapshot.peers = nodes.map(|node| Peer::new(node, pair_keys(node.id))).collect();
        }
        if wanted(ScopeId::Tasks) {
            snapshot.tasks = self.tasks.keys().filter_map(|id| state.node_task(*id)).collect();
        }
        snapshot.scopes = scopes;
        snapshot
    }

    /// Returns the node that it is of.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Lists the nodes that this one knows.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.peers.keys().copied()
    }

    /// Whether the node knows another whatever their networks are.
    fn always_knows(&self, other: &Node) -> bool {
        other.id != self.node && (self.manager || other.role == Role::Manager)
    }

    /// Tells whether the node takes part in a network.
    pub fn takes_part(&self, network: NetworkId) -> bool {
        self.own.contains_key(&network)
    }

    /// Lists the networks that the node takes part in.
    pub fn networks(&self) -> impl Iterator<Item = NetworkId> {
        self.own.keys().copied()
    }

    /// Returns what the node must be told after an event.
    pub fn handle_event(
        &mut self,
        state: &State,
        event: &Event,
        pair_keys: &dyn Fn(NodeId) -> Vec<Psk>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        match event {
            Event::EndpointCreated(endpoint) if endpoint.node == self.node => {
                let own = self.own.entry(endpoint.network).or_default();
                *own += 1;
                if *own == 1 {
                    self.enter(state, endpoint.network, pair_keys, &mut changes);
                } else {
                    changes.push(Change::Endpoint(endpoint.clone()));
                }
            }
            Event::EndpointCreated(endpoint) => {
                if self.takes_part(endpoint.network) {
                    self.learn(state, endpoint, pair_keys, &mut changes);
                }
            }
            Event::EndpointRemoved(endpoint) if endpoint.node == self.node => {
                changes.push(Change::EndpointGone(endpoint.id));
                let own = self.own.get_mut(&endpoint.network);
                let left = own.map_or(0, |own| {
                    *own -= 1;
                    *own
                });
                if left == 0 {
                    self.leave(state, endpoint.network, &mut changes);
                }
            }
            Event::EndpointRemoved(endpoint) => {
                if self.takes_part(endpoint.network) {
                    self.forget(endpoint, &mut changes);
                }
            }
            Event::NodeChanged(id) => {
                let Some(node) = state.node(*id) else { return changes };
                if self.always_knows(node) {
                    self.peers.entry(*id).or_insert(1);
                }
                if self.peers.contains_key(id) {
                    changes.push(Change::Peer(Peer::new(node, pair_keys(*id))));
                }
            }
            Event::NetworkChanged(id) => {
                if let (true, Some(network)) = (self.takes_part(*id), state.network(*id)) {
                    changes.push(Change::Network(network.clone()));
                }
            }
            Event::RoleChanged(id, role) => {
                let is_manager = *role == Role::Manager;
                self.handle_role(state, *id, is_manager, pair_keys, &mut changes);
            }
            // A node's endpoints went before it.
            Event::NodeRemoved(id) => {
                if self.peers.remove(id).is_some() {
                    changes.push(Change::PeerGone(*id));
                }
            }
            Event::TaskChanged(id) => self.learn_task(state, *id, &mut changes),
            Event::TaskRemoved(task) => {
                if self.tasks.remove(&task.id).is_some() {
                    changes.push(Change::TaskGone(task.id));
                }
            }
            // A network ends empty, and whether the managers hear a peer does not decide whether
            // this node can reach it.
            Event::NetworkRemoved(_) | Event::NodeStatusChanged(..) => {}
            // All peers change at once, which is a snapshot of them.
            Event::SecretsChanged => {}
            Event::NodeUpdated(_)
            | Event::ServiceChanged(_)
            | Event::ServiceRemoved(_)
            | Event::RootsChanged => {}
        }
        changes
    }

    /// Only how far a task goes, and what it has, is its node's to know; how far it is the node says.
    fn learn_task(&mut self, state: &State, id: TaskId, changes: &mut Vec<Change>) {
        let Some(task) = state.task(id).filter(|task| task.node == Some(self.node)) else { return };
        let told = (task.desired, task.endpoints.len());
        if self.tasks.insert(id, told) != Some(told) {
            changes.extend(state.node_task(id).map(|task| Change::Task(Box::new(task))));
        }
    }

    fn handle_role(
        &mut self,
        state: &State,
        id: NodeId,
        is_manager: bool,
        pair_keys: &dyn Fn(NodeId) -> Vec<Psk>,
        changes: &mut Vec<Change>,
    ) {
        if id == self.node {
            self.manager = is_manager;
            let workers = state.nodes().filter(|other| other.role == Role::Worker);
            for other in workers.filter(|other| other.id != id) {
                self.always_know(other, is_manager, pair_keys, changes);
            }
        } else if !self.manager
            && let Some(node) = state.node(id)
        {
            self.always_know(node, is_manager, pair_keys, changes);
        }
    }

    fn enter(
        &mut self,
        state: &State,
        network: NetworkId,
        pair_keys: &dyn Fn(NodeId) -> Vec<Psk>,
        changes: &mut Vec<Change>,
    ) {
        changes.extend(state.network(network).cloned().map(Change::Network));
        for endpoint in state.endpoints_on(network) {
            if endpoint.node == self.node {
                changes.push(Change::Endpoint(endpoint.clone()));
            } else {
                self.learn(state, endpoint, pair_keys, changes);
            }
        }
    }

    fn leave(&mut self, state: &State, network: NetworkId, changes: &mut Vec<Change>) {
        self.own.remove(&network);
        for endpoint in state.endpoints_on(network) {
            self.forget(endpoint, changes);
        }
        changes.push(Change::NetworkGone(network));
    }

    fn learn(
        &mut self,
        state: &State,
        endpoint: &Endpoint,
        pair_keys: &dyn Fn(NodeId) -> Vec<Psk>,
        changes: &mut Vec<Change>,
    ) {
        if let Some(node) = state.node(endpoint.node) {
            self.count(node, pair_keys, changes);
        }
        changes.push(Change::Endpoint(endpoint.clone()));
    }

    fn forget(&mut self, endpoint: &Endpoint, changes: &mut Vec<Change>) {
        changes.push(Change::EndpointGone(endpoint.id));
        self.count_off(endpoint.node, changes);
    }

    /// Knows another node from now on whatever their networks are, or not any more.
    fn always_know(
        &mut self,
        other: &Node,
        known: bool,
        pair_keys: &dyn Fn(NodeId) -> Vec<Psk>,
        changes: &mut Vec<Change>,
    ) {
        match known {
            true => self.count(other, pair_keys, changes),
            false => self.count_off(other.id, changes),
        }
    }

    /// There is one more reason to know a node.
    fn count(
        &mut self,
        node: &Node,
        pair_keys: &dyn Fn(NodeId) -> Vec<Psk>,
        changes: &mut Vec<Change>,
    ) {
        let reasons = self.peers.entry(node.id).or_default();
        *reasons += 1;
        if *reasons == 1 {
            changes.push(Change::Peer(Peer::new(node, pair_keys(node.id))));
        }
    }

    /// There is one reason less to know a node.
    fn count_off(&mut self, node: NodeId, changes: &mut Vec<Change>) {
        if let Some(reasons) = self.peers.get_mut(&node) {
            *reasons -= 1;
            if *reasons == 0 {
                self.peers.remove(&node);
                changes.push(Change::PeerGone(node));
            }
        }
    }
}
