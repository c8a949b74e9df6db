//! Between "read" and "written" nothing is allocated and no payload is copied, in either direction:
//! a counting allocator and an interposed `memcpy`/`memmove` watch the forwarder threads while TCP
//! and UDP run between two containers on two nodes. The AEAD's own pass is no such call.
//!
//! ```text
//!   [ca]--tun--(node a)====veth====(node b)--tun--[cb]
//! ```
//! Both nodes' data planes run in this process, so that the counters see their threads. With
//! `OVERLAY_PLANT=alloc` or `OVERLAY_PLANT=copy` in the environment the counters are fed a planted
//! defect, which must make the test fail; the test runs itself so to prove that it can.

#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use overlay::{
    agent::{
        Target,
        dataplane::{Config, Dataplane, DefaultRoute},
    },
    engine::{membership::Table, session::public_key},
    io::netns::Namespace,
    types::{
        Encap, Endpoint, EndpointId, Network, NetworkId, NodeId, Offloads, Peer, Psk, VersionRange,
        Vni,
    },
};

static WATCHING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static COPIES: AtomicU64 = AtomicU64::new(0);
static LARGEST_COPY: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// 0 unknown, 1 a forwarder, 2 any other thread.
    static KIND: Cell<u8> = const { Cell::new(0) };
}

fn on_forwarder() -> bool {
    WATCHING.load(Relaxed)
        && KIND.try_with(|kind| {
            if kind.get() == 0 {
                let mut name = [0u8; 16];
                // SAFETY: PR_GET_NAME writes at most 16 bytes, which there are.
                unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
                kind.set(if name.starts_with(b"overlay-w") { 1 } else { 2 });
            }
            kind.get() == 1
        }) == Ok(true)
}

struct Counting;

// SAFETY: every call is passed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if on_forwarder() {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
        // SAFETY: the caller keeps `alloc`'s conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s conditions.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note_copy(len: usize) {
    if len > LONGEST_FREE_COPY && on_forwarder() {
        COPIES.fetch_add(1, Relaxed);
        LARGEST_COPY.fetch_max(len as u64, Relaxed);
    }
}

/// Replaces the C library's for this whole program, the crypto library included.
///
/// # Safety
/// As `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    note_copy(len);
    // SAFETY: the caller gives `len` readable and writable bytes; `rep movsb` copies forward and
    // touches nothing else.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    to
}

/// As [`memcpy`], for ranges that overlap.
///
/// # Safety
/// As `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    note_copy(len);
    let overlaps_ahead = (to as usize).wrapping_sub(from as usize) < len;
    if !overlaps_ahead {
        // SAFETY: as in `memcpy`; copying forward is right when the target does not lie ahead.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags)
            );
        }
        return to;
    }
    let last = len.wrapping_sub(1);
    let (to_last, from_last) = (to.wrapping_add(last), from.wrapping_add(last));
    // SAFETY: `len` is not 0 here; both ends are inside the ranges, and copying backward is right
    // when the target lies ahead. The direction flag is put back.
    unsafe {
        std::arch::asm!(
            "std", "rep movsb", "cld",
            inout("rcx") len => _, inout("rdi") to_last => _, inout("rsi") from_last => _,
            options(nostack)
        );
    }
    to
}

/// Headers are copied; payloads are not.
const LONGEST_FREE_COPY: usize = 128;

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        println!("no_allocation_and_no_copy_per_packet: test");
        return;
    }
    println!("running 1 test");
    match std::env::var("OVERLAY_PLANT") {
        Ok(plant) => std::process::exit(i32::from(!measure(Some(&plant)))),
        Err(_) => {
            let clean = measure(None);
            let found = ["alloc", "copy"].into_iter().all(planted_defect_is_found);
            let result = if clean && found { "ok" } else { "FAILED" };
            println!("test no_allocation_and_no_copy_per_packet ... {result}\n");
            let (passed, failed) = if clean && found { (1, 0) } else { (0, 1) };
            println!(
                "test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n"
            );
            std::process::exit(failed);
        }
    }
}

/// Runs this program with a defect fed into the counters, and wants it to fail.
fn planted_defect_is_found(plant: &str) -> bool {
    let me = std::env::current_exe().expect("the path of this program");
    let status = Command::new(me).env("OVERLAY_PLANT", plant).status().expect("run this program");
    let found = status.code() == Some(1);
    println!("planted {plant}: {}", if found { "found" } else { "NOT FOUND" });
    found
}

/// Sets up the picture, warms up, watches, and says whether nothing was seen.
fn measure(plant: Option<&str>) -> bool {
    let lab = Lab::new();
    let (a, b) = lab.dataplanes();
    let both = "UDP and TCP, both ways";
    lab.traffic(&a, 3_000_000);
    overlay::plant::set(plant.unwrap_or_default());
    ALLOCATIONS.store(0, Relaxed);
    COPIES.store(0, Relaxed);
    WATCHING.store(true, Relaxed);
    let packets = lab.traffic(&a, 100_000_000);
    WATCHING.store(false, Relaxed);
    let (allocations, copies) = (ALLOCATIONS.load(Relaxed), COPIES.load(Relaxed));
    println!(
        "{both}: {packets} packets, {allocations} allocations, {copies} copies above {LONGEST_FREE_COPY} bytes (longest {})",
        LARGEST_COPY.load(Relaxed)
    );
    drop((a, b));
    packets > 50_000 && allocations == 0 && copies == 0
}

/// Two nodes and two containers, each in a namespace of its own, taken away at the end.
struct Lab {
    names: [String; 4],
}

const ADDRESSES: [&str; 2] = ["10.9.0.2", "10.9.0.3"];

impl Lab {
    fn new() -> Self {
        let pid = std::process::id();
        let lab = Self { names: ["a", "b", "ca", "cb"].map(|n| format!("ovt-alloc-{pid}-{n}")) };
        for name in &lab.names {
            ip(&["netns", "add", name]);
        }
        let [a, b, ..] = &lab.names;
        ip(&["link", "add", "u0", "netns", a, "type", "veth", "peer", "name", "u0", "netns", b]);
        for (name, address) in [(a, "192.0.2.1/24"), (b, "192.0.2.2/24")] {
            ip(&["-n", name, "addr", "add", address, "dev", "u0"]);
            ip(&["-n", name, "link", "set", "u0", "up"]);
        }
        lab
    }

    fn namespace(&self, place: usize) -> Namespace {
        let path = format!("/run/netns/{}", self.names[place]);
        Namespace::open(path.as_ref()).expect("the namespace was just made")
    }

    fn dataplanes(&self) -> (Dataplane, Dataplane) {
        let tables = [1u128, 2].map(table);
        let [a, b] = [0usize, 1].map(|place| {
            let folder = tempfile::tempdir().expect("a folder for the state");
            let table = Arc::new(tables[place].clone());
            let target = Target::Netns(format!("/run/netns/{}", self.names[place + 2]).into());
            let (ended, _) = tokio::sync::mpsc::channel(4);
            let config = Config {
                node: table.node,
                cluster: [7; 16],
                private_key: [place as u8 + 1; 32],
                data_addr: data_addr(place as u128 + 1),
                underlay_mtu: 1500,
                workers: 2,
                offloads: Offloads::ALL,
                rekey_interval: Duration::from_secs(120),
                state_dir: folder.path().to_owned(),
            };
            let work = async || {
                let dataplane = Dataplane::start(config, ended)?;
                dataplane.publish(table.clone());
                let network = table.networks.values().next().expect("a network");
                let own = table.endpoints.values().find(|e| e.node == table.node).expect("own");
                dataplane.attach(network, own, &target, None, DefaultRoute::Leave).await?;
                Ok(dataplane)
            };
            self.namespace(place).run(work).expect("a data plane")
        });
        (a, b)
    }

    /// Moves `bytes` by TCP each way and datagrams of several sizes; returns how many packets the
    /// first node sent and received.
    fn traffic(&self, node: &Dataplane, bytes: usize) -> u64 {
        let before = total(node);
        for (from, to) in [(0, 1), (1, 0)] {
            self.tcp(from, to, bytes);
            self.udp(from, to, bytes / 10_000);
        }
        total(node) - before
    }

    fn tcp(&self, from: usize, to: usize, bytes: usize) {
        use std::{
            io::{Read, Write},
            net::{TcpListener, TcpStream},
        };
        let (sent_port, port) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                self.namespace(to + 2).run(async || {
                    let listener = TcpListener::bind((ADDRESSES[to], 0))?;
                    sent_port.send(listener.local_addr()?)?;
                    let mut buffer = vec![0; 1 << 16];
                    let (mut stream, mut got) = (listener.accept()?.0, 0);
                    loop {
                        match stream.read(&mut buffer)? {
                            0 => return Ok(got),
                            len => got += len,
                        }
                    }
                })
            });
            let address = port.recv().expect("the receiver listens");
            self.namespace(from + 2)
                .run(async || {
                    let mut stream = TcpStream::connect(address)?;
                    let chunk = vec![7; 1 << 16];
                    for _ in 0..bytes.div_ceil(chunk.len()) {
                        stream.write_all(&chunk)?;
                    }
                    Ok(())
                })
                .expect("send");
            let got = receiver.join().expect("no panic").expect("receive");
            assert!(got >= bytes, "{got} of {bytes}");
        });
    }

    /// Echoes datagrams one at a time: what arrives proves itself, and nothing is ever lost.
    fn udp(&self, from: usize, to: usize, count: usize) {
        use std::net::UdpSocket;
        let (sent_port, port) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.namespace(to + 2).run(async || {
                    let socket = UdpSocket::bind((ADDRESSES[to], 0))?;
                    sent_port.send(socket.local_addr()?)?;
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        let (len, peer) = socket.recv_from(&mut buffer)?;
                        if len == 0 {
                            return Ok(());
                        }
                        socket.send_to(&buffer[..len], peer)?;
                    }
                })
            });
            let address = port.recv().expect("the receiver listens");
            let work = async || {
                let socket = UdpSocket::bind((ADDRESSES[from], 0))?;
                socket.connect(address)?;
                let mut buffer = vec![0; 1 << 16];
                for packet in 0..count {
                    let sent = [1usize, 64, 1200, 1400][packet % 4];
                    socket.send(&buffer[..sent])?;
                    assert_eq!(socket.recv(&mut buffer)?, sent);
                }
                socket.send(&[])?;
                Ok(())
            };
            self.namespace(from + 2).run(work).expect("echo");
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn total(node: &Dataplane) -> u64 {
    let rows = node.peers();
    rows.iter().map(|row| row.traffic.tx.packets + row.traffic.rx.packets).sum()
}

fn data_addr(node: u128) -> SocketAddr {
    format!("192.0.2.{node}:7790").parse().expect("an address")
}

/// The table of one of the two nodes.
fn table(node: u128) -> Table {
    let mut table = Table::empty(NodeId::from_u128(node));
    let network = Network {
        id: NetworkId::from_u128(1),
        name: "blue".parse().expect("a name"),
        vni: Vni::new(4097).expect("24 bits"),
        subnets: vec!["10.9.0.0/24".parse().expect("a subnet")],
        gateways: vec!["10.9.0.1".parse().expect("an address")],
        mtu: None,
        encap: Encap::Sealed,
        internal: false,
        labels: Default::default(),
    };
    for place in [1u128, 2] {
        let id = EndpointId::from_u128(place);
        let address = ADDRESSES[place as usize - 1];
        let endpoint = Endpoint {
            id,
            name: format!("c{place}").parse().expect("a name"),
            network: network.id,
            node: NodeId::from_u128(place),
            addresses: vec![format!("{address}/24").parse().expect("an address")],
            aliases: Vec::new(),
        };
        table.endpoints.insert(id, endpoint);
    }
    table.networks.insert(network.id, network);
    let other = 3 - node;
    let peer = Peer {
        id: NodeId::from_u128(other),
        name: format!("n{other}").parse().expect("a name"),
        data_addr: data_addr(other),
        underlay_mtu: 1500,
        public_key: public_key(&[other as u8; 32]).expect("a key"),
        versions: VersionRange { lowest: 1, highest: 1 },
        psks: vec![Psk { epoch: 1, key: [3; 32] }],
    };
    table.peers.insert(peer.id, peer);
    table
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip is installed");
    assert!(status.success(), "ip {}", arguments.join(" "));
}
