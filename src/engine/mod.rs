//! Decisions. Nothing here waits, reads a clock, draws randomness or touches the outside: bytes,
//! events, seeds and `now` come in, values go out.

pub mod cluster;
pub mod datapath;
pub mod membership;
pub mod session;
