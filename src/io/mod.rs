//! Kernel handles in safe form: what a node needs of Linux, with the cause kept and the action named
//! in every error.

pub mod clock;
pub mod disk;
pub mod end;
pub mod machine;
pub mod netlink;
pub mod netns;
pub mod service;
pub mod tun;
pub mod udp;
