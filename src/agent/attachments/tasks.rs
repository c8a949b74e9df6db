//! The endpoints of tasks: the cluster makes and ends them with the task, this node only their devices.

use anyhow::Context as _;
use tracing::debug;

use super::{
    super::{
        dataplane::DefaultRoute,
        namespace::Target,
        records::{Device, EndpointRecord},
    },
    Attachments,
};
use crate::{
    engine::membership::Table,
    types::{EndpointId, NodeTask},
};

impl Attachments {
    /// Gives the namespace of a task's supervisor what the task has on its networks, in their order. What
    /// it has already stays.
    ///
    /// # Errors
    /// The table does not have all of it, or a device cannot be made.
    pub async fn attach_task(&self, task: &NodeTask, supervisor: u32) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        let table = self.table.borrow().clone();
        for id in &task.endpoints {
            if self.held().contains_key(id) {
                continue;
            }
            let endpoint = table.endpoints.get(id).context("its endpoint is not known yet")?;
            let network = table.networks.get(&endpoint.network);
            let network = network.context("its network is not known yet")?;
            let target = Target::Pid(supervisor);
            let namespace = target.find().context("find its namespace")?;
            let default_route = match network.internal {
                true => DefaultRoute::Leave,
                false => DefaultRoute::IfFree,
            };
            let mut record = EndpointRecord {
                endpoint: endpoint.clone(),
                network: network.clone(),
                position: table.position(),
                target,
                namespace,
                device: Device::Making,
                default_route,
                order: self.next_order(),
            };
            if let Err(status) = self.make(&mut record, None).await {
                self.forget(*id);
                anyhow::bail!("network {}: {}", network.name, status.message());
            }
            debug!(endpoint = %endpoint.name, network = %network.name, "attached");
            self.held().insert(*id, record);
        }
        Ok(())
    }

    /// Takes the devices of a task away that has ended.
    pub async fn detach_task(&self, endpoints: &[EndpointId]) {
        let _turn = self.turn.lock().await;
        for id in endpoints.iter().filter(|id| self.held().contains_key(id)) {
            if let Err(error) = self.dataplane.detach(*id).await {
                debug!(endpoint = %id, error = format!("{error:#}"), "nothing to take away");
            }
            self.forget(*id);
        }
    }

    /// Whether an endpoint is a task's, which alone decides on its end.
    pub(super) fn is_of_task(table: &Table, endpoint: EndpointId) -> bool {
        table.tasks.values().any(|task| task.endpoints.contains(&endpoint))
    }
}
