//! The cluster's objects as every layer speaks of them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use super::{EndpointId, NetworkId, NodeId, Vni};

/// A position in the replicated log; 0 is before the first command.
pub type Revision = u64;

/// A position that orders across recoveries: each recovery of the log from what was left starts a
/// new epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The epoch.
    pub epoch: u64,
    /// The revision in it.
    pub revision: Revision,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

/// The name of a node, network or endpoint: 1 to 63 of `a-z A-Z 0-9 _ . -`, the first a letter or
/// digit, so that it is one label of a path, a flag and (but for `.` and `_`) of DNS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Says why a text is not a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 63 letters, digits, '-', '_' or '.', and starts with a letter or digit")]
pub struct NameError;

impl Name {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let first = text.bytes().next().ok_or(NameError)?;
        if text.len() > 63 || !first.is_ascii_alphanumeric() || !text.bytes().all(allowed) {
            return Err(NameError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a node may do in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds the cluster's state, and runs tasks too unless drained.
    Manager,
    /// Runs tasks.
    Worker,
}

/// Whether a node takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes new tasks.
    Active,
    /// Keeps its tasks and takes no new ones.
    Pause,
    /// Runs no tasks.
    Drain,
}

/// Whether the managers hear a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Its agent's stream is open.
    Ready,
    /// Nothing is heard of it.
    Down,
}

/// The wire versions that a node speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The lowest.
    pub lowest: u8,
    /// The highest.
    pub highest: u8,
}

/// A node as the cluster's state holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Its role.
    pub role: Role,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Whether the managers hear it.
    pub status: NodeStatus,
    /// Where its manager listens, or would (control side).
    pub advertise_addr: SocketAddr,
    /// Where its agent takes sealed datagrams.
    pub data_addr: SocketAddr,
    /// The MTU of the interface that holds `data_addr`, in bytes.
    pub underlay_mtu: u16,
    /// The X25519 public key of its sessions.
    pub public_key: [u8; 32],
    /// The wire versions that it speaks.
    pub versions: VersionRange,
    /// The version of its program.
    pub version: String,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// How a network's packets cross the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encap {
    /// In the sealed envelope.
    Sealed,
}

/// An isolated L3 network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its identity.
    pub id: NetworkId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Its identifier on the wire.
    pub vni: Vni,
    /// One IPv4 subnet, one IPv6 subnet, or both.
    pub subnets: Vec<IpNet>,
    /// The virtual gateway host's address in each subnet, in the subnets' order.
    pub gateways: Vec<IpAddr>,
    /// The device MTU in bytes, or `None` for automatic.
    pub mtu: Option<u16>,
    /// How its packets cross the underlay.
    pub encap: Encap,
    /// Whether it has no way out.
    pub internal: bool,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// One attachment of a container to one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Its name, unique on its network.
    pub name: Name,
    /// The network that it is on.
    pub network: NetworkId,
    /// The node that it is on.
    pub node: NodeId,
    /// Its addresses, each with the prefix length of its subnet; at most one a family.
    pub addresses: Vec<IpNet>,
    /// Further names of it on the network.
    pub aliases: Vec<Name>,
}

/// The pre-shared key of a pair of nodes in one epoch of the cluster secret.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct Psk {
    /// The epoch of the cluster secret that it was derived from.
    pub epoch: u32,
    /// The key.
    pub key: [u8; 32],
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Psk(epoch {}, …)", self.epoch)
    }
}

/// Another node as the peer table of one node holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its identity.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where it takes sealed datagrams.
    pub data_addr: SocketAddr,
    /// The MTU of its underlay interface, in bytes.
    pub underlay_mtu: u16,
    /// The X25519 public key of its sessions.
    pub public_key: [u8; 32],
    /// The wire versions that it speaks.
    pub versions: VersionRange,
    /// The pair's keys, the newest epoch first; one, or two during a rotation.
    pub psks: Vec<Psk>,
}

impl Peer {
    /// Makes what other nodes know of a node; `psks` are the pair's.
    pub fn new(node: &Node, psks: Vec<Psk>) -> Self {
        Self {
            id: node.id,
            name: node.name.clone(),
            data_addr: node.data_addr,
            underlay_mtu: node.underlay_mtu,
            public_key: node.public_key,
            versions: node.versions,
            psks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "n1", "web.1", "A_b-c", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ü", &"x".repeat(64)] {
            assert_eq!(bad.parse::<Name>(), Err(NameError), "{bad}");
        }
    }
}
