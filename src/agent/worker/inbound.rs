//! From the underlay to a container, in this order:
//!
//! 1. receive what there is, trains or single datagrams, one behind the other into one buffer;
//! 2. per datagram: kind, header, key by receiver index, open in place, replay window;
//! 3. the inner source must belong to that peer on that network; which device gets it;
//! 4. consecutive packets of a flow grow a run, each payload left where it lies; a few flows may
//!    grow theirs side by side;
//! 5. one `writev` for a run, with a virtio_net_hdr.
//!
//! Runs reach across trains: where the underlay's device does not join datagrams, each train is one
//! datagram, and writing those one by one would cost ten times the rest.
//!
//! Everything that is no data goes to the session thread through its bounded queues.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use super::{
    Worker,
    deliver::{MAX_PARTS, deliver_single, takes_partial, takes_super, write_parts},
};
use crate::{
    agent::shared::{Port, SessionEvent, Snapshot, Stranger},
    engine::{
        datapath::{
            PeerRoute,
            coalesce::{MAX_COUNT, Run},
        },
        session::{OpenError, ReceiveKey},
    },
    io::udp::Train,
    types::{DropReason, PacketsBytes, Vni},
    wire::{
        control::Control,
        envelope::{
            Checksum, DataHeader, HEADER_LEN, Kind, KindError, NextProtocol, PREFIX_LEN, Prefix,
            TAG_LEN,
        },
        fragment::{Family, FragmentHeader, MAX_PACKET},
        handshake::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN},
        inner::Inner,
    },
};

/// What was received, room for one packet that came in pieces, and where the payloads of growing
/// runs lie.
pub(super) struct InboundBuffer {
    bytes: Box<[u8]>,
    trains: [Received; MAX_TRAINS],
    payloads: [[(u32, u32); MAX_COUNT]; MAX_RUNS],
}

/// A train in the buffer.
#[derive(Clone, Copy)]
struct Received {
    start: usize,
    end: usize,
    stride: usize,
    from: SocketAddr,
}

impl InboundBuffer {
    pub(super) fn new() -> Self {
        let from = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            bytes: vec![0; BUFFER_LEN + MAX_PACKET].into_boxed_slice(),
            trains: [Received { start: 0, end: 0, stride: 0, from }; MAX_TRAINS],
            payloads: [[(0, 0); MAX_COUNT]; MAX_RUNS],
        }
    }
}

/// The runs that grow, each of another flow. A run that can grow no more is delivered at once.
type Runs<'a> = [Option<Growing<'a>>; MAX_RUNS];

/// A run in the buffer.
struct Growing<'a> {
    run: Run,
    route: &'a PeerRoute,
    port: &'a Arc<Port>,
    first: (u32, u32),
}

impl Growing<'_> {
    /// Where the first packet lies.
    fn first(&self) -> Range<usize> {
        self.first.0 as usize..self.first.1 as usize
    }
}

/// What the datagram before was: mostly the next one is of the same session and flow.
struct Known<'a> {
    key: Arc<ReceiveKey>,
    /// Who has the key, if the tables know it.
    route: Option<&'a PeerRoute>,
    way: Option<Way<'a>>,
}

/// Where a session's packets of one network, source and destination go.
struct Way<'a> {
    vni: Vni,
    source: IpAddr,
    destination: IpAddr,
    port: &'a Arc<Port>,
}

impl Way<'_> {
    fn is_of(&self, vni: Vni, inner: &Inner) -> bool {
        self.vni == vni && self.source == inner.source && self.destination == inner.destination
    }
}

/// What a datagram turned out to be.
struct Packet<'a> {
    route: &'a PeerRoute,
    port: &'a Arc<Port>,
    inner: Inner,
    range: Range<usize>,
    checksum: Checksum,
}

impl Worker {
    /// Takes what the socket has, up to the budget.
    pub(super) fn inbound(&mut self) {
        let snapshot = self.snapshot.clone();
        for _ in 0..BUDGET {
            let trains = self.receive();
            self.forward(&snapshot, trains);
            if trains < MAX_TRAINS {
                return;
            }
        }
    }

    /// Fills the buffer with what is there; returns how many trains that is.
    fn receive(&mut self) -> usize {
        let (mut trains, mut at) = (0, 0);
        while trains < MAX_TRAINS && at + MAX_TRAIN <= BUFFER_LEN {
            match self.socket.receive(&mut self.inbound.bytes[at..BUFFER_LEN]) {
                Ok(train) if train.truncated => self.drop_packets(DropReason::Malformed, 1),
                Ok(Train { len, stride, from, .. }) => {
                    self.inbound.trains[trains] =
                        Received { start: at, end: at + len, stride, from };
                    trains += 1;
                    at += len;
                    self.taken += len;
                }
                // Nothing more; other errors are those of single sends, which are told there.
                Err(_) => break,
            }
        }
        trains
    }

    fn forward(&mut self, snapshot: &Snapshot, trains: usize) {
        let mut known: Option<Known<'_>> = None;
        let mut runs: Runs<'_> = [const { None }; MAX_RUNS];
        for number in 0..trains {
            let Received { start, end, stride, from } = self.inbound.trains[number];
            let mut at = start;
            // An empty datagram is one too.
            loop {
                let next = (at + stride).min(end);
                let packet = self.inbound_datagram(snapshot, at..next, from, &mut known);
                if let Some(packet) = packet {
                    self.grow(&mut runs, packet);
                }
                at = next;
                if at >= end {
                    break;
                }
            }
        }
        for slot in 0..MAX_RUNS {
            self.deliver_run(&mut runs, slot);
        }
    }

    /// Opens one datagram and decides on it.
    fn inbound_datagram<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        range: Range<usize>,
        from: SocketAddr,
        known: &mut Option<Known<'a>>,
    ) -> Option<Packet<'a>> {
        let datagram = &mut self.inbound.bytes[range.clone()];
        match Kind::of(datagram) {
            Ok(Kind::Data) => {}
            Ok(Kind::Initiation) => {
                return self.pass_handshake(snapshot, range, INITIATION_LEN, from);
            }
            Ok(Kind::Response) => return self.pass_handshake(snapshot, range, RESPONSE_LEN, from),
            Ok(Kind::CookieReply) => {
                return self.pass_handshake(snapshot, range, COOKIE_REPLY_LEN, from);
            }
            Err(KindError::Version) => {
                self.drop_packets(DropReason::VersionUnknown, 1);
                return None;
            }
            Err(KindError::Empty | KindError::Kind) => {
                self.drop_packets(DropReason::Malformed, 1);
                return None;
            }
        }
        let Ok(header) = DataHeader::parse(datagram) else {
            self.drop_packets(DropReason::Malformed, 1);
            return None;
        };
        let same = known.as_ref().is_some_and(|known| known.key.index() == header.receiver);
        if !same {
            *known = self.shared.directory.find(header.receiver).map(|key| {
                let route = snapshot.tables.find_peer(key.peer());
                Known { key, route, way: None }
            });
        }
        let Some(known) = known else {
            self.unknown_session(from);
            return None;
        };
        let Some(route) = known.route else {
            self.drop_packets(DropReason::NoPeer, 1);
            return None;
        };
        let index = self.index;
        let drop = |reason| {
            route.link.counters(index).dropped(reason, 1);
            None
        };
        let prefix = match known.key.open(header, datagram, self.now) {
            Ok(opened) => opened.prefix,
            Err(error) => return drop(open_reason(error)),
        };
        if route.link.note_received(self.now) {
            self.tell_active(&route.link);
        }
        self.tell_confirmed(&known.key);
        let inner_range = range.start + HEADER_LEN + PREFIX_LEN..range.end - TAG_LEN;
        match self.inspect(snapshot, route, known, prefix, inner_range) {
            Ok(packet) => packet,
            Err(reason) => drop(reason),
        }
    }

    /// Looks into an opened datagram: a control message goes to the session thread, a packet gets
    /// its device.
    fn inspect<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        route: &'a PeerRoute,
        known: &mut Known<'a>,
        prefix: Prefix,
        mut range: Range<usize>,
    ) -> Result<Option<Packet<'a>>, DropReason> {
        let (checksum, ipv4) = match prefix.next {
            NextProtocol::Ipv4(checksum) => (checksum, true),
            NextProtocol::Ipv6(checksum) => (checksum, false),
            NextProtocol::Fragment => {
                let whole = self.reassemble(route, prefix.vni, range)?;
                let Some((family, whole)) = whole else { return Ok(None) };
                range = whole;
                (Checksum::Complete, family == Family::Ipv4)
            }
            NextProtocol::Control => {
                let bytes = &self.inbound.bytes[range];
                let control = Control::parse(bytes).map_err(|_| DropReason::Malformed)?;
                let (peer, index) = (known.key.peer(), known.key.index());
                // A lost echo is asked again; nothing depends on a single one.
                let _ = self.shared.events.try_send(SessionEvent::Control { peer, index, control });
                return Ok(None);
            }
        };
        let bytes = &self.inbound.bytes[range.clone()];
        let inner = Inner::parse(bytes).map_err(|_| DropReason::InnerMalformed)?;
        if inner.is_ipv4() != ipv4 {
            return Err(DropReason::InnerMalformed);
        }
        let same = known.way.as_ref().filter(|way| way.is_of(prefix.vni, &inner));
        let port = match same {
            Some(way) => way.port,
            None => {
                let id = snapshot.tables.inbound(known.key.peer(), prefix.vni, &inner)?;
                let port = snapshot.ports.get(&id).ok_or(DropReason::NoEndpoint)?;
                let Inner { source, destination, .. } = inner;
                known.way = Some(Way { vni: prefix.vni, source, destination, port });
                port
            }
        };
        Ok(Some(Packet { route, port, inner, range, checksum }))
    }

    /// Takes a piece; returns where the packet lies if that was the last that was missing. The place
    /// is the same for every packet: its checksum is complete, so it joins no run and is written
    /// before the next piece is looked at.
    fn reassemble(
        &mut self,
        route: &PeerRoute,
        vni: Vni,
        range: Range<usize>,
    ) -> Result<Option<(Family, Range<usize>)>, DropReason> {
        let (received, place) = self.inbound.bytes.split_at_mut(BUFFER_LEN);
        let (header, piece) =
            FragmentHeader::parse(&received[range]).map_err(|_| DropReason::Malformed)?;
        let done = self.reassembly.handle_piece(route.id, vni, header, piece, self.now);
        if done.lost > 0 {
            route.link.counters(self.index).dropped(DropReason::Reassembly, done.lost);
        }
        Ok(done.whole.map(|(family, packet)| {
            place[..packet.len()].copy_from_slice(packet);
            (family, BUFFER_LEN..BUFFER_LEN + packet.len())
        }))
    }

    /// Counts the packets of which pieces did not come in time.
    pub(super) fn give_up_pieces(&mut self) {
        let (snapshot, index) = (&self.snapshot, self.index);
        self.reassembly.handle_timeout(self.now, |peer, lost| {
            if let Some(route) = snapshot.tables.find_peer(peer) {
                route.link.counters(index).dropped(DropReason::Reassembly, lost);
            }
        });
    }

    /// Takes a packet into the run of its flow, or starts one.
    fn grow<'a>(&mut self, runs: &mut Runs<'a>, packet: Packet<'a>) {
        let Packet { route, port, inner, range, checksum } = packet;
        let of_flow = runs.iter().position(|growing| {
            growing.as_ref().is_some_and(|g| Arc::ptr_eq(g.port, port) && g.run.is_flow(&inner))
        });
        if let Some(slot) = of_flow {
            if let Some(growing) = &mut runs[slot] {
                let bytes = &self.inbound.bytes;
                let first = &bytes[growing.first()];
                if growing.run.append(first, &bytes[range.clone()], &inner, checksum) {
                    let payload = range.start + usize::from(inner.payload);
                    self.inbound.payloads[slot][growing.run.count() - 1] =
                        (payload as u32, range.end as u32);
                    if !growing.run.is_open() {
                        self.deliver_run(runs, slot);
                    }
                    return;
                }
            }
            self.deliver_run(runs, slot);
        }
        let free = of_flow.or_else(|| runs.iter().position(Option::is_none));
        // All taken: the flow of the first has had its chance.
        let slot = free.unwrap_or(0);
        self.deliver_run(runs, slot);
        let run = Run::start(&self.inbound.bytes[range.clone()], &inner, checksum);
        let waits = run.is_open() && takes_super(port, &inner);
        runs[slot] =
            Some(Growing { run, route, port, first: (range.start as u32, range.end as u32) });
        if !waits {
            self.deliver_run(runs, slot);
        }
    }

    /// Writes a run to its device, if there is one in this slot.
    fn deliver_run(&mut self, runs: &mut Runs<'_>, slot: usize) {
        let Some(Growing { run, route, port, first }) = &runs[slot] else { return };
        let first = first.0 as usize..first.1 as usize;
        let count = PacketsBytes { packets: run.count() as u64, bytes: run.bytes() as u64 };
        let bytes = &mut self.inbound.bytes;
        let written = if run.count() == 1 && !takes_partial(port) {
            deliver_single(port, bytes, first, run.checksum())
        } else {
            let header = run.finish(&mut bytes[first.clone()]).emit();
            let mut parts = [IoSlice::new(&[]); MAX_PARTS];
            parts[0] = IoSlice::new(&header);
            parts[1] = IoSlice::new(&bytes[first]);
            let payloads = &self.inbound.payloads[slot][1..run.count()];
            for (place, (from, to)) in parts[2..].iter_mut().zip(payloads) {
                *place = IoSlice::new(&bytes[*from as usize..*to as usize]);
            }
            write_parts(port, &parts[..=run.count()])
        };
        let counters = route.link.counters(self.index);
        match written {
            Ok(()) => {
                counters.received(count);
                port.received(self.index, count);
            }
            Err(_) => counters.dropped(DropReason::DeliverFailed, count.packets),
        }
        runs[slot] = None;
    }

    /// Passes a datagram on that is not data: those from the address of a peer, up to a few each,
    /// before those of strangers. Its length is looked at first, which bounds what waits.
    fn pass_handshake<'a>(
        &self,
        snapshot: &'a Snapshot,
        range: Range<usize>,
        right_len: usize,
        from: SocketAddr,
    ) -> Option<Packet<'a>> {
        if range.len() != right_len {
            self.drop_packets(DropReason::Malformed, 1);
            return None;
        }
        let bytes = self.inbound.bytes[range].to_vec();
        let known = snapshot.tables.find_address(from).map(|route| &route.link);
        let passed = match known.filter(|link| link.take_handshake_place()) {
            Some(link) => {
                let event = SessionEvent::Datagram { bytes, from, link: link.clone() };
                let passed = self.shared.events.try_send(event).is_ok();
                if !passed {
                    link.free_handshake_place();
                }
                passed
            }
            None => self.pass_stranger(Stranger { bytes, from }),
        };
        if !passed {
            self.drop_packets(DropReason::HandshakeOverload, 1);
        }
        None
    }

    fn pass_stranger(&self, stranger: Stranger) -> bool {
        let passed = self.shared.strangers.try_send(stranger).is_ok();
        let told = &self.shared.strangers_told;
        // Where events fill their queue the session thread is awake, and looks by itself.
        if passed
            && !told.swap(true, SeqCst)
            && self.shared.events.try_send(SessionEvent::Strangers).is_err()
        {
            told.store(false, SeqCst);
        }
        passed
    }

    /// Counts, and tells the session thread now and then: a peer that lost its keys says so only
    /// by this.
    fn unknown_session(&mut self, from: SocketAddr) {
        self.drop_packets(DropReason::UnknownSession, 1);
        if self.now.since(self.unknown_session_told) >= UNKNOWN_INTERVAL {
            self.unknown_session_told = self.now;
            let _ = self.shared.events.try_send(SessionEvent::UnknownSession(from));
        }
    }

    fn tell_confirmed(&self, key: &ReceiveKey) {
        if key.is_unconfirmed() {
            let (peer, index) = (key.peer(), key.index());
            let told = self.shared.events.try_send(SessionEvent::Confirmed { peer, index });
            if told.is_ok() {
                key.set_confirmed();
            }
        }
    }
}

fn open_reason(error: OpenError) -> DropReason {
    match error {
        OpenError::Lane => DropReason::LaneUnknown,
        OpenError::NotAuthentic => DropReason::NotAuthentic,
        OpenError::Replay => DropReason::Replay,
        OpenError::Expired => DropReason::KeyExpired,
        OpenError::Protocol => DropReason::ProtocolUnknown,
    }
}

/// The longest train that UDP_GRO builds.
const MAX_TRAIN: usize = 65_535;
/// Trains taken before they are forwarded: as many as single datagrams make one run.
const MAX_TRAINS: usize = 256;
/// Room for 64 single datagrams of 1,500 bytes and a longest train behind them, or three such.
const BUFFER_LEN: usize = 7 * MAX_TRAIN;
/// Flows that grow runs side by side.
const MAX_RUNS: usize = 4;
/// Fillings of the buffer before others have their turn.
const BUDGET: usize = 4;
/// How often unknown sessions are told, a worker.
const UNKNOWN_INTERVAL: Duration = Duration::from_millis(100);
