//! The Noise steps of a handshake, both sides.
//!
//! ```text
//! initiator                                 responder
//! Initiator::start  -- initiation -->       Received::open: who is it, and when
//!                                           Received::respond: keys for both directions
//! Initiator::finish <-- response ---
//! ```
//! The prologue is the initiation's clear header and the cluster's id, so that neither can be
//! exchanged; the payloads carry all that could be downgraded.

use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::{
    Identity,
    primitives::{PATTERN, Resolver},
};
use crate::wire::handshake::{
    INITIATION_NOISE_LEN, Initiation, MAC_LEN, PAYLOAD_LEN, Payload, RESPONSE_NOISE_LEN, Response,
};

/// Why a step did not succeed. Nothing of it is told to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeError {
    /// A seal did not open, or the pair's key differs.
    NotAuthentic,
    /// The payload is bent.
    Malformed,
    /// The library refused our own input.
    Internal,
}

/// The raw keys that come out of a handshake.
pub(super) struct Split {
    /// From the initiator to the responder.
    pub(super) forward: Zeroizing<[u8; 32]>,
    /// From the responder to the initiator.
    pub(super) backward: Zeroizing<[u8; 32]>,
}

/// A handshake that waits for its response.
pub(super) struct Initiator {
    noise: Box<HandshakeState>,
}

impl Initiator {
    /// Writes an initiation; its macs are still zero.
    pub(super) fn start(
        identity: &Identity,
        cluster: &[u8; 16],
        peer: &[u8; 32],
        psk: (u32, &[u8; 32]),
        payload: &Payload,
        ephemeral: [u8; 32],
    ) -> Result<(Self, Initiation), HandshakeError> {
        let (epoch, psk) = psk;
        let prologue = prologue(payload.index, epoch, cluster);
        let mut noise = builder(identity, &prologue, ephemeral)?
            .remote_public_key(peer)
            .and_then(|b| b.psk(PSK_PLACE, psk))
            .and_then(Builder::build_initiator)
            .map_err(|_| HandshakeError::Internal)?;
        let mut message = [0; INITIATION_NOISE_LEN];
        let len = noise
            .write_message(&payload.emit(), &mut message)
            .map_err(|_| HandshakeError::Internal)?;
        debug_assert_eq!(len, INITIATION_NOISE_LEN);
        let initiation = Initiation {
            sender: payload.index,
            epoch,
            noise: message,
            mac1: [0; MAC_LEN],
            mac2: [0; MAC_LEN],
        };
        Ok((Self { noise: Box::new(noise) }, initiation))
    }

    /// Reads the response. A response that does not verify leaves the handshake waiting.
    pub(super) fn finish(
        &mut self,
        response: &Response,
    ) -> Result<(Payload, Split), HandshakeError> {
        let mut payload = [0; PAYLOAD_LEN];
        // snow rolls its state back when a message fails (checkpoint in `read_message`).
        let len = self
            .noise
            .read_message(&response.noise, &mut payload)
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let payload = Payload::parse(&payload[..len]).map_err(|_| HandshakeError::Malformed)?;
        if payload.index != response.sender {
            return Err(HandshakeError::Malformed);
        }
        Ok((payload, split(&mut self.noise)))
    }
}

/// An initiation whose first message verified: its sender holds the private half of `public`.
pub(super) struct Received {
    noise: Box<HandshakeState>,
    sender: u32,
    /// Which of the pair's keys it was made with.
    pub(super) epoch: u32,
    /// The initiator's public key.
    pub(super) public: [u8; 32],
    /// What it told.
    pub(super) payload: Payload,
}

impl Received {
    /// Opens an initiation. `ephemeral` is for the response that may follow.
    pub(super) fn open(
        identity: &Identity,
        cluster: &[u8; 16],
        initiation: &Initiation,
        ephemeral: [u8; 32],
    ) -> Result<Self, HandshakeError> {
        let prologue = prologue(initiation.sender, initiation.epoch, cluster);
        let mut noise = builder(identity, &prologue, ephemeral)?
            .build_responder()
            .map_err(|_| HandshakeError::Internal)?;
        let mut payload = [0; PAYLOAD_LEN];
        let len = noise
            .read_message(&initiation.noise, &mut payload)
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let payload = Payload::parse(&payload[..len]).map_err(|_| HandshakeError::Malformed)?;
        if payload.index != initiation.sender {
            return Err(HandshakeError::Malformed);
        }
        let public = noise
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .ok_or(HandshakeError::Internal)?;
        Ok(Self {
            noise: Box::new(noise),
            sender: initiation.sender,
            epoch: initiation.epoch,
            public,
            payload,
        })
    }

    /// Writes the response; its mac is still zero.
    pub(super) fn respond(
        mut self,
        psk: &[u8; 32],
        payload: &Payload,
    ) -> Result<(Response, Split), HandshakeError> {
        self.noise.set_psk(usize::from(PSK_PLACE), psk).map_err(|_| HandshakeError::Internal)?;
        let mut message = [0; RESPONSE_NOISE_LEN];
        let len = self
            .noise
            .write_message(&payload.emit(), &mut message)
            .map_err(|_| HandshakeError::Internal)?;
        debug_assert_eq!(len, RESPONSE_NOISE_LEN);
        let response = Response {
            receiver: self.sender,
            sender: payload.index,
            noise: message,
            mac1: [0; MAC_LEN],
        };
        Ok((response, split(&mut self.noise)))
    }
}

fn builder<'a>(
    identity: &'a Identity,
    prologue: &'a [u8; 32],
    ephemeral: [u8; 32],
) -> Result<Builder<'a>, HandshakeError> {
    let params = PATTERN.parse().map_err(|_| HandshakeError::Internal)?;
    Builder::with_resolver(params, Box::new(Resolver::new(ephemeral)))
        .local_private_key(&identity.private[..])
        .and_then(|builder| builder.prologue(prologue))
        .map_err(|_| HandshakeError::Internal)
}

fn prologue(sender: u32, epoch: u32, cluster: &[u8; 16]) -> [u8; 32] {
    let mut prologue = [0; 32];
    prologue[..16].copy_from_slice(&Initiation::header(sender, epoch));
    prologue[16..].copy_from_slice(cluster);
    prologue
}

fn split(noise: &mut HandshakeState) -> Split {
    let (forward, backward) = noise.dangerously_get_raw_split();
    Split { forward: Zeroizing::new(forward), backward: Zeroizing::new(backward) }
}

/// psk2: mixed at the end of the second message.
const PSK_PLACE: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::session::primitives::public_key,
        types::{NodeId, VersionRange},
        wire::handshake::Ciphers,
    };

    fn identity(seed: u8) -> Identity {
        let private = [seed; 32];
        Identity { public: public_key(&private).unwrap(), private: private.into() }
    }

    fn payload(index: u32) -> Payload {
        Payload {
            node: NodeId::from_u128(u128::from(index)),
            start_count: 1,
            counter: 2,
            index,
            versions: VersionRange { lowest: 1, highest: 1 },
            ciphers: Ciphers { aes_256_gcm: true, chacha20_poly1305: true },
            lanes: 4,
        }
    }

    fn start(cluster: &[u8; 16], psk: &[u8; 32]) -> (Initiator, Initiation) {
        let peer = identity(2).public;
        Initiator::start(&identity(1), cluster, &peer, (3, psk), &payload(10), [9; 32]).unwrap()
    }

    #[test]
    fn both_sides_get_the_same_keys_and_know_each_other() {
        let (mut initiator, initiation) = start(&[5; 16], &[6; 32]);
        let received = Received::open(&identity(2), &[5; 16], &initiation, [8; 32]).unwrap();
        assert_eq!(received.public, identity(1).public);
        assert_eq!(received.payload, payload(10));
        assert_eq!(received.epoch, 3);
        let (response, theirs) = received.respond(&[6; 32], &payload(20)).unwrap();
        assert_eq!((response.receiver, response.sender), (10, 20));
        let (told, ours) = initiator.finish(&response).unwrap();
        assert_eq!(told, payload(20));
        assert_eq!((ours.forward, ours.backward), (theirs.forward, theirs.backward));
    }

    #[test]
    fn another_cluster_header_or_key_does_not_open() {
        let (_, initiation) = start(&[5; 16], &[6; 32]);
        let open = |cluster: &[u8; 16], initiation: &Initiation, seed| {
            Received::open(&identity(seed), cluster, initiation, [8; 32]).err()
        };
        let refused = Some(HandshakeError::NotAuthentic);
        assert_eq!(open(&[4; 16], &initiation, 2), refused);
        assert_eq!(open(&[5; 16], &initiation, 3), refused);
        let bent = Initiation { epoch: 4, ..initiation.clone() };
        assert_eq!(open(&[5; 16], &bent, 2), refused);
        let bent = Initiation { sender: 11, ..initiation };
        assert_eq!(open(&[5; 16], &bent, 2), refused);
    }

    #[test]
    fn another_pair_key_is_noticed_and_a_good_response_still_counts() {
        let (mut initiator, initiation) = start(&[5; 16], &[6; 32]);
        let respond = |psk: &[u8; 32]| {
            let received = Received::open(&identity(2), &[5; 16], &initiation, [8; 32]).unwrap();
            received.respond(psk, &payload(20)).unwrap().0
        };
        let refused = initiator.finish(&respond(&[7; 32])).err();
        assert_eq!(refused, Some(HandshakeError::NotAuthentic));
        assert!(initiator.finish(&respond(&[6; 32])).is_ok());
    }
}
