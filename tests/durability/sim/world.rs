//! One run: managers, their network and their clients in one thread, in a time of its own, which goes on
//! by four milliseconds at a time. Everything is drawn from the seed.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex},
};

use overlay::{
    engine::cluster::{Command, State},
    manager::{
        log::{Log, Request},
        parts::{Parts, PartsError, cut},
        simulated::{Trust, seeded},
    },
    types::{NodeId, Role},
};

use super::{
    agent::Agent,
    client::{self, Ask, Call, Drawn},
    manager::Manager,
    network::{Bus, Network, Parcel, What, not_reached},
    streams::Streams,
};
use crate::{
    disk::{Disk, Random},
    workload,
};

/// What a run counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub ms: u64,
    pub faults: u64,
    pub writes: u64,
    pub reads: u64,
    pub refused: u64,
    pub unknown: u64,
    pub leaders: u64,
    /// Terms in which two managers held themselves for the leader.
    pub terms_of_two: u64,
    /// Tables that agents had.
    pub tables: u64,
    pub resyncs: u64,
    /// Snapshots that were bent on their way.
    pub bent: u64,
    /// Managers that came in the place of others.
    pub replaced: u64,
}

impl Figures {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        let Self { ms, faults, writes, reads, refused, unknown, .. } = *other;
        let Self { leaders, terms_of_two, tables, resyncs, bent, replaced, .. } = *other;
        self.replaced += replaced;
        self.ms += ms;
        self.faults += faults;
        self.writes += writes;
        self.reads += reads;
        self.refused += refused;
        self.unknown += unknown;
        self.leaders += leaders;
        self.terms_of_two += terms_of_two;
        self.tables += tables;
        self.resyncs += resyncs;
        self.bent += bent;
    }
}

/// How a run ended.
pub struct Ended {
    pub hash: u64,
    pub figures: Figures,
    pub wrong: Option<String>,
    /// The newest.
    pub events: Vec<String>,
}

/// See the module.
pub struct World {
    pub random: Random,
    pub bus: Arc<Bus>,
    pub network: Network,
    pub managers: Vec<Manager>,
    pub agents: Vec<Agent>,
    /// Those that are to decide.
    pub wanted: BTreeSet<NodeId>,
    pub streams: Streams,
    pub figures: Figures,
    pub trust: Arc<Trust>,
    pub clients: Vec<Client>,
    pub drawn: Drawn,
    next_fault: u64,
}

/// Who calls one manager.
#[derive(Default)]
pub struct Client {
    pub call: Option<Call>,
    next: u64,
}

/// Does the run of a seed.
pub fn run(seed: u64, trust: &Arc<Trust>) -> Ended {
    seeded::set(seed);
    let mut world = World::new(seed, trust.clone());
    let wrong = world.run().err();
    let shared = world.bus.shared();
    let history = &shared.history;
    let figures = Figures {
        ms: shared.trace.now,
        writes: history.writes,
        reads: history.reads,
        refused: history.refused,
        unknown: history.unknown,
        terms_of_two: history.terms_of_two,
        ..world.figures
    };
    Ended { hash: shared.trace.hash(), figures, wrong, events: shared.trace.newest() }
}

impl World {
    /// Makes one in which nothing runs yet.
    pub fn new(seed: u64, trust: Arc<Trust>) -> Self {
        let mut random = Random::new(seed);
        // Five take twice as long as three.
        let count = [3, 3, 3, 4, 5][random.below(5)];
        let managers: Vec<Manager> =
            (1..=count).map(|number| Manager::new(number, number > 1, &mut random)).collect();
        let clients = managers.iter().map(|_| Client::default()).collect();
        let wanted = managers.iter().map(Manager::node).collect();
        Self {
            random,
            bus: Bus::new(),
            network: Network::new(),
            managers,
            wanted,
            agents: WORKERS.map(Agent::new).into(),
            streams: Streams::default(),
            figures: Figures::default(),
            trust,
            clients,
            drawn: Drawn::new(WORKERS.map(NodeId::from_u128).to_vec()),
            next_fault: 0,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        self.set_up()?;
        let end = self.now() + RUN_MS;
        self.next_fault = self.now() + 500;
        while self.now() < end || !self.has_asked_enough() {
            if self.next_fault <= self.now() {
                self.next_fault += 300 + self.random.below(2800) as u64;
                self.fault();
            }
            self.call();
            self.step()?;
        }
        self.heal();
        let end = self.now() + HEALED_MS;
        while self.now() < end {
            self.call();
            self.step()?;
        }
        self.rest()
    }

    /// Whether enough went wrong, and clients have had enough answers to judge by.
    fn has_asked_enough(&self) -> bool {
        let history = &self.bus.shared().history;
        history.writes >= ENOUGH && history.reads >= ENOUGH && self.figures.faults >= ENOUGH_FAULTS
    }

    /// Founds the cluster, and makes all managers decide.
    pub fn set_up(&mut self) -> Result<(), String> {
        for at in 0..self.managers.len() {
            self.start(at)?;
        }
        let first = self.await_log(0)?;
        let managers: BTreeSet<NodeId> = self.managers.iter().map(Manager::node).collect();
        let nodes = managers.len() as u128;
        let done = Arc::new(Mutex::new(None));
        let set = done.clone();
        let set_up = async move {
            let mut commands = vec![workload::cluster()];
            commands.extend((1..=nodes).map(|number| {
                let Command::RegisterNode(mut register) = workload::node(number) else {
                    unreachable!("it registers a node")
                };
                register.node.role = Role::Manager;
                Command::RegisterNode(register)
            }));
            commands.extend(WORKERS.map(workload::node));
            for command in commands {
                if let Err(error) = first.propose(command).await {
                    *set.lock().unwrap() = Some(Err(error.to_string()));
                    return;
                }
            }
            let made = first.set_members(managers).await;
            *set.lock().unwrap() = Some(made.map_err(|error| error.to_string()));
        };
        self.managers[0].running.as_ref().ok_or("the first does not run")?.spawn(set_up);
        loop {
            self.step()?;
            if let Some(done) = done.lock().unwrap().take() {
                return done;
            }
            if self.now() > SET_UP_MS {
                return Err("the cluster is not founded".into());
            }
        }
    }

    fn await_log(&mut self, at: usize) -> Result<Arc<Log>, String> {
        while self.now() < SET_UP_MS {
            if let Some(log) = self.managers[at].log() {
                return Ok(log);
            }
            self.step()?;
        }
        Err("the first manager does not start".into())
    }

    /// Goes on by a moment.
    pub fn step(&mut self) -> Result<(), String> {
        let now = {
            let mut shared = self.bus.shared();
            shared.trace.now += MOMENT_MS;
            shared.trace.now
        };
        self.run_agents();
        for parcel in self.network.arrived(now) {
            self.deliver(parcel, now)?;
        }
        for at in 0..self.managers.len() {
            if self.managers[at].starts_at.is_some_and(|starts_at| starts_at <= now) {
                self.start(at)?;
            }
            if let Some(running) = &mut self.managers[at].running {
                match running.paused {
                    Some((_, until)) if now < until => continue,
                    Some((since, _)) => {
                        running.paused = None;
                        running.catch_up(now - since);
                    }
                    None => {}
                }
                running.run_until(now);
                self.network.take_sent(&self.bus, &mut self.random);
            }
            self.look_at(at)?;
        }
        self.end_calls()?;
        self.retire();
        let shared = self.bus.shared();
        shared.history.wrong().map_or(Ok(()), |wrong| Err(wrong.clone()))
    }

    /// Sees how a manager stands, and whether its disk works.
    fn look_at(&mut self, at: usize) -> Result<(), String> {
        let manager = &mut self.managers[at];
        let Some(running) = &manager.running else { return Ok(()) };
        let number = manager.number;
        let failed = running.failed();
        if manager.disk.is_off() {
            manager.cut_power(&mut self.random);
            self.note(format_args!("manager {number} has lost power"));
            self.start_soon(at);
            return Ok(());
        }
        let Some(log) = manager.log() else {
            return match failed {
                None => Ok(()),
                Some(error) => self.stopped(at, &error),
            };
        };
        let Some(standing) = log.standing() else {
            return self.stopped(at, "its log has stopped");
        };
        if manager.stood == Some(standing) {
            return Ok(());
        }
        manager.stood = Some(standing);
        let node = manager.node();
        let mut shared = self.bus.shared();
        if let Some((index, term, leader)) = standing.applied {
            shared.history.handle_entry(number, index, term, leader);
        }
        if standing.leads && shared.history.handle_leader(standing.term, node) {
            let term = standing.term;
            shared.trace.note(format_args!("manager {number} leads term {term}"));
            self.figures.leaders += 1;
        }
        Ok(())
    }

    /// A log stops only where its disk was made to fail.
    fn stopped(&mut self, at: usize, why: &str) -> Result<(), String> {
        let manager = &mut self.managers[at];
        let number = manager.number;
        if !std::mem::take(&mut manager.disk_fails) {
            return Err(format!("manager {number}: {why}, and its disk works"));
        }
        manager.kill();
        self.note(format_args!("manager {number} ends: {why}"));
        self.start_soon(at);
        Ok(())
    }

    /// Starts a manager.
    pub fn start(&mut self, at: usize) -> Result<(), String> {
        let number = self.managers[at].number;
        match self.managers[at].start(&self.bus, &self.trust) {
            Ok(()) => self.note(format_args!("manager {number} starts")),
            Err(error) if self.managers[at].disk.is_off() => {
                self.note(format_args!("manager {number} loses power at its start: {error}"));
                self.managers[at].cut_power(&mut self.random);
                if !self.managers[at].made {
                    // Whoever joins begins anew.
                    self.managers[at].disk = Disk::default();
                }
                self.start_soon(at);
            }
            Err(error) if self.managers[at].disk_fails => {
                self.note(format_args!("manager {number} does not start: {error}"));
                self.managers[at].disk_fails = false;
                self.managers[at].kill();
                if !self.managers[at].made {
                    self.managers[at].disk = Disk::default();
                }
                self.start_soon(at);
            }
            Err(error) => return Err(format!("manager {number} does not start: {error}")),
        }
        Ok(())
    }

    /// Has a manager start after a while.
    pub fn start_soon(&mut self, at: usize) {
        self.clients[at].call = None;
        self.forget_streams(self.managers[at].number);
        let after = 20 + self.random.below(2500) as u64;
        let again = !self.managers[at].retired;
        self.managers[at].starts_at = again.then_some(self.now() + after);
    }

    fn deliver(&mut self, parcel: Parcel, now: u64) -> Result<(), String> {
        let Parcel { from, to, what } = parcel;
        let at = self.managers.iter().position(|manager| manager.number == to);
        let manager = at.map(|at| &self.managers[at]);
        let paused = manager.and_then(|manager| manager.running.as_ref()?.paused);
        if let Some((_, until)) = paused {
            self.network.put(until.max(now + MOMENT_MS), Parcel { from, to, what });
            return Ok(());
        }
        match what {
            // Whoever waited may have ended meanwhile.
            What::Answer(answer, reply) => drop(reply.send(answer)),
            What::Request(request, reply) => {
                let running = manager.and_then(|manager| manager.running.as_ref());
                let log = manager.and_then(Manager::log);
                let (Some(running), Some(log)) = (running, log) else {
                    let away = What::Answer(Err(not_reached("nobody listens")), reply);
                    self.network.put(now + 1, Parcel { from: to, to: from, what: away });
                    return Ok(());
                };
                let request = match carried(request, &mut self.random) {
                    Ok(request) => request,
                    Err(bent) => {
                        self.figures.bent += 1;
                        let refused = What::Answer(Err(not_reached(&bent.to_string())), reply);
                        self.network.put(now + 1, Parcel { from: to, to: from, what: refused });
                        return Ok(());
                    }
                };
                let bus = self.bus.clone();
                running.spawn(async move {
                    let what = What::Answer(Ok(log.handle(request).await), reply);
                    bus.send(Parcel { from: to, to: from, what });
                });
            }
            What::Hello(stream, hello) => self.open(from, to, stream, hello),
            What::ToManager(stream, message) => self.hear_agent(from, to, stream, message),
            What::ToAgent(stream, message) => self.hear(to, stream, message)?,
        }
        Ok(())
    }

    /// Has clients call that do not wait for an answer.
    pub fn call(&mut self) {
        let now = self.now();
        for at in 0..self.managers.len() {
            if self.clients[at].call.is_some() || now < self.clients[at].next {
                continue;
            }
            if let Some(next) = self.next_members(at) {
                self.ask(at, Ask::Members(next));
            } else if self.random.below(4) == 0 {
                let commands = self.draw();
                self.ask(at, Ask::Write(commands));
            } else {
                self.ask(at, Ask::Read);
            }
        }
    }

    fn draw(&mut self) -> Vec<Command> {
        let shared = self.bus.shared();
        let state = shared.history.newest_state();
        let count = 1 + self.random.below(5);
        (0..count).map(|_| self.drawn.next(&state, &mut self.random)).collect()
    }

    /// Has a manager's client ask it something, if it runs.
    pub fn ask(&mut self, at: usize, ask: Ask) {
        let manager = &self.managers[at];
        let (Some(running), Some(log)) = (&manager.running, manager.log()) else { return };
        let call = Call::new(&self.bus);
        running.spawn(client::ask(log, ask, call.came.clone()));
        self.clients[at].call = Some(call);
    }

    /// Goes on until a manager's client has its answer.
    pub fn await_answer(&mut self, at: usize) -> Result<(), String> {
        while self.clients[at].call.is_some() {
            self.step()?;
        }
        Ok(())
    }

    fn end_calls(&mut self) -> Result<(), String> {
        let managers = self.managers.len();
        let now = self.now();
        for at in 0..self.managers.len() {
            let client = &mut self.clients[at];
            let came = client.call.as_ref().and_then(|call| call.came.lock().unwrap().take());
            let Some(came) = came else { continue };
            let Some(call) = client.call.take() else { continue };
            client.next = now + 20 + self.random.below(CALLS_MS * managers) as u64;
            if let Err(wrong) = client::end(&self.bus, self.managers[at].number, &call, came) {
                self.stopped(at, &wrong)?;
            }
        }
        Ok(())
    }

    /// Ends everything that is wrong.
    fn heal(&mut self) {
        self.note(format_args!("all is well again"));
        self.network.heal();
        let now = self.now();
        for manager in &mut self.managers {
            manager.pace.lock().unwrap().until = 0;
            manager.disk.heal();
            manager.starts_at = manager.starts_at.map(|_| now);
            if let Some(running) = &mut manager.running {
                running.paused = running.paused.map(|(since, _)| (since, now));
            }
        }
    }

    /// Waits until all managers take writes and have the same state.
    fn rest(&mut self) -> Result<(), String> {
        let end = self.now() + REST_MS;
        for at in 0..self.managers.len() {
            self.await_answer(at)?;
        }
        self.settle_members(end)?;
        for at in 0..self.managers.len() {
            let wrote = self.bus.shared().history.writes;
            while !self.managers[at].retired && self.bus.shared().history.writes == wrote {
                let last = vec![self.drawn.network()];
                self.ask(at, Ask::Write(last));
                self.step()?;
                self.await_answer(at)?;
                if self.now() > end {
                    return Err("managers do not write although all is well".into());
                }
            }
        }
        let told = self.bus.shared().history.told();
        loop {
            let logs: Vec<_> = self.managers.iter().filter_map(Manager::log).collect();
            let even = logs.iter().all(|log| log.read(State::revision) == told);
            if even && self.agents_rest() {
                return Ok(());
            }
            if self.now() > end {
                return Err("managers and agents stay apart although all is well".into());
            }
            self.step()?;
        }
    }

    /// Which manager holds itself for the leader; if several do, that of the newest term.
    pub fn leader(&self) -> Option<usize> {
        let term = |at: &usize| {
            let standing = self.managers[*at].log()?.standing()?;
            standing.leads.then_some(standing.term)
        };
        (0..self.managers.len()).filter(|at| term(at).is_some()).max_by_key(term)
    }

    /// Milliseconds since the run began.
    pub fn now(&self) -> u64 {
        self.bus.shared().trace.now
    }

    /// Notes an event.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        self.bus.shared().trace.note(event);
    }
}

/// A request as it arrives: a snapshot goes in parts, one of which is bent now and then.
fn carried(request: Request, random: &mut Random) -> Result<Request, PartsError> {
    let Request::Snapshot(vote, meta, body) = request else { return Ok(request) };
    let mut messages: Vec<Vec<u8>> = cut(vote, meta, body).collect();
    if random.below(4) == 0
        && let [_, parts @ .., _] = messages.as_mut_slice()
        && let Some(last) = parts.last_mut()
    {
        let at = random.below(last.len());
        last[at] ^= 1;
    }
    let mut parts = Parts::new(&messages[0])?;
    messages[1..].iter().try_for_each(|part| parts.add(part))?;
    parts.finish()
}

/// The nodes that have endpoints.
const WORKERS: [u128; 3] = [101, 102, 103];
const MOMENT_MS: u64 = 4;
const SET_UP_MS: u64 = 20_000;
/// With faults, at least.
const RUN_MS: u64 = 60_000;
/// Writes, and reads.
const ENOUGH: u64 = 200;
const ENOUGH_FAULTS: u64 = 20;
/// Clients go on for so long when all is well again.
const HEALED_MS: u64 = 2000;
const REST_MS: u64 = 30_000;
/// Between two calls of a client, at most, for each of the managers.
const CALLS_MS: usize = 190;
