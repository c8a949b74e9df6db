//! Vocabulary: the words of this program as types, shared by every layer. Nothing here computes
//! more than its own validity, and nothing here imports another module of ours.

mod counters;
mod digest;
mod drop_reason;
mod id;
mod moment;
mod objects;
mod offload;
mod service;
mod task;
mod vni;

pub use counters::{PacketsBytes, PeerState, PeerStatus, Traffic};
pub use digest::{Digest, ScopeId};
pub use drop_reason::{DropCounts, DropReason};
pub use id::{EndpointId, Id, NetworkId, NodeId, ParseIdError, ServiceId, TaskId};
pub use moment::Moment;
pub use objects::{
    Availability, Encap, Endpoint, Name, NameError, Network, Node, NodeStatus, Peer, Position, Psk,
    Revision, Role, VersionRange,
};
pub use offload::{OffloadError, Offloads};
pub use service::{
    Comparison, Constraint, ConstraintError, EnvVar, FailureAction, HealthCheck, Limits, Mode,
    Mount, MountSource, NodeAttribute, Placement, Previous, Resources, RestartCondition,
    RestartPolicy, Service, ServiceSpec, Stop, TaskNetwork, TaskSpec, UpdateOrder, UpdatePolicy,
    UpdateState, UpdateStatus,
};
pub use task::{Desired, Exit, NodeTask, Slot, Task, TaskState, TaskStatus};
pub use vni::Vni;
