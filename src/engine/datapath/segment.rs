//! Cuts a super-packet without moving its payload.
//!
//! ```text
//! read buffer:   | room | header | payload 1 | payload 2 | payload 3 |
//! packet 1:             | header | payload 1 |
//! packet 2:                   | header | payload 2 |       the header is stamped over the end of
//! packet 3:                               | header | payload 3 |     payload 1, which was sealed
//! ```
//! Packets must be used in order, each before the next is asked for.

use std::ops::Range;

use super::offload::Segmentation;
use crate::{
    types::PacketsBytes,
    wire::{
        checksum,
        inner::{Inner, protocol, tcp_flags},
    },
};

/// The longest header that is stamped: IP with options and extensions, and TCP.
pub const MAX_HEADER: usize = 128;

/// How many packets a packet becomes, and how many bytes they have together.
pub fn count(inner: &Inner, segmentation: Segmentation) -> PacketsBytes {
    let (len, header) = (u64::from(inner.len), u64::from(inner.payload));
    match segmentation {
        Segmentation::Tcp(size) | Segmentation::Udp(size) if size > 0 && len > header => {
            let packets = (len - header).div_ceil(u64::from(size));
            PacketsBytes { packets, bytes: len - header + packets * header }
        }
        Segmentation::None | Segmentation::Tcp(_) | Segmentation::Udp(_) => {
            PacketsBytes { packets: 1, bytes: len }
        }
    }
}

/// How long the longest packet is that a packet becomes.
pub fn longest(inner: &Inner, segmentation: Segmentation) -> u16 {
    match segmentation {
        Segmentation::Tcp(size) | Segmentation::Udp(size) if size > 0 => {
            inner.len.min(inner.payload.saturating_add(size))
        }
        Segmentation::None | Segmentation::Tcp(_) | Segmentation::Udp(_) => inner.len,
    }
}

/// A super-packet that is being cut.
pub struct Segments<'a> {
    header: &'a [u8],
    transport: usize,
    size: usize,
    /// Where the next payload starts in the packet.
    at: usize,
    end: usize,
    index: u32,
    ipv4: bool,
    tcp: bool,
    /// The pseudo header's sum without the length.
    pseudo: u64,
}

impl<'a> Segments<'a> {
    /// Prepares to cut `packet`, whose header is kept in `template`; `None` if it is not to be
    /// cut, or could not be.
    pub fn new(
        template: &'a mut [u8; MAX_HEADER],
        packet: &[u8],
        inner: &Inner,
        segmentation: Segmentation,
    ) -> Option<Self> {
        let size = match segmentation {
            Segmentation::None => return None,
            Segmentation::Tcp(size) | Segmentation::Udp(size) => usize::from(size),
        };
        let header_len = usize::from(inner.payload);
        let header = template.get_mut(..header_len)?;
        header.copy_from_slice(packet.get(..header_len)?);
        (size > 0).then_some(Self {
            header,
            transport: usize::from(inner.transport),
            size,
            at: header_len,
            end: packet.len(),
            index: 0,
            ipv4: inner.is_ipv4(),
            tcp: inner.protocol == protocol::TCP,
            pseudo: checksum::pseudo_header(inner.source, inner.destination, inner.protocol, 0),
        })
    }

    /// Stamps the next packet's header in front of its payload and returns where the packet lies.
    pub fn next(&mut self, packet: &mut [u8]) -> Option<Range<usize>> {
        if self.at >= self.end {
            return None;
        }
        let payload_len = self.size.min(self.end - self.at);
        let start = self.at - self.header.len();
        let last = self.at + payload_len == self.end;
        let out = packet.get_mut(start..self.at)?;
        out.copy_from_slice(self.header);
        self.stamp_ip(out, payload_len);
        self.stamp_transport(out, payload_len, last);
        self.index += 1;
        self.at += payload_len;
        Some(start..self.at)
    }

    fn stamp_ip(&self, out: &mut [u8], payload_len: usize) {
        let len = self.header.len() + payload_len;
        if self.ipv4 {
            out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(self.index as u16);
            out[4..6].copy_from_slice(&id.to_be_bytes());
            let sum = checksum::ipv4_header(&out[..self.transport.min(60)]);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            out[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
    }

    /// Stamps what differs between segments (RFC 9293), and the partial checksum of this length.
    fn stamp_transport(&self, out: &mut [u8], payload_len: usize, last: bool) {
        let length = self.header.len() - self.transport + payload_len;
        let partial = checksum::fold(self.pseudo + length as u64).to_be_bytes();
        let header = &mut out[self.transport..];
        if self.tcp {
            let first = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let sequence = first.wrapping_add(self.index.wrapping_mul(self.size as u32));
            header[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                header[13] &= !(tcp_flags::FIN | tcp_flags::PSH);
            }
            if self.index > 0 {
                header[13] &= !tcp_flags::CWR;
            }
            header[16..18].copy_from_slice(&partial);
        } else {
            header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            header[6..8].copy_from_slice(&partial);
        }
    }
}

/// The packets that a packet becomes: its segments, or itself.
pub struct Packets<'a> {
    segments: Option<Segments<'a>>,
    whole: Option<Range<usize>>,
}

impl<'a> Packets<'a> {
    /// Prepares to take `packet` apart, as [`Segments::new`] does.
    pub fn new(
        template: &'a mut [u8; MAX_HEADER],
        packet: &[u8],
        inner: &Inner,
        segmentation: Segmentation,
    ) -> Self {
        let segments = Segments::new(template, packet, inner, segmentation);
        let whole = segments.is_none().then_some(0..packet.len());
        Self { segments, whole }
    }

    /// Where the next packet lies, its header in front of its payload.
    #[inline]
    pub fn next(&mut self, packet: &mut [u8]) -> Option<Range<usize>> {
        match &mut self.segments {
            Some(segments) => segments.next(packet),
            None => self.whole.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    fn build(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
        let ip = if v6 {
            PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
        };
        let mut packet = Vec::new();
        if tcp {
            let tcp = ip.tcp(1, 2, 0xffff_ff00, 500).ack(9).psh().fin().cwr();
            tcp.write(&mut packet, payload).unwrap();
        } else {
            ip.udp(1, 2).write(&mut packet, payload).unwrap();
        }
        packet
    }

    proptest! {
        /// Cut packets, their sums completed, are what etherparse would have built.
        #[test]
        fn cut_packets_are_proper_packets(v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 1..5000), size in 1u16..1500) {
            let mut packet = build(v6, tcp, &payload);
            let inner = Inner::parse(&packet).unwrap();
            let how = if tcp { Segmentation::Tcp(size) } else { Segmentation::Udp(size) };
            let mut template = [0; MAX_HEADER];
            let mut segments = Segments::new(&mut template, &packet, &inner, how).unwrap();
            let PacketsBytes { packets: count, bytes: total } = count(&inner, how);
            let (longest, mut seen) = (longest(&inner, how), 0);
            let mut got: Vec<u8> = Vec::new();
            let (mut packets, mut bytes) = (0, 0);
            while let Some(range) = segments.next(&mut packet) {
                let one = &mut packet[range];
                let parsed = Inner::parse(one).unwrap();
                seen = parsed.len.max(seen);
                prop_assert_eq!((parsed.source, parsed.destination, parsed.ports), (inner.source, inner.destination, inner.ports));
                let mut whole = one.to_vec();
                checksum::complete(&mut whole, &parsed);
                let slices = SlicedPacket::from_ip(&whole).unwrap();
                if let Some(etherparse::NetSlice::Ipv4(ip)) = &slices.net {
                    prop_assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
                    prop_assert_eq!(ip.header().identification(), packets as u16);
                }
                match slices.transport.unwrap() {
                    TransportSlice::Tcp(t) => {
                        let last = packets + 1 == count;
                        prop_assert_eq!(t.sequence_number(), 0xffff_ff00u32.wrapping_add(got.len() as u32));
                        prop_assert_eq!((t.fin(), t.psh(), t.cwr(), t.ack()), (last, last, packets == 0, true));
                        got.extend(t.payload());
                    }
                    TransportSlice::Udp(u) => got.extend(u.payload()),
                    other => panic!("{other:?}"),
                }
                packets += 1;
                bytes += whole.len() as u64;
            }
            prop_assert_eq!(got, payload);
            prop_assert_eq!((packets, bytes, seen), (count, total, longest));
        }
    }
}
