//! Tasks: made and given to nodes with their addresses in one step, seen by their nodes, and forgotten.
//! A change that does not fit the task as it stands is left out: whoever wanted it looked at an older
//! state, and looks again.

use serde::{Deserialize, Serialize};

use super::{
    Applied, CreateEndpoint, Event, Kind, Outcome, Refusal, State, limits::MAX_TASKS_KEPT,
};
use crate::types::{
    Desired, EndpointId, Name, Node, NodeId, NodeStatus, NodeTask, ServiceId, Slot, Task, TaskId,
    TaskState, TaskStatus,
};

/// See [`Command::ChangeTasks`](super::Command::ChangeTasks).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskChange {
    /// Makes a task.
    Create(CreateTask),
    /// Gives a task to a node.
    Assign {
        /// Which task.
        task: TaskId,
        /// Where it is to run.
        to: Assignment,
    },
    /// Says why no node has a task.
    Explain {
        /// Which task.
        task: TaskId,
        /// Why.
        message: String,
    },
    /// Has a task go further.
    Want {
        /// Which task.
        task: TaskId,
        /// How far.
        desired: Desired,
    },
    /// Notes what a task's node says of it.
    Observe(Observed),
    /// Gives up a task that nobody knows anything of.
    Orphan(TaskId),
    /// Forgets a task that has ended.
    Forget(TaskId),
}

/// See [`TaskChange::Create`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTask {
    /// Its identity.
    pub id: TaskId,
    /// What it is a task of.
    pub service: ServiceId,
    /// Its place.
    pub slot: Slot,
    /// Which definition it runs.
    pub version: u64,
    /// How far it goes.
    pub desired: Desired,
    /// Which attempt of its slot it is.
    pub attempt: u32,
    /// When the window of attempts began, in milliseconds since 1970.
    pub window_start_ms: u64,
    /// Where it is to run, or why nowhere.
    pub to: Result<Assignment, String>,
}

/// A node for a task, and the ids of what it gets on each of its networks, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The node.
    pub node: NodeId,
    /// One a network.
    pub endpoints: Vec<EndpointId>,
}

/// What a node says of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Which task.
    pub task: TaskId,
    /// The node that says it.
    pub node: NodeId,
    /// How far the task is.
    pub status: TaskStatus,
}

impl State {
    /// Lists the tasks by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// Returns a task.
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// Lists the tasks of a service by slot.
    pub fn tasks_of(&self, service: ServiceId) -> impl Iterator<Item = &Task> {
        let ids = self.services.get(&service).into_iter().flat_map(|entry| &entry.tasks);
        ids.filter_map(|(_, id)| self.tasks.get(id))
    }

    /// Lists the tasks in a slot of a service.
    pub fn tasks_in(&self, service: ServiceId, slot: Slot) -> impl Iterator<Item = &Task> {
        let whole = (slot, TaskId::from_u128(0))..=(slot, TaskId::from_u128(u128::MAX));
        let entry = self.services.get(&service).into_iter();
        let ids = entry.flat_map(move |entry| entry.tasks.range(whole.clone()));
        ids.filter_map(|(_, id)| self.tasks.get(id))
    }

    /// Lists the tasks that a node has.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = &Task> {
        let ids = self.node_tasks.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.tasks.get(id))
    }

    /// Returns a task as its node is told of it, if it has one.
    pub fn node_task(&self, id: TaskId) -> Option<NodeTask> {
        let task = self.task(id).filter(|task| task.node.is_some())?;
        Some(NodeTask {
            id,
            service: self.service(task.service)?.name.clone(),
            slot: task.slot,
            desired: task.desired,
            spec: self.definition(task.service, task.version)?.clone(),
            endpoints: task.endpoints.clone(),
        })
    }

    /// Whether a node that is down has a task that another has taken the place of, and that has not ended.
    pub fn has_superseded(&self, node: NodeId) -> bool {
        let is_down = |node: &Node| node.status == NodeStatus::Down;
        self.node(node).is_some_and(is_down)
            && self.tasks_on(node).any(|task| !task.is_wanted() && !task.has_ended())
    }

    /// Returns the task that an endpoint is of.
    pub fn task_with(&self, endpoint: EndpointId) -> Option<&Task> {
        self.tasks.get(self.endpoint_tasks.get(&endpoint)?)
    }

    pub(super) fn change_tasks(&mut self, changes: Vec<TaskChange>, now_ms: u64) -> Applied {
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            self.change_task(change, now_ms, &mut events);
        }
        Applied { outcome: Outcome::Done, events }
    }

    fn change_task(&mut self, change: TaskChange, now_ms: u64, events: &mut Vec<Event>) {
        match change {
            TaskChange::Create(create) => self.create_task(create, now_ms, events),
            TaskChange::Assign { task, to } => self.assign(task, to, now_ms, events),
            TaskChange::Explain { task, message } => {
                if let Some(task) = self.pending(task) {
                    task.status.message = Some(message);
                    events.push(Event::TaskChanged(task.id));
                }
            }
            TaskChange::Want { task, desired } => self.want(task, desired, now_ms, events),
            TaskChange::Observe(observed) => self.observe(observed, events),
            TaskChange::Orphan(task) => self.orphan(task, now_ms, events),
            TaskChange::Forget(task) => {
                if self.tasks.get(&task).is_some_and(Task::has_ended) {
                    self.forget_task(task, events);
                }
            }
        }
    }

    fn create_task(&mut self, create: CreateTask, now_ms: u64, events: &mut Vec<Event>) {
        let CreateTask { id, service, slot, version, desired, attempt, window_start_ms, to } =
            create;
        if self.tasks.contains_key(&id) || self.tasks.len() >= MAX_TASKS_KEPT {
            return;
        }
        let Some(entry) = self.services.get_mut(&service).filter(|entry| !entry.service.leaving)
        else {
            return;
        };
        let Some(definition) = entry.definitions.get_mut(&version) else { return };
        definition.tasks += 1;
        entry.tasks.insert((slot, id));
        let (to, message) = match to {
            Ok(to) => (Some(to), None),
            Err(why) => (None, Some(why)),
        };
        let status =
            TaskStatus { state: TaskState::Pending, since_ms: now_ms, message, exit: None };
        let task = Task {
            id,
            service,
            slot,
            version,
            desired,
            status,
            node: None,
            endpoints: Vec::new(),
            attempt,
            window_start_ms,
        };
        self.tasks.insert(id, task);
        match to {
            Some(to) => self.assign(id, to, now_ms, events),
            None => events.push(Event::TaskChanged(id)),
        }
    }

    /// A task that is wanted and that no node has.
    fn pending(&mut self, id: TaskId) -> Option<&mut Task> {
        self.tasks.get_mut(&id).filter(|task| task.status.state == TaskState::Pending)
    }

    /// Where there is no address for it, the task waits, and says so.
    fn assign(&mut self, id: TaskId, to: Assignment, now_ms: u64, events: &mut Vec<Event>) {
        let Some(task) = self.pending(id).map(|task| task.clone()) else { return };
        if !self.nodes.contains_key(&to.node) {
            if let Some(task) = self.pending(id) {
                task.status.message = None;
            }
            events.push(Event::TaskChanged(id));
            return;
        }
        let mut made = Vec::new();
        let status = match self.create_endpoints(&task, &to, &mut made) {
            Ok(()) => TaskStatus {
                state: TaskState::Assigned,
                since_ms: now_ms,
                message: None,
                exit: None,
            },
            Err(refusal) => {
                made.drain(..).for_each(|event| self.undo(event));
                TaskStatus { message: Some(refusal.to_string()), ..task.status.clone() }
            }
        };
        let is_assigned = status.state == TaskState::Assigned;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.status = status;
            if is_assigned {
                task.node = Some(to.node);
                task.endpoints = to.endpoints;
                for endpoint in &task.endpoints {
                    self.endpoint_tasks.insert(*endpoint, id);
                }
                self.node_tasks.entry(to.node).or_default().insert(id);
            }
        }
        events.append(&mut made);
        events.push(Event::TaskChanged(id));
    }

    fn create_endpoints(
        &mut self,
        task: &Task,
        to: &Assignment,
        made: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let networks = self.definition(task.service, task.version);
        let networks = networks.map(|spec| spec.networks.clone()).unwrap_or_default();
        if networks.len() != to.endpoints.len() {
            return Err(Refusal::IdUsed { kind: Kind::Endpoint });
        }
        let name = self.service(task.service).map(|service| endpoint_name(&service.name, task));
        for (of_task, id) in networks.into_iter().zip(&to.endpoints) {
            let applied = self.create_endpoint(CreateEndpoint {
                id: *id,
                name: name.clone().flatten(),
                network: of_task.network,
                node: to.node,
                addresses: Vec::new(),
                aliases: of_task.aliases,
            })?;
            made.extend(applied.events);
        }
        Ok(())
    }

    fn undo(&mut self, event: Event) {
        if let Event::EndpointCreated(endpoint) = event {
            self.free_endpoint(endpoint.id);
        }
    }

    /// A task that no node has ends as soon as it is not wanted.
    fn want(&mut self, id: TaskId, desired: Desired, now_ms: u64, events: &mut Vec<Event>) {
        let Some(task) = self.tasks.get_mut(&id).filter(|task| task.desired < desired) else {
            return;
        };
        task.desired = desired;
        if task.status.state == TaskState::Pending && !task.is_wanted() {
            task.status.state = TaskState::Shutdown;
            task.status.since_ms = now_ms;
        }
        self.settle_task(id, events);
    }

    /// Only the task's node is listened to, and only about how the task goes on.
    fn observe(&mut self, observed: Observed, events: &mut Vec<Event>) {
        let Observed { task: id, node, status } = observed;
        let Some(task) = self.tasks.get_mut(&id).filter(|task| task.node == Some(node)) else {
            return;
        };
        let goes_on = match task.status.state.has_ended() {
            true => false,
            false => status.state >= task.status.state && status != task.status,
        };
        if goes_on {
            task.status = status;
            self.settle_task(id, events);
        }
    }

    fn orphan(&mut self, id: TaskId, now_ms: u64, events: &mut Vec<Event>) {
        let Some(task) = self.tasks.get_mut(&id).filter(|task| !task.has_ended()) else { return };
        task.status.state = TaskState::Orphaned;
        task.status.since_ms = now_ms;
        self.settle_task(id, events);
    }

    /// What has ended gives its addresses back, and goes if it is to be forgotten.
    fn settle_task(&mut self, id: TaskId, events: &mut Vec<Event>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let (ended, forgotten) = (task.has_ended(), task.desired == Desired::Remove);
        if ended {
            for endpoint in std::mem::take(&mut task.endpoints) {
                self.endpoint_tasks.remove(&endpoint);
                events.extend(self.free_endpoint(endpoint).map(Event::EndpointRemoved));
            }
        }
        match ended && forgotten {
            true => self.forget_task(id, events),
            false => events.push(Event::TaskChanged(id)),
        }
    }

    fn forget_task(&mut self, id: TaskId, events: &mut Vec<Event>) {
        let Some(task) = self.tasks.remove(&id) else { return };
        if let Some(of_node) = task.node.and_then(|node| self.node_tasks.get_mut(&node)) {
            of_node.remove(&id);
            if of_node.is_empty() {
                task.node.inspect(|node| drop(self.node_tasks.remove(node)));
            }
        }
        let service = task.service;
        let mut is_last = false;
        if let Some(entry) = self.services.get_mut(&service) {
            entry.tasks.remove(&(task.slot, id));
            if let Some(definition) = entry.definitions.get_mut(&task.version) {
                definition.tasks -= 1;
                if definition.tasks == 0 {
                    entry.forget_definitions();
                }
            }
            is_last = entry.service.leaving && entry.tasks.is_empty();
        }
        events.push(Event::TaskRemoved(Box::new(task)));
        if is_last {
            self.services.remove(&service);
            events.push(Event::ServiceRemoved(service));
        }
    }

    /// Has all tasks of a service that leaves end, and the service with the last.
    pub(super) fn let_go(&mut self, id: ServiceId, now_ms: u64, events: &mut Vec<Event>) {
        let tasks: Vec<TaskId> = self.tasks_of(id).map(|task| task.id).collect();
        if tasks.is_empty() {
            self.services.remove(&id);
            events.push(Event::ServiceRemoved(id));
        }
        for task in tasks {
            self.want(task, Desired::Remove, now_ms, events);
        }
    }

    /// Gives up the tasks of a node that is taken out.
    pub(super) fn orphan_all(&mut self, node: NodeId, events: &mut Vec<Event>) {
        let tasks: Vec<TaskId> = self.tasks_on(node).map(|task| task.id).collect();
        for task in tasks {
            let since_ms = self.tasks.get(&task).map_or(0, |task| task.status.since_ms);
            self.orphan(task, since_ms, events);
        }
    }
}

/// What a task's endpoints are called: `web.1.` and the start of its id, or none where the service's name
/// leaves no room for that.
fn endpoint_name(service: &Name, task: &Task) -> Option<Name> {
    let id = task.id.to_string();
    let start = match task.slot {
        Slot::Replica(number) => format!("{service}.{number}.{}", &id[..12]),
        Slot::Node(_) => format!("{service}.{}", &id[..12]),
    };
    start.parse().ok()
}
