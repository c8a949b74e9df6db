//! The key under which the cluster's secrets are sealed in the state. It lives beside the log on
//! every manager, and nowhere else: a log without it gives nothing away.
//!
//! ```text
//!  0        12                       n-16      n
//! +--------+--- - - - - - - - - - - -+---------+
//! | nonce  | AES-256-GCM ciphertext  | tag     |   with cluster id and purpose as further data
//! +--------+--- - - - - - - - - - - -+---------+
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::random;

/// The key of one cluster, opened from its file.
pub struct ManagerKey {
    path: PathBuf,
    key: Zeroizing<[u8; 32]>,
}

impl ManagerKey {
    /// Draws a new key into the manager's folder.
    ///
    /// # Errors
    /// There is one already, or the folder cannot be written.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        Self::place(folder, Zeroizing::new(random::bytes()?))
    }

    /// Puts the key of a backup into the manager's folder.
    ///
    /// # Errors
    /// It is none, there is one already, or the folder cannot be written.
    pub fn restore(folder: &Path, key: &[u8]) -> anyhow::Result<Self> {
        let key = <[u8; 32]>::try_from(key).context("the manager's key has another length")?;
        Self::place(folder, Zeroizing::new(key))
    }

    fn place(folder: &Path, key: Zeroizing<[u8; 32]>) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(key.as_slice())?;
            file.sync_all()?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => anyhow!(
                "{} is there already, of a cluster whose log is gone; move it away to make a new cluster",
                path.display()
            ),
            _ => anyhow!("write {}: {error}; make room there", path.display()),
        })?;
        Ok(Self { path, key })
    }

    /// Reads the key from the manager's folder.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is not there, and nothing else opens the cluster's secrets; put it back, or restore a backup with overlayd --restore",
                path.display()
            ),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice()) else {
            bail!(
                "{} holds no key; put the right one back, or restore a backup with overlayd --restore",
                path.display()
            );
        };
        Ok(Self { path, key: Zeroizing::new(key) })
    }

    /// Returns the key, for a backup.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// Seals a secret of a cluster.
    ///
    /// # Errors
    /// The random source fails.
    pub fn seal(
        &self,
        cluster: &[u8; 16],
        purpose: Purpose,
        secret: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        // Drawn at random: a key seals a handful of secrets in its life.
        let nonce: [u8; NONCE_LEN] = random::bytes()?;
        let mut sealed = Zeroizing::new(secret.to_vec());
        let tag = self
            .cipher()?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(further_data(cluster, purpose)),
                &mut sealed,
            )
            .map_err(|_| anyhow!("sealing a secret fails"))?;
        Ok([nonce.as_slice(), &sealed, tag.as_ref()].concat())
    }

    /// Opens a secret of a cluster.
    ///
    /// # Errors
    /// It was not sealed with this key, for this cluster and purpose.
    pub fn unseal(
        &self,
        cluster: &[u8; 16],
        purpose: Purpose,
        sealed: &[u8],
    ) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        let wrong = || {
            anyhow!(
                "{} does not open the cluster's secrets, so it is another cluster's; put the right one back, or restore a backup with overlayd --restore",
                self.path.display()
            )
        };
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut secret = Zeroizing::new(rest.to_vec());
        let opened = self.cipher()?.open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(further_data(cluster, purpose)),
            &mut secret,
        );
        let len = opened.map_err(|_| wrong())?.len();
        secret.truncate(len);
        Ok(secret)
    }

    fn cipher(&self) -> anyhow::Result<LessSafeKey> {
        let key = UnboundKey::new(&AES_256_GCM, self.key.as_slice());
        key.map(LessSafeKey::new).map_err(|_| anyhow!("the manager's key is refused"))
    }
}

/// What a sealed secret is, so that none is opened in the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The key of the root certificate.
    RootKey,
    /// What standing tokens are derived from.
    TokenKey,
    /// What the keys of pairs of nodes are derived from.
    ClusterSecret,
}

fn further_data(cluster: &[u8; 16], purpose: Purpose) -> Vec<u8> {
    let purpose = match purpose {
        Purpose::RootKey => "root key",
        Purpose::TokenKey => "token key",
        Purpose::ClusterSecret => "cluster secret",
    };
    [b"overlay sealed 1".as_slice(), cluster, purpose.as_bytes()].concat()
}

const FILE: &str = "manager.key";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const CLUSTER: [u8; 16] = [9; 16];

    fn sentence(error: anyhow::Error, folder: &Path) -> String {
        error.to_string().replace(&folder.display().to_string(), "F")
    }

    #[test]
    fn a_secret_is_opened_by_its_key_for_its_purpose_only() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = ManagerKey::create(folder.path()).unwrap();
        let sealed = key.seal(&CLUSTER, Purpose::TokenKey, b"secret").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_ne!(key.seal(&CLUSTER, Purpose::TokenKey, b"secret").unwrap(), sealed);

        let again = ManagerKey::open(folder.path()).unwrap();
        let open = |key: &ManagerKey, cluster, purpose, sealed: &[u8]| {
            key.unseal(cluster, purpose, sealed).map(|secret| secret.to_vec())
        };
        assert_eq!(open(&again, &CLUSTER, Purpose::TokenKey, &sealed).unwrap(), b"secret");
        let wrong = "F/manager.key does not open the cluster's secrets, so it is another cluster's; put the right one back, or restore a backup with overlayd --restore";
        let error = open(&key, &CLUSTER, Purpose::RootKey, &sealed).unwrap_err();
        assert_eq!(sentence(error, folder.path()), wrong);
        let error = open(&key, &[8; 16], Purpose::TokenKey, &sealed).unwrap_err();
        assert_eq!(sentence(error, folder.path()), wrong);
        let stranger = ManagerKey::create(other.path()).unwrap();
        let error = open(&stranger, &CLUSTER, Purpose::TokenKey, &sealed).unwrap_err();
        assert_eq!(sentence(error, other.path()), wrong);
        for len in 0..sealed.len() {
            assert!(open(&key, &CLUSTER, Purpose::TokenKey, &sealed[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_missing_a_cut_and_a_second_key_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = ManagerKey::open(folder.path()).err().unwrap();
        assert_eq!(
            sentence(error, folder.path()),
            "F/manager.key is not there, and nothing else opens the cluster's secrets; put it back, or restore a backup with overlayd --restore"
        );
        ManagerKey::create(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = ManagerKey::create(folder.path()).err().unwrap();
        assert_eq!(
            sentence(error, folder.path()),
            "F/manager.key is there already, of a cluster whose log is gone; move it away to make a new cluster"
        );
        fs::write(&path, b"short").unwrap();
        let error = ManagerKey::open(folder.path()).err().unwrap();
        assert_eq!(
            sentence(error, folder.path()),
            "F/manager.key holds no key; put the right one back, or restore a backup with overlayd --restore"
        );
    }
}
