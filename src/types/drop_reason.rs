//! Why a packet was not forwarded. Every reason has a counter and a name in `stats` and `peers`.

/// The reason of one drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// The datagram is shorter than its kind's layout, or its clear header is bent.
    Malformed,
    /// The envelope's version is not ours.
    VersionUnknown,
    /// No session has this receiver index.
    UnknownSession,
    /// The lane is beyond what the peer stated.
    LaneUnknown,
    /// The seal did not open.
    NotAuthentic,
    /// The counter was seen before, or is older than the replay window.
    Replay,
    /// The key is older than sessions may be.
    KeyExpired,
    /// The sealed next protocol is none that we know.
    ProtocolUnknown,
    /// The VNI is no network that both this node and the peer take part in.
    UnknownVni,
    /// The inner source address does not belong to its sender on that network.
    SpoofedSource,
    /// The inner packet's header is bent.
    InnerMalformed,
    /// Link-local, multicast and broadcast noise, which an L3 network does not carry.
    LinkLocal,
    /// Nobody has the inner destination address; the sender was told by ICMP.
    NoEndpoint,
    /// The packet is larger than the path; the sender was told by ICMP.
    TooBig,
    /// Pieces of a packet did not come, or did not fit together.
    Reassembly,
    /// There is no session with the peer yet and the queue that waits for it is full.
    NoSession,
    /// The peer has left the table.
    NoPeer,
    /// The UDP socket refused the datagram.
    SendFailed,
    /// The container's interface refused the packet.
    DeliverFailed,
    /// The container's interface gave a virtio_net_hdr that does not fit its packet.
    VnetMalformed,
    /// The gateway host does not offer what the packet asks for.
    GatewayRefused,
    /// A handshake that does not verify, or that is older than one already seen.
    HandshakeInvalid,
    /// A handshake beyond what is handled under load.
    HandshakeOverload,
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 23] = [
        Self::Malformed,
        Self::VersionUnknown,
        Self::UnknownSession,
        Self::LaneUnknown,
        Self::NotAuthentic,
        Self::Replay,
        Self::KeyExpired,
        Self::ProtocolUnknown,
        Self::UnknownVni,
        Self::SpoofedSource,
        Self::InnerMalformed,
        Self::LinkLocal,
        Self::NoEndpoint,
        Self::TooBig,
        Self::Reassembly,
        Self::NoSession,
        Self::NoPeer,
        Self::SendFailed,
        Self::DeliverFailed,
        Self::VnetMalformed,
        Self::GatewayRefused,
        Self::HandshakeInvalid,
        Self::HandshakeOverload,
    ];

    /// Returns the name of the counter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::VersionUnknown => "version_unknown",
            Self::UnknownSession => "unknown_session",
            Self::LaneUnknown => "lane_unknown",
            Self::NotAuthentic => "not_authentic",
            Self::Replay => "replay",
            Self::KeyExpired => "key_expired",
            Self::ProtocolUnknown => "protocol_unknown",
            Self::UnknownVni => "unknown_vni",
            Self::SpoofedSource => "spoofed_source",
            Self::InnerMalformed => "inner_malformed",
            Self::LinkLocal => "link_local",
            Self::NoEndpoint => "no_endpoint",
            Self::TooBig => "too_big",
            Self::Reassembly => "reassembly",
            Self::NoSession => "no_session",
            Self::NoPeer => "no_peer",
            Self::SendFailed => "send_failed",
            Self::DeliverFailed => "deliver_failed",
            Self::VnetMalformed => "vnet_malformed",
            Self::GatewayRefused => "gateway_refused",
            Self::HandshakeInvalid => "handshake_invalid",
            Self::HandshakeOverload => "handshake_overload",
        }
    }
}

/// One count a reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounts([u64; DropReason::COUNT]);

impl DropCounts {
    /// Returns the count of one reason.
    pub fn count(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Adds to the count of one reason.
    pub fn add(&mut self, reason: DropReason, packets: u64) {
        self.0[reason as usize] += packets;
    }

    /// Adds all counts of another.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Returns the sum over all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Lists each reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.count(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_order_agree_and_names_are_unique() {
        let mut names = Vec::new();
        for (number, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            names.push(reason.name());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
