//! Tries the kernel's offloads before they are relied on, with real traffic in two network
//! namespaces that nothing else sees, and leaves out those that do not keep the bytes.
//!
//! ```text
//! namespace A: TCP and UDP sockets -> TUN <--- packets pass as they come, ---> TUN <- sockets: B
//!              UDP_SEGMENT -> loopback -> UDP_GRO     virtio_net_hdr included
//! ```

use std::{
    io::{self, ErrorKind, IoSlice, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with},
};

use crate::{
    io::{
        netlink::Netlink,
        netns,
        tun::Tun,
        udp::{DataSocket, open_datagram},
    },
    types::Offloads,
};

/// What the kernel can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Findings {
    /// Those of the wanted offloads that work.
    pub(super) offloads: Offloads,
    /// The names of those that do not.
    pub(super) broken: Vec<&'static str>,
    /// How many datagrams one `sendmsg` takes.
    pub(super) max_datagrams: usize,
}

/// Tries the wanted offloads. Blocks for some tens of milliseconds where all is well.
pub(super) fn run(wanted: Offloads) -> Findings {
    run_through(wanted, &|_| true)
}

/// Tells of a packet between the two devices, framing first, whether it passes.
type Way<'a> = &'a dyn Fn(&[u8]) -> bool;

fn run_through(wanted: Offloads, way: Way<'_>) -> Findings {
    let mut found =
        Findings { offloads: wanted, broken: Vec::new(), max_datagrams: FEWEST_DATAGRAMS };
    if let Err(error) = try_sockets(&mut found).and_then(|()| try_devices(&mut found, way)) {
        let error = format!("{error:#}");
        tracing::warn!(error, "offloads are not tried; where traffic stalls, try --offload");
    }
    if !found.offloads.udp_gso {
        found.max_datagrams = 1;
    }
    for offload in &found.broken {
        tracing::warn!(offload, "this offload of the kernel loses data; it stays off");
    }
    found
}

/// An offload that may be the broken one.
#[derive(Clone, Copy)]
struct Suspect {
    name: &'static str,
    off: fn(&mut Offloads),
}

impl Suspect {
    fn without(self, offloads: Offloads) -> Offloads {
        let mut offloads = offloads;
        (self.off)(&mut offloads);
        offloads.normalised()
    }
}

impl Findings {
    fn blame(&mut self, suspect: Suspect) {
        self.offloads = suspect.without(self.offloads);
        self.broken.push(suspect.name);
    }
}

// --- UDP_SEGMENT and UDP_GRO -------------------------------------------------------------------

/// Sends trains over the loopback.
fn try_sockets(found: &mut Findings) -> anyhow::Result<()> {
    let Offloads { udp_gso, udp_gro, .. } = found.offloads;
    netns::in_fresh(async || {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sender = open_datagram(loopback, false)?;
        let passes = |count, gro| -> anyhow::Result<bool> {
            let receiver = open_datagram(loopback, gro)?;
            Ok(train_passes(&sender, &receiver, count).unwrap_or(false))
        };
        if udp_gro && !passes(1, true)? {
            found.blame(Suspect { name: "udp-gro", off: |offloads| offloads.udp_gro = false });
        }
        if udp_gso {
            let gro = found.offloads.udp_gro;
            let most = [MOST_DATAGRAMS, FEWEST_DATAGRAMS].into_iter();
            match most.map(|count| Ok((count, passes(count, gro)?))).find(taken) {
                Some(most) => found.max_datagrams = most?.0,
                None if gro && passes(FEWEST_DATAGRAMS, false)? => {
                    found.blame(Suspect { name: "udp-gro", off: |o| o.udp_gro = false });
                }
                None => found.blame(Suspect { name: "udp-gso", off: |o| o.udp_gso = false }),
            }
        }
        Ok(())
    })
}

fn taken(tried: &anyhow::Result<(usize, bool)>) -> bool {
    tried.as_ref().map_or(true, |(_, passes)| *passes)
}

/// Sends one train, the last datagram shorter, and looks at what comes.
fn train_passes(sender: &DataSocket, receiver: &DataSocket, count: usize) -> io::Result<bool> {
    let sent = pattern(count * STRIDE - 7);
    sender.send(&sent, STRIDE, &receiver.local_addr()?)?;
    let (mut got, mut buffer): (Vec<u8>, Vec<u8>) = (Vec::new(), vec![0; LONGEST]);
    let deadline = Instant::now() + PATIENCE;
    while got.len() < sent.len() && Instant::now() < deadline {
        match receiver.receive(&mut buffer) {
            Ok(train) if train.stride > STRIDE || train.truncated => return Ok(false),
            Ok(train) => got.extend(&buffer[..train.len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(&mut [PollFd::new(receiver, PollFlags::IN)])?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(got == sent)
}

// --- what a TUN does ---------------------------------------------------------------------------

/// A kind of traffic and the offload that is its own.
#[derive(Clone, Copy)]
struct Kind {
    transport: Transport,
    ipv6: bool,
    segmentation: Suspect,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

const KINDS: [Kind; 4] = [
    Kind {
        transport: Transport::Tcp,
        ipv6: false,
        segmentation: Suspect { name: "tun-tso4", off: |offloads| offloads.tun_tso4 = false },
    },
    Kind {
        transport: Transport::Tcp,
        ipv6: true,
        segmentation: Suspect { name: "tun-tso6", off: |offloads| offloads.tun_tso6 = false },
    },
    Kind {
        transport: Transport::Udp,
        ipv6: false,
        segmentation: Suspect { name: "tun-uso4", off: |offloads| offloads.tun_uso4 = false },
    },
    Kind {
        transport: Transport::Udp,
        ipv6: true,
        segmentation: Suspect { name: "tun-uso6", off: |offloads| offloads.tun_uso6 = false },
    },
];

const CHECKSUM: Suspect = Suspect { name: "tun-csum", off: |offloads| offloads.tun_csum = false };
const HEADER: Suspect = Suspect { name: "tun-vnet", off: |offloads| offloads.tun_vnet = false };

/// Sends every kind of traffic between two devices; where one does not pass, finds out without
/// which offload it does.
fn try_devices(found: &mut Findings, way: Way<'_>) -> anyhow::Result<()> {
    let mut pair = Pair::new(found.offloads)?;
    for kind in KINDS {
        if !found.offloads.tun_vnet || pair.carries(kind, way)? {
            continue;
        }
        // A machine that did not run us for a while is no broken offload.
        pair = Pair::new(found.offloads)?;
        if pair.carries(kind, way)? {
            continue;
        }
        let mut culprit = None;
        for suspect in [kind.segmentation, CHECKSUM, HEADER] {
            pair = Pair::new(suspect.without(found.offloads))?;
            if pair.carries(kind, way)? {
                culprit = Some(suspect);
                break;
            }
        }
        // The kernel may be built without IPv6, or the way be shut for another reason than these.
        let Some(culprit) = culprit else { continue };
        found.blame(culprit);
        pair = Pair::new(found.offloads)?;
    }
    Ok(())
}

/// Two namespaces, of which each has the other behind its device.
struct Pair([Side; 2]);

/// What is open in one of them; the namespace lives as long as that.
struct Side {
    tun: Tun,
    /// Of IPv4 and IPv6 each; none where the kernel has no such family.
    sockets: [Option<Sockets>; 2],
}

struct Sockets {
    udp: DataSocket,
    listener: TcpListener,
    caller: OwnedFd,
}

impl Pair {
    fn new(offloads: Offloads) -> anyhow::Result<Self> {
        Ok(Self([Side::new(1, offloads)?, Side::new(2, offloads)?]))
    }

    /// Whether traffic of a kind comes through, in super-packets where there are any.
    fn carries(&mut self, kind: Kind, way: Way<'_>) -> anyhow::Result<bool> {
        let Self([near, far]) = self;
        let family = usize::from(kind.ipv6);
        let (Some(from), Some(to)) = (&near.sockets[family], &far.sockets[family]) else {
            return Ok(true);
        };
        let devices = Devices { near: &near.tun, far: &far.tun, way };
        match kind.transport {
            Transport::Tcp => tcp_passes(from, to, &devices),
            Transport::Udp => udp_passes(from, to, &devices),
        }
    }
}

impl Side {
    fn new(host: u8, offloads: Offloads) -> anyhow::Result<Self> {
        let addresses = [
            IpNet::new_assert(Ipv4Addr::new(198, 18, 0, host).into(), 24),
            IpNet::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(), 64),
        ];
        netns::in_fresh(async || {
            let tun = Tun::create(offloads).context("make a device to try")?;
            let netlink = Netlink::open()?;
            let index = netlink.link(tun.name()).await?.index;
            netlink.no_automatic_addresses(index).await;
            netlink.up(index).await?;
            let mut sockets = [None, None];
            for (place, address) in sockets.iter_mut().zip(addresses) {
                if netlink.add_address(index, address).await.is_ok() {
                    *place = Sockets::open(address.addr()).ok();
                }
            }
            ensure!(sockets[0].is_some(), "the device to try takes no address");
            Ok(Self { tun, sockets })
        })
    }
}

impl Sockets {
    fn open(address: IpAddr) -> anyhow::Result<Self> {
        let address = SocketAddr::new(address, 0);
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let caller = socket_with(family, SocketType::STREAM, flags, None)?;
        Ok(Self { udp: open_datagram(address, false)?, listener, caller })
    }
}

/// The way from one side to the other.
struct Devices<'a> {
    near: &'a Tun,
    far: &'a Tun,
    way: Way<'a>,
}

impl Devices<'_> {
    /// Waits a moment for packets, and passes on what there is, both ways.
    fn pass(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut ready =
            [self.near, self.far].map(|tun| PollFd::from_borrowed_fd(tun.as_fd(), PollFlags::IN));
        wait(&mut ready)?;
        for (from, to) in [(self.near, self.far), (self.far, self.near)] {
            while let Ok(len) = from.read(buffer) {
                if (self.way)(&buffer[..len]) {
                    // What a device does not take is lost, which is what is to be found out.
                    let _ = to.write(&[IoSlice::new(&buffer[..len])]);
                }
            }
        }
        Ok(())
    }
}

fn tcp_passes(from: &Sockets, to: &Sockets, devices: &Devices<'_>) -> anyhow::Result<bool> {
    let mut caller = TcpStream::from(from.caller.try_clone()?);
    match connect(&caller, &to.listener.local_addr()?) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error).context("connect over the device to try"),
    }
    let (sent, mut buffer) = (pattern(TCP_BYTES), vec![0; LONGEST]);
    let (mut written, mut got, mut called): (usize, Vec<u8>, Option<TcpStream>) =
        (0, Vec::new(), None);
    let deadline = Instant::now() + PATIENCE;
    while got.len() < sent.len() && Instant::now() < deadline {
        devices.pass(&mut buffer)?;
        if called.is_none()
            && let Ok((stream, _)) = to.listener.accept()
        {
            stream.set_nonblocking(true)?;
            called = Some(stream);
        }
        let Some(called) = &mut called else { continue };
        // Neither side blocks; what does not go now goes after the next packets.
        written += caller.write(&sent[written..]).unwrap_or(0);
        while let Ok(len @ 1..) = called.read(&mut buffer) {
            got.extend(&buffer[..len]);
        }
    }
    Ok(got == sent)
}

fn udp_passes(from: &Sockets, to: &Sockets, devices: &Devices<'_>) -> anyhow::Result<bool> {
    let (sent, mut buffer) = (pattern(UDP_COUNT * STRIDE), vec![0; LONGEST]);
    let address = to.udp.local_addr()?;
    if from.udp.send(&sent, STRIDE, &address).is_err() {
        // Without UDP_SEGMENT there are no super-packets to try.
        return Ok(true);
    }
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while got.len() < UDP_COUNT && Instant::now() < deadline {
        devices.pass(&mut buffer)?;
        while let Ok(datagram) = to.udp.receive(&mut buffer) {
            got.push(buffer[..datagram.len].to_vec());
        }
    }
    Ok(got.iter().map(Vec::as_slice).eq(sent.chunks(STRIDE)))
}

/// Waits until one of them is ready, but not for long.
fn wait(ready: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(ready, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 })) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Bytes of which any shift or swap shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// What every kernel with UDP_SEGMENT takes in one message, and what newer ones do.
const FEWEST_DATAGRAMS: usize = 64;
const MOST_DATAGRAMS: usize = 128;
/// Of a datagram; 128 of them are less than the longest message.
const STRIDE: usize = 500;
const UDP_COUNT: usize = 20;
/// Some super-packets of full length.
const TCP_BYTES: usize = 300_000;
const LONGEST: usize = 65_536 + 64;
/// A hundred times what it takes on an idle machine; a broken offload costs this once.
const PATIENCE: Duration = Duration::from_millis(1000);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::vnet::{LEN, VnetHeader, gso};

    #[test]
    fn a_kernel_that_keeps_all_bytes_has_all_offloads() {
        let found = run(Offloads::ALL);
        assert_eq!((found.offloads, found.broken), (Offloads::ALL, vec![]));
        assert!(found.max_datagrams >= FEWEST_DATAGRAMS);
    }

    #[test]
    fn what_is_not_wanted_is_not_tried() {
        let wanted = Offloads { udp_gso: false, tun_vnet: false, ..Offloads::ALL }.normalised();
        let found = run_through(wanted, &|_| panic!("nothing passes"));
        assert_eq!(found, Findings { offloads: wanted, broken: vec![], max_datagrams: 1 });
    }

    /// The offload whose super-packets are lost on the way is found, and no other goes with it.
    #[test]
    fn the_broken_one_is_named_and_goes_alone() {
        let lost = |broken: u8, ipv6: bool| {
            move |packet: &[u8]| {
                let Some((header, inner)) = packet.split_first_chunk::<LEN>() else { return true };
                let kind = VnetHeader::parse(header).gso_type & !gso::ECN;
                kind != broken || ipv6 != (inner[0] >> 4 == 6)
            }
        };
        for (name, kind, ipv6) in [
            ("tun-tso4", gso::TCPV4, false),
            ("tun-tso6", gso::TCPV6, true),
            ("tun-uso4", gso::UDP_L4, false),
            ("tun-uso6", gso::UDP_L4, true),
        ] {
            let found = run_through(Offloads::ALL, &lost(kind, ipv6));
            let without = format!("{name}=off").parse().unwrap();
            assert_eq!((found.offloads, found.broken), (without, vec![name]));
        }
    }
}
