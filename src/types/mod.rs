//! Vocabulary: the words of this program as types, shared by every layer. Nothing here computes
//! more than its own validity, and nothing here imports another module of ours.

mod counters;
mod digest;
mod drop_reason;
mod id;
mod moment;
mod objects;
mod offload;
mod vni;

pub use counters::{PacketsBytes, PeerState, PeerStatus, Traffic};
pub use digest::{Digest, ScopeId};
pub use drop_reason::{DropCounts, DropReason};
pub use id::{EndpointId, Id, NetworkId, NodeId, ParseIdError};
pub use moment::Moment;
pub use objects::{
    Availability, Encap, Endpoint, Name, NameError, Network, Node, NodeStatus, Peer, Position, Psk,
    Revision, Role, VersionRange,
};
pub use offload::{OffloadError, Offloads};
pub use vni::Vni;
