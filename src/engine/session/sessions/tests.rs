//! Two or three nodes' machines against each other in virtual time.

use super::*;
use crate::{
    engine::session::{SendKey, keys::LAST_COUNTER, primitives::public_key},
    types::{PeerState, Psk, Vni},
    wire::envelope::{Checksum, DataHeader, NextProtocol, OVERHEAD, Prefix},
};

const REKEY: Duration = Duration::from_secs(120);

struct Side {
    sessions: Sessions,
    directory: Arc<Directory>,
    link: Arc<Link>,
    ready: usize,
}

struct Pair {
    a: Side,
    b: Side,
    now: Moment,
}

fn identity(seed: u8) -> Identity {
    let private = [seed; 32];
    Identity { public: public_key(&private).unwrap(), private: private.into() }
}

fn address(seed: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, seed], 7790))
}

fn peer(seed: u8, psk: u8) -> Peer {
    Peer {
        id: NodeId::from_u128(u128::from(seed)),
        name: format!("n{seed}").parse().unwrap(),
        data_addr: address(seed),
        underlay_mtu: 1500,
        public_key: identity(seed).public,
        versions: VERSIONS,
        psks: vec![Psk { epoch: 1, key: [psk; 32] }],
    }
}

fn both_ciphers() -> Ciphers {
    Ciphers { aes_256_gcm: true, chacha20_poly1305: true }
}

fn side(seed: u8, other: u8, start_count: u64, ciphers: Ciphers, now: Moment) -> Side {
    let settings = Settings {
        node: NodeId::from_u128(u128::from(seed)),
        cluster: [9; 16],
        start_count,
        lanes: 4,
        ciphers,
        rekey_interval: REKEY,
    };
    let directory = Arc::new(Directory::new());
    let mut state = u64::from(seed) << 32 | start_count;
    let random = Box::new(move |out: &mut [u8]| {
        for byte in out {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
    });
    let mut sessions = Sessions::new(settings, identity(seed), directory.clone(), random);
    let link = Arc::new(Link::new(NodeId::from_u128(u128::from(other)), address(other), 1));
    sessions.handle_table(vec![(peer(other, 7), link.clone())], now);
    Side { sessions, directory, link, ready: 0 }
}

impl Side {
    fn drain(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::Transmit { datagram, .. } => datagrams.push(datagram),
                Output::Ready { .. } => self.ready += 1,
            }
        }
        datagrams
    }

    /// Does what a worker and the session thread do with a datagram.
    fn receive(
        &mut self,
        mut datagram: Vec<u8>,
        from: u8,
        now: Moment,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        if Kind::of(&datagram) != Ok(Kind::Data) {
            return self.sessions.handle_datagram(&datagram, address(from), now).map(|()| None);
        }
        let header = DataHeader::parse(&datagram).unwrap();
        let key = self.directory.find(header.receiver).ok_or(DropReason::UnknownSession)?;
        let opened = key.open(header, &mut datagram, now).map_err(|_| DropReason::NotAuthentic)?;
        if self.link.note_received(now) {
            self.sessions.handle_activity(key.peer(), now);
        }
        self.sessions.handle_confirmed(key.peer(), key.index(), now);
        if opened.prefix.next == NextProtocol::Control {
            let control = Control::parse(opened.inner).unwrap();
            self.sessions.handle_control(key.peer(), key.index(), control, now);
            return Ok(None);
        }
        Ok(Some(opened.inner.to_vec()))
    }

    fn key(&self) -> Option<Arc<SendKey>> {
        self.link.send_key().clone()
    }

    fn seal(&mut self, text: &[u8], now: Moment) -> Option<Vec<u8>> {
        let key = self.key().filter(|key| key.is_usable(now))?;
        let vni = Vni::new(1).unwrap();
        let next = NextProtocol::Ipv4(Checksum::Complete);
        let plain = [&Prefix { vni, next }.emit()[..], text].concat();
        let mut out = vec![0; text.len() + OVERHEAD];
        let counter = key.reserve(1, 1, now).unwrap();
        key.seal(1, counter, &plain, &mut out).unwrap();
        if self.link.note_sent(now) {
            self.sessions.handle_activity(self.link.peer(), now);
        }
        Some(out)
    }
}

impl Pair {
    fn new() -> Self {
        Self::with(both_ciphers(), both_ciphers())
    }

    fn with(a: Ciphers, b: Ciphers) -> Self {
        let now = Moment::from_nanos(1_000_000_000);
        Self { a: side(1, 2, 1, a, now), b: side(2, 1, 1, b, now), now }
    }

    /// Carries datagrams both ways until none is left; fires what is due now.
    fn settle(&mut self) {
        loop {
            let (from_a, from_b) = (self.a.drain(), self.b.drain());
            if from_a.is_empty() && from_b.is_empty() {
                return;
            }
            for datagram in from_a {
                self.b.receive(datagram, 1, self.now).unwrap();
            }
            for datagram in from_b {
                self.a.receive(datagram, 2, self.now).unwrap();
            }
        }
    }

    fn demand(&mut self) {
        self.a.sessions.handle_demand(NodeId::from_u128(2), self.now);
    }

    fn step(&mut self, span: Duration) {
        self.now = self.now + span;
        self.a.sessions.handle_timeout(self.now);
        self.b.sessions.handle_timeout(self.now);
    }

    fn send_a(&mut self, text: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        let datagram = self.a.seal(text, self.now).expect("a key");
        self.b.receive(datagram, 1, self.now)
    }

    fn send_b(&mut self, text: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        let datagram = self.b.seal(text, self.now).expect("a key");
        self.a.receive(datagram, 2, self.now)
    }
}

#[test]
fn a_demand_makes_a_session_both_ways() {
    let mut pair = Pair::new();
    assert!(pair.a.key().is_none());
    pair.demand();
    assert_eq!(pair.a.link.status().state, PeerState::Handshaking);
    pair.settle();
    assert_eq!((pair.a.ready, pair.b.ready), (1, 1));
    assert_eq!(pair.a.link.status().state, PeerState::Up);
    assert_eq!(pair.b.link.status().state, PeerState::Up);
    assert_eq!(pair.send_a(b"to b"), Ok(Some(b"to b".to_vec())));
    assert_eq!(pair.send_b(b"to a"), Ok(Some(b"to a".to_vec())));
    assert_eq!(pair.a.key().unwrap().cipher().name(), "aes-256-gcm");
}

#[test]
fn without_aes_on_one_side_both_take_chacha() {
    let chacha = Ciphers { aes_256_gcm: false, chacha20_poly1305: true };
    let mut pair = Pair::with(both_ciphers(), chacha);
    pair.demand();
    pair.settle();
    assert_eq!(pair.a.key().unwrap().cipher().name(), "chacha20-poly1305");
    assert_eq!(pair.send_b(b"x"), Ok(Some(b"x".to_vec())));
}

#[test]
fn the_responder_seals_nothing_before_it_has_opened_something() {
    let mut pair = Pair::new();
    pair.demand();
    let initiation = pair.a.drain().remove(0);
    pair.b.receive(initiation, 1, pair.now).unwrap();
    let response = pair.b.drain().remove(0);
    assert!(pair.b.key().is_none());
    pair.a.receive(response, 2, pair.now).unwrap();
    let keepalive = pair.a.drain().remove(0);
    assert!(pair.b.key().is_none());
    pair.b.receive(keepalive, 1, pair.now).unwrap();
    assert!(pair.b.key().is_some());
}

#[test]
fn a_replayed_initiation_is_refused() {
    let mut pair = Pair::new();
    pair.demand();
    let initiation = pair.a.drain().remove(0);
    assert!(pair.b.receive(initiation.clone(), 1, pair.now).is_ok());
    assert_eq!(pair.b.drain().len(), 1);
    let again = pair.b.receive(initiation, 1, pair.now);
    assert_eq!(again, Err(DropReason::HandshakeInvalid));
    assert_eq!(pair.b.drain().len(), 0);
}

#[test]
fn lost_initiations_are_repeated_until_nobody_wants_them() {
    let mut pair = Pair::new();
    pair.demand();
    let mut sent = 0;
    while let Some(at) = pair.a.sessions.poll_timeout() {
        sent += pair.a.drain().len();
        pair.now = pair.now.max(at);
        pair.a.sessions.handle_timeout(pair.now);
    }
    assert!((17..=24).contains(&sent), "{sent} initiations in 90 s");
    assert_eq!(pair.a.link.status().state, PeerState::Down);
    pair.demand();
    pair.settle();
    assert_eq!(pair.a.link.status().state, PeerState::Up);
}

#[test]
fn crossing_initiations_end_in_one_session_that_carries_both_ways() {
    let mut pair = Pair::new();
    pair.demand();
    pair.b.sessions.handle_demand(NodeId::from_u128(1), pair.now);
    pair.settle();
    assert_eq!((pair.a.ready, pair.b.ready), (1, 1));
    assert_eq!(pair.send_a(b"x"), Ok(Some(b"x".to_vec())));
    assert_eq!(pair.send_b(b"y"), Ok(Some(b"y".to_vec())));
}

#[test]
fn renewal_loses_nothing_that_is_on_its_way() {
    let mut pair = Pair::new();
    pair.demand();
    pair.settle();
    let first = pair.a.key().unwrap().created();
    let mut late_a = pair.a.seal(b"old a", pair.now).unwrap();
    let mut late_b = pair.b.seal(b"old b", pair.now).unwrap();
    let mut rekeys = 0;
    let mut created = first;
    for second in 0..300 {
        pair.step(Duration::from_secs(1));
        pair.settle();
        assert!(pair.send_a(b"x").is_ok(), "second {second}");
        assert!(pair.send_b(b"x").is_ok(), "second {second}");
        let now = pair.a.key().unwrap().created();
        if now != created {
            (rekeys, created) = (rekeys + 1, now);
            assert_eq!(pair.b.receive(late_a.clone(), 1, pair.now), Ok(Some(b"old a".to_vec())));
            assert_eq!(pair.a.receive(late_b.clone(), 2, pair.now), Ok(Some(b"old b".to_vec())));
        }
        late_a = pair.a.seal(b"old a", pair.now).unwrap();
        late_b = pair.b.seal(b"old b", pair.now).unwrap();
    }
    assert_eq!(rekeys, 2, "every 120 s");
}

#[test]
fn a_day_near_the_limits_of_all_counters_loses_nothing() {
    const DAY: u32 = 24 * 3600;
    let (mut pair, now) = (Pair::new(), Moment::from_nanos(u64::MAX / 2));
    let side = |seed, other| side(seed, other, u64::MAX - 1, both_ciphers(), now);
    (pair.a, pair.b, pair.now) = (side(1, 2), side(2, 1), now);
    pair.demand();
    pair.settle();
    // What each key of A has sealed already: nothing, nearly what a key is renewed after, nearly all
    // that there is.
    let mut jumps = [0, (1 << 32) - 2, LAST_COUNTER - 2].into_iter().cycle();
    let (mut renewals, mut created) = (0, None);
    for second in 0..DAY {
        pair.step(Duration::from_secs(1));
        pair.settle();
        let key = pair.a.key().unwrap();
        if created != Some(key.created()) {
            (renewals, created) = (renewals + 1, Some(key.created()));
            key.reserve(1, jumps.next().unwrap(), pair.now).unwrap();
        }
        let sealed = pair.a.seal(b"x", pair.now).expect("a key with numbers left");
        let received = pair.b.receive(sealed.clone(), 1, pair.now);
        assert_eq!(received, Ok(Some(b"x".to_vec())), "second {second}");
        let replayed = pair.b.receive(sealed, 1, pair.now);
        assert_eq!(replayed, Err(DropReason::NotAuthentic), "a replay in second {second}");
        assert_eq!(pair.send_b(b"y"), Ok(Some(b"y".to_vec())), "second {second}");
    }
    // Of three keys one lives for 120 s, and two until somebody looks.
    let most = DAY / 40;
    assert!((most * 9 / 10..=most).contains(&renewals), "{renewals} renewals, at most {most}");
}

#[test]
fn echoes_measure_round_trip_and_loss() {
    let mut pair = Pair::new();
    pair.demand();
    pair.settle();
    pair.send_a(b"x").unwrap();
    for second in 0..20 {
        pair.step(Duration::from_secs(1));
        let request = pair.a.drain().remove(0);
        pair.b.receive(request, 1, pair.now).unwrap();
        pair.now = pair.now + Duration::from_millis(2);
        pair.settle();
        for packet in 0..100 {
            let datagram = pair.a.seal(b"x", pair.now).unwrap();
            if second < 10 || packet % 4 != 0 {
                pair.b.receive(datagram, 1, pair.now).unwrap();
            }
        }
        let status = pair.a.link.status();
        assert_eq!(status.rtt, Some(Duration::from_millis(2)), "second {second}");
        if second < 10 {
            assert_eq!(status.loss, Some(0.0), "second {second}");
        }
    }
    let loss = pair.a.link.status().loss.unwrap();
    assert!((0.22..0.26).contains(&loss), "{loss}");
}

#[test]
fn a_quiet_session_ends_after_180_s_and_asks_for_no_attention_in_between() {
    let mut pair = Pair::new();
    pair.demand();
    pair.settle();
    let mut wakes = 0;
    while let Some(at) = pair.a.sessions.poll_timeout() {
        pair.now = at;
        pair.step(Duration::ZERO);
        pair.settle();
        wakes += 1;
    }
    assert!(wakes < 20, "{wakes} wake-ups");
    assert!(pair.a.key().is_none());
    assert_eq!(pair.a.link.status().state, PeerState::Idle);
    assert_eq!(pair.b.sessions.poll_timeout(), None);
}

#[test]
fn silence_while_sending_is_stale_and_ends_with_a_new_session() {
    let mut pair = Pair::new();
    pair.demand();
    pair.settle();
    pair.b = side(2, 1, 2, both_ciphers(), pair.now);
    let mut states = Vec::new();
    for _ in 0..7 {
        let _ = pair.a.seal(b"x", pair.now);
        pair.step(Duration::from_secs(1));
        pair.a.drain().into_iter().for_each(|datagram| {
            if Kind::of(&datagram) != Ok(Kind::Data) {
                pair.b.receive(datagram, 1, pair.now).unwrap();
            }
        });
        states.push(pair.a.link.status().state);
        pair.settle();
    }
    assert!(states.contains(&PeerState::Stale), "{states:?}");
    assert_eq!(pair.a.link.status().state, PeerState::Up);
    assert_eq!(pair.send_a(b"x"), Ok(Some(b"x".to_vec())));
}

#[test]
fn an_unknown_session_from_a_peers_address_makes_us_shake_hands() {
    let mut pair = Pair::new();
    pair.demand();
    pair.settle();
    pair.b = side(2, 1, 2, both_ciphers(), pair.now);
    assert_eq!(pair.send_a(b"x"), Err(DropReason::UnknownSession));
    pair.b.sessions.handle_unknown_session(SocketAddr::from(([10, 0, 0, 9], 1)), pair.now);
    assert_eq!(pair.b.drain().len(), 0, "nobody's address");
    pair.b.sessions.handle_unknown_session(address(1), pair.now);
    pair.settle();
    assert_eq!(pair.send_a(b"x"), Ok(Some(b"x".to_vec())));
}

#[test]
fn who_leaves_the_table_loses_its_session_at_once() {
    let mut pair = Pair::new();
    pair.demand();
    pair.settle();
    let datagram = pair.b.seal(b"x", pair.now).unwrap();
    pair.a.sessions.handle_table(Vec::new(), pair.now);
    assert_eq!(pair.a.receive(datagram, 2, pair.now), Err(DropReason::UnknownSession));
    assert!(pair.a.key().is_none());
    pair.b.sessions.handle_demand(NodeId::from_u128(1), pair.now);
    pair.b.sessions.handle_table(vec![(peer(1, 7), pair.b.link.clone())], pair.now);
    pair.step(Duration::from_secs(121));
    for datagram in pair.b.drain() {
        assert!(pair.a.receive(datagram, 2, pair.now).is_err());
    }
    assert_eq!(pair.a.sessions.poll_timeout(), None);
}

#[test]
fn a_stranger_and_a_wrong_pair_key_get_no_session() {
    let mut pair = Pair::new();
    pair.b.sessions.handle_table(vec![(peer(1, 8), pair.b.link.clone())], pair.now);
    pair.demand();
    let initiation = pair.a.drain().remove(0);
    pair.b.receive(initiation, 1, pair.now).unwrap();
    let response = pair.b.drain().remove(0);
    assert_eq!(pair.a.receive(response, 2, pair.now), Err(DropReason::HandshakeInvalid));

    let mut stranger = side(3, 2, 1, both_ciphers(), pair.now);
    stranger.sessions.handle_demand(NodeId::from_u128(2), pair.now);
    let initiation = stranger.drain().remove(0);
    assert_eq!(pair.b.receive(initiation, 3, pair.now), Err(DropReason::HandshakeInvalid));
    assert!(pair.b.drain().is_empty());
}

#[test]
fn under_load_a_cookie_is_demanded_and_used() {
    let mut pair = Pair::new();
    let mut flood = side(3, 2, 1, both_ciphers(), pair.now);
    for _ in 0..=LOAD_THRESHOLD {
        flood.sessions.forget(NodeId::from_u128(2));
        flood.sessions.handle_table(vec![(peer(2, 7), flood.link.clone())], pair.now);
        flood.sessions.handle_demand(NodeId::from_u128(2), pair.now);
        let initiation = flood.drain().remove(0);
        assert!(pair.b.receive(initiation, 3, pair.now).is_err());
    }
    pair.b.drain();
    pair.demand();
    let initiation = pair.a.drain().remove(0);
    let refused = pair.b.receive(initiation.clone(), 1, pair.now);
    assert_eq!(refused, Err(DropReason::HandshakeOverload));
    let reply = pair.b.drain().remove(0);
    assert!(reply.len() < initiation.len());
    pair.a.receive(reply, 2, pair.now).unwrap();
    pair.settle();
    assert_eq!(pair.a.link.status().state, PeerState::Up);
}

#[test]
fn foreign_kinds_and_versions_have_their_reasons() {
    let mut pair = Pair::new();
    for (datagram, reason) in [
        (&[0x21u8; 208][..], DropReason::VersionUnknown),
        (&[0x1f; 208], DropReason::Malformed),
        (&[], DropReason::Malformed),
        (&[0x11; 208], DropReason::Malformed),
        (&[0x12; 10], DropReason::Malformed),
    ] {
        let result = pair.b.sessions.handle_datagram(datagram, address(1), pair.now);
        assert_eq!(result, Err(reason));
    }
}

/// Tells a side the keys of which epochs hold, the newest first.
fn tell(side: &mut Side, other: u8, epochs: &[u32], now: Moment) {
    let key = |epoch: u32| [u8::try_from(epoch).unwrap() + 6; 32];
    let psks = epochs.iter().map(|epoch| Psk { epoch: *epoch, key: key(*epoch) }).collect();
    side.sessions.handle_table(vec![(Peer { psks, ..peer(other, 7) }, side.link.clone())], now);
}

#[test]
fn rotating_the_pairs_key_loses_nothing_whoever_hears_of_it_first() {
    for a_first in [true, false] {
        let mut pair = Pair::new();
        pair.demand();
        pair.settle();
        let (mut renewals, mut refused) = (0, 0);
        let mut created = pair.a.key().unwrap().created();
        for second in 0..400 {
            let now = pair.now;
            let (a, b): (&[u32], &[u32]) = match (second, a_first) {
                (0..150, true) => (&[2, 1], &[1]),
                (0..150, false) => (&[1], &[2, 1]),
                (150..200, _) => (&[2, 1], &[2, 1]),
                (200..300, true) => (&[2], &[2, 1]),
                (200..300, false) => (&[2, 1], &[2]),
                (_, _) => (&[2], &[2]),
            };
            tell(&mut pair.a, 2, a, now);
            tell(&mut pair.b, 1, b, now);
            pair.step(Duration::from_secs(1));
            loop {
                let (from_a, from_b) = (pair.a.drain(), pair.b.drain());
                if from_a.is_empty() && from_b.is_empty() {
                    break;
                }
                let to_b = from_a.into_iter().map(|sent| pair.b.receive(sent, 1, pair.now));
                let to_a = from_b.into_iter().map(|sent| pair.a.receive(sent, 2, pair.now));
                for error in to_b.chain(to_a).filter_map(Result::err) {
                    assert_eq!(error, DropReason::HandshakeInvalid);
                    refused += 1;
                }
            }
            assert!(pair.send_a(b"x").is_ok() && pair.send_b(b"y").is_ok(), "second {second}");
            let newest = pair.a.key().unwrap().created();
            renewals += usize::from(newest != created);
            created = newest;
        }
        assert_eq!(renewals, 3, "every 120 s");
        assert_eq!(refused, usize::from(a_first), "an epoch that the other side has not yet");
    }
}
