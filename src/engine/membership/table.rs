//! The table itself: a consistent picture at one revision, never edited in place once published.
//! A delta is applied to a copy and the whole copy is checked; what does not fit leaves the table
//! as it was, and the link asks for a snapshot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Change;
use crate::types::{Endpoint, EndpointId, Network, NetworkId, NodeId, Peer, Revision};

/// Everything that this node must know of the cluster, at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The node whose table this is.
    pub node: NodeId,
    /// The revision that the table stands at.
    pub revision: Revision,
    /// The networks that the node takes part in.
    pub networks: BTreeMap<NetworkId, Network>,
    /// All endpoints on those networks, its own among them.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// The other nodes with an endpoint on one of those networks.
    pub peers: BTreeMap<NodeId, Peer>,
}

/// Says why a snapshot or a delta was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is of another node.
    #[error("the table is of node {0}")]
    OtherNode(NodeId),
    /// It is older than what the table has.
    #[error("revision {given} is older than the table's {held}")]
    Older {
        /// What came.
        given: Revision,
        /// What the table stands at.
        held: Revision,
    },
    /// Something between the table and the delta is missing.
    #[error("the delta starts at revision {from} and the table stands at {held}")]
    Gap {
        /// Where the delta starts.
        from: Revision,
        /// What the table stands at.
        held: Revision,
    },
    /// A network goes that the table does not have.
    #[error("network {0} is not in the table")]
    UnknownNetwork(NetworkId),
    /// An endpoint goes that the table does not have, or stands on a network that it has not.
    #[error("endpoint {0} does not fit the table")]
    StrayEndpoint(EndpointId),
    /// A peer goes that the table does not have, is the node itself, or has no endpoint.
    #[error("peer {0} does not fit the table")]
    StrayPeer(NodeId),
}

impl Table {
    /// The table of a node that takes part in nothing.
    pub fn empty(node: NodeId) -> Self {
        Self {
            node,
            revision: 0,
            networks: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            peers: BTreeMap::new(),
        }
    }

    /// Takes a snapshot in the table's place.
    ///
    /// # Errors
    /// The snapshot is of another node, older, or does not hang together; the table stays.
    pub fn handle_snapshot(&mut self, snapshot: Self) -> Result<(), TableError> {
        if snapshot.node != self.node {
            return Err(TableError::OtherNode(snapshot.node));
        }
        if snapshot.revision < self.revision {
            let (given, held) = (snapshot.revision, self.revision);
            return Err(TableError::Older { given, held });
        }
        snapshot.check()?;
        *self = snapshot;
        Ok(())
    }

    /// Returns the table that the changes of `(from, to]` make of this one.
    ///
    /// # Errors
    /// The delta does not start where the table stands, or its result does not hang together.
    pub fn handle_delta(
        &self,
        from: Revision,
        to: Revision,
        changes: Vec<Change>,
    ) -> Result<Self, TableError> {
        if from != self.revision {
            return Err(TableError::Gap { from, held: self.revision });
        }
        if to < from {
            return Err(TableError::Older { given: to, held: from });
        }
        let mut next = self.clone();
        next.revision = to;
        for change in changes {
            next.apply(change)?;
        }
        next.check()?;
        Ok(next)
    }

    fn apply(&mut self, change: Change) -> Result<(), TableError> {
        match change {
            Change::Network(network) => drop(self.networks.insert(network.id, network)),
            Change::Peer(peer) => drop(self.peers.insert(peer.id, peer)),
            Change::Endpoint(endpoint) => drop(self.endpoints.insert(endpoint.id, endpoint)),
            Change::NetworkGone(id) => {
                self.networks.remove(&id).ok_or(TableError::UnknownNetwork(id))?;
            }
            Change::PeerGone(id) => {
                self.peers.remove(&id).ok_or(TableError::StrayPeer(id))?;
            }
            Change::EndpointGone(id) => {
                self.endpoints.remove(&id).ok_or(TableError::StrayEndpoint(id))?;
            }
        }
        Ok(())
    }

    /// Checks that every reference in the table leads to something in the table.
    fn check(&self) -> Result<(), TableError> {
        let mut seen = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            let known_node = endpoint.node == self.node || self.peers.contains_key(&endpoint.node);
            if !known_node || !self.networks.contains_key(&endpoint.network) {
                return Err(TableError::StrayEndpoint(endpoint.id));
            }
            seen.insert(endpoint.node, ());
        }
        match self.peers.keys().find(|id| **id == self.node || !seen.contains_key(*id)) {
            Some(stray) => Err(TableError::StrayPeer(*stray)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Encap, Name, VersionRange, Vni};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn network(id: u128) -> Network {
        Network {
            id: NetworkId::from_u128(id),
            name: name("blue"),
            vni: Vni::new(4097).unwrap(),
            subnets: vec!["10.0.0.0/24".parse().unwrap()],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            mtu: None,
            encap: Encap::Sealed,
            internal: false,
            labels: BTreeMap::new(),
        }
    }

    fn peer(id: u128) -> Peer {
        Peer {
            id: NodeId::from_u128(id),
            name: name("n2"),
            data_addr: "192.0.2.2:7790".parse().unwrap(),
            underlay_mtu: 1500,
            public_key: [2; 32],
            versions: VersionRange { lowest: 1, highest: 1 },
            psks: Vec::new(),
        }
    }

    fn endpoint(id: u128, node: u128, network: u128) -> Endpoint {
        Endpoint {
            id: EndpointId::from_u128(id),
            name: name("e"),
            network: NetworkId::from_u128(network),
            node: NodeId::from_u128(node),
            addresses: vec!["10.0.0.2/24".parse().unwrap()],
            aliases: Vec::new(),
        }
    }

    fn me() -> Table {
        Table::empty(NodeId::from_u128(1))
    }

    fn entered() -> Table {
        let changes = vec![
            Change::Network(network(7)),
            Change::Peer(peer(2)),
            Change::Endpoint(endpoint(11, 1, 7)),
            Change::Endpoint(endpoint(12, 2, 7)),
        ];
        me().handle_delta(0, 5, changes).unwrap()
    }

    #[test]
    fn deltas_in_order_build_the_table() {
        let table = entered();
        assert_eq!((table.revision, table.endpoints.len(), table.peers.len()), (5, 2, 1));
        let left = table
            .handle_delta(
                5,
                9,
                vec![
                    Change::EndpointGone(EndpointId::from_u128(11)),
                    Change::EndpointGone(EndpointId::from_u128(12)),
                    Change::PeerGone(NodeId::from_u128(2)),
                    Change::NetworkGone(NetworkId::from_u128(7)),
                ],
            )
            .unwrap();
        assert_eq!(left, Table { revision: 9, ..me() });
    }

    #[test]
    fn a_delta_that_does_not_fit_is_refused_whole() {
        let check = |from, to, changes: Vec<Change>, error| {
            assert_eq!(entered().handle_delta(from, to, changes), Err(error));
        };
        check(4, 6, vec![], TableError::Gap { from: 4, held: 5 });
        check(6, 7, vec![], TableError::Gap { from: 6, held: 5 });
        check(5, 4, vec![], TableError::Older { given: 4, held: 5 });
        let stray = TableError::StrayEndpoint(EndpointId::from_u128(13));
        check(5, 6, vec![Change::Endpoint(endpoint(13, 3, 7))], stray);
        check(5, 6, vec![Change::Endpoint(endpoint(13, 2, 8))], stray);
        check(5, 6, vec![Change::EndpointGone(EndpointId::from_u128(13))], stray);
        check(5, 6, vec![Change::Peer(peer(3))], TableError::StrayPeer(NodeId::from_u128(3)));
        let gone = Change::PeerGone(NodeId::from_u128(2));
        check(5, 6, vec![gone], TableError::StrayEndpoint(EndpointId::from_u128(12)));
        let unknown = NetworkId::from_u128(8);
        check(5, 6, vec![Change::NetworkGone(unknown)], TableError::UnknownNetwork(unknown));
    }

    #[test]
    fn a_snapshot_replaces_unless_it_is_older_or_foreign() {
        let mut table = entered();
        let newer = Table { revision: 8, ..me() };
        table.handle_snapshot(newer.clone()).unwrap();
        assert_eq!(table, newer);
        let older = TableError::Older { given: 5, held: 8 };
        assert_eq!(table.handle_snapshot(entered()), Err(older));
        let foreign = Table { revision: 9, ..Table::empty(NodeId::from_u128(4)) };
        let other = TableError::OtherNode(NodeId::from_u128(4));
        assert_eq!(table.handle_snapshot(foreign), Err(other));
        assert_eq!(table, newer);
    }
}
