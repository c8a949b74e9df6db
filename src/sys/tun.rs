//! Opening TUN queues, of new devices and of those that outlived their last holder. The offloaded queue is opened here, because tun-tap fixes its flags in C and
//! cannot ask for IFF_VNET_HDR; the plain queue is tun-tap's.

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

/// The bits of TUNSETOFFLOAD.
pub mod offload {
    /// Partial checksums.
    pub const CSUM: u32 = libc::TUN_F_CSUM;
    /// TCP segmentation over IPv4, with ECN.
    pub const TSO4: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
    /// TCP segmentation over IPv6, with ECN.
    pub const TSO6: u32 = libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    /// UDP segmentation over IPv4.
    pub const USO4: u32 = libc::TUN_F_USO4;
    /// UDP segmentation over IPv6.
    pub const USO6: u32 = libc::TUN_F_USO6;
}

/// Opens a device with a virtio_net_hdr in front of each packet, one queue, non-blocking, without
/// O_CLOEXEC gaps. `pattern` may contain `%d`, for a new device; the device's name is returned. A
/// device of that name that nobody holds is taken as it is. `offloads` are bits of [`offload`].
pub fn open_vnet(pattern: &str, offloads: u32) -> io::Result<(OwnedFd, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = interface_request(pattern)?;
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and `request` is a whole `ifreq`, as TUNSETIFF reads and
    // writes it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    check(result)?;
    let mut result = set_offloads(&file, offloads);
    if result.is_err() && offloads & (offload::USO4 | offload::USO6) != 0 {
        // Linux has UDP segmentation at a TUN since 6.2.
        result = set_offloads(&file, offloads & !(offload::USO4 | offload::USO6));
    }
    result?;
    Ok((file.into(), interface_name(&request)))
}

fn set_offloads(file: &File, offloads: u32) -> io::Result<()> {
    let flags = libc::c_ulong::from(offloads);
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its flags by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })
}

/// Opens a device without any header or offload, by tun-tap, non-blocking; the name is as for
/// [`open_vnet`].
pub fn open_plain(pattern: &str) -> io::Result<(OwnedFd, String)> {
    let device = tun_tap::Iface::without_packet_info(pattern, tun_tap::Mode::Tun)?;
    device.set_non_blocking()?;
    let name = device.name().trim_end_matches('\0').to_owned();
    let raw = device.into_raw_fd();
    // SAFETY: `into_raw_fd` gave the descriptor away to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok((fd, name))
}

/// Makes a device outlive its holder, or end with it.
pub fn set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    let value = libc::c_ulong::from(persistent);
    // SAFETY: the descriptor is open, and TUNSETPERSIST takes its flag by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, value) })
}

/// Lets only this user take the device while nobody holds it, beside those who may configure its
/// network namespace.
pub fn set_owner(fd: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    let value = libc::c_ulong::from(uid);
    // SAFETY: the descriptor is open, and TUNSETOWNER takes the user by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOWNER, value) })
}

fn interface_request(pattern: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if pattern.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(pattern.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn interface_name(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.map(|c| c as u8);
    CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
