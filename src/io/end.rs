//! The ends of others: of processes, and of names in folders.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Waits until a process has ended; one that is not there has.
pub async fn process_ends(pid: u32) -> io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(process) => sys::readable(process)?.readable().await.map(drop),
        Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Folders out of which names may go.
pub struct Folders(AsyncFd<OwnedFd>);

impl Folders {
    /// Watches none yet.
    ///
    /// # Errors
    /// The kernel gives no inotify instance.
    pub fn new() -> io::Result<Self> {
        Ok(Self(sys::readable(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)?))
    }

    /// Watches a folder too.
    ///
    /// # Errors
    /// It is not there, or there are too many.
    pub fn add(&self, folder: &Path) -> io::Result<()> {
        let what = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF;
        inotify::add_watch(self.0.get_ref(), folder, what)?;
        Ok(())
    }

    /// Waits until a name has gone out of one of them.
    ///
    /// # Errors
    /// The kernel tells nothing any more.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            // What happened is looked up; that something did is all that counts.
            let taken =
                ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut [0; EVENTS_BYTES])?));
            match taken {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

/// Some events with their names, of up to 255 bytes.
const EVENTS_BYTES: usize = 4096;
