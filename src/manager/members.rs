//! Makes those decide whom the state has as managers: the leader takes one in or out at a time, until
//! the log's members are the state's. A new one has caught up before it decides.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, metadata::MetadataValue};
use tracing::{info, warn};

use super::{
    Shared,
    log::{MembersError, ProposeError},
    status,
};
use crate::{
    api::{
        HEARTBEAT, LEADER,
        proto::{self, ManagerGift, RoleNews},
    },
    engine::cluster::{Command, Outcome, State},
    types::{Node, NodeId, NodeStatus, Role},
};

/// The task; may be aborted, and goes on from the state when it is started again.
pub struct MembersTask {
    shared: Arc<Shared>,
}

impl MembersTask {
    /// Makes the task.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Changes members for as long as it is polled, which is while this manager leads.
    pub async fn run(self) {
        let log = &self.shared.log;
        let mut progress = self.shared.dispatcher.progress();
        let mut late = BTreeSet::new();
        loop {
            progress.mark_unchanged();
            let members = log.members();
            // What a manager that led before has begun is ended first.
            let begun = log.is_changing().then(|| members.clone());
            match begun.or_else(|| next(&members, &log.read(managers), &late)) {
                Some(next) => match self.change(&next, &late).await {
                    Ok(()) => {
                        late.retain(|manager| !next.contains(manager));
                        info!(managers = next.len(), "the managers that decide changed");
                    }
                    Err(MembersError::Stopped(_)) => return,
                    Err(error) => {
                        warn!(%error, "the managers that decide stay as they are");
                        let MembersError::Late(manager) = error else {
                            sleep(RETRY).await;
                            continue;
                        };
                        if !late.insert(manager) {
                            sleep(RETRY).await;
                        }
                    }
                },
                None => {
                    if progress.changed().await.is_err() {
                        return;
                    }
                    // All nodes are looked at, and each acknowledgement of an agent is progress: what
                    // comes together is looked at once.
                    sleep(COALESCED).await;
                }
            }
        }
    }
}

impl MembersTask {
    /// Makes these decide; gives up on a new one that has not caught up when something else is to be
    /// done: it is taken out again, or another one comes or goes.
    async fn change(
        &self,
        goal: &BTreeSet<NodeId>,
        late: &BTreeSet<NodeId>,
    ) -> Result<(), MembersError> {
        let log = &self.shared.log;
        let new = goal.difference(&log.members()).next().copied();
        let given_up = async {
            let Some(new) = new else { return std::future::pending().await };
            loop {
                sleep(CATCHES_UP_WITHIN).await;
                if keeps_waiting(new, &log.members(), &log.read(managers), late) {
                    return new;
                }
            }
        };
        tokio::select! {
            changed = log.set_members(goal.clone()) => changed,
            gone = given_up => Err(MembersError::Late(gone)),
        }
    }
}

impl Shared {
    /// Does something whenever this manager leads, for as long as it does; returns when the log stops.
    pub(super) async fn while_leading<F: Future<Output = ()>>(
        self: Arc<Self>,
        act: impl Fn(Arc<Self>) -> F,
    ) {
        while self.log.led().await.is_ok() {
            let not_led = self.log.not_led();
            tokio::pin!(not_led);
            let ended = tokio::select! {
                ended = &mut not_led => ended,
                () = act(self.clone()) => not_led.await,
            };
            if ended.is_err() {
                return;
            }
        }
    }

    /// Refuses streams while this manager does not know what is decided, and while only the leader may
    /// take them, and says where that is.
    pub(super) async fn check_serves(&self) -> Result<(), Status> {
        let mut leads = self.watch.leads();
        let mut current = self.current.subscribe();
        let soon = SERVES_SOON.max(self.dispatcher.heartbeat().borrow().min(SERVES_LATEST));
        let serves = async {
            let current_now =
                self.log.is_current() && self.log.read(|state| self.is_manager(state));
            if !current_now {
                // Thousands may wait here, for whom one looks.
                let known = current.wait_for(|current| *current).await;
                known.is_ok().then_some(())?;
            }
            if self.log.leader() == Some(self.node) {
                return leads.wait_for(|leads| *leads).await.is_ok().then_some(());
            }
            // Whoever leads is waiting for what its agents have.
            let serves = |state: &State| state.cluster().is_some() && state.is_settled();
            self.log.read(serves).then_some(())
        };
        match timeout(soon, serves).await {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => {
                let leader = self.log.leader().filter(|leader| *leader != self.node);
                Err(elsewhere(leader.and_then(|leader| self.dispatcher.addresses().find(leader))))
            }
        }
    }

    /// Whether the state has this manager's node as one.
    fn is_manager(&self, state: &State) -> bool {
        state.node(self.node).is_some_and(|node| node.role == Role::Manager)
    }

    /// Ends the streams whenever this manager has not heard for a while what is decided: their agents
    /// find another one that has. With many nodes, whose heartbeat is longer, it is that much more
    /// patient: while nobody leads there is no other one, and an election must not be held up by
    /// thousands that come and are sent away.
    pub(super) async fn end_stale_streams(self: Arc<Self>) {
        let mut current_at = Instant::now();
        loop {
            sleep(BETWEEN_LOOKS).await;
            // One that was demoted knows for how long nobody tells it more; others serve its agents.
            let current = self.log.is_current() && self.log.read(|state| self.is_manager(state));
            self.current.send_if_modified(|known| std::mem::replace(known, current) != current);
            let heartbeat = *self.dispatcher.heartbeat().borrow();
            if current {
                current_at = Instant::now();
            } else if current_at.elapsed() > heartbeat.saturating_sub(HEARTBEAT) {
                self.dispatcher.close_all();
            }
        }
    }

    /// Returns what makes a node's manager one of the cluster's.
    pub(super) fn gift(&self) -> Result<ManagerGift, Status> {
        let read = |state: &State| {
            let secrets = serde_json::to_vec(state.secrets()?).ok()?;
            let managers = managers(state).iter().map(|node| node.to_bytes().to_vec()).collect();
            Some((secrets, managers))
        };
        let (secrets, managers) = self
            .log
            .read(read)
            .context("the state holds no secrets")
            .map_err(status::of_failure)?;
        Ok(ManagerGift {
            key: self.trust.key_bytes().to_vec(),
            secrets,
            certificate_life_s: self.settings.certificate_life.as_secs(),
            managers,
        })
    }

    /// Returns whether a node's agent is to have a manager. One that decides is needed until the
    /// others have agreed that it does not.
    pub(super) fn role_of(&self, node: NodeId) -> RoleNews {
        let role = self.log.read(|state| state.node(node).map(|node| node.role));
        let decides = self.log.members().contains(&node);
        let role = if decides { Role::Manager } else { role.unwrap_or(Role::Worker) };
        RoleNews { role: proto::Role::from(role).into(), decides }
    }

    /// Makes a node a manager, or one no more; returns it, and whether those that decide are so.
    pub(super) async fn set_role(&self, node: &Node, role: Role) -> Result<(Node, bool), Status> {
        if role == Role::Worker && !self.is_only_manager(node) {
            self.check_quorum_without(node).await?;
        }
        let set = self.log.propose(Command::SetRole { node: node.id, role }).await;
        let Outcome::Node(node) = set.map_err(status::of_proposal)?.1 else {
            return Err(Status::internal("setting a role gave no node"));
        };
        let settled = self.log.await_deciding(node.id, role == Role::Manager);
        let settled = timeout(SETTLED_WITHIN, settled).await.is_ok();
        Ok((node, settled))
    }

    /// Refuses to take a manager out without which the others could not decide.
    pub(super) async fn check_dispensable(&self, node: &Node) -> Result<(), Status> {
        if self.is_only_manager(node) {
            return Err(Status::failed_precondition(format!(
                "node {} is the only manager; end the cluster with 'overlayctl leave --force' there",
                node.name
            )));
        }
        self.check_quorum_without(node).await
    }

    fn is_only_manager(&self, node: &Node) -> bool {
        self.log.read(managers).iter().eq([&node.id])
    }

    async fn check_quorum_without(&self, node: &Node) -> Result<(), Status> {
        if !self.log.members().contains(&node.id) {
            return Ok(());
        }
        // Where too few are there already, nothing of it comes into the log.
        self.log.catch_up().await.map_err(status::of_proposal)?;
        let (left, ready) = self.log.read(|state| {
            let left =
                state.nodes().filter(|other| other.role == Role::Manager && other.id != node.id);
            let left: Vec<&Node> = left.collect();
            let ready = |other: &&&Node| other.status == NodeStatus::Ready || other.id == self.node;
            (left.len(), left.iter().filter(ready).count())
        });
        let name = &node.name;
        if ready <= left / 2 {
            return Err(Status::failed_precondition(format!(
                "without node {name} {ready} of {left} manager(s) would be ready, and more than half must be; bring one back first, or take out one that is down"
            )));
        }
        Ok(())
    }

    /// Takes a node out of the cluster; a manager has no say any more when this returns.
    pub(super) async fn remove(&self, node: &Node) -> Result<(), Status> {
        let removed = self.log.propose(Command::RemoveNode(node.id)).await;
        removed.map_err(status::of_proposal)?;
        self.watch.handle_removed(node.id);
        if node.role == Role::Manager
            && timeout(SETTLED_WITHIN, self.log.await_deciding(node.id, false)).await.is_err()
        {
            warn!(node = %node.name, "a manager that was taken out still has a say");
        }
        Ok(())
    }
}

fn elsewhere(leader: Option<SocketAddr>) -> Status {
    let Some(leader) = leader else { return status::of_proposal(ProposeError::NoLeader) };
    let mut status = Status::unavailable(format!("manager {leader} leads"));
    if let Ok(value) = MetadataValue::try_from(leader.to_string()) {
        status.metadata_mut().insert(LEADER, value);
    }
    status
}

/// The managers of a state.
pub fn managers(state: &State) -> BTreeSet<NodeId> {
    state.nodes().filter(|node| node.role == Role::Manager).map(|node| node.id).collect()
}

/// The members after the next change, if there is one to make; those that did not come in time are
/// tried again when there is nothing else to do.
fn next(
    members: &BTreeSet<NodeId>,
    wanted: &BTreeSet<NodeId>,
    late: &BTreeSet<NodeId>,
) -> Option<BTreeSet<NodeId>> {
    let (mut with, mut without) = (members.clone(), members.clone());
    let new: Vec<&NodeId> = wanted.difference(members).collect();
    if let Some(new) = new.iter().find(|new| !late.contains(new)) {
        with.insert(**new);
        return Some(with);
    }
    if let Some(gone) = members.difference(wanted).next() {
        without.remove(gone);
        if !without.is_empty() {
            return Some(without);
        }
    }
    with.insert(**new.first()?);
    Some(with)
}

/// Whether something else is to be done than to wait for a new one, which was not tried in vain before.
fn keeps_waiting(
    new: NodeId,
    members: &BTreeSet<NodeId>,
    wanted: &BTreeSet<NodeId>,
    late: &BTreeSet<NodeId>,
) -> bool {
    let mut others = wanted.difference(members).filter(|other| **other != new);
    let goes = members.difference(wanted).next().is_some();
    !wanted.contains(&new) || goes || others.any(|other| !late.contains(other))
}

/// How often a manager asks itself whether it still knows what is decided.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// Nobody notices it in the change of a role.
const COALESCED: Duration = Duration::from_millis(20);
/// A new one takes less, unless the state is large; then others come before it.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// Longer than an election takes, shorter than an agent waits for its stream to open.
const SERVES_SOON: Duration = Duration::from_secs(2);
/// With many nodes, whose managers are busier.
const SERVES_LATEST: Duration = Duration::from_secs(6);
/// A new manager starts and hears all that was decided; one that goes takes two entries of the log.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_taken_in_or_out_at_a_time_and_the_last_stays() {
        let ids = |ids: &[u128]| ids.iter().map(|id| NodeId::from_u128(*id)).collect();
        let late = |members: &[u128], wanted: &[u128], late: &[u128]| {
            next(&ids(members), &ids(wanted), &ids(late))
        };
        let next = |members: &[u128], wanted: &[u128]| late(members, wanted, &[]);
        assert_eq!(next(&[1], &[1]), None);
        assert_eq!(next(&[1], &[1, 2, 3]), Some(ids(&[1, 2])));
        assert_eq!(next(&[1, 2], &[1, 3]), Some(ids(&[1, 2, 3])), "in before out");
        assert_eq!(next(&[1, 2, 3], &[1, 3]), Some(ids(&[1, 3])));
        assert_eq!(next(&[1], &[]), None);
        assert_eq!(late(&[1], &[1, 2, 3], &[2]), Some(ids(&[1, 3])), "others are not kept waiting");
        assert_eq!(late(&[1, 3], &[1, 2], &[2]), Some(ids(&[1])));
        assert_eq!(late(&[1], &[2], &[2]), Some(ids(&[1, 2])), "the last one stays until then");
        assert_eq!(late(&[1], &[1, 2], &[2]), Some(ids(&[1, 2])));
    }

    #[test]
    fn a_new_one_is_waited_for_until_something_else_is_to_be_done() {
        let ids = |ids: &[u128]| ids.iter().map(|id| NodeId::from_u128(*id)).collect();
        let waits = |new, members: &[u128], wanted: &[u128], late: &[u128]| {
            keeps_waiting(NodeId::from_u128(new), &ids(members), &ids(wanted), &ids(late))
        };
        assert!(!waits(2, &[1], &[1, 2], &[]));
        assert!(waits(2, &[1], &[1, 2, 3], &[]), "another one has come");
        assert!(waits(2, &[1], &[1], &[]), "it is not wanted any more");
        assert!(waits(2, &[1, 3], &[1, 2], &[]), "one goes");
        assert!(!waits(3, &[1], &[1, 2, 3], &[2]), "the other one was late");
        assert!(!waits(3, &[1], &[1, 2, 3], &[2, 3]), "both were");
    }
}
