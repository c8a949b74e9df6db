//! What every agent's table must hold, by what a manager has and who takes part where; computed from
//! the objects, not by the code that a manager serves agents with.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use overlay::{
    engine::membership::{Replica, Table, digest},
    types::{Digest, Network, NetworkId, Node, Peer, Psk, Role, ScopeId},
};

use super::{
    layout::{Layout, network_name},
    wire::{Faults, Truth},
};

/// The digests of all that agents may hold.
pub struct Expected {
    networks: BTreeMap<String, (NetworkId, Digest)>,
    /// Each node as a peer, by name.
    peers: BTreeMap<String, Digest>,
    managers: BTreeSet<String>,
}

impl Expected {
    pub fn new(truth: Truth) -> anyhow::Result<Self> {
        let mut sums: BTreeMap<NetworkId, Digest> = truth
            .networks
            .values()
            .map(|network: &Network| (network.id, digest::of_network(network)))
            .collect();
        for endpoint in &truth.endpoints {
            let sum = sums.get_mut(&endpoint.network).context("an endpoint without a network")?;
            sum.add(digest::of_endpoint(endpoint));
        }
        let digest = |network: &Network| (network.id, sums[&network.id]);
        let networks = truth.networks.iter().map(|(name, network)| (name.clone(), digest(network)));
        let peers = truth.nodes.iter().map(|node| (node.name.to_string(), of_node(node)));
        let managers = truth.nodes.iter().filter(|node| node.role == Role::Manager);
        Ok(Self {
            networks: networks.collect(),
            peers: peers.collect(),
            managers: managers.map(|node| node.name.to_string()).collect(),
        })
    }

    /// Compares an agent's table, scope by scope.
    pub fn compare(
        &self,
        layout: &Layout,
        agent: usize,
        table: Table,
        faults: &mut Faults,
    ) -> anyhow::Result<()> {
        let networks = layout.networks_of(agent).into_iter().map(|network| {
            let (id, digest) = self.networks.get(&network_name(network)).context("a network")?;
            anyhow::Ok((ScopeId::Network(*id), *digest))
        });
        let mut expected: BTreeMap<ScopeId, Digest> = networks.collect::<Result<_, _>>()?;
        let peers = layout.peers_of(agent).into_iter().map(|peer| format!("a{peer}"));
        let peers = peers.chain(self.managers.iter().cloned());
        let peers = peers.map(|name| self.peers.get(&name).copied().context("a peer"));
        expected.insert(ScopeId::Tasks, Digest::default());
        expected.insert(ScopeId::Peers, peers.collect::<Result<_, _>>()?);
        let position = table.position();
        // Counted anew from what the table holds.
        let held: BTreeMap<ScopeId, Digest> = Replica::new(table).digests().into_iter().collect();
        let scopes: BTreeSet<&ScopeId> = expected.keys().chain(held.keys()).collect();
        for scope in scopes.into_iter().filter(|scope| expected.get(scope) != held.get(scope)) {
            faults.add(|| format!("agent {agent}, at {position}, differs in {scope:?}"));
        }
        Ok(())
    }
}

/// As a peer, in the first epoch of keys, which is the only one.
fn of_node(node: &Node) -> Digest {
    digest::of_peer(&Peer::new(node, vec![Psk { epoch: 1, key: [0; 32] }]))
}
