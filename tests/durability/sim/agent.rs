//! An agent: a table that follows the stream of a manager, whichever. What it holds is at every moment
//! what the cluster was at that revision, as far as its node may know.

use std::sync::Arc;

use overlay::{
    engine::{
        cluster::{Roster, Scope, State},
        membership::{Replica, Table, TableError},
    },
    manager::simulated::Trust,
    types::{NodeId, Position},
};

use super::{
    history::History,
    stream::{FromAgent, Hello, ToAgent},
};

/// See the module.
pub struct Agent {
    pub number: u128,
    replica: Replica,
    /// Its table before the newest step.
    before: Replica,
    /// The stream's number, and whose it is.
    pub stream: Option<(u64, u128)>,
    /// It was sent what it lacked when the stream was opened.
    opened: bool,
    /// A snapshot is on its way; what comes before it is of no use.
    resync: bool,
    /// When it dials again.
    pub next_dial: u64,
    pub next_ping: u64,
    pub heard: u64,
    /// The newest that it ever stood at.
    newest: Position,
}

impl Agent {
    /// Makes one that knows nothing.
    pub fn new(number: u128) -> Self {
        let replica = Replica::new(Table::empty(NodeId::from_u128(number)));
        let newest = replica.position();
        Self {
            number,
            before: replica.clone(),
            replica,
            stream: None,
            opened: false,
            resync: false,
            next_dial: 0,
            next_ping: 0,
            heard: 0,
            newest,
        }
    }

    /// What it opens a stream with.
    pub fn hello(&mut self) -> Hello {
        (self.opened, self.resync) = (false, false);
        let (held, digests) = (self.replica.position(), self.replica.digests());
        Hello { node: NodeId::from_u128(self.number), held, digests }
    }

    /// Its process starts anew, with the table that it has on its disk.
    pub fn restart(&mut self) {
        self.replica = Replica::new(self.replica.table().clone());
    }

    /// Forgets the newest step, although it was acknowledged; but not while it is being sent what it
    /// lacks of what it said that it has.
    pub fn fall_back(&mut self) {
        if self.opened {
            self.replica = self.before.clone();
            self.newest = self.replica.position();
        }
    }

    /// Takes a message in, and answers.
    ///
    /// # Errors
    /// Its table is not what it should be.
    pub fn handle(
        &mut self,
        message: ToAgent,
        history: &History,
        trust: &Trust,
    ) -> Result<Option<FromAgent>, String> {
        if matches!(message, ToAgent::Ping | ToAgent::Closed) {
            return Ok(None);
        }
        let before = self.replica.clone();
        let taken = match message {
            ToAgent::Ping | ToAgent::Closed => return Ok(None),
            ToAgent::Snapshot(snapshot) => {
                let taken = self.replica.handle_snapshot(snapshot);
                self.resync &= taken.is_err();
                self.opened |= taken.is_ok();
                taken
            }
            _ if self.resync => return Ok(None),
            ToAgent::Delta(from, to, changes) => self.replica.handle_delta(from, to, changes),
            ToAgent::Bookmark(position, digests) => {
                return match self.replica.handle_bookmark(position, &digests) {
                    Ok(differ) if differ.is_empty() => Ok(None),
                    Ok(differ) => Err(format!(
                        "agent {}: {differ:?} differ from the bookmark of {position}",
                        self.number
                    )),
                    Err(error) => Ok(Some(self.ask(error))),
                };
            }
        };
        if let Err(error) = taken {
            return Ok(Some(self.ask(error)));
        }
        let position = self.replica.position();
        if position < self.newest {
            return Err(format!(
                "agent {} goes back from {} to {position}",
                self.number, self.newest
            ));
        }
        self.newest = position;
        self.before = before;
        let state = history.at(position.revision);
        if state.position() != position || !self.is_as(&state, trust) {
            return Err(format!(
                "agent {}'s table of {position} is not what the cluster was then",
                self.number
            ));
        }
        Ok(Some(FromAgent::Acknowledged(position.revision)))
    }

    fn ask(&mut self, _why: TableError) -> FromAgent {
        self.resync = true;
        FromAgent::Resync(Default::default())
    }

    /// Whether its table is that of a state.
    pub fn is_as(&self, state: &State, trust: &Trust) -> bool {
        let table = self.replica.table();
        let own = table.node;
        let keys = |other| trust.pair_keys(own, other);
        let roster = |network| Arc::new(Roster::new(state, network));
        let wanted = Scope::new(state, own, roster).snapshot(state, None, &keys, roster);
        table.networks.len() == wanted.networks.len()
            && table.peers.len() == wanted.peers.len()
            && table.endpoints.len() == wanted.endpoints.len()
            && wanted
                .networks
                .iter()
                .all(|network| table.networks.get(&network.id) == Some(network))
            && wanted.peers.iter().all(|peer| table.peers.get(&peer.id) == Some(peer))
            && wanted.endpoints.iter().all(|it| table.endpoints.get(&it.id) == Some(it))
    }

    /// What its table stands at.
    pub fn position(&self) -> Position {
        self.replica.position()
    }
}
