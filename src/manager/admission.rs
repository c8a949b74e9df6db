//! Bounds what hosts without a certificate can make a manager do: how many connections they hold
//! at once, together and from one address, and how often they try tokens and keys.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The bounds and what stands against them.
#[derive(Default)]
pub struct Admission {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: usize,
    by_source: BTreeMap<IpAddr, usize>,
    wrong: BTreeMap<IpAddr, Wrong>,
}

struct Wrong {
    count: u32,
    since: Instant,
}

/// The right to hold one connection without a certificate; dropping it gives it back.
pub struct Admitted {
    admission: Arc<Admission>,
    source: IpAddr,
}

impl Admission {
    /// Admits a connection, unless there are too many.
    pub fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Admitted> {
        let source = source_of(source);
        let mut counts = self.locked();
        let of_source = counts.by_source.get(&source).copied().unwrap_or(0);
        if counts.connections >= MAX_CONNECTIONS || of_source >= MAX_OF_SOURCE {
            return None;
        }
        counts.connections += 1;
        counts.by_source.insert(source, of_source + 1);
        Some(Admitted { admission: self.clone(), source })
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

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.locked();
        counts.connections -= 1;
        let left = counts.by_source.get_mut(&self.source).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
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

/// A handshake needs some 50 KB; all of them together stay below 16 MB.
const MAX_CONNECTIONS: usize = 256;
/// Hosts behind one address translator start together.
const MAX_OF_SOURCE: usize = 64;
const MAX_WRONG: u32 = 10;
const PENALTY: Duration = Duration::from_secs(60);
const MAX_NOTED: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_does_not_take_all_connections() {
        let admission = Arc::new(Admission::default());
        let source = "192.0.2.1".parse().unwrap();
        let held: Vec<_> = (0..MAX_OF_SOURCE).filter_map(|_| admission.admit(source)).collect();
        assert_eq!(held.len(), MAX_OF_SOURCE);
        assert!(admission.admit(source).is_none());
        assert!(admission.admit("::ffff:192.0.2.1".parse().unwrap()).is_none(), "the same host");
        assert!(admission.admit("192.0.2.2".parse().unwrap()).is_some());
        drop(held);
        assert!(admission.admit(source).is_some());
        assert!(admission.locked().by_source.is_empty());
    }

    #[test]
    fn all_sources_together_are_bounded() {
        let admission = Arc::new(Admission::default());
        let source = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n % 200).unwrap()]);
        let held: Vec<_> = (0..1000).filter_map(|n| admission.admit(source(n))).collect();
        assert_eq!(held.len(), MAX_CONNECTIONS);
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
