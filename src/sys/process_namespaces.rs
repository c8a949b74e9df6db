//! Namespaces of their own for a task's processes.

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::enter_fresh_network_namespace;

/// Moves the calling thread into fresh namespaces of network, mounts, host name and System V objects;
/// what it starts next is the first process of a fresh process namespace. The process's other threads
/// stay where they are.
///
/// # Errors
/// The caller may not make namespaces, or the loopback does not come up.
pub fn enter_task_namespaces() -> io::Result<()> {
    let flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWPID;
    // SAFETY: of the flags only those that stop sharing descriptors or memory endanger other
    // threads; none of these does.
    unsafe { unshare_unsafe(flags) }?;
    enter_fresh_network_namespace()
}

/// Kills every process of the caller's process namespace but itself, if it is the first of it; otherwise
/// nothing.
pub fn kill_namespace() {
    if std::process::id() == 1 {
        // SAFETY: kill(2) takes any numbers.
        unsafe { libc::kill(-1, libc::SIGKILL) };
    }
}
