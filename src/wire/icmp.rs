//! What the virtual gateway host of a network says: echo replies and errors (RFC 792, RFC 4443).
//! Answers are written into the caller's buffer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv4Repr,
        Ipv6Packet, Ipv6Repr,
    },
};

use super::inner::{Fragment, Inner, protocol};

/// The longest error: IPv6's minimum MTU (RFC 4443, section 2.4 c).
pub const MAX_ERROR_LEN: usize = 1280;

/// An error about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody has the destination address.
    HostUnreachable,
    /// The destination is outside the network and there is no way out.
    NetworkUnreachable,
    /// The packet is larger than the path, which carries so many bytes.
    TooBig {
        /// The path's MTU for inner packets.
        mtu: u16,
    },
}

/// Whether the packet is a whole echo request.
pub fn is_echo_request(packet: &[u8], inner: &Inner) -> bool {
    let kind = packet.get(usize::from(inner.transport)).copied();
    inner.fragment == Fragment::Whole
        && match inner.protocol {
            protocol::ICMP => inner.is_ipv4() && kind == Some(ECHO_REQUEST_V4),
            protocol::ICMPV6 => !inner.is_ipv4() && kind == Some(ECHO_REQUEST_V6),
            _ => false,
        }
}

/// Writes the reply to an echo request and returns its length; `None` if `out` is too short or the
/// packet is no echo request.
pub fn echo_reply(packet: &[u8], inner: &Inner, out: &mut [u8]) -> Option<usize> {
    let body = packet.get(usize::from(inner.transport)..)?;
    if !is_echo_request(packet, inner) || body.len() < ICMP_HEADER_LEN {
        return None;
    }
    let (data_kind, rest) = ([body[4], body[5], body[6], body[7]], &body[ICMP_HEADER_LEN..]);
    match (inner.destination, inner.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            write_v4(from, to, (Icmpv4Message::EchoReply, 0), data_kind, rest, out)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            write_v6(from, to, (Icmpv6Message::EchoReply, 0), data_kind, rest, out)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// Writes an error about `packet`, sent by `gateway` to the packet's source, and returns its
/// length. `None` where no error may be sent (RFC 1122, section 3.2.2; RFC 4443, section 2.4 e):
/// about another error, about a later fragment, or to no single host.
pub fn error(
    error: IcmpError,
    gateway: IpAddr,
    packet: &[u8],
    inner: &Inner,
    out: &mut [u8],
) -> Option<usize> {
    if inner.fragment == Fragment::Later || is_error(packet, inner) || !is_single(inner.source) {
        return None;
    }
    match (gateway, inner.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (code, mtu) = match error {
                IcmpError::NetworkUnreachable => (0, 0),
                IcmpError::HostUnreachable => (1, 0),
                IcmpError::TooBig { mtu } => (4, mtu),
            };
            let [high, low] = mtu.to_be_bytes();
            // RFC 1812, section 4.3.2.3: as much as fits in 576 bytes.
            let quoted = &packet[..packet.len().min(576 - 28)];
            let what = (Icmpv4Message::DstUnreachable, code);
            write_v4(from, to, what, [0, 0, high, low], quoted, out)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (what, word) = match error {
                IcmpError::NetworkUnreachable => ((Icmpv6Message::DstUnreachable, 0), 0),
                IcmpError::HostUnreachable => ((Icmpv6Message::DstUnreachable, 3), 0),
                IcmpError::TooBig { mtu } => ((Icmpv6Message::PktTooBig, 0), u32::from(mtu)),
            };
            let quoted = &packet[..packet.len().min(MAX_ERROR_LEN - 48)];
            write_v6(from, to, what, word.to_be_bytes(), quoted, out)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

fn is_error(packet: &[u8], inner: &Inner) -> bool {
    let kind = packet.get(usize::from(inner.transport)).copied();
    match (inner.protocol, kind) {
        (protocol::ICMP, Some(kind)) => !matches!(kind, 0 | 8 | 13 | 14),
        (protocol::ICMPV6, Some(kind)) => kind < 128,
        (protocol::ICMP | protocol::ICMPV6, None) => true,
        (_, _) => false,
    }
}

fn is_single(source: IpAddr) -> bool {
    let broadcast = source == IpAddr::V4(Ipv4Addr::BROADCAST);
    !source.is_unspecified() && !source.is_multicast() && !broadcast
}

fn write_v4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    (kind, code): (Icmpv4Message, u8),
    word: [u8; 4],
    data: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let body_len = ICMP_HEADER_LEN + data.len();
    let total = 20 + body_len;
    let out = out.get_mut(..total)?;
    let repr = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmp,
        payload_len: body_len,
        hop_limit: HOP_LIMIT,
    };
    repr.emit(&mut Ipv4Packet::new_unchecked(&mut *out), &ChecksumCapabilities::default());
    let body = &mut out[20..];
    body[4..8].copy_from_slice(&word);
    body[8..].copy_from_slice(data);
    let mut icmp = Icmpv4Packet::new_unchecked(body);
    icmp.set_msg_type(kind);
    icmp.set_msg_code(code);
    icmp.fill_checksum();
    Some(total)
}

fn write_v6(
    from: Ipv6Addr,
    to: Ipv6Addr,
    (kind, code): (Icmpv6Message, u8),
    word: [u8; 4],
    data: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let body_len = ICMP_HEADER_LEN + data.len();
    let total = 40 + body_len;
    let out = out.get_mut(..total)?;
    let repr = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: body_len,
        hop_limit: HOP_LIMIT,
    };
    repr.emit(&mut Ipv6Packet::new_unchecked(&mut *out));
    let body = &mut out[40..];
    body[4..8].copy_from_slice(&word);
    body[8..].copy_from_slice(data);
    let mut icmp = Icmpv6Packet::new_unchecked(body);
    icmp.set_msg_type(kind);
    icmp.set_msg_code(code);
    icmp.fill_checksum(&from, &to);
    Some(total)
}

const ICMP_HEADER_LEN: usize = 8;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const HOP_LIMIT: u8 = 64;

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;

    fn echo_v4(data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .icmpv4_echo_request(7, 9)
            .write(&mut packet, data)
            .unwrap();
        packet
    }

    fn echo_v6(data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
            .icmpv6_echo_request(7, 9)
            .write(&mut packet, data)
            .unwrap();
        packet
    }

    #[test]
    fn echo_requests_are_answered_with_their_data() {
        let mut out = [0; 2000];
        let packet = echo_v4(b"hello");
        let len = echo_reply(&packet, &Inner::parse(&packet).unwrap(), &mut out).unwrap();
        {
            let slices = SlicedPacket::from_ip(&out[..len]).unwrap();
            let Some(TransportSlice::Icmpv4(icmp)) = slices.transport else { panic!() };
            let Icmpv4Type::EchoReply(header) = icmp.icmp_type() else { panic!() };
            assert_eq!((header.id, header.seq, icmp.payload()), (7, 9, &b"hello"[..]));
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(b"hello"));
        }
        let ip = Inner::parse(&out[..len]).unwrap();
        assert_eq!(ip.source.to_string(), "10.0.0.1");
        assert_eq!(ip.destination.to_string(), "10.0.0.2");

        let packet = echo_v6(b"hello");
        let len = echo_reply(&packet, &Inner::parse(&packet).unwrap(), &mut out).unwrap();
        let slices = SlicedPacket::from_ip(&out[..len]).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = slices.transport else { panic!() };
        assert!(icmp.is_checksum_valid([0xfe; 16], [0xfd; 16]));
        let Icmpv6Type::EchoReply(header) = icmp.icmp_type() else { panic!() };
        assert_eq!((header.id, header.seq, icmp.payload()), (7, 9, &b"hello"[..]));
    }

    #[test]
    fn a_buffer_that_is_too_short_gets_nothing() {
        let packet = echo_v4(&[0; 100]);
        assert_eq!(echo_reply(&packet, &Inner::parse(&packet).unwrap(), &mut [0; 100]), None);
    }

    #[test]
    fn too_big_names_the_mtu_and_quotes_the_packet() {
        let mut out = [0; MAX_ERROR_LEN];
        let packet = echo_v4(&[1; 1400]);
        let inner = Inner::parse(&packet).unwrap();
        let too_big = IcmpError::TooBig { mtu: 1300 };
        let len = error(too_big, [10, 0, 0, 1].into(), &packet, &inner, &mut out).unwrap();
        assert_eq!(len, 576);
        assert_eq!((out[20], out[21]), (3, 4));
        assert_eq!(out[26..28], 1300u16.to_be_bytes());
        assert_eq!(out[28..576], packet[..548]);

        let packet = echo_v6(&[1; 1400]);
        let inner = Inner::parse(&packet).unwrap();
        let gateway = IpAddr::from([0xfe; 16]);
        let len = error(too_big, gateway, &packet, &inner, &mut out).unwrap();
        assert_eq!(len, 1280);
        assert_eq!((out[40], out[41]), (2, 0));
        assert_eq!(out[44..48], 1300u32.to_be_bytes());
        let slices = SlicedPacket::from_ip(&out[..len]).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = slices.transport else { panic!() };
        assert!(icmp.is_checksum_valid([0xfe; 16], [0xfd; 16]));
    }

    #[test]
    fn no_error_about_an_error_or_to_a_group() {
        let mut out = [0; MAX_ERROR_LEN];
        let mut packet = echo_v4(b"hello");
        let gateway = [10, 0, 0, 1].into();
        let host = IcmpError::HostUnreachable;
        let good = Inner::parse(&packet).unwrap();
        assert!(error(host, gateway, &packet, &good, &mut out).is_some());
        let group = Inner { source: [224, 0, 0, 1].into(), ..good };
        assert_eq!(error(host, gateway, &packet, &group, &mut out), None);
        let later = Inner { fragment: Fragment::Later, ..good };
        assert_eq!(error(host, gateway, &packet, &later, &mut out), None);
        packet[20] = 3;
        assert_eq!(error(host, gateway, &packet, &good, &mut out), None);
    }
}
