//! The session with one peer: when to shake hands, which keys count, when to renew.
//!
//! ```text
//!            demand                       response / first packet opened
//!   idle  ------------->  handshaking  ------------------------------------>  up
//!    ^                        |  ^                                            |
//!    |  not wanted for 90 s   |  |  nothing heard for 5 s though data is sent |
//!    +------------------------+  +------------------  stale  <----------------+
//!                             +-->  down  (no answer for 15 s; goes on trying while wanted)
//! ```
//! Keys are made before they are broken: `previous`, `current` and `next` all open; only `current`
//! seals. A responder's `next` becomes `current` when the first datagram opened under it, which
//! proves that the initiator has the key too.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    Identity,
    handshake::{Initiator, Received, Split},
    keys::{Cipher, REJECT_AFTER, ReceiveKey, SendKey},
    link::{Directory, Link},
    mac::{MacKey, mac2},
    sessions::{COOKIE_LIFE, Output, Random, Settings, VERSIONS},
};
use crate::{
    types::{DropReason, Moment, NodeId, Peer, PeerState},
    wire::{
        control::{self, Control},
        envelope::{OVERHEAD, PREFIX_LEN, Prefix},
        handshake::{
            COOKIE_LEN, Ciphers, CookieReply, INITIATION_LEN, MAC_LEN, Payload, RESPONSE_LEN,
            Response,
        },
    },
};

/// What all peers of a node share.
pub(super) struct Context {
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) directory: Arc<Directory>,
    pub(super) random: Random,
    pub(super) outputs: VecDeque<Output>,
    /// How many initiations were made since the start.
    pub(super) initiations: u64,
    /// Whose handshake waits for a response to this index.
    pub(super) pending: HashMap<u32, NodeId>,
}

impl Context {
    pub(super) fn draw(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        (self.random)(&mut bytes);
        bytes
    }

    /// Draws an index whose slot is free; `None` if a thousand draws find none.
    fn draw_index(&mut self) -> Option<u32> {
        (0..1000).find_map(|_| {
            let mut bytes = [0; 4];
            (self.random)(&mut bytes);
            let index = u32::from_be_bytes(bytes);
            let free = self.directory.is_free(index) && !self.pending.contains_key(&index);
            free.then_some(index)
        })
    }

    fn payload(&self, index: u32, ciphers: Ciphers) -> Payload {
        Payload {
            node: self.settings.node,
            start_count: 0,
            counter: 0,
            index,
            versions: VERSIONS,
            ciphers,
            lanes: self.settings.lanes,
        }
    }
}

/// One peer.
pub(super) struct PeerMachine {
    peer: Peer,
    link: Arc<Link>,
    mac: MacKey,
    outstanding: Option<Outstanding>,
    current: Option<Keypair>,
    previous: Option<Arc<ReceiveKey>>,
    next: Option<Keypair>,
    /// The greatest (start count, counter) of the peer's initiations.
    greatest: (u64, u64),
    cookie: Option<([u8; COOKIE_LEN], Moment)>,
    wanted_until: Moment,
    watched_until: Moment,
    next_tick: Moment,
    echo: Echo,
    /// The deadline under which the owner has filed this peer.
    pub(super) scheduled: Option<Moment>,
}

struct Outstanding {
    initiator: Initiator,
    index: u32,
    mac1: [u8; MAC_LEN],
    sent: Moment,
    retry: Moment,
    tries: u32,
    started: Moment,
}

struct Keypair {
    send: Arc<SendKey>,
    receive: Arc<ReceiveKey>,
    initiated: bool,
}

/// Round trip and loss, from echoes under the current key.
#[derive(Default)]
struct Echo {
    last_id: u32,
    waiting: Option<(u32, u64, Moment)>,
    /// (sealed by us, opened by the peer) at the newest replies.
    samples: VecDeque<(u64, u64)>,
}

impl PeerMachine {
    pub(super) fn new(peer: Peer, link: Arc<Link>) -> Self {
        Self {
            mac: MacKey::new(&peer.public_key),
            peer,
            link,
            outstanding: None,
            current: None,
            previous: None,
            next: None,
            greatest: (0, 0),
            cookie: None,
            wanted_until: Moment::default(),
            watched_until: Moment::default(),
            next_tick: Moment::default(),
            echo: Echo::default(),
            scheduled: None,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.peer.id
    }

    pub(super) fn public_key(&self) -> [u8; 32] {
        self.peer.public_key
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.link.address()
    }

    /// Takes a new table's entry with the same key.
    pub(super) fn update(&mut self, peer: Peer) {
        self.peer = peer;
    }

    /// Ends everything; nothing opens or seals any more.
    pub(super) fn close(&mut self, context: &mut Context) {
        self.abandon(context);
        for key in [self.current.take(), self.next.take()].into_iter().flatten() {
            context.directory.remove(key.receive.index());
        }
        if let Some(key) = self.previous.take() {
            context.directory.remove(key.index());
        }
        self.link.install(None);
        self.set_state(PeerState::Idle, None);
    }

    /// A packet waits for a session.
    pub(super) fn handle_demand(&mut self, context: &mut Context, now: Moment) {
        self.wanted_until = now + WANTED;
        if self.outstanding.is_none() {
            self.initiate(context, now);
        }
    }

    /// An echo is wanted now, whether or not there is traffic.
    pub(super) fn handle_echo(&mut self, context: &mut Context, now: Moment) {
        if self.current.as_ref().is_some_and(|pair| pair.send.is_usable(now)) {
            self.ask_for_echo(context, now);
        } else if self.outstanding.is_none() {
            self.wanted_until = self.wanted_until.max(now + ECHO_WANTED);
            self.initiate(context, now);
        }
    }

    /// There is traffic under a session that was not watched.
    pub(super) fn handle_activity(&mut self, now: Moment) {
        self.watched_until = now + WATCHED;
        self.next_tick = now + TICK;
    }

    /// Sends a new initiation, the first or a repeated one.
    fn initiate(&mut self, context: &mut Context, now: Moment) {
        let (tries, started) = match self.abandon(context) {
            Some(before) => (before.tries + 1, before.started),
            None => (0, now),
        };
        // During a rotation of the cluster secret the other side may know only one of two epochs.
        let psk = match self.peer.psks.as_slice() {
            [] => return self.set_state(PeerState::Down, Some("no key for this pair yet")),
            [newest] => newest.clone(),
            [newest, older, ..] => {
                if tries % 2 == 0 {
                    newest.clone()
                } else {
                    older.clone()
                }
            }
        };
        let Some(index) = context.draw_index() else {
            return self.set_state(PeerState::Down, Some("too many sessions"));
        };
        context.initiations += 1;
        let payload = Payload {
            start_count: context.settings.start_count,
            counter: context.initiations,
            ..context.payload(index, context.settings.ciphers)
        };
        let ephemeral = context.draw();
        let started_noise = Initiator::start(
            &context.identity,
            &context.settings.cluster,
            &self.peer.public_key,
            (psk.epoch, &psk.key),
            &payload,
            ephemeral,
        );
        let Ok((initiator, mut initiation)) = started_noise else {
            return self.set_state(PeerState::Down, Some("its public key is not usable"));
        };
        initiation.mac1 = self.mac.mac1(&initiation.emit()[..INITIATION_LEN - 2 * MAC_LEN]);
        if let Some((cookie, got)) = self.cookie
            && now.since(got) < COOKIE_LIFE
        {
            initiation.mac2 = mac2(&cookie, &initiation.emit()[..INITIATION_LEN - MAC_LEN]);
        }
        context.pending.insert(index, self.peer.id);
        self.transmit(context, initiation.emit().to_vec());
        let jitter = u64::from(ephemeral[0]) * RETRY_FIRST.as_nanos() as u64 / 1024;
        let wait = (RETRY_FIRST * 2u32.saturating_pow(tries.min(8))).min(RETRY_MAX);
        self.outstanding = Some(Outstanding {
            initiator,
            index,
            mac1: initiation.mac1,
            sent: now,
            retry: now + wait + Duration::from_nanos(jitter),
            tries,
            started,
        });
        if now.since(started) >= DOWN_AFTER {
            self.set_state(PeerState::Down, Some("no answer to handshakes for 15 s"));
        } else if self.current.is_none() {
            self.set_state(PeerState::Handshaking, None);
        }
    }

    fn abandon(&mut self, context: &mut Context) -> Option<Outstanding> {
        let outstanding = self.outstanding.take()?;
        context.pending.remove(&outstanding.index);
        Some(outstanding)
    }

    /// Answers an initiation that verified up to the peer's static key.
    pub(super) fn handle_initiation(
        &mut self,
        context: &mut Context,
        received: Received,
        from: SocketAddr,
        now: Moment,
    ) -> Result<(), DropReason> {
        let told = &received.payload;
        let order = (told.start_count, told.counter);
        if told.node != self.peer.id || order <= self.greatest {
            return Err(DropReason::HandshakeInvalid);
        }
        if told.versions.lowest > VERSIONS.highest || told.versions.highest < VERSIONS.lowest {
            return Err(DropReason::VersionUnknown);
        }
        let epoch = received.epoch;
        let psk = self.peer.psks.iter().find(|psk| psk.epoch == epoch).cloned();
        let psk = psk.ok_or(DropReason::HandshakeInvalid)?;
        let (cipher, chosen) =
            choose(context.settings.ciphers, told.ciphers).ok_or(DropReason::HandshakeInvalid)?;
        // Crossing initiations: the lower node id's counts, unless it seems to be lost.
        let ours_is_fresh = self.outstanding.as_ref().is_some_and(|o| now.since(o.sent) < CROSSING);
        if ours_is_fresh && context.settings.node < self.peer.id {
            self.greatest = order;
            return Ok(());
        }
        let index = context.draw_index().ok_or(DropReason::HandshakeOverload)?;
        let (receiver, lanes) = (told.index, told.lanes);
        let payload = context.payload(index, chosen);
        let (mut response, split) =
            received.respond(&psk.key, &payload).map_err(|_| DropReason::HandshakeInvalid)?;
        self.greatest = order;
        self.abandon(context);
        response.mac1 = self.mac.mac1(&response.emit()[..RESPONSE_LEN - MAC_LEN]);
        let Split { forward, backward } = split;
        let made = self.keypair(cipher, &backward, &forward, receiver, index, lanes, now);
        let pair = made.ok_or(DropReason::HandshakeInvalid)?;
        context.directory.insert(pair.receive.clone());
        if let Some(unused) = self.next.replace(pair) {
            context.directory.remove(unused.receive.index());
        }
        let datagram = response.emit().to_vec();
        context.outputs.push_back(Output::Transmit { to: from, datagram });
        Ok(())
    }

    /// Finishes our handshake.
    pub(super) fn handle_response(
        &mut self,
        context: &mut Context,
        response: &Response,
        now: Moment,
    ) -> Result<(), DropReason> {
        let outstanding = self.outstanding.as_mut().ok_or(DropReason::UnknownSession)?;
        let (told, split) =
            outstanding.initiator.finish(response).map_err(|_| DropReason::HandshakeInvalid)?;
        let index = outstanding.index;
        let cipher = match (told.ciphers.aes_256_gcm, told.ciphers.chacha20_poly1305) {
            (true, false) if context.settings.ciphers.aes_256_gcm => Cipher::Aes256Gcm,
            (false, true) if context.settings.ciphers.chacha20_poly1305 => Cipher::ChaCha20Poly1305,
            (_, _) => return Err(DropReason::HandshakeInvalid),
        };
        if told.node != self.peer.id {
            return Err(DropReason::HandshakeInvalid);
        }
        self.abandon(context);
        let Split { forward, backward } = split;
        let mut pair = self
            .keypair(cipher, &forward, &backward, told.index, index, told.lanes, now)
            .ok_or(DropReason::HandshakeInvalid)?;
        pair.initiated = true;
        context.directory.insert(pair.receive.clone());
        if let Some(unused) = self.next.take() {
            context.directory.remove(unused.receive.index());
        }
        self.switch_to(context, pair, now);
        // The responder may seal only after it has opened something under the new key.
        self.seal_control(context, Control::Keepalive, now);
        Ok(())
    }

    /// Takes a cookie and tries again with it at once.
    pub(super) fn handle_cookie_reply(
        &mut self,
        context: &mut Context,
        reply: &CookieReply,
        now: Moment,
    ) -> Result<(), DropReason> {
        let outstanding = self.outstanding.as_ref().ok_or(DropReason::UnknownSession)?;
        let cookie = self.mac.open_cookie(reply, &outstanding.mac1);
        let cookie = cookie.ok_or(DropReason::HandshakeInvalid)?;
        let fresh = self.cookie.is_none_or(|(_, got)| now.since(got) >= RETRY_FIRST);
        self.cookie = Some((cookie, now));
        if fresh {
            self.initiate(context, now);
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one key of each direction and their names")]
    fn keypair(
        &self,
        cipher: Cipher,
        send: &[u8; 32],
        receive: &[u8; 32],
        theirs: u32,
        ours: u32,
        lanes: u8,
        now: Moment,
    ) -> Option<Keypair> {
        let send = SendKey::new(cipher, send, theirs, now)?;
        let receive = ReceiveKey::new(cipher, receive, self.peer.id, ours, lanes, now)?;
        Some(Keypair { send: Arc::new(send), receive: Arc::new(receive), initiated: false })
    }

    fn switch_to(&mut self, context: &mut Context, pair: Keypair, now: Moment) {
        self.link.install(Some(pair.send.clone()));
        let replaced = self.current.replace(pair).map(|old| old.receive);
        if let Some(older) = std::mem::replace(&mut self.previous, replaced) {
            context.directory.remove(older.index());
        }
        self.echo = Echo { last_id: self.echo.last_id, ..Echo::default() };
        self.link.set_active(true);
        self.handle_activity(now);
        self.link.clear_demand();
        self.set_state(PeerState::Up, None);
        context.outputs.push_back(Output::Ready { peer: self.peer.id });
    }

    /// A first datagram opened under a key: if it is `next`, the initiator has it.
    pub(super) fn handle_confirmed(&mut self, context: &mut Context, index: u32, now: Moment) {
        if let Some(next) = self.next.take_if(|next| next.receive.index() == index) {
            self.switch_to(context, next, now);
        }
    }

    /// Takes a control message.
    pub(super) fn handle_control(
        &mut self,
        context: &mut Context,
        index: u32,
        control: Control,
        now: Moment,
    ) {
        match control {
            Control::Keepalive => {}
            Control::EchoRequest { id, sealed: _ } => {
                let key = context.directory.find(index);
                let opened = key.map_or(0, |key| key.opened());
                self.seal_control(context, Control::EchoReply { id, opened }, now);
            }
            Control::EchoReply { id, opened } => self.handle_echo_reply(id, opened, now),
        }
    }

    fn handle_echo_reply(&mut self, id: u32, opened: u64, now: Moment) {
        let Some((_, sealed, sent)) = self.echo.waiting.take_if(|(waiting, ..)| *waiting == id)
        else {
            return;
        };
        if self.echo.samples.len() == LOSS_SAMPLES {
            self.echo.samples.pop_front();
        }
        self.echo.samples.push_back((sealed, opened));
        let first = self.echo.samples.front().copied().unwrap_or_default();
        let (sent_lately, arrived) =
            (sealed.saturating_sub(first.0), opened.saturating_sub(first.1));
        let loss = match sent_lately {
            0 => 0.0,
            sent => (1.0 - arrived as f64 / sent as f64).clamp(0.0, 1.0),
        };
        self.link.set_status(|status| {
            status.rtt = Some(now.since(sent));
            status.loss = Some(loss);
        });
    }

    fn seal_control(&self, context: &mut Context, message: Control, now: Moment) {
        let Some(pair) = &self.current else { return };
        let mut plain = [0; PREFIX_LEN + control::MAX_LEN];
        let (prefix, body) = plain.split_at_mut(PREFIX_LEN);
        prefix.copy_from_slice(&Prefix::CONTROL.emit());
        let mut message_bytes = [0; control::MAX_LEN];
        let len = message.emit(&mut message_bytes);
        body.copy_from_slice(&message_bytes);
        let mut datagram = vec![0; len + OVERHEAD];
        let sealed = pair.send.reserve(CONTROL_LANE, 1, now).and_then(|counter| {
            pair.send.seal(CONTROL_LANE, counter, &plain[..PREFIX_LEN + len], &mut datagram)
        });
        if sealed.is_ok() {
            self.transmit(context, datagram);
        }
    }

    fn transmit(&self, context: &mut Context, datagram: Vec<u8>) {
        context.outputs.push_back(Output::Transmit { to: self.link.address(), datagram });
    }

    /// Tells when something is due.
    pub(super) fn poll_timeout(&self, rekey_interval: Duration, now: Moment) -> Option<Moment> {
        let retry = self.outstanding.as_ref().map(|outstanding| outstanding.retry);
        let watched = self.current.is_some() && now < self.watched_until;
        let tick = watched.then_some(self.next_tick);
        let renew = self
            .current
            .as_ref()
            .filter(|_| watched && retry.is_none())
            .map(|pair| (pair.send.created() + renewal_age(pair, rekey_interval)).max(now));
        let oldest = self.previous.as_ref().or(self.current.as_ref().map(|pair| &pair.receive));
        let expiry = oldest
            .or(self.next.as_ref().map(|pair| &pair.receive))
            .map(|key| key.created() + REJECT_AFTER);
        [retry, tick, renew, expiry].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, context: &mut Context, now: Moment) {
        self.expire(context, now);
        if let Some(outstanding) = &self.outstanding
            && now >= outstanding.retry
        {
            self.link.clear_demand();
            let renewing = self.current.is_some() && self.traffic_within(WATCHED, now);
            if now < self.wanted_until || renewing {
                self.initiate(context, now);
            } else {
                self.abandon(context);
            }
        }
        if self.current.is_some() && now >= self.next_tick && now < self.watched_until {
            self.tick(context, now);
        }
        let Some(pair) = &self.current else { return };
        let age = now.since(pair.send.created());
        let due = age >= renewal_age(pair, context.settings.rekey_interval)
            || pair.send.sealed() >= RENEW_AFTER_PACKETS;
        if due && self.outstanding.is_none() && self.traffic_within(WATCHED, now) {
            self.initiate(context, now);
        }
    }

    /// Looks after a session with traffic: once a second an echo, and whether anything is heard.
    fn tick(&mut self, context: &mut Context, now: Moment) {
        self.next_tick = now + TICK;
        if self.traffic_within(WATCHED, now) {
            self.watched_until = now + WATCHED;
        } else {
            self.link.set_active(false);
        }
        let sent_lately = self.link.last_tx().is_some_and(|at| now.since(at) < SILENCE);
        let created = self.current.as_ref().map(|pair| pair.send.created());
        let heard = self.link.last_rx().max(created).unwrap_or_default();
        if sent_lately && now.since(heard) >= SILENCE {
            self.set_state(PeerState::Stale, Some("data is sent and nothing is heard"));
            if self.outstanding.is_none() {
                self.wanted_until = now + WANTED;
                self.initiate(context, now);
            }
        }
        if sent_lately {
            self.ask_for_echo(context, now);
        }
    }

    fn ask_for_echo(&mut self, context: &mut Context, now: Moment) {
        let Some(pair) = &self.current else { return };
        self.echo.last_id = self.echo.last_id.wrapping_add(1);
        let (id, sealed) = (self.echo.last_id, pair.send.sealed());
        self.echo.waiting = Some((id, sealed, now));
        self.seal_control(context, Control::EchoRequest { id, sealed }, now);
    }

    /// Whether data was sealed or opened within `span`.
    fn traffic_within(&self, span: Duration, now: Moment) -> bool {
        let newest = self.link.last_tx().max(self.link.last_rx());
        newest.is_some_and(|at| now.since(at) < span)
    }

    /// Lets go of keys past their end.
    fn expire(&mut self, context: &mut Context, now: Moment) {
        let old = |key: &Arc<ReceiveKey>| now.since(key.created()) >= REJECT_AFTER;
        if let Some(key) = self.previous.take_if(|key| old(key)) {
            context.directory.remove(key.index());
        }
        if let Some(pair) = self.next.take_if(|pair| old(&pair.receive)) {
            context.directory.remove(pair.receive.index());
        }
        if let Some(pair) = self.current.take_if(|pair| old(&pair.receive)) {
            context.directory.remove(pair.receive.index());
            self.link.install(None);
            self.link.set_active(false);
            if self.outstanding.is_none() {
                self.set_state(PeerState::Idle, None);
            }
        }
    }

    fn set_state(&self, state: PeerState, reason: Option<&str>) {
        self.link.set_status(|status| {
            status.state = state;
            if status.reason.as_deref() != reason {
                status.reason = reason.map(str::to_owned);
            }
        });
    }
}

/// AES-256-GCM where both have it, else ChaCha20-Poly1305; with the set of just that one.
fn choose(ours: Ciphers, theirs: Ciphers) -> Option<(Cipher, Ciphers)> {
    if ours.aes_256_gcm && theirs.aes_256_gcm {
        let only = Ciphers { aes_256_gcm: true, chacha20_poly1305: false };
        return Some((Cipher::Aes256Gcm, only));
    }
    if ours.chacha20_poly1305 && theirs.chacha20_poly1305 {
        let only = Ciphers { aes_256_gcm: false, chacha20_poly1305: true };
        return Some((Cipher::ChaCha20Poly1305, only));
    }
    None
}

/// The initiator renews; the responder only if that did not happen, so that the two do not cross
/// at every renewal.
fn renewal_age(pair: &Keypair, interval: Duration) -> Duration {
    if pair.initiated { interval } else { interval + interval / 4 }
}

/// The lane whose source port is the data port.
const CONTROL_LANE: u8 = 0;
/// The first repetition of an initiation: many round trips of any underlay, yet short for a person.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// WireGuard's interval of repetition.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a packet that waited keeps handshakes going (WireGuard's 90 s).
const WANTED: Duration = Duration::from_secs(90);
/// How long an echo keeps handshakes going: whoever asked has given up by then.
const ECHO_WANTED: Duration = Duration::from_secs(1);
const DOWN_AFTER: Duration = Duration::from_secs(15);
/// Our initiation is still on its way if it is not older than this.
const CROSSING: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_secs(1);
/// How long after the last packet a session is still looked after.
const WATCHED: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(5);
const LOSS_SAMPLES: usize = 10;
/// Far below what AES-GCM allows for one key with counters as nonces.
const RENEW_AFTER_PACKETS: u64 = 1 << 32;
