//! The parser against packets built, and read again, by etherparse.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

fn build(v6: bool, protocol: u8, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = if v6 {
        PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
    } else {
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
    };
    let mut packet = Vec::new();
    match protocol {
        protocol::TCP => {
            builder.tcp(ports.0, ports.1, 7, 64).ack(9).write(&mut packet, payload).unwrap();
        }
        _ => builder.udp(ports.0, ports.1).write(&mut packet, payload).unwrap(),
    }
    packet
}

proptest! {
    #[test]
    fn agrees_with_etherparse(v6: bool, tcp: bool, from: u16, to: u16, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let number = if tcp { protocol::TCP } else { protocol::UDP };
        let packet = build(v6, number, (from, to), &payload);
        let inner = Inner::parse(&packet).unwrap();
        let slices = SlicedPacket::from_ip(&packet).unwrap();
        let (ports, header) = match slices.transport.unwrap() {
            TransportSlice::Tcp(t) => ((t.source_port(), t.destination_port()), t.slice().len() - t.payload().len()),
            TransportSlice::Udp(u) => ((u.source_port(), u.destination_port()), 8),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(inner.ports, ports);
        prop_assert_eq!(usize::from(inner.payload - inner.transport), header);
        prop_assert_eq!(usize::from(inner.len), packet.len());
        prop_assert_eq!(&packet[usize::from(inner.payload)..], &payload[..]);
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(inner) = Inner::parse(&bytes) {
            prop_assert!(inner.transport <= inner.payload);
            prop_assert!(usize::from(inner.payload) <= bytes.len());
            prop_assert_eq!(usize::from(inner.len), bytes.len());
        }
    }

    #[test]
    fn a_cut_packet_is_refused(v6: bool, tcp: bool, cut in 1usize..60) {
        let packet = build(v6, if tcp { protocol::TCP } else { protocol::UDP }, (1, 2), &[0; 20]);
        let cut = cut.min(packet.len());
        prop_assert!(Inner::parse(&packet[..packet.len() - cut]).is_err());
    }
}

fn v6_with(extensions: &[u8], first: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, first, 64];
    packet.extend([0xfd; 32]);
    packet.extend(extensions);
    packet.extend(transport);
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet
}

const UDP_HEADER: [u8; 8] = [0, 1, 0, 2, 0, 8, 0, 0];

#[test]
fn extension_headers_are_walked() {
    let hop = [DESTINATION, 0, 1, 4, 0, 0, 0, 0];
    let destination = [protocol::UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let packet = v6_with(&[&hop[..], &destination].concat(), HOP_BY_HOP, &UDP_HEADER);
    let inner = Inner::parse(&packet).unwrap();
    assert_eq!((inner.protocol, inner.transport, inner.ports), (protocol::UDP, 64, (1, 2)));
}

#[test]
fn a_chain_without_end_and_a_chain_beyond_the_packet_are_refused() {
    let link = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0];
    let packet = v6_with(&link.repeat(20), HOP_BY_HOP, &UDP_HEADER);
    assert_eq!(Inner::parse(&packet), Err(InnerError::Extensions));
    let packet = v6_with(&[protocol::UDP, 255, 0, 0, 0, 0, 0, 0], ROUTING, &UDP_HEADER);
    assert_eq!(Inner::parse(&packet), Err(InnerError::Length));
    let packet = v6_with(&[], ROUTING, &[6]);
    assert_eq!(Inner::parse(&packet), Err(InnerError::Length));
}

#[test]
fn fragments_are_known_and_hash_alike() {
    let first = v6_with(&[protocol::UDP, 0, 0, 1, 0, 0, 0, 9], FRAGMENT, &UDP_HEADER);
    let later = v6_with(&[protocol::UDP, 0, 0, 8, 0, 0, 0, 9], FRAGMENT, &[1, 2, 3]);
    let (first, later) = (Inner::parse(&first).unwrap(), Inner::parse(&later).unwrap());
    assert_eq!((first.fragment, later.fragment), (Fragment::First, Fragment::Later));
    assert_eq!(first.flow_hash(), later.flow_hash());
    assert_eq!((first.checksum_offset(), later.checksum_offset()), (None, None));

    let mut packet = build(false, protocol::UDP, (1, 2), &[0; 8]);
    packet[6] = 0x20;
    assert_eq!(Inner::parse(&packet).unwrap().fragment, Fragment::First);
    packet[7] = 1;
    assert_eq!(Inner::parse(&packet).unwrap().fragment, Fragment::Later);
    let short = v6_with(&[protocol::UDP, 0, 0, 8, 0, 0, 0, 9], FRAGMENT, &[]);
    assert_eq!(Inner::parse(&short).unwrap().transport, 48);
}

#[test]
fn bent_headers_are_refused() {
    let good = build(false, protocol::TCP, (1, 2), &[]);
    for (place, value, error) in [
        (0, 0x44, InnerError::Length),
        (0, 0x4f, InnerError::Length),
        (0, 0x55, InnerError::Version),
        (3, 19, InnerError::Length),
        (3, 200, InnerError::Length),
        (32, 0x40, InnerError::Length),
        (32, 0xf0, InnerError::Length),
    ] {
        let mut packet = good.clone();
        packet[place] = value;
        assert_eq!(Inner::parse(&packet), Err(error), "byte {place} = {value:#x}");
    }
    assert_eq!(Inner::parse(&[]), Err(InnerError::Length));
    assert_eq!(Inner::parse(&good[..12]), Err(InnerError::Length));
    assert_eq!(Inner::parse(&[0x60; 39]), Err(InnerError::Length));
}
