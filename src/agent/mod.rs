//! The shell of a node: its life from a bare host to a member, the link to a manager, the local
//! API, and the data plane.
//!
//! ```text
//! overlayctl -> local -> node -> member -> link -> manager
//!                                  |         `-> table -> dataplane, records
//!                                  |-> attachments -> dataplane, records, docker
//!                                  `-> tasks -> executor, attachments
//! ```

mod address;
mod attachments;
pub mod certificate;
pub mod dataplane;
mod device;
mod docker;
mod end_watch;
mod forward;
mod identity;
pub mod join;
pub mod link;
mod local;
pub mod managers;
mod member;
mod namespace;
mod node;
mod own_manager;
mod records;
pub mod renewal;
mod selftest;
mod session_thread;
mod shared;
mod socket;
mod state_dir;
pub mod tasks;
mod worker;

pub use docker::Docker;
pub use identity::Identity;
pub use local::serve;
pub use namespace::Target;
pub use node::{Node, Options, StartManager, StopManager};
pub use records::Records;
pub use socket::Socket;
pub use state_dir::StateDir;
