//! The node's X25519 key: made here, kept here, never sent. Its public half is what peers know the
//! node by.

use std::fmt::{self, Write as _};

use anyhow::{Context as _, bail};
use aws_lc_rs::{
    agreement::{PrivateKey, X25519},
    rand,
};
use zeroize::Zeroizing;

use super::StateDir;

/// A node's key pair.
#[derive(Clone)]
pub struct Identity {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Identity {
    /// Reads the key of the state folder, or makes one there.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds no key.
    pub fn open(state: &StateDir) -> anyhow::Result<Self> {
        if let Some(bytes) = state.read(FILE)?.map(Zeroizing::new) {
            let Ok(private) = <[u8; 32]>::try_from(bytes.as_slice()) else {
                bail!(
                    "{} holds no key; restore it, or remove it to make this a new node",
                    state.path().join(FILE).display()
                );
            };
            return Self::of(Zeroizing::new(private));
        }
        let mut private = Zeroizing::new([0; 32]);
        rand::fill(private.as_mut_slice())
            .map_err(|_| anyhow::anyhow!("the random source of the system fails"))?;
        let made = Self::of(private)?;
        made.put(state)?;
        Ok(made)
    }

    /// Writes the key to a state folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, state: &StateDir) -> anyhow::Result<()> {
        state.write(FILE, self.private.as_slice())
    }

    fn of(private: Zeroizing<[u8; 32]>) -> anyhow::Result<Self> {
        let key = PrivateKey::from_private_key(&X25519, private.as_slice());
        let key = key.map_err(|_| anyhow::anyhow!("the key is refused"))?;
        let computed = key.compute_public_key().map_err(|_| anyhow::anyhow!("no public key"))?;
        let public = computed.as_ref().try_into().context("the public key has another length")?;
        Ok(Self { private, public })
    }

    /// Returns the private key, for the data plane.
    pub fn private(&self) -> &[u8; 32] {
        &self.private
    }

    /// Returns the public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }
}

impl fmt::Display for Identity {
    /// Writes the public key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.public.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        f.write_str(&text)
    }
}

/// The private key's file.
pub(super) const FILE: &str = "identity.key";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let made = Identity::open(&state).unwrap();
        let read = Identity::open(&state).unwrap();
        assert_eq!((made.private(), made.public()), (read.private(), read.public()));
        assert_ne!(made.private(), &[0; 32]);
    }

    #[test]
    fn a_cut_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        state.write(FILE, b"short").unwrap();
        let error = Identity::open(&state).err().unwrap().to_string();
        assert_eq!(
            error,
            format!(
                "{} holds no key; restore it, or remove it to make this a new node",
                folder.path().join("identity.key").display()
            )
        );
    }

    #[test]
    fn the_public_key_is_that_of_rfc_7748() {
        // Section 6.1, Alice's keys.
        let private = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2,
            0x66, 0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5,
            0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let identity = Identity::of(Zeroizing::new(private)).unwrap();
        assert_eq!(
            identity.to_string(),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }
}
