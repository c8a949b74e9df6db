//! What is true of all runs: one state a revision, whoever has it; what was acknowledged or read is never
//! taken back; no number is given twice. Revisions order everything, so that a history is linearizable
//! if none that began later has an earlier one.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use overlay::{
    engine::cluster::{Command, Event, Kind, Outcome, Refusal, State},
    types::{EndpointId, NetworkId, NodeId, Revision},
};

/// The states that managers came to, and what clients were told.
#[derive(Default)]
pub struct History {
    /// By revision, as whoever was first had it.
    states: BTreeMap<Revision, State>,
    networks: BTreeSet<NetworkId>,
    endpoints: BTreeSet<EndpointId>,
    /// The newest revision that somebody was told of.
    told: Revision,
    /// Which entry each index holds: the leader that made it, and its term.
    entries: BTreeMap<u64, (u64, NodeId)>,
    leaders: BTreeMap<u64, BTreeSet<NodeId>>,
    pub terms_of_two: u64,
    /// Acknowledged.
    pub writes: u64,
    /// Answered.
    pub reads: u64,
    /// Refused by the state.
    pub refused: u64,
    /// Nobody knows what became of them.
    pub unknown: u64,
    wrong: Vec<String>,
}

impl History {
    /// Takes in what a manager applied.
    pub fn handle_applied(&mut self, who: u128, state: &State, events: &[Event]) {
        let new = self.newest() < state.revision();
        self.handle_state(who, "applied", state);
        if !new {
            return;
        }
        for event in events {
            let first = match event {
                Event::NetworkChanged(id) => self.networks.insert(*id),
                Event::EndpointCreated(endpoint) => self.endpoints.insert(endpoint.id),
                _ => true,
            };
            if !first {
                self.say(format!("{event:?} came twice, the second time as {}", state.revision()));
            }
        }
        self.check_numbers(state);
    }

    /// Compares a state that a manager has with what others had at that revision.
    pub fn handle_state(&mut self, who: u128, how: &str, state: &State) {
        let revision = state.revision();
        let same = match self.states.get(&revision) {
            Some(known) => known == state,
            None => revision > self.newest() || *self.at(revision) == *state,
        };
        if revision > self.newest() {
            self.states.insert(revision, state.clone());
        } else if !same {
            self.say(format!("manager {who} {how} another state of revision {revision}"));
        }
    }

    /// Notes what a manager knows of the log.
    pub fn handle_entry(&mut self, who: u128, index: u64, term: u64, leader: NodeId) {
        let made = (term, leader);
        let known = *self.entries.entry(index).or_insert(made);
        if known != made {
            let text =
                format!("manager {who} applied {made:?} as entry {index}, another {known:?}");
            return self.say(text);
        }
        let before = self.entries.range(..index).next_back();
        let after = self.entries.range(index + 1..).next();
        let in_order = before.is_none_or(|(_, before)| *before <= made)
            && after.is_none_or(|(_, after)| made <= *after);
        if !in_order {
            self.say(format!("entry {index} is of {made:?}, out of order"));
        }
    }

    /// Notes that a manager holds itself for the leader of a term; tells whether that is new. A term of
    /// openraft's may have two, because a vote names term and leader: whoever grants the higher one has
    /// no ear for the lower one any more. So what is checked is the order of entries.
    pub fn handle_leader(&mut self, term: u64, leader: NodeId) -> bool {
        let leaders = self.leaders.entry(term).or_default();
        self.terms_of_two += u64::from(leaders.len() == 1 && !leaders.contains(&leader));
        leaders.insert(leader)
    }

    /// Returns what a call that begins now must not come before.
    pub fn told(&self) -> Revision {
        self.told
    }

    /// The newest revision that anybody has.
    pub fn newest(&self) -> Revision {
        self.states.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    /// The newest state that anybody has.
    pub fn newest_state(&self) -> Cow<'_, State> {
        self.at(self.newest())
    }

    /// The state of a revision that somebody had. One that only a refused command made is that of the
    /// revision before, but for its number.
    pub fn at(&self, revision: Revision) -> Cow<'_, State> {
        let Some((known, state)) = self.states.range(..=revision).next_back() else {
            return Cow::Owned(State::default());
        };
        if *known == revision {
            return Cow::Borrowed(state);
        }
        let mut state = state.clone();
        let nothing = Command::RemoveNode(NodeId::from_u128(u128::MAX));
        state.apply(revision, nothing).expect_err("nobody has this id");
        Cow::Owned(state)
    }

    /// Takes in what was read by a call that began when `told` was what others had been told.
    pub fn handle_read(&mut self, who: u128, told: Revision, state: &State) {
        self.reads += 1;
        self.handle_state(who, "let read", state);
        let revision = state.revision();
        if revision < told {
            self.say(format!("manager {who} let read revision {revision} after {told} was told"));
        }
        self.told = self.told.max(revision);
    }

    /// Takes in what came of a write that began when `told` was what others had been told.
    pub fn handle_written(
        &mut self,
        told: Revision,
        command: &Command,
        came: Result<(Revision, Outcome), Refusal>,
    ) {
        let (revision, outcome) = match came {
            Ok(made) => made,
            Err(refusal) => return self.handle_refused(told, command, &refusal),
        };
        self.writes += 1;
        if revision <= told {
            self.say(format!("{command:?} became {revision} after {told} was told"));
        }
        if revision > self.newest() {
            return self.say(format!("{command:?} became {revision}, which nobody has"));
        }
        let applied = self.at(revision - 1).into_owned().apply(revision, command.clone());
        let wanted = applied.map(|applied| applied.outcome);
        if wanted.as_ref() != Ok(&outcome) {
            self.say(format!("{command:?} became {revision}: {outcome:?}, not {wanted:?}"));
        }
        self.told = self.told.max(revision);
    }

    /// A refusal has no revision: there must have been a state that gives it.
    fn handle_refused(&mut self, told: Revision, command: &Command, refusal: &Refusal) {
        self.refused += 1;
        // Clients draw their ids.
        let twice = matches!(refusal, Refusal::IdUsed { kind: Kind::Network | Kind::Endpoint });
        let refuses = |revision| {
            let applied = self.at(revision).into_owned().apply(revision + 1, command.clone());
            applied.is_err_and(|wanted| wanted == *refusal)
        };
        if twice || !(told..=self.newest()).any(refuses) {
            self.say(format!("{command:?} was refused without a reason: {refusal}"));
        }
    }

    fn check_numbers(&mut self, state: &State) {
        let mut taken = BTreeSet::new();
        let vnis = state.networks().map(|network| format!("VNI {}", network.vni.get()));
        let subnets = state.networks().flat_map(|network| &network.subnets);
        let subnets = subnets.map(|subnet| format!("subnet {subnet}"));
        let addresses = state.endpoints().flat_map(|endpoint| {
            endpoint.addresses.iter().map(|addr| format!("{addr} on {}", endpoint.network))
        });
        let twice =
            vnis.chain(subnets).chain(addresses).find(|number| !taken.insert(number.clone()));
        if let Some(twice) = twice {
            self.say(format!("{twice} was given twice, as of revision {}", state.revision()));
        }
    }

    /// Notes a violation.
    pub fn say(&mut self, wrong: String) {
        self.wrong.push(wrong);
    }

    /// Returns the first violation.
    pub fn wrong(&self) -> Option<&String> {
        self.wrong.first()
    }
}
