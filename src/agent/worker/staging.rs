//! Packets that wait for a session. Few, bounded in number, bytes and time: the first packets of a
//! conversation, not a buffer against an outage. The oldest goes first.

use std::{collections::VecDeque, time::Duration};

use crate::{
    engine::datapath::PortId,
    types::{Moment, NodeId},
};

/// A packet as it was read, framing included.
pub(super) struct Staged {
    pub(super) port: PortId,
    pub(super) peer: NodeId,
    pub(super) bytes: Box<[u8]>,
    pub(super) since: Moment,
}

impl Staged {
    /// Whether it has waited too long.
    pub(super) fn is_old(&self, now: Moment) -> bool {
        now.since(self.since) > MAX_WAIT
    }
}

/// The packets of one worker that wait.
pub(super) struct Staging {
    packets: VecDeque<Staged>,
    bytes: usize,
}

impl Staging {
    pub(super) fn new() -> Self {
        Self { packets: VecDeque::new(), bytes: 0 }
    }

    /// Adds a packet; returns one that had to go for it.
    pub(super) fn push(&mut self, packet: Staged) -> Option<Staged> {
        let full = self.packets.len() >= MAX_PACKETS || self.bytes + packet.bytes.len() > MAX_BYTES;
        let dropped = if full { self.pop() } else { None };
        self.bytes += packet.bytes.len();
        self.packets.push_back(packet);
        dropped
    }

    /// Takes the oldest.
    pub(super) fn pop(&mut self) -> Option<Staged> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.bytes.len();
        Some(packet)
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }
}

/// More than the SYNs and first datagrams of any start.
const MAX_PACKETS: usize = 256;
/// 1 MiB a worker, and one super-packet more.
const MAX_BYTES: usize = 1 << 20;
/// A packet that comes later than a retransmission would is of no use.
const MAX_WAIT: Duration = Duration::from_secs(3);
