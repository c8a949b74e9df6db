//! The streams of a run: who dials whom, what is said on them, and how they end.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::{
    manager::Manager,
    network::{Parcel, What},
    stream::{FromAgent, Hello, Session, ToAgent},
    world::World,
};

/// The streams that managers serve: whose each is, and the way to who serves it.
#[derive(Default)]
pub struct Streams {
    opened: u64,
    served: BTreeMap<u64, (u128, mpsc::UnboundedSender<FromAgent>)>,
}

impl World {
    /// Has agents dial, ping, and give up streams that are silent.
    pub fn run_agents(&mut self) {
        let now = self.now();
        for at in 0..self.agents.len() {
            let agent = &mut self.agents[at];
            match agent.stream {
                Some(_) if agent.heard + SILENCE_MS < now => self.hang_up(at),
                Some((stream, manager)) if agent.next_ping <= now => {
                    agent.next_ping = now + PING_MS;
                    let what = What::ToManager(stream, FromAgent::Ping);
                    self.bus.send(Parcel { from: agent.number, to: manager, what });
                }
                None if agent.next_dial <= now => self.dial(at, now),
                Some(_) | None => {}
            }
        }
        self.network.take_sent(&self.bus, &mut self.random);
    }

    /// Any manager.
    fn dial(&mut self, at: usize, now: u64) {
        let manager = self.random.below(self.managers.len());
        let manager = self.managers[manager].number;
        self.streams.opened += 1;
        let stream = self.streams.opened;
        let agent = &mut self.agents[at];
        agent.stream = Some((stream, manager));
        agent.heard = now;
        let (from, hello) = (agent.number, agent.hello());
        let held = hello.held;
        self.bus.send(Parcel { from, to: manager, what: What::Hello(stream, hello) });
        self.note(format_args!("agent {from} of {held} dials manager {manager}"));
    }

    /// Ends an agent's stream; it dials again after a while.
    pub fn hang_up(&mut self, at: usize) {
        let again = self.now() + 20 + self.random.below(500) as u64;
        let agent = &mut self.agents[at];
        agent.next_dial = again;
        if let Some((stream, _)) = agent.stream.take() {
            self.streams.served.remove(&stream);
        }
    }

    /// What arrives at an agent.
    pub fn hear(&mut self, agent: u128, stream: u64, message: ToAgent) -> Result<(), String> {
        let now = self.now();
        let at = self.agents.iter().position(|other| other.number == agent);
        let Some(at) =
            at.filter(|at| self.agents[*at].stream.is_some_and(|(current, _)| current == stream))
        else {
            return Ok(());
        };
        if matches!(message, ToAgent::Closed) {
            self.hang_up(at);
            return Ok(());
        }
        let agent = &mut self.agents[at];
        agent.heard = now;
        let answer = {
            let mut shared = self.bus.shared();
            let before = agent.position();
            let answer = agent.handle(message, &shared.history, &self.trust)?;
            let position = agent.position();
            if position != before {
                let number = agent.number;
                shared.trace.note(format_args!("agent {number} stands at {position}"));
                self.figures.tables += 1;
            }
            if let Some(FromAgent::Resync(_)) = &answer {
                shared.trace.note(format_args!("agent {} asks for a snapshot", agent.number));
                self.figures.resyncs += 1;
            }
            answer
        };
        if let (Some(answer), Some((stream, manager))) = (answer, agent.stream) {
            let (from, what) = (agent.number, What::ToManager(stream, answer));
            self.bus.send(Parcel { from, to: manager, what });
        }
        Ok(())
    }

    /// What arrives at a manager on a stream; one that is not served is closed.
    pub fn hear_agent(&mut self, agent: u128, manager: u128, stream: u64, message: FromAgent) {
        let served = self.streams.served.get(&stream);
        let taken = served.is_some_and(|(_, inbound)| inbound.send(message).is_ok());
        if !taken {
            let what = What::ToAgent(stream, ToAgent::Closed);
            self.bus.send(Parcel { from: manager, to: agent, what });
        }
    }

    /// An agent dials a manager.
    pub fn open(&mut self, agent: u128, number: u128, stream: u64, hello: Hello) {
        let manager = self.managers.iter().find(|manager| manager.number == number);
        let running = manager.and_then(|manager| manager.running.as_ref());
        let (Some(running), Some(log)) = (running, manager.and_then(Manager::log)) else {
            let what = What::ToAgent(stream, ToAgent::Closed);
            return self.bus.send(Parcel { from: number, to: agent, what });
        };
        let (outbound, inbound) = mpsc::unbounded_channel();
        self.streams.served.insert(stream, (number, outbound));
        let (bus, dispatcher) = (self.bus.clone(), running.dispatcher.clone());
        let session = Session { bus, log, dispatcher, manager: number, agent, stream, inbound };
        running.spawn(session.run(hello));
    }

    /// The streams of a manager that ended are gone.
    pub fn forget_streams(&mut self, manager: u128) {
        self.streams.served.retain(|_, (served_by, _)| *served_by != manager);
    }

    /// Whether all agents have the table of what the leader has.
    pub fn agents_rest(&self) -> bool {
        let Some(leader) = self.leader().and_then(|at| self.managers[at].log()) else {
            return false;
        };
        let is_as = |state: &_| self.agents.iter().all(|agent| agent.is_as(state, &self.trust));
        leader.read(is_as)
    }
}

const PING_MS: u64 = 1000;
const SILENCE_MS: u64 = 3000;
