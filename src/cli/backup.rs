//! `overlayctl backup`.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::show,
};
use crate::api::{
    backup::{self, Sections},
    proto::BackupNodeRequest,
};

/// `overlayctl backup`.
#[derive(Args, Debug)]
pub struct Backup {
    /// The file to write; it must not be there yet
    file: PathBuf,
    /// Seal it with the passphrase in this file, without its last line end
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Backup {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let what = format!("back up to {}", self.file.display());
        let failed = |why: String| Failure::new(what.clone(), why);
        if self.file.exists() {
            return Err(failed("the file is there already; name another".to_owned()));
        }
        let passphrase = match &self.passphrase_file {
            Some(path) => Some(read_passphrase(path).map_err(failed)?),
            None => None,
        };
        let mut parts =
            answer(&what, client.local().await?.backup_node(BackupNodeRequest {})).await?;
        let mut sections = Sections::new();
        while let Some(part) =
            parts.message().await.map_err(|status| failed(status.message().to_owned()))?
        {
            sections.entry(part.section).or_default().extend(part.bytes);
        }
        let passphrase = passphrase.as_ref().map(|passphrase| passphrase.as_slice());
        let bytes =
            backup::write(&sections, passphrase).map_err(|error| failed(error.to_string()))?;
        write(&self.file, &bytes).map_err(|error| failed(format!("{error}; make room there")))?;
        let view = View {
            file: self.file.display().to_string(),
            bytes: bytes.len(),
            sealed: passphrase.is_some(),
        };
        show(format, &view, || view.text())
    }
}

/// Reads a passphrase.
fn read_passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let bytes = fs::read(path).map(Zeroizing::new);
    let mut bytes = bytes
        .map_err(|error| format!("read {}: {error}; name one that can be read", path.display()))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    match bytes.is_empty() {
        true => Err(format!("{} is empty; put a passphrase there", path.display())),
        false => Ok(bytes),
    }
}

/// Writes the file whole or not at all, for its owner only.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a backup is none.
        let _ = fs::remove_file(path);
    }
    written
}

#[derive(Debug, Serialize)]
struct View {
    file: String,
    bytes: usize,
    sealed: bool,
}

impl View {
    fn text(&self) -> String {
        let guard = match self.sealed {
            true => "It is sealed: without its passphrase it is of no use.",
            false => "It is NOT sealed and holds every key of the cluster: guard it like one.",
        };
        format!(
            "Backup written to {} ({} bytes).\n{guard}\n\n\
             To restore it, on a host with this node's addresses:\n\n    \
             overlayd --restore {}\n\n",
            self.file, self.bytes, self.file
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::golden;

    #[test]
    fn backup_keeps_its_json() {
        golden("backup", &View { file: "/root/b".into(), bytes: 4096, sealed: true });
    }

    #[test]
    fn a_passphrase_is_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        fs::write(&path, "secret\n").unwrap();
        assert_eq!(read_passphrase(&path).unwrap().as_slice(), b"secret");
        fs::write(&path, "\n").unwrap();
        let sentence = format!("{} is empty; put a passphrase there", path.display());
        assert_eq!(read_passphrase(&path), Err(sentence));
    }
}
