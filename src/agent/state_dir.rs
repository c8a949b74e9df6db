//! The node's folder on disk, held by one daemon at a time: a lock on a file in it, which ends with
//! the process however it ends.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, anyhow, bail};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::io::disk;

/// A state folder that this process holds.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Takes the folder, making it if need be.
    ///
    /// # Errors
    /// Another daemon holds it, or it cannot be written.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
            anyhow!("make state folder {shown}: {error}; run as root, or use another --state-dir")
        })?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| {
                let path = lock_path.display();
                anyhow!("open {path}: {error}; run as root, or use another --state-dir")
            })?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // What the holder wrote only makes the sentence better.
                let _ = lock.read_to_string(&mut holder);
                bail!(
                    "state folder {shown} is in use by overlayd, process {}; end that one, or give this one another --state-dir",
                    holder.trim()
                );
            }
            Err(error) => return Err(error).with_context(|| format!("lock {shown}")),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| write!(lock, "{}", process::id()))
            .map_err(|error| {
                let path = lock_path.display();
                anyhow!("write {path}: {error}; make room there, or use another --state-dir")
            })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file of the folder that only its owner may read, if it is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Makes a folder in it that only its owner may look into, if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.with_context(|| format!("make folder {}", path.display()))
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// It stays.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
        }
    }

    /// Writes a file that only its owner may read, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written; what was there before stays.
    pub fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.path.join(name);
        disk::replace(&path, bytes).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_naming_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let held = StateDir::open(&path).unwrap();
        let refused = StateDir::open(&path).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!(
                "state folder {} is in use by overlayd, process {}; end that one, or give this one another --state-dir",
                path.display(),
                process::id()
            )
        );
        drop(held);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn files_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        assert_eq!(state.read("key").unwrap(), None);
        state.write("key", b"one").unwrap();
        state.write("key", b"two").unwrap();
        assert_eq!(state.read("key").unwrap().as_deref(), Some(b"two".as_slice()));
        let mode = fs::metadata(state.path().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
