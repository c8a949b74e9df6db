//! The endpoints of this node's containers.
//!
//! An endpoint is in three places: the cluster's state, a record on disk, and a device in the
//! container. They are made in this order and ended in the other, one at a time:
//!
//! ```text
//! attach:  cluster -> record (making) -> device -> record (made)
//! detach:  device -> cluster -> record
//! ```
//! What fails half-way is undone at once. What could not be undone, because the manager was away or
//! this process ended, is when the next one starts, or the manager is back. The endpoint of a Docker
//! container outlives the device; [`containers`] says how.

pub mod containers;
mod restore;
mod tasks;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context as _;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::{
    dataplane::{Dataplane, DefaultRoute},
    docker::Docker,
    end_watch::EndWatch,
    member::Manager,
    namespace::{Target, TargetError},
    records::{Device, EndpointRecord, Records},
};
use crate::{
    api::{
        channel::answer,
        proto::{
            AdoptEndpointsRequest, AttachRequest, AttachResponse, AwaitAcknowledgedRequest,
            CreateEndpointRequest, LocalEndpoint, RemoveEndpointRequest,
            attachment_client::AttachmentClient,
        },
    },
    engine::{
        cluster::{Kind, resolve},
        membership::Table,
    },
    types::{Endpoint, EndpointId, Network, Node, Position},
};

/// All of them.
pub struct Attachments {
    node: Node,
    manager: Manager,
    dataplane: Arc<Dataplane>,
    records: Records,
    watch: Arc<EndWatch>,
    table: watch::Receiver<Arc<Table>>,
    docker: Docker,
    /// Told when a Docker container may have got an endpoint.
    container_attached: Notify,
    held: Mutex<BTreeMap<EndpointId, EndpointRecord>>,
    /// The newest epoch whose manager heard what this node has.
    reported: AtomicU64,
    /// Held while an endpoint is made or ended, so that one is never undone by another's cleaning.
    turn: AsyncMutex<()>,
}

impl EndpointRecord {
    /// Why the same namespace is not attached to the same network again.
    fn refusal(&self) -> Status {
        Status::already_exists(format!(
            "the target is on network {} already, as endpoint {}; detach that one first",
            self.network.name, self.endpoint.name
        ))
    }
}

impl Attachments {
    /// A node's endpoints, none yet.
    pub fn new(
        node: Node,
        manager: Manager,
        dataplane: Arc<Dataplane>,
        records: Records,
        watch: Arc<EndWatch>,
        table: watch::Receiver<Arc<Table>>,
        docker: Docker,
    ) -> Self {
        let reported = AtomicU64::new(table.borrow().epoch);
        Self {
            node,
            manager,
            dataplane,
            records,
            watch,
            table,
            docker,
            container_attached: Notify::new(),
            held: Mutex::default(),
            reported,
            turn: AsyncMutex::default(),
        }
    }

    /// Attaches a container. Once begun it is ended, done or undone, even if nobody waits for it.
    ///
    /// # Errors
    /// The request is refused; nothing is left of it.
    pub async fn attach(self: Arc<Self>, request: AttachRequest) -> Result<AttachResponse, Status> {
        let task = tokio::spawn(async move { self.attach_now(request).await });
        task.await.map_err(|error| Status::internal(format!("attaching broke off: {error}")))?
    }

    async fn attach_now(&self, mut request: AttachRequest) -> Result<AttachResponse, Status> {
        let bad = |error: TargetError| Status::invalid_argument(error.to_string());
        let target = Target::of(request.target.take(), &self.docker).await.map_err(bad)?;
        let namespace = target.find().map_err(bad)?;
        if let Some(interface) = &request.interface {
            check_interface(interface)?;
        }
        let channel = self.manager.connected().await;
        let turn = self.turn.lock().await;
        // The cheap look before an address is spent; ids' starts are found out after.
        let named = |other: &&EndpointRecord| other.network.name.as_str() == request.network;
        if let Some(twice) = self.held_at(&target, namespace).iter().find(named) {
            return Err(twice.refusal());
        }
        let mut client = AttachmentClient::new(channel?);
        let create = CreateEndpointRequest {
            network: request.network.clone(),
            name: request.name.clone(),
            addresses: request.addresses.clone(),
            aliases: request.aliases.clone(),
        };
        let created = answer(client.create_endpoint(create)).await?;
        let bent = || Status::internal("the manager's answer is not whole");
        let endpoint: Endpoint = created.endpoint.ok_or_else(bent)?.try_into()?;
        let network: Network = created.network.ok_or_else(bent)?.try_into()?;
        let (id, network_id, revision) = (endpoint.id, network.id, created.revision);
        let position = Position { epoch: created.epoch, revision };
        let default_route = match (request.default_route, network.internal, &target) {
            (true, _, _) => DefaultRoute::Replace,
            // A host without a way out is not given one by the way.
            (false, true, _) | (false, false, Target::Host) => DefaultRoute::Leave,
            (false, false, Target::Netns(_) | Target::Pid(_) | Target::Container { .. }) => {
                DefaultRoute::IfFree
            }
        };
        let (device, order) = (Device::Making, self.next_order());
        let mut record = EndpointRecord {
            endpoint,
            network,
            position,
            target,
            namespace,
            device,
            default_route,
            order,
        };
        if let Err(error) = self.make(&mut record, request.interface.as_deref()).await {
            self.remove(id).await;
            self.forget(id);
            return Err(error);
        }
        let shown = self.shown(&record);
        info!(endpoint = %record.endpoint.name, network = %record.network.name, "attached");
        let of_container = record.target.container().is_some();
        self.held().insert(id, record);
        if of_container {
            self.container_attached.notify_one();
        }
        drop(turn);
        let network = network_id.to_bytes().to_vec();
        let wait = AwaitAcknowledgedRequest { network, revision };
        // The endpoint works whether or not the others could be asked.
        let lagging = match answer(client.await_acknowledged(wait)).await {
            Ok(answer) => answer.lagging,
            Err(status) => {
                warn!(error = status.message(), "whether all nodes know is not known");
                Vec::new()
            }
        };
        Ok(AttachResponse { endpoint: Some(shown), lagging })
    }

    /// Makes the device of an endpoint that the cluster has already, and its record around that.
    async fn make(
        &self,
        record: &mut EndpointRecord,
        interface: Option<&str>,
    ) -> Result<(), Status> {
        let here = self.held_at(&record.target, record.namespace);
        if let Some(twice) = here.iter().find(|other| other.network.id == record.network.id) {
            return Err(twice.refusal());
        }
        let refused = |error: anyhow::Error| Status::failed_precondition(format!("{error:#}"));
        self.put(record).map_err(refused)?;
        let EndpointRecord { network, endpoint, target, default_route, .. } = &*record;
        let made =
            self.dataplane.attach(network, endpoint, target, interface, *default_route).await;
        record.device = Device::Made(made.map_err(refused)?);
        if let Err(error) = self.put(record) {
            if let Err(error) = self.dataplane.detach(record.endpoint.id).await {
                warn!(error = format!("{error:#}"), "an interface without a record is left");
            }
            return Err(refused(error));
        }
        Ok(())
    }

    /// Detaches an endpoint of this node, by name, id or the start of an id.
    ///
    /// # Errors
    /// It is none of this node's, or its device stays.
    pub async fn detach(self: Arc<Self>, reference: String) -> Result<LocalEndpoint, Status> {
        let task = tokio::spawn(async move {
            let id = self.find(&reference)?;
            let _turn = self.turn.lock().await;
            let record = self.held().get(&id).cloned();
            let record = record.ok_or_else(|| Status::not_found("it ended just now"))?;
            if Self::is_of_task(&self.table.borrow(), id) {
                return Err(Status::failed_precondition(format!(
                    "endpoint {} is a task's; it ends with its task",
                    record.endpoint.name
                )));
            }
            let ended = self.end(id).await;
            ended.map_err(|error| Status::internal(format!("{error:#}")))?;
            info!(endpoint = %record.endpoint.name, "detached");
            Ok(self.shown(&record))
        });
        task.await.map_err(|error| Status::internal(format!("detaching broke off: {error}")))?
    }

    /// Lists the endpoints by network and name.
    pub fn list(&self) -> Vec<LocalEndpoint> {
        let mut endpoints: Vec<LocalEndpoint> =
            self.held().values().map(|record| self.shown(record)).collect();
        endpoints.sort_by(|a, b| (&a.network, &a.name).cmp(&(&b.network, &b.name)));
        endpoints
    }

    /// Ends all of them, for the node leaves the cluster.
    ///
    /// # Errors
    /// A device stays.
    pub async fn end_all(&self) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        let all: Vec<EndpointId> = self.held().keys().copied().collect();
        for id in all {
            self.end(id).await?;
        }
        Ok(())
    }

    fn find(&self, reference: &str) -> Result<EndpointId, Status> {
        let held = self.held();
        let named = held.values().map(|record| (record.endpoint.id, &record.endpoint.name));
        resolve(Kind::Endpoint, reference, named)
            .map_err(|refusal| Status::not_found(refusal.to_string()))
    }

    /// Takes an endpoint away here and in the cluster. The caller holds the turn.
    async fn end(&self, id: EndpointId) -> anyhow::Result<()> {
        let device = self.held().get(&id).map(|record| record.device.clone());
        match device {
            Some(Device::Made(_)) => {
                let taken = self.dataplane.detach(id).await;
                taken.with_context(|| format!("take endpoint {id} away"))?;
            }
            Some(Device::Stopped { .. } | Device::Making) | None => {}
        }
        self.remove(id).await;
        self.forget(id);
        Ok(())
    }

    /// Forgets an endpoint whose device is gone.
    fn forget(&self, id: EndpointId) {
        self.watch.forget(id);
        self.held().remove(&id);
        if let Err(error) = self.records.remove_endpoint(id) {
            warn!(endpoint = %id, error = format!("{error:#}"), "the record of an endpoint stays");
        }
    }

    /// Takes an endpoint out of the cluster; if the manager is away, it is done when it is back.
    async fn remove(&self, id: EndpointId) {
        if Self::is_of_task(&self.table.borrow(), id) {
            return;
        }
        let request = RemoveEndpointRequest { endpoint: id.to_bytes().to_vec() };
        let removed = match self.manager.channel() {
            Ok(channel) => {
                answer(AttachmentClient::new(channel).remove_endpoint(request)).await.map(|_| ())
            }
            Err(status) => Err(status),
        };
        match removed {
            Ok(()) => {}
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => {
                warn!(endpoint = %id, error = status.message(), "endpoint stays in the cluster until the manager is back");
            }
        }
    }

    /// The namespace of an endpoint ended, or has ended for everybody but us.
    pub async fn handle_ended(&self, id: EndpointId) {
        let _turn = self.turn.lock().await;
        let Some(record) = self.held().get(&id).cloned() else { return };
        if record.target.container().is_some() {
            return self.handle_container_ended(record).await;
        }
        if let Err(error) = self.dataplane.detach(id).await {
            debug!(endpoint = %id, error = format!("{error:#}"), "nothing to take away");
        }
        self.remove(id).await;
        self.forget(id);
        info!(endpoint = %record.endpoint.name, "its namespace ended");
    }

    /// Makes the cluster and this node agree, now that there is a new table: takes those endpoints out
    /// of the cluster that it has of this node and the node has not, and those off this node that
    /// the cluster has ended.
    pub async fn reconcile(&self) {
        let _turn = self.turn.lock().await;
        let table = self.table.borrow().clone();
        self.report(table.epoch).await;
        let own = table.endpoints.values().filter(|endpoint| endpoint.node == self.node.id);
        for endpoint in own {
            if !self.held().contains_key(&endpoint.id) && !Self::is_of_task(&table, endpoint.id) {
                self.remove(endpoint.id).await;
            }
        }
        let ended = |record: &&EndpointRecord| {
            record.position <= table.position()
                && !table.endpoints.contains_key(&record.endpoint.id)
        };
        let ended: Vec<EndpointRecord> = self.held().values().filter(ended).cloned().collect();
        for EndpointRecord { endpoint, .. } in ended {
            warn!(endpoint = %endpoint.name, "the cluster has ended this endpoint");
            if let Err(error) = self.end(endpoint.id).await {
                warn!(error = format!("{error:#}"), "its interface stays");
            }
        }
    }

    /// Tells the manager of a new epoch what this node has: what a recovery lost is taken in again, or
    /// ends here.
    async fn report(&self, epoch: u64) {
        let before = self.reported.swap(epoch, Relaxed);
        if before == epoch {
            return;
        }
        // Also one that has nothing: the manager waits for every node.
        let records: Vec<EndpointRecord> = self.held().values().cloned().collect();
        let endpoints = records.iter().map(|record| (&record.endpoint).into()).collect();
        let adopted = match self.manager.channel() {
            Ok(channel) => {
                let request = AdoptEndpointsRequest { endpoints };
                answer(AttachmentClient::new(channel).adopt_endpoints(request)).await
            }
            Err(status) => Err(status),
        };
        let adopted = match adopted {
            Ok(adopted) => adopted,
            Err(status) => {
                warn!(error = status.message(), "the manager does not know what this node has");
                self.reported.store(before, Relaxed);
                return;
            }
        };
        let position = Position { epoch: adopted.epoch, revision: adopted.revision };
        for record in records {
            let id = record.endpoint.id.to_bytes();
            let refused = adopted.not_adopted.iter().find(|refused| refused.endpoint == id);
            if let Some(refused) = refused {
                let endpoint = &record.endpoint.name;
                warn!(%endpoint, why = refused.why, "lost with the cluster's newest entries");
                if let Err(error) = self.end(record.endpoint.id).await {
                    warn!(error = format!("{error:#}"), "its interface stays");
                }
                continue;
            }
            let record = EndpointRecord { position, ..record };
            if let Err(error) = self.put(&record) {
                warn!(error = format!("{error:#}"), "the record of an endpoint is old");
            }
            self.held().insert(record.endpoint.id, record);
        }
    }

    fn shown(&self, record: &EndpointRecord) -> LocalEndpoint {
        let EndpointRecord { endpoint, network, device, .. } = record;
        let interface = match device {
            Device::Made(interface) => Some(interface),
            Device::Stopped { .. } | Device::Making => None,
        };
        LocalEndpoint {
            id: endpoint.id.to_bytes().to_vec(),
            name: endpoint.name.to_string(),
            network: network.name.to_string(),
            node: self.node.name.to_string(),
            addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
            aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
            interface: interface.map(|interface| interface.name.clone()),
            mtu: interface.map(|interface| u32::from(interface.mtu)),
        }
    }

    /// Whether the state folder still has all that it should.
    pub fn are_kept(&self) -> bool {
        self.records.is_intact(self.held().keys().copied())
    }

    /// Writes all records again, into a folder that lost them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn put_all(&self) -> anyhow::Result<()> {
        let records: Vec<EndpointRecord> = self.held().values().cloned().collect();
        records.iter().try_for_each(|record| self.put(record))
    }

    fn put(&self, record: &EndpointRecord) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| self.records.put_endpoint(record))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<EndpointId, EndpointRecord>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks a chosen interface name as the kernel would, before anything is made.
fn check_interface(name: &str) -> Result<(), Status> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    match fits && name.bytes().all(allowed) {
        true => Ok(()),
        false => Err(Status::invalid_argument(format!(
            "'{name}' is no interface name; use 1 to 15 letters, digits, '-', '_' or '.'"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_checked() {
        for good in ["eth0", "a", "net-1.2_x", "abcdefghijklmno"] {
            assert!(check_interface(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "a:b", "abcdefghijklmnop", "ü", "eth%d"] {
            let error = check_interface(bad).unwrap_err();
            assert_eq!(
                error.message(),
                format!(
                    "'{bad}' is no interface name; use 1 to 15 letters, digits, '-', '_' or '.'"
                )
            );
        }
    }
}
