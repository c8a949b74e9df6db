//! The manager in a node's own process: it starts and ends as the cluster makes the node one.
//!
//! ```text
//! worker --promoted: gift, join the others' log--> manager --demoted: it decides no more--> worker
//! ```
//! The record of membership says first that there is a manager, and last that there is none.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use tokio::time::timeout;
use tonic::Status;
use tracing::{info, warn};

use super::{
    Node,
    managers::Standing,
    member::Member,
    node::{Life, StopManager, refused},
    records::MemberRecord,
};
use crate::{
    api::{
        Ending, Joining, Opened, Reopening, channel,
        proto::{GiftRequest, ManagerGift, membership_client::MembershipClient},
        tls::Credentials,
    },
    types::{Node as NodeRecord, Role},
};

impl Node {
    /// Serves the cluster of the state folder again if this node has a manager, and brings the record
    /// up to date with what that knows.
    pub(super) async fn open_manager(
        &self,
        record: &mut MemberRecord,
        credentials: &Credentials,
        alone: bool,
    ) -> anyhow::Result<Option<StopManager>> {
        let Some(listen_addr) = record.listen_addr else { return Ok(None) };
        let reopening = Reopening {
            state_dir: self.options.state_dir.clone(),
            listen_addr,
            node: record.node.id,
            has_others: record.has_others(),
            alone,
            credentials: credentials.clone(),
        };
        let opened = (self.start_manager.open)(reopening).await;
        let (stop, node) = match opened.context("start the manager again")? {
            Opened::Serves(stop, reopened) => (Some(stop), reopened.node),
            Opened::Gone => {
                record.listen_addr = None;
                (None, NodeRecord { role: Role::Worker, ..record.node.clone() })
            }
        };
        record.node = node;
        let kept = self.records.put_record(record);
        match (kept, stop) {
            (Ok(()), stop) => Ok(stop),
            (Err(error), Some(stop)) => {
                stop(Ending::Kept).await;
                Err(error)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Starts this node's manager again, without the others.
    pub(super) async fn go_on_alone(&self, member: &Member) -> Result<(), Status> {
        let mut life = self.life.lock().await;
        let Life::Member(_, stop) = &mut *life else {
            return Err(Status::aborted("this node left the cluster meanwhile"));
        };
        let recorded = self.records.member().map_err(refused)?;
        let Some((mut record, credentials)) = recorded else {
            return Err(Status::failed_precondition("the record of membership is gone"));
        };
        if let Some(stop) = stop.take() {
            stop(Ending::Kept).await;
        }
        *stop = self.open_manager(&mut record, &credentials, true).await.map_err(refused)?;
        let Some(own) = record.own_manager() else {
            return Err(Status::failed_precondition("this node has no manager"));
        };
        member.manager.hurry_to(own);
        info!("goes on as the only manager");
        Ok(())
    }

    /// Starts the manager of a node that the cluster made one; what the others decided comes to it.
    /// The record says so.
    pub(super) async fn join_managers(
        &self,
        record: &mut MemberRecord,
        gift: ManagerGift,
        anew: bool,
    ) -> anyhow::Result<StopManager> {
        record.node.role = Role::Manager;
        let joining = Joining {
            state_dir: self.options.state_dir.clone(),
            listen_addr: record.will_listen(),
            cluster: record.cluster,
            node: record.node.clone(),
            gift,
            anew,
        };
        let (listen_addr, stop) = (self.start_manager.join)(joining).await?;
        record.listen_addr = Some(listen_addr);
        Ok(stop)
    }

    /// Has a member's manager start and end as the cluster says, until the membership ends.
    pub(super) fn follow_role(self: &Arc<Self>, member: &Arc<Member>) {
        let (node, weak) = (Arc::downgrade(self), Arc::downgrade(member));
        let mut told = member.manager.follow_standing();
        tokio::spawn(async move {
            // What it was told before is done.
            while told.changed().await.is_ok() {
                let standing = *told.borrow_and_update();
                let (Some(node), Some(member)) = (node.upgrade(), weak.upgrade()) else { return };
                let taken = node.take_standing(&member, standing).await;
                drop((node, member));
                if let Err(error) = taken {
                    let (error, again_in) = (format!("{error:#}"), RETRY);
                    warn!(error, ?again_in, "this node's manager does not start");
                    // Until then it may be wanted no more.
                    if timeout(RETRY, told.changed()).await.is_err() {
                        told.mark_changed();
                    }
                }
            }
        });
    }

    /// Starts or ends a member's manager, if that is to be done.
    async fn take_standing(
        &self,
        member: &Arc<Member>,
        Standing { role, decides }: Standing,
    ) -> anyhow::Result<()> {
        if role == Role::Manager && member.own_manager().is_none() {
            if decides {
                warn!(
                    "this node's manager has lost its log; demote it on another one, then promote it again"
                );
                return Ok(());
            }
            let gift = gift(member).await.map_err(|status| anyhow!("{}", status.message()))?;
            let mut life = self.life.lock().await;
            let Life::Member(current, stop @ None) = &mut *life else { return Ok(()) };
            if !Arc::ptr_eq(current, member) {
                return Ok(());
            }
            let before = member.record();
            let mut record = before.clone();
            record.listen_addr = Some(record.will_listen());
            // If the process ends before there is one, the next knows that by this.
            member.put_record(record.clone())?;
            match self.join_managers(&mut record, gift, true).await {
                Ok(started) => *stop = Some(started),
                Err(error) => {
                    member.put_record(before)?;
                    return Err(error);
                }
            }
            member.put_record(record)?;
            info!("this node has a manager");
        } else if role == Role::Worker {
            let mut life = self.life.lock().await;
            let Life::Member(current, stop) = &mut *life else { return Ok(()) };
            let Some(stop) = stop.take_if(|_| Arc::ptr_eq(current, member)) else {
                return Ok(());
            };
            let mut record = member.record();
            record.listen_addr = None;
            (record.manager, record.node.role) = (member.manager.addr(), Role::Worker);
            let kept = member.put_record(record);
            stop(Ending::Undone).await;
            info!("this node has no manager any more");
            kept?;
        }
        Ok(())
    }
}

/// Asks for what a manager needs.
async fn gift(member: &Member) -> Result<ManagerGift, Status> {
    let channel = member.manager.connected().await?;
    let given = channel::answer(MembershipClient::new(channel).gift(GiftRequest {})).await?;
    given.manager.ok_or_else(|| Status::internal("the manager's answer has no gift"))
}

const RETRY: Duration = Duration::from_secs(10);
