//! What each fuzz target does with its input. The targets of cargo-fuzz and the replay of the
//! corpus in `tests/attack` both run these.

use overlay::{
    api::proto::StreamReport,
    engine::datapath::{
        coalesce::Run,
        mss,
        offload::{self, Segmentation},
        segment::{MAX_HEADER, Segments},
    },
    manager::{
        log::Request,
        parts::{self, Parts},
        report::Report,
    },
    types::Moment,
    wire::{
        checksum,
        control::{self, Control},
        envelope::{Checksum, DataHeader, HEADER_LEN, Kind, PREFIX_LEN, Prefix},
        fragment::{self, FragmentHeader},
        handshake::{CookieReply, Initiation, Payload, Response},
        icmp::{self, IcmpError},
        inner::Inner,
        vnet::VnetHeader,
    },
};
use prost::Message as _;

/// Control messages: what is accepted is written back the same.
pub fn control(data: &[u8]) {
    if let Ok(message) = Control::parse(data) {
        let mut out = [0; control::MAX_LEN];
        let len = message.emit(&mut out);
        assert_eq!(out[..len], *data);
    }
}

/// The clear header, the sealed prefix and a fragment's header: what is accepted is written back the same.
pub fn envelope(data: &[u8]) {
    let kind = Kind::of(data);
    if let Ok(kind) = kind {
        assert_eq!(kind.first_byte(), data[0]);
    }
    if let Ok(header) = DataHeader::parse(data) {
        assert_eq!(kind, Ok(Kind::Data));
        assert_eq!(header.emit(), data[..HEADER_LEN]);
        assert_eq!(header.nonce()[4..], data[8..HEADER_LEN]);
    }
    if let Some(bytes) = data.first_chunk::<PREFIX_LEN>()
        && let Ok(prefix) = Prefix::parse(*bytes)
    {
        assert_eq!(prefix.emit(), *bytes);
    }
    if let Ok((header, piece)) = FragmentHeader::parse(data) {
        assert_eq!([&header.emit()[..], piece].concat(), data);
        assert!(usize::from(header.offset) + piece.len() <= fragment::MAX_PACKET);
    }
}

/// The three datagrams of a handshake and its payload: what is accepted is written back the same.
pub fn handshake(data: &[u8]) {
    if let Ok(message) = Initiation::parse(data) {
        assert_eq!(message.emit(), data);
    }
    if let Ok(message) = Response::parse(data) {
        assert_eq!(message.emit(), data);
    }
    if let Ok(message) = CookieReply::parse(data) {
        assert_eq!(message.emit(), data);
    }
    if let Ok(payload) = Payload::parse(data) {
        assert_eq!(Payload::parse(&payload.emit()), Ok(payload));
    }
}

/// The inner packet's parser, and everything that trusts what it says. The first ten bytes are a
/// `virtio_net_hdr`.
pub fn inner(data: &[u8]) {
    let Some((header, bytes)) = data.split_first_chunk() else { return };
    let mut packet = bytes.to_vec();
    let Ok(inner) = Inner::parse(&packet) else { return };
    let _ = (inner.flow_hash(), inner.checksum_offset());
    let mut out = vec![0; 70_000];
    icmp::echo_reply(&packet, &inner, &mut out);
    icmp::error(IcmpError::TooBig { mtu: 1280 }, inner.destination, &packet, &inner, &mut out);
    mss::clamp(&mut packet.clone(), &inner, Checksum::Complete, 1280);
    checksum::complete(&mut packet.clone(), &inner);
    let vnet = VnetHeader::parse(header);
    if let Ok((sum, how)) = offload::interpret(&vnet, &mut packet, &inner) {
        cut_and_join(&mut packet, &inner, sum, how);
    }
}

/// Every cut packet is one that the parser takes, and joining takes what it may.
fn cut_and_join(packet: &mut [u8], inner: &Inner, sum: Checksum, how: Segmentation) {
    let mut template = [0; MAX_HEADER];
    let Some(mut segments) = Segments::new(&mut template, packet, inner, how) else { return };
    let mut run: Option<(Run, Vec<u8>)> = None;
    while let Some(range) = segments.next(packet) {
        let one = packet[range].to_vec();
        let parsed = Inner::parse(&one).expect("a cut packet is a packet");
        match &mut run {
            Some((run, first)) => {
                run.append(first, &one, &parsed, sum);
            }
            None => run = Some((Run::start(&one, &parsed, sum), one)),
        }
    }
    if let Some((run, mut first)) = run {
        run.finish(&mut first);
    }
}

/// What managers say to each other: calls of the log, the parts of a snapshot, and reports of streams.
/// What is accepted is written back the same, and a snapshot only if it is whole.
pub fn managers(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 3 {
        0 => {
            if let Ok(request) = serde_json::from_slice::<Request>(body) {
                let written = serde_json::to_vec(&request).expect("a call is JSON");
                let again: Request = serde_json::from_slice(&written).expect("it is read back");
                assert_eq!(serde_json::to_vec(&again).expect("a call is JSON"), written);
            }
        }
        1 => {
            let mut messages = body.split(|byte| *byte == b'\n');
            let Some(Ok(mut parts)) = messages.next().map(Parts::new) else { return };
            let taken = messages.try_for_each(|part| parts.add(part));
            if let (Ok(()), Ok(Request::Snapshot(vote, meta, state))) = (taken, parts.finish()) {
                let sent: Vec<Vec<u8>> = parts::cut(vote, meta, state).collect();
                let mut parts = Parts::new(&sent[0]).expect("a head");
                sent[1..].iter().try_for_each(|part| parts.add(part)).expect("parts");
                assert!(parts.finish().is_ok());
            }
        }
        _ => {
            let Ok(report) = StreamReport::decode(body) else { return };
            // Later than anything was heard.
            let now = Moment::from_nanos(u64::MAX / 2);
            if let Ok(report) = Report::read(report, now) {
                let again = Report::read(report.clone().write(now), now);
                assert_eq!(again.map(|again| again.said).ok(), Some(report.said));
            }
        }
    }
}
