//! Sealed sessions between two nodes.
//!
//! | file | what |
//! |---|---|
//! | `primitives` | what Noise needs, from the one crypto library, with the caller's randomness |
//! | `handshake` | the Noise steps of both sides, as values |
//! | `mac` | mac1, cookies: what is checked before any expensive step |
//! | `keys` | a session's keys: sealing with counters, opening with replay windows |
//! | `replay` | one window |
//! | `link` | what workers share with the session thread about one peer |
//! | `peer` | one peer's state machine: when to shake hands, renew, give up |
//! | `sessions` | all peers: the machine that the session thread drives |

mod handshake;
mod keys;
mod limiter;
mod link;
mod mac;
mod peer;
mod primitives;
mod replay;
mod sessions;

pub use keys::{Cipher, OpenError, REJECT_AFTER, ReceiveKey, SealError, SendKey};
pub use link::{Directory, Link, LinkCounters, LinkStatus};
pub use primitives::public_key;
pub use replay::{Replay, Window};
pub use sessions::{Output, Random, Sessions, Settings};

/// The key pair of a node's sessions: X25519, made on the node and never sent.
pub struct Identity {
    /// The private half.
    pub private: zeroize::Zeroizing<[u8; 32]>,
    /// The public half, known to peers by the table.
    pub public: [u8; 32],
}
