//! Tasks: one run of what a service wants, in one of its slots. A task runs once; what takes its place
//! is another task in the same slot.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{EndpointId, Name, NodeId, ServiceId, TaskId, TaskSpec};

/// A task as the cluster's state holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its identity.
    pub id: TaskId,
    /// What it is a task of.
    pub service: ServiceId,
    /// Its place among the service's tasks.
    pub slot: Slot,
    /// Which of the service's definitions of a task it runs.
    pub version: u64,
    /// How far the managers want it to go.
    pub desired: Desired,
    /// How far it is.
    pub status: TaskStatus,
    /// The node that it is given to, once and for all.
    pub node: Option<NodeId>,
    /// What it has on its networks for as long as it has not ended, in the definition's order.
    pub endpoints: Vec<EndpointId>,
    /// Which attempt of its slot it is, counted in the restart policy's window; 0 for one that takes no
    /// place of one that failed.
    pub attempt: u32,
    /// When that window began, in milliseconds since 1970.
    pub window_start_ms: u64,
}

/// A task as its node is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTask {
    /// Its identity.
    pub id: TaskId,
    /// What its service is called.
    pub service: Name,
    /// Its place.
    pub slot: Slot,
    /// How far it is to go.
    pub desired: Desired,
    /// What it is.
    pub spec: TaskSpec,
    /// What it has on its networks, in their order; none once it has ended.
    pub endpoints: Vec<EndpointId>,
}

impl NodeTask {
    /// What it is called: `web.1`, or `web` of a global service.
    pub fn name(&self) -> String {
        match self.slot {
            Slot::Replica(number) => format!("{}.{number}", self.service),
            Slot::Node(_) => self.service.to_string(),
        }
    }
}

/// A task's place among those of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Of a replicated service, from 1.
    Replica(u32),
    /// Of a global one.
    Node(NodeId),
}

/// How far a task is wanted to go. It only ever goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// All that comes before its command starts.
    Ready,
    /// It runs.
    Running,
    /// It is stopped.
    Shutdown,
    /// It is stopped, and forgotten when it has ended.
    Remove,
}

/// How far a task is, with what is to be said of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// How far it is.
    pub state: TaskState,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Why, where there is something to say.
    pub message: Option<String>,
    /// How its command ended.
    pub exit: Option<Exit>,
}

/// How far a task is. It only ever goes on; from [`Self::Complete`] on it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// No node has it.
    Pending,
    /// A node has it, and does not know.
    Assigned,
    /// The node knows.
    Accepted,
    /// What it needs is made.
    Preparing,
    /// What it needs is there, and it waits for its start.
    Ready,
    /// Its command starts, or is not yet well.
    Starting,
    /// Its command runs.
    Running,
    /// Its command ended with 0.
    Complete,
    /// It was stopped because that was wanted.
    Shutdown,
    /// Its command ended in another way.
    Failed,
    /// Its node cannot run it.
    Rejected,
    /// Its node is gone for good; what became of it nobody knows.
    Orphaned,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// By itself, with that status.
    Status(i32),
    /// By that signal.
    Signal(i32),
}

impl Task {
    /// Whether it is wanted to run, now or when its time comes.
    pub fn is_wanted(&self) -> bool {
        match self.desired {
            Desired::Ready | Desired::Running => true,
            Desired::Shutdown | Desired::Remove => false,
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.status.state.has_ended()
    }
}

impl Slot {
    /// The node of a slot that is one's.
    pub fn node(self) -> Option<NodeId> {
        match self {
            Self::Replica(_) => None,
            Self::Node(node) => Some(node),
        }
    }
}

impl TaskState {
    /// Whether nothing comes after it.
    pub fn has_ended(self) -> bool {
        self >= Self::Complete
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(number) => number.fmt(f),
            Self::Node(node) => node.fmt(f),
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Orphaned => "orphaned",
        })
    }
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Shutdown => "shutdown",
            Self::Remove => "remove",
        })
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}
