//! A TUN device's queue. A device lives as long as its queue, whatever namespace it was moved into,
//! unless it is kept: then it stays without a carrier, with its addresses and routes, until somebody
//! takes it again.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{sys::tun as sys, types::Offloads};

/// What stands in front of each packet of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A `virtio_net_hdr`.
    Vnet,
    /// Nothing.
    Plain,
}

/// A queue.
pub struct Tun {
    fd: OwnedFd,
    name: String,
    framing: Framing,
}

impl Tun {
    /// Makes a device in the calling thread's network namespace under a name that nobody has.
    pub fn create(offloads: Offloads) -> io::Result<Self> {
        Self::open(NAME_PATTERN, offloads)
    }

    /// Takes a device of the calling thread's network namespace that was kept, or makes one of that
    /// name. The namespace lives as long as the queue.
    ///
    /// # Errors
    /// Among others, somebody holds the device.
    pub fn open(name: &str, offloads: Offloads) -> io::Result<Self> {
        let (framing, (fd, name)) = if offloads.tun_vnet {
            (Framing::Vnet, sys::open_vnet(name, offload_bits(offloads))?)
        } else {
            (Framing::Plain, sys::open_plain(name)?)
        };
        Ok(Self { fd, name, framing })
    }

    /// Keeps the device when this queue is dropped. Until it is taken again nobody but who may
    /// configure its network namespace can take it: its owner is a user that nobody is.
    pub fn keep(&self) -> io::Result<()> {
        // In a user namespace there may be no such user; root of it is who there is.
        sys::set_owner(self.fd.as_fd(), NOBODY)
            .or_else(|_| sys::set_owner(self.fd.as_fd(), rustix::process::geteuid().as_raw()))?;
        sys::set_persistent(self.fd.as_fd(), true)
    }

    /// Lets the device end with this queue.
    pub fn release(&self) -> io::Result<()> {
        sys::set_persistent(self.fd.as_fd(), false)
    }

    /// Returns the name that the device was made under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what stands in front of each packet.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Reads one packet, framing first. Never blocks.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, buffer)?)
    }

    /// Writes one packet gathered from `parts`, framing first. Never blocks.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.fd, parts)?;
        Ok(())
    }
}

fn offload_bits(offloads: Offloads) -> u32 {
    let bits = [
        (offloads.tun_csum, sys::offload::CSUM),
        (offloads.tun_tso4, sys::offload::TSO4),
        (offloads.tun_tso6, sys::offload::TSO6),
        (offloads.tun_uso4, sys::offload::USO4),
        (offloads.tun_uso6, sys::offload::USO6),
    ];
    bits.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const NAME_PATTERN: &str = "ovl%d";
/// Beside what `nobody` is on any distribution, since programs run as that one.
const NOBODY: u32 = u32::MAX - 1;
