//! What is counted and shown of peers and traffic.

use std::{net::SocketAddr, time::Duration};

use super::{DropCounts, Name, NodeId};

/// Packets, and the bytes of the inner packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketsBytes {
    /// Packets, after super-packets were split.
    pub packets: u64,
    /// Bytes of the inner IP packets.
    pub bytes: u64,
}

/// Both directions, seen from the container (or, of a peer, from this node).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub tx: PacketsBytes,
    /// Received.
    pub rx: PacketsBytes,
}

/// Where the session with a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Nothing was asked of it yet.
    Idle,
    /// A handshake is under way.
    Handshaking,
    /// Data was delivered under the current key.
    Up,
    /// It was up, and has not been heard for longer than it should.
    Stale,
    /// Handshakes go unanswered.
    Down,
}

impl PeerState {
    /// Returns the state's name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Handshaking => "handshaking",
            Self::Up => "up",
            Self::Stale => "stale",
            Self::Down => "down",
        }
    }
}

/// A row of `overlayctl peers`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where datagrams to it go.
    pub address: SocketAddr,
    /// The state of its session.
    pub state: PeerState,
    /// Why it is in that state, where that is not plain.
    pub reason: Option<String>,
    /// The newest round trip.
    pub rtt: Option<Duration>,
    /// The share of datagrams lost, 0 to 1.
    pub loss: Option<f64>,
    /// The largest outer packet that the path carries, in bytes.
    pub path_mtu: u16,
    /// The largest inner packet that follows from it, in bytes.
    pub inner_mtu: u16,
    /// The AEAD of the session.
    pub cipher: Option<&'static str>,
    /// How old the sending key is.
    pub key_age: Option<Duration>,
    /// How long ago an authentic datagram came.
    pub last_rx: Option<Duration>,
    /// Packets to and from it.
    pub traffic: Traffic,
    /// What was dropped of its datagrams.
    pub drops: DropCounts,
    /// The networks shared with it, by name, sorted.
    pub networks: Vec<Name>,
    /// The lanes that this node sends to it on.
    pub lanes: u8,
}
