//! Cuts a packet that is longer than its path's datagrams carry, without moving it: a piece's header
//! is stamped over the end of the piece that was sealed before.

use std::ops::Range;

use crate::wire::fragment::{Family, FragmentHeader, HEADER_LEN, Last, UNIT};

/// A packet that is being cut.
pub struct Pieces {
    at: usize,
    end: usize,
    start: usize,
    step: usize,
    id: u32,
    family: Family,
}

/// How many bytes of packet a piece holds where one datagram carries `inner_mtu` bytes.
pub fn piece_len(inner_mtu: u16) -> usize {
    (usize::from(inner_mtu).saturating_sub(HEADER_LEN) / UNIT).max(1) * UNIT
}

impl Pieces {
    /// Prepares to cut the packet at `range`, of which each piece holds `step` bytes (of
    /// [`piece_len`]).
    pub fn new(range: Range<usize>, step: usize, id: u32, family: Family) -> Self {
        Self { at: range.start, end: range.end, start: range.start, step, id, family }
    }

    /// How many pieces there are in all.
    pub fn count(&self) -> u64 {
        (self.end - self.start).div_ceil(self.step) as u64
    }

    /// Stamps the next piece's header in front of it and returns where both lie. In front of the
    /// packet there is room for a header.
    pub fn next(&mut self, buffer: &mut [u8]) -> Option<Range<usize>> {
        if self.at >= self.end {
            return None;
        }
        let end = (self.at + self.step).min(self.end);
        let last = if end == self.end { Last::Yes } else { Last::No };
        let offset = (self.at - self.start) as u16;
        let header = FragmentHeader { id: self.id, offset, last, family: self.family };
        let from = self.at.checked_sub(HEADER_LEN)?;
        buffer.get_mut(from..self.at)?.copy_from_slice(&header.emit());
        self.at = end;
        Some(from..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fragment::MAX_PACKET;

    #[test]
    fn pieces_are_as_long_as_a_datagram_takes_and_hold_the_packet() {
        for (inner_mtu, step, count) in [(1216, 1208, 2), (512, 504, 3), (576, 568, 3), (3, 8, 160)]
        {
            assert_eq!(piece_len(inner_mtu), step);
            let room = 64;
            let packet: Vec<u8> = (0..MAX_PACKET).map(|i| i as u8).collect();
            let mut buffer = [&[0; 64][..], &packet].concat();
            let mut pieces = Pieces::new(room..room + MAX_PACKET, step, 0xdead_beef, Family::Ipv6);
            assert_eq!(pieces.count(), count);
            let (mut got, mut seen) = (Vec::new(), 0);
            while let Some(range) = pieces.next(&mut buffer) {
                let (header, piece) = FragmentHeader::parse(&buffer[range]).unwrap();
                assert_eq!((header.id, header.family), (0xdead_beef, Family::Ipv6));
                assert_eq!(usize::from(header.offset), got.len());
                got.extend(piece);
                seen += 1;
                assert_eq!(header.last == Last::Yes, got.len() == MAX_PACKET);
            }
            assert_eq!((got, seen), (packet, count));
        }
    }
}
