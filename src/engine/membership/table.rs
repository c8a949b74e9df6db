//! The table itself: a consistent picture at one revision, never edited in place once published.

use std::collections::BTreeMap;

use crate::types::{Endpoint, EndpointId, Network, NetworkId, NodeId, Peer, Revision};

/// Everything that this node must know of the cluster, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}
