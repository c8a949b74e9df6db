//! Kernel handles in safe form.

pub mod netlink;
