//! What attaching a container needs of the cluster, for every node and only about its own endpoints.

use std::{pin::pin, sync::Arc};

use futures_util::{StreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::{
    Shared,
    liveness::{NodeWatch, WITNESSES},
    log::ProposeError,
    random, status,
};
use crate::{
    api::{
        Malformed, parse_id, parse_list, parse_text,
        proto::{
            self, AdoptEndpointsRequest, AdoptEndpointsResponse, AwaitAcknowledgedRequest,
            AwaitAcknowledgedResponse, CheckReachRequest, CheckReachResponse,
            CreateEndpointRequest, CreateEndpointResponse, NotAdopted, RemoveEndpointRequest,
            RemoveEndpointResponse,
        },
    },
    engine::cluster::{Command, CreateEndpoint, Outcome, State},
    types::{Endpoint, Position},
};

/// The service.
pub struct Attachment {
    pub(super) shared: Arc<Shared>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::attachment_server::Attachment for Attachment {
    async fn create_endpoint(
        &self,
        request: Request<CreateEndpointRequest>,
    ) -> Answer<CreateEndpointResponse> {
        let node = self.shared.member(&request)?.id;
        let request = request.into_inner();
        self.shared.recovery.settled().await?;
        let network = self.shared.network(&request.network)?;
        let name = request.name.as_deref().map(|name| parse_text("name", name)).transpose()?;
        let create = CreateEndpoint {
            id: random::id().map_err(status::of_failure)?,
            name,
            network: network.id,
            node,
            addresses: parse_list("address", &request.addresses)?,
            aliases: parse_list("alias", &request.aliases)?,
        };
        let proposed = self.shared.log.propose(Command::CreateEndpoint(create)).await;
        let (revision, outcome) = proposed.map_err(status::of_proposal)?;
        let Outcome::Endpoint(endpoint) = outcome else {
            return Err(Status::internal("creating an endpoint gave none"));
        };
        Ok(Response::new(CreateEndpointResponse {
            endpoint: Some((&endpoint).into()),
            network: Some((&network).into()),
            revision,
            epoch: self.shared.log.read(|state| state.position().epoch),
        }))
    }

    async fn remove_endpoint(
        &self,
        request: Request<RemoveEndpointRequest>,
    ) -> Answer<RemoveEndpointResponse> {
        let node = self.shared.member(&request)?.id;
        let endpoint = parse_id("endpoint", &request.into_inner().endpoint)?;
        let removed = self.shared.log.propose(Command::RemoveEndpoint { endpoint, node }).await;
        let (revision, _) = removed.map_err(status::of_proposal)?;
        Ok(Response::new(RemoveEndpointResponse { revision }))
    }

    async fn adopt_endpoints(
        &self,
        request: Request<AdoptEndpointsRequest>,
    ) -> Answer<AdoptEndpointsResponse> {
        let node = self.shared.member(&request)?.id;
        let endpoints: Vec<Endpoint> = request
            .into_inner()
            .endpoints
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, Malformed>>()?;
        let adopt = async |endpoint: Endpoint| {
            let id = endpoint.id;
            let command = Command::AdoptEndpoint(Endpoint { node, ..endpoint });
            (id, self.shared.log.propose(command).await)
        };
        // Many at once, which the log writes together.
        let mut adopted = pin!(stream::iter(endpoints).map(adopt).buffered(ADOPTED_AT_ONCE));
        let mut not_adopted = Vec::new();
        while let Some((id, adopted)) = adopted.next().await {
            match adopted {
                Ok(_) => {}
                Err(ProposeError::Refused(refusal)) => {
                    let endpoint = id.to_bytes().to_vec();
                    not_adopted.push(NotAdopted { endpoint, why: refusal.to_string() });
                }
                Err(error) => return Err(status::of_proposal(error)),
            }
        }
        self.shared.recovery.handle_reported(node);
        let Position { epoch, revision } = self.shared.log.read(State::position);
        Ok(Response::new(AdoptEndpointsResponse { not_adopted, epoch, revision }))
    }

    async fn check_reach(&self, request: Request<CheckReachRequest>) -> Answer<CheckReachResponse> {
        let node = self.shared.member(&request)?.id;
        let looked = self.shared.watch.looked();
        let silent = self.shared.watch.silent(*self.shared.dispatcher.heartbeat().borrow());
        let look = |state: &State| self.shared.dispatcher.look_for(state, node, &silent, WITNESSES);
        let witnesses = self.shared.log.read(look).len();
        let reached = NodeWatch::any_heard(node, witnesses, looked).await;
        Ok(Response::new(CheckReachResponse { witnesses: witnesses as u32, reached }))
    }

    async fn await_acknowledged(
        &self,
        request: Request<AwaitAcknowledgedRequest>,
    ) -> Answer<AwaitAcknowledgedResponse> {
        let node = self.shared.member(&request)?.id;
        let request = request.into_inner();
        let network = parse_id("network", &request.network)?;
        let takes_part =
            |state: &State| state.endpoints_of(node).any(|endpoint| endpoint.network == network);
        if !self.shared.log.read(takes_part) {
            return Err(Status::not_found("this node has no endpoint on that network"));
        }
        let lagging = self.shared.await_acknowledged(network, request.revision).await;
        Ok(Response::new(AwaitAcknowledgedResponse { lagging }))
    }
}

/// Endpoints of one node that wait for the log at once.
const ADOPTED_AT_ONCE: usize = 256;
