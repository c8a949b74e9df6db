//! The file that `overlayctl backup` writes and `overlayd --restore` reads. It holds every key of a
//! cluster, so it is sealed under a passphrase, or guarded like one.
//!
//! ```text
//! overlay-backup 1 plain|sealed \n
//! plain:   SHA-256 of the rest (32)  | sections
//! sealed:  salt (16) | nonce (12)    | AES-256-GCM of the sections | tag (16)   first line as further data
//! section: length of the name (1) | name | length (8) | bytes
//! ```

use std::collections::BTreeMap;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest, pbkdf2, rand,
};
use zeroize::Zeroizing;

/// The parts of a backup by name.
pub type Sections = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// Names of sections that more than one program knows.
pub mod section {
    /// The cluster's state as JSON.
    pub const STATE: &str = "state.json";
    /// The key of the state's secrets.
    pub const MANAGER_KEY: &str = "manager.key";
}

/// Why a file is no backup that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is not a backup of a cluster")]
    Other,
    /// A newer program wrote it.
    #[error("it was written by a newer overlayctl; use the overlayd of that version")]
    Newer,
    /// Bytes are missing or bent.
    #[error("it is cut or bent; use another copy")]
    Damaged,
    /// It needs a passphrase.
    #[error("it is sealed; give its passphrase with --passphrase-file")]
    Sealed,
    /// The passphrase does not open it.
    #[error("the passphrase does not open it, or it is cut or bent")]
    WrongPassphrase,
    /// The system gives no random bytes.
    #[error("the random source of the system fails")]
    NoRandom,
}

/// Writes a backup, sealed if there is a passphrase.
///
/// # Errors
/// The random source fails.
pub fn write(sections: &Sections, passphrase: Option<&[u8]>) -> Result<Vec<u8>, BackupError> {
    let mut body = Zeroizing::new(Vec::new());
    for (name, bytes) in sections {
        body.push(name.len() as u8);
        body.extend(name.as_bytes());
        body.extend((bytes.len() as u64).to_be_bytes());
        body.extend(bytes.as_slice());
    }
    let Some(passphrase) = passphrase else {
        let digest = digest::digest(&digest::SHA256, &body);
        return Ok([PLAIN.as_bytes(), digest.as_ref(), &body].concat());
    };
    let (mut salt, mut nonce) = ([0; SALT_LEN], [0; NONCE_LEN]);
    rand::fill(&mut salt)
        .and_then(|()| rand::fill(&mut nonce))
        .map_err(|_| BackupError::NoRandom)?;
    let key = key(passphrase, &salt);
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce_used, Aad::from(SEALED), &mut body)
        .map_err(|_| BackupError::NoRandom)?;
    Ok([SEALED.as_bytes(), &salt, &nonce, &body, tag.as_ref()].concat())
}

/// Reads a backup.
///
/// # Errors
/// It is none, is damaged, or the passphrase is missing or wrong.
pub fn read(file: &[u8], passphrase: Option<&[u8]>) -> Result<Sections, BackupError> {
    let end = file.iter().take(64).position(|byte| *byte == b'\n').ok_or(BackupError::Other)?;
    let (line, rest) = file.split_at(end + 1);
    if line == PLAIN.as_bytes() {
        let (digest, body) = rest.split_at_checked(DIGEST_LEN).ok_or(BackupError::Damaged)?;
        if digest::digest(&digest::SHA256, body).as_ref() != digest {
            return Err(BackupError::Damaged);
        }
        return sections(body);
    }
    if line != SEALED.as_bytes() {
        let newer = line.starts_with(b"overlay-backup ");
        return Err(if newer { BackupError::Newer } else { BackupError::Other });
    }
    let passphrase = passphrase.ok_or(BackupError::Sealed)?;
    let (salt, rest) = rest.split_first_chunk::<SALT_LEN>().ok_or(BackupError::Damaged)?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(BackupError::Damaged)?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let body = key(passphrase, salt)
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(SEALED), &mut sealed)
        .map_err(|_| BackupError::WrongPassphrase)?;
    sections(body)
}

fn sections(mut body: &[u8]) -> Result<Sections, BackupError> {
    let mut sections = Sections::new();
    while let Some((name_len, rest)) = body.split_first() {
        let take = |bytes: &'_ [u8], len: usize| bytes.split_at_checked(len).is_some();
        if !take(rest, usize::from(*name_len)) {
            return Err(BackupError::Damaged);
        }
        let (name, rest) = rest.split_at(usize::from(*name_len));
        let name = std::str::from_utf8(name).map_err(|_| BackupError::Damaged)?;
        let (len, rest) = rest.split_first_chunk().ok_or(BackupError::Damaged)?;
        let len = usize::try_from(u64::from_be_bytes(*len)).map_err(|_| BackupError::Damaged)?;
        let (bytes, rest) = rest.split_at_checked(len).ok_or(BackupError::Damaged)?;
        sections.insert(name.to_owned(), Zeroizing::new(bytes.to_vec()));
        body = rest;
    }
    Ok(sections)
}

fn key(passphrase: &[u8], salt: &[u8; SALT_LEN]) -> LessSafeKey {
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, passphrase, key.as_mut_slice());
    let key = UnboundKey::new(&AES_256_GCM, key.as_slice());
    LessSafeKey::new(key.expect("the key has the cipher's length"))
}

const PLAIN: &str = "overlay-backup 1 plain\n";
const SEALED: &str = "overlay-backup 1 sealed\n";
const DIGEST_LEN: usize = 32;
const SALT_LEN: usize = 16;
/// What OWASP recommends for PBKDF2 with HMAC-SHA-256.
const ITERATIONS: std::num::NonZeroU32 = std::num::NonZeroU32::new(600_000).unwrap();

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Sections {
        let sections = [("a", vec![1, 2, 3]), ("empty", vec![]), ("state.json", vec![7; 1000])];
        sections.map(|(name, bytes)| (name.to_owned(), Zeroizing::new(bytes))).into()
    }

    #[test]
    fn a_backup_is_read_as_it_was_written() {
        let plain = write(&some(), None).unwrap();
        assert!(read(&plain, None).unwrap() == some());
        assert!(read(&plain, Some(b"x")).unwrap() == some(), "what is not sealed needs none");
        let sealed = write(&some(), Some(b"secret")).unwrap();
        assert!(read(&sealed, Some(b"secret")).unwrap() == some());
        assert!(!sealed.windows(100).any(|window| window == [7; 100]), "nothing in clear");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let check = |file: &[u8], passphrase: Option<&[u8]>, error| {
            assert_eq!(read(file, passphrase).err(), Some(error));
        };
        check(b"", None, BackupError::Other);
        check(b"something else\n", None, BackupError::Other);
        check(b"overlay-backup 2 plain\n", None, BackupError::Newer);
        let sealed = write(&some(), Some(b"secret")).unwrap();
        check(&sealed, None, BackupError::Sealed);
        check(&sealed, Some(b"other"), BackupError::WrongPassphrase);
        let plain = write(&some(), None).unwrap();
        for cut in PLAIN.len()..plain.len() {
            check(&plain[..cut], None, BackupError::Damaged);
        }
        for place in PLAIN.len()..plain.len() {
            let mut bent = plain.clone();
            bent[place] ^= 1;
            check(&bent, None, BackupError::Damaged);
        }
    }
}
