//! Pieces become packets again. Owned by one worker: all pieces of a packet come by one lane, so
//! they meet here. Bounded per peer in number and in time, whatever a peer sends; a packet of which
//! pieces overlap or disagree is given up whole (RFC 5722).

use std::{collections::BTreeMap, time::Duration};

use crate::{
    types::{Moment, NodeId, Vni},
    wire::fragment::{Family, FragmentHeader, Last, MAX_PACKET, UNIT},
};

/// The packets of all peers that are not whole yet.
#[derive(Default)]
pub struct Reassembly {
    peers: BTreeMap<NodeId, Vec<Partial>>,
    waiting: usize,
    /// Nothing is too old before this.
    oldest_ends: Moment,
}

/// What a piece led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reassembled<'a> {
    /// The packet that it completed.
    pub whole: Option<(Family, &'a [u8])>,
    /// How many packets of the peer were given up.
    pub lost: u64,
}

/// A packet of which pieces are missing, or the room for one.
struct Partial {
    key: Option<Key>,
    since: Moment,
    /// Known from the last piece on.
    len: Option<usize>,
    /// One bit a unit.
    seen: [u64; UNITS.div_ceil(64)],
    bytes: Box<[u8; MAX_PACKET]>,
}

/// What tells a peer's packets apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    vni: Vni,
    id: u32,
    family: Family,
}

impl Reassembly {
    /// Takes a piece that `peer` sent on the network `vni`.
    pub fn handle_piece(
        &mut self,
        peer: NodeId,
        vni: Vni,
        header: FragmentHeader,
        piece: &[u8],
        now: Moment,
    ) -> Reassembled<'_> {
        let key = Key { vni, id: header.id, family: header.family };
        let partials = self.peers.entry(peer).or_default();
        let waited = waiting(partials);
        let mut lost = 0;
        for partial in partials.iter_mut().filter(|partial| partial.is_old(now)) {
            partial.key = None;
            lost += 1;
        }
        let known = partials.iter().position(|partial| partial.key == Some(key));
        let place = known.unwrap_or_else(|| {
            let (place, pushed_out) = room(partials);
            partials[place].start(key, now);
            lost += pushed_out;
            place
        });
        let partial = &mut partials[place];
        let whole = match partial.take(header, piece) {
            Ok(Some(len)) => {
                partial.key = None;
                Some(len)
            }
            Ok(None) => None,
            Err(Conflict) => {
                partial.key = None;
                lost += 1;
                None
            }
        };
        if self.waiting == 0 {
            self.oldest_ends = now + MAX_WAIT;
        }
        self.waiting = self.waiting + waiting(partials) - waited;
        let whole = whole.map(|len| (header.family, &partials[place].bytes[..len]));
        Reassembled { whole, lost }
    }

    /// Gives up what has waited too long; tells how many packets of which peers.
    pub fn handle_timeout(&mut self, now: Moment, mut lost: impl FnMut(NodeId, u64)) {
        if self.waiting == 0 || now < self.oldest_ends {
            return;
        }
        self.oldest_ends = now + MAX_WAIT;
        for (peer, partials) in &mut self.peers {
            let mut given_up = 0;
            for partial in partials.iter_mut().filter(|partial| partial.is_old(now)) {
                partial.key = None;
                given_up += 1;
            }
            if given_up > 0 {
                lost(*peer, given_up);
            }
            for partial in partials.iter().filter(|partial| partial.key.is_some()) {
                self.oldest_ends = self.oldest_ends.min(partial.since + MAX_WAIT);
            }
        }
        self.waiting = self.peers.values().map(|partials| waiting(partials)).sum();
    }

    /// Returns when to call [`Self::handle_timeout`] at the latest, counted from the newest piece.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.waiting > 0).then_some(MAX_WAIT)
    }

    /// Forgets the peers that are not to stay.
    pub fn retain(&mut self, stays: impl Fn(NodeId) -> bool) {
        self.peers.retain(|peer, _| stays(*peer));
        self.waiting = self.peers.values().map(|partials| waiting(partials)).sum();
    }
}

fn waiting(partials: &[Partial]) -> usize {
    partials.iter().filter(|partial| partial.key.is_some()).count()
}

/// Finds room for one more packet, and tells how many had to go for it: the oldest, if any.
fn room(partials: &mut Vec<Partial>) -> (usize, u64) {
    if let Some(free) = partials.iter().position(|partial| partial.key.is_none()) {
        return (free, 0);
    }
    if partials.len() < MAX_PARTIALS {
        partials.push(Partial::new());
        return (partials.len() - 1, 0);
    }
    let oldest = (0..partials.len()).min_by_key(|place| partials[*place].since);
    (oldest.unwrap_or(0), 1)
}

/// Says that a piece overlaps another, or disagrees about where the packet ends.
struct Conflict;

impl Partial {
    fn new() -> Self {
        Self {
            key: None,
            since: Moment::default(),
            len: None,
            seen: Default::default(),
            bytes: Box::new([0; MAX_PACKET]),
        }
    }

    fn start(&mut self, key: Key, now: Moment) {
        self.key = Some(key);
        self.since = now;
        self.len = None;
        self.seen = Default::default();
    }

    fn is_old(&self, now: Moment) -> bool {
        self.key.is_some() && now.since(self.since) >= MAX_WAIT
    }

    /// Takes a piece; returns the packet's length if it is whole.
    fn take(&mut self, header: FragmentHeader, piece: &[u8]) -> Result<Option<usize>, Conflict> {
        let start = usize::from(header.offset);
        let end = start + piece.len();
        let fits = match (header.last, self.len) {
            (Last::Yes, None) => !self.seen_from(end.div_ceil(UNIT)),
            (Last::No, Some(len)) => end < len,
            (Last::No, None) => true,
            (Last::Yes, Some(_)) => false,
        };
        let place = self.bytes.get_mut(start..end).filter(|_| fits).ok_or(Conflict)?;
        place.copy_from_slice(piece);
        for unit in start / UNIT..end.div_ceil(UNIT) {
            let (word, bit) = (unit / 64, 1 << (unit % 64));
            if self.seen[word] & bit != 0 {
                return Err(Conflict);
            }
            self.seen[word] |= bit;
        }
        if header.last == Last::Yes {
            self.len = Some(end);
        }
        let seen: u32 = self.seen.iter().map(|word| word.count_ones()).sum();
        Ok(self.len.filter(|len| len.div_ceil(UNIT) == seen as usize))
    }

    /// Whether any unit from this one on was seen.
    fn seen_from(&self, unit: usize) -> bool {
        (unit..UNITS).any(|unit| self.seen[unit / 64] & 1 << (unit % 64) != 0)
    }
}

const UNITS: usize = MAX_PACKET / UNIT;
/// Of one peer: more packets than one wake-up brings out of order.
const MAX_PARTIALS: usize = 64;
/// Pieces are sent back to back; what is missing after this was lost.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// What one peer can make one worker hold.
const _: () = assert!(MAX_PARTIALS * MAX_PACKET <= 96 << 10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: NodeId = NodeId::from_u128(1);

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    fn vni(number: u32) -> Vni {
        Vni::new(number).unwrap()
    }

    fn piece(id: u32, offset: u16, last: Last) -> FragmentHeader {
        FragmentHeader { id, offset, last, family: Family::Ipv4 }
    }

    /// Takes 8 bytes at a place, and returns the length of what became whole, and what was lost.
    fn take(all: &mut Reassembly, header: FragmentHeader, now: Moment) -> (Option<usize>, u64) {
        let got = all.handle_piece(PEER, vni(1), header, &[header.offset as u8; 8], now);
        (got.whole.map(|(_, packet)| packet.len()), got.lost)
    }

    proptest! {
        /// In whatever order the pieces of several packets come, each packet comes out as it was.
        #[test]
        fn packets_come_out_as_they_went_in(
            lengths in proptest::collection::vec(1usize..=MAX_PACKET, 1..20),
            units in 1usize..100,
            seed in proptest::collection::vec(any::<u32>(), 20 * 160),
        ) {
            let packets: Vec<Vec<u8>> =
                lengths.iter().map(|len| (0..*len).map(|i| (i * 7 + len) as u8).collect()).collect();
            let mut pieces: Vec<(FragmentHeader, &[u8])> = Vec::new();
            for (id, packet) in packets.iter().enumerate() {
                let chunks = packet.chunks(units * UNIT);
                let count = chunks.len();
                for (i, chunk) in chunks.enumerate() {
                    let last = if i + 1 == count { Last::Yes } else { Last::No };
                    pieces.push((piece(id as u32, (i * units * UNIT) as u16, last), chunk));
                }
            }
            let mut order: Vec<usize> = (0..pieces.len()).collect();
            order.sort_by_key(|i| seed[*i]);
            let mut all = Reassembly::default();
            let mut whole = BTreeMap::new();
            for i in order {
                let (header, bytes) = pieces[i];
                let got = all.handle_piece(PEER, vni(9), header, bytes, at(1));
                prop_assert_eq!(got.lost, 0);
                if let Some((family, packet)) = got.whole {
                    prop_assert_eq!(family, Family::Ipv4);
                    whole.insert(header.id as usize, packet.to_vec());
                }
            }
            prop_assert_eq!(whole.into_values().collect::<Vec<_>>(), packets);
            prop_assert_eq!(all.poll_timeout(), None);
        }
    }

    #[test]
    fn pieces_that_overlap_or_disagree_give_the_packet_up() {
        for (why, second) in [
            ("the same piece again", piece(1, 8, Last::No)),
            ("an end before what is there", piece(1, 0, Last::Yes)),
        ] {
            let mut all = Reassembly::default();
            assert_eq!(take(&mut all, piece(1, 8, Last::No), at(0)), (None, 0));
            assert_eq!(take(&mut all, second, at(0)), (None, 1), "{why}");
            assert_eq!(all.poll_timeout(), None, "{why}");
        }
        let mut all = Reassembly::default();
        assert_eq!(take(&mut all, piece(1, 16, Last::Yes), at(0)), (None, 0));
        assert_eq!(take(&mut all, piece(1, 24, Last::Yes), at(0)), (None, 1), "two ends");
        assert_eq!(take(&mut all, piece(2, 16, Last::Yes), at(0)), (None, 0));
        assert_eq!(take(&mut all, piece(2, 24, Last::No), at(0)), (None, 1), "beyond the end");
    }

    #[test]
    fn networks_families_and_peers_do_not_mix() {
        let mut all = Reassembly::default();
        let bytes = [0; 8];
        let (first, last) = (piece(1, 0, Last::No), piece(1, 8, Last::Yes));
        let v6 = FragmentHeader { family: Family::Ipv6, ..last };
        all.handle_piece(PEER, vni(1), first, &bytes, at(0));
        let other = NodeId::from_u128(2);
        assert_eq!(all.handle_piece(PEER, vni(2), last, &bytes, at(0)).whole, None);
        assert_eq!(all.handle_piece(PEER, vni(1), v6, &bytes, at(0)).whole, None);
        assert_eq!(all.handle_piece(other, vni(1), last, &bytes, at(0)).whole, None);
        assert!(all.handle_piece(PEER, vni(1), last, &bytes, at(0)).whole.is_some());
    }

    #[test]
    fn a_peer_is_bounded_in_number_and_in_time() {
        let mut all = Reassembly::default();
        for id in 0..MAX_PARTIALS as u32 {
            assert_eq!(take(&mut all, piece(id, 0, Last::No), at(u64::from(id))), (None, 0));
        }
        assert_eq!(take(&mut all, piece(1000, 0, Last::No), at(70)), (None, 1));
        assert_eq!(take(&mut all, piece(0, 8, Last::Yes), at(71)), (None, 1), "the oldest went");
        assert_eq!(take(&mut all, piece(63, 8, Last::Yes), at(71)), (Some(16), 0));
        assert_eq!(all.poll_timeout(), Some(MAX_WAIT));
        let mut lost = Vec::new();
        all.handle_timeout(at(999), |peer, count| lost.push((peer, count)));
        assert_eq!(lost, []);
        all.handle_timeout(at(5000), |peer, count| lost.push((peer, count)));
        assert_eq!(lost, [(PEER, 63)]);
        assert_eq!(all.poll_timeout(), None);
        assert_eq!(take(&mut all, piece(63, 0, Last::No), at(5000)), (None, 0));
        all.retain(|peer| peer != PEER);
        assert_eq!(all.poll_timeout(), None);
    }
}
