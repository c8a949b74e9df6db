//! Who holds a member's key, and who holds none, sends 100,000 of every kind of datagram that must
//! not be delivered. Nothing reaches the container, and the one right counter rises by exactly what
//! was sent.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use etherparse::PacketBuilder;
use overlay::{
    engine::session::SendKey,
    io::udp::{DataSocket, open_sender},
    types::{DropReason, Vni},
    wire::{
        envelope::{
            Checksum, DataHeader, HEADER_LEN, Kind, NextProtocol, OVERHEAD, PREFIX_LEN, Prefix,
            TAG_LEN, VERSION,
        },
        fragment::{Family, FragmentHeader, Last},
    },
};

use crate::{
    lab::{self, Host, Lab, socket, wait_until},
    member::{LANES, Member, seal},
    victim::{BLUE, GREEN, MEMBER_NODE, NOWHERE, Victim},
};

/// How many of each kind.
pub const COUNT: u64 = 100_000;
/// Sent before the counters are asked for: far less than the sockets' buffers hold.
pub const BATCH: u64 = 4096;
/// Datagrams of equal length in one call; of 1400 bytes the kernel takes no more than 46.
const RUN: usize = 46;

/// One kind of datagram that must be dropped.
struct Forgery {
    name: &'static str,
    reason: DropReason,
    /// Whether the drop is counted in the row of the peer that it names.
    of_member: bool,
    /// How many may be on their way at once.
    batch: u64,
    make: Box<dyn FnMut(u64) -> Vec<u8>>,
}

/// The test.
pub fn forged_datagrams_are_dropped_and_counted() {
    let lab = Lab::new();
    let victim = Victim::new(&lab);
    let attack = Attack::new(&lab, &victim);
    let mut wrong = Vec::new();
    for forgery in forgeries(&attack) {
        let (name, begun) = (forgery.name, std::time::Instant::now());
        let found = attack.check(&lab, &victim, forgery);
        println!(
            "{COUNT} x {name}: {}, {:.1?}",
            if found.is_empty() { "dropped" } else { "WRONG" },
            begun.elapsed()
        );
        wrong.extend(found.into_iter().map(|difference| format!("{name}: {difference}")));
    }
    wrong.extend(among_genuine(&lab, &victim, &attack));
    attack.genuine_is_delivered(&lab, &victim);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A forged datagram between two genuine ones of one train does not slip into their super-packet.
fn among_genuine(lab: &Lab, victim: &Victim, attack: &Attack) -> Vec<String> {
    let before = victim.counters(lab);
    let dropped = victim.dropped();
    let (trains, half) = (100, RUN as u64 / 2);
    for train in 0..trains {
        let pair =
            |i| [MINE, "10.9.0.4"].map(|from| seal(&attack.key, 0, blue(), &packet(from, i)));
        let mixed: Vec<Vec<u8>> = (0..half).flat_map(pair).collect();
        send(&attack.sender, &mixed);
        let got = attack.received(half as usize);
        assert!(got.iter().all(|from| *from == lab::address(MINE)), "train {train}: {got:?}");
    }
    let sent = trains * half;
    wait_until("forged ones", || victim.dropped() - dropped >= sent, || format!("{sent} sent"));
    let after = victim.counters(lab);
    let expected = before.with_drops(DropReason::SpoofedSource, sent, true);
    println!("{sent} x source of another node among genuine ones");
    after.difference_of_drops(&expected)
}

/// A member with a session, and what it needs to use its key for what it should not.
pub struct Attack {
    /// The member's key.
    pub key: Arc<SendKey>,
    /// Its machine.
    pub member: Member,
    /// A socket on the member's host, from another port than its own.
    pub sender: DataSocket,
    /// Where the container listens.
    receiver: std::net::UdpSocket,
}

impl Attack {
    /// Shakes hands, and shows that what is genuine is delivered.
    pub fn new(lab: &Lab, victim: &Victim) -> Self {
        let mut member = Member::new(lab, MEMBER_NODE, socket(lab::MEMBER));
        member.demand();
        wait_until(
            "the handshake",
            || {
                member.drive();
                member.is_up()
            },
            || format!("{:?}", victim.dataplane.peers()),
        );
        let sender = lab.inside(Host::Member, async || open_sender(socket(lab::MEMBER).ip()));
        let receiver =
            lab.inside(Host::Container, async || Ok(std::net::UdpSocket::bind(socket(CONTAINER))?));
        receiver.set_nonblocking(true).expect("a socket");
        let attack = Self { key: member.key(), member, sender, receiver };
        attack.genuine_is_delivered(lab, victim);
        attack
    }

    /// A few genuine packets arrive, on every lane: the positive control.
    pub fn genuine_is_delivered(&self, lab: &Lab, victim: &Victim) {
        let before = victim.counters(lab);
        let genuine: Vec<Vec<u8>> =
            (0..40).map(|i| seal(&self.key, i as u8 % LANES, blue(), &packet(MINE, i))).collect();
        self.deliver(&genuine);
        let after = victim.counters(lab);
        assert_ne!(before.interface(), after.interface(), "the interface counts");
        assert_eq!(before.drops, after.drops);
    }

    /// Sends genuine datagrams and takes every one of them out of the container's socket.
    pub fn deliver(&self, genuine: &[Vec<u8>]) {
        for batch in genuine.chunks(RUN) {
            send(&self.sender, batch);
            self.received(batch.len());
        }
    }

    /// Takes so many packets out of the container's socket, and no more; tells who sent each.
    fn received(&self, count: usize) -> Vec<IpAddr> {
        let mut got = Vec::new();
        wait_until(
            "genuine packets are delivered",
            || {
                while let Ok((_, from)) = self.receiver.recv_from(&mut [0; 2048]) {
                    got.push(from.ip());
                }
                got.len() >= count
            },
            || format!("{count} were sent"),
        );
        assert_eq!(got.len(), count);
        got
    }

    /// Sends all of one kind and returns what is not as it must be.
    fn check(&self, lab: &Lab, victim: &Victim, mut forgery: Forgery) -> Vec<String> {
        let before = victim.counters(lab);
        let dropped = victim.dropped();
        let mut sent = 0;
        while sent < COUNT {
            let end = COUNT.min(sent + forgery.batch);
            let datagrams: Vec<Vec<u8>> = (sent..end).map(&mut forgery.make).collect();
            send(&self.sender, &datagrams);
            sent = end;
            wait_until(
                forgery.name,
                || victim.dropped() - dropped >= sent,
                || format!("sent {sent}, counted {:?}", victim.counters(lab).drops),
            );
        }
        let expected = before.with_drops(forgery.reason, COUNT, forgery.of_member);
        victim.counters(lab).difference(&expected)
    }
}

/// Sends datagrams, neighbours of equal length in one call.
pub fn send(sender: &DataSocket, datagrams: &[Vec<u8>]) {
    let victim = socket(lab::VICTIM);
    for run in datagrams.chunks(RUN) {
        for equal in run.chunk_by(|a, b| a.len() == b.len() && !a.is_empty()) {
            let stride = equal[0].len();
            while let Err(error) = sender.send(&equal.concat(), stride, &victim) {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
                std::thread::yield_now();
            }
        }
    }
}

fn forgeries(attack: &Attack) -> Vec<Forgery> {
    let mut all = spoofed(&attack.key);
    all.extend(foreign(&attack.key));
    all.extend(sealed_wrongly(&attack.key));
    all.extend(bent_inside(&attack.key));
    all.extend(bent_outside(&attack.key));
    all
}

fn forgery(
    name: &'static str,
    reason: DropReason,
    of_member: bool,
    make: impl FnMut(u64) -> Vec<u8> + 'static,
) -> Forgery {
    Forgery { name, reason, of_member, batch: BATCH, make: Box::new(make) }
}

/// The member's address on the blue network.
pub const MINE: &str = "10.9.0.3";
const CONTAINER: &str = "10.9.0.2:9000";

/// The prefix of an IPv4 packet on the blue network.
pub fn blue() -> [u8; PREFIX_LEN] {
    prefix(BLUE, NextProtocol::Ipv4(Checksum::Complete))
}

fn prefix(vni: u32, next: NextProtocol) -> [u8; PREFIX_LEN] {
    Prefix { vni: Vni::new(vni).expect("24 bits"), next }.emit()
}

/// The lane of datagram `i`: each run has one, since a run goes to one worker.
fn lane(i: u64) -> u8 {
    (i / RUN as u64 % u64::from(LANES)) as u8
}

/// A UDP packet to the container, of equal length for all of one family.
pub fn packet(from: &str, number: u64) -> Vec<u8> {
    let mut packet = Vec::new();
    let payload = [number.to_be_bytes(); 4].concat();
    let builder = match from.parse().expect("an address") {
        IpAddr::V4(v4) => PacketBuilder::ipv4(v4.octets(), [10, 9, 0, 2], 64),
        IpAddr::V6(v6) => PacketBuilder::ipv6(v6.octets(), container_v6(), 64),
    };
    builder.udp(4000, 9000).write(&mut packet, &payload).expect("room in a vector");
    packet
}

fn container_v6() -> [u8; 16] {
    let address: std::net::Ipv6Addr = "fd09::2".parse().expect("an address");
    address.octets()
}

fn spoofed(key: &Arc<SendKey>) -> Vec<Forgery> {
    let sources = [
        ("source of another node", "10.9.0.4"),
        ("source of the victim", "10.9.0.2"),
        ("source of the gateway", "10.9.0.1"),
        ("source of nobody", "10.9.0.77"),
        ("source outside the network", "8.8.8.8"),
        ("IPv6 source of another node", "fd09::4"),
    ];
    let all = sources.map(|(name, from)| {
        let key = key.clone();
        let next = match from.contains(':') {
            true => NextProtocol::Ipv6(Checksum::Complete),
            false => NextProtocol::Ipv4(Checksum::Complete),
        };
        forgery(name, DropReason::SpoofedSource, true, move |i| {
            seal(&key, lane(i), prefix(BLUE, next), &packet(from, i))
        })
    });
    let key = key.clone();
    let in_pieces =
        forgery("source of another node, in pieces", DropReason::SpoofedSource, true, move |i| {
            let header =
                FragmentHeader { id: i as u32, offset: 0, last: Last::Yes, family: Family::Ipv4 };
            let piece = [&header.emit()[..], &packet("10.9.0.4", i)].concat();
            seal(&key, lane(i), prefix(BLUE, NextProtocol::Fragment), &piece)
        });
    all.into_iter().chain([in_pieces]).collect()
}

fn foreign(key: &Arc<SendKey>) -> Vec<Forgery> {
    let cases = [
        ("network that the sender is not on, its own address", GREEN, MINE),
        ("network that the sender is not on, an address of it", GREEN, "10.10.0.4"),
        ("network of nobody", NOWHERE, MINE),
    ];
    let all = cases.map(|(name, vni, from)| {
        let key = key.clone();
        forgery(name, DropReason::UnknownVni, true, move |i| {
            seal(
                &key,
                lane(i),
                prefix(vni, NextProtocol::Ipv4(Checksum::Complete)),
                &packet(from, i),
            )
        })
    });
    all.into()
}

fn sealed_wrongly(key: &Arc<SendKey>) -> Vec<Forgery> {
    let own = key.clone();
    let other = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[9; 32]).expect("32 bytes"));
    let wrong_key = forgery("sealed with another key", DropReason::NotAuthentic, true, move |i| {
        let mut datagram = seal(&own, lane(i), blue(), &packet(MINE, i));
        let header = DataHeader::parse(&datagram).expect("just sealed");
        let body = PREFIX_LEN + packet(MINE, i).len();
        datagram.truncate(HEADER_LEN);
        let mut sealed = [&blue()[..], &packet(MINE, i)].concat();
        let nonce = Nonce::assume_unique_for_key(header.nonce());
        let tag = other
            .seal_in_place_separate_tag(nonce, Aad::from(header.emit()), &mut sealed)
            .expect("a short message");
        assert_eq!((sealed.len(), tag.as_ref().len()), (body, TAG_LEN));
        [&datagram[..], &sealed, tag.as_ref()].concat()
    });
    let bent = |name, place: fn(usize) -> usize| {
        let key = key.clone();
        forgery(name, DropReason::NotAuthentic, true, move |i| {
            let mut datagram = seal(&key, lane(i), blue(), &packet(MINE, i));
            let place = place(datagram.len());
            datagram[place] ^= 1;
            datagram
        })
    };
    let own = key.clone();
    let unknown =
        forgery("receiver index of nobody", DropReason::UnknownSession, false, move |i| {
            let mut datagram = seal(&own, lane(i), blue(), &packet(MINE, i));
            // The same slot of the directory in one half, another slot in the other.
            datagram[if i % 2 == 0 { 4 } else { 7 }] ^= 0x55;
            datagram
        });
    let own = key.clone();
    let lanes = forgery("lane beyond those stated", DropReason::LaneUnknown, true, move |i| {
        let beyond = LANES + (i / RUN as u64 % u64::from(u8::MAX - LANES + 1)) as u8;
        let mut datagram = seal(&own, lane(i), blue(), &packet(MINE, i));
        datagram[2] = beyond;
        datagram
    });
    let own = key.clone();
    let genuine_beyond = forgery(
        "lane beyond those stated, sealed for it",
        DropReason::LaneUnknown,
        true,
        move |i| seal(&own, LANES + (i / RUN as u64 % 12) as u8, blue(), &packet(MINE, i)),
    );
    vec![
        wrong_key,
        bent("ciphertext bent", |len| len - TAG_LEN - 1),
        bent("tag bent", |len| len - 1),
        bent("counter bent", |_| 9),
        unknown,
        lanes,
        genuine_beyond,
    ]
}

fn bent_inside(key: &Arc<SendKey>) -> Vec<Forgery> {
    let own = key.clone();
    let protocols: Vec<u8> =
        (0..=255).filter(|byte| ![1, 2, 0x81, 0x82, 0x10, 0x11].contains(byte)).collect();
    let protocol = forgery("next protocol unknown", DropReason::ProtocolUnknown, true, move |i| {
        let [a, b, c, _] = blue();
        seal(&own, lane(i), [a, b, c, protocols[i as usize % protocols.len()]], &packet(MINE, i))
    });
    let own = key.clone();
    let inner = forgery("inner packet bent", DropReason::InnerMalformed, true, move |i| {
        let (v4, v6) =
            (NextProtocol::Ipv4(Checksum::Complete), NextProtocol::Ipv6(Checksum::Complete));
        let mut bytes = packet(MINE, i);
        let mut next = v4;
        match i / RUN as u64 % 7 {
            0 => bytes[0] = 0x55,
            1 => bytes[0] = 0x44,
            2 => bytes[3] += 1,
            3 => bytes.truncate(27),
            4 => next = v6,
            5 => bytes = packet("fd09::3", i),
            _ => bytes.clear(),
        }
        seal(&own, lane(i), prefix(BLUE, next), &bytes)
    });
    let own = key.clone();
    let control = forgery("control message bent", DropReason::Malformed, true, move |i| {
        let bytes: &[u8] = match i / RUN as u64 % 4 {
            0 => &[],
            1 => &[0, 0],
            2 => &[3],
            _ => &[1; 16],
        };
        seal(&own, lane(i), Prefix::CONTROL.emit(), bytes)
    });
    let own = key.clone();
    let pieces = forgery("piece of a packet bent", DropReason::Malformed, true, move |i| {
        let bytes: &[u8] = match i / RUN as u64 % 5 {
            0 => &[],
            1 => &[0, 0, 0, 1, 0, 0, 0, 1],
            2 => &[0, 0, 0, 1, 0, 0, 1, 1, 9],
            3 => &[0, 0, 0, 1, 0xff, 0xf8, 0, 1, 9],
            _ => &[0, 0, 0, 1, 0, 0, 0, 3, 9],
        };
        seal(&own, lane(i), prefix(BLUE, NextProtocol::Fragment), bytes)
    });
    vec![protocol, inner, control, pieces]
}

fn bent_outside(key: &Arc<SendKey>) -> Vec<Forgery> {
    let first = |name, reason, byte: fn(u64) -> u8| {
        let key = key.clone();
        forgery(name, reason, false, move |i| {
            let mut datagram = seal(&key, lane(i), blue(), &packet(MINE, i));
            datagram[0] = byte(i);
            datagram
        })
    };
    let bits = |name, place: usize| {
        let key = key.clone();
        forgery(name, DropReason::Malformed, false, move |i| {
            let mut datagram = seal(&key, lane(i), blue(), &packet(MINE, i));
            datagram[place] = 1 + (i % 255) as u8;
            datagram
        })
    };
    let own = key.clone();
    let truncated = forgery("truncated", DropReason::Malformed, false, move |i| {
        let mut datagram = seal(&own, lane(i), blue(), &packet(MINE, i));
        datagram.truncate((i / RUN as u64) as usize % OVERHEAD);
        datagram
    });
    let handshakes = |name, reason, len: usize, batch| {
        let mut made = forgery(name, reason, false, move |i| {
            let mut datagram = vec![0x5a; len];
            datagram[..HEADER_LEN].copy_from_slice(&[0; HEADER_LEN]);
            datagram[0] = Kind::Initiation.first_byte();
            datagram[4..8].copy_from_slice(&(i as u32).to_be_bytes());
            datagram
        });
        made.batch = batch;
        made
    };
    vec![
        first("version of others", DropReason::VersionUnknown, |i| {
            let other = (VERSION + 1 + (i % 15) as u8) & 0x0f;
            other << 4 | Kind::Data.first_byte() & 0x0f
        }),
        first("kind of nothing", DropReason::Malformed, |i| {
            VERSION << 4 | [0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][i as usize % 12]
        }),
        bits("flags set", 1),
        bits("reserved bits set", 3),
        truncated,
        handshakes("initiation of a wrong length", DropReason::Malformed, 207, BATCH),
        handshakes("initiation as long as a datagram may be", DropReason::Malformed, 1400, 1024),
        // Half of what may wait for the session thread; more would be an overload.
        handshakes("initiation without a right mac1", DropReason::HandshakeInvalid, 208, 512),
    ]
}

/// A sending socket on a host.
pub fn sender(lab: &Lab, host: Host, from: &str) -> DataSocket {
    let from: SocketAddr = SocketAddr::new(lab::address(from), 0);
    lab.inside(host, async || open_sender(from.ip()))
}
