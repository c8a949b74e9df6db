//! Why the cluster does not do what it was asked. The sentence of a refusal names the thing and
//! says what to do instead.

use std::{borrow::Cow, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::definition::Mistakes;
use super::limits::{MAX_ALIASES, MAX_LABEL_BYTES, MAX_LABELS, MAX_TOKENS, MTU_RANGE};
use crate::types::{Name, VersionRange, Vni};

/// A kind of object, as sentences and commands call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A node.
    Node,
    /// A network.
    Network,
    /// An endpoint.
    Endpoint,
    /// A service.
    Service,
    /// A task.
    Task,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Node => "node",
            Self::Network => "network",
            Self::Endpoint => "endpoint",
            Self::Service => "service",
            Self::Task => "task",
        })
    }
}

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's sentence says what it is")]
pub enum Refusal {
    #[error("the cluster is made already; join it instead")]
    ClusterExists,
    #[error("there is no cluster yet; make one with 'overlayctl init'")]
    NoCluster,
    #[error("the cluster secret has a successor already; wait until all nodes have its keys")]
    SecretRotating,
    #[error(
        "the root certificate is being rotated, and {nodes} node(s) that are ready have none under the new one yet; wait, or see 'overlayctl node ls'"
    )]
    RootRotating { nodes: usize },
    #[error("address pool {pool} cannot hold subnets of length {mask_length}; {advice}")]
    PoolUnusable { pool: IpNet, mask_length: u8, advice: Cow<'static, str> },

    #[error("the name {name} is taken by {kind} {id}; choose another")]
    NameTaken { kind: Kind, name: Name, id: String },
    #[error("there is no {kind} '{reference}'; 'overlayctl {kind} ls' lists them")]
    Unknown { kind: Kind, reference: String },
    #[error("'{reference}' is {matches} {kind}s; give more of the id")]
    Ambiguous { kind: Kind, reference: String, matches: usize },
    #[error("the id of the new {kind} was used before; ask again")]
    IdUsed { kind: Kind },
    #[error("the cluster has {limit} {kind}s, which is the most it takes; remove one first")]
    TooMany { kind: Kind, limit: usize },
    #[error(
        "the labels are too large; at most {MAX_LABELS}, together {MAX_LABEL_BYTES} bytes, none with an empty key"
    )]
    LabelsTooLarge,
    #[error("node {node} has no label '{key}'; 'overlayctl node inspect {node}' lists them")]
    NoLabel { node: Name, key: String },
    #[error(
        "the node speaks wire versions {} to {}, and node {of} {} to {}; use the same overlayd",
        .given.lowest, .given.highest, .other.lowest, .other.highest
    )]
    Versions { given: VersionRange, of: Name, other: VersionRange },
    #[error("node {name} is the only manager; promote another node first")]
    OnlyManager { name: Name },
    #[error("this node is a member already, as node {name}; leave it so, or end that daemon first")]
    KeyInUse { name: Name },
    #[error(
        "the token's secret is wrong; take a token from a manager with 'overlayctl join-token worker'"
    )]
    TokenUnknown,
    #[error(
        "the token was rotated; take the new one from a manager with 'overlayctl join-token worker'"
    )]
    TokenRotated,
    #[error(
        "the token has expired; take another from a manager with 'overlayctl join-token worker'"
    )]
    TokenExpired,
    #[error(
        "the token is used up; take another from a manager with 'overlayctl join-token worker'"
    )]
    TokenUsedUp,
    #[error(
        "the cluster has {MAX_TOKENS} tokens made with --ttl or --uses, which is the most it keeps; use the standing one, or wait until some end"
    )]
    TooManyTokens,

    #[error("subnet {given} is not a network address; use {network}")]
    NotNetworkAddress { given: IpNet, network: IpNet },
    #[error("subnet {subnet} is too small for a gateway and one endpoint; use {use_instead}")]
    SubnetTooSmall { subnet: IpNet, use_instead: Cow<'static, str> },
    #[error("subnet {subnet} is too large; use {use_instead}")]
    SubnetTooLarge { subnet: IpNet, use_instead: Cow<'static, str> },
    #[error("subnet {subnet} is reserved; use a private one such as 10.1.0.0/24 or fd00:1::/64")]
    SubnetReserved { subnet: IpNet },
    #[error("subnets {first} and {second} of one network overlap; use subnets that do not")]
    SubnetsOverlap { first: IpNet, second: IpNet },
    #[error(
        "subnets {first} and {second} are of one family; a network takes one IPv4 and one IPv6 subnet"
    )]
    SubnetFamilyTwice { first: IpNet, second: IpNet },
    #[error("no free subnet is left in {pool}; name one with --subnet, or remove a network")]
    SubnetsExhausted { pool: IpNet },
    #[error("gateway {gateway} is in no subnet of the network; use an address of {subnets}")]
    GatewayOutside { gateway: IpAddr, subnets: String },
    #[error("gateway {gateway} is the network or broadcast address of {subnet}; use another")]
    GatewayReserved { gateway: IpAddr, subnet: IpNet },
    #[error("gateways {first} and {second} are in one subnet; a subnet takes one")]
    GatewayTwice { first: IpAddr, second: IpAddr },
    #[error("vni {vni} is taken by network {network}; choose another")]
    VniTaken { vni: Vni, network: Name },
    #[error("vni 0 is reserved; use 1 to 16777215")]
    VniZero,
    #[error("no free vni is left; remove a network")]
    VnisExhausted,
    #[error(
        "mtu {mtu} is out of range; use {} to {}, and with IPv6 at least 1280",
        MTU_RANGE.start(),
        MTU_RANGE.end()
    )]
    MtuOutOfRange { mtu: u16 },
    #[error("network {name} is in use by {services} service(s); remove them first")]
    NetworkOfServices { name: Name, services: u32 },
    #[error("network {name} is in use by {endpoints} endpoint(s); detach them first")]
    NetworkInUse { name: Name, endpoints: usize },

    #[error("address {addr} is in no subnet of network {network}; use an address of {subnets}")]
    AddressOutside { addr: IpAddr, network: Name, subnets: String },
    #[error("address {addr} is the network or broadcast address of {subnet}; use another")]
    AddressReserved { addr: IpAddr, subnet: IpNet },
    #[error("address {addr} is the gateway of network {network}; use another")]
    AddressIsGateway { addr: IpAddr, network: Name },
    #[error("address {addr} is in use by endpoint {endpoint}; use another, or detach that one")]
    AddressInUse { addr: IpAddr, endpoint: Name },
    #[error("addresses {first} and {second} are in one subnet; an endpoint takes one of each")]
    AddressFamilyTwice { first: IpAddr, second: IpAddr },
    #[error("no free address is left in {subnet} of network {network}; detach an endpoint")]
    AddressesExhausted { subnet: IpNet, network: Name },
    #[error("an endpoint takes at most {MAX_ALIASES} aliases")]
    TooManyAliases,
    #[error("endpoint {endpoint} is a task's; it ends with its task")]
    OfTask { endpoint: Name },

    #[error("{0}")]
    Definition(Mistakes),
    #[error("service {name} was changed meanwhile; look at it, and ask again")]
    ServiceChanged { name: Name },
    #[error("service {name} stays replicated or global as it is; remove it, and make it anew")]
    ModeChanged { name: Name },
    #[error("service {name} has no earlier definition to go back to")]
    NoPrevious { name: Name },
    #[error("endpoint {endpoint} is on another node; detach it there")]
    NotYours { endpoint: Name },
}
