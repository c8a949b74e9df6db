//! The node's API on its unix socket. Who may open the socket may ask everything.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status, transport::Server};

use super::{Node, Socket, forward::Forward};
use crate::{
    api::{
        MAX_MESSAGE_BYTES,
        proto::{
            self, AttachRequest, AttachResponse, BackupNodeRequest, BackupPart, BackupRequest,
            Counters, DetachRequest, DetachResponse, EndpointTraffic, InfoRequest, InfoResponse,
            InitRequest, InitResponse, JoinClusterRequest, JoinClusterResponse,
            LeaveClusterRequest, LeaveClusterResponse, ListLocalEndpointsRequest,
            ListLocalEndpointsResponse, ListPeersRequest, ListPeersResponse, MemberInfo,
            StatsRequest, StatsResponse, control_client::ControlClient,
            control_server::ControlServer, local_server::LocalServer,
            services_server::ServicesServer,
        },
    },
    io::service,
    types::{DropCounts, PacketsBytes, PeerStatus, Traffic},
};

/// Serves the node on its socket until `stop` ends; the socket's file goes with it.
///
/// # Errors
/// The socket fails.
pub async fn serve(
    node: Arc<Node>,
    socket: Socket,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let incoming = stream::unfold(&socket, async |socket| {
        let accepted = socket.listener.accept().await.map(|(stream, _)| stream);
        if accepted.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        Some((accepted, socket))
    });
    if let Err(error) = service::tell_ready() {
        tracing::warn!(%error, "the service manager does not know that this is ready");
    }
    let forward = Forward { node: node.clone() };
    let services = ServicesServer::new(forward.clone());
    let forward = ControlServer::new(forward);
    let local = LocalServer::new(Local { node });
    Server::builder()
        .add_service(forward.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(services.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(local.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(incoming, stop)
        .await?;
    Ok(())
}

struct Local {
    node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::local_server::Local for Local {
    async fn init(&self, request: Request<InitRequest>) -> Answer<InitResponse> {
        self.node.clone().init(request.into_inner()).await.map(Response::new)
    }

    async fn join_cluster(
        &self,
        request: Request<JoinClusterRequest>,
    ) -> Answer<JoinClusterResponse> {
        self.node.clone().join(request.into_inner()).await.map(Response::new)
    }

    async fn leave_cluster(
        &self,
        request: Request<LeaveClusterRequest>,
    ) -> Answer<LeaveClusterResponse> {
        self.node.clone().leave(request.into_inner()).await.map(Response::new)
    }

    type BackupNodeStream = Pin<Box<dyn Stream<Item = Result<BackupPart, Status>> + Send>>;

    async fn backup_node(
        &self,
        _request: Request<BackupNodeRequest>,
    ) -> Answer<Self::BackupNodeStream> {
        let manager = self.node.manager().await?.manager.channel()?;
        let client = ControlClient::new(manager).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let parts = { client }.backup(BackupRequest {}).await?.into_inner();
        let own =
            self.node.backup_files().map_err(|error| Status::internal(format!("{error:#}")))?;
        let own = own.into_iter().map(|(section, bytes)| Ok(BackupPart { section, bytes }));
        Ok(Response::new(Box::pin(stream::iter(own).chain(parts))))
    }

    async fn info(&self, _request: Request<InfoRequest>) -> Answer<InfoResponse> {
        let options = &self.node.options;
        let member = self.node.member_if_any().await;
        let (offload, broken) = match &member {
            Some(member) => (member.dataplane.offloads(), member.dataplane.broken_offloads()),
            None => (options.offloads, &[][..]),
        };
        let offload_broken = broken.iter().map(ToString::to_string).collect();
        let member = member.map(|member| {
            let table = member.table();
            let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            MemberInfo {
                cluster_id: member.cluster.to_vec(),
                node: Some((&member.registered()).into()),
                manager_addr: member.manager.addr().to_string(),
                manager_connected: member.manager.is_connected(),
                revision: table.revision,
                networks: count(table.networks.len()),
                endpoints: count(member.attachments.list().len()),
                peers: count(table.peers.len()),
            }
        });
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: options.state_dir.display().to_string(),
            workers: u32::try_from(options.workers).unwrap_or(u32::MAX),
            offload: offload.to_string(),
            offload_broken,
            public_key: self.node.identity.to_string(),
            member,
        }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let member = self.node.member().await?;
        member.attachments.clone().attach(request.into_inner()).await.map(Response::new)
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Answer<DetachResponse> {
        let member = self.node.member().await?;
        let reference = request.into_inner().reference;
        let endpoint = member.attachments.clone().detach(reference).await?;
        Ok(Response::new(DetachResponse { endpoint: Some(endpoint) }))
    }

    async fn list_local_endpoints(
        &self,
        request: Request<ListLocalEndpointsRequest>,
    ) -> Answer<ListLocalEndpointsResponse> {
        let mut endpoints = self.node.member().await?.attachments.list();
        if let Some(network) = request.into_inner().network {
            endpoints.retain(|endpoint| endpoint.network == network);
        }
        Ok(Response::new(ListLocalEndpointsResponse { endpoints }))
    }

    async fn list_peers(&self, request: Request<ListPeersRequest>) -> Answer<ListPeersResponse> {
        let member = self.node.member().await?;
        let mut peers = member.dataplane.peers();
        if let Some(network) = request.into_inner().network {
            peers.retain(|peer| peer.networks.iter().any(|name| name.as_str() == network));
        }
        Ok(Response::new(ListPeersResponse { peers: peers.iter().map(peer_status).collect() }))
    }

    async fn stats(&self, _request: Request<StatsRequest>) -> Answer<StatsResponse> {
        let member = self.node.member().await?;
        let (stats, table) = (member.dataplane.stats(), member.table());
        let networks = stats.networks.iter().filter_map(|(id, counted)| {
            table.networks.get(id).map(|network| (network.name.to_string(), traffic(counted)))
        });
        let endpoints = stats.endpoints.iter().filter_map(|(id, counted)| {
            let endpoint = table.endpoints.get(id)?;
            let network = table.networks.get(&endpoint.network)?;
            let counted = EndpointTraffic {
                name: endpoint.name.to_string(),
                network: network.name.to_string(),
                traffic: Some(traffic(counted)),
            };
            Some((id.to_string(), counted))
        });
        Ok(Response::new(StatsResponse {
            drops: drops(&stats.drops),
            networks: networks.collect(),
            endpoints: endpoints.collect(),
        }))
    }
}

fn peer_status(peer: &PeerStatus) -> proto::PeerStatus {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    proto::PeerStatus {
        id: peer.id.to_bytes().to_vec(),
        name: peer.name.to_string(),
        address: peer.address.to_string(),
        state: peer.state.name().to_owned(),
        reason: peer.reason.clone(),
        rtt_us: peer.rtt.map(us),
        loss: peer.loss,
        path_mtu: peer.path_mtu.into(),
        inner_mtu: peer.inner_mtu.into(),
        cipher: peer.cipher.map(ToOwned::to_owned),
        key_age_ms: peer.key_age.map(ms),
        last_rx_ms: peer.last_rx.map(ms),
        traffic: Some(traffic(&peer.traffic)),
        drops: drops(&peer.drops),
        networks: peer.networks.iter().map(ToString::to_string).collect(),
        lanes: peer.lanes.into(),
    }
}

fn traffic(traffic: &Traffic) -> proto::Traffic {
    let counters =
        |counted: PacketsBytes| Counters { packets: counted.packets, bytes: counted.bytes };
    proto::Traffic { tx: Some(counters(traffic.tx)), rx: Some(counters(traffic.rx)) }
}

fn drops(counts: &DropCounts) -> BTreeMap<String, u64> {
    counts.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect()
}

/// Between attempts while the system gives no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);
