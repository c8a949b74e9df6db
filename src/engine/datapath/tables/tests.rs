//! Two networks with one subnet, three nodes.

use etherparse::PacketBuilder;

use super::*;
use crate::types::{Encap, Endpoint, Network, Peer, VersionRange};

const BLUE: u128 = 1;
const RED: u128 = 2;

fn network(id: u128, vni: u32) -> Network {
    Network {
        id: NetworkId::from_u128(id),
        name: format!("net{id}").parse().unwrap(),
        vni: Vni::new(vni).unwrap(),
        subnets: vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        gateways: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        mtu: None,
        encap: Encap::Sealed,
        internal: false,
        labels: BTreeMap::new(),
    }
}

fn endpoint(id: u128, network: u128, node: u128, host: u8) -> Endpoint {
    Endpoint {
        id: EndpointId::from_u128(id),
        name: format!("e{id}").parse().unwrap(),
        network: NetworkId::from_u128(network),
        node: NodeId::from_u128(node),
        addresses: vec![
            format!("10.0.0.{host}/24").parse().unwrap(),
            format!("fd00::{host:x}/64").parse().unwrap(),
        ],
        aliases: Vec::new(),
    }
}

fn peer(id: u128, underlay_mtu: u16) -> Peer {
    Peer {
        id: NodeId::from_u128(id),
        name: format!("n{id}").parse().unwrap(),
        data_addr: format!("192.0.2.{id}:7790").parse().unwrap(),
        underlay_mtu,
        public_key: [0; 32],
        versions: VersionRange { lowest: 1, highest: 1 },
        psks: Vec::new(),
    }
}

/// Node 1 has 10.0.0.2 and .3 on blue and .2 on red; node 2 has .4 on blue; node 3 .5 on red, and
/// .6 is an endpoint of node 1 on blue without a device.
fn tables() -> Tables {
    let mut table = Table::empty(NodeId::from_u128(1));
    for network in [network(BLUE, 100), network(RED, 200)] {
        table.networks.insert(network.id, network);
    }
    for endpoint in [
        endpoint(1, BLUE, 1, 2),
        endpoint(2, BLUE, 1, 3),
        endpoint(3, RED, 1, 2),
        endpoint(4, BLUE, 2, 4),
        endpoint(5, RED, 3, 5),
        endpoint(6, BLUE, 1, 6),
    ] {
        table.endpoints.insert(endpoint.id, endpoint);
    }
    for peer in [peer(2, 1500), peer(3, 1400)] {
        table.peers.insert(peer.id, peer);
    }
    let links = table
        .peers
        .values()
        .map(|peer| (peer.id, Arc::new(Link::new(peer.id, peer.data_addr, 1))))
        .collect();
    let ports = (1..=3).map(|id| (EndpointId::from_u128(id), PortId(id as u32))).collect();
    Tables::build(&table, &links, &ports, 1500)
}

fn udp(from: &str, to: &str, len: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let ip = PacketBuilder::ipv4(a.octets(), b.octets(), 9);
            ip.udp(1, 2).write(&mut packet, &vec![0; len - 28]).unwrap();
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let ip = PacketBuilder::ipv6(a.octets(), b.octets(), 9);
            ip.udp(1, 2).write(&mut packet, &vec![0; len - 48]).unwrap();
        }
        _ => panic!("one family"),
    }
    packet
}

fn outbound(port: u32, from: &str, to: &str, len: usize) -> Verdict {
    let packet = udp(from, to, len);
    let inner = Inner::parse(&packet).unwrap();
    tables().outbound(PortId(port), &packet, &inner, Segmentation::None)
}

fn error(error: IcmpError, gateway: &str, reason: DropReason) -> Verdict {
    Verdict::Reply(Reply::Error { error, gateway: gateway.parse().unwrap(), reason })
}

#[test]
fn packets_go_to_who_has_the_address_on_the_network_of_the_sender() {
    let blue = Vni::new(100).unwrap();
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.4", 100), Verdict::Send { peer: 0, vni: blue });
    assert_eq!(outbound(1, "fd00::2", "fd00::4", 100), Verdict::Send { peer: 0, vni: blue });
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.3", 100), Verdict::Deliver(PortId(2)));
    let nobody = error(IcmpError::HostUnreachable, "10.0.0.1", DropReason::NoEndpoint);
    assert_eq!(outbound(3, "10.0.0.2", "10.0.0.4", 100), nobody, "another network's");
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.5", 100), nobody, "another network's");
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.6", 100), nobody, "no device");
    let away = error(IcmpError::NetworkUnreachable, "fd00::1", DropReason::NoEndpoint);
    assert_eq!(outbound(1, "fd00::2", "fd01::1", 100), away);
}

#[test]
fn what_a_container_may_not_send() {
    let spoofed = Verdict::Drop(DropReason::SpoofedSource);
    assert_eq!(outbound(1, "10.0.0.3", "10.0.0.4", 100), spoofed);
    let noise = Verdict::Drop(DropReason::LinkLocal);
    assert_eq!(outbound(1, "10.0.0.2", "224.0.0.251", 100), noise);
    assert_eq!(outbound(1, "10.0.0.2", "255.255.255.255", 100), noise);
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.255", 100), noise);
    assert_eq!(outbound(1, "fe80::1", "ff02::2", 100), noise);
    let refused = Verdict::Drop(DropReason::GatewayRefused);
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.1", 100), refused);
    assert_eq!(outbound(9, "10.0.0.2", "10.0.0.4", 100), Verdict::Drop(DropReason::NoEndpoint));
}

#[test]
fn the_gateway_answers_echoes() {
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 9)
        .icmpv4_echo_request(1, 1)
        .write(&mut packet, &[0; 56])
        .unwrap();
    let inner = Inner::parse(&packet).unwrap();
    let verdict = tables().outbound(PortId(1), &packet, &inner, Segmentation::None);
    assert_eq!(verdict, Verdict::Reply(Reply::Echo));
}

#[test]
fn what_is_larger_than_the_path_is_too_big() {
    let fits = Verdict::Send { peer: 0, vni: Vni::new(100).unwrap() };
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.4", 1436), fits);
    let mtu = IcmpError::TooBig { mtu: 1436 };
    let refused = error(mtu, "10.0.0.1", DropReason::TooBig);
    assert_eq!(outbound(1, "10.0.0.2", "10.0.0.4", 1437), refused);
    let mtu = IcmpError::TooBig { mtu: 1336 };
    let refused = error(mtu, "10.0.0.1", DropReason::TooBig);
    assert_eq!(outbound(3, "10.0.0.2", "10.0.0.5", 1337), refused);

    let packet = udp("10.0.0.2", "10.0.0.4", 9000);
    let inner = Inner::parse(&packet).unwrap();
    let tables = tables();
    let super_packet = |how| tables.outbound(PortId(1), &packet, &inner, how);
    assert_eq!(super_packet(Segmentation::Udp(1408)), fits);
    assert_ne!(super_packet(Segmentation::Udp(1409)), fits);
}

#[test]
fn a_packet_is_taken_only_from_the_node_that_has_its_source() {
    let tables = tables();
    let take = |node: u128, vni: u32, from: &str, to: &str| {
        let packet = udp(from, to, 100);
        let inner = Inner::parse(&packet).unwrap();
        tables.inbound(NodeId::from_u128(node), Vni::new(vni).unwrap(), &inner)
    };
    assert_eq!(take(2, 100, "10.0.0.4", "10.0.0.2"), Ok(PortId(1)));
    assert_eq!(take(3, 200, "fd00::5", "fd00::2"), Ok(PortId(3)));
    assert_eq!(take(2, 100, "10.0.0.9", "10.0.0.2"), Err(DropReason::SpoofedSource));
    assert_eq!(take(2, 100, "10.0.0.3", "10.0.0.2"), Err(DropReason::SpoofedSource));
    assert_eq!(take(2, 100, "10.0.0.1", "10.0.0.2"), Err(DropReason::SpoofedSource));
    assert_eq!(take(3, 100, "10.0.0.4", "10.0.0.2"), Err(DropReason::UnknownVni));
    assert_eq!(take(2, 200, "10.0.0.4", "10.0.0.2"), Err(DropReason::UnknownVni));
    assert_eq!(take(2, 300, "10.0.0.4", "10.0.0.2"), Err(DropReason::UnknownVni));
    assert_eq!(take(2, 100, "10.0.0.4", "10.0.0.6"), Err(DropReason::NoEndpoint));
    assert_eq!(take(2, 100, "10.0.0.4", "10.0.0.4"), Err(DropReason::NoEndpoint));
}

#[test]
fn a_peer_is_found_by_its_address_and_has_few_places() {
    let tables = tables();
    let find = |text: &str| tables.find_address(text.parse().unwrap());
    assert!(find("192.0.2.2:7791").is_none() && find("192.0.2.9:7790").is_none());
    let link = &find("192.0.2.2:7790").unwrap().link;
    assert_eq!(link.peer(), NodeId::from_u128(2));
    let taken = (0..100).filter(|_| link.take_handshake_place()).count();
    assert_eq!(taken, 4);
    link.free_handshake_place();
    assert!(link.take_handshake_place() && !link.take_handshake_place());
}
