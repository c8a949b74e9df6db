//! Calls about services, passed on as those of the control service are.

use tonic::{Request, Response, Status, transport::Channel};

use super::{Forward, passed_on};
use crate::api::{
    MAX_ANSWER_BYTES,
    proto::{
        CreateServiceRequest, ListServicesRequest, ListServicesResponse, ListTasksRequest,
        ListTasksResponse, ServiceRequest, ServiceResponse, UpdateServiceRequest,
        services_client::ServicesClient, services_server::Services,
    },
};

type Answer<T> = Result<Response<T>, Status>;

impl Forward {
    async fn services(&self) -> Result<ServicesClient<Channel>, Status> {
        let client = ServicesClient::new(self.any_channel().await?);
        Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}

#[tonic::async_trait]
impl Services for Forward {
    async fn create(&self, request: Request<CreateServiceRequest>) -> Answer<ServiceResponse> {
        self.services().await?.create(request.into_inner()).await
    }

    async fn update(&self, request: Request<UpdateServiceRequest>) -> Answer<ServiceResponse> {
        self.services().await?.update(request.into_inner()).await
    }

    async fn roll_back(&self, request: Request<ServiceRequest>) -> Answer<ServiceResponse> {
        self.services().await?.roll_back(request.into_inner()).await
    }

    async fn remove(&self, request: Request<ServiceRequest>) -> Answer<ServiceResponse> {
        self.services().await?.remove(request.into_inner()).await
    }

    async fn find(&self, request: Request<ServiceRequest>) -> Answer<ServiceResponse> {
        self.services().await?.find(passed_on(request)).await
    }

    async fn list(&self, request: Request<ListServicesRequest>) -> Answer<ListServicesResponse> {
        self.services().await?.list(passed_on(request)).await
    }

    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        self.services().await?.list_tasks(passed_on(request)).await
    }
}
