//! Functions of the packet path and the tables, measured: nanoseconds a call, the median of many
//! runs. `cargo xtask bench` runs this; `cargo bench --bench bench WORD` measures what has WORD in
//! its name. The managers' log and their scheduler take longer, and have words of their own: `log` and
//! `schedule`.

mod log;
mod schedule;

use std::{
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use overlay::{
    engine::{
        datapath::{PortId, Tables, offload::Segmentation},
        membership::Table,
        session::{Directory, Identity, Link, Output, SendKey, Sessions, Settings, public_key},
    },
    types::{
        Encap, Endpoint, EndpointId, Moment, Network, NetworkId, NodeId, Peer, Psk, VersionRange,
        Vni,
    },
    wire::{
        envelope::{DataHeader, OVERHEAD, PREFIX_LEN},
        handshake::Ciphers,
        inner::Inner,
    },
};

/// How many runs the median is of.
const RUNS: usize = 31;
/// How long a run takes at least, in nanoseconds: far above the clock's grain.
const RUN_NS: u128 = 2_000_000;

/// Measures the functions whose name holds the wanted word.
struct Bench {
    wanted: Option<String>,
}

impl Bench {
    fn measure<T>(&self, name: &str, mut function: impl FnMut() -> T) {
        if self.wanted.as_ref().is_some_and(|word| !name.contains(word)) {
            return;
        }
        let mut run = |calls: u32| {
            let start = Instant::now();
            for _ in 0..calls {
                black_box(function());
            }
            start.elapsed().as_nanos()
        };
        let mut calls = 1;
        while run(calls) < RUN_NS {
            calls *= 2;
        }
        let mut runs: Vec<f64> = (0..RUNS).map(|_| run(calls) as f64 / f64::from(calls)).collect();
        runs.sort_by(f64::total_cmp);
        println!("{name:<40} {:>12.1} ns", runs[RUNS / 2]);
    }
}

fn main() {
    // cargo passes `--bench`; a word is a name's part.
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-'));
    let bench = Bench { wanted: words.next() };
    if bench.wanted.as_deref() == Some("log") {
        return log::run(words.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(5));
    }
    if bench.wanted.as_deref() == Some("schedule") {
        return schedule::run();
    }
    seals(&bench);
    verdicts(&bench);
}

/// The AEAD with everything around it: header, nonce, counter, replay window.
fn seals(bench: &Bench) {
    let (send, directory) = session();
    for payload in [64, 256, 1436] {
        let plain = vec![7; PREFIX_LEN + payload];
        let mut datagram = vec![0; payload + OVERHEAD];
        let mut seal = || {
            let counter = send.reserve(0, 1, NOW).expect("a fresh key");
            send.seal(0, counter, black_box(&plain), &mut datagram).expect("room");
        };
        bench.measure(&format!("session: seal {payload} B"), &mut seal);
        let header_of = |datagram: &[u8]| DataHeader::parse(datagram).expect("our own");
        let mut datagram = vec![0; payload + OVERHEAD];
        bench.measure(&format!("session: seal and open {payload} B"), || {
            let counter = send.reserve(0, 1, NOW).expect("a fresh key");
            send.seal(0, counter, black_box(&plain), &mut datagram).expect("room");
            let header = header_of(&datagram);
            let key = directory.find(header.receiver).expect("the other side's key");
            key.open(header, &mut datagram, NOW).is_ok()
        });
    }
}

/// Parsing and deciding, with 1,000 endpoints on the network.
fn verdicts(bench: &Bench) {
    let (tables, peer) = tables(1000);
    let packet = udp_packet([10, 0, 0, 2], [10, 0, 2, 200], 1000);
    bench.measure("wire: parse an inner packet", || Inner::parse(black_box(&packet)));
    let inner = Inner::parse(&packet).expect("a packet");
    bench.measure("wire: hash a flow", || black_box(&inner).flow_hash());
    bench.measure("datapath: outbound verdict", || {
        tables.outbound(PortId(0), &packet, black_box(&inner), Segmentation::None)
    });
    let back = udp_packet([10, 0, 2, 200], [10, 0, 0, 2], 1000);
    let back = Inner::parse(&back).expect("a packet");
    let vni = Vni::new(1).expect("24 bits");
    bench.measure("datapath: inbound verdict", || tables.inbound(peer, vni, black_box(&back)));
}

/// A key of one node, and the directory of the other that opens what it seals.
fn session() -> (Arc<SendKey>, Arc<Directory>) {
    let mut sides = [1u8, 2].map(|seed| {
        let directory = Arc::new(Directory::new());
        let other = 3 - seed;
        let peer = peer(other);
        let link = Arc::new(Link::new(peer.id, peer.data_addr, 1));
        let settings = Settings {
            node: NodeId::from_u128(seed.into()),
            cluster: [0; 16],
            start_count: 1,
            lanes: 1,
            ciphers: Ciphers { aes_256_gcm: true, chacha20_poly1305: true },
            rekey_interval: Duration::from_secs(120),
        };
        let public = public_key(&[seed; 32]).expect("a key");
        let identity = Identity { private: [seed; 32].into(), public };
        let mut draws = seed;
        let random = Box::new(move |bytes: &mut [u8]| {
            draws = draws.wrapping_add(2);
            bytes.fill(draws);
        });
        let mut sessions = Sessions::new(settings, identity, directory.clone(), random);
        sessions.handle_table(vec![(peer, link.clone())], NOW);
        (sessions, link, directory)
    });
    sides[0].0.handle_demand(NodeId::from_u128(2), NOW);
    for (from, to) in [(0, 1), (1, 0)] {
        while let Some(output) = sides[from].0.poll_output() {
            if let Output::Transmit { datagram, .. } = output {
                let address = peer(from as u8 + 1).data_addr;
                sides[to].0.handle_datagram(&datagram, address, NOW).expect("a handshake");
            }
        }
    }
    let key = sides[0].1.send_key().clone().expect("a session");
    (key, sides[1].2.clone())
}

fn peer(seed: u8) -> Peer {
    Peer {
        id: NodeId::from_u128(seed.into()),
        name: format!("n{seed}").parse().expect("a name"),
        data_addr: SocketAddr::from(([192, 0, 2, seed], 7790)),
        underlay_mtu: 1500,
        public_key: public_key(&[seed; 32]).expect("a key"),
        versions: VersionRange { lowest: 1, highest: 1 },
        psks: vec![Psk { epoch: 1, key: [9; 32] }],
    }
}

/// One network with one endpoint here and the others on a peer.
fn tables(endpoints: u128) -> (Tables, NodeId) {
    let mut table = Table::empty(NodeId::from_u128(1));
    let network = Network {
        id: NetworkId::from_u128(1),
        name: "bench".parse().expect("a name"),
        vni: Vni::new(1).expect("24 bits"),
        subnets: vec!["10.0.0.0/16".parse().expect("a subnet")],
        gateways: vec!["10.0.0.1".parse().expect("an address")],
        mtu: None,
        encap: Encap::Sealed,
        internal: false,
        labels: Default::default(),
    };
    for number in 0..endpoints {
        let id = EndpointId::from_u128(number);
        let [high, low] = (number as u16 + 2).to_be_bytes();
        let endpoint = Endpoint {
            id,
            name: format!("e{number}").parse().expect("a name"),
            network: network.id,
            node: NodeId::from_u128(if number == 0 { 1 } else { 2 }),
            addresses: vec![format!("10.0.{high}.{low}/16").parse().expect("an address")],
            aliases: Vec::new(),
        };
        table.endpoints.insert(id, endpoint);
    }
    table.networks.insert(network.id, network);
    let peer = peer(2);
    let link = Arc::new(Link::new(peer.id, peer.data_addr, 1));
    let links = [(peer.id, link)].into();
    let id = peer.id;
    table.peers.insert(id, peer);
    let ports = [(EndpointId::from_u128(0), PortId(0))].into();
    (Tables::build(&table, &links, &ports, 1500), id)
}

fn udp_packet(from: [u8; 4], to: [u8; 4], payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4(from, to, 64)
        .udp(1, 2)
        .write(&mut packet, &vec![0; payload])
        .expect("room");
    packet
}

/// Any moment will do.
const NOW: Moment = Moment::from_nanos(1_000_000_000);
