//! The bytes of every message as they stand in `tests/golden/wire`, written by hand from the layouts
//! at the top of this folder's files: what is encoded is the file, what is parsed is the value.

use super::{
    control::{self, Control},
    envelope::{Checksum, DataHeader, HEADER_LEN, Kind, NextProtocol, PREFIX_LEN, Prefix},
    fragment::{Family, FragmentHeader, Last},
    handshake::{
        COOKIE_LEN, Ciphers, CookieReply, INITIATION_NOISE_LEN, Initiation, MAC_LEN, Payload,
        RESPONSE_NOISE_LEN, Response,
    },
    inner::{Fragment, Inner, protocol},
};
use crate::types::{NodeId, VersionRange, Vni};

/// Reads a golden file: hexadecimal bytes; `#` starts a comment.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/wire/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let bytes = lines.flat_map(str::split_whitespace).map(|byte| u8::from_str_radix(byte, 16));
    bytes.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The bytes that count up from `first`, as the files have them for what is random or sealed.
fn from<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|place| first.wrapping_add(place as u8))
}

#[test]
fn an_initiation() {
    let mut noise = [0; INITIATION_NOISE_LEN];
    noise[..32].copy_from_slice(&from::<32>(0x01));
    noise[32..80].copy_from_slice(&from::<48>(0x21));
    noise[80..].copy_from_slice(&from::<80>(0x51));
    let (mac1, mac2) = (from::<MAC_LEN>(0xb0), from(0xd0));
    let message = Initiation { sender: 0xa1a2_a3a4, epoch: 7, noise, mac1, mac2 };
    let bytes = golden("initiation");
    assert_eq!(message.emit(), *bytes);
    assert_eq!(Initiation::parse(&bytes), Ok(message));
    assert_eq!(Kind::of(&bytes), Ok(Kind::Initiation));
}

#[test]
fn a_response() {
    let mut noise = [0; RESPONSE_NOISE_LEN];
    noise[..32].copy_from_slice(&from::<32>(0x01));
    noise[32..].copy_from_slice(&from::<80>(0x21));
    let mac1 = from(0xb0);
    let message = Response { receiver: 0xa1a2_a3a4, sender: 0xc1c2_c3c4, noise, mac1 };
    let bytes = golden("response");
    assert_eq!(message.emit(), *bytes);
    assert_eq!(Response::parse(&bytes), Ok(message));
    assert_eq!(Kind::of(&bytes), Ok(Kind::Response));
}

#[test]
fn a_cookie_reply() {
    let sealed = from::<{ COOKIE_LEN + 16 }>(0x41);
    let message = CookieReply { receiver: 0xa1a2_a3a4, nonce: from(1), sealed };
    let bytes = golden("cookie-reply");
    assert_eq!(message.emit(), *bytes);
    assert_eq!(CookieReply::parse(&bytes), Ok(message));
    assert_eq!(Kind::of(&bytes), Ok(Kind::CookieReply));
}

#[test]
fn a_data_header_and_what_is_sealed_behind_it() {
    let header = DataHeader { lane: 3, receiver: 0x0102_0304, counter: 0x0506_0708_090a_0b0c };
    let bytes = golden("data");
    assert_eq!(header.emit(), bytes[..HEADER_LEN]);
    assert_eq!(DataHeader::parse(&bytes), Ok(header));
    assert_eq!(Kind::of(&bytes), Ok(Kind::Data));
    assert_eq!(header.nonce(), [0, 0, 0, 3, 5, 6, 7, 8, 9, 10, 11, 12]);

    let opened = golden("data-opened");
    let (prefix, packet) = opened.split_first_chunk::<PREFIX_LEN>().unwrap();
    let expected =
        Prefix { vni: Vni::new(4097).unwrap(), next: NextProtocol::Ipv4(Checksum::Partial) };
    assert_eq!(Prefix::parse(*prefix), Ok(expected));
    assert_eq!(expected.emit(), *prefix);
    let inner = Inner {
        source: [10, 9, 0, 2].into(),
        destination: [10, 9, 0, 3].into(),
        protocol: protocol::UDP,
        transport: 20,
        payload: 28,
        len: 28,
        ports: (4000, 9000),
        tcp_flags: 0,
        fragment: Fragment::Whole,
        dont_fragment: false,
    };
    assert_eq!(Inner::parse(packet), Ok(inner));
}

#[test]
fn a_fragment() {
    let bytes = golden("fragment");
    let (prefix, body) = bytes.split_first_chunk::<PREFIX_LEN>().unwrap();
    let expected = Prefix { vni: Vni::new(4097).unwrap(), next: NextProtocol::Fragment };
    assert_eq!(Prefix::parse(*prefix), Ok(expected));
    assert_eq!(expected.emit(), *prefix);
    let (id, offset) = (0xa1a2_a3a4, 264);
    let header = FragmentHeader { id, offset, last: Last::No, family: Family::Ipv6 };
    assert_eq!(FragmentHeader::parse(body), Ok((header, &from::<16>(0x41)[..])));
    assert_eq!(header.emit(), body[..8]);
}

#[test]
fn both_payloads() {
    let node = NodeId::from_bytes(from(0));
    let initiation = Payload {
        node,
        start_count: 0x1011_1213_1415_1617,
        counter: 0x2021_2223_2425_2627,
        index: 0xa1a2_a3a4,
        versions: VersionRange { lowest: 1, highest: 2 },
        ciphers: Ciphers { aes_256_gcm: true, chacha20_poly1305: true },
        lanes: 16,
    };
    let response = Payload {
        node,
        start_count: 0,
        counter: 0,
        index: 0xc1c2_c3c4,
        versions: VersionRange { lowest: 1, highest: 1 },
        ciphers: Ciphers { aes_256_gcm: false, chacha20_poly1305: true },
        lanes: 1,
    };
    for (name, payload) in [("payload", initiation), ("payload-response", response)] {
        let bytes = golden(name);
        assert_eq!(payload.emit(), *bytes, "{name}");
        assert_eq!(Payload::parse(&bytes), Ok(payload), "{name}");
    }
}

#[test]
fn every_control_message() {
    let (id, packets) = (0xa1a2_a3a4, 0x0102_0304_0506_0708);
    for (name, message) in [
        ("control-keepalive", Control::Keepalive),
        ("control-echo-request", Control::EchoRequest { id, sealed: packets }),
        ("control-echo-reply", Control::EchoReply { id, opened: packets }),
    ] {
        let bytes = golden(name);
        let mut out = [0xff; control::MAX_LEN];
        let len = message.emit(&mut out);
        assert_eq!(out[..len], *bytes, "{name}");
        assert_eq!(Control::parse(&bytes), Ok(message), "{name}");
    }
}

#[test]
fn every_golden_file_is_compared() {
    let own = include_str!("tests.rs");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/wire");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".hex").unwrap();
        assert!(own.contains(&format!("\"{name}\"")), "{name} has no test here");
    }
}
