//! System calls that no crate offers safely; the only place of `unsafe`.
#![allow(unsafe_code)]

mod fresh_netns;

pub use fresh_netns::enter_fresh_network_namespace;
