//! The manager's random source: ids, keys and secrets are drawn here and stand in commands.

use std::net::Ipv6Addr;

use aws_lc_rs::rand;
use ipnet::Ipv6Net;
use rand_core::{RngCore, impls};

use crate::types::Id;

/// Draws `N` bytes.
///
/// # Errors
/// The system's random source fails.
pub(super) fn bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    #[cfg(feature = "plant")]
    if seeded::fill(&mut bytes) {
        return Ok(bytes);
    }
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the random source of the system fails"))?;
    Ok(bytes)
}

/// Draws an id.
///
/// # Errors
/// The system's random source fails.
pub(super) fn id<K>() -> anyhow::Result<Id<K>> {
    bytes().map(Id::from_bytes)
}

/// Draws a /48 of fd00::/8 (RFC 4193, section 3.2).
///
/// # Errors
/// The system's random source fails.
pub(super) fn ula() -> anyhow::Result<Ipv6Net> {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&bytes::<5>()?);
    Ok(Ipv6Net::new_assert(Ipv6Addr::from(octets), 48))
}

/// The source as openraft draws from it, which is how long it waits for a leader.
pub struct Source;

impl RngCore for Source {
    fn next_u32(&mut self) -> u32 {
        impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        for part in into.chunks_mut(16) {
            // Without a source there are no ids, and nothing is proposed; elections only meet.
            let drawn = bytes::<16>().unwrap_or_default();
            part.copy_from_slice(&drawn[..part.len()]);
        }
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(into);
        Ok(())
    }
}

/// What a thread draws when a test has given it a seed.
#[cfg(feature = "plant")]
pub mod seeded {
    use std::cell::Cell;

    use aws_lc_rs::digest::{SHA256, digest};

    thread_local! {
        static DRAWN: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    }

    /// Has all that the manager draws on this thread from now on come from a seed.
    pub fn set(seed: u64) {
        DRAWN.set(Some((seed, 0)));
    }

    /// Fills from the seed, if there is one.
    pub(super) fn fill(into: &mut [u8]) -> bool {
        let Some((seed, mut count)) = DRAWN.get() else { return false };
        for part in into.chunks_mut(32) {
            let drawn = digest(&SHA256, &[seed.to_be_bytes(), count.to_be_bytes()].concat());
            part.copy_from_slice(&drawn.as_ref()[..part.len()]);
            count += 1;
        }
        DRAWN.set(Some((seed, count)));
        true
    }
}
