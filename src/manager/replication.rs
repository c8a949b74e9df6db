//! The log's way between managers: calls over the same address and with the same certificates as all
//! else. A manager is called by its node's id, and looked for where the state says that it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::stream;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use tracing::{info, warn};

use super::{
    Shared,
    certificate::own_credentials,
    log::{self, Answering, NotReached, Transport},
    parts::{self, Parts, PartsError},
    trust::Trust,
};
use crate::{
    api::{
        MAX_MESSAGE_BYTES, channel,
        proto::{
            self, ReplicationRequest, ReplicationResponse, replication_client::ReplicationClient,
            watching_client::WatchingClient,
        },
        tls,
    },
    engine::cluster::{Event, State},
    types::{Node, NodeId, Role},
};

/// The service.
pub struct Replication {
    pub(super) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl proto::replication_server::Replication for Replication {
    async fn call(
        &self,
        request: Request<ReplicationRequest>,
    ) -> Result<Response<ReplicationResponse>, Status> {
        self.shared.check_manager(&request)?;
        let request = request.into_inner();
        self.check_target(&request.to)?;
        self.answer(read(&request.body)?).await
    }

    async fn install(
        &self,
        request: Request<Streaming<ReplicationRequest>>,
    ) -> Result<Response<ReplicationResponse>, Status> {
        self.shared.check_manager(&request)?;
        let mut parts = request.into_inner();
        let cut = || of_parts(PartsError::Cut);
        let head = parts.message().await?.ok_or_else(cut)?;
        self.check_target(&head.to)?;
        let mut snapshot = Parts::new(&head.body).map_err(of_parts)?;
        while let Some(part) = parts.message().await? {
            snapshot.add(&part.body).map_err(of_parts)?;
        }
        self.answer(snapshot.finish().map_err(of_parts)?).await
    }
}

impl Shared {
    /// Refuses all but managers: those of the state, those that still decide until the others have
    /// agreed that they do not, and those that took this one in: the log that it hears from its
    /// beginning tells of times when they were none. One that was away for long does not know who the
    /// managers are by now, and takes a manager's certificate for it (Raft, section 6).
    pub(super) fn check_manager<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let Self { log, greeted, .. } = self;
        let caller = super::caller_of(request)?;
        let known = caller.node.filter(|node| {
            let is_manager =
                |state: &State| state.node(*node).is_some_and(|node| node.role == Role::Manager);
            let mut greeted = greeted.lock().unwrap_or_else(PoisonError::into_inner);
            if caller.manages && !log.is_current() {
                // From the first time on, or it would be heard only now and then.
                greeted.insert(*node);
            }
            log.read(is_manager) || greeted.contains(node) || log.members().contains(node)
        });
        known
            .ok_or_else(|| Status::permission_denied("only managers of this cluster share its log"))
    }
}

impl Replication {
    fn check_target(&self, to: &[u8]) -> Result<(), Status> {
        let own = self.shared.node.to_bytes();
        (to == own).then_some(()).ok_or_else(|| Status::not_found("another manager is here"))
    }

    async fn answer(&self, request: log::Request) -> Result<Response<ReplicationResponse>, Status> {
        let answer = self.shared.log.handle(request).await;
        Ok(Response::new(ReplicationResponse { body: json(&answer) }))
    }
}

fn of_parts(error: PartsError) -> Status {
    match error {
        PartsError::Head(_) => Status::invalid_argument(error.to_string()),
        PartsError::Cut => Status::data_loss(error.to_string()),
    }
}

/// Where managers are; whoever watches the state keeps it. One that the state has no more is still
/// found, for it decides with the others until it has agreed that it does not.
#[derive(Default)]
pub struct Addresses(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    found: BTreeMap<NodeId, SocketAddr>,
    current: BTreeSet<NodeId>,
}

impl Addresses {
    /// Takes them all from a state.
    pub fn adopt(&self, state: &State) {
        let managers = state.nodes().filter(|node| node.role == Role::Manager);
        let managers: Vec<&Node> = managers.collect();
        let mut inner = self.locked();
        inner.current = managers.iter().map(|node| node.id).collect();
        inner.found.extend(managers.iter().map(|node| (node.id, node.advertise_addr)));
    }

    /// Takes what a command changed; tells whether they are not where they were.
    pub fn handle_events(&self, state: &State, events: &[Event]) -> bool {
        let is_known = |node: &NodeId| self.locked().current.contains(node);
        let is_manager = |node| state.node(node).is_some_and(|node| node.role == Role::Manager);
        let concerns = |event: &Event| match event {
            Event::NodeRemoved(node) => is_known(node),
            Event::RoleChanged(..) => true,
            Event::NodeChanged(node) => is_manager(*node) || is_known(node),
            Event::NodeStatusChanged(..)
            | Event::NetworkChanged(_)
            | Event::NetworkRemoved(_)
            | Event::EndpointCreated(_)
            | Event::EndpointRemoved(_)
            | Event::SecretsChanged
            | Event::NodeUpdated(_)
            | Event::ServiceChanged(_)
            | Event::ServiceRemoved(_)
            | Event::TaskChanged(_)
            | Event::TaskRemoved(_)
            | Event::RootsChanged => false,
        };
        let concerned = events.iter().any(concerns);
        if concerned {
            self.adopt(state);
        }
        concerned
    }

    /// Lists those of the state.
    pub fn list(&self) -> Vec<SocketAddr> {
        let inner = self.locked();
        inner.current.iter().filter_map(|manager| inner.found.get(manager)).copied().collect()
    }

    /// Returns where a manager is.
    pub fn find(&self, manager: NodeId) -> Option<SocketAddr> {
        self.locked().found.get(&manager).copied()
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ways to the other managers: a connection to each, made when it is needed.
pub struct Ways {
    own: NodeId,
    trust: Arc<Trust>,
    life: Duration,
    addresses: Arc<Addresses>,
    open: Mutex<BTreeMap<NodeId, (SocketAddr, Channel)>>,
    /// Those that did not answer last, of which it was told.
    away: Mutex<BTreeSet<NodeId>>,
}

impl Ways {
    /// Makes the ways of the manager on node `own`, whose certificates are valid for `life`.
    pub fn new(own: NodeId, trust: Arc<Trust>, life: Duration, addresses: Arc<Addresses>) -> Self {
        let (open, away) = (Mutex::default(), Mutex::default());
        Self { own, trust, life, addresses, open, away }
    }

    async fn carry(
        &self,
        member: NodeId,
        request: log::Request,
    ) -> Result<log::Response, NotReached> {
        let channel = self.channel(member).await?;
        let mut client = ReplicationClient::new(channel);
        client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
        let to = member.to_bytes().to_vec();
        let answered = match request {
            log::Request::Snapshot(vote, meta, body) => {
                let heads = std::iter::once(to).chain(std::iter::repeat(Vec::new()));
                let messages = heads.zip(parts::cut(vote, meta, body));
                let messages = messages.map(|(to, body)| ReplicationRequest { to, body });
                client.install(stream::iter(messages)).await
            }
            request => client.call(ReplicationRequest { to, body: json(&request) }).await,
        };
        let answered = answered.map_err(|status| {
            self.locked().remove(&member);
            NotReached(status.message().to_owned())
        })?;
        read(&answered.into_inner().body).map_err(|status| NotReached(status.message().to_owned()))
    }

    /// Asks another manager about streams.
    ///
    /// # Errors
    /// It is not reached, or refuses.
    pub async fn watching<T>(
        &self,
        member: NodeId,
        ask: impl AsyncFnOnce(WatchingClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let channel = self.channel(member).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = WatchingClient::new(channel);
        client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answered = ask(client).await;
        if let Err(status) = &answered
            && matches!(status.code(), Code::Unavailable | Code::Unknown)
        {
            self.locked().remove(&member);
        }
        answered.map(Response::into_inner)
    }

    /// Tells once that a manager is away, and once that it is back.
    fn note(&self, member: NodeId, why: Option<&NotReached>) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => {
                if away.insert(member) {
                    warn!(manager = %member, error = %why, "another manager is away");
                }
            }
            None => {
                if away.remove(&member) {
                    info!(manager = %member, "another manager is back");
                }
            }
        }
    }

    async fn channel(&self, member: NodeId) -> Result<Channel, NotReached> {
        let addr = self.addresses.find(member);
        let addr = addr.ok_or_else(|| NotReached(format!("node {member} is no manager")))?;
        if let Some((_, channel)) = self.locked().get(&member).filter(|(at, _)| *at == addr) {
            return Ok(channel.clone());
        }
        let own = own_credentials(&self.trust.authority(), self.own, self.life);
        let config = own.and_then(|own| Ok(tls::member_config(&own)?));
        let config = config.map_err(|error| NotReached(format!("{error:#}")))?;
        let channel = channel::to_manager(addr, Arc::new(config)).await;
        let channel = channel.map_err(|error| NotReached(error.to_string()))?;
        self.locked().insert(member, (addr, channel.clone()));
        Ok(channel)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<NodeId, (SocketAddr, Channel)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Ways {
    fn call(&self, member: NodeId, request: log::Request) -> Answering<'_> {
        Box::pin(async move {
            let carried = self.carry(member, request).await;
            self.note(member, carried.as_ref().err());
            carried
        })
    }
}

fn json(of: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(of).expect("nothing between logs has keys but strings")
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(body).map_err(|error| {
        Status::invalid_argument(format!("not understood: {error}; use the same overlayd"))
    })
}
