//! The cluster's control calls on the node's own socket: passed on to the manager with the node's
//! certificate. A worker refuses them, and says where to go.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming, transport::Channel};

use super::Node;
use crate::api::{
    MAX_MESSAGE_BYTES, STALE,
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
pub struct Forward {
    pub(super) node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Forward {
    /// The way for a call that reads: to its own manager where that will do and nobody leads.
    async fn reading<T>(
        &self,
        request: Request<T>,
    ) -> Result<(ControlClient<Channel>, Request<T>), Status> {
        let member = self.node.manager().await?;
        let stale = request.metadata().get(STALE).cloned();
        let channel = match (member.manager.channel(), &stale) {
            (Err(_), Some(_)) => member.to_own_manager().await?,
            (Err(_), None) => member.manager.connected().await?,
            (Ok(channel), _) => channel,
        };
        let mut request = Request::new(request.into_inner());
        if let Some(stale) = stale {
            request.metadata_mut().insert(STALE, stale);
        }
        let client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok((client, request))
    }

    async fn control(&self) -> Result<ControlClient<Channel>, Status> {
        let channel = self.node.manager().await?.manager.connected().await?;
        Ok(ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }
}

#[tonic::async_trait]
impl Control for Forward {
    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        let (mut control, request) = self.reading(request).await?;
        control.list_nodes(request).await
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
        self.control().await?.create_network(request.into_inner()).await
    }

    async fn list_networks(
        &self,
        request: Request<ListNetworksRequest>,
    ) -> Answer<ListNetworksResponse> {
        let (mut control, request) = self.reading(request).await?;
        control.list_networks(request).await
    }

    async fn find_network(
        &self,
        request: Request<FindNetworkRequest>,
    ) -> Answer<FindNetworkResponse> {
        let (mut control, request) = self.reading(request).await?;
        control.find_network(request).await
    }

    async fn remove_network(
        &self,
        request: Request<RemoveNetworkRequest>,
    ) -> Answer<RemoveNetworkResponse> {
        self.control().await?.remove_network(request.into_inner()).await
    }

    async fn list_endpoints(
        &self,
        request: Request<ListEndpointsRequest>,
    ) -> Answer<ListEndpointsResponse> {
        let (mut control, request) = self.reading(request).await?;
        control.list_endpoints(request).await
    }
}
