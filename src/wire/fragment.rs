//! A piece of an inner packet that is longer than its path's datagrams carry (next protocol 0x10).
//! Only packets of at most [`MAX_PACKET`] bytes are cut: IPv6 needs links that carry as much (RFC
//! 8200, section 5), whatever the underlay. Their checksums are complete.
//!
//! ```text
//! | id (32 bits)                                                  |
//! | offset in bytes (16 bits)     | more (0 or 1) | next protocol |   of the whole packet: 1 IPv4, 2 IPv6
//! | a piece of the packet: at least 1 byte, and a multiple of 8 where more follows               |
//! ```

use super::envelope::{IPV4, IPV6};

/// The header's length.
pub const HEADER_LEN: usize = 8;
/// The longest packet that is cut.
pub const MAX_PACKET: usize = 1280;
/// Offsets are multiples of this, as in IP (RFC 791, section 3.1).
pub const UNIT: usize = 8;

/// What stands in front of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// The same for all pieces of one packet, and for no other packet of that sender meanwhile.
    pub id: u32,
    /// Where the piece stands in the packet, in bytes.
    pub offset: u16,
    /// Whether it is the last.
    pub last: Last,
    /// The family of the whole packet.
    pub family: Family,
}

/// Whether a piece is the last of its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It is.
    Yes,
    /// More follows.
    No,
}

/// The family of the whole packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Says that the bytes are no piece of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl FragmentHeader {
    /// Parses a piece into its header and bytes.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (header, piece) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
        let [i0, i1, i2, i3, o0, o1, more, family] = *header;
        let last = match more {
            0 => Last::Yes,
            1 => Last::No,
            _ => return Err(Malformed),
        };
        let family = match family {
            IPV4 => Family::Ipv4,
            IPV6 => Family::Ipv6,
            _ => return Err(Malformed),
        };
        let offset = u16::from_be_bytes([o0, o1]);
        let end = usize::from(offset) + piece.len();
        let whole_units = usize::from(offset).is_multiple_of(UNIT)
            && (last == Last::Yes || piece.len().is_multiple_of(UNIT));
        if piece.is_empty() || end > MAX_PACKET || !whole_units {
            return Err(Malformed);
        }
        Ok((Self { id: u32::from_be_bytes([i0, i1, i2, i3]), offset, last, family }, piece))
    }

    /// Returns the eight bytes.
    pub fn emit(self) -> [u8; HEADER_LEN] {
        let [i0, i1, i2, i3] = self.id.to_be_bytes();
        let [o0, o1] = self.offset.to_be_bytes();
        let more = match self.last {
            Last::Yes => 0,
            Last::No => 1,
        };
        let family = match self.family {
            Family::Ipv4 => IPV4,
            Family::Ipv6 => IPV6,
        };
        [i0, i1, i2, i3, o0, o1, more, family]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_piece_is_read_as_it_was_written(id: u32, units in 0u16..159, last: bool, v6: bool, len in 1usize..8) {
            let last = if last { Last::Yes } else { Last::No };
            let family = if v6 { Family::Ipv6 } else { Family::Ipv4 };
            let header = FragmentHeader { id, offset: units * 8, last, family };
            let piece = vec![7; if last == Last::Yes { len } else { 8 }];
            let bytes = [&header.emit()[..], &piece].concat();
            prop_assert_eq!(FragmentHeader::parse(&bytes), Ok((header, &piece[..])));
        }

        #[test]
        fn what_is_accepted_is_written_back_the_same(bytes in proptest::collection::vec(0u8..3, 0..40)) {
            if let Ok((header, piece)) = FragmentHeader::parse(&bytes) {
                prop_assert_eq!([&header.emit()[..], piece].concat(), bytes);
            }
        }
    }

    #[test]
    fn bent_pieces_are_refused() {
        let good = [0, 0, 0, 1, 0, 8, 1, 1, 9, 9, 9, 9, 9, 9, 9, 9];
        assert!(FragmentHeader::parse(&good).is_ok());
        assert_eq!(FragmentHeader::parse(&good[..7]), Err(Malformed), "cut");
        assert_eq!(FragmentHeader::parse(&good[..8]), Err(Malformed), "empty");
        assert_eq!(FragmentHeader::parse(&good[..15]), Err(Malformed), "half a unit, and more");
        for (place, byte, why) in [
            (5, 9, "an offset between units"),
            (6, 2, "neither more nor last"),
            (7, 0, "no family"),
            (7, 3, "no family"),
            (4, 5, "1288 bytes are beyond the longest packet"),
        ] {
            let mut bent = good;
            bent[place] = byte;
            assert_eq!(FragmentHeader::parse(&bent), Err(Malformed), "{why}");
        }
    }
}
