//! The peer table of one node: what the manager lets it know, numbered by revision.

mod table;

pub use table::Table;
