//! What Noise needs, from aws-lc-rs: X25519, AES-256-GCM, SHA-256. Randomness is the caller's, so
//! that a handshake is a function of its arguments.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    digest,
};
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::Zeroizing;

/// The Noise pattern and its primitives.
pub(super) const PATTERN: &str = "Noise_IKpsk2_25519_AESGCM_SHA256";

/// Computes the public half of an X25519 key; `None` only if the library refuses the key.
pub fn public_key(private: &[u8; 32]) -> Option<[u8; 32]> {
    let key = PrivateKey::from_private_key(&X25519, private).ok()?;
    key.compute_public_key().ok()?.as_ref().try_into().ok()
}

/// Resolves to the primitives of this file, with one handshake's randomness.
pub(super) struct Resolver {
    ephemeral: Zeroizing<[u8; 32]>,
}

impl Resolver {
    /// Takes the 32 bytes that become the handshake's ephemeral key.
    pub(super) fn new(ephemeral: [u8; 32]) -> Self {
        Self { ephemeral: Zeroizing::new(ephemeral) }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(Curve::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha::default()) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::new(Aes::default()) as Box<dyn Cipher>)
    }
}

/// Gives its bytes once: a pattern with one ephemeral key a side draws only once, and a second
/// draw of the same bytes would be a fault.
struct Once(Option<Zeroizing<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let bytes = self.0.take().ok_or(Error::Rng)?;
        if out.len() != bytes.len() {
            return Err(Error::Rng);
        }
        out.copy_from_slice(&bytes[..]);
        Ok(())
    }
}

#[derive(Default)]
struct Curve {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        // Any 32 bytes are an X25519 private key, so there always is a public half; zeros, which
        // every agreement refuses, if the library should ever disagree.
        self.public = public_key(&self.private).unwrap_or_default();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut private[..])?;
        self.set(&private[..]);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private[..]
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = public.get(..32).ok_or(Error::Dh)?;
        let key =
            PrivateKey::from_private_key(&X25519, &self.private[..]).map_err(|_| Error::Dh)?;
        agree(&key, UnparsedPublicKey::new(&X25519, public), Error::Dh, |shared| {
            out.get_mut(..shared.len()).ok_or(Error::Dh)?.copy_from_slice(shared);
            Ok(())
        })
    }
}

#[derive(Default)]
struct Aes(Option<LessSafeKey>);

/// Noise's AESGCM nonce: 32 zero bits, then the counter in big endian.
fn noise_nonce(counter: u64) -> Nonce {
    let c = counter.to_be_bytes();
    Nonce::assume_unique_for_key([0, 0, 0, 0, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]])
}

impl Cipher for Aes {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new);
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (body, rest) = out.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        // snow sets a key before it encrypts, and lengths here are those of one handshake message.
        let sealed = self.0.as_ref().and_then(|key| {
            key.seal_in_place_separate_tag(noise_nonce(nonce), Aad::from(authtext), body).ok()
        });
        match sealed {
            Some(tag) => rest[..16].copy_from_slice(tag.as_ref()),
            // Never let a plaintext stand where a ciphertext should.
            None => {
                body.fill(0);
                rest[..16].fill(0);
            }
        }
        plaintext.len() + 16
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let len = ciphertext.len().checked_sub(16).ok_or(Error::Decrypt)?;
        let (body, tag) = ciphertext.split_at(len);
        let out = out.get_mut(..len).ok_or(Error::Decrypt)?;
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        key.open_separate_gather(noise_nonce(nonce), Aad::from(authtext), body, tag, out)
            .map_err(|_| Error::Decrypt)?;
        Ok(len)
    }
}

struct Sha(digest::Context);

impl Default for Sha {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hash for Sha {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(self.0.clone().finish().as_ref());
    }
}
