//! The data port: one socket a worker in a SO_REUSEPORT group, steered by the lane byte, and more
//! sockets for sending only, whose source ports give lanes their entropy.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream},
    },
};

use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::sys;
pub use crate::sys::udp::Train;

/// A UDP socket of the data port.
pub struct DataSocket(UdpSocket);

impl DataSocket {
    /// Sends datagrams of `stride` bytes, the last one shorter or equal. Never blocks.
    pub fn send(&self, bytes: &[u8], stride: usize, to: &SocketAddr) -> io::Result<()> {
        sys::udp::send(self.0.as_fd(), bytes, stride, to)
    }

    /// Receives a train of datagrams. Never blocks.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Train> {
        sys::udp::receive(self.0.as_fd(), buffer)
    }

    /// Returns the address that it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Returns another handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl AsFd for DataSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The data port of this network namespace, taken.
pub struct DataPort {
    /// One socket a worker, in the order of the workers.
    pub sockets: Vec<DataSocket>,
    /// Holds the port until it is dropped.
    pub lock: PortLock,
}

/// The data port of one network namespace, held.
pub struct PortLock(#[expect(dead_code, reason = "its life is the lock")] UnixListener);

/// Takes the data port and opens `workers` sockets on it.
///
/// Each datagram reaches the socket whose place is its byte at `steering_byte`, modulo `workers`.
pub fn take_data_port(
    address: SocketAddr,
    workers: usize,
    gro: bool,
    steering_byte: u32,
) -> anyhow::Result<DataPort> {
    let lock = lock_port(address.port())?;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = open(address).with_context(|| format!("open data port {address}"))?;
        if gro
            && let Err(error) = sys::udp::set_int(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
        {
            tracing::warn!(%error, "this kernel has no UDP_GRO; going on without");
        }
        sockets.push(socket);
    }
    if let Some(first) = sockets.first()
        && workers > 1
        && let Err(error) = sys::udp::steer_by_byte(first.as_fd(), steering_byte, workers as u32)
    {
        // Windows are locked, so nothing is wrong without it, only slower.
        tracing::warn!(%error, "no steering of lanes to workers");
    }
    Ok(DataPort { sockets, lock: PortLock(lock) })
}

/// Opens a socket on an address for itself alone, with UDP_GRO or without.
pub fn open_datagram(address: SocketAddr, gro: bool) -> io::Result<DataSocket> {
    let socket = open(address)?;
    if gro {
        sys::udp::set_int(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)?;
    }
    Ok(socket)
}

/// Opens a socket that only sends, from a port of its own.
pub fn open_sender(address: IpAddr) -> anyhow::Result<DataSocket> {
    let address = SocketAddr::new(address, 0);
    let socket = open(address).with_context(|| format!("open a sending socket on {address}"))?;
    sys::udp::refuse_all(socket.as_fd()).context("close a sending socket to the outside")?;
    Ok(socket)
}

fn open(address: SocketAddr) -> io::Result<DataSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.port() != 0 {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    grow_buffers(socket.as_fd());
    // DF is set, and what the kernel believes of the path is not asked: probes decide.
    if address.is_ipv4() {
        let value = libc::IP_PMTUDISC_PROBE;
        sys::udp::set_int(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)?;
    } else {
        let value = libc::IPV6_PMTUDISC_PROBE;
        sys::udp::set_int(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)?;
    }
    bind(&socket, &address)?;
    Ok(DataSocket(socket.into()))
}

/// Asks for large buffers: past the host's limit where that is allowed (not in a user namespace),
/// else up to it.
fn grow_buffers(socket: BorrowedFd<'_>) {
    let options =
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)];
    for (force, plain) in options {
        if sys::udp::set_int(socket, libc::SOL_SOCKET, force, BUFFER_BYTES).is_err() {
            // The kernel takes any value and caps it.
            let _ = sys::udp::set_int(socket, libc::SOL_SOCKET, plain, BUFFER_BYTES);
        }
    }
}

/// Holds the port once per network namespace: with SO_REUSEPORT alone a second daemon would take
/// half of the traffic. The name lives in the namespace of abstract sockets, which goes with it.
fn lock_port(port: u16) -> anyhow::Result<UnixListener> {
    let name = UnixAddr::from_abstract_name(format!("overlay-data-{port}"))
        .context("name the data port's lock")?;
    match UnixListener::bind_addr(&name) {
        Ok(lock) => Ok(lock),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = UnixStream::connect_addr(&name)
                .ok()
                .and_then(|stream| sockopt::socket_peercred(&stream).ok())
                .map_or_else(String::new, |holder| holder_name(holder.pid.as_raw_pid()));
            bail!(
                "data port {port} of this network namespace is held by another overlayd{holder}; end it, or choose another --data-path-port"
            )
        }
        Err(error) => Err(error).context("lock the data port"),
    }
}

fn holder_name(pid: i32) -> String {
    let mut name = String::new();
    let read = std::fs::File::open(format!("/proc/{pid}/comm"))
        .and_then(|file| file.take(64).read_to_string(&mut name));
    match read {
        Ok(_) => format!(" (pid {pid}, {})", name.trim_end()),
        Err(_) => format!(" (pid {pid})"),
    }
}

/// 4 MiB hold 30 ms of 1 Gb/s; more would only add delay.
const BUFFER_BYTES: i32 = 4 << 20;
