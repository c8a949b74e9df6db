//! The manager's random source: ids, keys and secrets are drawn here and stand in commands.

use std::net::Ipv6Addr;

use aws_lc_rs::rand;
use ipnet::Ipv6Net;

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
