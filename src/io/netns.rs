//! Work inside another network namespace, on a thread of its own that ends with the work, so that
//! no other thread ever finds itself somewhere else.

use std::{
    fs::{self, File, Metadata},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::sys::enter_fresh_network_namespace;

/// An open network namespace. Holding it keeps the namespace alive.
pub struct Namespace {
    file: File,
    path: PathBuf,
}

/// Tells two namespaces apart while both live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// Reads what tells the namespace apart that a file stands for.
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Returns the filesystem; all namespaces are files of one that holds nothing else.
    pub fn device(self) -> u64 {
        self.device
    }
}

impl Namespace {
    /// Opens the namespace at `path`, a bind mount or an entry of `/proc/PID/ns`.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let open = || format!("open network namespace {}", path.display());
        let file = File::open(path).with_context(open)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Returns what tells it apart.
    pub fn id(&self) -> anyhow::Result<NamespaceId> {
        let meta = self.file.metadata().context("look at the network namespace")?;
        Ok(NamespaceId::of(&meta))
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` inside the namespace. The thread has a runtime of its own, because a netlink
    /// socket belongs to the namespace that it was opened in.
    pub fn run<T: Send>(
        &self,
        work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let enter = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("enter network namespace {}", self.path.display()))
        };
        on_own_thread(enter, work)
    }
}

/// Lets a device have IPv6 addresses in the calling thread's namespace. Docker forbids them to the
/// devices of a container whose own networks have none.
///
/// # Errors
/// They are forbidden, and stay so.
pub fn allow_ipv6(interface: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    // Where the file is not, there is no IPv6 at all; the address says so.
    if fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") {
        fs::write(&path, "0").with_context(|| format!("allow IPv6 by {path}"))?;
    }
    Ok(())
}

/// Runs `work` in a network namespace that is made for it, its loopback up. The namespace lives as
/// long as what `work` leaves open in it.
pub fn in_fresh<T: Send>(
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    on_own_thread(|| enter_fresh_network_namespace().context("make a network namespace"), work)
}

fn on_own_thread<T: Send>(
    enter: impl FnOnce() -> anyhow::Result<()> + Send,
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .context("start a runtime in the network namespace")?;
            runtime.block_on(work())
        });
        match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("the thread in another network namespace panicked"),
        }
    })
}
