//! Services: made, changed, taken back to what they were, and removed with their last task. Every
//! definition of a task that some task still runs is kept, under its number.

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::{
    Applied, Event, Kind, Outcome, Refusal, State,
    limits::{MAX_SERVICES, MAX_TASKS},
    unknown,
};
use crate::types::{
    Mode, Name, Previous, Service, ServiceId, ServiceSpec, Slot, TaskId, TaskSpec, UpdateState,
    UpdateStatus,
};

/// See [`Command::CreateService`](super::Command::CreateService).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateService {
    /// Its identity.
    pub id: ServiceId,
    /// Its name.
    pub name: Name,
    /// What is wanted.
    pub spec: ServiceSpec,
}

/// See [`Command::UpdateService`](super::Command::UpdateService).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateService {
    /// Which service.
    pub service: ServiceId,
    /// The [`Service::version`] that the change was made of.
    pub version: u64,
    /// What is wanted from now on.
    pub spec: ServiceSpec,
    /// The proposer's clock, in milliseconds since 1970.
    pub now_ms: u64,
}

/// See [`Command::RollBackService`](super::Command::RollBackService).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollBackService {
    /// Which service.
    pub service: ServiceId,
    /// The [`Service::version`] that was looked at.
    pub version: u64,
    /// Who wants it.
    pub by: RollBackBy,
    /// The proposer's clock, in milliseconds since 1970.
    pub now_ms: u64,
}

/// Who wants a service to be as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RollBackBy {
    /// Its operator, who may go forward again in the same way.
    Operator,
    /// Its policy for updates that fail, for that reason.
    Policy(String),
}

/// See [`Command::SetUpdateState`](super::Command::SetUpdateState).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUpdateState {
    /// Which service.
    pub service: ServiceId,
    /// The [`Service::version`] that was looked at; of another one nothing is noted.
    pub version: u64,
    /// What its update does.
    pub state: UpdateState,
    /// Why.
    pub message: String,
    /// The proposer's clock, in milliseconds since 1970.
    pub now_ms: u64,
}

/// A service with what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServiceEntry {
    pub service: Service,
    /// By number; each is there while it is the current one, the one before, or some task's.
    pub definitions: OrdMap<u64, Definition>,
    pub tasks: OrdSet<(Slot, TaskId)>,
    newest_definition: u64,
}

/// What tasks of one version are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Definition {
    pub spec: TaskSpec,
    /// How many tasks run it.
    pub tasks: usize,
}

impl State {
    /// Lists the services by id, those too that are leaving.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|entry| &entry.service)
    }

    /// Returns a service.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(&id).map(|entry| &entry.service)
    }

    /// Returns what tasks of one version of a service are.
    pub fn definition(&self, service: ServiceId, version: u64) -> Option<&TaskSpec> {
        Some(&self.services.get(&service)?.definitions.get(&version)?.spec)
    }

    /// Finds a service that does not leave, by name, id or the unique start of an id.
    ///
    /// # Errors
    /// No service, or more than one, is meant.
    pub fn find_service(&self, reference: &str) -> Result<&Service, Refusal> {
        if let Some(id) = super::named(&self.service_names, reference) {
            return self.service(id).ok_or_else(|| unknown(Kind::Service, id));
        }
        let all = self.services().filter(|service| !service.leaving);
        let all = all.map(|service| (service.id, &service.name));
        let id = super::resolve(Kind::Service, reference, all)?;
        self.service(id).ok_or_else(|| unknown(Kind::Service, id))
    }

    pub(super) fn create_service(&mut self, create: CreateService) -> Result<Applied, Refusal> {
        let CreateService { id, name, spec } = create;
        self.founded()?;
        if self.services.contains_key(&id) {
            return Err(Refusal::IdUsed { kind: Kind::Service });
        }
        if self.services.len() >= MAX_SERVICES {
            return Err(Refusal::TooMany { kind: Kind::Service, limit: MAX_SERVICES });
        }
        self.check_definition(&name, &spec)?;
        self.check_replicas(None, &spec)?;
        if let Some(taken) = self.service_names.get(&name) {
            let id = taken.to_string();
            return Err(Refusal::NameTaken { kind: Kind::Service, name, id });
        }
        let service = Service {
            id,
            name: name.clone(),
            version: 1,
            task_version: 1,
            spec,
            previous: None,
            update: None,
            leaving: false,
        };
        let definition = Definition { spec: service.spec.task.clone(), tasks: 0 };
        self.use_networks(&service.spec, Use::Begins);
        self.service_names.insert(name, id);
        let entry = ServiceEntry {
            service: service.clone(),
            definitions: OrdMap::unit(1, definition),
            tasks: OrdSet::new(),
            newest_definition: 1,
        };
        self.services.insert(id, entry);
        self.replicas += replicas(&service.spec);
        let events = vec![Event::ServiceChanged(id)];
        Ok(Applied { outcome: Outcome::Service(Box::new(service)), events })
    }

    pub(super) fn update_service(&mut self, update: UpdateService) -> Result<Applied, Refusal> {
        let UpdateService { service: id, version, spec, now_ms } = update;
        let service = self.check_version(id, version)?;
        let (name, before) = (service.name.clone(), service.spec.clone());
        if std::mem::discriminant(&before.mode) != std::mem::discriminant(&spec.mode) {
            return Err(Refusal::ModeChanged { name });
        }
        self.check_definition(&name, &spec)?;
        self.check_replicas(Some(&before), &spec)?;
        let number = self.define(id, &spec.task)?;
        self.change_spec(id, spec, number, |service, previous| {
            service.previous = Some(previous);
            let goes_on = number != service.task_version || !is_converted(service);
            if goes_on {
                let message = "update in progress";
                service.update = Some(status(UpdateState::Updating, message, now_ms));
            }
        })
    }

    pub(super) fn roll_back_service(&mut self, back: RollBackService) -> Result<Applied, Refusal> {
        let RollBackService { service: id, version, by, now_ms } = back;
        let service = self.check_version(id, version)?;
        let before = service.spec.clone();
        let none = Refusal::NoPrevious { name: service.name.clone() };
        let Previous { spec, task_version } = service.previous.clone().ok_or(none)?;
        self.check_replicas(Some(&before), &spec)?;
        self.change_spec(id, spec, task_version, |service, previous| {
            let (previous, message) = match by {
                RollBackBy::Operator => (Some(previous), "rollback by the operator".to_owned()),
                RollBackBy::Policy(why) => (None, why),
            };
            service.previous = previous;
            service.update = Some(status(UpdateState::RollbackStarted, &message, now_ms));
        })
    }

    pub(super) fn set_update_state(&mut self, set: SetUpdateState) -> Result<Applied, Refusal> {
        self.check_version(set.service, set.version)?;
        let entry = self.services.get_mut(&set.service);
        let entry = entry.ok_or_else(|| unknown(Kind::Service, set.service))?;
        if let Some(update) = &mut entry.service.update {
            update.state = set.state;
            update.message = set.message;
            update.ended_ms = (!set.state.is_active()).then_some(set.now_ms);
        }
        let events = vec![Event::ServiceChanged(set.service)];
        Ok(Applied { outcome: Outcome::Done, events })
    }

    /// Its name is free at once; it is there until its last task is gone.
    pub(super) fn remove_service(
        &mut self,
        id: ServiceId,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let entry = self.services.get_mut(&id).ok_or_else(|| unknown(Kind::Service, id))?;
        if entry.service.leaving {
            return Err(unknown(Kind::Service, id));
        }
        entry.service.leaving = true;
        let service = entry.service.clone();
        self.service_names.remove(&service.name);
        self.use_networks(&service.spec, Use::Ends);
        self.replicas -= replicas(&service.spec);
        let mut events = vec![Event::ServiceChanged(id)];
        self.let_go(id, now_ms, &mut events);
        Ok(Applied { outcome: Outcome::Done, events })
    }

    /// The service, if it is as whoever asks has seen it.
    fn check_version(&self, id: ServiceId, version: u64) -> Result<&Service, Refusal> {
        let service = self.service(id).filter(|service| !service.leaving);
        let service = service.ok_or_else(|| unknown(Kind::Service, id))?;
        if service.version != version {
            return Err(Refusal::ServiceChanged { name: service.name.clone() });
        }
        Ok(service)
    }

    /// All tasks that are wanted must fit, beside as many that take the place of others.
    fn check_replicas(
        &self,
        before: Option<&ServiceSpec>,
        spec: &ServiceSpec,
    ) -> Result<(), Refusal> {
        let all = self.replicas - before.map_or(0, replicas) + replicas(spec);
        if all > MAX_TASKS {
            return Err(Refusal::TooMany { kind: Kind::Task, limit: MAX_TASKS });
        }
        Ok(())
    }

    /// Returns the number of a definition of a task: that of the current one if it is the same.
    fn define(&mut self, id: ServiceId, spec: &TaskSpec) -> Result<u64, Refusal> {
        let entry = self.services.get_mut(&id).ok_or_else(|| unknown(Kind::Service, id))?;
        if entry.service.spec.task == *spec {
            return Ok(entry.service.task_version);
        }
        entry.newest_definition += 1;
        let definition = Definition { spec: spec.clone(), tasks: 0 };
        entry.definitions.insert(entry.newest_definition, definition);
        Ok(entry.newest_definition)
    }

    fn change_spec(
        &mut self,
        id: ServiceId,
        spec: ServiceSpec,
        task_version: u64,
        note: impl FnOnce(&mut Service, Previous),
    ) -> Result<Applied, Refusal> {
        self.use_networks(&spec, Use::Begins);
        let entry = self.services.get_mut(&id).ok_or_else(|| unknown(Kind::Service, id))?;
        let before = std::mem::replace(&mut entry.service.spec, spec);
        let previous = Previous { spec: before.clone(), task_version: entry.service.task_version };
        note(&mut entry.service, previous);
        entry.service.task_version = task_version;
        entry.service.version += 1;
        entry.forget_definitions();
        let service = entry.service.clone();
        self.replicas = self.replicas - replicas(&before) + replicas(&service.spec);
        self.use_networks(&before, Use::Ends);
        let events = vec![Event::ServiceChanged(id)];
        Ok(Applied { outcome: Outcome::Service(Box::new(service)), events })
    }

    /// A network that a service is on cannot be removed.
    fn use_networks(&mut self, spec: &ServiceSpec, what: Use) {
        for of_task in &spec.task.networks {
            if let Some(entry) = self.networks.get_mut(&of_task.network) {
                match what {
                    Use::Begins => entry.services += 1,
                    Use::Ends => entry.services = entry.services.saturating_sub(1),
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Use {
    Begins,
    Ends,
}

impl ServiceEntry {
    /// Forgets the definitions that nothing refers to any more.
    pub fn forget_definitions(&mut self) {
        let current = self.service.task_version;
        let previous = self.service.previous.as_ref().map(|previous| previous.task_version);
        let unused = |(number, definition): (&u64, &Definition)| {
            let referred = *number == current || Some(*number) == previous;
            (definition.tasks == 0 && !referred).then_some(*number)
        };
        let unused: Vec<u64> = self.definitions.iter().filter_map(unused).collect();
        unused.iter().for_each(|number| drop(self.definitions.remove(number)));
    }
}

/// Whether no update of a service stands half done.
fn is_converted(service: &Service) -> bool {
    service.update.as_ref().is_none_or(|update| match update.state {
        UpdateState::Completed | UpdateState::RollbackCompleted => true,
        UpdateState::Updating
        | UpdateState::Paused
        | UpdateState::RollbackStarted
        | UpdateState::RollbackPaused => false,
    })
}

/// What a service counts for among the tasks of the cluster; a global one as one.
fn replicas(spec: &ServiceSpec) -> usize {
    match spec.mode {
        Mode::Replicated { replicas } => replicas as usize,
        Mode::Global => 1,
    }
}

fn status(state: UpdateState, message: &str, now_ms: u64) -> UpdateStatus {
    UpdateStatus { state, started_ms: now_ms, ended_ms: None, message: message.to_owned() }
}
