//! Long runs of several managers under clients whose calls are all taken down, and judged at the end.
//!
//! ```text
//!   load (writers, readers) -> node (overlayctl, each call timed) -> history -> check
//!   failover: round: decide together -> fault -> gap -> heal -> decide together ...
//!   roles:    cycle: promote -> demote -> leave -> join, after each all decide together
//! ```

mod check;
mod cluster;
mod failover;
mod fault;
mod figures;
mod history;
mod load;
mod node;
mod roles;
mod verdict;

pub use self::{failover::run as failover, fault::Fault, roles::run as roles};
