//! The shell of a node.

pub mod dataplane;
mod device;
mod session_thread;
mod shared;
mod worker;
