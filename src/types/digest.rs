//! Digests by which manager and agent find out that they hold the same, without sending it: the sum
//! of a hash of every object of a scope. A sum is kept up to date by adding and taking away what
//! changes, whatever the size of the scope. They find mistakes, not forgers: both ends are
//! authenticated.

use serde::{Deserialize, Serialize};

use super::NetworkId;

/// A part of a table with a digest of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScopeId {
    /// One network and its endpoints.
    Network(NetworkId),
    /// All peers.
    Peers,
    /// The tasks that the node is given.
    Tasks,
}

/// The sum of a scope's hashes, modulo 2^128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest(u128);

impl Digest {
    /// Adds an object.
    pub fn add(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// Takes an object away.
    pub fn remove(&mut self, other: Self) {
        self.0 = self.0.wrapping_sub(other.0);
    }

    /// Returns the digest as it stands in messages: big endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads a digest from a message.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl FromIterator<Digest> for Digest {
    fn from_iter<I: IntoIterator<Item = Self>>(parts: I) -> Self {
        let mut sum = Self::default();
        parts.into_iter().for_each(|part| sum.add(part));
        sum
    }
}
