//! After a recovery that may have lost the newest entries the state may hold addresses for free that
//! containers have. So a new epoch begins with every ready node saying what it has, which is taken in,
//! before anything is handed out; a node that does not come is waited for only so long.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tonic::Status;
use tracing::{info, warn};

use super::Shared;
use crate::{
    engine::cluster::{Command, State},
    types::{NodeId, NodeStatus},
};

/// Who is waited for.
pub struct Recovery {
    awaited: Mutex<BTreeSet<NodeId>>,
    settled: watch::Sender<bool>,
}

impl Recovery {
    /// Goes on with the epoch of a state as it stands.
    pub fn new(state: &State) -> Self {
        let recovery = Self { awaited: Mutex::default(), settled: watch::Sender::new(true) };
        recovery.begin(state);
        recovery
    }

    /// Waits for the ready nodes of a state whose epoch is new; tells whether it is.
    pub fn begin(&self, state: &State) -> bool {
        if state.is_settled() {
            // By whoever led until now.
            self.settled.send_replace(true);
            return false;
        }
        let ready = state.nodes().filter(|node| node.status == NodeStatus::Ready);
        *self.awaited() = ready.map(|node| node.id).collect();
        self.settled.send_replace(false);
        true
    }

    /// Notes that a node has said what it has.
    pub fn handle_reported(&self, node: NodeId) {
        self.awaited().remove(&node);
        // Whoever waits looks again.
        self.settled.send_modify(|_| {});
    }

    /// Waits until addresses may be handed out, as long as a call may take.
    ///
    /// # Errors
    /// Nodes have not said what they have.
    pub async fn settled(&self) -> Result<(), Status> {
        let mut changes = self.settled.subscribe();
        // The sender is ours, so it cannot be gone.
        match timeout(CALL_PATIENCE, changes.wait_for(|settled| *settled)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::unavailable(format!(
                "{} node(s) have not said since the recovery which addresses they have; try again within a minute, or remove those that are gone",
                self.awaited().len()
            ))),
        }
    }

    /// Settles the epoch of a manager that leads now, if it is new.
    pub async fn begin_if_due(shared: Arc<Shared>) {
        if shared.log.read(|state| shared.recovery.begin(state)) {
            Self::run(shared).await;
        }
    }

    /// Settles the epoch of `shared` when all have reported, or after a while.
    pub async fn run(shared: Arc<Shared>) {
        let recovery = &shared.recovery;
        let mut changes = recovery.settled.subscribe();
        let all = changes.wait_for(|_| recovery.awaited().is_empty());
        if timeout(PATIENCE, all).await.is_err() {
            let missing = recovery.awaited().len();
            warn!(missing, "nodes have not said what they have; addresses are handed out anyway");
        }
        match shared.log.propose(Command::SettleEpoch).await {
            Ok((revision, _)) => info!(revision, "the new epoch is settled"),
            Err(error) => warn!(%error, "the new epoch is not settled"),
        }
        recovery.settled.send_replace(true);
    }

    fn awaited(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longer than any agent waits between its attempts to connect.
const PATIENCE: Duration = Duration::from_secs(40);
/// Below what a call may take.
const CALL_PATIENCE: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_epoch_that_another_manager_settled_is_settled_here_too() {
        let mut state = State::default();
        state.start_epoch();
        let recovery = Recovery::new(&state);
        let waits = timeout(Duration::from_millis(10), recovery.settled()).await;
        assert!(waits.is_err(), "nobody has settled it");
        state.apply(1, Command::SettleEpoch).unwrap();
        assert!(!recovery.begin(&state), "there is nothing to wait for");
        recovery.settled().await.unwrap();
    }
}
