//! A node while it is a member: its link, its data plane, and the endpoints of its containers.
//!
//! An endpoint is made in two places, the cluster's state and the container. Making both or neither
//! is this file's work: what fails half-way is undone at once, and what could not be undone because
//! the manager was away is when it is back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tonic::{Code, Status, transport::Channel};
use tracing::{debug, info, warn};

use super::{
    dataplane::{Attached, Dataplane, DefaultRoute, Target},
    join::Joined,
    link::LinkTask,
    namespace::{self, NamespaceId},
};
use crate::{
    api::{
        proto::{
            AttachRequest, AttachResponse, AwaitAcknowledgedRequest, CreateEndpointRequest,
            LocalEndpoint, RemoveEndpointRequest, attachment_client::AttachmentClient,
        },
        tls,
    },
    engine::{
        cluster::{Kind, resolve},
        membership::Table,
    },
    types::{Endpoint, EndpointId, Network, Node},
};

/// A member node.
pub struct Member {
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The node as registered.
    pub node: Node,
    /// Where its manager is.
    pub manager: SocketAddr,
    /// Its data plane.
    pub dataplane: Arc<Dataplane>,
    connected: watch::Receiver<Option<Channel>>,
    table: watch::Receiver<Arc<Table>>,
    attachments: Mutex<BTreeMap<EndpointId, Attachment>>,
    /// Held while an endpoint is made or ended, so that one is never undone by another's cleaning.
    turn: AsyncMutex<()>,
    tasks: Mutex<JoinSet<()>>,
}

/// One endpoint of this node.
#[derive(Clone)]
struct Attachment {
    endpoint: Endpoint,
    network: Network,
    attached: Attached,
    namespace: NamespaceId,
}

impl Attachment {
    /// Why the same namespace is not attached to the same network again.
    fn refusal(&self) -> Status {
        Status::already_exists(format!(
            "the target is on network {} already, as endpoint {}; detach that one first",
            self.network.name, self.endpoint.name
        ))
    }
}

impl Member {
    /// Starts the link, and waits until the manager's first snapshot is in use.
    ///
    /// # Errors
    /// The manager does not take the node; all that was started has ended.
    pub async fn start(
        joined: Joined,
        manager: SocketAddr,
        dataplane: Dataplane,
        ended: mpsc::Receiver<EndpointId>,
    ) -> anyhow::Result<Arc<Self>> {
        let dataplane = Arc::new(dataplane);
        let config = Arc::new(tls::member_config(&joined.credentials)?);
        let (tables, table) = watch::channel(Arc::new(Table::empty(joined.node.id)));
        let (channels, connected) = watch::channel(None);
        let publish = {
            let dataplane = dataplane.clone();
            move |table: Arc<Table>| {
                dataplane.publish(table.clone());
                tables.send_replace(table);
            }
        };
        let link = LinkTask::new(manager, config, joined.node.id, publish, channels);
        let member = Arc::new(Self {
            cluster: joined.cluster,
            node: joined.node,
            manager,
            dataplane,
            connected,
            table,
            attachments: Mutex::default(),
            turn: AsyncMutex::default(),
            tasks: Mutex::default(),
        });
        member.tasks().spawn(link.run());
        let mut first = member.connected.clone();
        let first = timeout(FIRST_SNAPSHOT, first.wait_for(Option::is_some));
        if first.await.is_err() {
            member.end_tasks().await;
            anyhow::bail!("manager {manager} sends nothing; check it, and try again");
        }
        let keeper = Arc::downgrade(&member);
        let mut connected = member.connected.clone();
        member.tasks().spawn(async move {
            while connected.changed().await.is_ok() {
                let back = connected.borrow_and_update().is_some();
                match keeper.upgrade() {
                    Some(member) if back => member.end_strays().await,
                    Some(_) => {}
                    None => return,
                }
            }
        });
        let keeper = Arc::downgrade(&member);
        let mut ended = ended;
        member.tasks().spawn(async move {
            while let Some(endpoint) = ended.recv().await {
                let Some(member) = keeper.upgrade() else { return };
                member.handle_ended(endpoint).await;
            }
        });
        Ok(member)
    }

    /// Ends the endpoints and the link. The data plane ends when the last user drops it.
    pub async fn shutdown(&self) {
        let endpoints: Vec<EndpointId> = self.attachments().keys().copied().collect();
        let end_all = async {
            for endpoint in endpoints {
                let _turn = self.turn.lock().await;
                if let Err(error) = self.end(endpoint).await {
                    warn!(%endpoint, error = format!("{error:#}"), "endpoint not taken away");
                }
            }
        };
        if timeout(SHUTDOWN, end_all).await.is_err() {
            warn!("the manager does not know yet that all endpoints of this node ended");
        }
        self.end_tasks().await;
    }

    /// Returns the channel to the manager.
    ///
    /// # Errors
    /// There is none now.
    pub fn channel(&self) -> Result<Channel, Status> {
        self.connected.borrow().clone().ok_or_else(|| {
            Status::unavailable(format!(
                "manager {} is not reachable; check that it runs, then try again",
                self.manager
            ))
        })
    }

    /// Tells whether the stream to the manager is open.
    pub fn is_connected(&self) -> bool {
        self.connected.borrow().is_some()
    }

    /// Returns the table that is in use.
    pub fn table(&self) -> Arc<Table> {
        self.table.borrow().clone()
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
        let bad = |error: namespace::TargetError| Status::invalid_argument(error.to_string());
        let target = namespace::target(request.target.take()).map_err(bad)?;
        let namespace = namespace::find(&target).map_err(bad)?;
        if let Some(interface) = &request.interface {
            check_interface(interface)?;
        }
        let turn = self.turn.lock().await;
        // The cheap look before an address is spent; ids' starts are found out after.
        let named = |other: &&Attachment| other.network.name.as_str() == request.network;
        if let Some(twice) = self.attachments_in(namespace).iter().find(named) {
            return Err(twice.refusal());
        }
        let mut client = AttachmentClient::new(self.channel()?);
        let create = CreateEndpointRequest {
            network: request.network.clone(),
            name: request.name.clone(),
            addresses: request.addresses.clone(),
            aliases: request.aliases.clone(),
        };
        let created = client.create_endpoint(create).await?.into_inner();
        let bent = || Status::internal("the manager's answer is not whole");
        let endpoint: Endpoint = created.endpoint.ok_or_else(bent)?.try_into()?;
        let network: Network = created.network.ok_or_else(bent)?.try_into()?;
        let made = self.make(&endpoint, &network, &target, namespace, &request).await;
        let attachment = match made {
            Ok(attachment) => attachment,
            Err(error) => {
                self.remove(endpoint.id).await;
                return Err(error);
            }
        };
        let shown = self.shown(&attachment);
        self.attachments().insert(endpoint.id, attachment);
        drop(turn);
        info!(endpoint = %endpoint.name, network = %network.name, "attached");
        let network = network.id.to_bytes().to_vec();
        let wait = AwaitAcknowledgedRequest { network, revision: created.revision };
        // The endpoint works whether or not the others could be asked.
        let lagging = match client.await_acknowledged(wait).await {
            Ok(answer) => answer.into_inner().lagging,
            Err(status) => {
                warn!(error = status.message(), "whether all nodes know is not known");
                Vec::new()
            }
        };
        Ok(AttachResponse { endpoint: Some(shown), lagging })
    }

    /// Makes the device of an endpoint that the cluster has already.
    async fn make(
        &self,
        endpoint: &Endpoint,
        network: &Network,
        target: &Target,
        namespace: NamespaceId,
        request: &AttachRequest,
    ) -> Result<Attachment, Status> {
        let here = self.attachments_in(namespace);
        if let Some(twice) = here.iter().find(|other| other.network.id == network.id) {
            return Err(twice.refusal());
        }
        let default_route = match (request.default_route, network.internal) {
            (true, _) => DefaultRoute::Replace,
            (false, false) => DefaultRoute::IfFree,
            (false, true) => DefaultRoute::Leave,
        };
        let interface = request.interface.as_deref();
        let attached =
            self.dataplane.attach(network, endpoint, target, interface, default_route).await;
        let attached =
            attached.map_err(|error| Status::failed_precondition(format!("{error:#}")))?;
        let (endpoint, network) = (endpoint.clone(), network.clone());
        Ok(Attachment { endpoint, network, attached, namespace })
    }

    /// Detaches an endpoint of this node, by name, id or the start of an id.
    ///
    /// # Errors
    /// It is none of this node's, or its device stays.
    pub async fn detach(self: Arc<Self>, reference: String) -> Result<LocalEndpoint, Status> {
        let task = tokio::spawn(async move {
            let id = self.find(&reference)?;
            let _turn = self.turn.lock().await;
            let attachment = self.attachments().get(&id).cloned();
            let attachment = attachment.ok_or_else(|| Status::not_found("it ended just now"))?;
            let ended = self.end(id).await;
            ended.map_err(|error| Status::internal(format!("{error:#}")))?;
            info!(endpoint = %attachment.endpoint.name, "detached");
            Ok(self.shown(&attachment))
        });
        task.await.map_err(|error| Status::internal(format!("detaching broke off: {error}")))?
    }

    /// Lists this node's endpoints by network and name.
    pub fn endpoints(&self) -> Vec<LocalEndpoint> {
        let mut endpoints: Vec<LocalEndpoint> =
            self.attachments().values().map(|attachment| self.shown(attachment)).collect();
        endpoints.sort_by(|a, b| (&a.network, &a.name).cmp(&(&b.network, &b.name)));
        endpoints
    }

    fn find(&self, reference: &str) -> Result<EndpointId, Status> {
        let attachments = self.attachments();
        let named = attachments.values().map(|a| (a.endpoint.id, &a.endpoint.name));
        resolve(Kind::Endpoint, reference, named)
            .map_err(|refusal| Status::not_found(refusal.to_string()))
    }

    /// Takes an endpoint away here and in the cluster. The caller holds the turn.
    async fn end(&self, id: EndpointId) -> anyhow::Result<()> {
        self.dataplane.detach(id).await.with_context(|| format!("take endpoint {id} away"))?;
        self.attachments().remove(&id);
        self.remove(id).await;
        Ok(())
    }

    /// Takes an endpoint out of the cluster; if the manager is away, it is done when it is back.
    async fn remove(&self, id: EndpointId) {
        let request = RemoveEndpointRequest { endpoint: id.to_bytes().to_vec() };
        let removed = match self.channel() {
            Ok(channel) => {
                AttachmentClient::new(channel).remove_endpoint(request).await.map(|_| ())
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

    /// The container of an endpoint ended, and the device with it.
    async fn handle_ended(&self, id: EndpointId) {
        let _turn = self.turn.lock().await;
        let Some(attachment) = self.attachments().remove(&id) else { return };
        if let Err(error) = self.dataplane.detach(id).await {
            debug!(endpoint = %id, error = format!("{error:#}"), "nothing to take away");
        }
        self.remove(id).await;
        info!(endpoint = %attachment.endpoint.name, "its namespace ended");
    }

    /// Takes those endpoints out of the cluster that it has of this node and the node has not.
    async fn end_strays(&self) {
        let _turn = self.turn.lock().await;
        let table = self.table();
        let own = table.endpoints.values().filter(|endpoint| endpoint.node == self.node.id);
        for endpoint in own {
            if !self.attachments().contains_key(&endpoint.id) {
                self.remove(endpoint.id).await;
            }
        }
    }

    fn shown(&self, attachment: &Attachment) -> LocalEndpoint {
        let Attachment { endpoint, network, attached, .. } = attachment;
        LocalEndpoint {
            id: endpoint.id.to_bytes().to_vec(),
            name: endpoint.name.to_string(),
            network: network.name.to_string(),
            node: self.node.name.to_string(),
            addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
            aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
            interface: Some(attached.interface.clone()),
            mtu: Some(attached.mtu.into()),
        }
    }

    fn attachments_in(&self, namespace: NamespaceId) -> Vec<Attachment> {
        let attachments = self.attachments();
        attachments.values().filter(|other| other.namespace == namespace).cloned().collect()
    }

    async fn end_tasks(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    fn attachments(&self) -> MutexGuard<'_, BTreeMap<EndpointId, Attachment>> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
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

/// How long a manager that took the node may take for the first snapshot.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(10);
/// What the end of the daemon may take for telling the manager.
const SHUTDOWN: Duration = Duration::from_secs(2);

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
