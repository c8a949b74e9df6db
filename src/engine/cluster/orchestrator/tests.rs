//! The orchestrator over a state, with nodes that do what they are told: time stands until it is moved.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    engine::cluster::{
        CreateNetwork, CreateService, NameChoice, Observed, RegisterNode, TokenUse, UpdateNode,
        UpdateService,
        tests::{create_cluster, net, register},
    },
    types::{
        Availability, Desired, Exit, FailureAction, NetworkId, Node, NodeStatus, Resources,
        RestartCondition, Role, ServiceSpec, TaskNetwork, TaskSpec, TaskStatus, UpdateOrder,
        UpdatePolicy, UpdateState,
    },
};

/// A cluster, its leader's orchestrator, and its nodes.
struct World {
    state: State,
    orchestrator: Orchestrator,
    revision: u64,
    now: Moment,
    drawn: u128,
    /// Nodes whose tasks do nothing that they are told.
    deaf: Vec<NodeId>,
    /// Definitions whose command ends at once.
    broken: Vec<u64>,
    /// Whether the newest definition of every service is such a one.
    breaks: bool,
    /// How long a task takes to stop.
    stop_takes: Duration,
    /// When tasks that are being stopped will have ended.
    stopping: BTreeMap<TaskId, Moment>,
    /// Everything that was applied, from the first.
    applied: Vec<Command>,
    /// The most tasks of one slot that ran at once on nodes that are reached, beyond those that an update
    /// may have run at once.
    most_running: usize,
    /// Services whose updates start the new task first.
    starts_first: BTreeSet<ServiceId>,
}

impl World {
    fn new(nodes: u128) -> Self {
        let mut state = State::default();
        state.apply(1, create_cluster("10.0.0.0/8", 29)).unwrap();
        let now = Moment::from_nanos(1_000_000_000_000);
        let orchestrator = Orchestrator::new(&state, now);
        let mut world = Self {
            state,
            orchestrator,
            revision: 1,
            now,
            drawn: 1_000_000,
            deaf: Vec::new(),
            broken: Vec::new(),
            breaks: false,
            stop_takes: Duration::ZERO,
            stopping: BTreeMap::new(),
            applied: vec![create_cluster("10.0.0.0/8", 29)],
            most_running: 0,
            starts_first: BTreeSet::new(),
        };
        (1..=nodes).for_each(|number| world.join(number));
        world
    }

    fn join(&mut self, number: u128) {
        let node = node(number);
        let (id, name) = (node.id, NameChoice::Exact);
        let token = match number {
            1 => TokenUse::Founding,
            _ => TokenUse::Standing { generation: 1 },
        };
        let underlays = Vec::new();
        self.apply(Command::RegisterNode(RegisterNode { node, name, underlays, token }));
        let capacity = Resources { cpu_milli: 4000, memory_bytes: 8 << 30 };
        self.apply(Command::SetCapacity { node: id, capacity });
    }

    fn apply(&mut self, command: Command) {
        self.revision += 1;
        self.applied.push(command.clone());
        let applied = self.state.apply(self.revision, command).expect("it is taken");
        for event in &applied.events {
            self.orchestrator.handle_event(&self.state, event, self.now);
        }
    }

    fn now_ms(&self) -> u64 {
        self.now.as_nanos() / 1_000_000
    }

    /// Lets orchestrator and nodes do all there is to do now.
    fn settle(&mut self) {
        loop {
            let mut drawn = self.drawn;
            let mut draw = || {
                drawn += 1;
                // Spread over all bits, as those of a real source.
                drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            };
            let mut around = Surroundings { draw: &mut draw, now_ms: self.now_ms(), now: self.now };
            let commands = self.orchestrator.poll(&self.state, &mut around);
            self.drawn = drawn;
            let nodes = self.act();
            if commands.is_empty() && nodes.is_empty() {
                break;
            }
            commands.into_iter().chain(nodes).for_each(|command| self.apply(command));
            self.count_running();
        }
    }

    /// What nodes say of their tasks.
    fn act(&mut self) -> Vec<Command> {
        let mut changes = Vec::new();
        for task in self.state.tasks().filter(|task| !task.has_ended()) {
            let Some(node) = task.node.filter(|node| !self.deaf.contains(node)) else { continue };
            let is_newest = |service: &Service| service.task_version == task.version;
            let newest = self.state.service(task.service).is_some_and(is_newest);
            let broken = self.broken.contains(&task.version)
                || self.breaks && newest && task.version % 3 == 0;
            let (state, exit) = match (task.desired, task.status.state) {
                (Desired::Ready, state) if state < TaskState::Ready => (TaskState::Ready, None),
                (Desired::Running, TaskState::Running) if broken => {
                    (TaskState::Failed, Some(Exit::Status(1)))
                }
                (Desired::Running, state) if state < TaskState::Running => {
                    (TaskState::Running, None)
                }
                (Desired::Shutdown | Desired::Remove, _) => {
                    let at = self.stopping.entry(task.id).or_insert(self.now + self.stop_takes);
                    if *at > self.now {
                        continue;
                    }
                    (TaskState::Shutdown, None)
                }
                (Desired::Ready | Desired::Running, _) => continue,
            };
            let (task, since_ms) = (task.id, self.now_ms());
            changes.push(TaskChange::Observe(Observed {
                task,
                node,
                status: TaskStatus { state, since_ms, message: None, exit },
            }));
        }
        let now_ms = self.now_ms();
        (!changes.is_empty())
            .then_some(Command::ChangeTasks { changes, now_ms })
            .into_iter()
            .collect()
    }

    fn count_running(&mut self) {
        let mut running: BTreeMap<(ServiceId, Slot), usize> = BTreeMap::new();
        for task in self.state.tasks().filter(|task| task.status.state == TaskState::Running) {
            let node = task.node.and_then(|node| self.state.node(node));
            if node.is_some_and(|node| node.status == NodeStatus::Ready) {
                *running.entry((task.service, task.slot)).or_default() += 1;
            }
        }
        for ((service, _), count) in running {
            let allowed = usize::from(self.starts_first.contains(&service));
            self.most_running = self.most_running.max(count - allowed.min(count));
        }
    }

    /// Moves time, with everything done that falls due on the way.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        loop {
            let now = self.now;
            let stops = self.stopping.values().copied().filter(|at| *at > now).min();
            let due = [self.orchestrator.poll_timeout(), stops].into_iter().flatten().min();
            let Some(when) = due.filter(|when| *when <= until) else { break };
            self.now = when.max(self.now);
            self.settle();
        }
        self.now = until;
        self.settle();
    }

    fn create(&mut self, id: u128, spec: ServiceSpec) {
        let name = format!("s{id}").parse().unwrap();
        let id = ServiceId::from_u128(id);
        self.apply(Command::CreateService(CreateService { id, name, spec }));
        self.settle();
    }

    fn update(&mut self, id: u128, change: impl FnOnce(&mut ServiceSpec)) {
        let service = self.state.service(ServiceId::from_u128(id)).unwrap();
        let mut spec = service.spec.clone();
        change(&mut spec);
        let (service, version, now_ms) = (service.id, service.version, self.now_ms());
        self.apply(Command::UpdateService(UpdateService { service, version, spec, now_ms }));
        self.settle();
    }

    fn set_status(&mut self, number: u128, status: NodeStatus) {
        let node = NodeId::from_u128(number);
        self.apply(Command::SetNodeStatus { node, status });
        self.settle();
    }

    fn set_availability(&mut self, number: u128, availability: Availability) {
        self.apply(Command::UpdateNode(UpdateNode {
            node: NodeId::from_u128(number),
            availability: Some(availability),
            labels_added: BTreeMap::new(),
            labels_removed: Vec::new(),
        }));
        self.settle();
    }

    fn label(&mut self, number: u128, key: &str, value: &str) {
        self.apply(Command::UpdateNode(UpdateNode {
            node: NodeId::from_u128(number),
            availability: None,
            labels_added: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            labels_removed: Vec::new(),
        }));
        self.settle();
    }

    /// The task's node says that its command ended so.
    fn end(&mut self, task: TaskId, state: TaskState) {
        let node = self.state.task(task).and_then(|task| task.node).unwrap();
        let exit = Some(Exit::Status(i32::from(state != TaskState::Complete)));
        let since_ms = self.now_ms();
        let observed =
            Observed { task, node, status: TaskStatus { state, since_ms, message: None, exit } };
        let changes = vec![TaskChange::Observe(observed)];
        self.apply(Command::ChangeTasks { changes, now_ms: self.now_ms() });
        self.settle();
    }

    /// Nothing that is wanted is where it cannot be, and the mirror is one.
    fn check_places(&self) {
        for task in self.state.tasks().filter(|task| task.is_wanted() && !task.has_ended()) {
            if let Some(node) = task.node {
                let node = self.state.node(node).expect("its node is there");
                assert_eq!(node.status, NodeStatus::Ready, "{task:?}");
                assert_ne!(node.availability, Availability::Drain, "{task:?}");
            }
        }
        let fresh = Orchestrator::new(&self.state, self.now);
        self.orchestrator.scheduler.assert_same(&fresh.scheduler);
    }

    /// Everything that is held is held by a task that has not ended.
    fn check_allocations(&self) {
        let of_tasks = self.state.tasks().flat_map(|task| &task.endpoints);
        let of_tasks: BTreeSet<_> = of_tasks.copied().collect();
        let all: BTreeSet<_> = self.state.endpoints().map(|endpoint| endpoint.id).collect();
        assert_eq!(of_tasks, all);
        assert!(self.state.tasks().all(|task| !task.has_ended() || task.endpoints.is_empty()));
    }

    /// `slot@node` of the tasks of a service that run, in order.
    fn running(&self, id: u128) -> Vec<String> {
        let tasks = self.state.tasks_of(ServiceId::from_u128(id));
        let running =
            tasks.filter(|task| task.is_wanted() && task.status.state == TaskState::Running);
        running.map(at).collect()
    }

    fn wanted(&self, id: u128) -> Vec<&Task> {
        self.state.tasks_of(ServiceId::from_u128(id)).filter(|task| task.is_wanted()).collect()
    }

    /// What the tasks of a service that no node has say.
    fn pending(&self, id: u128) -> Vec<String> {
        let tasks = self.wanted(id).into_iter();
        let pending = tasks.filter(|task| task.status.state == TaskState::Pending);
        pending.map(|task| task.status.message.clone().unwrap_or_default()).collect()
    }

    fn update_state(&self, id: u128) -> UpdateState {
        let service = self.state.service(ServiceId::from_u128(id)).unwrap();
        service.update.as_ref().unwrap().state
    }
}

fn at(task: &Task) -> String {
    let node = task.node.map_or(0, NodeId::as_u128);
    match task.slot {
        Slot::Replica(number) => format!("{number}@{node}"),
        Slot::Node(_) => format!("@{node}"),
    }
}

/// A node that is heard; the first is a manager.
fn node(number: u128) -> Node {
    let mut public_key = [0; 32];
    public_key[..16].copy_from_slice(&number.to_be_bytes());
    let role = if number == 1 { Role::Manager } else { Role::Worker };
    Node { role, status: NodeStatus::Ready, public_key, ..register(number).node }
}

fn replicated(replicas: u32) -> ServiceSpec {
    ServiceSpec {
        mode: Mode::Replicated { replicas },
        task: TaskSpec { command: vec!["sleep".into(), "1000".into()], ..TaskSpec::default() },
        update: UpdatePolicy::default(),
        rollback: UpdatePolicy::default(),
        labels: BTreeMap::new(),
    }
}

fn global() -> ServiceSpec {
    ServiceSpec { mode: Mode::Global, ..replicated(0) }
}

fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

#[test]
fn tasks_spread_over_the_nodes_and_follow_the_number_of_replicas() {
    let mut world = World::new(3);
    world.create(1, replicated(6));
    assert_eq!(world.running(1), ["1@1", "2@2", "3@3", "4@1", "5@2", "6@3"]);
    world.update(1, |spec| spec.mode = Mode::Replicated { replicas: 3 });
    assert_eq!(world.running(1), ["1@1", "2@2", "3@3"]);
    assert_eq!(world.state.tasks().count(), 3, "what is scaled down is forgotten");
    world.update(1, |spec| spec.mode = Mode::Replicated { replicas: 4 });
    assert_eq!(world.running(1), ["1@1", "2@2", "3@3", "4@1"]);
    assert_eq!(world.orchestrator.poll_timeout(), None, "nothing is left to do");
}

#[test]
fn a_service_that_is_removed_goes_with_its_last_task() {
    let mut world = World::new(2);
    world.create(1, replicated(2));
    world.deaf = vec![NodeId::from_u128(2)];
    let service = ServiceId::from_u128(1);
    let now_ms = world.now_ms();
    world.apply(Command::RemoveService { service, now_ms });
    world.settle();
    assert_eq!(world.state.tasks().map(at).collect::<Vec<_>>(), ["2@2"]);
    assert!(world.state.find_service("s1").is_err(), "its name is free");
    world.deaf.clear();
    world.settle();
    assert_eq!(world.state.service(service), None);
    assert_eq!(world.state.tasks().count(), 0);
}

#[test]
fn a_task_that_ends_is_followed_by_another_after_the_delay() {
    let mut world = World::new(1);
    world.create(1, replicated(1));
    let first = world.wanted(1)[0].id;
    world.end(first, TaskState::Failed);
    assert_eq!(world.running(1), [""; 0], "it is not the time");
    assert_eq!(world.wanted(1)[0].status.state, TaskState::Ready);
    world.pass(secs(4));
    assert_eq!(world.running(1), [""; 0]);
    world.pass(secs(1));
    assert_eq!(world.running(1), ["1@1"]);
    // Those that have ended are kept, but not for ever.
    for _ in 0..8 {
        let task = world.wanted(1)[0].id;
        world.end(task, TaskState::Complete);
        world.pass(secs(5));
    }
    assert_eq!(world.running(1), ["1@1"]);
    assert_eq!(world.state.tasks().count(), 6);
    assert!(world.state.task(first).is_none());
}

#[test]
fn the_restart_policy_decides_whether_another_follows() {
    for (condition, state, follows) in [
        (RestartCondition::Any, TaskState::Complete, true),
        (RestartCondition::OnFailure, TaskState::Complete, false),
        (RestartCondition::OnFailure, TaskState::Failed, true),
        (RestartCondition::OnFailure, TaskState::Rejected, true),
        (RestartCondition::None, TaskState::Failed, false),
    ] {
        let mut world = World::new(1);
        let mut spec = replicated(1);
        spec.task.restart.condition = condition;
        world.create(1, spec);
        world.end(world.wanted(1)[0].id, state);
        world.pass(secs(60));
        assert_eq!(world.running(1).len(), usize::from(follows), "{condition:?} {state:?}");
    }
}

#[test]
fn attempts_are_counted_in_their_window() {
    let mut world = World::new(1);
    let mut spec = replicated(1);
    spec.task.restart.delay = secs(1);
    spec.task.restart.max_attempts = Some(2);
    spec.task.restart.window = Some(secs(100));
    world.create(1, spec);
    let fail = |world: &mut World, after| {
        world.pass(secs(after));
        let task = world.wanted(1)[0].id;
        world.end(task, TaskState::Failed);
        world.pass(secs(1));
        world.running(1).len()
    };
    assert_eq!(fail(&mut world, 200), 1, "the first attempt");
    assert_eq!(fail(&mut world, 10), 1, "the second");
    assert_eq!(fail(&mut world, 120), 1, "the first of another window");
    assert_eq!(fail(&mut world, 10), 1);
    assert_eq!(fail(&mut world, 10), 0, "one too many");
    world.pass(secs(1000));
    assert_eq!(world.running(1).len(), 0);
}

#[test]
fn tasks_of_a_node_that_is_down_run_elsewhere_at_once() {
    let mut world = World::new(3);
    world.create(1, replicated(3));
    world.deaf = vec![NodeId::from_u128(2)];
    world.set_status(2, NodeStatus::Down);
    assert_eq!(world.running(1), ["1@1", "2@1", "3@3"]);
    // It comes back, and what it still runs is stopped.
    let old = world.state.tasks_on(NodeId::from_u128(2)).next().unwrap();
    assert_eq!((old.desired, old.status.state), (Desired::Shutdown, TaskState::Running));
    world.deaf.clear();
    world.set_status(2, NodeStatus::Ready);
    assert_eq!(world.running(1), ["1@1", "2@1", "3@3"]);
    let on_2 = world.state.tasks_on(NodeId::from_u128(2));
    assert_eq!(on_2.map(|task| task.status.state).collect::<Vec<_>>(), [TaskState::Shutdown]);
}

#[test]
fn tasks_of_a_node_that_is_removed_run_elsewhere() {
    let mut world = World::new(2);
    world.create(1, replicated(2));
    world.apply(Command::RemoveNode(NodeId::from_u128(2)));
    world.settle();
    assert_eq!(world.running(1), ["1@1", "2@1"]);
    let states = world.state.tasks_in(ServiceId::from_u128(1), Slot::Replica(2));
    let states: Vec<_> = states.map(|task| task.status.state).collect();
    assert!(states.contains(&TaskState::Orphaned), "{states:?}");
}

#[test]
fn a_drained_node_is_emptied_and_a_paused_one_not_filled() {
    let mut world = World::new(3);
    world.create(1, replicated(3));
    world.deaf = vec![NodeId::from_u128(3)];
    world.set_availability(3, Availability::Drain);
    assert_eq!(world.running(1), ["1@1", "2@2"], "two of a slot never run at once");
    assert_eq!(world.most_running, 1);
    world.deaf.clear();
    world.settle();
    assert_eq!(world.running(1), ["1@1", "2@2", "3@1"]);
    world.set_availability(2, Availability::Pause);
    world.update(1, |spec| spec.mode = Mode::Replicated { replicas: 6 });
    assert_eq!(world.running(1), ["1@1", "2@2", "3@1", "4@1", "5@1", "6@1"]);
    world.set_availability(3, Availability::Active);
    world.update(1, |spec| spec.mode = Mode::Replicated { replicas: 8 });
    assert_eq!(world.running(1)[6..], ["7@3", "8@3"]);
    assert_eq!(world.most_running, 1);
}

#[test]
fn a_global_service_is_on_every_node_that_takes_it() {
    let mut world = World::new(2);
    world.set_availability(2, Availability::Drain);
    world.create(1, global());
    assert_eq!(world.running(1), ["@1"]);
    world.join(3);
    world.settle();
    assert_eq!(world.running(1), ["@1", "@3"], "it reaches one that joins later");
    world.set_availability(2, Availability::Active);
    assert_eq!(world.running(1), ["@1", "@2", "@3"]);
    world.set_availability(3, Availability::Pause);
    assert_eq!(world.running(1), ["@1", "@2", "@3"], "what is there stays");
    world.deaf = vec![NodeId::from_u128(2)];
    world.set_status(2, NodeStatus::Down);
    assert_eq!(world.running(1), ["@1", "@3"]);
    world.deaf.clear();
    world.set_status(2, NodeStatus::Ready);
    assert_eq!(world.running(1), ["@1", "@2", "@3"]);
    assert_eq!(world.most_running, 1);
    world.update(1, |spec| {
        spec.task.placement.constraints = vec!["node.role==worker".parse().unwrap()];
    });
    world.pass(secs(30));
    // The paused one keeps what fits; that is of the old definition, so it goes.
    assert_eq!(world.running(1), ["@2"]);
}

#[test]
fn constraints_hold_before_and_after() {
    let mut world = World::new(3);
    let mut spec = replicated(2);
    spec.task.placement.constraints = vec!["node.labels.disk==ssd".parse().unwrap()];
    world.set_availability(1, Availability::Drain);
    world.create(1, spec);
    let message = "3 nodes: 1 drained, 2 lack label disk=ssd";
    assert_eq!(world.pending(1), [message, message]);
    world.label(2, "disk", "SSD");
    assert_eq!(world.running(1), ["1@2", "2@2"]);
    world.label(3, "disk", "ssd");
    world.label(2, "disk", "hdd");
    assert_eq!(world.running(1), ["1@3", "2@3"], "they moved with the label");
    assert_eq!(world.most_running, 1);
}

#[test]
fn tasks_spread_over_the_values_of_labels() {
    let mut world = World::new(5);
    for (number, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        world.label(number, "zone", zone);
    }
    let mut spec = replicated(9);
    spec.task.placement.spread = vec!["zone".into()];
    world.create(1, spec);
    let mut of_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for task in world.wanted(1) {
        let node = world.state.node(task.node.unwrap()).unwrap();
        *of_zone.entry(node.labels.get("zone").map_or("", |zone| zone)).or_default() += 1;
    }
    assert_eq!(of_zone, BTreeMap::from([("", 3), ("a", 3), ("b", 3)]));
    let on_1_to_3: Vec<usize> =
        (1..=3).map(|n| world.state.tasks_on(NodeId::from_u128(n)).count()).collect();
    assert_eq!(on_1_to_3, [1, 1, 1]);
}

#[test]
fn what_is_reserved_counts_until_it_is_free() {
    let mut world = World::new(2);
    let mut spec = replicated(5);
    spec.task.reservations = Resources { cpu_milli: 2000, memory_bytes: 0 };
    world.create(1, spec);
    assert_eq!(world.running(1).len(), 4);
    assert_eq!(world.pending(1), ["2 nodes: 2 lack 2 free cpus"]);
    world.join(3);
    world.settle();
    assert_eq!(world.running(1), ["1@1", "2@2", "3@1", "4@2", "5@3"]);
    world.update(1, |spec| spec.mode = Mode::Replicated { replicas: 8 });
    assert_eq!(world.pending(1).len(), 2);
    // What is updated one after the other fits too, although all is taken.
    world.update(1, |spec| {
        spec.mode = Mode::Replicated { replicas: 6 };
        spec.task.forced += 1;
    });
    world.pass(secs(60));
    assert_eq!(world.running(1).len(), 6, "{:#?}", world.wanted(1));
    assert_eq!(world.update_state(1), UpdateState::Completed);
}

#[test]
fn a_node_takes_no_more_than_it_may_of_a_service() {
    let mut world = World::new(2);
    let mut spec = replicated(3);
    spec.task.placement.max_per_node = Some(1);
    world.create(1, spec);
    assert_eq!(world.running(1), ["1@1", "2@2"]);
    assert_eq!(world.pending(1), ["2 nodes: 2 have as many as a node may"]);
}

#[test]
fn others_go_before_a_node_where_a_service_keeps_failing() {
    let mut world = World::new(2);
    let mut spec = replicated(1);
    spec.task.restart.delay = secs(1);
    world.create(1, spec);
    // Node 2 has more to do, so all attempts are on node 1.
    world.create(2, replicated(3));
    for _ in 0..5 {
        assert_eq!(world.running(1), ["1@1"]);
        let task = world.wanted(1)[0].id;
        world.end(task, TaskState::Failed);
        world.pass(secs(1));
    }
    assert_eq!(world.running(1), ["1@2"]);
}

#[test]
fn addresses_come_and_go_with_the_task() {
    let mut world = World::new(2);
    let blue = NetworkId::from_u128(9);
    world.apply(Command::CreateNetwork(net(9)));
    let mut spec = replicated(6);
    spec.task.networks = vec![TaskNetwork { network: blue, aliases: Vec::new() }];
    world.create(1, spec);
    // A /29 has five addresses beside the gateway's.
    assert_eq!(world.running(1).len(), 5);
    let pending = world.pending(1);
    assert_eq!(
        pending,
        ["no free address is left in 10.0.0.0/29 of network net9; detach an endpoint"]
    );
    assert_eq!(world.state.endpoints_on(blue).count(), 5);
    let refused = world.state.clone().apply(99, Command::RemoveNetwork(blue));
    assert!(refused.is_err(), "a service is on it");
    let first = world.wanted(1)[0].id;
    world.end(first, TaskState::Failed);
    world.pass(secs(5));
    assert_eq!(world.running(1).len(), 5, "one waits for an address, whichever");
    let now_ms = world.now_ms();
    world.apply(Command::RemoveService { service: ServiceId::from_u128(1), now_ms });
    world.settle();
    assert_eq!(world.state.endpoints().count(), 0);
    world.apply(Command::RemoveNetwork(blue));
}

#[test]
fn an_update_goes_slot_by_slot_and_is_over_when_all_were_looked_at() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut world = World::new(3);
        let mut spec = replicated(3);
        spec.update.order = order;
        spec.update.delay = secs(2);
        world.create(1, spec);
        world.update(1, |spec| spec.task.command.push("2".into()));
        let new = |world: &World| world.wanted(1).iter().filter(|task| task.version == 2).count();
        assert_eq!((new(&world), world.running(1).len()), (1, 3));
        world.pass(secs(2));
        assert_eq!((new(&world), world.running(1).len()), (2, 3));
        world.pass(secs(2));
        assert_eq!((new(&world), world.running(1).len()), (3, 3));
        assert_eq!(world.update_state(1), UpdateState::Updating, "the last is looked at");
        world.pass(secs(5));
        assert_eq!(world.update_state(1), UpdateState::Completed);
        let most = match order {
            UpdateOrder::StopFirst => 1,
            UpdateOrder::StartFirst => 2,
        };
        assert_eq!(world.most_running, most, "{order:?}");
        assert_eq!(world.orchestrator.poll_timeout(), None);
    }
}

#[test]
fn an_update_that_fails_does_what_its_policy_says() {
    for (action, state, versions) in [
        (FailureAction::Pause, UpdateState::Paused, [2, 1, 1]),
        (FailureAction::Rollback, UpdateState::RollbackCompleted, [1, 1, 1]),
        (FailureAction::Continue, UpdateState::Completed, [2, 2, 2]),
    ] {
        let mut world = World::new(3);
        let mut spec = replicated(3);
        spec.update.failure_action = action;
        world.create(1, spec);
        world.broken = vec![2];
        world.update(1, |spec| spec.task.command.push("2".into()));
        world.pass(secs(3));
        if action == FailureAction::Continue {
            world.broken.clear();
        }
        world.pass(secs(60));
        let of = world.wanted(1).iter().map(|task| task.version).collect::<Vec<_>>();
        assert_eq!((world.update_state(1), &of[..]), (state, &versions[..]), "{action:?}");
        assert_eq!(world.most_running, 1);
    }
}

#[test]
fn few_failures_are_allowed_where_the_policy_allows_them() {
    let mut world = World::new(3);
    let mut spec = replicated(4);
    spec.update.max_failure_ppm = 250_000;
    spec.update.parallelism = None;
    world.create(1, spec);
    world.update(1, |spec| spec.task.command.push("2".into()));
    let fail = |world: &mut World| {
        let task = world.wanted(1)[0].id;
        world.end(task, TaskState::Failed);
        world.update_state(1)
    };
    assert_eq!(fail(&mut world), UpdateState::Updating, "one of four");
    world.pass(secs(1));
    assert_eq!(world.update_state(1), UpdateState::Updating);
    let task = world.wanted(1)[1].id;
    world.end(task, TaskState::Failed);
    assert_eq!(world.update_state(1), UpdateState::Paused, "two of four");
}

#[test]
fn a_new_leader_goes_on_where_the_other_was() {
    let mut world = World::new(3);
    let mut spec = replicated(6);
    spec.update.delay = secs(2);
    world.create(1, spec);
    world.update(1, |spec| spec.task.command.push("2".into()));
    world.pass(secs(2));
    let failing = world.wanted(1)[5].id;
    world.end(failing, TaskState::Failed);
    for _ in 0..5 {
        world.orchestrator = Orchestrator::new(&world.state, world.now);
        world.pass(secs(3));
    }
    world.pass(secs(60));
    assert_eq!(world.running(1).len(), 6);
    assert!(world.wanted(1).iter().all(|task| task.version == 2));
    assert_eq!(world.update_state(1), UpdateState::Completed);
    assert_eq!(world.most_running, 1);
}

/// Something that befalls the cluster.
#[derive(Clone, Debug)]
enum Step {
    Create { replicas: Option<u32>, start_first: bool, reserves: bool, on_network: bool },
    Update { service: usize, replicas: u32 },
    Force { service: usize, breaks: bool },
    Remove { service: usize },
    Down { node: u128 },
    Up { node: u128 },
    Availability { node: u128, availability: Availability },
    Label { node: u128, value: bool },
    Join,
    RemoveNode { node: u128 },
    Fail { task: usize, state: TaskState },
    Pass { seconds: u64 },
    NewLeader,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let availability = prop_oneof![
        Just(Availability::Active),
        Just(Availability::Pause),
        Just(Availability::Drain)
    ];
    let ended =
        prop_oneof![Just(TaskState::Failed), Just(TaskState::Complete), Just(TaskState::Rejected)];
    let step = prop_oneof![
        2 => (prop::option::of(0..7u32), any::<[bool; 3]>()).prop_map(
            |(replicas, [start_first, reserves, on_network])| Step::Create {
                replicas, start_first, reserves, on_network
            }),
        1 => (0..9usize, 0..9u32).prop_map(|(service, replicas)| Step::Update { service, replicas }),
        2 => (0..9usize, any::<bool>()).prop_map(|(service, breaks)| Step::Force { service, breaks }),
        1 => (0..9usize).prop_map(|service| Step::Remove { service }),
        2 => (1..7u128).prop_map(|node| Step::Down { node }),
        2 => (1..7u128).prop_map(|node| Step::Up { node }),
        2 => (1..7u128, availability)
            .prop_map(|(node, availability)| Step::Availability { node, availability }),
        1 => (1..7u128, any::<bool>()).prop_map(|(node, value)| Step::Label { node, value }),
        1 => Just(Step::Join),
        1 => (1..7u128).prop_map(|node| Step::RemoveNode { node }),
        3 => (0..99usize, ended).prop_map(|(task, state)| Step::Fail { task, state }),
        3 => (1..20u64).prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::NewLeader),
    ];
    prop::collection::vec(step, 1..40)
}

impl World {
    fn befall(&mut self, step: Step) {
        let exists = |world: &World, node| world.state.node(NodeId::from_u128(node)).is_some();
        let services: Vec<ServiceId> = self
            .state
            .services()
            .filter(|service| !service.leaving)
            .map(|service| service.id)
            .collect();
        let pick = |number: usize| services.get(number % services.len().max(1)).copied();
        match step {
            Step::Create { replicas, start_first, reserves, on_network } => {
                let mut spec = replicas.map_or_else(global, replicated);
                if start_first {
                    spec.update.order = UpdateOrder::StartFirst;
                }
                if reserves {
                    spec.task.reservations = Resources { cpu_milli: 1500, memory_bytes: 0 };
                    spec.task.placement.constraints = vec!["node.labels.fast!=no".parse().unwrap()];
                }
                if on_network {
                    let network = NetworkId::from_u128(9);
                    spec.task.networks = vec![TaskNetwork { network, aliases: Vec::new() }];
                }
                spec.update.failure_action = FailureAction::Rollback;
                self.drawn += 1;
                let id = self.drawn;
                if start_first {
                    self.starts_first.insert(ServiceId::from_u128(id));
                }
                self.create(id, spec);
            }
            Step::Update { service, replicas } => {
                if let Some(id) = pick(service) {
                    self.update(id.as_u128(), |spec| {
                        if let Mode::Replicated { .. } = spec.mode {
                            spec.mode = Mode::Replicated { replicas };
                        }
                    });
                }
            }
            Step::Force { service, breaks } => {
                if let Some(id) = pick(service) {
                    // Every third definition ends at once.
                    self.breaks = breaks;
                    self.update(id.as_u128(), |spec| spec.task.forced += 1);
                }
            }
            Step::Remove { service } => {
                if let Some(service) = pick(service) {
                    let now_ms = self.now_ms();
                    self.apply(Command::RemoveService { service, now_ms });
                    self.settle();
                }
            }
            Step::Down { node } if exists(self, node) => {
                self.deaf.push(NodeId::from_u128(node));
                self.set_status(node, NodeStatus::Down);
            }
            Step::Up { node } if exists(self, node) => {
                self.deaf.retain(|deaf| *deaf != NodeId::from_u128(node));
                // What was superseded has ended before the node is ready again.
                self.pass(self.stop_takes);
                self.set_status(node, NodeStatus::Ready);
            }
            Step::Availability { node, availability } if exists(self, node) => {
                self.set_availability(node, availability);
            }
            Step::Label { node, value } if exists(self, node) => {
                self.label(node, "fast", if value { "yes" } else { "no" });
            }
            Step::Join => {
                self.drawn += 1;
                let number = self.drawn;
                self.join(number);
                self.settle();
            }
            Step::RemoveNode { node } if exists(self, node) && node != 1 => {
                self.apply(Command::RemoveNode(NodeId::from_u128(node)));
                self.settle();
            }
            Step::Fail { task, state } => {
                let running: Vec<TaskId> = self
                    .state
                    .tasks()
                    .filter(|task| task.status.state == TaskState::Running && task.is_wanted())
                    .map(|task| task.id)
                    .collect();
                if let Some(task) = running.get(task % running.len().max(1)) {
                    self.end(*task, state);
                }
            }
            Step::Pass { seconds } => self.pass(secs(seconds)),
            Step::NewLeader => {
                self.orchestrator = Orchestrator::new(&self.state, self.now);
                self.settle();
            }
            Step::Down { .. }
            | Step::Up { .. }
            | Step::Availability { .. }
            | Step::Label { .. }
            | Step::RemoveNode { .. } => {}
        }
    }
}

proptest! {
    #[test]
    fn whatever_befalls_the_cluster_its_services_get_what_they_want(steps in steps()) {
        let mut world = World::new(5);
        world.stop_takes = secs(2);
        world.apply(Command::CreateNetwork(CreateNetwork {
            subnets: vec!["10.9.0.0/24".parse().unwrap()],
            ..net(9)
        }));
        for step in steps {
            world.befall(step);
            world.check_places();
            prop_assert!(world.most_running <= 1, "two tasks of a slot ran at once");
        }
        // All is well again: everybody has what was wanted.
        world.deaf.clear();
        world.breaks = false;
        world.settle();
        let nodes: Vec<NodeId> = world.state.nodes().map(|node| node.id).collect();
        for node in &nodes {
            world.set_availability(node.as_u128(), Availability::Active);
            world.label(node.as_u128(), "fast", "yes");
            world.set_status(node.as_u128(), NodeStatus::Ready);
            let capacity = Resources { cpu_milli: 1_000_000, memory_bytes: 0 };
            world.apply(Command::SetCapacity { node: *node, capacity });
        }
        let stay = world.state.services().filter(|service| !service.leaving);
        let services: Vec<ServiceId> = stay.map(|service| service.id).collect();
        for service in &services {
            // Whatever was paused goes on.
            world.update(service.as_u128(), |_| {});
        }
        world.pass(secs(3600));
        for service in world.state.services() {
            let wanted = match service.spec.mode {
                Mode::Replicated { replicas } => replicas as usize,
                Mode::Global => nodes.len(),
            };
            let of_service: Vec<&Task> = world.state.tasks_of(service.id).collect();
            let wanted_tasks: Vec<&&Task> =
                of_service.iter().filter(|task| task.is_wanted()).collect();
            prop_assert_eq!(wanted_tasks.len(), wanted, "{:?}", service);
            for task in wanted_tasks {
                prop_assert_eq!(task.status.state, TaskState::Running, "{:?}", task);
                prop_assert_eq!(task.version, service.task_version, "{:?}", task);
            }
        }
        prop_assert_eq!(world.orchestrator.poll_timeout(), None);
        world.check_allocations();

        // They all go, and nothing is left of them.
        for service in services {
            let now_ms = world.now_ms();
            world.apply(Command::RemoveService { service, now_ms });
        }
        world.pass(secs(2));
        prop_assert_eq!(world.state.services().count(), 0);
        prop_assert_eq!(world.state.tasks().count(), 0);
        prop_assert_eq!(world.state.endpoints().count(), 0);
        world.apply(Command::RemoveNetwork(NetworkId::from_u128(9)));

        // The same commands give the same state.
        let mut again = State::default();
        for (revision, command) in world.applied.iter().cloned().enumerate() {
            let _ = again.apply(revision as u64 + 1, command);
        }
        prop_assert_eq!(again, world.state);
    }
}
