//! Into a container's device: one packet, a run of packets as one super-packet, or a super-packet
//! of a neighbour. Where the device takes no super-packets or partial checksums, they are cut and
//! completed here.

use std::{io::IoSlice, ops::Range};

use super::{
    Worker,
    outbound::{Outbound, ROOM, packet_count},
};
use crate::{
    agent::shared::Port,
    engine::datapath::{
        offload::Segmentation,
        segment::{MAX_HEADER, Segments},
    },
    io::tun::Framing,
    types::{DropReason, PacketsBytes},
    wire::{
        checksum,
        envelope::Checksum,
        inner::{Inner, protocol},
        vnet::{NEEDS_CSUM, VnetHeader, gso},
    },
};

/// Whether a device takes a partial checksum.
pub(super) fn takes_partial(port: &Port) -> bool {
    port.tun.framing() == Framing::Vnet && port.offloads.tun_csum
}

/// Whether a device takes super-packets of this protocol and family.
pub(super) fn takes_super(port: &Port, inner: &Inner) -> bool {
    takes_partial(port)
        && match (inner.protocol, inner.is_ipv4()) {
            (protocol::TCP, true) => port.offloads.tun_tso4,
            (protocol::TCP, false) => port.offloads.tun_tso6,
            (protocol::UDP, true) => port.offloads.tun_uso4,
            (protocol::UDP, false) => port.offloads.tun_uso6,
            (_, _) => false,
        }
}

/// Writes one packet or super-packet gathered from `parts`, of which the first is the framing.
pub(super) fn write_parts(port: &Port, parts: &[IoSlice<'_>]) -> std::io::Result<()> {
    match port.tun.framing() {
        Framing::Plain => port.tun.write(&parts[1..]),
        Framing::Vnet => port.tun.write(parts),
    }
}

/// Writes one packet.
pub(super) fn write_packet(port: &Port, vnet: &VnetHeader, packet: &[u8]) -> std::io::Result<()> {
    write_parts(port, &[IoSlice::new(&vnet.emit()), IoSlice::new(packet)])
}

impl Worker {
    /// Hands a packet of one container to another of this node.
    pub(super) fn deliver_local(&mut self, from: &Port, to: &Port, outbound: Outbound, end: usize) {
        let Outbound { inner, checksum, segmentation } = &outbound;
        let packet = &mut self.outbound[ROOM..end];
        let count = packet_count(&outbound);
        let whole = match segmentation {
            Segmentation::None => true,
            Segmentation::Tcp(_) | Segmentation::Udp(_) => takes_super(to, inner),
        };
        let failed = if whole {
            let mut vnet = local_vnet(inner, *checksum, *segmentation);
            if *checksum == Checksum::Partial && !takes_partial(to) {
                checksum::complete(packet, inner);
                vnet = VnetHeader::default();
            }
            u64::from(write_packet(to, &vnet, packet).is_err()) * count.packets
        } else {
            self.deliver_cut(to, &outbound, end)
        };
        let arrived = count.packets - failed;
        from.sent(self.index, count);
        to.received(self.index, scale(count, arrived));
        if failed > 0 {
            self.drop_packets(DropReason::DeliverFailed, failed);
        }
    }

    /// Cuts a super-packet for a device that takes none; returns how many packets failed.
    fn deliver_cut(&mut self, to: &Port, outbound: &Outbound, end: usize) -> u64 {
        let buffer = &mut self.outbound[ROOM..end];
        let mut template = [0; MAX_HEADER];
        let Outbound { inner, segmentation, .. } = outbound;
        let Some(mut segments) = Segments::new(&mut template, buffer, inner, *segmentation) else {
            return 0;
        };
        let mut failed = 0;
        while let Some(range) = segments.next(buffer) {
            failed += u64::from(deliver_single(to, buffer, range, Checksum::Partial).is_err());
        }
        failed
    }

    /// Hands the gateway host's answer, which lies in the reply buffer, to the container.
    pub(super) fn deliver_reply(&mut self, port: &Port, len: usize) {
        let packet = &self.reply[..len];
        match write_packet(port, &VnetHeader::default(), packet) {
            Ok(()) => {
                port.received(self.index, PacketsBytes { packets: 1, bytes: len as u64 });
            }
            Err(_) => self.drop_packets(DropReason::DeliverFailed, 1),
        }
    }
}

/// Writes the packet at `range`, its checksum completed where the device wants that.
pub(super) fn deliver_single(
    to: &Port,
    buffer: &mut [u8],
    range: Range<usize>,
    sum: Checksum,
) -> std::io::Result<()> {
    let packet = &mut buffer[range];
    let Ok(inner) = Inner::parse(packet) else { return Ok(()) };
    let mut vnet = VnetHeader::default();
    if sum == Checksum::Partial {
        if takes_partial(to) {
            vnet = local_vnet(&inner, sum, Segmentation::None);
        } else {
            checksum::complete(packet, &inner);
        }
    }
    write_packet(to, &vnet, packet)
}

/// Rebuilds the virtio_net_hdr from what was checked; nothing of the sender's is passed on.
fn local_vnet(inner: &Inner, sum: Checksum, segmentation: Segmentation) -> VnetHeader {
    let (Checksum::Partial, Some(offset)) = (sum, inner.checksum_offset()) else {
        return VnetHeader::default();
    };
    let (gso_type, gso_size) = match (segmentation, inner.is_ipv4()) {
        (Segmentation::None, _) => (gso::NONE, 0),
        (Segmentation::Tcp(size), true) => (gso::TCPV4, size),
        (Segmentation::Tcp(size), false) => (gso::TCPV6, size),
        (Segmentation::Udp(size), _) => (gso::UDP_L4, size),
    };
    VnetHeader {
        flags: NEEDS_CSUM,
        gso_type,
        hdr_len: inner.payload,
        gso_size,
        csum_start: inner.transport,
        csum_offset: offset,
    }
}

/// The part of a count that arrived; bytes of equal packets.
fn scale(count: PacketsBytes, arrived: u64) -> PacketsBytes {
    if arrived == count.packets {
        return count;
    }
    let bytes = count.bytes * arrived / count.packets.max(1);
    PacketsBytes { packets: arrived, bytes }
}

/// Framing, the first packet, and the payloads of a run.
pub(super) const MAX_PARTS: usize = crate::engine::datapath::coalesce::MAX_COUNT + 1;
