//! What a node knows of the managers: the one that it talks to, those to go to when that one is away
//! or sends it on to the leader, and whether it is to have one itself.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::rand;
use tokio::sync::{Notify, watch};

use crate::types::Role;

/// The managers' addresses.
pub struct Managers {
    /// Where this node joined, or its own manager: tried when all else is wrong.
    home: SocketAddr,
    current: Mutex<SocketAddr>,
    known: watch::Sender<Vec<SocketAddr>>,
    /// What a manager says last of this node.
    standing: watch::Sender<Standing>,
    hurry: Notify,
}

/// What a node is to the managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it is to have one.
    pub role: Role,
    /// Whether the one that it has, or had, decides.
    pub decides: bool,
}

impl Managers {
    /// Begins with `home`; `known` are those of an earlier process, and `role` what the node was.
    pub fn new(home: SocketAddr, known: Vec<SocketAddr>, role: Role) -> Self {
        let standing = watch::Sender::new(Standing { role, decides: false });
        let known = watch::Sender::new(known);
        Self { home, current: Mutex::new(home), known, standing, hurry: Notify::new() }
    }

    /// Returns the one to talk to.
    pub fn current(&self) -> SocketAddr {
        *self.locked()
    }

    /// Talks to another one from now on, whom a manager named.
    pub fn go_to(&self, manager: SocketAddr) {
        *self.locked() = manager;
    }

    /// Talks to another one at once, whoever was waited for.
    pub fn hurry_to(&self, manager: SocketAddr) {
        self.go_to(manager);
        self.hurry.notify_one();
    }

    /// Waits until there is one to talk to at once.
    pub async fn hurried(&self) {
        self.hurry.notified().await;
    }

    /// The one that was tried is away: takes the next.
    pub fn go_on(&self) {
        let mut all = self.known.borrow().clone();
        if !all.contains(&self.home) {
            all.push(self.home);
        }
        let mut current = self.locked();
        let place = all.iter().position(|addr| *addr == *current);
        *current = all[place.map_or(0, |place| (place + 1) % all.len())];
    }

    /// Takes what a manager says of where all are. Each node tries them in an order of its own, so that
    /// the agents of one that is away do not all come to the same other.
    pub fn handle_known(&self, mut addrs: Vec<SocketAddr>) {
        let newer = |known: &mut Vec<SocketAddr>| {
            let as_sets = |addrs: &[SocketAddr]| addrs.iter().copied().collect::<BTreeSet<_>>();
            let differs = as_sets(known) != as_sets(&addrs) && !addrs.is_empty();
            if differs {
                shuffle(&mut addrs);
                *known = addrs;
            }
            differs
        };
        self.known.send_if_modified(newer);
    }

    /// Follows what is known of where all are.
    pub fn known(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.known.subscribe()
    }

    /// Takes what a manager says this node is.
    pub fn handle_standing(&self, standing: Standing) {
        self.standing.send_if_modified(|known| std::mem::replace(known, standing) != standing);
    }

    /// Follows what this node is.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    fn locked(&self) -> MutexGuard<'_, SocketAddr> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts them in a random order.
fn shuffle(addrs: &mut [SocketAddr]) {
    addrs.sort_by_cached_key(|_| {
        let mut key = [0; 8];
        // Without a random source their order does as well.
        let _ = rand::fill(&mut key);
        key
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_tried_in_turn_and_the_first_stays_known() {
        let addr = |last: u16| SocketAddr::from(([192, 0, 2, 1], last));
        let managers = Managers::new(addr(1), Vec::new(), Role::Worker);
        managers.go_on();
        assert_eq!(managers.current(), addr(1), "there is only one");
        managers.handle_known(vec![addr(2), addr(3)]);
        managers.handle_known(Vec::new());
        let round = || {
            let mut tried: Vec<u16> = Vec::new();
            for _ in 0..3 {
                managers.go_on();
                tried.push(managers.current().port());
            }
            tried
        };
        let tried = round();
        assert_eq!(tried.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3]));
        managers.handle_known(vec![addr(3), addr(2)]);
        assert_eq!(round(), tried, "they are the same");
        managers.go_to(addr(9));
        assert_eq!(managers.current(), addr(9));
        managers.go_on();
        let first = managers.known().borrow()[0];
        assert_eq!(managers.current(), first, "whom nobody knows is followed by the first");
    }
}
