//! The bounds of everything that the cluster's state holds.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::refusal::Refusal;

/// Ten thousand hosts is what the cluster is made for; this leaves room for those on their way.
pub const MAX_NODES: usize = 16_384;
/// What one manager hears of its agents; more nodes have a longer heartbeat.
pub const HEARTBEATS_A_SECOND: usize = 1000;
/// As many as a pool of 10.0.0.0/8 has subnets of 256 addresses.
pub const MAX_NETWORKS: usize = 65_536;
/// Ten times what a node of a full cluster is expected to run on average.
pub const MAX_ENDPOINTS: usize = 1_048_576;
/// Names of one endpoint beside its own.
pub const MAX_ALIASES: usize = 16;
/// Labels of one object.
pub const MAX_LABELS: usize = 64;
/// Keys and values of one object's labels together.
pub const MAX_LABEL_BYTES: usize = 16_384;
/// Subnets that one node may report as its underlay; further ones are not looked at.
pub const MAX_UNDERLAYS: usize = 64;
/// Join tokens with an end. More are hardly meant, and a standing one does for many nodes.
pub const MAX_TOKENS: usize = 1024;
/// Roots that nodes find their way from that were down since; each is 1 KB in every handshake.
pub const MAX_FORMER_ROOTS: usize = 4;
/// What `--mtu` takes: 576 is what every IPv4 host must receive (RFC 791, section 3.1); the upper
/// end leaves room for the envelope in the largest datagram.
pub const MTU_RANGE: RangeInclusive<u16> = 576..=65_407;
/// The smallest MTU that IPv6 works with (RFC 8200, section 5).
pub const MIN_MTU_IPV6: u16 = 1280;
/// Serial identifiers start above what Docker and the kernel's users take by hand.
pub const FIRST_VNI: u32 = 4097;

/// Checks the size of an object's labels.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if labels.len() > MAX_LABELS || bytes > MAX_LABEL_BYTES || labels.contains_key("") {
        return Err(Refusal::LabelsTooLarge);
    }
    Ok(())
}
