//! One step of a delta between two revisions of a peer table. A step carries the object's new
//! value whole, so that a table never depends on how often it was told.

use crate::types::{Endpoint, EndpointId, Network, NetworkId, NodeId, NodeTask, Peer, TaskId};

/// What changes in a node's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A network that the node takes part in, new or changed.
    Network(Network),
    /// The node no longer takes part in a network.
    NetworkGone(NetworkId),
    /// Another node on one of its networks, new or changed.
    Peer(Peer),
    /// No network is shared with that node any more.
    PeerGone(NodeId),
    /// An endpoint on one of its networks, new or changed.
    Endpoint(Endpoint),
    /// An endpoint ended.
    EndpointGone(EndpointId),
    /// A task that the node is given, or is to go further.
    Task(Box<NodeTask>),
    /// A task is forgotten.
    TaskGone(TaskId),
}
