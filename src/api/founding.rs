//! What an agent and the manager that it starts in its own process hand each other. Everything
//! after that goes over the manager's own listen address, as for any other agent.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::Ipv4Net;
use rustls::pki_types::PrivateKeyDer;

use super::{
    JoinToken,
    proto::{JoinRequest, ManagerGift},
};
use crate::types::{Node, NodeId};

/// What a new cluster starts with.
pub struct Founding {
    /// The node's state folder, which this process holds; the manager keeps its log there.
    pub state_dir: PathBuf,
    /// Where the manager listens.
    pub listen_addr: SocketAddr,
    /// Where the IPv4 subnets of networks come from.
    pub address_pool: Ipv4Net,
    /// How long their prefixes are.
    pub mask_length: u8,
    /// The port that every node takes sealed datagrams on.
    pub data_port: u16,
    /// How long certificates of nodes are valid.
    pub certificate_life: Duration,
    /// How often agents and managers say something to each other.
    pub heartbeat: Duration,
    /// The first node, as it would join. An advertised port of 0 becomes the one listened on.
    pub node: JoinRequest,
    /// The key of the certificate asked for in `node`; the manager shows it too.
    pub certificate_key: PrivateKeyDer<'static>,
}

/// What a node starts a manager with that joined others.
pub struct Joining {
    /// The node's state folder, which this process holds; the manager keeps its log there.
    pub state_dir: PathBuf,
    /// Where the manager listens.
    pub listen_addr: SocketAddr,
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The node as registered.
    pub node: Node,
    /// What the manager gave that took the node in.
    pub gift: ManagerGift,
    /// What a manager that was one before, or did not come to be one, left in the state folder goes
    /// first.
    pub anew: bool,
}

/// What a manager starts again with.
pub struct Reopening {
    /// The node's state folder, which this process holds and a manager was founded in.
    pub state_dir: PathBuf,
    /// Where the manager listens.
    pub listen_addr: SocketAddr,
    /// The node that it runs on.
    pub node: NodeId,
    /// There are other managers, which go on if this one's log is gone, or holds nothing yet.
    pub has_others: bool,
    /// The other managers are lost: it goes on without them, in a new epoch.
    pub alone: bool,
    /// What the manager shows of itself: the node's own.
    pub credentials: super::tls::Credentials,
}

/// What came of starting a manager again.
pub enum Opened<M> {
    /// It serves.
    Serves(M, Box<Reopened>),
    /// There is none, while others go on: it is one no more, it has not heard of the cluster yet, or its
    /// log is lost. Nothing is left of it.
    Gone,
}

impl<M> Opened<M> {
    /// Has something else stand for the manager.
    pub fn map<N>(self, map: impl FnOnce(M) -> N) -> Opened<N> {
        match self {
            Self::Serves(manager, reopened) => Opened::Serves(map(manager), reopened),
            Self::Gone => Opened::Gone,
        }
    }
}

/// What a manager that started again says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reopened {
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The node as the state has it.
    pub node: Node,
    /// Where the manager listens.
    pub listen_addr: SocketAddr,
}

/// How a manager is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It can be opened again.
    Kept,
    /// It is a manager no more, or never came to be one: the log goes too.
    Undone,
}

/// What the first node is given.
pub struct Founded {
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The node as registered.
    pub node: Node,
    /// Its certificate, and the root.
    pub credentials: super::tls::Credentials,
    /// Where the manager listens.
    pub listen_addr: SocketAddr,
    /// What workers join with.
    pub worker_token: JoinToken,
}
