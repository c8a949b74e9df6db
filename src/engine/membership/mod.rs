//! The peer table of one node: what the manager lets it know, numbered by revision.

mod change;
mod table;

pub use change::Change;
pub use table::{Table, TableError};
