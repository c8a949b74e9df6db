//! The inner packet, parsed once: addresses, flow, and where the transport header stands.
//!
//! The IPv4 header's checksum is not verified here; the receiving stack does that. Lengths are:
//! a packet is taken only if its IP length is exactly the bytes that there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Transport protocol numbers that the data plane looks into.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// Why bytes are no inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerError {
    /// The version is neither 4 nor 6.
    Version,
    /// A length does not fit the bytes that there are.
    Length,
    /// A chain of IPv6 extension headers that is longer than any real one, or bent.
    Extensions,
}

/// Whether the packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    Whole,
    /// It is the first fragment: the transport header is there, the data is not all there.
    First,
    /// It is a later fragment: there is no transport header.
    Later,
}

/// What the data plane needs to know of one packet. Offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// Where the transport header starts.
    pub transport: u16,
    /// Where the data after a TCP or UDP header starts; else as `transport`.
    pub payload: u16,
    /// The packet's length.
    pub len: u16,
    /// Source and destination port of TCP and UDP, else 0.
    pub ports: (u16, u16),
    /// The second byte of the TCP flags word, else 0.
    pub tcp_flags: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Whether a router may not fragment it: IPv6, or IPv4 with DF.
    pub dont_fragment: bool,
}

/// TCP flags as they stand in byte 13 of the header.
pub mod tcp_flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledgement valid.
    pub const ACK: u8 = 0x10;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

impl Inner {
    /// Parses an IP packet.
    pub fn parse(packet: &[u8]) -> Result<Self, InnerError> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            Some(_) => Err(InnerError::Version),
            None => Err(InnerError::Length),
        }
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, InnerError> {
        let fixed: &[u8; 20] = packet.first_chunk().ok_or(InnerError::Length)?;
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        let len = u16::from_be_bytes([fixed[2], fixed[3]]);
        if header_len < 20 || usize::from(len) < header_len || usize::from(len) != packet.len() {
            return Err(InnerError::Length);
        }
        let word = u16::from_be_bytes([fixed[6], fixed[7]]);
        let fragment = match (word & 0x1fff, word & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            (_, _) => Fragment::Later,
        };
        let inner = Self {
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
            protocol: fixed[9],
            transport: header_len as u16,
            payload: header_len as u16,
            len,
            ports: (0, 0),
            tcp_flags: 0,
            fragment,
            dont_fragment: word & 0x4000 != 0,
        };
        inner.with_transport(packet)
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, InnerError> {
        let fixed: &[u8; 40] = packet.first_chunk().ok_or(InnerError::Length)?;
        let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) + 40;
        if len != packet.len() || len > usize::from(u16::MAX) {
            return Err(InnerError::Length);
        }
        let chain = walk_extensions(packet, fixed[6])?;
        let inner = Self {
            source: v6(&fixed[8..24]),
            destination: v6(&fixed[24..40]),
            protocol: chain.protocol,
            transport: chain.offset as u16,
            payload: chain.offset as u16,
            len: len as u16,
            ports: (0, 0),
            tcp_flags: 0,
            fragment: chain.fragment,
            dont_fragment: true,
        };
        inner.with_transport(packet)
    }

    /// Reads ports and flags. A later fragment has none; a first fragment that is too short for
    /// them is bent (RFC 1858, RFC 7112).
    fn with_transport(mut self, packet: &[u8]) -> Result<Self, InnerError> {
        if self.fragment == Fragment::Later {
            return Ok(self);
        }
        let header = packet.get(usize::from(self.transport)..).ok_or(InnerError::Length)?;
        match self.protocol {
            protocol::TCP => {
                let tcp: &[u8; 20] = header.first_chunk().ok_or(InnerError::Length)?;
                let header_len = usize::from(tcp[12] >> 4) * 4;
                if header_len < 20 || header_len > header.len() {
                    return Err(InnerError::Length);
                }
                self.ports = ports(tcp[0], tcp[1], tcp[2], tcp[3]);
                self.tcp_flags = tcp[13];
                self.payload += header_len as u16;
            }
            protocol::UDP => {
                let udp: &[u8; 8] = header.first_chunk().ok_or(InnerError::Length)?;
                self.ports = ports(udp[0], udp[1], udp[2], udp[3]);
                self.payload += 8;
            }
            _ => {}
        }
        Ok(self)
    }

    /// Whether the packet is IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Where the checksum field of TCP or UDP stands inside the transport header. Fragments have
    /// none that could be completed.
    pub fn checksum_offset(&self) -> Option<u16> {
        match (self.fragment, self.protocol) {
            (Fragment::Whole, protocol::TCP) => Some(16),
            (Fragment::Whole, protocol::UDP) => Some(6),
            (Fragment::Whole | Fragment::First | Fragment::Later, _) => None,
        }
    }

    /// Hashes the flow. Fragments of any kind hash on addresses alone, so that all of a datagram
    /// take one way.
    pub fn flow_hash(&self) -> u64 {
        let (source, destination) = match (self.source, self.destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => (u128::from(u32::from(s)), u128::from(u32::from(d))),
            (IpAddr::V6(s), IpAddr::V6(d)) => (u128::from(s), u128::from(d)),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => (0, 0),
        };
        let ports = match self.fragment {
            Fragment::Whole => u64::from(self.ports.0) << 16 | u64::from(self.ports.1),
            Fragment::First | Fragment::Later => 0,
        };
        let mut hash = mix(source as u64 ^ mix((source >> 64) as u64));
        hash = mix(hash ^ destination as u64 ^ mix((destination >> 64) as u64));
        mix(hash ^ ports << 8 ^ u64::from(self.protocol))
    }
}

/// The end of an IPv6 packet's chain of extension headers.
struct Chain {
    protocol: u8,
    offset: usize,
    fragment: Fragment,
}

/// Walks hop-by-hop, routing, destination and fragment headers (RFC 8200, section 4).
fn walk_extensions(packet: &[u8], first: u8) -> Result<Chain, InnerError> {
    let mut chain = Chain { protocol: first, offset: 40, fragment: Fragment::Whole };
    for _ in 0..MAX_EXTENSIONS {
        #[cfg(feature = "plant")]
        crate::plant::index(packet, chain.offset);
        let length = match chain.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let header = packet.get(chain.offset..).ok_or(InnerError::Length)?;
                let [next, length, ..] = header else { return Err(InnerError::Length) };
                chain.protocol = *next;
                (usize::from(*length) + 1) * 8
            }
            FRAGMENT => {
                let header = packet.get(chain.offset..).ok_or(InnerError::Length)?;
                let header: &[u8; 8] = header.first_chunk().ok_or(InnerError::Length)?;
                let word = u16::from_be_bytes([header[2], header[3]]);
                chain.protocol = header[0];
                match (word & 0xfff8, word & 1) {
                    // An atomic fragment (RFC 6946) is whole, but cannot carry a partial sum
                    // through every stack; it counts as a first fragment.
                    (0, _) => chain.fragment = Fragment::First,
                    (_, _) => {
                        chain.fragment = Fragment::Later;
                        chain.offset += 8;
                        return Ok(chain).and_then(|chain| inside(chain, packet));
                    }
                }
                8
            }
            _ => return inside(chain, packet),
        };
        chain.offset += length;
    }
    Err(InnerError::Extensions)
}

fn inside(chain: Chain, packet: &[u8]) -> Result<Chain, InnerError> {
    if chain.offset <= packet.len() { Ok(chain) } else { Err(InnerError::Length) }
}

fn v6(bytes: &[u8]) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    Ipv6Addr::from(octets).into()
}

fn ports(a: u8, b: u8, c: u8, d: u8) -> (u16, u16) {
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// No real packet has more than four; the kernel's own walk ends at eight too.
const MAX_EXTENSIONS: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

#[cfg(test)]
mod tests;
