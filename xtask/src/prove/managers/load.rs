//! The clients: at each manager's node one that writes and one that reads all the time, and, after a
//! fault, more that write until the first of them is told that it is done.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, Scope},
    time::Duration,
};

use super::{
    history::{Name, Outcome},
    node::Node,
};

/// What the clients have in common.
#[derive(Default)]
pub struct Load {
    /// Networks that are there, the oldest first, or may be, with the number of calls that left it open;
    /// whoever writes may remove them.
    names: Mutex<VecDeque<(Name, u32)>>,
    next: AtomicU32,
    stop: AtomicBool,
    /// What a client could not go on from.
    failure: Mutex<Option<anyhow::Error>>,
    /// Readers take what is old: a defect that the checker has to find.
    stale: bool,
}

impl Load {
    /// Makes clients that do not run yet.
    pub fn new(stale: bool) -> Self {
        Self { stale, ..Self::default() }
    }

    /// Starts a writer and a reader at a node.
    pub fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, node: &Node) {
        let (writer, reader) = (node.clone(), node.clone());
        scope.spawn(move || self.run(|| self.write(&writer)));
        scope.spawn(move || self.run(|| self.read(&reader)));
    }

    /// Ends the clients, each after the call that it is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Fails if a client could not go on.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take().map_or(Ok(()), Err)
    }

    /// Takes the oldest network away from the clients.
    pub fn take_oldest(&self) -> Option<Name> {
        self.locked().pop_front().map(|(name, _)| name)
    }

    /// Writes at each of the nodes until one is told that it is done, or `until` says to end.
    pub fn probe(&self, nodes: &[Node], until: impl Fn() -> bool + Sync) -> anyhow::Result<()> {
        let done = AtomicBool::new(false);
        let has_ended = || done.load(Ordering::Relaxed) || self.stopped() || until();
        let probe = |node: &Node| -> anyhow::Result<()> {
            while !has_ended() {
                match self.create(node, PROBE_LIMIT)? {
                    Outcome::Acknowledged => done.store(true, Ordering::Relaxed),
                    Outcome::Refused | Outcome::Unknown => thread::sleep(PROBE_PAUSE),
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let probes: Vec<_> = nodes.iter().map(|node| scope.spawn(|| probe(node))).collect();
            let mut probes = probes.into_iter();
            probes.try_for_each(|probe| probe.join().expect("a probe does not panic"))
        })
    }

    /// Goes on until it is stopped; a failure stops all.
    fn run(&self, mut one: impl FnMut() -> anyhow::Result<Duration>) {
        while !self.stopped() {
            match one() {
                // The pace of the load; nothing is waited for.
                Ok(pause) => thread::sleep(pause),
                Err(error) => {
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    self.stop();
                }
            }
        }
    }

    /// Makes a network, or removes one where there are enough.
    fn write(&self, node: &Node) -> anyhow::Result<Duration> {
        let old = {
            let mut names = self.locked();
            if names.len() > ENOUGH { names.pop_front() } else { None }
        };
        let outcome = match old {
            None => self.create(node, LIMIT)?,
            Some((name, tries)) => {
                let outcome = node.remove(name, LIMIT)?;
                // It may be there still, or come to be.
                if outcome == Outcome::Unknown
                    || (outcome == Outcome::Refused && (1..TRIES).contains(&tries))
                {
                    self.locked().push_back((name, tries + 1));
                }
                outcome
            }
        };
        Ok(match outcome {
            Outcome::Acknowledged => PAUSE,
            Outcome::Refused | Outcome::Unknown => PAUSE * 2,
        })
    }

    fn create(&self, node: &Node, limit: Duration) -> anyhow::Result<Outcome> {
        let name = Name(self.next.fetch_add(1, Ordering::Relaxed));
        let outcome = node.create(name, limit)?;
        match outcome {
            Outcome::Acknowledged => self.locked().push_back((name, 0)),
            Outcome::Unknown => self.locked().push_back((name, 1)),
            Outcome::Refused => {}
        }
        Ok(outcome)
    }

    /// Lists the networks, and now and then looks for the one that was made last.
    fn read(&self, node: &Node) -> anyhow::Result<Duration> {
        let flags: &[&str] = if self.stale { &["--stale"] } else { &[] };
        node.list(flags, LIMIT)?;
        let newest = self.locked().iter().rev().find(|(_, tries)| *tries == 0).copied();
        if let (Some((name, _)), false) = (newest, self.stale) {
            node.find(name, LIMIT)?;
        }
        Ok(PAUSE)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn locked(&self) -> MutexGuard<'_, VecDeque<(Name, u32)>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the clients at the end of a scope, however that is reached.
pub struct StopAtEnd<'a>(pub &'a Load);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// So many networks there are, so that a list stays small.
const ENOUGH: usize = 24;
/// A network that is missed may be one whose creation has no answer and comes to be later.
const TRIES: u32 = 3;
/// How long a call may take before it is given up.
const LIMIT: Duration = Duration::from_secs(3);
/// A call costs 10 ms of a core: the clients of five managers take up a third of one.
const PAUSE: Duration = Duration::from_millis(150);
/// The gap is measured to so much, and less where the call lives to see another leader.
const PROBE_LIMIT: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(20);
