//! The peer table of one node: what the manager lets it know, numbered by revision.

mod change;
pub mod digest;
mod replica;
mod table;

pub use change::Change;
pub use replica::{Replica, Snapshot};
pub use table::{Table, TableError};
