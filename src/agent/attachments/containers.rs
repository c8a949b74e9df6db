//! The endpoints of Docker containers. Such an endpoint lasts as long as the container does, its
//! device only as long as the container runs.
//!
//! ```text
//!               the container ends
//!      made ---------------------------> stopped       the cluster keeps the endpoint
//!    (device) <------------------------- (none)        and its addresses in both
//!       |        the container starts      |
//!       '------------> ended <-------------'           the container is removed, or detach
//! ```
//!
//! What the engine tells is only that a container changed; what it does now is asked, so that
//! hearing something twice, late or in another order does no harm.

use std::{pin::pin, sync::Arc};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{
    super::{
        docker::{ContainerStatus, DockerError},
        link::backoff,
        namespace::Target,
        records::{Device, EndpointRecord},
    },
    Attachments,
};
use crate::io::netns::NamespaceId;

/// Follows the containers that have endpoints. It rests while there are none. It may be aborted: what
/// is half made then is made anew by the next process.
pub struct ContainersTask {
    attachments: Arc<Attachments>,
}

impl ContainersTask {
    /// The task of a node's endpoints.
    pub fn new(attachments: Arc<Attachments>) -> Self {
        Self { attachments }
    }

    /// Runs until it is aborted.
    pub async fn run(self) {
        let mut failures = 0;
        loop {
            while self.attachments.container_ids().is_empty() {
                self.attachments.container_attached.notified().await;
            }
            let Err(error) = self.follow(&mut failures).await;
            match failures {
                0 => warn!(%error, "what containers do is not seen"),
                _ => debug!(%error, "docker is still away"),
            }
            failures += 1;
            // Short waits: containers start together with the engine.
            sleep(backoff(failures.min(2))).await;
        }
    }

    /// Follows the engine until it ends.
    async fn follow(&self, failures: &mut u32) -> Result<std::convert::Infallible, DockerError> {
        let docker = &self.attachments.docker;
        let mut changes = pin!(docker.changes().await?);
        // What happened before was not heard.
        self.settle_all().await?;
        if *failures > 0 {
            info!("docker is back");
        }
        *failures = 0;
        loop {
            tokio::select! {
                changed = changes.next() => match changed {
                    Some(id) => self.settle(&id?).await?,
                    None => return Err(docker.ended()),
                },
                // It may have changed before its endpoint was known.
                () = self.attachments.container_attached.notified() => self.settle_all().await?,
            }
        }
    }

    async fn settle_all(&self) -> Result<(), DockerError> {
        let mut settled = Ok(());
        for id in self.attachments.container_ids() {
            // One that the engine does not tell of does not hold up the others.
            if let Err(error) = self.settle(&id).await {
                settled = Err(error);
            }
        }
        settled
    }

    async fn settle(&self, id: &str) -> Result<(), DockerError> {
        if self.attachments.container_ids().iter().any(|known| known == id) {
            let status = self.attachments.docker.status(id).await?;
            self.attachments.handle_container(id, status).await;
        }
        Ok(())
    }
}

impl Attachments {
    /// Makes the endpoints of a container follow what it is doing.
    async fn handle_container(&self, id: &str, status: ContainerStatus) {
        let _turn = self.turn.lock().await;
        let mut records: Vec<EndpointRecord> = self.held().values().cloned().collect();
        records.retain(|record| record.target.container() == Some(id));
        // As they were attached: which is the way out depends on it.
        records.sort_by_key(|record| record.order);
        for record in records {
            let endpoint = record.endpoint.name.clone();
            let handled = match status {
                ContainerStatus::Running(process) => self.make_again(record, id, process).await,
                ContainerStatus::Stopped => {
                    self.stop(record).await;
                    Ok(())
                }
                ContainerStatus::Gone => {
                    info!(%endpoint, "its container was removed");
                    self.end(record.endpoint.id).await
                }
            };
            if let Err(error) = handled {
                let error = format!("{error:#}");
                warn!(%endpoint, error, "an endpoint does not follow its container");
            }
        }
    }

    /// Makes the device of a container that runs, unless it is there.
    async fn make_again(
        &self,
        record: EndpointRecord,
        id: &str,
        process: u32,
    ) -> anyhow::Result<()> {
        let target = Target::Container { id: id.to_owned(), process };
        let namespace = target.find()?;
        let name = match &record.device {
            Device::Made(_) if record.namespace == namespace => return Ok(()),
            Device::Made(interface) => {
                let name = interface.name.clone();
                self.stop(record.clone()).await;
                name
            }
            Device::Stopped { made_again_as } => made_again_as.clone(),
            // Its maker has the turn.
            Device::Making => return Ok(()),
        };
        let EndpointRecord { network, endpoint, default_route, .. } = &record;
        // A process that ended on the way may have left one.
        self.dataplane.clear(endpoint.id, &target).await?;
        let dataplane = &self.dataplane;
        let made =
            dataplane.attach(network, endpoint, &target, Some(&name), *default_route).await?;
        let record = EndpointRecord { target, namespace, device: Device::Made(made), ..record };
        let endpoint = &record.endpoint;
        if let Err(error) = self.put(&record) {
            self.dataplane
                .detach(endpoint.id)
                .await
                .context("an interface without a record is left")?;
            return Err(error);
        }
        info!(endpoint = %endpoint.name, "attached again, for its container runs again");
        self.held().insert(endpoint.id, record);
        Ok(())
    }

    /// Takes the device of a container that does not run; the endpoint stays.
    async fn stop(&self, record: EndpointRecord) {
        let made_again_as = match &record.device {
            Device::Made(interface) => interface.name.clone(),
            Device::Stopped { .. } | Device::Making => return,
        };
        let id = record.endpoint.id;
        self.hold_stopped(EndpointRecord { device: Device::Stopped { made_again_as }, ..record });
        if let Err(error) = self.dataplane.detach(id).await {
            debug!(endpoint = %id, error = format!("{error:#}"), "nothing to take away");
        }
    }

    /// Keeps an endpoint without its device.
    pub(super) fn hold_stopped(&self, record: EndpointRecord) {
        let (id, name) = (record.endpoint.id, &record.endpoint.name);
        info!(endpoint = %name, "its container is stopped; it keeps its addresses");
        self.watch.forget(id);
        if let Err(error) = self.put(&record) {
            warn!(endpoint = %name, error = format!("{error:#}"), "the record of an endpoint is old");
        }
        self.held().insert(id, record);
    }

    /// The namespace of a container's endpoint is said to have ended. It may be the one of an earlier
    /// run, told late.
    pub(super) async fn handle_container_ended(&self, record: EndpointRecord) {
        if let (Some(target), Device::Made(interface)) =
            (record.target.still(record.namespace), &record.device)
        {
            let there = self.dataplane.has(record.endpoint.id, &target, interface.clone()).await;
            if there.unwrap_or(false) {
                return;
            }
        }
        self.stop(record).await;
    }

    /// The containers with endpoints here.
    fn container_ids(&self) -> Vec<String> {
        let held = self.held();
        let ids = held.values().filter_map(|record| record.target.container().map(str::to_owned));
        let mut ids: Vec<String> = ids.collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// The endpoints that a target has already.
    pub(super) fn held_at(&self, target: &Target, namespace: NamespaceId) -> Vec<EndpointRecord> {
        let held = self.held();
        held.values().filter(|other| other.is_at(target, namespace)).cloned().collect()
    }

    /// The place of the next attachment in their order.
    pub(super) fn next_order(&self) -> u64 {
        self.held().values().map(|record| record.order + 1).max().unwrap_or(0)
    }
}

impl EndpointRecord {
    /// Whether it is an endpoint of this target. A namespace that was left may be another's now.
    fn is_at(&self, target: &Target, namespace: NamespaceId) -> bool {
        let same_container =
            target.container().is_some_and(|id| self.target.container() == Some(id));
        match &self.device {
            Device::Stopped { .. } => same_container,
            Device::Made(_) | Device::Making => same_container || self.namespace == namespace,
        }
    }
}
