//! The data plane of one node: worker threads, the session thread and the containers' devices
//! behind one handle.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use crate::{
    engine::membership::Table,
    types::{
        DropCounts, Endpoint, EndpointId, Network, NetworkId, NodeId, Offloads, PeerStatus, Traffic,
    },
};

/// What a data plane needs to start.
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The cluster's identity, mixed into every handshake.
    pub cluster: [u8; 16],
    /// The X25519 private key of this node's sessions.
    pub private_key: [u8; 32],
    /// Where sealed datagrams are taken; also the address that they are sent from.
    pub data_addr: SocketAddr,
    /// The MTU of the interface that holds `data_addr`, in bytes.
    pub underlay_mtu: u16,
    /// How many worker threads.
    pub workers: usize,
    /// Which offloads to use.
    pub offloads: Offloads,
    /// After how long a session's keys are renewed.
    pub rekey_interval: Duration,
    /// Where the start count is kept.
    pub state_dir: PathBuf,
}

/// The namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `netns:NAME` or `netns:/PATH`, as a path to the namespace.
    Netns(PathBuf),
    /// `pid:N`.
    Pid(u32),
}

/// What an attachment gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface's name in the container.
    pub interface: String,
    /// Its MTU in bytes.
    pub mtu: u16,
}

/// The node's own counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// What was dropped, both directions and all peers together.
    pub drops: DropCounts,
    /// Traffic of this node's containers per network.
    pub networks: BTreeMap<NetworkId, Traffic>,
    /// Traffic per endpoint of this node.
    pub endpoints: BTreeMap<EndpointId, Traffic>,
}

/// A running data plane. Dropping it ends the threads and takes the devices away.
pub struct Dataplane {}

impl Dataplane {
    /// Takes the data port and starts the threads. Endpoints whose namespace ended are sent to `ended`.
    pub fn start(_config: Config, _ended: mpsc::Sender<EndpointId>) -> anyhow::Result<Self> {
        anyhow::bail!("to come")
    }

    /// Makes the workers and the session thread use a new table.
    pub fn publish(&self, _table: Arc<Table>) {}

    /// Makes the device of an endpoint in the target's namespace. On failure nothing is left.
    pub async fn attach(
        &self,
        _network: &Network,
        _endpoint: &Endpoint,
        _target: &Target,
        _interface: Option<&str>,
        _default_route: bool,
    ) -> anyhow::Result<Attached> {
        anyhow::bail!("to come")
    }

    /// Takes an endpoint's device away.
    pub async fn detach(&self, _endpoint: EndpointId) -> anyhow::Result<()> {
        anyhow::bail!("to come")
    }

    /// Lists the peers of the table, sorted by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    /// Returns this node's counters.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
