//! Sealed datagrams of one (peer, lane) gathered for one `sendmsg` with UDP_SEGMENT: all of equal
//! length but the last.

use std::{net::SocketAddr, sync::Arc};

use super::Lane;
use crate::{
    engine::session::Link,
    types::{DropReason, PacketsBytes},
};

/// The run under way.
pub(super) struct SendRun {
    arena: Box<[u8]>,
    len: usize,
    stride: usize,
    open: bool,
    target: Option<Target>,
    pending: PacketsBytes,
    datagrams: usize,
    max_datagrams: usize,
}

/// Where a run goes.
struct Target {
    link: Arc<Link>,
    address: SocketAddr,
    lane: usize,
}

impl SendRun {
    /// An empty run of at most so many datagrams.
    pub(super) fn new(max_datagrams: usize) -> Self {
        Self {
            arena: vec![0; MAX_RUN].into_boxed_slice(),
            len: 0,
            stride: 0,
            open: false,
            target: None,
            pending: PacketsBytes::default(),
            datagrams: 0,
            max_datagrams,
        }
    }

    /// Returns room for a datagram of `len` bytes; sends what is there first if it does not fit
    /// behind it.
    pub(super) fn room(
        &mut self,
        link: &Arc<Link>,
        lane: usize,
        len: usize,
        lanes: &[Lane],
        worker: usize,
    ) -> &mut [u8] {
        let same = self
            .target
            .as_ref()
            .is_some_and(|target| target.lane == lane && Arc::ptr_eq(&target.link, link));
        let fits = same
            && self.open
            && len <= self.stride
            && self.len + len <= MAX_RUN
            && self.datagrams < self.max_datagrams;
        if !fits {
            self.flush(lanes, worker);
            if !same {
                let address = link.address();
                self.target = Some(Target { link: link.clone(), address, lane });
            }
            self.stride = len;
        }
        &mut self.arena[self.len..self.len + len]
    }

    /// Takes the datagram that was sealed into the room, and counts the packets that it carries.
    pub(super) fn commit(&mut self, len: usize, carried: PacketsBytes) {
        self.len += len;
        self.open = len == self.stride;
        self.datagrams += 1;
        self.pending.packets += carried.packets;
        self.pending.bytes += carried.bytes;
    }

    /// Sends what is there.
    pub(super) fn flush(&mut self, lanes: &[Lane], worker: usize) {
        let sent = std::mem::take(&mut self.pending);
        let len = std::mem::take(&mut self.len);
        self.open = true;
        self.datagrams = 0;
        let Some(target) = &self.target else { return };
        if len == 0 {
            return;
        }
        let counters = target.link.counters(worker);
        let bytes = &self.arena[..len];
        match transmit(&lanes[target.lane], bytes, self.stride, &target.address) {
            Ok(()) => counters.sent(sent),
            Err(_) => counters.dropped(DropReason::SendFailed, sent.packets),
        }
    }

    /// Forgets the target, so that nothing of an old snapshot is kept alive.
    pub(super) fn release(&mut self) {
        self.target = None;
    }
}

/// Sends a run; where the socket's buffer is full, waits for room once, for a short time: the
/// device's queue holds what the container sends meanwhile.
fn transmit(lane: &Lane, bytes: &[u8], stride: usize, to: &SocketAddr) -> std::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    match lane.socket.send(bytes, stride, to) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            let mut waiting = [PollFd::new(&lane.socket, PollFlags::OUT)];
            let limit = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            poll(&mut waiting, Some(&limit))?;
            lane.socket.send(bytes, stride, to)
        }
        result => result,
    }
}

/// The most that one UDP_SEGMENT message over IPv4 carries.
const MAX_RUN: usize = 65_507;
