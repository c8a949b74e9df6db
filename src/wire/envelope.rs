//! The sealed envelope.
//!
//! ```text
//!  0               1               2               3
//! | version|kind  | flags         | lane          | reserved (0)  |   clear, 16 bytes,
//! | receiver index                                                |   all of it
//! | counter (64 bits)                                             |   associated data
//! |                                                               |
//! | VNI (24 bits)                                 | next protocol |   sealed from here
//! | inner packet, piece of one, or control message ...            |
//! | tag (16 bytes)                                                |
//! ```
//! All four kinds of datagram start with a byte of version and kind, and have the lane (0 for all
//! but data) at the same place, by which receivers steer.

use crate::types::Vni;

/// The version of the wire format that this program speaks.
pub const VERSION: u8 = 1;
/// The clear header's length.
pub const HEADER_LEN: usize = 16;
/// The length of VNI and next protocol.
pub const PREFIX_LEN: usize = 4;
/// The length of the AEAD's tag.
pub const TAG_LEN: usize = 16;
/// What the envelope adds to an inner packet inside a UDP datagram.
pub const OVERHEAD: usize = HEADER_LEN + PREFIX_LEN + TAG_LEN;
/// What the envelope and UDP over IPv4 add to an inner packet.
pub const OVERHEAD_IPV4: u16 = 20 + 8 + OVERHEAD as u16;
/// What the envelope and UDP over IPv6 add to an inner packet.
pub const OVERHEAD_IPV6: u16 = 40 + 8 + OVERHEAD as u16;
/// Where the lane stands in a datagram of any kind.
pub const LANE_OFFSET: u32 = 2;
/// The greatest number of lanes that a node may state.
pub const MAX_LANES: u8 = 16;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first message of a handshake.
    Initiation,
    /// Its answer.
    Response,
    /// The demand to prove the source address first.
    CookieReply,
    /// A sealed packet.
    Data,
}

/// Why a datagram's first byte is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindError {
    /// There is no byte.
    Empty,
    /// The version is another one.
    Version,
    /// The version is ours, the kind is none that we know.
    Kind,
}

impl Kind {
    /// Reads version and kind.
    pub fn of(datagram: &[u8]) -> Result<Self, KindError> {
        let first = *datagram.first().ok_or(KindError::Empty)?;
        if first >> 4 != VERSION {
            return Err(KindError::Version);
        }
        match first & 0x0f {
            1 => Ok(Self::Initiation),
            2 => Ok(Self::Response),
            3 => Ok(Self::CookieReply),
            4 => Ok(Self::Data),
            _ => Err(KindError::Kind),
        }
    }

    /// Returns the byte of version and kind.
    pub const fn first_byte(self) -> u8 {
        let kind = match self {
            Self::Initiation => 1,
            Self::Response => 2,
            Self::CookieReply => 3,
            Self::Data => 4,
        };
        VERSION << 4 | kind
    }
}

/// The clear header of a data datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The sender's lane.
    pub lane: u8,
    /// The receiver's name for the session.
    pub receiver: u32,
    /// The lane's counter.
    pub counter: u64,
}

/// Says that a datagram is not of our version and kind data, is too short, or has bits where zero
/// belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl DataHeader {
    /// Parses a datagram of kind data; it has at least a prefix and a tag.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER_LEN] = datagram.first_chunk().ok_or(Malformed)?;
        let first = Kind::Data.first_byte();
        if datagram.len() < OVERHEAD || header[0] != first || header[1] != 0 || header[3] != 0 {
            return Err(Malformed);
        }
        let (index, counter) = index_and_counter(header);
        Ok(Self { lane: header[2], receiver: index, counter })
    }

    /// Returns the sixteen bytes, which are the associated data too.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        clear_header(Kind::Data, self.lane, self.receiver, self.counter)
    }

    /// Returns the AEAD's nonce: 24 zero bits, the lane, the counter.
    pub fn nonce(&self) -> [u8; 12] {
        nonce(self.lane, self.counter)
    }
}

/// Builds the nonce of one (lane, counter).
pub fn nonce(lane: u8, counter: u64) -> [u8; 12] {
    let c = counter.to_be_bytes();
    [0, 0, 0, lane, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]
}

/// Builds the sixteen clear bytes that every kind starts with.
pub(super) fn clear_header(kind: Kind, lane: u8, index: u32, counter: u64) -> [u8; HEADER_LEN] {
    let i = index.to_be_bytes();
    let c = counter.to_be_bytes();
    [
        kind.first_byte(),
        0,
        lane,
        0,
        i[0],
        i[1],
        i[2],
        i[3],
        c[0],
        c[1],
        c[2],
        c[3],
        c[4],
        c[5],
        c[6],
        c[7],
    ]
}

/// Reads the index and the counter of a clear header.
pub(super) fn index_and_counter(header: &[u8; HEADER_LEN]) -> (u32, u64) {
    let [_, _, _, _, i0, i1, i2, i3, counter @ ..] = *header;
    (u32::from_be_bytes([i0, i1, i2, i3]), u64::from_be_bytes(counter))
}

/// What the sealed part carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextProtocol {
    /// An IPv4 packet.
    Ipv4(Checksum),
    /// An IPv6 packet.
    Ipv6(Checksum),
    /// A piece of a packet that is longer than the path's datagrams carry.
    Fragment,
    /// A control message; the VNI is 0.
    Control,
}

/// Whether an inner packet's transport checksum is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It is as the receiver's stack wants it.
    Complete,
    /// It holds the pseudo header's sum; the receiver completes it, or its kernel does.
    Partial,
}

/// The first four sealed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The network.
    pub vni: Vni,
    /// What follows.
    pub next: NextProtocol,
}

/// Says that the sealed next protocol is none that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownProtocol;

impl Prefix {
    /// The prefix of control messages.
    pub const CONTROL: Self = Self { vni: Vni::from_bytes([0; 3]), next: NextProtocol::Control };

    /// Parses the prefix.
    pub fn parse(bytes: [u8; PREFIX_LEN]) -> Result<Self, UnknownProtocol> {
        let [a, b, c, next] = bytes;
        let checksum = if next & PARTIAL == 0 { Checksum::Complete } else { Checksum::Partial };
        let next = match (next & !PARTIAL, checksum) {
            (IPV4, checksum) => NextProtocol::Ipv4(checksum),
            (IPV6, checksum) => NextProtocol::Ipv6(checksum),
            (FRAGMENT, Checksum::Complete) => NextProtocol::Fragment,
            (CONTROL, Checksum::Complete) => NextProtocol::Control,
            (_, _) => return Err(UnknownProtocol),
        };
        Ok(Self { vni: Vni::from_bytes([a, b, c]), next })
    }

    /// Returns the four bytes.
    pub fn emit(self) -> [u8; PREFIX_LEN] {
        let (next, checksum) = match self.next {
            NextProtocol::Ipv4(checksum) => (IPV4, checksum),
            NextProtocol::Ipv6(checksum) => (IPV6, checksum),
            NextProtocol::Fragment => (FRAGMENT, Checksum::Complete),
            NextProtocol::Control => (CONTROL, Checksum::Complete),
        };
        let flag = match checksum {
            Checksum::Complete => 0,
            Checksum::Partial => PARTIAL,
        };
        let [a, b, c] = self.vni.to_bytes();
        [a, b, c, next | flag]
    }
}

/// The numbers of IPv4 and IPv6 are those of VXLAN-GPE's next protocol.
pub(super) const IPV4: u8 = 1;
pub(super) const IPV6: u8 = 2;
const FRAGMENT: u8 = 0x10;
const CONTROL: u8 = 0x11;
const PARTIAL: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_data_header_is_read_as_it_was_written(lane: u8, receiver: u32, counter: u64) {
            let header = DataHeader { lane, receiver, counter };
            let mut datagram = header.emit().to_vec();
            datagram.extend([0; PREFIX_LEN + TAG_LEN]);
            prop_assert_eq!(Kind::of(&datagram), Ok(Kind::Data));
            prop_assert_eq!(DataHeader::parse(&datagram), Ok(header));
            prop_assert_eq!(datagram[LANE_OFFSET as usize], lane);
        }

        #[test]
        fn a_prefix_that_is_accepted_is_written_back_the_same(bytes: [u8; 4]) {
            if let Ok(prefix) = Prefix::parse(bytes) {
                prop_assert_eq!(prefix.emit(), bytes);
            }
        }
    }

    #[test]
    fn prefixes_of_every_next_protocol() {
        let vni = Vni::new(0x01_02_03).unwrap();
        for (next, byte) in [
            (NextProtocol::Ipv4(Checksum::Complete), 0x01),
            (NextProtocol::Ipv4(Checksum::Partial), 0x81),
            (NextProtocol::Ipv6(Checksum::Complete), 0x02),
            (NextProtocol::Ipv6(Checksum::Partial), 0x82),
            (NextProtocol::Fragment, 0x10),
            (NextProtocol::Control, 0x11),
        ] {
            assert_eq!(Prefix { vni, next }.emit(), [1, 2, 3, byte]);
            assert_eq!(Prefix::parse([1, 2, 3, byte]), Ok(Prefix { vni, next }));
        }
        for byte in [0x00, 0x03, 0x0f, 0x12, 0x90, 0x91, 0xff] {
            assert_eq!(Prefix::parse([0, 0, 0, byte]), Err(UnknownProtocol));
        }
    }

    #[test]
    fn bent_data_headers_are_refused() {
        let mut datagram = DataHeader { lane: 1, receiver: 2, counter: 3 }.emit().to_vec();
        datagram.extend([0; PREFIX_LEN + TAG_LEN]);
        assert_eq!(DataHeader::parse(&datagram[..OVERHEAD - 1]), Err(Malformed));
        for place in [0, 1, 3] {
            let mut bent = datagram.clone();
            bent[place] ^= 1;
            assert_eq!(DataHeader::parse(&bent), Err(Malformed));
        }
        assert_eq!(Kind::of(&[]), Err(KindError::Empty));
        assert_eq!(Kind::of(&[0x24]), Err(KindError::Version));
        assert_eq!(Kind::of(&[0x10]), Err(KindError::Kind));
    }
}
