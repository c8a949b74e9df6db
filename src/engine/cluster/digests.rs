//! The digests of everything that agents hold, kept up to date event by event: one a network and one
//! a node, whatever the number of agents.

use std::collections::BTreeMap;

use super::{Event, Scope, State};
use crate::{
    engine::membership::digest,
    types::{Digest, NetworkId, NodeId, Peer, Psk, ScopeId, TaskId},
};

/// The digests as of one revision.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    networks: BTreeMap<NetworkId, OfNetwork>,
    peers: BTreeMap<NodeId, Digest>,
    /// Of every task that a node has, and of all of a node's together.
    tasks: BTreeMap<TaskId, (NodeId, Digest)>,
    of_nodes: BTreeMap<NodeId, Digest>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OfNetwork {
    network: Digest,
    endpoints: Digest,
}

impl Digests {
    /// Computes all of them. `keys` are a pair's in the epochs that hold; only those count.
    pub fn new(state: &State, keys: &[Psk]) -> Self {
        let mut digests = Self::default();
        for network in state.networks() {
            let of_network = digest::of_network(network);
            let endpoints = state.endpoints_on(network.id).map(digest::of_endpoint).collect();
            digests.networks.insert(network.id, OfNetwork { network: of_network, endpoints });
        }
        digests.count_peers(state, keys);
        state.tasks().for_each(|task| digests.count_task(state, task.id));
        digests
    }

    fn count_peers(&mut self, state: &State, keys: &[Psk]) {
        let of_node = |node| digest::of_peer(&Peer::new(node, keys.to_vec()));
        self.peers = state.nodes().map(|node| (node.id, of_node(node))).collect();
    }

    fn count_task(&mut self, state: &State, id: TaskId) {
        let node = state.task(id).and_then(|task| task.node);
        let now = node.and_then(|node| Some((node, digest::of_task(&state.node_task(id)?))));
        let before = match now {
            Some(now) => self.tasks.insert(id, now),
            None => self.tasks.remove(&id),
        };
        if let Some((node, digest)) = now {
            self.of_nodes.entry(node).or_default().add(digest);
        }
        if let Some((node, digest)) = before {
            let of_node = self.of_nodes.entry(node).or_default();
            of_node.remove(digest);
            if *of_node == Digest::default() {
                self.of_nodes.remove(&node);
            }
        }
    }

    /// Takes an event in, while the state stands right after it.
    pub fn handle_event(&mut self, state: &State, event: &Event, keys: &[Psk]) {
        match event {
            Event::NodeChanged(id) => {
                let node = state.node(*id).map(|node| Peer::new(node, keys.to_vec()));
                self.peers.extend(node.map(|node| (*id, digest::of_peer(&node))));
            }
            Event::NodeRemoved(id) => drop(self.peers.remove(id)),
            Event::NetworkChanged(id) => {
                if let Some(network) = state.network(*id) {
                    self.networks.entry(*id).or_default().network = digest::of_network(network);
                }
            }
            Event::NetworkRemoved(id) => drop(self.networks.remove(id)),
            Event::EndpointCreated(endpoint) => {
                let sums = self.networks.entry(endpoint.network).or_default();
                sums.endpoints.add(digest::of_endpoint(endpoint));
            }
            Event::EndpointRemoved(endpoint) => {
                if let Some(sums) = self.networks.get_mut(&endpoint.network) {
                    sums.endpoints.remove(digest::of_endpoint(endpoint));
                }
            }
            Event::NodeStatusChanged(..)
            | Event::RoleChanged(..)
            | Event::NodeUpdated(_)
            | Event::ServiceChanged(_)
            | Event::ServiceRemoved(_)
            | Event::RootsChanged => {}
            Event::TaskChanged(id) => self.count_task(state, *id),
            Event::TaskRemoved(task) => self.count_task(state, task.id),
            Event::SecretsChanged => self.count_peers(state, keys),
        }
    }

    /// Returns the digest of every scope that a node knows, in the order of the scopes.
    pub fn of_scope(&self, scope: &Scope) -> Vec<(ScopeId, Digest)> {
        let of_network = |id| {
            let OfNetwork { network, endpoints } =
                self.networks.get(&id).copied().unwrap_or_default();
            (ScopeId::Network(id), [network, endpoints].into_iter().collect())
        };
        let peers = scope.peers().filter_map(|id| self.peers.get(&id).copied()).collect();
        let tasks = self.of_nodes.get(&scope.node()).copied().unwrap_or_default();
        let rest = [(ScopeId::Peers, peers), (ScopeId::Tasks, tasks)];
        scope.networks().map(of_network).chain(rest).collect()
    }
}
