//! A forwarder thread. It owns the reading of some devices, one socket of the data port and the
//! lanes that it sends on, and does both directions; nothing is shared per packet.
//!
//! A wake-up: read the clock and the snapshot once, take what is ready within a budget, send what
//! was sealed. What is left makes the wait return at once, so one busy device cannot hold up others.

mod deliver;
mod inbound;
mod outbound;
mod run;
mod spin;
mod staging;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    process::setpriority_process,
};
use tokio::sync::mpsc;

use self::{inbound::InboundBuffer, run::SendRun, spin::Spin, staging::Staging};
use super::shared::{Port, SessionEvent, Shared, Snapshot};
use crate::{
    engine::{
        datapath::{PortId, reassembly::Reassembly},
        session::{Link, SendKey},
    },
    io::{clock, udp::DataSocket},
    types::{DropReason, EndpointId, Moment},
};

/// One lane of this worker.
pub(super) struct Lane {
    pub(super) number: u8,
    pub(super) socket: DataSocket,
}

/// A forwarder thread's state.
pub(super) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    epoll: OwnedFd,
    watched: HashMap<PortId, Arc<Port>>,
    socket: DataSocket,
    lanes: Vec<Lane>,
    outbound: Box<[u8]>,
    inbound: InboundBuffer,
    reply: Box<[u8]>,
    run: SendRun,
    /// Names the packets that this worker cuts into pieces.
    next_fragment: u32,
    reassembly: Reassembly,
    staging: Staging,
    spin: Spin,
    /// Bytes that this wake-up took from devices and the socket.
    taken: usize,
    now: Moment,
    unknown_session_told: Moment,
    ended: mpsc::Sender<EndpointId>,
    ended_waiting: Vec<EndpointId>,
}

impl Worker {
    /// Prepares a worker; `lanes` are those that it sends on, at most `max_datagrams` at once. It may
    /// spin where no other worker needs its processor.
    pub(super) fn new(
        index: usize,
        shared: Arc<Shared>,
        socket: DataSocket,
        lanes: Vec<Lane>,
        max_datagrams: usize,
        may_spin: bool,
        ended: mpsc::Sender<EndpointId>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = shared.waker(index);
        epoll::add(&epoll, waker, epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN)?;
        Ok(Self {
            index,
            snapshot: shared.snapshot.load_full(),
            shared,
            epoll,
            watched: HashMap::new(),
            socket,
            lanes,
            outbound: vec![0; outbound::BUFFER_LEN].into_boxed_slice(),
            inbound: InboundBuffer::new(),
            reply: vec![0; MAX_PACKET].into_boxed_slice(),
            run: SendRun::new(max_datagrams),
            // Lanes of two workers may meet at one worker of the other side.
            next_fragment: (index as u32) << WORKER_SHIFT,
            reassembly: Reassembly::default(),
            staging: Staging::new(),
            spin: Spin::new(may_spin),
            taken: 0,
            now: clock::now(),
            unknown_session_told: Moment::default(),
            ended,
            ended_waiting: Vec::new(),
        })
    }

    /// Forwards until the data plane stops.
    pub(super) fn run(mut self) {
        // Of this thread alone. Without the right to it forwarding only waits longer for its turn.
        if let Err(error) = setpriority_process(None, PRIORITY) {
            tracing::debug!(%error, worker = self.index, "forwarding has no priority");
        }
        let mut events = Vec::with_capacity(MAX_READY);
        while !self.shared.stop.load(Relaxed) {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, worker = self.index, "cannot wait for packets");
                    return;
                }
            };
            self.now = clock::now();
            if !ready.socket && !ready.others && self.spin.is_on() {
                self.spin.handle_empty(self.now);
                rustix::thread::sched_yield();
                continue;
            }
            self.adopt_snapshot();
            if ready.socket {
                self.inbound();
            }
            events.clear();
            if ready.others {
                let room = rustix::buffer::spare_capacity(&mut events);
                // Where this is interrupted, the next wait returns at once.
                let _ = epoll::wait(&self.epoll, room, Some(&AT_ONCE));
            }
            for event in &events {
                match event.data.u64() {
                    WAKER => self.wake(),
                    port => self.outbound(PortId(port as u32)),
                }
            }
            self.flush();
            // The session thread alone is no packet.
            if self.taken > 0 {
                self.spin.handle_ready(self.now, std::mem::take(&mut self.taken));
            }
            self.give_up_pieces();
            self.tell_ended();
        }
    }

    /// Waits until something is there, or the time has come for something else; while spinning, only
    /// looks. The socket is not among what epoll watches: that would be told of each datagram that
    /// comes, whether this thread waits or not.
    fn wait(&self) -> rustix::io::Result<Ready> {
        let limit = if self.spin.is_on() { Some(AT_ONCE) } else { self.wait_limit() };
        let mut fds =
            [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.epoll, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let [socket, others] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready { socket, others })
    }

    /// How long to wait when nothing comes: without an end, unless something waits for a retry, or
    /// for pieces that may not come.
    fn wait_limit(&self) -> Option<Timespec> {
        let retry = (!self.ended_waiting.is_empty()).then_some(RETRY);
        let limit = retry.or(self.reassembly.poll_timeout())?;
        Timespec::try_from(limit).ok()
    }

    fn wake(&mut self) {
        self.shared.waker(self.index).clear();
        self.flush_staged();
    }

    /// Takes the newest snapshot, and watches this worker's devices of it.
    fn adopt_snapshot(&mut self) {
        let newest = self.shared.snapshot.load();
        if Arc::ptr_eq(&newest, &self.snapshot) {
            return;
        }
        self.snapshot = arc_swap::Guard::into_inner(newest);
        let snapshot = self.snapshot.clone();
        let gone: Vec<PortId> =
            self.watched.keys().filter(|id| !snapshot.ports.contains_key(id)).copied().collect();
        for id in gone {
            self.unwatch(id);
        }
        for port in snapshot.ports.values() {
            if port.worker == self.index && !self.watched.contains_key(&port.id) {
                self.watch(port);
            }
        }
        self.reassembly.retain(|peer| snapshot.tables.find_peer(peer).is_some());
        self.shared.note_adopted(self.index, snapshot.generation);
    }

    fn watch(&mut self, port: &Arc<Port>) {
        let data = epoll::EventData::new_u64(u64::from(port.id.0));
        match epoll::add(&self.epoll, &port.tun, data, epoll::EventFlags::IN) {
            Ok(()) => {
                self.watched.insert(port.id, port.clone());
            }
            Err(error) => {
                tracing::warn!(%error, endpoint = %port.endpoint, "cannot watch a device")
            }
        }
    }

    fn unwatch(&mut self, id: PortId) {
        if let Some(port) = self.watched.remove(&id) {
            // The device may be gone already.
            let _ = epoll::delete(&self.epoll, &port.tun);
        }
    }

    /// A device's namespace has ended, and the device with it.
    fn device_ended(&mut self, port: &Port) {
        let _ = epoll::delete(&self.epoll, &port.tun);
        if !self.ended_waiting.contains(&port.endpoint) {
            self.ended_waiting.push(port.endpoint);
        }
    }

    fn tell_ended(&mut self) {
        self.ended_waiting.retain(|endpoint| match self.ended.try_send(*endpoint) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => true,
        });
    }

    /// Counts a drop that belongs to no peer.
    fn drop_packets(&self, reason: DropReason, packets: u64) {
        self.shared.drops[self.index].count(reason, packets);
    }

    /// Returns a peer's key if it may be used now; asks for one otherwise.
    fn usable_key(&self, link: &Link) -> Option<Arc<SendKey>> {
        let key = link.send_key();
        let usable = key.as_ref().filter(|key| key.is_usable(self.now)).cloned();
        if usable.is_none() && link.demand() {
            let told = self.shared.events.try_send(SessionEvent::Demand(link.peer()));
            if told.is_err() {
                link.clear_demand();
            }
        }
        usable
    }

    /// Tells the session thread of traffic with a peer that it does not watch.
    fn tell_active(&self, link: &Link) {
        let told = self.shared.events.try_send(SessionEvent::Active(link.peer()));
        if told.is_err() {
            link.set_active(false);
        }
    }
}

/// What a wait found.
struct Ready {
    /// Datagrams.
    socket: bool,
    /// What epoll watches: devices, and the session thread's waker.
    others: bool,
}

impl AsFd for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Event key of what is no device; devices have 32-bit numbers.
const WAKER: u64 = u64::MAX;
/// A nice value. Forwarding goes before what containers do, as it does where the kernel forwards: one that
/// floods would otherwise make all others wait for its time slices.
const PRIORITY: i32 = -10;
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Devices looked at in one wake-up.
const MAX_READY: usize = 64;
/// Between attempts to tell of a device that ended.
const RETRY: Duration = Duration::from_millis(10);
/// Leaves 2^28 names to each of at most 16 workers.
const WORKER_SHIFT: u32 = 28;
/// The longest IP packet without jumbo options.
const MAX_PACKET: usize = 65_535;
