//! How a member of the log stands, for tests that compare members.

use super::Log;
use crate::types::NodeId;

/// How one member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Of the newest vote that it knows.
    pub term: u64,
    /// Whether it holds itself for the leader.
    pub leads: bool,
    /// The last applied entry, and who was leader, in which term, when it was made.
    pub applied: Option<(u64, u64, NodeId)>,
}

impl Log {
    /// Tells how this member stands; nothing once it has stopped.
    pub fn standing(&self) -> Option<Standing> {
        let raft = self.common.raft.get()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        metrics.running_state.as_ref().ok()?;
        let applied = metrics.last_applied;
        Some(Standing {
            term: metrics.current_term,
            leads: metrics.state.is_leader(),
            applied: applied.map(|id| (id.index, id.leader_id.term, id.leader_id.node_id)),
        })
    }
}
