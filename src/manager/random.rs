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
