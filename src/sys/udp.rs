//! `sendmsg` with UDP_SEGMENT, `recvmsg` with UDP_GRO, and the socket options around them.

use std::{
    io,
    mem::{MaybeUninit, size_of, zeroed},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
};

/// What one `recvmsg` brought.
#[derive(Clone, Copy, Debug)]
pub struct Train {
    /// How many bytes.
    pub len: usize,
    /// The length of every datagram but the last; `len` if there is one.
    pub stride: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Whether bytes were cut off because the buffer was too short.
    pub truncated: bool,
}

/// Sends `bytes` to `to` as datagrams of `stride` bytes, the last one shorter or equal. With
/// `stride >= bytes.len()` it is one plain datagram. Never blocks.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], stride: usize, to: &SocketAddr) -> io::Result<()> {
    let (mut name, name_len) = to_storage(to);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control::<{ CONTROL_SEND }>::new();
    // SAFETY: `msghdr` is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if stride < bytes.len() {
        let segment = u16::try_from(stride)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "segments above 65535"))?;
        control.put_u16(libc::SOL_UDP, libc::UDP_SEGMENT, segment);
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_SEND as _;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: every pointer of `message` is to a live local or to `bytes`, with its own length, and
    // the kernel only reads from them. Not libc's `sendmsg`: that is a point of cancellation, which
    // nobody here uses and each call would pay for.
    let sent =
        unsafe { libc::syscall(libc::SYS_sendmsg, fd.as_raw_fd(), &raw const message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives a train of datagrams into `buffer`. Never blocks.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Train> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control::<{ CONTROL_RECEIVE }>::new();
    // SAFETY: `msghdr` is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_RECEIVE as _;
    // SAFETY: every pointer of `message` is to a live local or to `buffer`, writable for its own
    // length. Not libc's `recvmsg`, as above.
    let got = unsafe {
        libc::syscall(libc::SYS_recvmsg, fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT)
    };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: zeros are a valid `sockaddr_storage`, and the kernel wrote at most its length.
    let name = unsafe { name.assume_init() };
    let from = from_storage(&name)?;
    let stride = control.find_int(message.msg_controllen as usize, libc::SOL_UDP, libc::UDP_GRO);
    let stride = stride.and_then(|s| usize::try_from(s).ok()).filter(|&s| s > 0).unwrap_or(len);
    let truncated = message.msg_flags & libc::MSG_TRUNC != 0;
    Ok(Train { len, stride: stride.min(len), from, truncated })
}

/// Sets an option that is an int.
pub fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(fd, level, name, &value)
}

/// Makes a SO_REUSEPORT group hand each datagram to the socket whose place in the group is the
/// byte at `offset` of the datagram, modulo `sockets`.
pub fn steer_by_byte(fd: BorrowedFd<'_>, offset: u32, sockets: u32) -> io::Result<()> {
    let program = [
        filter((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, offset),
        filter((libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16, sockets.max(1)),
        filter((libc::BPF_RET | libc::BPF_A) as u16, 0),
    ];
    attach(fd, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Makes a socket refuse everything that comes to it: it is for sending only.
pub fn refuse_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    attach(fd, libc::SO_ATTACH_FILTER, &[filter((libc::BPF_RET | libc::BPF_K) as u16, 0)])
}

const fn filter(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn attach(fd: BorrowedFd<'_>, option: i32, program: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    set_option(fd, libc::SOL_SOCKET, option, &program)
}

fn set_option<T>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a live `T` and its own length goes with it; the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Room for one control message of an int.
const CONTROL_SEND: usize = 24;
/// Room for UDP_GRO and what else the kernel may add.
const CONTROL_RECEIVE: usize = 64;

/// A buffer for control messages, aligned as their headers must be.
#[repr(align(8))]
struct Control<const N: usize> {
    bytes: [u8; N],
}

/// Length, level and type in front of each control message: 8 + 4 + 4 bytes on 64-bit Linux.
const HEADER: usize = size_of::<libc::cmsghdr>();

impl<const N: usize> Control<N> {
    fn new() -> Self {
        Self { bytes: [0; N] }
    }

    fn put_u16(&mut self, level: i32, kind: i32, value: u16) {
        let len = HEADER + size_of::<u16>();
        let word = size_of::<usize>();
        self.bytes[..word].copy_from_slice(&len.to_ne_bytes());
        self.bytes[word..word + 4].copy_from_slice(&level.to_ne_bytes());
        self.bytes[word + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[HEADER..len].copy_from_slice(&value.to_ne_bytes());
    }

    fn find_int(&self, filled: usize, level: i32, kind: i32) -> Option<i32> {
        let mut rest = self.bytes.get(..filled.min(N))?;
        let int = |bytes: &[u8]| bytes.first_chunk().map(|b| i32::from_ne_bytes(*b));
        while rest.len() >= HEADER {
            let len = usize::from_ne_bytes(*rest.first_chunk()?);
            let word = size_of::<usize>();
            if len < HEADER || len > rest.len() {
                return None;
            }
            if int(&rest[word..])? == level && int(&rest[word + 4..])? == kind {
                return int(&rest[HEADER..len]);
            }
            rest = rest.get(len.next_multiple_of(word)..)?;
        }
        None
    }
}

fn to_storage(address: &SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: `sockaddr_storage` is plain data for which zeros are valid.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let len = match address {
        SocketAddr::V4(v4) => {
            let place = (&raw mut storage).cast::<libc::sockaddr_in>();
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` is large and aligned enough for every address.
            unsafe { place.write(value) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let place = (&raw mut storage).cast::<libc::sockaddr_in6>();
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: a `sockaddr_storage` is large and aligned enough for every address.
            unsafe { place.write(value) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

fn from_storage(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a `sockaddr_in`, which fits and is aligned.
            let v4 = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is a `sockaddr_in6`, which fits and is aligned.
            let v6 = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Ok(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a sender without an IP address")),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;

    #[test]
    fn a_train_is_sent_and_received_whole() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let receiver = UdpSocket::bind(loopback).unwrap();
            set_int(receiver.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
            let sender = UdpSocket::bind(loopback).unwrap();
            let bytes: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
            send(sender.as_fd(), &bytes, 1000, &receiver.local_addr().unwrap()).unwrap();
            let mut buffer = vec![0; 65_536];
            let mut got: Vec<u8> = Vec::new();
            while got.len() < bytes.len() {
                receiver.peek(&mut [0]).unwrap();
                let train = receive(receiver.as_fd(), &mut buffer).unwrap();
                assert_eq!(train.from, sender.local_addr().unwrap());
                assert!(train.stride <= 1000 && !train.truncated);
                got.extend(&buffer[..train.len]);
            }
            assert_eq!(got, bytes);
        }
    }

    #[test]
    fn a_cut_datagram_is_said_to_be_cut() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        send(sender.as_fd(), &[7; 100], 100, &receiver.local_addr().unwrap()).unwrap();
        receiver.peek(&mut [0]).unwrap();
        assert!(receive(receiver.as_fd(), &mut [0; 50]).unwrap().truncated);
    }

    #[test]
    fn a_group_is_steered_by_a_byte() {
        let open = |address: SocketAddr| {
            use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
            let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
            sockopt::set_socket_reuseport(&socket, true).unwrap();
            bind(&socket, &address).unwrap();
            UdpSocket::from(socket)
        };
        let a = open("127.0.0.1:0".parse().unwrap());
        let address = a.local_addr().unwrap();
        let b = open(address);
        steer_by_byte(a.as_fd(), 2, 2).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for lane in [0, 1, 2, 3, 17, 255u8] {
            sender.send_to(&[9, 9, lane], address).unwrap();
            let mut got = [0; 3];
            let owner = if lane % 2 == 0 { &a } else { &b };
            owner.recv(&mut got).unwrap();
            assert_eq!(got[2], lane);
        }
    }

    #[test]
    fn a_socket_for_sending_only_hears_nothing() {
        let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
        refuse_all(deaf.as_fd()).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"x", deaf.local_addr().unwrap()).unwrap();
        let error = receive(deaf.as_fd(), &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
