//! A session's two directions: a [`SendKey`] seals with one counter a lane, a [`ReceiveKey`] opens
//! with one replay window a lane.
//!
//! Both are shared by the worker threads and are never copied. A lane belongs to one worker on
//! either side, so its counter and its window's lock are never fought over.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::time::Duration;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    hkdf,
};

use super::replay::{Replay, Window};
use crate::{
    types::{Moment, NodeId},
    wire::envelope::{
        DataHeader, HEADER_LEN, MAX_LANES, OVERHEAD, PREFIX_LEN, Prefix, TAG_LEN, nonce,
    },
};

/// Nothing is sealed or opened with a key older than this.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);

/// An AEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

impl Cipher {
    /// Returns the cipher's name as it is shown, and mixed into its keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// Derives the key of one direction: HKDF(split key, cipher name).
    fn key(self, split: &[u8; 32]) -> Option<LessSafeKey> {
        let algorithm = match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"overlay transport v1").extract(split);
        let info = [self.name().as_bytes()];
        let okm = prk.expand(&info, algorithm).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

/// Why nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// The key is too old, or its counter has run out: shake hands first.
    Expired,
    /// The output has not exactly the room that is needed.
    Room,
}

/// Why nothing was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The peer did not state such a lane.
    Lane,
    /// The seal does not open, or the key has failed too often.
    NotAuthentic,
    /// The counter was seen, or is too old to tell.
    Replay,
    /// The key is too old.
    Expired,
    /// The sealed next protocol is unknown.
    Protocol,
}

/// Seals what goes to one peer.
pub struct SendKey {
    key: LessSafeKey,
    cipher: Cipher,
    receiver: u32,
    created: Moment,
    counters: [Counter; MAX_LANES as usize],
}

/// One lane's counter, on a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Counter(AtomicU64);

impl SendKey {
    /// Makes the key from one half of a handshake's split.
    pub(super) fn new(
        cipher: Cipher,
        split: &[u8; 32],
        receiver: u32,
        created: Moment,
    ) -> Option<Self> {
        let key = cipher.key(split)?;
        Some(Self { key, cipher, receiver, created, counters: Default::default() })
    }

    /// Returns the AEAD.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Returns when the handshake was done.
    pub fn created(&self) -> Moment {
        self.created
    }

    /// Whether the key may still be used.
    pub fn is_usable(&self, now: Moment) -> bool {
        now.since(self.created) < REJECT_AFTER
    }

    /// How many datagrams were sealed, all lanes together.
    pub fn sealed(&self) -> u64 {
        self.counters.iter().map(|c| c.0.load(Ordering::Relaxed)).sum()
    }

    /// Reserves `count` numbers of a lane, which no other call gets.
    pub fn reserve(&self, lane: u8, count: u64, now: Moment) -> Result<u64, SealError> {
        let counter = self.counters.get(usize::from(lane)).ok_or(SealError::Expired)?;
        if !self.is_usable(now) || counter.0.load(Ordering::Relaxed) > LAST_COUNTER {
            return Err(SealError::Expired);
        }
        Ok(counter.0.fetch_add(count, Ordering::Relaxed))
    }

    /// Seals `plaintext`, which starts with the four bytes of a [`Prefix`], into `out`, which is
    /// longer by header and tag. `counter` comes from [`Self::reserve`].
    pub fn seal(
        &self,
        lane: u8,
        counter: u64,
        plaintext: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        let header = DataHeader { lane, receiver: self.receiver, counter }.emit();
        let (head, rest) = out.split_first_chunk_mut::<HEADER_LEN>().ok_or(SealError::Room)?;
        let body_len = rest.len().checked_sub(TAG_LEN).ok_or(SealError::Room)?;
        let (body, tag) = rest.split_at_mut(body_len);
        *head = header;
        let nonce = Nonce::assume_unique_for_key(nonce(lane, counter));
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(header), plaintext, body, &[], tag)
            .map_err(|_| SealError::Room)
    }
}

/// Opens what comes from one peer.
pub struct ReceiveKey {
    key: LessSafeKey,
    peer: NodeId,
    index: u32,
    created: Moment,
    lanes: u8,
    windows: [Mutex<Window>; MAX_LANES as usize],
    opened: [Counter; MAX_LANES as usize],
    failures: AtomicU64,
    confirmed: AtomicBool,
}

/// An opened datagram.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// What it is.
    pub prefix: Prefix,
    /// The inner packet or control message.
    pub inner: &'a mut [u8],
}

impl ReceiveKey {
    /// Makes the key from one half of a handshake's split. `lanes` is what the peer stated.
    pub(super) fn new(
        cipher: Cipher,
        split: &[u8; 32],
        peer: NodeId,
        index: u32,
        lanes: u8,
        created: Moment,
    ) -> Option<Self> {
        Some(Self {
            key: cipher.key(split)?,
            peer,
            index,
            created,
            lanes: lanes.min(MAX_LANES),
            windows: std::array::from_fn(|_| Mutex::new(Window::new())),
            opened: Default::default(),
            failures: AtomicU64::new(0),
            confirmed: AtomicBool::new(false),
        })
    }

    /// Returns whose datagrams it opens.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// Returns our name for the session.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns when the handshake was done.
    pub fn created(&self) -> Moment {
        self.created
    }

    /// How many datagrams were opened, all lanes together.
    pub fn opened(&self) -> u64 {
        self.opened.iter().map(|c| c.0.load(Ordering::Relaxed)).sum()
    }

    /// Whether the session thread still has to hear that a datagram opened.
    pub fn is_unconfirmed(&self) -> bool {
        !self.confirmed.load(Ordering::Relaxed)
    }

    /// Notes that the session thread was told.
    pub fn set_confirmed(&self) {
        self.confirmed.store(true, Ordering::Relaxed);
    }

    /// Opens a datagram in place. Its counter is marked only after it opened.
    pub fn open<'a>(
        &self,
        header: DataHeader,
        datagram: &'a mut [u8],
        now: Moment,
    ) -> Result<Opened<'a>, OpenError> {
        if header.lane >= self.lanes {
            return Err(OpenError::Lane);
        }
        if now.since(self.created) >= REJECT_AFTER {
            return Err(OpenError::Expired);
        }
        let exhausted = self.failures.load(Ordering::Relaxed) > MAX_FAILURES;
        if datagram.len() < OVERHEAD || exhausted {
            return Err(OpenError::NotAuthentic);
        }
        let (_, sealed) = datagram.split_at_mut(HEADER_LEN);
        let (plain, tag) = sealed.split_at_mut(sealed.len() - TAG_LEN);
        let nonce = Nonce::assume_unique_for_key(header.nonce());
        // Not `open_in_place`, which first moves the ciphertext onto itself.
        let opened =
            self.key.open_in_place_separate_tag(nonce, Aad::from(header.emit()), tag, plain);
        if opened.is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return Err(OpenError::NotAuthentic);
        }
        let lane = usize::from(header.lane);
        // A worker that panicked cannot have left a window half written: marking is one store.
        let mut window = self.windows[lane].lock().unwrap_or_else(PoisonError::into_inner);
        if window.accept(header.counter) == Replay::Seen {
            return Err(OpenError::Replay);
        }
        drop(window);
        self.opened[lane].0.fetch_add(1, Ordering::Relaxed);
        let (prefix, inner) =
            plain.split_first_chunk_mut::<PREFIX_LEN>().ok_or(OpenError::Protocol)?;
        let prefix = Prefix::parse(*prefix).map_err(|_| OpenError::Protocol)?;
        Ok(Opened { prefix, inner })
    }
}

/// No number above this is given out: far below 2^64, far above what a key's life allows.
pub(super) const LAST_COUNTER: u64 = 1 << 60;

/// AES-GCM's bound on forgeries at our packet size leaves a wide margin at this many failures.
const MAX_FAILURES: u64 = 1 << 36;

#[cfg(test)]
mod tests;
