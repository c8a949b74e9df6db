//! Bytes to values and back. Nothing here panics on input, whatever it is: every length is checked
//! before it is used, and every parser has a fuzz target.

pub mod checksum;
pub mod control;
pub mod envelope;
pub mod fragment;
pub mod handshake;
pub mod icmp;
pub mod inner;
pub mod vnet;

#[cfg(test)]
pub(crate) mod tests;
