//! Messages to our types and back. What comes in is checked here once; what is not well formed is
//! refused with the field's name.

use std::{fmt::Display, str::FromStr};

use super::proto;
use crate::types::{
    Availability, Encap, Endpoint, Id, Network, Node, NodeStatus, Peer, Psk, Role, VersionRange,
    Vni,
};

/// A field of a message that does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Malformed {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Malformed {
    fn new(field: &'static str, why: impl Display) -> Self {
        Self { field, why: why.to_string() }
    }
}

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(malformed.to_string())
    }
}

/// Reads an id of 16 bytes.
///
/// # Errors
/// It has another length.
pub fn parse_id<K>(field: &'static str, bytes: &[u8]) -> Result<Id<K>, Malformed> {
    let bytes = bytes.try_into().map_err(|_| Malformed::new(field, "an id has 16 bytes"))?;
    Ok(Id::from_bytes(bytes))
}

/// Reads what stands in a message as text.
///
/// # Errors
/// The text is none of that type.
pub fn parse_text<T: FromStr<Err: Display>>(
    field: &'static str,
    text: &str,
) -> Result<T, Malformed> {
    text.parse().map_err(|error| Malformed::new(field, format!("'{text}': {error}")))
}

/// Reads a list of texts.
///
/// # Errors
/// One of them is none of that type.
pub fn parse_list<T: FromStr<Err: Display>>(
    field: &'static str,
    texts: &[String],
) -> Result<Vec<T>, Malformed> {
    texts.iter().map(|text| parse_text(field, text)).collect()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn key(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], Malformed> {
    bytes.try_into().map_err(|_| Malformed::new(field, "a key has 32 bytes"))
}

fn mtu(value: u32) -> Result<u16, Malformed> {
    value.try_into().map_err(|_| Malformed::new("mtu", "an mtu is at most 65535"))
}

fn versions(range: Option<proto::VersionRange>) -> Result<VersionRange, Malformed> {
    let range = range.ok_or_else(|| Malformed::new("versions", "missing"))?;
    let version = |v: u32| v.try_into().map_err(|_| Malformed::new("versions", "over 255"));
    Ok(VersionRange { lowest: version(range.lowest)?, highest: version(range.highest)? })
}

impl From<VersionRange> for proto::VersionRange {
    fn from(range: VersionRange) -> Self {
        Self { lowest: range.lowest.into(), highest: range.highest.into() }
    }
}

impl TryFrom<proto::VersionRange> for VersionRange {
    type Error = Malformed;

    fn try_from(range: proto::VersionRange) -> Result<Self, Malformed> {
        versions(Some(range))
    }
}

impl From<Role> for proto::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Manager => Self::Manager,
            Role::Worker => Self::Worker,
        }
    }
}

impl TryFrom<proto::Role> for Role {
    type Error = Malformed;

    fn try_from(role: proto::Role) -> Result<Self, Malformed> {
        match role {
            proto::Role::Manager => Ok(Self::Manager),
            proto::Role::Worker => Ok(Self::Worker),
            proto::Role::Unspecified => Err(Malformed::new("role", "missing")),
        }
    }
}

impl From<&Node> for proto::Node {
    fn from(node: &Node) -> Self {
        let availability = match node.availability {
            Availability::Active => proto::Availability::Active,
            Availability::Pause => proto::Availability::Pause,
            Availability::Drain => proto::Availability::Drain,
        };
        let status = match node.status {
            NodeStatus::Ready => proto::NodeStatus::Ready,
            NodeStatus::Down => proto::NodeStatus::Down,
        };
        Self {
            id: node.id.to_bytes().to_vec(),
            name: node.name.to_string(),
            role: proto::Role::from(node.role).into(),
            availability: availability.into(),
            status: status.into(),
            advertise_addr: node.advertise_addr.to_string(),
            data_addr: node.data_addr.to_string(),
            underlay_mtu: node.underlay_mtu.into(),
            public_key: node.public_key.to_vec(),
            versions: Some(node.versions.into()),
            version: node.version.clone(),
            labels: node.labels.clone(),
        }
    }
}

impl TryFrom<proto::Node> for Node {
    type Error = Malformed;

    fn try_from(node: proto::Node) -> Result<Self, Malformed> {
        let availability = match node.availability() {
            proto::Availability::Active => Availability::Active,
            proto::Availability::Pause => Availability::Pause,
            proto::Availability::Drain => Availability::Drain,
            proto::Availability::Unspecified => {
                return Err(Malformed::new("availability", "missing"));
            }
        };
        let status = match node.status() {
            proto::NodeStatus::Ready => NodeStatus::Ready,
            proto::NodeStatus::Down => NodeStatus::Down,
            proto::NodeStatus::Unspecified => return Err(Malformed::new("status", "missing")),
        };
        Ok(Self {
            id: parse_id("id", &node.id)?,
            role: node.role().try_into()?,
            availability,
            status,
            name: parse_text("name", &node.name)?,
            advertise_addr: parse_text("advertise_addr", &node.advertise_addr)?,
            data_addr: parse_text("data_addr", &node.data_addr)?,
            underlay_mtu: mtu(node.underlay_mtu)?,
            public_key: key("public_key", &node.public_key)?,
            versions: versions(node.versions)?,
            version: node.version,
            labels: node.labels,
        })
    }
}

impl From<&Network> for proto::Network {
    fn from(network: &Network) -> Self {
        let encap = match network.encap {
            Encap::Sealed => proto::Encap::Sealed,
        };
        Self {
            id: network.id.to_bytes().to_vec(),
            name: network.name.to_string(),
            vni: network.vni.get(),
            subnets: texts(&network.subnets),
            gateways: texts(&network.gateways),
            mtu: network.mtu.map(Into::into),
            encap: encap.into(),
            internal: network.internal,
            labels: network.labels.clone(),
        }
    }
}

impl TryFrom<proto::Network> for Network {
    type Error = Malformed;

    fn try_from(network: proto::Network) -> Result<Self, Malformed> {
        let encap = match network.encap() {
            proto::Encap::Sealed => Encap::Sealed,
            proto::Encap::Unspecified => return Err(Malformed::new("encap", "missing")),
        };
        if network.subnets.len() != network.gateways.len() {
            return Err(Malformed::new("gateways", "not one a subnet"));
        }
        Ok(Self {
            id: parse_id("id", &network.id)?,
            name: parse_text("name", &network.name)?,
            vni: Vni::try_from(network.vni).map_err(|why| Malformed::new("vni", why))?,
            subnets: parse_list("subnets", &network.subnets)?,
            gateways: parse_list("gateways", &network.gateways)?,
            mtu: network.mtu.map(mtu).transpose()?,
            encap,
            internal: network.internal,
            labels: network.labels,
        })
    }
}

impl From<&Endpoint> for proto::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id.to_bytes().to_vec(),
            name: endpoint.name.to_string(),
            network: endpoint.network.to_bytes().to_vec(),
            node: endpoint.node.to_bytes().to_vec(),
            addresses: texts(&endpoint.addresses),
            aliases: texts(&endpoint.aliases),
        }
    }
}

impl TryFrom<proto::Endpoint> for Endpoint {
    type Error = Malformed;

    fn try_from(endpoint: proto::Endpoint) -> Result<Self, Malformed> {
        Ok(Self {
            id: parse_id("id", &endpoint.id)?,
            name: parse_text("name", &endpoint.name)?,
            network: parse_id("network", &endpoint.network)?,
            node: parse_id("node", &endpoint.node)?,
            addresses: parse_list("addresses", &endpoint.addresses)?,
            aliases: parse_list("aliases", &endpoint.aliases)?,
        })
    }
}

impl From<&Peer> for proto::Peer {
    fn from(peer: &Peer) -> Self {
        let psk = |psk: &Psk| proto::Psk { epoch: psk.epoch, key: psk.key.to_vec() };
        Self {
            id: peer.id.to_bytes().to_vec(),
            name: peer.name.to_string(),
            data_addr: peer.data_addr.to_string(),
            underlay_mtu: peer.underlay_mtu.into(),
            public_key: peer.public_key.to_vec(),
            versions: Some(peer.versions.into()),
            psks: peer.psks.iter().map(psk).collect(),
        }
    }
}

impl TryFrom<proto::Peer> for Peer {
    type Error = Malformed;

    fn try_from(peer: proto::Peer) -> Result<Self, Malformed> {
        let psk = |psk: &proto::Psk| Ok(Psk { epoch: psk.epoch, key: key("psk", &psk.key)? });
        Ok(Self {
            id: parse_id("id", &peer.id)?,
            name: parse_text("name", &peer.name)?,
            data_addr: parse_text("data_addr", &peer.data_addr)?,
            underlay_mtu: mtu(peer.underlay_mtu)?,
            public_key: key("public_key", &peer.public_key)?,
            versions: versions(peer.versions)?,
            psks: peer.psks.iter().map(psk).collect::<Result<_, Malformed>>()?,
        })
    }
}
