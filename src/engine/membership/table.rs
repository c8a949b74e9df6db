//! The table itself: a consistent picture at one position, never edited once it is published.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{
    Endpoint, EndpointId, Network, NetworkId, NodeId, NodeTask, Peer, Position, Revision, TaskId,
};

/// Everything that this node must know of the cluster, at one position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The node whose table this is.
    pub node: NodeId,
    /// The epoch that the revision is of.
    pub epoch: u64,
    /// The revision that the table stands at.
    pub revision: Revision,
    /// The networks that the node takes part in.
    pub networks: BTreeMap<NetworkId, Network>,
    /// All endpoints on those networks, its own among them.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// The other nodes with an endpoint on one of those networks, and those that it must know anyway.
    pub peers: BTreeMap<NodeId, Peer>,
    /// The tasks that the node is given.
    #[serde(default)]
    pub tasks: BTreeMap<TaskId, NodeTask>,
}

/// Says why a snapshot, a delta or a bookmark was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is older than what the table has.
    #[error("position {given} is older than the table's {held}")]
    Older {
        /// What came.
        given: Position,
        /// What the table stands at.
        held: Position,
    },
    /// Something between the table and what came is missing.
    #[error("it goes on from {from} and the table stands at {held}")]
    Gap {
        /// Where it goes on from.
        from: Position,
        /// What the table stands at.
        held: Position,
    },
    /// It is a part of a table of which the rest is not known.
    #[error("it is a part of a table that is not known")]
    PartOfUnknown,
    /// A network goes that the table does not have.
    #[error("network {0} is not in the table")]
    UnknownNetwork(NetworkId),
    /// A network goes that endpoints are on.
    #[error("network {0} goes and its endpoints stay")]
    NetworkInUse(NetworkId),
    /// An endpoint goes that the table does not have, or stands on a network or a node that it has
    /// not.
    #[error("endpoint {0} does not fit the table")]
    StrayEndpoint(EndpointId),
    /// A peer goes that the table does not have, or is the node itself.
    #[error("peer {0} does not fit the table")]
    StrayPeer(NodeId),
    /// A peer goes that has endpoints.
    #[error("peer {0} goes and its endpoints stay")]
    PeerInUse(NodeId),
    /// A task goes that the table does not have.
    #[error("task {0} is not in the table")]
    UnknownTask(TaskId),
}

impl Table {
    /// The table of a node that takes part in nothing.
    pub fn empty(node: NodeId) -> Self {
        Self {
            node,
            epoch: 0,
            revision: 0,
            networks: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            peers: BTreeMap::new(),
            tasks: BTreeMap::new(),
        }
    }

    /// Returns what the table is as of.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, revision: self.revision }
    }

    /// Checks that every reference in the table leads to something in the table.
    pub(super) fn check(&self) -> Result<(), TableError> {
        for endpoint in self.endpoints.values() {
            let known_node = endpoint.node == self.node || self.peers.contains_key(&endpoint.node);
            if !known_node || !self.networks.contains_key(&endpoint.network) {
                return Err(TableError::StrayEndpoint(endpoint.id));
            }
        }
        match self.peers.contains_key(&self.node) {
            true => Err(TableError::StrayPeer(self.node)),
            false => Ok(()),
        }
    }
}
