//! System calls that no crate offers safely; the only place of `unsafe`. What leaves this folder is
//! safe to misuse: the worst that a wrong argument gives is an error of the kernel.
#![allow(unsafe_code)]

mod async_fd;
mod fresh_netns;
mod process_namespaces;
pub mod tun;
pub mod udp;

pub use async_fd::readable;
pub use fresh_netns::enter_fresh_network_namespace;
pub use process_namespaces::{enter_task_namespaces, kill_namespace};
