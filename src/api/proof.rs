//! The proof that a host holds a node's X25519 key, which cannot sign: a MAC under what both ends
//! of the key agree on.
//!
//! ```text
//! node                                              manager
//!   -- Challenge ------------------------------------->   draws a key pair c, C for this connection
//!   <- C, cluster id ----------------------------------
//!   -- Join or Renew, proof -------------------------->   the same with c and the node's public key N
//!
//! mac key = HKDF-SHA256(X25519(n, C), info: C, N)
//! proof   = HMAC-SHA256(mac key, purpose, node id, cluster id, certificate key)
//! ```
//! The connection is TLS to a manager of the pinned root, so only the node's own manager is ever
//! answered. A challenge ends with its connection: a proof that was seen elsewhere says nothing. It
//! names the certificate key, so that it certifies no other, and what it is for.

use std::fmt;

use aws_lc_rs::{
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    error::Unspecified,
    hkdf, hmac,
};

use crate::types::NodeId;

/// The manager's side of one connection.
pub struct Challenge {
    private: PrivateKey,
    public: [u8; 32],
}

/// What a proof is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The host becomes a node.
    Join,
    /// The node gets another certificate.
    Renew(NodeId),
}

/// What a proof says.
pub struct Statement<'a> {
    /// What it is for.
    pub purpose: Purpose,
    /// The cluster's identity.
    pub cluster: &'a [u8; 16],
    /// The key that is to be certified.
    pub certificate_key: &'a [u8],
}

/// Says that a key does not work, or is not the one that proved something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session key is not proven to be this host's")]
pub struct NotProven;

impl Challenge {
    /// Draws a challenge.
    ///
    /// # Errors
    /// The random source of the system fails.
    pub fn draw() -> Result<Self, NotProven> {
        let private = PrivateKey::generate(&X25519)?;
        let public = private.compute_public_key()?.as_ref().try_into().map_err(|_| NotProven)?;
        Ok(Self { private, public })
    }

    /// Returns what the node is sent.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Checks that a proof of a statement is by the holder of a public key.
    ///
    /// # Errors
    /// It is not.
    pub fn verify(
        &self,
        statement: &Statement<'_>,
        public_key: &[u8; 32],
        proof: &[u8],
    ) -> Result<(), NotProven> {
        let key = mac_key(&self.private, public_key, &self.public, public_key)?;
        hmac::verify(&key, &statement.bytes(), proof).map_err(NotProven::from)
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenge(…)")
    }
}

impl From<Unspecified> for NotProven {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

/// Proves a statement to whoever drew a challenge.
///
/// # Errors
/// The challenge is no key that can be agreed with.
pub fn prove(
    private: &[u8; 32],
    challenge: &[u8],
    statement: &Statement<'_>,
) -> Result<Vec<u8>, NotProven> {
    let private = PrivateKey::from_private_key(&X25519, private).map_err(|_| NotProven)?;
    let public = private.compute_public_key()?;
    let key = mac_key(&private, challenge, challenge, public.as_ref())?;
    Ok(hmac::sign(&key, &statement.bytes()).as_ref().to_vec())
}

/// A shared secret of zeros, which needs no private key, is refused by the agreement itself.
fn mac_key(
    private: &PrivateKey,
    theirs: &[u8],
    challenge: &[u8],
    public_key: &[u8],
) -> Result<hmac::Key, NotProven> {
    let theirs = UnparsedPublicKey::new(&X25519, theirs);
    agree(private, theirs, NotProven, |shared| {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"overlay key proof 1").extract(shared);
        let info = [challenge, public_key];
        let key = secret.expand(&info, hmac::HMAC_SHA256)?;
        Ok(hmac::Key::from(key))
    })
}

impl Statement<'_> {
    /// Everything before the certificate key, which is last, has a fixed length.
    fn bytes(&self) -> Vec<u8> {
        let (purpose, node) = match self.purpose {
            Purpose::Join => (b"join ", [0; 16]),
            Purpose::Renew(node) => (b"renew", node.to_bytes()),
        };
        [purpose.as_slice(), &node, self.cluster, self.certificate_key].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: [u8; 16] = [9; 16];

    fn key_pair() -> ([u8; 32], [u8; 32]) {
        let mut private = [0; 32];
        aws_lc_rs::rand::fill(&mut private).unwrap();
        let key = PrivateKey::from_private_key(&X25519, &private).unwrap();
        (private, key.compute_public_key().unwrap().as_ref().try_into().unwrap())
    }

    fn statement(purpose: Purpose) -> Statement<'static> {
        Statement { purpose, cluster: &CLUSTER, certificate_key: &[4; 65] }
    }

    #[test]
    fn the_holder_of_the_key_proves_it_once_a_connection() {
        let (private, public) = key_pair();
        let (challenge, other) = (Challenge::draw().unwrap(), Challenge::draw().unwrap());
        let renew = statement(Purpose::Renew(NodeId::from_u128(7)));
        let proof = prove(&private, challenge.public(), &renew).unwrap();
        assert_eq!(challenge.verify(&renew, &public, &proof), Ok(()));
        assert_eq!(other.verify(&renew, &public, &proof), Err(NotProven), "said elsewhere");

        let (thief, _) = key_pair();
        let stolen = prove(&thief, challenge.public(), &renew).unwrap();
        assert_eq!(challenge.verify(&renew, &public, &stolen), Err(NotProven), "another key");
        for len in 0..proof.len() {
            assert_eq!(challenge.verify(&renew, &public, &proof[..len]), Err(NotProven), "{len}");
        }
    }

    #[test]
    fn a_proof_says_one_thing() {
        let (private, public) = key_pair();
        let challenge = Challenge::draw().unwrap();
        let renew = statement(Purpose::Renew(NodeId::from_u128(7)));
        let proof = prove(&private, challenge.public(), &renew).unwrap();
        let check = |what, other: Statement<'_>| {
            assert_eq!(challenge.verify(&other, &public, &proof), Err(NotProven), "{what}");
        };
        check("a join", statement(Purpose::Join));
        check("another node", statement(Purpose::Renew(NodeId::from_u128(8))));
        check("another cluster", Statement { cluster: &[8; 16], ..statement(renew.purpose) });
        let key = Statement { certificate_key: &[5; 65], ..statement(renew.purpose) };
        check("another certificate key", key);
    }

    #[test]
    fn keys_that_everybody_agrees_with_are_refused() {
        // Points of small order (RFC 7748, section 6.1): the shared secret is zero.
        let challenge = Challenge::draw().unwrap();
        let mut one = [0; 32];
        one[0] = 1;
        let (private, _) = key_pair();
        for point in [[0; 32], one] {
            let join = statement(Purpose::Join);
            assert_eq!(challenge.verify(&join, &point, &[0; 32]), Err(NotProven));
            assert_eq!(prove(&private, &point, &join), Err(NotProven));
        }
    }
}
