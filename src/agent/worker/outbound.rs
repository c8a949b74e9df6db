//! From a container to the underlay, in this order:
//!
//! 1. read a super-packet from the device into a buffer with room in front;
//! 2. parse it once, hold its virtio_net_hdr against the parse;
//! 3. ask the tables for the verdict;
//! 4. seal every segment straight from the read buffer into the run's arena: the AEAD is the only
//!    pass over the bytes. A segment's header, and the sealed prefix before it, are stamped over
//!    the end of the segment that was sealed before;
//! 5. one `sendmsg` for the run.

use std::{ops::Range, sync::Arc};

use super::{Worker, staging::Staged};
use crate::{
    agent::shared::{Port, Snapshot},
    engine::{
        datapath::{
            PeerRoute, PortId, Reply, Verdict,
            fragment::{self, Pieces},
            mss,
            offload::{self, Segmentation},
            segment::{self, MAX_HEADER, Packets},
        },
        session::{Link, SendKey},
    },
    io::tun::Framing,
    types::{DropReason, PacketsBytes, Vni},
    wire::{
        checksum,
        envelope::{Checksum, NextProtocol, OVERHEAD, PREFIX_LEN, Prefix},
        fragment::{Family, HEADER_LEN},
        icmp,
        inner::Inner,
        vnet::{self, VnetHeader},
    },
};

/// A packet in the read buffer, and what is known of it.
pub(super) struct Outbound {
    pub(super) inner: Inner,
    pub(super) checksum: Checksum,
    pub(super) segmentation: Segmentation,
}

/// How one packet, and all that it becomes, leaves.
struct Way<'a> {
    link: &'a Arc<Link>,
    key: &'a SendKey,
    /// The worker's lane: its place here, and its number on the wire.
    place: usize,
    lane: u8,
    counter: u64,
    prefix: [u8; PREFIX_LEN],
}

impl Worker {
    /// Takes what a device has, up to the budget.
    pub(super) fn outbound(&mut self, id: PortId) {
        let Some(port) = self.watched.get(&id).cloned() else { return };
        let snapshot = self.snapshot.clone();
        for _ in 0..BUDGET {
            let start = read_start(port.tun.framing());
            match port.tun.read(&mut self.outbound[start..]) {
                Ok(len) => {
                    self.taken += len;
                    self.outbound_packet(&snapshot, &port, start, len);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // EBADFD: the device is gone, for its namespace is.
                Err(_) => return self.device_ended(&port),
            }
        }
    }

    /// Forwards the packet that lies at `start`, framing first.
    fn outbound_packet(&mut self, snapshot: &Snapshot, port: &Arc<Port>, start: usize, len: usize) {
        let vnet = match port.tun.framing() {
            Framing::Plain => VnetHeader::default(),
            Framing::Vnet => match self.outbound[start..ROOM].first_chunk() {
                Some(header) if len >= vnet::LEN => VnetHeader::parse(header),
                Some(_) | None => return self.drop_packets(DropReason::VnetMalformed, 1),
            },
        };
        let end = start + len;
        let packet = &mut self.outbound[ROOM..end];
        let Ok(inner) = Inner::parse(packet) else {
            return self.drop_packets(DropReason::InnerMalformed, 1);
        };
        let Ok((checksum, segmentation)) = offload::interpret(&vnet, packet, &inner) else {
            return self.drop_packets(DropReason::VnetMalformed, 1);
        };
        #[cfg(feature = "plant")]
        crate::plant::defect(packet);
        let verdict = snapshot.tables.outbound(port.id, packet, &inner, segmentation);
        let outbound = Outbound { inner, checksum, segmentation };
        match verdict {
            Verdict::Send { peer, vni } => {
                self.send(snapshot, port, peer, vni, outbound, start, end);
            }
            Verdict::Deliver(other) => match snapshot.ports.get(&other) {
                Some(other) => self.deliver_local(port, other, outbound, end),
                None => self.drop_packets(DropReason::NoEndpoint, 1),
            },
            Verdict::Reply(reply) => self.answer(port, &outbound, reply, end),
            Verdict::Drop(reason) => {
                self.drop_packets(reason, packet_count(&outbound).packets);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a packet's place and its way")]
    fn send(
        &mut self,
        snapshot: &Snapshot,
        port: &Arc<Port>,
        peer: usize,
        vni: Vni,
        mut outbound: Outbound,
        start: usize,
        end: usize,
    ) {
        let route = snapshot.tables.peer(peer);
        let link = &route.link;
        let Some(key) = self.usable_key(link) else {
            return self.stage(port, link.peer(), start, end);
        };
        let inner = &outbound.inner;
        let inner_mtu = route.inner_mtu;
        mss::clamp(&mut self.outbound[ROOM..end], inner, outbound.checksum, inner_mtu);
        if let Segmentation::Tcp(size) = outbound.segmentation {
            // Cut smaller than asked where the path is smaller than the device.
            let size = size.min(inner_mtu.saturating_sub(inner.payload));
            outbound.segmentation = Segmentation::Tcp(size);
        }
        if segment::longest(inner, outbound.segmentation) > inner_mtu {
            return self.send_pieces(route, port, vni, &key, outbound, start, end);
        }
        let next = match inner.is_ipv4() {
            true => NextProtocol::Ipv4(outbound.checksum),
            false => NextProtocol::Ipv6(outbound.checksum),
        };
        let prefix = Prefix { vni, next }.emit();
        let count = packet_count(&outbound);
        let place = (inner.flow_hash() % self.lanes.len() as u64) as usize;
        let lane = self.lanes[place].number;
        let Ok(counter) = key.reserve(lane, count.packets, self.now) else {
            return self.stage(port, link.peer(), start, end);
        };
        let mut way = Way { link, key: &key, place, lane, counter, prefix };
        let mut template = [0; MAX_HEADER];
        let packet = &self.outbound[ROOM..end];
        let mut packets = Packets::new(&mut template, packet, inner, outbound.segmentation);
        while let Some(packet) = packets.next(&mut self.outbound[ROOM..end]) {
            let packet = ROOM + packet.start..ROOM + packet.end;
            let carried = PacketsBytes { packets: 1, bytes: packet.len() as u64 };
            self.seal(&mut way, packet, carried);
        }
        self.sent(port, link, count);
    }

    /// Sends a packet, or every packet of a super-packet, in pieces that the path carries.
    #[expect(clippy::too_many_arguments, reason = "a packet's place and its way")]
    fn send_pieces(
        &mut self,
        route: &PeerRoute,
        port: &Arc<Port>,
        vni: Vni,
        key: &SendKey,
        outbound: Outbound,
        start: usize,
        end: usize,
    ) {
        let (link, inner) = (&route.link, &outbound.inner);
        let place = (inner.flow_hash() % self.lanes.len() as u64) as usize;
        let lane = self.lanes[place].number;
        let step = fragment::piece_len(route.inner_mtu);
        let longest = u64::from(segment::longest(inner, outbound.segmentation));
        let count = packet_count(&outbound);
        let most = count.packets * longest.div_ceil(step as u64);
        let Ok(counter) = key.reserve(lane, most, self.now) else {
            return self.stage(port, link.peer(), start, end);
        };
        let family = if inner.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let prefix = Prefix { vni, next: NextProtocol::Fragment }.emit();
        let mut way = Way { link, key, place, lane, counter, prefix };
        let mut template = [0; MAX_HEADER];
        let packet = &self.outbound[ROOM..end];
        let mut packets = Packets::new(&mut template, packet, inner, outbound.segmentation);
        while let Some(packet) = packets.next(&mut self.outbound[ROOM..end]) {
            let packet = ROOM + packet.start..ROOM + packet.end;
            let bytes = &mut self.outbound[packet.clone()];
            if outbound.checksum == Checksum::Partial
                && let Ok(inner) = Inner::parse(bytes)
            {
                checksum::complete(bytes, &inner);
            }
            // The first piece counts for the packet.
            let mut carried = PacketsBytes { packets: 1, bytes: packet.len() as u64 };
            let mut pieces = Pieces::new(packet, step, self.fragment_id(), family);
            while let Some(piece) = pieces.next(&mut self.outbound) {
                self.seal(&mut way, piece, std::mem::take(&mut carried));
            }
        }
        self.sent(port, link, count);
    }

    /// Seals what lies at `range`, its prefix stamped in front of it, into the run.
    #[inline]
    fn seal(&mut self, way: &mut Way<'_>, range: Range<usize>, carried: PacketsBytes) {
        let from = range.start - PREFIX_LEN;
        self.outbound[from..range.start].copy_from_slice(&way.prefix);
        let len = range.len() + OVERHEAD;
        let room = self.run.room(way.link, way.place, len, &self.lanes, self.index);
        match way.key.seal(way.lane, way.counter, &self.outbound[from..range.end], room) {
            Ok(()) => self.run.commit(len, carried),
            Err(_) => way.link.counters(self.index).dropped(DropReason::SendFailed, 1),
        }
        way.counter += 1;
    }

    fn sent(&mut self, port: &Port, link: &Arc<Link>, count: PacketsBytes) {
        port.sent(self.index, count);
        if link.note_sent(self.now) {
            self.tell_active(link);
        }
    }

    /// Names the next packet that is cut; the upper bits stay this worker's.
    fn fragment_id(&mut self) -> u32 {
        let id = self.next_fragment;
        let mask = (1 << super::WORKER_SHIFT) - 1;
        self.next_fragment = id & !mask | id.wrapping_add(1) & mask;
        id
    }

    /// Lets a packet wait for a session.
    fn stage(&mut self, port: &Port, peer: crate::types::NodeId, start: usize, end: usize) {
        let bytes = self.outbound[start..end].into();
        let packet = Staged { port: port.id, peer, bytes, since: self.now };
        if let Some(dropped) = self.staging.push(packet) {
            self.drop_staged(&dropped);
        }
    }

    fn drop_staged(&self, packet: &Staged) {
        match self.snapshot.tables.find_peer(packet.peer) {
            Some(route) => route.link.counters(self.index).dropped(DropReason::NoSession, 1),
            None => self.drop_packets(DropReason::NoPeer, 1),
        }
    }

    /// Sends what waited and can go now.
    pub(super) fn flush_staged(&mut self) {
        let snapshot = self.snapshot.clone();
        for _ in 0..self.staging.len() {
            let Some(packet) = self.staging.pop() else { return };
            let port = snapshot.ports.get(&packet.port);
            let (Some(port), false) = (port, packet.is_old(self.now)) else {
                self.drop_staged(&packet);
                continue;
            };
            let waits = snapshot
                .tables
                .find_peer(packet.peer)
                .is_some_and(|route| self.usable_key(&route.link).is_none());
            if waits {
                self.staging.push(packet);
                continue;
            }
            let start = read_start(port.tun.framing());
            let len = packet.bytes.len();
            self.outbound[start..start + len].copy_from_slice(&packet.bytes);
            self.outbound_packet(&snapshot, port, start, len);
        }
    }

    /// Sends the run under way.
    pub(super) fn flush(&mut self) {
        self.run.flush(&self.lanes, self.index);
        self.run.release();
    }

    /// Says what the gateway host says.
    fn answer(&mut self, port: &Port, outbound: &Outbound, reply: Reply, end: usize) {
        let packet = &self.outbound[ROOM..end];
        let len = match reply {
            Reply::Echo => {
                port.sent(self.index, packet_count(outbound));
                icmp::echo_reply(packet, &outbound.inner, &mut self.reply)
            }
            Reply::Error { error, gateway, reason } => {
                self.drop_packets(reason, packet_count(outbound).packets);
                icmp::error(error, gateway, packet, &outbound.inner, &mut self.reply)
            }
        };
        if let Some(len) = len {
            self.deliver_reply(port, len);
        }
    }
}

/// How many packets a super-packet is, and their bytes.
pub(super) fn packet_count(outbound: &Outbound) -> PacketsBytes {
    segment::count(&outbound.inner, outbound.segmentation)
}

/// Where reading starts, so that the packet itself lies at [`ROOM`].
fn read_start(framing: Framing) -> usize {
    match framing {
        Framing::Vnet => ROOM - vnet::LEN,
        Framing::Plain => ROOM,
    }
}

/// Room in front of the packet, for the framing and then the sealed prefix and a piece's header.
pub(super) const ROOM: usize = 64;
const _: () = assert!(ROOM >= vnet::LEN && ROOM >= PREFIX_LEN + HEADER_LEN);
/// Room and the longest packet, and one byte more than any read fills.
pub(super) const BUFFER_LEN: usize = ROOM + super::MAX_PACKET + 1;
/// Packets taken from one device before others have their turn.
const BUDGET: usize = 32;
