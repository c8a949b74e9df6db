//! The node's unix socket: for its owner and the group `overlay`, and nobody's for a moment in
//! between; a dead daemon's socket is replaced, a live one's never.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt as _, PermissionsExt as _, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process,
};

use anyhow::{anyhow, bail};
use tokio::net::UnixListener;

/// A bound socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Where connections come in.
    pub listener: UnixListener,
}

impl Socket {
    /// Binds the socket.
    ///
    /// # Errors
    /// A live daemon serves it, or the path cannot be written.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let advice = "run as root, or choose another with --socket";
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(|error| anyhow!("make {}: {error}; {advice}", folder.display()))?;
        }
        match UnixStream::connect(path) {
            Ok(_) => bail!(
                "a running overlayd serves {shown}; end that one, or give this one another --socket"
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Nobody listens behind the file.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let is_socket = fs::symlink_metadata(path).map(|file| {
                    use std::os::unix::fs::FileTypeExt as _;
                    file.file_type().is_socket()
                });
                if !is_socket.unwrap_or(false) {
                    bail!("{shown} is not a socket; remove it, or choose another with --socket");
                }
            }
            Err(error) => bail!("open {shown}: {error}; {advice}"),
        }
        // Made beside and moved into place when its permissions are right.
        let new = path.with_file_name(format!(".overlayd-{}.sock", process::id()));
        match bind_at(&new, path) {
            Ok(listener) => Ok(Self { path: path.to_owned(), listener }),
            Err(error) => {
                let _ = fs::remove_file(&new);
                bail!("make {shown}: {error}; {advice}")
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever removed it first wanted the same.
        let _ = fs::remove_file(&self.path);
    }
}

fn bind_at(new: &Path, path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(new)?;
    fs::set_permissions(new, fs::Permissions::from_mode(0o660))?;
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    if let Some(group) = group_id(&groups, "overlay") {
        chown(new, None, Some(group))?;
    }
    fs::rename(new, path)?;
    Ok(listener)
}

/// Finds a group in the text of /etc/group.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    let mut rows = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    rows.find_map(|row| match row[..] {
        [group, _, id, ..] if group == name => id.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overlayd.sock");
        // A listener that ends without removing its file, as a killed daemon does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let refused = Socket::bind(&path).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!(
                "a running overlayd serves {}; end that one, or give this one another --socket",
                path.display()
            )
        );
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[tokio::test]
    async fn another_file_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        fs::write(&path, "mine").unwrap();
        let refused = Socket::bind(&path).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!(
                "{} is not a socket; remove it, or choose another with --socket",
                path.display()
            )
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn the_group_is_found_by_name() {
        let groups = "root:x:0:\noverlay:x:998:alice\noverlayed:x:5:\n";
        assert_eq!(group_id(groups, "overlay"), Some(998));
        assert_eq!(group_id(groups, "docker"), None);
    }
}
