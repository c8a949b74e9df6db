//! The cluster's secrets as the state holds them: sealed under a key that is not in the state. What
//! is in them is no business of this machine.
//!
//! A node that is taken out knew keys, so another cluster secret is due. While nodes learn of the
//! keys that come of it, those of the secret before hold as well; there are never more than two.
//!
//! ```text
//! epoch 1 --RemoveNode--> epoch 1, due --RotateSecret--> epochs 2, 1 --DropOlderSecret--> epoch 2
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Applied, Event, FormerRoot, Outcome, Refusal, State};
use crate::types::Revision;

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
    /// The cluster secret before, while its keys hold as well.
    #[serde(default)]
    pub older: Option<OlderSecret>,
    /// How often the root was rotated.
    #[serde(default)]
    pub root_rotations: u32,
    /// The roots before, the newest first.
    #[serde(default)]
    pub former_roots: Vec<FormerRoot>,
}

/// The cluster secret before the newest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderSecret {
    /// Its epoch.
    pub epoch: u32,
    /// The secret, sealed.
    pub secret: Vec<u8>,
    /// The revision at which it came to be the older one.
    pub since: Revision,
}

impl State {
    /// Tells whether a node went since the cluster secret was drawn.
    pub fn is_secret_due(&self) -> bool {
        self.secret_due
    }

    /// Gives the cluster secret a successor, beside which it holds until it is dropped.
    pub(super) fn rotate_secret(&mut self, secret: Vec<u8>) -> Result<Applied, Refusal> {
        let since = self.revision;
        let secrets = &mut self.founded()?.secrets;
        if secrets.older.is_some() {
            return Err(Refusal::SecretRotating);
        }
        let older = std::mem::replace(&mut secrets.cluster_secret, secret);
        secrets.older = Some(OlderSecret { epoch: secrets.epoch, secret: older, since });
        secrets.epoch += 1;
        self.secret_due = false;
        Ok(Applied { outcome: Outcome::Done, events: vec![Event::SecretsChanged] })
    }

    /// Drops the secret of an epoch if it is still there.
    pub(super) fn drop_older_secret(&mut self, epoch: u32) -> Result<Applied, Refusal> {
        let secrets = &mut self.founded()?.secrets;
        let dropped = secrets.older.take_if(|older| older.epoch == epoch);
        let events = dropped.map(|_| Event::SecretsChanged).into_iter().collect();
        Ok(Applied { outcome: Outcome::Done, events })
    }
}

impl fmt::Debug for OlderSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OlderSecret(epoch {}, since {}, …)", self.epoch, self.since)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, older, root_rotations, .. } = self;
        write!(f, "Secrets(epoch {epoch}, older {older:?}, root rotations {root_rotations}, …)")
    }
}
