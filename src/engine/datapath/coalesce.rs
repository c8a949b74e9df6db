//! Consecutive packets of one flow become one super-packet, each payload left where it lies: the
//! first packet's header is rewritten for the sum of them, and the caller gathers the payloads.
//!
//! Only what the kernel's own GRO would join is joined: TCP data with nothing but ACK and PSH set
//! and equal acknowledgement, window, options, TOS, TTL; UDP datagrams of one length; both with
//! partial checksums only, so that nothing is summed here and nothing bad is covered up. A shorter
//! packet or PSH closes the run.

use crate::wire::{
    checksum,
    envelope::Checksum,
    inner::{Fragment, Inner, protocol, tcp_flags},
    vnet::{NEEDS_CSUM, VnetHeader, gso},
};

/// A run of packets that started with one.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    first: Inner,
    /// Payload of every packet but the last.
    size: u16,
    payload: u16,
    count: u16,
    next_sequence: u32,
    push: bool,
    open: bool,
    checksum: Checksum,
}

impl Run {
    /// Starts a run with a packet of any kind.
    pub fn start(packet: &[u8], inner: &Inner, checksum: Checksum) -> Self {
        let size = inner.len - inner.payload;
        let plain = checksum == Checksum::Partial && inner.fragment == Fragment::Whole && size > 0;
        let open = match inner.protocol {
            protocol::TCP => plain && inner.tcp_flags == tcp_flags::ACK && no_extensions(inner),
            protocol::UDP => plain && no_extensions(inner),
            _ => false,
        };
        let next_sequence = match inner.protocol {
            protocol::TCP => sequence(packet, inner).wrapping_add(u32::from(size)),
            _ => 0,
        };
        Self {
            first: *inner,
            size,
            payload: size,
            count: 1,
            next_sequence,
            push: false,
            open,
            checksum,
        }
    }

    /// How many packets it has.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether another packet might still continue it.
    pub fn is_open(&self) -> bool {
        self.open && self.count() < MAX_COUNT
    }

    /// Whether a packet is of the run's flow.
    pub fn is_flow(&self, inner: &Inner) -> bool {
        inner.ports == self.first.ports
            && inner.protocol == self.first.protocol
            && inner.source == self.first.source
            && inner.destination == self.first.destination
    }

    /// Whether its packets' checksums are partial.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The length of all its packets, before they were joined.
    pub fn bytes(&self) -> usize {
        usize::from(self.payload) + self.count() * usize::from(self.first.payload)
    }

    /// Takes a packet into the run if it continues it. `first` is the packet that started the run.
    pub fn append(&mut self, first: &[u8], packet: &[u8], inner: &Inner, sum: Checksum) -> bool {
        let size = inner.len - inner.payload;
        let fits = self.is_open()
            && sum == Checksum::Partial
            && size > 0
            && size <= self.size
            && self
                .first
                .payload
                .checked_add(self.payload)
                .and_then(|l| l.checked_add(size))
                .is_some()
            && inner.fragment == Fragment::Whole
            && self.is_flow(inner)
            && inner.transport == self.first.transport
            && inner.payload == self.first.payload
            && same_ip(first, packet, inner);
        if !fits {
            return false;
        }
        if inner.protocol == protocol::TCP {
            let flags_fit = inner.tcp_flags & !tcp_flags::PSH == tcp_flags::ACK;
            let continues = sequence(packet, inner) == self.next_sequence;
            if !flags_fit || !continues || !same_tcp(first, packet, inner) {
                return false;
            }
            self.next_sequence = self.next_sequence.wrapping_add(u32::from(size));
            self.push = inner.tcp_flags & tcp_flags::PSH != 0;
        }
        self.payload += size;
        self.count += 1;
        self.open = size == self.size && !self.push;
        true
    }

    /// Rewrites the first packet's header for the whole run and returns the virtio_net_hdr.
    pub fn finish(&self, first: &mut [u8]) -> VnetHeader {
        let Some(offset) = self.first.checksum_offset() else { return VnetHeader::default() };
        if self.checksum == Checksum::Complete {
            return VnetHeader::default();
        }
        let header_len = self.first.payload;
        let mut vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: gso::NONE,
            hdr_len: header_len,
            gso_size: 0,
            csum_start: self.first.transport,
            csum_offset: offset,
        };
        if self.count > 1 {
            vnet.gso_type = match (self.first.protocol, self.first.is_ipv4()) {
                (protocol::UDP, _) => gso::UDP_L4,
                (_, true) => gso::TCPV4,
                (_, false) => gso::TCPV6,
            };
            vnet.gso_size = self.size;
            self.rewrite(first);
        }
        vnet
    }

    fn rewrite(&self, packet: &mut [u8]) {
        let transport = usize::from(self.first.transport);
        let total = usize::from(self.first.payload) + usize::from(self.payload);
        if self.first.is_ipv4() {
            packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            let sum = checksum::ipv4_header(&packet[..transport.min(60)]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        }
        let length = total - transport;
        let Inner { source, destination, protocol, .. } = self.first;
        let pseudo = checksum::pseudo_header(source, destination, protocol, length);
        let partial = checksum::fold(pseudo).to_be_bytes();
        let header = &mut packet[transport..];
        if self.first.protocol == protocol::TCP {
            header[16..18].copy_from_slice(&partial);
            if self.push {
                header[13] |= tcp_flags::PSH;
            }
        } else {
            header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            header[6..8].copy_from_slice(&partial);
        }
    }
}

/// Whether the transport header follows the fixed IPv6 header, or any IPv4 header.
fn no_extensions(inner: &Inner) -> bool {
    inner.is_ipv4() || inner.transport == 40
}

fn sequence(packet: &[u8], inner: &Inner) -> u32 {
    let at = usize::from(inner.transport) + 4;
    match packet.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        Some(_) | None => 0,
    }
}

/// TOS, DF, TTL and options of IPv4; traffic class, flow label and hop limit of IPv6.
fn same_ip(a: &[u8], b: &[u8], inner: &Inner) -> bool {
    let same = |range: std::ops::Range<usize>| a.get(range.clone()) == b.get(range);
    if inner.is_ipv4() {
        same(0..2) && same(6..9) && same(20..usize::from(inner.transport).max(20))
    } else {
        same(0..4) && same(7..8)
    }
}

/// Acknowledgement, header length, window, urgent pointer and options.
fn same_tcp(a: &[u8], b: &[u8], inner: &Inner) -> bool {
    let (start, end) = (usize::from(inner.transport), usize::from(inner.payload));
    let same = |range: std::ops::Range<usize>| a.get(range.clone()) == b.get(range);
    same(start + 8..start + 13) && same(start + 14..start + 16) && same(start + 18..end)
}

/// The kernel's own limit on segments of a UDP super-packet before 6.9, and of a read train.
pub const MAX_COUNT: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::datapath::{
        offload::Segmentation,
        segment::{MAX_HEADER, Segments},
    };

    fn tcp(
        v6: bool,
        sequence: u32,
        change: impl FnOnce(&mut etherparse::TcpHeader),
        payload: &[u8],
    ) -> Vec<u8> {
        use etherparse::PacketBuilder;
        let ip = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 9)
        } else {
            PacketBuilder::ipv4([1; 4], [2; 4], 9)
        };
        let mut header = etherparse::TcpHeader::new(1, 2, sequence, 4);
        header.ack = true;
        change(&mut header);
        let mut packet = Vec::new();
        ip.tcp_header(header).write(&mut packet, payload).unwrap();
        packet
    }

    fn joins(a: &[u8], b: &[u8]) -> bool {
        let (first, second) = (Inner::parse(a).unwrap(), Inner::parse(b).unwrap());
        Run::start(a, &first, Checksum::Partial).append(a, b, &second, Checksum::Partial)
    }

    proptest! {
        /// Cutting and joining again gives the packet that was cut.
        #[test]
        fn joining_undoes_cutting(v6: bool, udp: bool, payload in proptest::collection::vec(any::<u8>(), 2..4000), size in 100u16..1400) {
            use etherparse::PacketBuilder;
            let original = if udp {
                let ip = if v6 { PacketBuilder::ipv6([1; 16], [2; 16], 9) } else { PacketBuilder::ipv4([1; 4], [2; 4], 9) };
                let mut packet = Vec::new();
                ip.udp(1, 2).write(&mut packet, &payload).unwrap();
                packet
            } else {
                tcp(v6, 77, |h| h.psh = true, &payload)
            };
            let inner = Inner::parse(&original).unwrap();
            let how = if udp { Segmentation::Udp(size) } else { Segmentation::Tcp(size) };
            let mut buffer = original.clone();
            let mut template = [0; MAX_HEADER];
            let mut segments = Segments::new(&mut template, &buffer, &inner, how).unwrap();
            let mut packets = Vec::new();
            while let Some(range) = segments.next(&mut buffer) {
                packets.push(buffer[range].to_vec());
            }
            prop_assume!(packets.len() > 1);
            let first = Inner::parse(&packets[0]).unwrap();
            let mut run = Run::start(&packets[0], &first, Checksum::Partial);
            let mut joined = packets[0].clone();
            for packet in &packets[1..] {
                let inner = Inner::parse(packet).unwrap();
                prop_assert!(run.append(&packets[0], packet, &inner, Checksum::Partial));
                joined.extend(&packet[usize::from(inner.payload)..]);
            }
            let vnet = run.finish(&mut joined);
            prop_assert_eq!((vnet.gso_size, vnet.flags), (size, NEEDS_CSUM));
            prop_assert_eq!(run.count(), packets.len());
            prop_assert_eq!(run.bytes(), packets.iter().map(Vec::len).sum::<usize>());
            let inner = Inner::parse(&joined).unwrap();
            checksum::complete(&mut joined, &inner);
            prop_assert_eq!(joined, original);
        }
    }

    #[test]
    fn what_grows_no_run() {
        let first = tcp(false, 0, |_| {}, &[1; 100]);
        let next = |change: fn(&mut etherparse::TcpHeader)| tcp(false, 100, change, &[2; 100]);
        assert!(joins(&first, &next(|_| {})));
        assert!(joins(&first, &next(|h| h.psh = true)));
        for (why, change) in [
            ("a gap", (|h| h.sequence_number = 101) as fn(&mut etherparse::TcpHeader)),
            ("fin", |h| h.fin = true),
            ("rst", |h| h.rst = true),
            ("another acknowledgement", |h| h.acknowledgment_number = 9),
            ("another window", |h| h.window_size = 9),
            ("another port", |h| h.destination_port = 9),
            ("options", |h| h.set_options_raw(&[1, 1, 1, 1]).unwrap()),
            ("ece", |h| h.ece = true),
            ("cwr", |h| h.cwr = true),
        ] {
            assert!(!joins(&first, &next(change)), "{why}");
        }
        assert!(!joins(&first, &tcp(false, 100, |_| {}, &[])), "no data");
        assert!(!joins(&first, &tcp(false, 100, |_| {}, &[2; 101])), "a longer packet");
        assert!(!joins(&tcp(false, 0, |h| h.psh = true, &[1; 100]), &next(|_| {})), "psh closes");
        let mut other_ttl = next(|_| {});
        other_ttl[8] += 1;
        assert!(!joins(&first, &other_ttl), "another TTL");
        let mut congestion = next(|_| {});
        congestion[1] = 3;
        assert!(!joins(&first, &congestion), "another TOS");
    }

    #[test]
    fn complete_sums_are_left_alone_and_alone() {
        let (mut a, b) = (tcp(true, 0, |_| {}, &[1; 10]), tcp(true, 10, |_| {}, &[1; 10]));
        let (first, second) = (Inner::parse(&a).unwrap(), Inner::parse(&b).unwrap());
        let mut run = Run::start(&a, &first, Checksum::Complete);
        assert!(!run.append(&a, &b, &second, Checksum::Complete));
        let before = a.clone();
        assert_eq!(run.finish(&mut a), VnetHeader::default());
        assert_eq!(a, before);
    }
}
