//! All sessions of one node: the machine that the session thread drives.
//!
//! Datagrams of the three handshake kinds, control messages, demands of workers and the table come
//! in by `handle_*`; datagrams to send come out by [`Sessions::poll_output`]. Keys reach the
//! workers through the [`Directory`] and the [`Link`]s.
//!
//! What an unauthenticated sender can make us do, in order: parse, one HMAC (mac1), under load one
//! more and a cookie reply no longer than what came, one bucket, and only then X25519.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    Identity,
    handshake::Received,
    limiter::Limiter,
    link::{Directory, Link},
    mac::{CookieSecret, MacKey, verify_mac2},
    peer::{Context, PeerMachine},
};
use crate::{
    types::{DropReason, Moment, NodeId, Peer, VersionRange},
    wire::{
        control::Control,
        envelope::{Kind, KindError, VERSION},
        handshake::{Ciphers, CookieReply, INITIATION_LEN, Initiation, MAC_LEN, Response},
    },
};

/// What does not change while a node runs.
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// How often the node has started, this time included.
    pub start_count: u64,
    /// How many lanes this node sends on.
    pub lanes: u8,
    /// The AEADs that this node offers.
    pub ciphers: Ciphers,
    /// After how long keys are renewed.
    pub rekey_interval: Duration,
}

/// What the caller must do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram from the data port.
    Transmit {
        /// Where to.
        to: SocketAddr,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// A peer has a new key to seal with: packets that waited can go.
    Ready {
        /// The peer.
        peer: NodeId,
    },
}

/// Fills its argument with bytes that nobody can guess.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// The wire versions that this program speaks.
pub(super) const VERSIONS: VersionRange = VersionRange { lowest: VERSION, highest: VERSION };

/// The machine.
pub struct Sessions {
    context: Context,
    own_mac: MacKey,
    peers: BTreeMap<NodeId, PeerMachine>,
    by_public_key: HashMap<[u8; 32], NodeId>,
    deadlines: BTreeSet<(Moment, NodeId)>,
    limiter: Limiter,
    cookies: Cookies,
    load: Load,
}

impl Sessions {
    /// A node without peers.
    pub fn new(
        settings: Settings,
        identity: Identity,
        directory: Arc<Directory>,
        mut random: Random,
    ) -> Self {
        let mut key = [0; 16];
        random(&mut key);
        let (a, b) = key.split_at(8);
        let word = |half: &[u8]| half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let limiter = Limiter::new([word(a), word(b)]);
        Self {
            own_mac: MacKey::new(&identity.public),
            context: Context {
                settings,
                identity,
                directory,
                random,
                outputs: VecDeque::new(),
                initiations: 0,
                pending: HashMap::new(),
            },
            peers: BTreeMap::new(),
            by_public_key: HashMap::new(),
            deadlines: BTreeSet::new(),
            limiter,
            cookies: Cookies { secret: None },
            load: Load { window: Moment::default(), count: 0, until: Moment::default() },
        }
    }

    /// Takes the peers of a new table. Who is not in it loses its session at once; whose key
    /// changed starts anew.
    pub fn handle_table(&mut self, peers: Vec<(Peer, Arc<Link>)>, now: Moment) {
        let keep: BTreeSet<NodeId> = peers.iter().map(|(peer, _)| peer.id).collect();
        let gone: Vec<NodeId> =
            self.peers.keys().filter(|id| !keep.contains(id)).copied().collect();
        for id in gone {
            self.forget(id);
        }
        for (peer, link) in peers {
            let id = peer.id;
            if self.peers.get(&id).is_some_and(|p| p.public_key() != peer.public_key) {
                self.forget(id);
            }
            self.by_public_key.insert(peer.public_key, id);
            link.move_to(peer.data_addr);
            match self.peers.get_mut(&id) {
                Some(machine) => machine.update(peer),
                None => {
                    self.peers.insert(id, PeerMachine::new(peer, link));
                }
            }
            self.schedule(id, now);
        }
    }

    fn forget(&mut self, id: NodeId) {
        if let Some(mut machine) = self.peers.remove(&id) {
            self.unschedule(&machine);
            self.by_public_key.remove(&machine.public_key());
            machine.close(&mut self.context);
        }
    }

    /// Takes a datagram that is not data.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Moment,
    ) -> Result<(), DropReason> {
        match Kind::of(datagram) {
            Ok(Kind::Initiation) => self.handle_initiation(datagram, from, now),
            Ok(Kind::Response) => self.handle_response(datagram, now),
            Ok(Kind::CookieReply) => self.handle_cookie_reply(datagram, now),
            Ok(Kind::Data) | Err(KindError::Empty | KindError::Kind) => Err(DropReason::Malformed),
            Err(KindError::Version) => Err(DropReason::VersionUnknown),
        }
    }

    fn handle_initiation(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Moment,
    ) -> Result<(), DropReason> {
        let initiation = Initiation::parse(datagram).map_err(|_| DropReason::Malformed)?;
        let before_mac1 = &datagram[..INITIATION_LEN - 2 * MAC_LEN];
        if !self.own_mac.verify_mac1(before_mac1, &initiation.mac1) {
            return Err(DropReason::HandshakeInvalid);
        }
        if self.load.is_high(now) {
            let cookie = self.cookies.current(&mut self.context.random, now).cookie(from);
            let before_mac2 = &datagram[..INITIATION_LEN - MAC_LEN];
            if !verify_mac2(&cookie, before_mac2, &initiation.mac2) {
                self.demand_cookie(&initiation, cookie, from);
                return Err(DropReason::HandshakeOverload);
            }
        }
        if !self.limiter.admit(from.ip(), now) {
            return Err(DropReason::HandshakeOverload);
        }
        let ephemeral = self.context.draw();
        let received = Received::open(
            &self.context.identity,
            &self.context.settings.cluster,
            &initiation,
            ephemeral,
        )
        .map_err(|_| DropReason::HandshakeInvalid)?;
        let id = *self.by_public_key.get(&received.public).ok_or(DropReason::HandshakeInvalid)?;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::HandshakeInvalid)?;
        let result = peer.handle_initiation(&mut self.context, received, from, now);
        self.schedule(id, now);
        result
    }

    fn demand_cookie(&mut self, initiation: &Initiation, cookie: [u8; 16], to: SocketAddr) {
        let mut nonce = [0; 12];
        (self.context.random)(&mut nonce);
        let reply = self.own_mac.seal_cookie(initiation.sender, cookie, &initiation.mac1, nonce);
        // Answers are as many as the demands, and shorter; past this many they only cost.
        if let Some(reply) = reply
            && self.context.outputs.len() < MAX_OUTPUTS
        {
            let datagram = reply.emit().to_vec();
            self.context.outputs.push_back(Output::Transmit { to, datagram });
        }
    }

    fn handle_response(&mut self, datagram: &[u8], now: Moment) -> Result<(), DropReason> {
        let response = Response::parse(datagram).map_err(|_| DropReason::Malformed)?;
        let before = &datagram[..datagram.len() - MAC_LEN];
        if !self.own_mac.verify_mac1(before, &response.mac1) {
            return Err(DropReason::HandshakeInvalid);
        }
        let id = *self.context.pending.get(&response.receiver).ok_or(DropReason::UnknownSession)?;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::UnknownSession)?;
        let result = peer.handle_response(&mut self.context, &response, now);
        self.schedule(id, now);
        result
    }

    fn handle_cookie_reply(&mut self, datagram: &[u8], now: Moment) -> Result<(), DropReason> {
        let reply = CookieReply::parse(datagram).map_err(|_| DropReason::Malformed)?;
        let id = *self.context.pending.get(&reply.receiver).ok_or(DropReason::UnknownSession)?;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::UnknownSession)?;
        let result = peer.handle_cookie_reply(&mut self.context, &reply, now);
        self.schedule(id, now);
        result
    }

    /// A worker has a packet for a peer and no key to seal it with.
    pub fn handle_demand(&mut self, id: NodeId, now: Moment) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.handle_demand(&mut self.context, now);
            self.schedule(id, now);
        }
    }

    /// Asks a peer for an echo now, by a new session if need be.
    pub fn handle_echo(&mut self, id: NodeId, now: Moment) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.handle_echo(&mut self.context, now);
            self.schedule(id, now);
        }
    }

    /// There is traffic with a peer that was not watched.
    pub fn handle_activity(&mut self, id: NodeId, now: Moment) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.handle_activity(now);
            self.schedule(id, now);
        }
    }

    /// A first datagram opened under the key with this index.
    pub fn handle_confirmed(&mut self, id: NodeId, index: u32, now: Moment) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.handle_confirmed(&mut self.context, index, now);
            self.schedule(id, now);
        }
    }

    /// A control message opened under the key with this index.
    pub fn handle_control(&mut self, id: NodeId, index: u32, control: Control, now: Moment) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.handle_control(&mut self.context, index, control, now);
            self.schedule(id, now);
        }
    }

    /// A datagram with an unknown receiver index came from a known peer's address: it has lost or
    /// renewed its keys without us, so a handshake of our own is due. Nothing answers the datagram.
    pub fn handle_unknown_session(&mut self, from: SocketAddr, now: Moment) {
        let peer = self.peers.values().find(|peer| peer.address() == from).map(PeerMachine::id);
        if let Some(id) = peer {
            self.handle_demand(id, now);
        }
    }

    /// Tells when [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Moment) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.remove(&(at, id));
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.scheduled = None;
                peer.handle_timeout(&mut self.context, now);
                self.schedule(id, now);
            }
        }
    }

    /// Takes the next thing that the caller must do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.context.outputs.pop_front()
    }

    fn schedule(&mut self, id: NodeId, now: Moment) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let wanted = peer.poll_timeout(self.context.settings.rekey_interval, now);
        if wanted != peer.scheduled {
            if let Some(at) = peer.scheduled.take() {
                self.deadlines.remove(&(at, id));
            }
            peer.scheduled = wanted;
            self.deadlines.extend(wanted.map(|at| (at, id)));
        }
    }

    fn unschedule(&mut self, peer: &PeerMachine) {
        if let Some(at) = peer.scheduled {
            self.deadlines.remove(&(at, peer.id()));
        }
    }
}

/// The cookie secret, renewed every two minutes.
struct Cookies {
    secret: Option<(CookieSecret, Moment)>,
}

impl Cookies {
    fn current(&mut self, random: &mut Random, now: Moment) -> &CookieSecret {
        let fresh = |made: Moment| now.since(made) < COOKIE_LIFE;
        let (secret, _) = match self.secret.take() {
            Some((secret, made)) if fresh(made) => self.secret.insert((secret, made)),
            Some(_) | None => {
                let mut bytes = [0; 32];
                random(&mut bytes);
                self.secret.insert((CookieSecret::new(&bytes), now))
            }
        };
        secret
    }
}

/// Whether more initiations come than an ordinary cluster sends.
struct Load {
    window: Moment,
    count: u32,
    until: Moment,
}

impl Load {
    /// Counts one initiation.
    fn is_high(&mut self, now: Moment) -> bool {
        if now.since(self.window) >= LOAD_WINDOW {
            (self.window, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count > LOAD_THRESHOLD {
            self.until = now + LOAD_HOLD;
        }
        now < self.until
    }
}

/// How long a cookie may be used.
pub(super) const COOKIE_LIFE: Duration = Duration::from_secs(120);
const LOAD_WINDOW: Duration = Duration::from_millis(100);
/// 500 initiations a second cost about 6 % of a core (0.12 ms each).
const LOAD_THRESHOLD: u32 = 50;
/// As WireGuard: load lasts at least a second.
const LOAD_HOLD: Duration = Duration::from_secs(1);
/// The caller drains the outputs after every input; this bounds a burst of cookie replies.
const MAX_OUTPUTS: usize = 1024;

#[cfg(test)]
mod tests;
