//! What operators ask of services, by way of a manager's node.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status};
use tracing::info;

use super::{Shared, control::Control, random, status};
use crate::{
    api::{
        Malformed, parse_id, parse_text,
        proto::{
            self, CreateServiceRequest, ListServicesRequest, ListServicesResponse,
            ListTasksRequest, ListTasksResponse, ServiceRequest, ServiceResponse, ServiceSummary,
            TaskAddresses, TaskSummary, UpdateServiceRequest,
        },
    },
    engine::cluster::{
        Command, CreateService, Outcome, RollBackBy, RollBackService, State, UpdateService,
    },
    io::clock,
    types::{Mode, NodeStatus, Service, Task, TaskState},
};

/// The service.
pub struct Services {
    pub(super) shared: Arc<Shared>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::services_server::Services for Services {
    async fn create(&self, request: Request<CreateServiceRequest>) -> Answer<ServiceResponse> {
        self.control().fresh(&request).await?;
        let CreateServiceRequest { name, spec } = request.into_inner();
        let create = CreateService {
            id: random::id().map_err(status::of_failure)?,
            name: parse_text("name", &name)?,
            spec: parse_json("spec", &spec)?,
        };
        let service = self.propose(Command::CreateService(create)).await?;
        info!(service = %service.name, id = %service.id, "service created");
        answer(&service)
    }

    async fn update(&self, request: Request<UpdateServiceRequest>) -> Answer<ServiceResponse> {
        self.control().fresh(&request).await?;
        let UpdateServiceRequest { id, version, spec } = request.into_inner();
        let update = UpdateService {
            service: parse_id("id", &id)?,
            version,
            spec: parse_json("spec", &spec)?,
            now_ms: clock::now_ms(),
        };
        let service = self.propose(Command::UpdateService(update)).await?;
        info!(service = %service.name, id = %service.id, "service updated");
        answer(&service)
    }

    async fn roll_back(&self, request: Request<ServiceRequest>) -> Answer<ServiceResponse> {
        self.control().fresh(&request).await?;
        let Service { id, version, .. } = self.find_one(&request.into_inner().reference)?;
        let (by, now_ms) = (RollBackBy::Operator, clock::now_ms());
        let back = RollBackService { service: id, version, by, now_ms };
        let service = self.propose(Command::RollBackService(back)).await?;
        info!(service = %service.name, id = %service.id, "service rolled back");
        answer(&service)
    }

    async fn remove(&self, request: Request<ServiceRequest>) -> Answer<ServiceResponse> {
        self.control().fresh(&request).await?;
        let service = self.find_one(&request.into_inner().reference)?;
        let remove = Command::RemoveService { service: service.id, now_ms: clock::now_ms() };
        self.shared.log.propose(remove).await.map_err(status::of_proposal)?;
        info!(service = %service.name, id = %service.id, "service removed");
        answer(&service)
    }

    async fn find(&self, request: Request<ServiceRequest>) -> Answer<ServiceResponse> {
        self.control().fresh(&request).await?;
        answer(&self.find_one(&request.into_inner().reference)?)
    }

    async fn list(&self, request: Request<ListServicesRequest>) -> Answer<ListServicesResponse> {
        self.control().fresh(&request).await?;
        let services = self.shared.log.read(|state| {
            let services = state.services().filter(|service| !service.leaving);
            services.map(|service| summary(state, service)).collect::<Result<_, _>>()
        })?;
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        self.control().fresh(&request).await?;
        let ListTasksRequest { service, node } = request.into_inner();
        let tasks = self.shared.log.read(|state| {
            let tasks: Vec<&Task> = match (&service, &node) {
                (Some(service), _) => {
                    let service = state.find_service(service).map_err(status::of_refusal)?;
                    state.tasks_of(service.id).collect()
                }
                (None, Some(node)) => {
                    let node = state.find_node(node).map_err(status::of_refusal)?;
                    state.tasks_on(node.id).collect()
                }
                (None, None) => state.tasks().collect(),
            };
            tasks.into_iter().map(|task| shown(state, task)).collect::<Result<_, Status>>()
        })?;
        Ok(Response::new(ListTasksResponse { tasks }))
    }
}

impl Services {
    fn control(&self) -> Control {
        Control { shared: self.shared.clone() }
    }

    fn find_one(&self, reference: &str) -> Result<Service, Status> {
        let found = self.shared.log.read(|state| state.find_service(reference).cloned());
        found.map_err(status::of_refusal)
    }

    async fn propose(&self, command: Command) -> Result<Service, Status> {
        let proposed = self.shared.log.propose(command).await;
        let (_, outcome) = proposed.map_err(status::of_proposal)?;
        let Outcome::Service(service) = outcome else {
            return Err(Status::internal("changing a service gave none"));
        };
        Ok(*service)
    }
}

/// How many of a service's tasks run, and how many are to: a global one's on all nodes that are there.
fn summary(state: &State, service: &Service) -> Result<ServiceSummary, Status> {
    let is_wanted = |task: &&Task| task.is_wanted() && !task.has_ended();
    let (mut here, mut running) = (0, 0);
    for task in state.tasks_of(service.id).filter(is_wanted) {
        here += 1;
        let node = task.node.and_then(|node| state.node(node));
        let is_heard = node.is_some_and(|node| node.status == NodeStatus::Ready);
        running += u32::from(task.status.state == TaskState::Running && is_heard);
    }
    let wanted = match service.spec.mode {
        Mode::Replicated { replicas } => replicas,
        Mode::Global => here,
    };
    Ok(ServiceSummary { service: json(service)?, running, wanted })
}

fn shown(state: &State, task: &Task) -> Result<TaskSummary, Status> {
    let service = state.service(task.service).map(|service| service.name.to_string());
    let node = task.node.map(|id| match state.node(id) {
        Some(node) => node.name.to_string(),
        None => id.to_string(),
    });
    let endpoints = task.endpoints.iter().filter_map(|id| state.endpoint(*id));
    let addresses = endpoints.map(|endpoint| TaskAddresses {
        network: state
            .network(endpoint.network)
            .map(|network| network.name.to_string())
            .unwrap_or_default(),
        addresses: endpoint.addresses.iter().map(|address| address.addr().to_string()).collect(),
    });
    Ok(TaskSummary {
        task: json(task)?,
        service: service.unwrap_or_default(),
        node: node.unwrap_or_default(),
        addresses: addresses.collect(),
    })
}

fn answer(service: &Service) -> Answer<ServiceResponse> {
    Ok(Response::new(ServiceResponse { service: json(service)? }))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(value).map_err(|error| Status::internal(error.to_string()))
}

fn parse_json<T: DeserializeOwned>(field: &'static str, text: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(text).map_err(|error| Malformed { field, why: error.to_string() })
}
