//! What the worker threads share with the session thread: per peer a [`Link`], and the
//! [`Directory`] that finds the key of an incoming datagram. Neither is locked by a packet.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::keys::{ReceiveKey, SendKey};
use crate::types::{DropCounts, DropReason, Moment, NodeId, PacketsBytes, PeerState, Traffic};

/// One peer, as workers see it.
pub struct Link {
    peer: NodeId,
    address: ArcSwap<SocketAddr>,
    send: ArcSwapOption<SendKey>,
    last_tx: AtomicU64,
    last_rx: AtomicU64,
    demanded: AtomicBool,
    active: AtomicBool,
    handshakes_waiting: AtomicU32,
    status: Mutex<LinkStatus>,
    workers: Box<[LinkCounters]>,
}

/// What the session thread knows of a peer, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkStatus {
    /// The session's state.
    pub state: PeerState,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// The newest round trip.
    pub rtt: Option<Duration>,
    /// The share of our datagrams that did not arrive, lately.
    pub loss: Option<f64>,
}

/// What one worker counts of one peer. Only that worker writes, so a plain load and store do.
#[derive(Default)]
#[repr(align(64))]
pub struct LinkCounters {
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl LinkCounters {
    /// Counts inner packets sent.
    pub fn sent(&self, count: PacketsBytes) {
        bump(&self.tx_packets, count.packets);
        bump(&self.tx_bytes, count.bytes);
    }

    /// Counts inner packets received.
    pub fn received(&self, count: PacketsBytes) {
        bump(&self.rx_packets, count.packets);
        bump(&self.rx_bytes, count.bytes);
    }

    /// Counts packets dropped.
    pub fn dropped(&self, reason: DropReason, packets: u64) {
        bump(&self.drops[reason as usize], packets);
    }
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

impl Link {
    /// A link without a session, counted by so many workers.
    pub fn new(peer: NodeId, address: SocketAddr, workers: usize) -> Self {
        Self {
            peer,
            address: ArcSwap::from_pointee(address),
            send: ArcSwapOption::empty(),
            last_tx: AtomicU64::new(0),
            last_rx: AtomicU64::new(0),
            demanded: AtomicBool::new(false),
            active: AtomicBool::new(false),
            handshakes_waiting: AtomicU32::new(0),
            status: Mutex::new(LinkStatus {
                state: PeerState::Idle,
                reason: None,
                rtt: None,
                loss: None,
            }),
            workers: (0..workers).map(|_| LinkCounters::default()).collect(),
        }
    }

    /// Returns the peer.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// Returns where datagrams go.
    pub fn address(&self) -> SocketAddr {
        **self.address.load()
    }

    /// Changes where datagrams go.
    pub fn move_to(&self, address: SocketAddr) {
        if self.address() != address {
            self.address.store(Arc::new(address));
        }
    }

    /// Returns the key to seal with, if there is one.
    pub fn send_key(&self) -> arc_swap::Guard<Option<Arc<SendKey>>> {
        self.send.load()
    }

    pub(super) fn install(&self, key: Option<Arc<SendKey>>) {
        self.send.store(key);
    }

    /// Returns one worker's counters.
    pub fn counters(&self, worker: usize) -> &LinkCounters {
        &self.workers[worker]
    }

    /// Notes that data was sealed for the peer; says whether the session thread must hear of it
    /// because it had stopped watching the peer.
    pub fn note_sent(&self, now: Moment) -> bool {
        self.last_tx.store(now.as_nanos(), Relaxed);
        !self.active.load(Relaxed) && !self.active.swap(true, Relaxed)
    }

    /// Notes that an authentic datagram came; the answer is as [`Self::note_sent`]'s.
    pub fn note_received(&self, now: Moment) -> bool {
        self.last_rx.store(now.as_nanos(), Relaxed);
        !self.active.load(Relaxed) && !self.active.swap(true, Relaxed)
    }

    /// Notes that a packet waits for a session; says whether the session thread must hear of it.
    pub fn demand(&self) -> bool {
        !self.demanded.swap(true, Relaxed)
    }

    /// Forgets a demand: it was answered, or could not be told.
    pub fn clear_demand(&self) {
        self.demanded.store(false, Relaxed);
    }

    /// Notes whether the session thread watches the peer.
    pub fn set_active(&self, active: bool) {
        self.active.store(active, Relaxed);
    }

    /// Takes one of the few places that datagrams from this peer's address have in the session
    /// thread's queue; says whether there was one. Whoever forges the address can so crowd out this
    /// peer at most.
    pub fn take_handshake_place(&self) -> bool {
        let take = |waiting| (waiting < MAX_HANDSHAKES_WAITING).then_some(waiting + 1);
        self.handshakes_waiting.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// Gives such a place back.
    pub fn free_handshake_place(&self) {
        self.handshakes_waiting.fetch_sub(1, Relaxed);
    }

    pub(super) fn last_tx(&self) -> Option<Moment> {
        moment(&self.last_tx)
    }

    /// Returns when an authentic datagram last came.
    pub fn last_rx(&self) -> Option<Moment> {
        moment(&self.last_rx)
    }

    /// Returns what the session thread last said.
    pub fn status(&self) -> LinkStatus {
        self.lock_status().clone()
    }

    pub(super) fn set_status(&self, change: impl FnOnce(&mut LinkStatus)) {
        change(&mut self.lock_status());
    }

    fn lock_status(&self) -> MutexGuard<'_, LinkStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sums the traffic over workers.
    pub fn traffic(&self) -> Traffic {
        let sum = |field: fn(&LinkCounters) -> &AtomicU64| {
            self.workers.iter().map(|w| field(w).load(Relaxed)).sum()
        };
        Traffic {
            tx: PacketsBytes { packets: sum(|w| &w.tx_packets), bytes: sum(|w| &w.tx_bytes) },
            rx: PacketsBytes { packets: sum(|w| &w.rx_packets), bytes: sum(|w| &w.rx_bytes) },
        }
    }

    /// Sums the drops over workers.
    pub fn drops(&self) -> DropCounts {
        let mut counts = DropCounts::default();
        for worker in &self.workers {
            for reason in DropReason::ALL {
                counts.add(reason, worker.drops[reason as usize].load(Relaxed));
            }
        }
        counts
    }
}

fn moment(nanos: &AtomicU64) -> Option<Moment> {
    match nanos.load(Relaxed) {
        0 => None,
        nanos => Some(Moment::from_nanos(nanos)),
    }
}

/// Finds the key of an incoming datagram by its receiver index: the low 16 bits name a slot, the
/// whole number must be the key's own.
pub struct Directory {
    slots: Box<[ArcSwapOption<ReceiveKey>]>,
}

impl Directory {
    /// How many receiving keys there may be: three a peer (previous, current, next) for over
    /// 20,000 peers, in 512 KiB.
    pub const SLOTS: usize = 1 << 16;

    /// A directory without keys.
    pub fn new() -> Self {
        Self { slots: (0..Self::SLOTS).map(|_| ArcSwapOption::empty()).collect() }
    }

    /// Finds the key with this index.
    pub fn find(&self, index: u32) -> Option<Arc<ReceiveKey>> {
        let slot = self.slots[slot(index)].load_full()?;
        (slot.index() == index).then_some(slot)
    }

    pub(super) fn insert(&self, key: Arc<ReceiveKey>) {
        self.slots[slot(key.index())].store(Some(key));
    }

    pub(super) fn remove(&self, index: u32) {
        let place = &self.slots[slot(index)];
        if place.load().as_ref().is_some_and(|key| key.index() == index) {
            place.store(None);
        }
    }

    pub(super) fn is_free(&self, index: u32) -> bool {
        self.slots[slot(index)].load().is_none()
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

/// An honest peer has at most two datagrams on their way: its initiation, and an answer to ours.
const MAX_HANDSHAKES_WAITING: u32 = 4;

const fn slot(index: u32) -> usize {
    (index & 0xffff) as usize
}
