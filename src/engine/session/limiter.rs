//! Limits handshakes by source, with a fixed amount of memory: a table of token buckets indexed by
//! a keyed hash of the source's prefix (an IPv4 address, an IPv6 /64). Sources that share a bucket
//! share its tokens; without the key nobody can choose with whom.

use std::{net::IpAddr, time::Duration};

use crate::types::Moment;

/// The buckets.
pub(super) struct Limiter {
    key: [u64; 2],
    buckets: Box<[Bucket]>,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// When the bucket will be full again, in nanoseconds.
    full_at: u64,
}

impl Limiter {
    /// All buckets full, under a key that the caller drew.
    pub(super) fn new(key: [u64; 2]) -> Self {
        Self { key, buckets: vec![Bucket { full_at: 0 }; BUCKETS].into_boxed_slice() }
    }

    /// Takes a token of the source's bucket.
    pub(super) fn admit(&mut self, source: IpAddr, now: Moment) -> bool {
        let place = self.place(source);
        let bucket = &mut self.buckets[place];
        let now = now.as_nanos();
        let filled = bucket.full_at.max(now);
        let after = filled + INTERVAL.as_nanos() as u64;
        if after - now > BURST * INTERVAL.as_nanos() as u64 {
            return false;
        }
        bucket.full_at = after;
        true
    }

    fn place(&self, source: IpAddr) -> usize {
        let prefix = match source {
            IpAddr::V4(v4) => u64::from(u32::from(v4)),
            IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64,
        };
        // Two rounds of multiply and fold under a secret key: an attacker who does not see which
        // bucket he hits learns nothing to build collisions with.
        let a = fold(prefix ^ self.key[0], 0x9e37_79b9_7f4a_7c15 ^ self.key[1]);
        (fold(a ^ self.key[1], 0xd6e8_feb8_6659_fd93) % BUCKETS as u64) as usize
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b | 1);
    (wide >> 64) as u64 ^ wide as u64
}

/// 512 KiB, whatever the number of sources.
const BUCKETS: usize = 65_536;
/// 20 handshakes a second and source, as WireGuard has it.
const INTERVAL: Duration = Duration::from_millis(50);
/// At once.
const BURST: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_a_burst_and_then_a_rate() {
        let mut limiter = Limiter::new([1, 2]);
        let source = IpAddr::from([10, 0, 0, 1]);
        let at = |ms: u64| Moment::from_nanos(1_000_000_000 + ms * 1_000_000);
        for _ in 0..5 {
            assert!(limiter.admit(source, at(0)));
        }
        assert!(!limiter.admit(source, at(0)));
        assert!(!limiter.admit(source, at(49)));
        assert!(limiter.admit(source, at(50)));
        assert!(!limiter.admit(source, at(50)));
        assert!(limiter.admit(IpAddr::from([10, 0, 0, 2]), at(50)), "another source");
        for _ in 0..5 {
            assert!(limiter.admit(source, at(1000)));
        }
        assert!(!limiter.admit(source, at(1000)));
    }

    #[test]
    fn an_ipv6_prefix_is_one_source() {
        let mut limiter = Limiter::new([1, 2]);
        let admitted = (0..100u16)
            .filter(|&i| {
                limiter.admit(IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, i]), Moment::from_nanos(1))
            })
            .count();
        assert_eq!(admitted, 5);
    }
}
