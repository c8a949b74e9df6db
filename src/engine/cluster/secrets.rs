//! The cluster's secrets as the state holds them: sealed under a key that is not in the state. What
//! is in them is no business of this machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The root certificate, and what only managers open.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// The root certificate (DER), which is no secret.
    pub root: Vec<u8>,
    /// The root's key, sealed.
    pub root_key: Vec<u8>,
    /// What standing tokens are derived from, sealed.
    pub token_key: Vec<u8>,
    /// What the keys of pairs of nodes are derived from, sealed.
    pub cluster_secret: Vec<u8>,
    /// Counts the cluster secrets that there were.
    pub epoch: u32,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets(epoch {}, …)", self.epoch)
    }
}
