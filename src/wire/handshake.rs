//! The three datagrams of a handshake (Noise_IKpsk2_25519_AESGCM_SHA256) and the payload that
//! both Noise messages seal.
//!
//! ```text
//! initiation, 208 bytes                     response, 144 bytes
//!   0  clear header: kind 1, sender index,    0  clear header: kind 2, receiver index,
//!      psk epoch (32 bits), 0 (32 bits)          sender index (32 bits), 0 (32 bits)
//!  16  ephemeral key                32       16  ephemeral key                32
//!  48  sealed static key            48       48  sealed payload               80
//!  96  sealed payload               80      128  mac1                         16
//! 176  mac1                         16
//! 192  mac2 (0 without a cookie)    16      cookie reply, 60 bytes
//!                                             0  clear header: kind 3, receiver index, 0
//! payload, 64 bytes                          16  nonce                        12
//!   0  node id                      16       28  sealed cookie                32
//!  16  start count                   8
//!  24  initiation counter            8      An initiation is longer than anything that it can
//!  32  sender index                  4      provoke, so nothing is amplified.
//!  36  lowest and highest version    2
//!  38  ciphers (bit 0 AES-256-GCM, bit 1 ChaCha20-Poly1305; one bit in a response)
//!  39  lanes (1..=16)                1
//!  40  0                            24
//! ```

use super::envelope::{HEADER_LEN, Kind, MAX_LANES, clear_header, index_and_counter};
use crate::types::{NodeId, VersionRange};

/// The length of an initiation.
pub const INITIATION_LEN: usize = 208;
/// The length of a response.
pub const RESPONSE_LEN: usize = 144;
/// The length of a cookie reply.
pub const COOKIE_REPLY_LEN: usize = 60;
/// The length of the payload in clear.
pub const PAYLOAD_LEN: usize = 64;
/// The length of a mac.
pub const MAC_LEN: usize = 16;
/// The length of a cookie.
pub const COOKIE_LEN: usize = 16;
/// The length of the Noise message in an initiation.
pub const INITIATION_NOISE_LEN: usize = 32 + 48 + PAYLOAD_LEN + 16;
/// The length of the Noise message in a response.
pub const RESPONSE_NOISE_LEN: usize = 32 + PAYLOAD_LEN + 16;

const _: () = assert!(HEADER_LEN + INITIATION_NOISE_LEN + 2 * MAC_LEN == INITIATION_LEN);
const _: () = assert!(HEADER_LEN + RESPONSE_NOISE_LEN + MAC_LEN == RESPONSE_LEN);
const _: () = assert!(INITIATION_LEN >= RESPONSE_LEN && INITIATION_LEN >= COOKIE_REPLY_LEN);

/// Says that a datagram or payload has the wrong length, or bits where its layout has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initiation {
    /// The initiator's name for the session.
    pub sender: u32,
    /// The epoch of the cluster secret that the pair's key comes from.
    pub epoch: u32,
    /// The Noise message.
    pub noise: [u8; INITIATION_NOISE_LEN],
    /// The mac under the responder's public key.
    pub mac1: [u8; MAC_LEN],
    /// The mac under a cookie, or zeros.
    pub mac2: [u8; MAC_LEN],
}

impl Initiation {
    /// Returns the clear header, which is part of the Noise prologue.
    pub fn header(sender: u32, epoch: u32) -> [u8; HEADER_LEN] {
        clear_header(Kind::Initiation, 0, sender, u64::from(epoch) << 32)
    }

    /// Parses a datagram of kind initiation.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let datagram: &[u8; INITIATION_LEN] = datagram.try_into().map_err(|_| Malformed)?;
        let (sender, epoch) = clear(datagram, Kind::Initiation)?;
        Ok(Self {
            sender,
            epoch,
            noise: part(datagram, HEADER_LEN),
            mac1: part(datagram, INITIATION_LEN - 2 * MAC_LEN),
            mac2: part(datagram, INITIATION_LEN - MAC_LEN),
        })
    }

    /// Returns the datagram.
    pub fn emit(&self) -> [u8; INITIATION_LEN] {
        let mut datagram = [0; INITIATION_LEN];
        put(&mut datagram, 0, &Self::header(self.sender, self.epoch));
        put(&mut datagram, HEADER_LEN, &self.noise);
        put(&mut datagram, INITIATION_LEN - 2 * MAC_LEN, &self.mac1);
        put(&mut datagram, INITIATION_LEN - MAC_LEN, &self.mac2);
        datagram
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The initiator's name for the session.
    pub receiver: u32,
    /// The responder's name for the session.
    pub sender: u32,
    /// The Noise message.
    pub noise: [u8; RESPONSE_NOISE_LEN],
    /// The mac under the initiator's public key.
    pub mac1: [u8; MAC_LEN],
}

impl Response {
    /// Parses a datagram of kind response.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let datagram: &[u8; RESPONSE_LEN] = datagram.try_into().map_err(|_| Malformed)?;
        let (receiver, sender) = clear(datagram, Kind::Response)?;
        Ok(Self {
            receiver,
            sender,
            noise: part(datagram, HEADER_LEN),
            mac1: part(datagram, RESPONSE_LEN - MAC_LEN),
        })
    }

    /// Returns the datagram.
    pub fn emit(&self) -> [u8; RESPONSE_LEN] {
        let mut datagram = [0; RESPONSE_LEN];
        let counter = u64::from(self.sender) << 32;
        put(&mut datagram, 0, &clear_header(Kind::Response, 0, self.receiver, counter));
        put(&mut datagram, HEADER_LEN, &self.noise);
        put(&mut datagram, RESPONSE_LEN - MAC_LEN, &self.mac1);
        datagram
    }
}

/// The demand to prove the source address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// The initiator's name for the session.
    pub receiver: u32,
    /// The nonce of the seal.
    pub nonce: [u8; 12],
    /// The cookie, sealed under the responder's public key with the initiation's mac1 as
    /// associated data.
    pub sealed: [u8; COOKIE_LEN + 16],
}

impl CookieReply {
    /// Parses a datagram of kind cookie reply.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let datagram: &[u8; COOKIE_REPLY_LEN] = datagram.try_into().map_err(|_| Malformed)?;
        let (receiver, zero) = clear(datagram, Kind::CookieReply)?;
        if zero != 0 {
            return Err(Malformed);
        }
        Ok(Self { receiver, nonce: part(datagram, HEADER_LEN), sealed: part(datagram, 28) })
    }

    /// Returns the datagram.
    pub fn emit(&self) -> [u8; COOKIE_REPLY_LEN] {
        let mut datagram = [0; COOKIE_REPLY_LEN];
        put(&mut datagram, 0, &clear_header(Kind::CookieReply, 0, self.receiver, 0));
        put(&mut datagram, HEADER_LEN, &self.nonce);
        put(&mut datagram, 28, &self.sealed);
        datagram
    }
}

/// A set of AEADs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ciphers {
    /// AES-256-GCM.
    pub aes_256_gcm: bool,
    /// ChaCha20-Poly1305.
    pub chacha20_poly1305: bool,
}

/// What both sides tell each other under the seal of the handshake, so that nothing of it can be
/// downgraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The sender.
    pub node: NodeId,
    /// How often the sender has started; kept on its disk. 0 in a response.
    pub start_count: u64,
    /// Rises with every initiation since that start. 0 in a response.
    pub counter: u64,
    /// The sender's name for the session, as in the clear header.
    pub index: u32,
    /// The wire versions that the sender speaks.
    pub versions: VersionRange,
    /// The AEADs that the sender offers, or the one that it chose.
    pub ciphers: Ciphers,
    /// How many lanes the sender sends on, 1 to 16.
    pub lanes: u8,
}

impl Payload {
    /// Parses an opened payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes: &[u8; PAYLOAD_LEN] = bytes.try_into().map_err(|_| Malformed)?;
        let [.., lowest, highest, ciphers, lanes] = part::<PAYLOAD_LEN, 8>(bytes, 32);
        if lanes == 0 || lanes > MAX_LANES || lowest > highest {
            return Err(Malformed);
        }
        Ok(Self {
            node: NodeId::from_bytes(part(bytes, 0)),
            start_count: u64::from_be_bytes(part(bytes, 16)),
            counter: u64::from_be_bytes(part(bytes, 24)),
            index: u32::from_be_bytes(part(bytes, 32)),
            versions: VersionRange { lowest, highest },
            ciphers: Ciphers {
                aes_256_gcm: ciphers & AES_256_GCM != 0,
                chacha20_poly1305: ciphers & CHACHA20_POLY1305 != 0,
            },
            lanes,
        })
    }

    /// Returns the payload to seal.
    pub fn emit(&self) -> [u8; PAYLOAD_LEN] {
        let mut bytes = [0; PAYLOAD_LEN];
        put(&mut bytes, 0, &self.node.to_bytes());
        put(&mut bytes, 16, &self.start_count.to_be_bytes());
        put(&mut bytes, 24, &self.counter.to_be_bytes());
        put(&mut bytes, 32, &self.index.to_be_bytes());
        let ciphers = (u8::from(self.ciphers.aes_256_gcm) * AES_256_GCM)
            | (u8::from(self.ciphers.chacha20_poly1305) * CHACHA20_POLY1305);
        let tail = [self.versions.lowest, self.versions.highest, ciphers, self.lanes];
        put(&mut bytes, 36, &tail);
        bytes
    }
}

/// Checks the clear header and returns its index and the upper half of its counter field.
fn clear<const N: usize>(datagram: &[u8; N], kind: Kind) -> Result<(u32, u32), Malformed> {
    let header: &[u8; HEADER_LEN] = datagram.first_chunk().ok_or(Malformed)?;
    let (index, counter) = index_and_counter(header);
    let upper = (counter >> 32) as u32;
    if *header != clear_header(kind, 0, index, u64::from(upper) << 32) {
        return Err(Malformed);
    }
    Ok((index, upper))
}

/// Copies `M` bytes from `at`; the layouts above keep it inside.
fn part<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    let mut out = [0; M];
    out.copy_from_slice(&bytes[at..at + M]);
    out
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

const AES_256_GCM: u8 = 1;
const CHACHA20_POLY1305: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_datagram_is_read_as_it_was_written(
            sender: u32, other: u32, noise in any::<[u8; 32]>(), mac1: [u8; 16], mac2: [u8; 16], nonce: [u8; 12], sealed: [u8; 32],
        ) {
            let mut long = [0; INITIATION_NOISE_LEN];
            put(&mut long, 77, &noise);
            let initiation = Initiation { sender, epoch: other, noise: long, mac1, mac2 };
            prop_assert_eq!(Initiation::parse(&initiation.emit()), Ok(initiation));
            let mut short = [0; RESPONSE_NOISE_LEN];
            put(&mut short, 55, &noise);
            let response = Response { receiver: other, sender, noise: short, mac1 };
            prop_assert_eq!(Response::parse(&response.emit()), Ok(response));
            let reply = CookieReply { receiver: other, nonce, sealed };
            prop_assert_eq!(CookieReply::parse(&reply.emit()), Ok(reply));
        }

        #[test]
        fn a_payload_is_read_as_it_was_written(
            node: u128, start_count: u64, counter: u64, index: u32, lowest in 0u8..9, span in 0u8..9, aes: bool, chacha: bool, lanes in 1u8..=16,
        ) {
            let payload = Payload {
                node: NodeId::from_u128(node), start_count, counter, index,
                versions: VersionRange { lowest, highest: lowest + span },
                ciphers: Ciphers { aes_256_gcm: aes, chacha20_poly1305: chacha }, lanes,
            };
            prop_assert_eq!(Payload::parse(&payload.emit()), Ok(payload));
        }

        #[test]
        fn other_lengths_are_refused(len in 0usize..300) {
            let mut datagram = vec![0; len];
            for (kind, right) in [(Kind::Initiation, INITIATION_LEN), (Kind::Response, RESPONSE_LEN), (Kind::CookieReply, COOKIE_REPLY_LEN)] {
                if let Some(first) = datagram.first_mut() { *first = kind.first_byte(); }
                let parsed = match kind {
                    Kind::Initiation => Initiation::parse(&datagram).is_ok(),
                    Kind::Response => Response::parse(&datagram).is_ok(),
                    Kind::CookieReply | Kind::Data => CookieReply::parse(&datagram).is_ok(),
                };
                prop_assert_eq!(parsed, len == right);
            }
        }
    }

    #[test]
    fn bits_where_zero_belongs_are_refused() {
        let good = Initiation {
            sender: 1,
            epoch: 2,
            noise: [3; INITIATION_NOISE_LEN],
            mac1: [4; 16],
            mac2: [5; 16],
        }
        .emit();
        for place in [1, 2, 3, 12, 15] {
            let mut bent = good;
            bent[place] ^= 1;
            assert_eq!(Initiation::parse(&bent), Err(Malformed), "byte {place}");
        }
        let mut bent = CookieReply { receiver: 1, nonce: [0; 12], sealed: [0; 32] }.emit();
        bent[8] = 1;
        assert_eq!(CookieReply::parse(&bent), Err(Malformed));
    }

    #[test]
    fn payloads_with_impossible_lanes_or_versions_are_refused() {
        let good = Payload {
            node: NodeId::from_u128(1),
            start_count: 1,
            counter: 1,
            index: 1,
            versions: VersionRange { lowest: 1, highest: 1 },
            ciphers: Ciphers { aes_256_gcm: true, chacha20_poly1305: true },
            lanes: 4,
        };
        for (lanes, lowest) in [(0, 1), (17, 1), (4, 2)] {
            let mut bent = good.clone();
            bent.lanes = lanes;
            bent.versions.lowest = lowest;
            assert_eq!(Payload::parse(&bent.emit()), Err(Malformed));
        }
        assert_eq!(Payload::parse(&[0; 63]), Err(Malformed));
    }
}
