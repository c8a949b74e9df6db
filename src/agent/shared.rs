//! What the data plane's threads share. Workers read one snapshot a wake-up; whoever changes
//! something builds a new one and wakes them.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::SyncSender,
    },
};

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;

use crate::{
    engine::{
        datapath::{PortId, Tables},
        session::{Directory, Link},
    },
    io::tun::Tun,
    types::{
        DropCounts, DropReason, EndpointId, NetworkId, NodeId, Offloads, PacketsBytes, Peer,
        Traffic,
    },
    wire::control::Control,
};

/// What all threads of one data plane hold.
pub(super) struct Shared {
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) directory: Arc<Directory>,
    pub(super) events: SyncSender<SessionEvent>,
    pub(super) strangers: SyncSender<Stranger>,
    /// Whether the session thread will look at what strangers sent without being told again.
    pub(super) strangers_told: AtomicBool,
    pub(super) stop: AtomicBool,
    wakers: Vec<Waker>,
    /// The generation of the snapshot that each worker uses.
    adopted: Vec<watch::Sender<u64>>,
    /// Drops that belong to no peer: one set a worker, the last the session thread's.
    pub(super) drops: Vec<DropCounters>,
}

/// What a packet's way is read from.
#[derive(Default)]
pub(super) struct Snapshot {
    /// Rises with every snapshot.
    pub(super) generation: u64,
    pub(super) tables: Tables,
    pub(super) ports: HashMap<PortId, Arc<Port>>,
}

/// A container's device.
pub(super) struct Port {
    pub(super) id: PortId,
    pub(super) endpoint: EndpointId,
    pub(super) network: NetworkId,
    pub(super) tun: Tun,
    /// The worker that reads the device; any worker may write to it.
    pub(super) worker: usize,
    pub(super) offloads: Offloads,
    counters: Box<[PortCounters]>,
}

/// What one worker counts of one device.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct PortCounters {
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
}

/// What one thread counts of drops.
#[repr(align(64))]
pub(super) struct DropCounters([AtomicU64; DropReason::COUNT]);

/// What the session thread is told.
pub(super) enum SessionEvent {
    /// A datagram that is not data from the address of a peer, which holds one of its places.
    Datagram { bytes: Vec<u8>, from: SocketAddr, link: Arc<Link> },
    /// Strangers have sent something.
    Strangers,
    /// A packet waits for a session with a peer.
    Demand(NodeId),
    /// A peer is to be asked for an echo, now.
    Echo(NodeId),
    /// There is traffic with a peer that was not watched.
    Active(NodeId),
    /// A first datagram opened under a key.
    Confirmed { peer: NodeId, index: u32 },
    /// A control message opened under a key.
    Control { peer: NodeId, index: u32, control: Control },
    /// A datagram of an unknown session came from this address.
    UnknownSession(SocketAddr),
    /// The peers of a new table.
    Peers(Vec<(Peer, Arc<Link>)>),
    /// The end.
    Stop,
}

/// A datagram that is not data from an address that is no peer's. These wait in a queue of their
/// own and are looked at when there is nothing else, so that a flood keeps no peer out.
pub(super) struct Stranger {
    pub(super) bytes: Vec<u8>,
    pub(super) from: SocketAddr,
}

/// How many events may wait for the session thread: more than one wake-up of every worker brings,
/// at most 300 KiB. What does not fit is dropped and counted, or told again by the next packet.
pub(super) const MAX_EVENTS: usize = 1024;
/// How many datagrams of strangers may wait: 10 ms of work, at most 300 KiB.
pub(super) const MAX_STRANGERS: usize = 1024;

impl Shared {
    pub(super) fn new(
        workers: usize,
        directory: Arc<Directory>,
        events: SyncSender<SessionEvent>,
        strangers: SyncSender<Stranger>,
    ) -> io::Result<Self> {
        Ok(Self {
            snapshot: ArcSwap::default(),
            directory,
            events,
            strangers,
            strangers_told: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            adopted: (0..workers).map(|_| watch::Sender::new(0)).collect(),
            wakers: (0..workers).map(|_| Waker::new()).collect::<io::Result<_>>()?,
            drops: (0..=workers).map(|_| DropCounters::new()).collect(),
        })
    }

    pub(super) fn workers(&self) -> usize {
        self.wakers.len()
    }

    pub(super) fn waker(&self, worker: usize) -> &Waker {
        &self.wakers[worker]
    }

    /// Notes that a worker uses a snapshot and has let go of all before it.
    pub(super) fn note_adopted(&self, worker: usize, generation: u64) {
        self.adopted[worker].send_replace(generation);
    }

    /// Waits until every worker uses this snapshot or a newer one.
    pub(super) async fn adopted_by_all(&self, generation: u64) {
        for worker in &self.adopted {
            // The sender is ours, so it cannot be gone.
            let _ = worker.subscribe().wait_for(|adopted| *adopted >= generation).await;
        }
    }

    /// Makes every worker look at the snapshot, its waiting packets and `stop`.
    pub(super) fn wake_all(&self) {
        for waker in &self.wakers {
            waker.wake();
        }
    }

    /// Sums the drops that belong to no peer.
    pub(super) fn drop_counts(&self) -> DropCounts {
        let mut counts = DropCounts::default();
        for thread in &self.drops {
            for reason in DropReason::ALL {
                counts.add(reason, thread.0[reason as usize].load(Relaxed));
            }
        }
        counts
    }
}

impl DropCounters {
    fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Counts packets dropped; only the owning thread calls it.
    pub(super) fn count(&self, reason: DropReason, packets: u64) {
        bump(&self.0[reason as usize], packets);
    }
}

impl Port {
    pub(super) fn new(
        id: PortId,
        endpoint: EndpointId,
        network: NetworkId,
        tun: Tun,
        worker: usize,
        offloads: Offloads,
        workers: usize,
    ) -> Self {
        let counters = (0..workers).map(|_| PortCounters::default()).collect();
        Self { id, endpoint, network, tun, worker, offloads, counters }
    }

    /// Counts inner packets that the container sent.
    pub(super) fn sent(&self, worker: usize, count: PacketsBytes) {
        bump(&self.counters[worker].tx_packets, count.packets);
        bump(&self.counters[worker].tx_bytes, count.bytes);
    }

    /// Counts inner packets that the container received.
    pub(super) fn received(&self, worker: usize, count: PacketsBytes) {
        bump(&self.counters[worker].rx_packets, count.packets);
        bump(&self.counters[worker].rx_bytes, count.bytes);
    }

    pub(super) fn traffic(&self) -> Traffic {
        let sum = |field: fn(&PortCounters) -> &AtomicU64| {
            self.counters.iter().map(|w| field(w).load(Relaxed)).sum()
        };
        Traffic {
            tx: PacketsBytes { packets: sum(|w| &w.tx_packets), bytes: sum(|w| &w.tx_bytes) },
            rx: PacketsBytes { packets: sum(|w| &w.rx_packets), bytes: sum(|w| &w.rx_bytes) },
        }
    }
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

/// Wakes one worker from its wait.
pub(super) struct Waker(OwnedFd);

impl Waker {
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn wake(&self) {
        // It fails only when 2^64 wake-ups wait, and then the worker is awake.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the wake-ups that wait.
    pub(super) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
