//! The cluster's control calls on the node's own socket: passed on to a manager with the node's
//! certificate. What any manager does goes to the node's own one, so that nobody waits for a leader
//! that is away before another one is known; what only the leader knows goes to the one that the node
//! talks to. A worker refuses them, and says where to go.

mod services;

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming, transport::Channel};

use super::Node;
use crate::api::{
    MAX_ANSWER_BYTES, STALE,
    proto::{
        BackupPart, BackupRequest, CreateNetworkRequest, CreateNetworkResponse, FindNetworkRequest,
        FindNetworkResponse, InspectNodeRequest, InspectNodeResponse, JoinTokenRequest,
        JoinTokenResponse, ListEndpointsRequest, ListEndpointsResponse, ListNetworksRequest,
        ListNetworksResponse, ListNodesRequest, ListNodesResponse, RemoveNetworkRequest,
        RemoveNetworkResponse, RemoveNodeRequest, RemoveNodeResponse, RotateRootRequest,
        RotateRootResponse, SetRoleRequest, SetRoleResponse, StartEpochRequest, StartEpochResponse,
        UpdateNodeRequest, UpdateNodeResponse, control_client::ControlClient,
        control_server::Control,
    },
};

/// The service.
#[derive(Clone)]
pub struct Forward {
    pub(super) node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Forward {
    /// The way for a call to the leader; to its own manager where what is old will do and nobody leads.
    async fn reading<T>(
        &self,
        request: Request<T>,
    ) -> Result<(ControlClient<Channel>, Request<T>), Status> {
        let member = self.node.manager().await?;
        let request = passed_on(request);
        let channel = match (member.manager.channel(), request.metadata().contains_key(STALE)) {
            (Err(_), true) => member.to_own_manager().await?,
            (Err(_), false) => member.manager.connected().await?,
            (Ok(channel), _) => channel,
        };
        Ok((client(channel), request))
    }

    async fn control(&self) -> Result<ControlClient<Channel>, Status> {
        Ok(client(self.node.manager().await?.manager.connected().await?))
    }

    /// The way for what any manager does: to its own, unless that is only about to start or to end.
    async fn any(&self) -> Result<ControlClient<Channel>, Status> {
        Ok(client(self.any_channel().await?))
    }

    async fn any_channel(&self) -> Result<Channel, Status> {
        let member = self.node.manager().await?;
        match member.to_own_manager().await {
            Ok(channel) => Ok(channel),
            Err(_) => member.manager.connected().await,
        }
    }
}

fn client(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// The request as it goes on: with nothing beside it but whether what is old will do.
fn passed_on<T>(mut request: Request<T>) -> Request<T> {
    let stale = request.metadata_mut().remove(STALE);
    let mut request = Request::new(request.into_inner());
    if let Some(stale) = stale {
        request.metadata_mut().insert(STALE, stale);
    }
    request
}

#[tonic::async_trait]
impl Control for Forward {
    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        self.any().await?.list_nodes(passed_on(request)).await
    }

    async fn inspect_node(
        &self,
        request: Request<InspectNodeRequest>,
    ) -> Answer<InspectNodeResponse> {
        let (mut control, request) = self.reading(request).await?;
        control.inspect_node(request).await
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Answer<UpdateNodeResponse> {
        self.control().await?.update_node(request.into_inner()).await
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        self.control().await?.remove_node(request.into_inner()).await
    }

    async fn set_role(&self, request: Request<SetRoleRequest>) -> Answer<SetRoleResponse> {
        self.control().await?.set_role(request.into_inner()).await
    }

    type BackupStream = Streaming<BackupPart>;

    async fn backup(&self, request: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        self.control().await?.backup(request.into_inner()).await
    }

    async fn start_epoch(&self, request: Request<StartEpochRequest>) -> Answer<StartEpochResponse> {
        self.control().await?.start_epoch(request.into_inner()).await
    }

    async fn join_token(&self, request: Request<JoinTokenRequest>) -> Answer<JoinTokenResponse> {
        self.control().await?.join_token(request.into_inner()).await
    }

    async fn rotate_root(&self, request: Request<RotateRootRequest>) -> Answer<RotateRootResponse> {
        self.control().await?.rotate_root(request.into_inner()).await
    }

    async fn create_network(
        &self,
        request: Request<CreateNetworkRequest>,
    ) -> Answer<CreateNetworkResponse> {
        self.any().await?.create_network(request.into_inner()).await
    }

    async fn list_networks(
        &self,
        request: Request<ListNetworksRequest>,
    ) -> Answer<ListNetworksResponse> {
        self.any().await?.list_networks(passed_on(request)).await
    }

    async fn find_network(
        &self,
        request: Request<FindNetworkRequest>,
    ) -> Answer<FindNetworkResponse> {
        self.any().await?.find_network(passed_on(request)).await
    }

    async fn remove_network(
        &self,
        request: Request<RemoveNetworkRequest>,
    ) -> Answer<RemoveNetworkResponse> {
        self.any().await?.remove_network(request.into_inner()).await
    }

    async fn list_endpoints(
        &self,
        request: Request<ListEndpointsRequest>,
    ) -> Answer<ListEndpointsResponse> {
        self.any().await?.list_endpoints(passed_on(request)).await
    }
}
