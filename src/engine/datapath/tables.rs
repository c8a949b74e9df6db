//! The snapshot from which every verdict is read. It is built from the peer table whenever that
//! changes, published whole, and never edited.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use super::offload::Segmentation;
use crate::{
    engine::{membership::Table, session::Link},
    types::{DropReason, EndpointId, NetworkId, NodeId, Vni},
    wire::{
        envelope::{OVERHEAD_IPV4, OVERHEAD_IPV6},
        fragment,
        icmp::{IcmpError, is_echo_request},
        inner::Inner,
    },
};

/// Names one of this node's devices for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

/// What to do with a container's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Seal it for the peer with this number in [`Tables::peer`], on this network.
    Send {
        /// The peer's number.
        peer: usize,
        /// The network.
        vni: Vni,
    },
    /// Hand it to another device of this node.
    Deliver(PortId),
    /// The gateway host answers.
    Reply(Reply),
    /// Drop it.
    Drop(DropReason),
}

/// What the gateway host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The echo.
    Echo,
    /// An error from this address; the packet is dropped for this reason.
    Error {
        /// The error.
        error: IcmpError,
        /// Who sends it.
        gateway: IpAddr,
        /// Why the packet is dropped.
        reason: DropReason,
    },
}

/// A peer as the forwarding path needs it.
pub struct PeerRoute {
    /// The peer.
    pub id: NodeId,
    /// Its session and counters.
    pub link: Arc<Link>,
    /// The largest inner packet that one datagram of its path carries.
    pub inner_mtu: u16,
}

impl PeerRoute {
    /// The largest inner packet that reaches it, whole or in pieces.
    pub fn packet_mtu(&self) -> u16 {
        self.inner_mtu.max(MIN_INNER_MTU)
    }
}

/// The snapshot.
#[derive(Default)]
pub struct Tables {
    networks: Vec<NetworkTable>,
    by_vni: HashMap<Vni, usize>,
    peers: Vec<PeerRoute>,
    peer_numbers: HashMap<NodeId, usize>,
    by_address: HashMap<SocketAddr, usize>,
    ports: HashMap<PortId, LocalPort>,
}

struct NetworkTable {
    vni: Vni,
    subnets: Vec<IpNet>,
    gateways: Vec<IpAddr>,
    hosts: HashMap<IpAddr, Host>,
}

#[derive(Clone, Copy)]
enum Host {
    Gateway,
    Local(PortId),
    /// On this node, but its device is not there (yet, or any more).
    Detached,
    Remote(usize),
}

struct LocalPort {
    network: usize,
    addresses: Vec<IpAddr>,
}

/// No path is narrower than IPv6 needs it (RFC 8200, section 5): what does not fit one datagram goes
/// in pieces.
pub const MIN_INNER_MTU: u16 = fragment::MAX_PACKET as u16;

/// How much of an underlay packet of `underlay_mtu` bytes to `to` is left for the inner packet.
pub fn inner_mtu(underlay_mtu: u16, to: SocketAddr) -> u16 {
    let overhead = if to.is_ipv4() { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 };
    underlay_mtu.saturating_sub(overhead)
}

impl Tables {
    /// Builds the snapshot. `ports` are the devices that are there; `links` has every peer.
    pub fn build(
        table: &Table,
        links: &BTreeMap<NodeId, Arc<Link>>,
        ports: &BTreeMap<EndpointId, PortId>,
        underlay_mtu: u16,
    ) -> Self {
        let mut tables = Self::default();
        for peer in table.peers.values() {
            let Some(link) = links.get(&peer.id) else { continue };
            tables.peer_numbers.insert(peer.id, tables.peers.len());
            tables.by_address.insert(peer.data_addr, tables.peers.len());
            tables.peers.push(PeerRoute {
                id: peer.id,
                link: link.clone(),
                inner_mtu: inner_mtu(underlay_mtu.min(peer.underlay_mtu), peer.data_addr),
            });
        }
        let mut numbers: BTreeMap<NetworkId, usize> = BTreeMap::new();
        for network in table.networks.values() {
            let number = tables.networks.len();
            numbers.insert(network.id, number);
            tables.by_vni.insert(network.vni, number);
            tables.networks.push(NetworkTable {
                vni: network.vni,
                subnets: network.subnets.clone(),
                gateways: network.gateways.clone(),
                hosts: network.gateways.iter().map(|g| (*g, Host::Gateway)).collect(),
            });
        }
        for endpoint in table.endpoints.values() {
            let Some(&number) = numbers.get(&endpoint.network) else { continue };
            let addresses: Vec<IpAddr> = endpoint.addresses.iter().map(IpNet::addr).collect();
            let host = if endpoint.node == table.node {
                ports.get(&endpoint.id).map_or(Host::Detached, |port| Host::Local(*port))
            } else if let Some(&peer) = tables.peer_numbers.get(&endpoint.node) {
                Host::Remote(peer)
            } else {
                continue;
            };
            for address in &addresses {
                tables.networks[number].hosts.insert(*address, host);
            }
            if let Host::Local(port) = host {
                tables.ports.insert(port, LocalPort { network: number, addresses });
            }
        }
        tables
    }

    /// Returns the peer with a number from a verdict of this snapshot.
    pub fn peer(&self, number: usize) -> &PeerRoute {
        &self.peers[number]
    }

    /// Lists the peers.
    pub fn peers(&self) -> &[PeerRoute] {
        &self.peers
    }

    /// Finds a peer.
    pub fn find_peer(&self, id: NodeId) -> Option<&PeerRoute> {
        self.peer_numbers.get(&id).map(|number| &self.peers[*number])
    }

    /// Finds the peer whose datagrams come from an address, as the table has it.
    pub fn find_address(&self, address: SocketAddr) -> Option<&PeerRoute> {
        self.by_address.get(&address).map(|number| &self.peers[*number])
    }

    /// Decides on a packet that the container behind `port` sent.
    pub fn outbound(
        &self,
        port: PortId,
        packet: &[u8],
        inner: &Inner,
        segmentation: Segmentation,
    ) -> Verdict {
        let Some(local) = self.ports.get(&port) else {
            return Verdict::Drop(DropReason::NoEndpoint);
        };
        let network = &self.networks[local.network];
        if is_link_local(inner.source) || is_link_local(inner.destination) {
            return Verdict::Drop(DropReason::LinkLocal);
        }
        if !local.addresses.contains(&inner.source) {
            return Verdict::Drop(DropReason::SpoofedSource);
        }
        match network.hosts.get(&inner.destination) {
            Some(Host::Remote(number)) => {
                let mtu = self.peers[*number].packet_mtu();
                match too_big(inner, segmentation, mtu) {
                    true => network.error(inner, IcmpError::TooBig { mtu }, DropReason::TooBig),
                    false => Verdict::Send { peer: *number, vni: network.vni },
                }
            }
            Some(Host::Local(other)) => Verdict::Deliver(*other),
            Some(Host::Gateway) if is_echo_request(packet, inner) => Verdict::Reply(Reply::Echo),
            Some(Host::Gateway) => Verdict::Drop(DropReason::GatewayRefused),
            Some(Host::Detached) | None => network.nobody(inner),
        }
    }

    /// Decides on a packet that `peer` sent on the network `vni`: which device gets it.
    pub fn inbound(&self, peer: NodeId, vni: Vni, inner: &Inner) -> Result<PortId, DropReason> {
        let number = *self.by_vni.get(&vni).ok_or(DropReason::UnknownVni)?;
        let network = &self.networks[number];
        let sender = match network.hosts.get(&inner.source) {
            Some(Host::Remote(number)) => Some(self.peers[*number].id),
            Some(Host::Local(_) | Host::Detached | Host::Gateway) | None => None,
        };
        if sender != Some(peer) {
            let takes_part = network.has_peer(self, peer);
            return Err(match takes_part {
                true => DropReason::SpoofedSource,
                false => DropReason::UnknownVni,
            });
        }
        match network.hosts.get(&inner.destination) {
            Some(Host::Local(port)) => Ok(*port),
            Some(Host::Remote(_) | Host::Detached | Host::Gateway) | None => {
                Err(DropReason::NoEndpoint)
            }
        }
    }
}

impl NetworkTable {
    /// Whether any address of the network is behind the peer. Only asked on the way to a drop.
    fn has_peer(&self, tables: &Tables, peer: NodeId) -> bool {
        self.hosts.values().any(|host| match host {
            Host::Remote(number) => tables.peers[*number].id == peer,
            Host::Local(_) | Host::Detached | Host::Gateway => false,
        })
    }

    /// The answer where nobody has the destination.
    fn nobody(&self, inner: &Inner) -> Verdict {
        let inside = self.subnets.iter().find(|subnet| subnet.contains(&inner.destination));
        if let Some(IpNet::V4(subnet)) = inside
            && IpAddr::V4(subnet.broadcast()) == inner.destination
        {
            return Verdict::Drop(DropReason::LinkLocal);
        }
        let error = match inside {
            Some(_) => IcmpError::HostUnreachable,
            None => IcmpError::NetworkUnreachable,
        };
        self.error(inner, error, DropReason::NoEndpoint)
    }

    fn error(&self, inner: &Inner, error: IcmpError, reason: DropReason) -> Verdict {
        let own = self.gateways.iter().find(|gateway| gateway.is_ipv4() == inner.is_ipv4());
        match own {
            Some(&gateway) => Verdict::Reply(Reply::Error { error, gateway, reason }),
            None => Verdict::Drop(reason),
        }
    }
}

/// Whether a packet does not fit. A TCP super-packet can be cut smaller than asked.
fn too_big(inner: &Inner, segmentation: Segmentation, mtu: u16) -> bool {
    match segmentation {
        Segmentation::None => inner.len > mtu,
        Segmentation::Tcp(_) => inner.payload >= mtu,
        Segmentation::Udp(size) => inner.payload.saturating_add(size) > mtu,
    }
}

/// What an L3 network does not carry: link-local noise, groups, broadcast.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests;
