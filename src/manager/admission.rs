//! Bounds what hosts without a certificate can make a manager do: how many connections they hold and
//! how many handshakes they are in at once, together and from one address, and how often they try
//! tokens and keys.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bounds and what stands against them.
pub struct Admission {
    counts: Mutex<Counts>,
    /// Handshakes of all sources.
    turns: Arc<Semaphore>,
}

#[derive(Default)]
struct Counts {
    all: Connections,
    by_source: BTreeMap<IpAddr, Source>,
    wrong: BTreeMap<IpAddr, Wrong>,
}

struct Source {
    connections: Connections,
    turns: Arc<Semaphore>,
}

/// How many there are that showed no certificate.
#[derive(Clone, Copy, Default)]
struct Connections {
    /// All of them: waiting for their turn, in their handshake, or past it.
    held: usize,
    /// Past the handshake, in which they showed none.
    unknown: usize,
}

struct Wrong {
    count: u32,
    since: Instant,
}

/// The right to hold one connection without a certificate; dropping it gives it back.
pub struct Admitted {
    admission: Arc<Admission>,
    source: IpAddr,
    turns: Arc<Semaphore>,
    is_unknown: bool,
}

/// The right to spend the manager's time and memory on one handshake.
pub struct Turn {
    _of_source: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Default for Admission {
    fn default() -> Self {
        Self { counts: Mutex::default(), turns: Arc::new(Semaphore::new(MAX_HANDSHAKES)) }
    }
}

impl Admission {
    /// Admits a connection, unless there are too many.
    pub fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Admitted> {
        let source = source_of(source);
        let mut counts = self.locked();
        if counts.all.held >= MAX_HELD {
            return None;
        }
        let of_source = counts.by_source.entry(source).or_insert_with(|| Source {
            connections: Connections::default(),
            turns: Arc::new(Semaphore::new(MAX_HANDSHAKES_OF_SOURCE)),
        });
        if of_source.connections.held >= MAX_HELD_OF_SOURCE {
            return None;
        }
        of_source.connections.held += 1;
        let turns = of_source.turns.clone();
        counts.all.held += 1;
        Some(Admitted { admission: self.clone(), source, turns, is_unknown: false })
    }

    /// Tells whether a source may try a token or a key.
    pub fn may_try(&self, source: IpAddr, now: Instant) -> bool {
        let counts = self.locked();
        let tries = counts.wrong.get(&source_of(source));
        tries.is_none_or(|tries| tries.count < MAX_WRONG || now >= tries.since + PENALTY)
    }

    /// Notes a wrong token or key.
    pub fn note_wrong(&self, source: IpAddr, now: Instant) {
        let mut counts = self.locked();
        if counts.wrong.len() >= MAX_NOTED {
            counts.wrong.retain(|_, tries| now < tries.since + PENALTY);
        }
        // A full table of fresh entries notes no more: a secret has 128 bits, and this limit is to
        // spare the manager's time, not to keep it from being guessed.
        if counts.wrong.len() < MAX_NOTED {
            let fresh = Wrong { count: 0, since: now };
            let tries = counts.wrong.entry(source_of(source)).or_insert(fresh);
            if now >= tries.since + PENALTY {
                *tries = Wrong { count: 0, since: now };
            }
            tries.count += 1;
        }
    }

    fn locked(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Waits for the turn to shake hands: in the order of coming among those of the source, then among
    /// all. So nodes that all come back at once are served one after the other, not turned away. Never
    /// `None`, for nobody closes the semaphores.
    pub async fn turn(&self) -> Option<Turn> {
        let _of_source = self.turns.clone().acquire_owned().await.ok()?;
        let _of_all = self.admission.turns.clone().acquire_owned().await.ok()?;
        Some(Turn { _of_source, _of_all })
    }

    /// Lets the connection stay past its handshake, in which it showed no certificate, unless too many
    /// do.
    pub fn stay(mut self) -> Option<Self> {
        let mut counts = self.admission.locked();
        let all_unknown = counts.all.unknown;
        let of_source = counts.by_source.get_mut(&self.source)?;
        if all_unknown >= MAX_UNKNOWN || of_source.connections.unknown >= MAX_UNKNOWN_OF_SOURCE {
            return None;
        }
        of_source.connections.unknown += 1;
        counts.all.unknown += 1;
        drop(counts);
        self.is_unknown = true;
        Some(self)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.locked();
        let give_back = |connections: &mut Connections| {
            connections.held -= 1;
            connections.unknown -= usize::from(self.is_unknown);
            connections.held
        };
        give_back(&mut counts.all);
        let left =
            counts.by_source.get_mut(&self.source).map(|source| give_back(&mut source.connections));
        if left == Some(0) {
            counts.by_source.remove(&self.source);
        }
    }
}

/// One customer is one IPv4 address, or one /64 of IPv6.
fn source_of(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V4(addr) => IpAddr::V4(addr),
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX))),
    }
}

/// What waits costs a descriptor and the kernel's buffers.
const MAX_HELD: usize = 8192;
/// Nodes of one machine, or behind one address translator, come back together.
const MAX_HELD_OF_SOURCE: usize = 4096;
/// A handshake needs some 50 KB and half a millisecond of a processor; while all of them are computed at
/// once, an election must not time out.
const MAX_HANDSHAKES: usize = 64;
const MAX_HANDSHAKES_OF_SOURCE: usize = 32;
/// Hosts that join, beside those that shake hands.
const MAX_UNKNOWN: usize = 256;
const MAX_UNKNOWN_OF_SOURCE: usize = 64;
const MAX_WRONG: u32 = 10;
const PENALTY: Duration = Duration::from_secs(60);
const MAX_NOTED: usize = 4096;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn admitted(
        admission: &Arc<Admission>,
        most: usize,
        source: impl Fn(usize) -> IpAddr,
    ) -> Vec<Admitted> {
        (0..most).map_while(|n| admission.admit(source(n))).collect()
    }

    #[test]
    fn one_source_does_not_take_all_connections() {
        let admission = Arc::new(Admission::default());
        let held = admitted(&admission, MAX_HELD, |_| SOURCE);
        assert_eq!(held.len(), MAX_HELD_OF_SOURCE);
        assert!(admission.admit("::ffff:192.0.2.1".parse().unwrap()).is_none(), "the same host");
        assert!(admission.admit("192.0.2.2".parse().unwrap()).is_some());
        drop(held);
        assert!(admission.admit(SOURCE).is_some());
        assert!(admission.locked().by_source.is_empty());
    }

    #[test]
    fn all_sources_together_are_bounded() {
        let admission = Arc::new(Admission::default());
        let held = admitted(&admission, 2 * MAX_HELD, |n| [10, 0, 0, (n % 200) as u8].into());
        assert_eq!(held.len(), MAX_HELD);
    }

    #[tokio::test]
    async fn handshakes_of_one_source_wait_for_each_other_and_not_those_of_another() {
        let admission = Arc::new(Admission::default());
        let held = admitted(&admission, MAX_HANDSHAKES_OF_SOURCE + 1, |_| SOURCE);
        let (last, others) = held.split_last().unwrap();
        let mut turns = Vec::new();
        for other in others {
            turns.push(other.turn().await.unwrap());
        }
        assert!(poll_once(last.turn()).await.is_none());
        let other = admission.admit("192.0.2.2".parse().unwrap()).unwrap();
        assert!(poll_once(other.turn()).await.is_some());
        turns.pop();
        assert!(poll_once(last.turn()).await.is_some());
    }

    #[test]
    fn who_joins_leaves_room_for_the_handshakes_of_nodes() {
        let admission = Arc::new(Admission::default());
        let held = admitted(&admission, 2 * MAX_UNKNOWN_OF_SOURCE, |_| SOURCE);
        let staying: Vec<_> = held.into_iter().filter_map(Admitted::stay).collect();
        assert_eq!(staying.len(), MAX_UNKNOWN_OF_SOURCE);
        let node = admission.admit(SOURCE).unwrap();
        assert_eq!(node.turns.available_permits(), MAX_HANDSHAKES_OF_SOURCE);
        drop(staying);
        assert_eq!(admission.locked().all.unknown, 0);
        assert!(node.stay().is_some());
    }

    async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }

    #[test]
    fn wrong_tokens_are_limited_for_a_while() {
        let admission = Admission::default();
        let (source, start) = ("2001:db8::1".parse().unwrap(), Instant::now());
        for _ in 0..MAX_WRONG {
            assert!(admission.may_try(source, start));
            admission.note_wrong(source, start);
        }
        assert!(!admission.may_try("2001:db8::2".parse().unwrap(), start), "the same /64");
        assert!(admission.may_try("2001:db8:0:1::1".parse().unwrap(), start));
        assert!(admission.may_try(source, start + PENALTY));
    }
}
