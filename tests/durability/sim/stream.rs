//! The manager's side of a stream to an agent: what `session` does over a connection, done over the
//! run's network.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use overlay::{
    engine::membership::{Change, Snapshot},
    manager::{
        log::Log,
        simulated::{Dispatcher, Due, SessionHandle},
    },
    types::{Digest, NodeId, Position, Revision, ScopeId},
};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep_until},
};

use super::network::{Bus, Parcel, What};

/// What an agent says.
pub enum FromAgent {
    Acknowledged(Revision),
    Resync(BTreeSet<ScopeId>),
    Ping,
}

/// What a manager says.
pub enum ToAgent {
    Snapshot(Snapshot),
    Delta(Position, Position, Vec<Change>),
    Bookmark(Position, Vec<(ScopeId, Digest)>),
    Ping,
    Closed,
}

/// What an agent opens a stream with.
pub struct Hello {
    pub node: NodeId,
    pub held: Position,
    pub digests: Vec<(ScopeId, Digest)>,
}

/// One stream, as its manager serves it.
pub struct Session {
    pub bus: Arc<Bus>,
    pub log: Arc<Log>,
    pub dispatcher: Arc<Dispatcher>,
    pub manager: u128,
    pub agent: u128,
    pub stream: u64,
    pub inbound: mpsc::UnboundedReceiver<FromAgent>,
}

impl Session {
    /// Opens the stream, serves it, and tells of its end.
    pub async fn run(mut self, hello: Hello) {
        let Hello { node, held, digests } = hello;
        // Whoever knows what is decided does.
        let current = self.log.is_current();
        let opened = self.log.read(|state| {
            let known = current && state.node(node).is_some();
            known.then(|| self.dispatcher.open(state, node, held, &digests))
        });
        // One that has heard of more than this manager has comes again: two that wait at once for what
        // is decided, as a client may too, are woken in an order that tokio draws.
        if let Some(Ok((handle, snapshot))) = opened {
            self.say(ToAgent::Snapshot(snapshot));
            self.serve(&handle).await;
            self.dispatcher.close(&handle);
        }
        self.say(ToAgent::Closed);
    }

    async fn serve(&mut self, handle: &SessionHandle) {
        let mut pings = interval(PING);
        let mut heard = Instant::now();
        loop {
            let mut resync = None;
            tokio::select! {
                biased;
                () = handle.wake.notified() => {
                    if !self.dispatcher.is_open(handle) {
                        return;
                    }
                }
                message = self.inbound.recv() => {
                    heard = Instant::now();
                    match message {
                        None => return,
                        Some(FromAgent::Ping) => {}
                        Some(FromAgent::Acknowledged(revision)) => {
                            self.dispatcher.handle_acknowledged(handle, revision);
                        }
                        Some(FromAgent::Resync(scopes)) => resync = Some(scopes),
                    }
                }
                _ = pings.tick() => {
                    if !self.log.is_current() {
                        return;
                    }
                    self.say(match self.dispatcher.take_bookmark(handle) {
                        Some((position, digests)) => ToAgent::Bookmark(position, digests),
                        None => ToAgent::Ping,
                    });
                }
                () = sleep_until(heard + SILENCE) => return,
            }
            if let Some(scopes) = resync {
                let scopes = Some(scopes).filter(|scopes| !scopes.is_empty());
                if !self.say_snapshot(handle, scopes) {
                    return;
                }
            }
            loop {
                match self.dispatcher.take(handle) {
                    Due::Nothing => break,
                    Due::Ended => return,
                    Due::Delta { from, to, changes } => self.say(ToAgent::Delta(from, to, changes)),
                    Due::Snapshot(scopes) => {
                        if !self.say_snapshot(handle, scopes) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Where changes are due first, the whole table stands for both.
    fn say_snapshot(&self, handle: &SessionHandle, scopes: Option<BTreeSet<ScopeId>>) -> bool {
        let take =
            |scopes| self.log.read(|state| self.dispatcher.take_snapshot(state, handle, scopes));
        let snapshot = take(scopes).or_else(|| take(None));
        let taken = snapshot.is_some();
        if let Some(snapshot) = snapshot {
            self.say(ToAgent::Snapshot(snapshot));
        }
        taken
    }

    fn say(&self, message: ToAgent) {
        let what = What::ToAgent(self.stream, message);
        self.bus.send(Parcel { from: self.manager, to: self.agent, what });
    }
}

const PING: Duration = Duration::from_secs(1);
/// After so long a stream without a word is over.
const SILENCE: Duration = Duration::from_secs(3);
