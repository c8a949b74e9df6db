//! The bounds of everything that the cluster's state holds.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use super::refusal::Refusal;

/// Ten thousand hosts is what the cluster is made for; this leaves room for those on their way.
pub const MAX_NODES: usize = 16_384;
/// What one manager hears of its agents; more nodes have a longer heartbeat.
pub const HEARTBEATS_A_SECOND: usize = 1000;
/// As many as a pool of 10.0.0.0/8 has subnets of 256 addresses.
pub const MAX_NETWORKS: usize = 65_536;
/// Ten times what a node of a full cluster is expected to run on average.
pub const MAX_ENDPOINTS: usize = 1_048_576;
/// As many as a cluster has networks.
pub const MAX_SERVICES: usize = 65_536;
/// Tasks that services may want together: sixteen on every node.
pub const MAX_TASKS: usize = 262_144;
/// Tasks in the state, with those that have ended and are kept to be looked at: six a slot.
pub const MAX_TASKS_KEPT: usize = 6 * MAX_TASKS;
/// A task's command, environment and paths together.
pub const MAX_DEFINITION_BYTES: usize = 65_536;
/// Networks of one task.
pub const MAX_TASK_NETWORKS: usize = 16;
/// Mounts of one task.
pub const MAX_MOUNTS: usize = 64;
/// Labels that a service's tasks spread over.
pub const MAX_SPREAD: usize = 8;
/// The longest of all times in a definition.
pub const MAX_TIME: Duration = Duration::from_secs(30 * 86_400);
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
