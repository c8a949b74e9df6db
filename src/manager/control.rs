//! What operators ask of the cluster, by way of a manager's node. The caller's role is that of the
//! state, at the time of the call.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};

use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::info;

use super::{
    Shared,
    log::{ProposeError, Stopped},
    manager_key::ManagerKey,
    random,
    recovery::Recovery,
    status,
};
use crate::{
    api::{
        Malformed, STALE,
        backup::section,
        parse_list, parse_text,
        proto::{
            self, BackupPart, BackupRequest, CreateNetworkRequest, CreateNetworkResponse,
            FindNetworkRequest, FindNetworkResponse, InspectNodeRequest, InspectNodeResponse,
            JoinTokenRequest, JoinTokenResponse, ListEndpointsRequest, ListEndpointsResponse,
            ListNetworksRequest, ListNetworksResponse, ListNodesRequest, ListNodesResponse,
            RemoveNetworkRequest, RemoveNetworkResponse, RemoveNodeRequest, RemoveNodeResponse,
            RotateRootRequest, RotateRootResponse, SetRoleRequest, SetRoleResponse,
            StartEpochRequest, StartEpochResponse, UpdateNodeRequest, UpdateNodeResponse,
        },
        tls::root_digest,
    },
    engine::cluster::{Command, CreateNetwork, Ipv6, Outcome, State, UpdateNode},
    types::{Availability, Endpoint, Node, NodeStatus, Role, Vni},
};

/// The service.
pub struct Control {
    pub(super) shared: Arc<Shared>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::control_server::Control for Control {
    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        self.fresh(&request).await?;
        let nodes = self.shared.log.read(|state| state.nodes().map(Into::into).collect());
        let leader = self.shared.log.leader();
        let leader = leader.map(|leader| leader.to_bytes().to_vec()).unwrap_or_default();
        let deciding = self.shared.log.members();
        let deciding = deciding.iter().map(|manager| manager.to_bytes().to_vec()).collect();
        Ok(Response::new(ListNodesResponse { nodes, leader, deciding }))
    }

    async fn inspect_node(
        &self,
        request: Request<InspectNodeRequest>,
    ) -> Answer<InspectNodeResponse> {
        self.fresh(&request).await?;
        let (shared, reference) = (&self.shared, request.into_inner().reference);
        let standing = shared.standing(self.find_node(&reference)?.id).await;
        let inspected = shared.log.read(|state| {
            let node = state.find_node(&reference)?;
            let endpoints: Vec<&Endpoint> = state.endpoints_of(node.id).collect();
            let networks = endpoints.iter().filter_map(|endpoint| state.network(endpoint.network));
            let networks: BTreeMap<_, _> = networks.map(|network| (network.id, network)).collect();
            Ok(InspectNodeResponse {
                node: Some(node.into()),
                management_lost: standing.management_lost,
                silent_ms: standing.silent_ms,
                leader: Some(node.id) == shared.log.leader(),
                endpoints: endpoints.into_iter().map(Into::into).collect(),
                networks: networks.into_values().map(Into::into).collect(),
            })
        });
        inspected.map(Response::new).map_err(status::of_refusal)
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Answer<UpdateNodeResponse> {
        self.fresh(&request).await?;
        let request = request.into_inner();
        let availability = match request.availability() {
            proto::Availability::Unspecified => None,
            proto::Availability::Active => Some(Availability::Active),
            proto::Availability::Pause => Some(Availability::Pause),
            proto::Availability::Drain => Some(Availability::Drain),
        };
        let update = UpdateNode {
            node: self.find_node(&request.reference)?.id,
            availability,
            labels_added: request.labels_added,
            labels_removed: request.labels_removed,
        };
        let proposed = self.shared.log.propose(Command::UpdateNode(update)).await;
        let (_, outcome) = proposed.map_err(status::of_proposal)?;
        let Outcome::Node(node) = outcome else {
            return Err(Status::internal("updating a node gave none"));
        };
        Ok(Response::new(UpdateNodeResponse { node: Some((&node).into()) }))
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        self.fresh(&request).await?;
        let request = request.into_inner();
        let node = self.find_node(&request.reference)?;
        let name = &node.name;
        self.shared.check_dispensable(&node).await?;
        if node.status == NodeStatus::Ready && !request.force {
            return Err(Status::failed_precondition(format!(
                "node {name} is ready; use 'overlayctl leave' there, or --force"
            )));
        }
        self.shared.remove(&node).await?;
        info!(node = %name, id = %node.id, "node removed");
        Ok(Response::new(RemoveNodeResponse { node: Some((&node).into()) }))
    }

    async fn set_role(&self, request: Request<SetRoleRequest>) -> Answer<SetRoleResponse> {
        self.fresh(&request).await?;
        let request = request.into_inner();
        let role = request.role().try_into()?;
        let node = self.find_node(&request.reference)?;
        let (node, settled) = self.shared.set_role(&node, role).await?;
        info!(node = %node.name, id = %node.id, ?role, "the role of a node was set");
        Ok(Response::new(SetRoleResponse { node: Some((&node).into()), settled }))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<BackupPart, Status>> + Send>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        self.own_node(&request)?;
        let key = ManagerKey::open(&self.shared.folder).map_err(status::of_failure)?;
        let state = self.shared.log.read(serde_json::to_vec);
        let state = state.map_err(|error| status::of_failure(error.into()))?;
        let part = |section: &str, bytes: &[u8]| {
            Ok(BackupPart { section: section.to_owned(), bytes: bytes.to_vec() })
        };
        let mut parts = vec![part(section::MANAGER_KEY, key.bytes())];
        parts.extend(state.chunks(BACKUP_PART_BYTES).map(|bytes| part(section::STATE, bytes)));
        Ok(Response::new(Box::pin(stream::iter(parts))))
    }

    async fn start_epoch(&self, request: Request<StartEpochRequest>) -> Answer<StartEpochResponse> {
        let shared = &self.shared;
        let others = shared.log.members().len() - 1;
        if others > 0 {
            return Err(match shared.log.is_confirmed().await {
                true => Status::failed_precondition(format!(
                    "{others} other manager(s) decide with this one; use 'overlayctl leave' there, or end them if they are to be given up"
                )),
                false => status::of_proposal(ProposeError::NoLeader),
            });
        }
        self.own_node(&request)?;
        shared.log.propose(Command::StartEpoch).await.map_err(status::of_proposal)?;
        if shared.log.read(|state| shared.recovery.begin(state)) {
            shared.spawn(Recovery::run(shared.clone()));
        }
        // Every agent comes back, hears of the epoch, and says what it has.
        shared.dispatcher.close_all();
        let epoch = shared.log.read(|state| state.position().epoch);
        info!(epoch, "a new epoch");
        Ok(Response::new(StartEpochResponse { epoch }))
    }

    async fn join_token(&self, request: Request<JoinTokenRequest>) -> Answer<JoinTokenResponse> {
        let manager = self.manager(&request)?;
        let request = request.into_inner();
        let issued = self.shared.issue_token(request.role().try_into()?, &request).await?;
        Ok(Response::new(JoinTokenResponse {
            token: issued.token.to_string(),
            manager_addr: manager.advertise_addr.to_string(),
            expires_at_s: issued.expires_at_s,
            uses: issued.uses,
        }))
    }

    async fn rotate_root(&self, request: Request<RotateRootRequest>) -> Answer<RotateRootResponse> {
        self.manager(&request)?;
        let shared = &self.shared;
        let rotate = shared.trust.draw_root().map_err(status::of_failure)?;
        let digest = root_digest(&CertificateDer::from(rotate.root.as_slice())).to_vec();
        let rotated = shared.log.propose(Command::RotateRoot(rotate)).await;
        rotated.map_err(status::of_proposal)?;
        info!("the root certificate was rotated");
        let mut progress = shared.dispatcher.progress();
        let dropped = async {
            while shared.log.read(State::is_root_rotating) && progress.changed().await.is_ok() {}
        };
        // Whoever takes longer is named.
        let _ = timeout(ROTATION_WAIT, dropped).await;
        let lagging = shared.log.read(|state| match state.is_root_rotating() {
            true => state.under_former_roots().map(|node| node.name.to_string()).collect(),
            false => Vec::new(),
        });
        Ok(Response::new(RotateRootResponse { digest, lagging }))
    }

    async fn create_network(
        &self,
        request: Request<CreateNetworkRequest>,
    ) -> Answer<CreateNetworkResponse> {
        // One that is new knows nobody yet.
        self.fresh(&request).await?;
        let create = Command::CreateNetwork(new_network(request.into_inner())?);
        let (_, outcome) = self.shared.log.propose(create).await.map_err(status::of_proposal)?;
        let Outcome::Network(network) = outcome else {
            return Err(Status::internal("creating a network gave none"));
        };
        Ok(Response::new(CreateNetworkResponse { network: Some((&network).into()) }))
    }

    async fn list_networks(
        &self,
        request: Request<ListNetworksRequest>,
    ) -> Answer<ListNetworksResponse> {
        self.fresh(&request).await?;
        let networks = self.shared.log.read(|state| state.networks().map(Into::into).collect());
        Ok(Response::new(ListNetworksResponse { networks }))
    }

    async fn find_network(
        &self,
        request: Request<FindNetworkRequest>,
    ) -> Answer<FindNetworkResponse> {
        self.fresh(&request).await?;
        let network = self.shared.network(&request.into_inner().reference)?;
        Ok(Response::new(FindNetworkResponse { network: Some((&network).into()) }))
    }

    async fn remove_network(
        &self,
        request: Request<RemoveNetworkRequest>,
    ) -> Answer<RemoveNetworkResponse> {
        // Another manager may have made it just now.
        self.fresh(&request).await?;
        let network = self.shared.network(&request.into_inner().reference)?;
        let removed = self.shared.log.propose(Command::RemoveNetwork(network.id)).await;
        removed.map_err(status::of_proposal)?;
        Ok(Response::new(RemoveNetworkResponse { network: Some((&network).into()) }))
    }

    async fn list_endpoints(
        &self,
        request: Request<ListEndpointsRequest>,
    ) -> Answer<ListEndpointsResponse> {
        self.fresh(&request).await?;
        let network = request.into_inner().network;
        self.shared.log.read(|state| list_endpoints(state, network.as_deref())).map(Response::new)
    }
}

impl Control {
    /// Refuses all but the node that this manager runs on.
    fn own_node<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match self.manager(request)?.id == self.shared.node {
            true => Ok(()),
            false => Err(Status::permission_denied("run this on the manager's own node")),
        }
    }

    /// Refuses all but managers, and waits until what is read is no older than the call, unless what is
    /// old will do.
    pub(super) async fn fresh<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let log = &self.shared.log;
        let stopped = |stopped: Stopped| status::of_proposal(stopped.into());
        match request.metadata().contains_key(STALE) {
            true => log.check_state().map_err(stopped)?,
            false => log.catch_up().await.map_err(status::of_proposal)?,
        }
        self.manager(request).map(drop)
    }

    fn find_node(&self, reference: &str) -> Result<Node, Status> {
        let found = self.shared.log.read(|state| state.find_node(reference).cloned());
        found.map_err(status::of_refusal)
    }

    /// Returns the calling node if it is a manager.
    fn manager<T>(&self, request: &Request<T>) -> Result<Node, Status> {
        let node = self.shared.member(request)?;
        match node.role {
            Role::Manager => Ok(node),
            Role::Worker => {
                // This manager may be the caller's, and about to end.
                let others = self.shared.dispatcher.addresses().list();
                let other = others.first().filter(|_| node.id == self.shared.node);
                let there = other.unwrap_or(&self.shared.advertise_addr);
                Err(Status::permission_denied(format!(
                    "node {} is a worker; run this on the manager at {there}",
                    node.name
                )))
            }
        }
    }
}

/// Nodes that are connected need a fraction of this.
const ROTATION_WAIT: Duration = Duration::from_secs(5);

fn new_network(request: CreateNetworkRequest) -> Result<CreateNetwork, Status> {
    let mtu = |mtu: u32| {
        let why = format!("{mtu} is too large; at most 65407");
        mtu.try_into().map_err(|_| Malformed { field: "mtu", why })
    };
    let vni = |vni: u32| {
        let why = format!("{vni} needs more than 24 bits; use 1 to 16777215");
        Vni::new(vni).ok_or(Malformed { field: "vni", why })
    };
    Ok(CreateNetwork {
        id: random::id().map_err(status::of_failure)?,
        name: parse_text("name", &request.name)?,
        subnets: parse_list("subnet", &request.subnets)?,
        gateways: parse_list("gateway", &request.gateways)?,
        ipv6: if request.ipv6 { Ipv6::Automatic } else { Ipv6::None },
        mtu: request.mtu.map(mtu).transpose()?,
        internal: request.internal,
        vni: request.vni.map(vni).transpose()?,
        labels: request.labels,
    })
}

fn list_endpoints(state: &State, network: Option<&str>) -> Result<ListEndpointsResponse, Status> {
    let endpoints: Vec<&Endpoint> = match network {
        None => state.endpoints().collect(),
        Some(reference) => {
            let network = state.find_network(reference).map_err(status::of_refusal)?;
            state.endpoints_on(network.id).collect()
        }
    };
    Ok(ListEndpointsResponse {
        endpoints: endpoints.into_iter().map(Into::into).collect(),
        networks: state.networks().map(Into::into).collect(),
        nodes: state.nodes().map(Into::into).collect(),
    })
}

/// Well below what a message may have.
const BACKUP_PART_BYTES: usize = 1 << 20;
