//! The orchestrator and its scheduler on one core: 100,000 tasks placed on 5,000 nodes, and what one change
//! costs in a cluster of that size. `cargo bench --bench bench -- schedule` runs it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use overlay::{
    engine::cluster::{
        Command, CreateService, Observed, State, TaskChange,
        orchestrator::{Orchestrator, Surroundings},
    },
    types::{
        Desired, Mode, Moment, NodeId, NodeStatus, Resources, ServiceId, ServiceSpec, Task, TaskId,
        TaskSpec, TaskState, TaskStatus, UpdatePolicy,
    },
};

/// Measures all of it.
pub fn run() {
    for (services, replicas) in [(1, 100_000), (5000, 20)] {
        let mut world = World::new(5000);
        let started = Instant::now();
        for id in 1..=services {
            world.create(id, replicas);
        }
        let deciding = world.settle();
        println!(
            "schedule: {services} service(s) of {replicas} tasks on 5000 nodes: {:.2?}, of which {deciding:.2?} to decide and the rest to apply",
            started.elapsed()
        );
        world.check_spread(20);
        world.run_all();
        let mut failures = Vec::new();
        for number in 0..200 {
            let task = *world.tasks().nth(number * 400).expect("a task");
            let started = Instant::now();
            world.observe(&[task], TaskState::Failed);
            world.settle();
            failures.push(started.elapsed());
            world.now = world.now + Duration::from_secs(6);
            world.settle();
        }
        failures.sort();
        let [p50, p99] = [failures[100], failures[197]];
        println!("schedule: a task fails and is replaced: p50 {p50:.1?}, p99 {p99:.1?}");
        let started = Instant::now();
        world
            .apply(Command::SetNodeStatus { node: NodeId::from_u128(7), status: NodeStatus::Down });
        world.settle();
        println!("schedule: a node of 20 tasks goes down: {:.1?}", started.elapsed());
    }
}

struct World {
    state: State,
    orchestrator: Orchestrator,
    revision: u64,
    now: Moment,
    drawn: u128,
}

impl World {
    fn new(nodes: u128) -> Self {
        let now = Moment::from_nanos(1_000_000_000);
        let state = State::default();
        let orchestrator = Orchestrator::new(&state, now);
        let mut world = Self { state, orchestrator, revision: 0, now, drawn: 1 << 64 };
        world.apply(super::log::cluster());
        for number in 1..=nodes {
            world.apply(super::log::node(number));
            let node = NodeId::from_u128(number);
            let capacity = Resources { cpu_milli: 64_000, memory_bytes: 256 << 30 };
            world.apply(Command::SetCapacity { node, capacity });
            world.apply(Command::SetNodeStatus { node, status: NodeStatus::Ready });
        }
        world
    }

    fn apply(&mut self, command: Command) {
        self.revision += 1;
        let applied = self.state.apply(self.revision, command).expect("it is taken");
        for event in &applied.events {
            self.orchestrator.handle_event(&self.state, event, self.now);
        }
    }

    fn create(&mut self, id: u128, replicas: u32) {
        let name = format!("s{id}").parse().expect("a name");
        let reservations = Resources { cpu_milli: 100, memory_bytes: 1 << 20 };
        let command = vec!["sleep".to_owned()];
        let spec = ServiceSpec {
            mode: Mode::Replicated { replicas },
            task: TaskSpec { command, reservations, ..TaskSpec::default() },
            update: UpdatePolicy::default(),
            rollback: UpdatePolicy::default(),
            labels: BTreeMap::new(),
        };
        let id = ServiceId::from_u128(id);
        self.apply(Command::CreateService(CreateService { id, name, spec }));
    }

    /// Has everything decided and applied; returns how long the deciding took.
    fn settle(&mut self) -> Duration {
        let mut deciding = Duration::ZERO;
        loop {
            let mut drawn = self.drawn;
            let mut draw = || {
                drawn += 1;
                drawn
            };
            let mut around = Surroundings { draw: &mut draw, now_ms: 0, now: self.now };
            let started = Instant::now();
            let commands = self.orchestrator.poll(&self.state, &mut around);
            deciding += started.elapsed();
            self.drawn = drawn;
            if commands.is_empty() {
                return deciding;
            }
            commands.into_iter().for_each(|command| self.apply(command));
        }
    }

    fn tasks(&self) -> impl Iterator<Item = &TaskId> {
        self.state.tasks().filter(|task| task.desired == Desired::Running).map(|task| &task.id)
    }

    fn observe(&mut self, tasks: &[TaskId], state: TaskState) {
        let observed = |task: &Task| Observed {
            task: task.id,
            node: task.node.expect("a node"),
            status: TaskStatus { state, since_ms: 0, message: None, exit: None },
        };
        let tasks = tasks.iter().filter_map(|task| self.state.task(*task));
        let changes = tasks.map(observed).map(TaskChange::Observe).collect();
        self.apply(Command::ChangeTasks { changes, now_ms: 0 });
    }

    fn run_all(&mut self) {
        let tasks: Vec<TaskId> = self.tasks().copied().collect();
        self.observe(&tasks, TaskState::Running);
        self.settle();
    }

    fn check_spread(&self, each: usize) {
        for node in self.state.nodes() {
            assert_eq!(self.state.tasks_on(node.id).count(), each, "evenly");
        }
    }
}
