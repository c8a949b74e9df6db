//! What processes agree on: the messages and services of the `.proto` files, their conversion from
//! and to our own types, the join token, and how a channel to a manager or a node is opened.
//!
//! | who | to whom | service |
//! |---|---|---|
//! | a host that joins | manager, by a token | `Membership` |
//! | a node whose certificate ends | manager, by its registered key | `Membership` |
//! | an agent | manager, by its certificate | `Attachment`, `Dispatch`, `Control` |
//! | an operator | node, by its unix socket | `Local`, and `Control`, which the node forwards |

pub mod backup;
pub mod channel;
mod convert;
mod founding;
pub mod proof;
mod scope;
pub mod tls;
mod token;
mod validity;

pub use convert::{Malformed, parse_id, parse_list, parse_text};
pub use founding::{Ending, Founded, Founding, Joining, Opened, Reopened, Reopening};
pub use scope::{read_scope_digests, read_scopes, scope_digests, scopes};
pub use token::{JoinToken, TokenError};
pub use validity::{BACKDATED, Validity};

/// The generated messages, clients and servers.
#[allow(missing_docs, clippy::all, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("overlay.v1");

    impl std::fmt::Debug for Psk {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Psk(epoch {}, …)", self.epoch)
        }
    }

    impl std::fmt::Debug for ManagerGift {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "ManagerGift({} managers, …)", self.managers.len())
        }
    }
}

/// The largest message that either side takes, in bytes. Snapshots are sent in parts well below it.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The largest answer that an operator's command takes of the managers, in bytes: lists of a whole cluster
/// are larger than one message between nodes.
pub const MAX_ANSWER_BYTES: usize = 64 * MAX_MESSAGE_BYTES;

/// How long certificates of nodes are valid unless `init` says otherwise.
pub const CERTIFICATE_LIFE: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// How long `init` may have them valid. Below a minute renewing would be all that nodes do, and
/// above 90 days nobody would notice that they do not.
pub const CERTIFICATE_LIVES: std::ops::RangeInclusive<std::time::Duration> =
    std::time::Duration::from_secs(60)..=std::time::Duration::from_secs(90 * 24 * 3600);

/// The port that managers listen on unless told otherwise.
pub const DEFAULT_PORT: u16 = 2377;

/// How often each side of the stream between agent and manager says something, unless `init` says
/// otherwise or the nodes are too many for it.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(1);

/// How often `init` may have it. Below this a node is taken for dead because it was busy, and above
/// it nobody would wait for a node's tasks to move.
pub const HEARTBEATS: std::ops::RangeInclusive<std::time::Duration> =
    std::time::Duration::from_millis(500)..=std::time::Duration::from_secs(60);

/// In a refusal, as metadata: where the manager is that does it.
pub const LEADER: &str = "overlay-leader";

/// With a call that reads, as metadata: what the manager has will do, even if it is cut off.
pub const STALE: &str = "overlay-stale";

/// How long either side waits for what opens a stream: longer than a manager takes to which all its
/// nodes come back at once, each of which wants its table.
pub const OPENS_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// After how long a silence either side takes the stream as closed: three heartbeats, so that one
/// lost to a busy machine costs nothing.
pub fn silence(heartbeat: std::time::Duration) -> std::time::Duration {
    heartbeat * 3
}
