//! Who is believed: the cluster's root, the certificates that it signs, the standing join tokens,
//! and the keys of pairs of nodes. The secrets behind them leave this file's type sealed only.
//!
//! ```text
//! token key      --HKDF(role, generation)------------> secret of a standing token
//! cluster secret --HKDF(cluster id, lower, higher)---> psk of a pair, one an epoch
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aws_lc_rs::{constant_time, hkdf, signature};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
    SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::{
    manager_key::{ManagerKey, Purpose},
    random,
};
use crate::{
    api::{
        BACKDATED, JoinToken,
        tls::{MANAGER_NAME, join_statement, node_name, root_digest},
    },
    engine::cluster::Secrets,
    types::{NodeId, Psk, Role},
};

/// The cluster's secrets, opened.
pub struct Trust {
    cluster: [u8; 16],
    root: CertificateDer<'static>,
    epoch: u32,
    issuer: Issuer<'static, KeyPair>,
    token_key: Zeroizing<[u8; 32]>,
    cluster_secret: Zeroizing<[u8; 32]>,
}

impl Trust {
    /// Makes the secrets of a new cluster.
    ///
    /// # Errors
    /// The random source or the making of the root fails.
    pub fn new(cluster: [u8; 16]) -> anyhow::Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make the root's key")?;
        let params = root_params()?;
        let root = params.self_signed(&key).context("sign the root certificate")?;
        Ok(Self {
            cluster,
            root: root.der().clone(),
            epoch: FIRST_EPOCH,
            issuer: Issuer::new(params, key),
            token_key: Zeroizing::new(random::bytes()?),
            cluster_secret: Zeroizing::new(random::bytes()?),
        })
    }

    /// Opens the secrets of a cluster.
    ///
    /// # Errors
    /// They are not sealed with that key.
    pub fn open(cluster: [u8; 16], secrets: &Secrets, key: &ManagerKey) -> anyhow::Result<Self> {
        let root_key = key.unseal(&cluster, Purpose::RootKey, &secrets.root_key)?;
        let root_key = PrivatePkcs8KeyDer::from(root_key.as_slice());
        let root_key = KeyPair::from_pkcs8_der_and_sign_algo(&root_key, &PKCS_ECDSA_P256_SHA256)
            .context("read the root's key")?;
        let fixed = |purpose, sealed: &[u8]| {
            let secret = key.unseal(&cluster, purpose, sealed)?;
            let secret = <[u8; 32]>::try_from(secret.as_slice());
            secret.map(Zeroizing::new).context("a secret has another length")
        };
        Ok(Self {
            cluster,
            root: CertificateDer::from(secrets.root.clone()),
            epoch: secrets.epoch,
            // A signature names the root by its name and key, which are the same as ever.
            issuer: Issuer::new(root_params()?, root_key),
            token_key: fixed(Purpose::TokenKey, &secrets.token_key)?,
            cluster_secret: fixed(Purpose::ClusterSecret, &secrets.cluster_secret)?,
        })
    }

    /// Seals the secrets for the state.
    ///
    /// # Errors
    /// The random source fails.
    pub fn sealed(&self, key: &ManagerKey) -> anyhow::Result<Secrets> {
        let seal = |purpose, secret: &[u8]| key.seal(&self.cluster, purpose, secret);
        let root_key = Zeroizing::new(self.issuer.key().serialize_der());
        Ok(Secrets {
            root: self.root.to_vec(),
            root_key: seal(Purpose::RootKey, &root_key)?,
            token_key: seal(Purpose::TokenKey, self.token_key.as_slice())?,
            cluster_secret: seal(Purpose::ClusterSecret, self.cluster_secret.as_slice())?,
            epoch: self.epoch,
        })
    }

    /// Returns the root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Signs a certificate for a node's key, valid for so long. A manager's carries the managers' name
    /// as well.
    ///
    /// # Errors
    /// The key is none that can be certified.
    pub fn issue(
        &self,
        node: NodeId,
        role: Role,
        key: CertificateKey,
        life: Duration,
    ) -> anyhow::Result<CertificateDer<'static>> {
        let mut params = params(&node.to_string(), life)?;
        let mut names = vec![node_name(node)];
        let mut usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        match role {
            Role::Manager => {
                names.push(MANAGER_NAME.to_owned());
                usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            }
            Role::Worker => {}
        }
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.extended_key_usages = usages;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        Ok(certificate.der().clone())
    }

    /// Returns the standing token of a role: the first, or that after so many rotations.
    pub fn token(&self, role: Role, generation: u64) -> JoinToken {
        let role = match role {
            Role::Manager => b"manager".as_slice(),
            Role::Worker => b"worker".as_slice(),
        };
        let generation = generation.to_be_bytes();
        let info = [b"overlay join token 1".as_slice(), role, &generation];
        let secret = derive(&self.token_key, &info);
        JoinToken { digest: root_digest(&self.root), secret: Zeroizing::new(secret) }
    }

    /// Returns whose standing token has this secret, and its generation, which is `newest` of the
    /// role or one of a few before. All are compared in constant time.
    pub fn standing(&self, secret: &[u8; 16], newest: impl Fn(Role) -> u64) -> Option<(Role, u64)> {
        let mut found = None;
        for role in [Role::Worker, Role::Manager] {
            let newest = newest(role);
            for generation in newest.saturating_sub(REMEMBERED).max(1)..=newest {
                let standing = self.token(role, generation).secret;
                if constant_time::verify_slices_are_equal(standing.as_slice(), secret).is_ok() {
                    found = Some((role, generation));
                }
            }
        }
        found
    }

    /// Returns keys of nobody in the epochs of every pair's, the newest first.
    pub fn epoch_keys(&self) -> Vec<Psk> {
        vec![Psk { epoch: self.epoch, key: [0; 32] }]
    }

    /// Returns the keys of a pair of nodes, the newest epoch first.
    pub fn pair_keys(&self, a: NodeId, b: NodeId) -> Vec<Psk> {
        let (lower, higher) = (a.min(b).to_bytes(), a.max(b).to_bytes());
        let info = [b"overlay pair 1".as_slice(), &self.cluster, &lower, &higher];
        vec![Psk { epoch: self.epoch, key: derive(&self.cluster_secret, &info) }]
    }
}

/// The public key of a node's certificate: an uncompressed P-256 point.
pub struct CertificateKey(Vec<u8>);

impl CertificateKey {
    /// Takes the public half of a key of this process.
    pub fn of(key: &KeyPair) -> Self {
        Self(key.public_key_raw().to_vec())
    }

    /// Takes a key whose holder signed the statement that binds it to the session key.
    ///
    /// # Errors
    /// It is no key of that kind, or the signature is not its holder's.
    pub fn proven(point: Vec<u8>, public_key: &[u8], proof: &[u8]) -> anyhow::Result<Self> {
        let statement = join_statement(public_key, &point);
        let key = signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, &point);
        key.verify(&statement, proof)
            .map_err(|_| anyhow::anyhow!("the certificate key is not proven to be the joiner's"))?;
        Ok(Self(point))
    }
}

impl PublicKeyData for CertificateKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn root_params() -> anyhow::Result<CertificateParams> {
    let mut params = params("overlay root", ROOT_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// What all our certificates have in common. They are valid from an hour ago, so that a joiner
/// whose clock is behind can use its own.
fn params(common_name: &str, life: Duration) -> anyhow::Result<CertificateParams> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let mut serial = random::bytes::<16>()?;
    // A serial number is positive (RFC 5280, section 4.1.2.2).
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + (now + life);
    Ok(params)
}

/// Derives `N` bytes from a secret.
fn derive<const N: usize>(secret: &[u8; 32], info: &[&[u8]]) -> [u8; N] {
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"overlay").extract(secret);
    let mut bytes = [0; N];
    key.expand(info, Length(N))
        .and_then(|material| material.fill(&mut bytes))
        .expect("HKDF-SHA256 gives up to 8160 bytes, and we ask for 32 at most");
    bytes
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);
/// As long as Swarm's: a root is changed by rotation, not by its end.
const ROOT_LIFE: Duration = DAY.saturating_mul(20 * 365);
/// Older tokens than these are no more than wrong: telling them apart is a kindness.
const REMEMBERED: u64 = 16;
/// Of the cluster secret.
const FIRST_EPOCH: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_roles_generations_and_clusters_apart() {
        let (one, other) = (Trust::new([1; 16]).unwrap(), Trust::new([1; 16]).unwrap());
        let (worker, manager) = (one.token(Role::Worker, 1), one.token(Role::Manager, 1));
        assert_eq!(one.token(Role::Worker, 1), worker, "a standing token stays");
        let first = |_| 1;
        assert_eq!(one.standing(&worker.secret, first), Some((Role::Worker, 1)));
        assert_eq!(one.standing(&manager.secret, first), Some((Role::Manager, 1)));
        assert_eq!(other.standing(&worker.secret, first), None);
        assert_eq!(one.standing(&[0; 16], first), None);
        assert_ne!(worker.digest, other.token(Role::Worker, 1).digest);

        let second = one.token(Role::Worker, 2).secret;
        assert_ne!(second, worker.secret);
        assert_eq!(one.standing(&second, first), None, "it is not yet");
        assert_eq!(one.standing(&worker.secret, |_| 17), Some((Role::Worker, 1)));
        assert_eq!(one.standing(&worker.secret, |_| 18), None, "it is forgotten");
    }

    #[test]
    fn both_nodes_of_a_pair_get_the_same_key_and_no_other_pair_does() {
        let trust = Trust::new([1; 16]).unwrap();
        let [a, b, c] = [1, 2, 3].map(NodeId::from_u128);
        assert!(trust.pair_keys(a, b) == trust.pair_keys(b, a));
        assert!(trust.pair_keys(a, b) != trust.pair_keys(a, c));
        assert!(trust.pair_keys(a, b) != Trust::new([1; 16]).unwrap().pair_keys(a, b));
    }

    #[test]
    fn secrets_that_were_sealed_are_opened_by_the_managers_key_only() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = ManagerKey::create(folder.path()).unwrap();
        let trust = Trust::new([1; 16]).unwrap();
        let secrets = trust.sealed(&key).unwrap();
        let again = Trust::open([1; 16], &secrets, &key).unwrap();
        let [a, b] = [1, 2].map(NodeId::from_u128);
        assert_eq!(again.root(), trust.root());
        assert_eq!(again.token(Role::Worker, 3), trust.token(Role::Worker, 3));
        assert!(again.pair_keys(a, b) == trust.pair_keys(a, b));
        assert!(Trust::open([2; 16], &secrets, &key).is_err(), "of another cluster");
        let other = ManagerKey::create(other.path()).unwrap();
        assert!(Trust::open([1; 16], &secrets, &other).is_err(), "with another key");
        let swapped = Secrets { token_key: secrets.cluster_secret.clone(), ..secrets };
        assert!(Trust::open([1; 16], &swapped, &key).is_err(), "one for the other");
    }

    #[test]
    fn a_certificate_key_needs_its_holders_signature() {
        use rcgen::SigningKey as _;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let point = key.public_key_raw().to_vec();
        let proof = key.sign(&join_statement(&[7; 32], &point)).unwrap();
        assert!(CertificateKey::proven(point.clone(), &[7; 32], &proof).is_ok());
        assert!(CertificateKey::proven(point.clone(), &[8; 32], &proof).is_err());
        assert!(CertificateKey::proven(point[..64].to_vec(), &[7; 32], &proof).is_err());
    }
}
