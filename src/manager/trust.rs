//! Who is believed: the cluster's root, the certificates that it signs, the standing join tokens,
//! and the keys of pairs of nodes. The secrets behind them never leave this file's type.
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
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::random;
use crate::{
    api::{
        JoinToken,
        tls::{MANAGER_NAME, join_statement, node_name, root_digest},
    },
    types::{NodeId, Psk, Role},
};

/// The cluster's secrets.
pub struct Trust {
    cluster: [u8; 16],
    root: CertificateDer<'static>,
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
        let mut params = params("overlay root", ROOT_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).context("sign the root certificate")?;
        Ok(Self {
            cluster,
            root: root.der().clone(),
            issuer: Issuer::new(params, key),
            token_key: Zeroizing::new(random::bytes()?),
            cluster_secret: Zeroizing::new(random::bytes()?),
        })
    }

    /// Returns the root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Signs a certificate for a node's key. A manager's carries the managers' name as well.
    ///
    /// # Errors
    /// The key is none that can be certified.
    pub fn issue(
        &self,
        node: NodeId,
        role: Role,
        key: CertificateKey,
    ) -> anyhow::Result<CertificateDer<'static>> {
        let mut params = params(&node.to_string(), NODE_LIFE)?;
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

    /// Returns the standing token of a role.
    pub fn token(&self, role: Role) -> JoinToken {
        let role = match role {
            Role::Manager => b"manager".as_slice(),
            Role::Worker => b"worker".as_slice(),
        };
        let generation = GENERATION.to_be_bytes();
        let info = [b"overlay join token 1".as_slice(), role, &generation];
        let secret = derive(&self.token_key, &info);
        JoinToken { digest: root_digest(&self.root), secret: Zeroizing::new(secret) }
    }

    /// Returns the role that a token's secret gives, if any. Both are compared in constant time.
    pub fn role_of(&self, secret: &[u8; 16]) -> Option<Role> {
        let is = |role| {
            let standing = self.token(role).secret;
            constant_time::verify_slices_are_equal(standing.as_slice(), secret).is_ok()
        };
        let (worker, manager) = (is(Role::Worker), is(Role::Manager));
        match (worker, manager) {
            (_, true) => Some(Role::Manager),
            (true, false) => Some(Role::Worker),
            (false, false) => None,
        }
    }

    /// Returns the keys of a pair of nodes, the newest epoch first.
    pub fn pair_keys(&self, a: NodeId, b: NodeId) -> Vec<Psk> {
        let (lower, higher) = (a.min(b).to_bytes(), a.max(b).to_bytes());
        let info = [b"overlay pair 1".as_slice(), &self.cluster, &lower, &higher];
        vec![Psk { epoch: EPOCH, key: derive(&self.cluster_secret, &info) }]
    }
}

/// The public key of a node's certificate: an uncompressed P-256 point.
pub struct CertificateKey(Vec<u8>);

impl CertificateKey {
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
const NODE_LIFE: Duration = DAY.saturating_mul(30);
const BACKDATED: Duration = Duration::from_secs(3600);
/// Of the standing tokens.
const GENERATION: u64 = 1;
/// Of the cluster secret.
const EPOCH: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_roles_and_clusters_apart() {
        let (one, other) = (Trust::new([1; 16]).unwrap(), Trust::new([1; 16]).unwrap());
        let (worker, manager) = (one.token(Role::Worker), one.token(Role::Manager));
        assert_eq!(one.token(Role::Worker), worker, "a standing token stays");
        assert_eq!(one.role_of(&worker.secret), Some(Role::Worker));
        assert_eq!(one.role_of(&manager.secret), Some(Role::Manager));
        assert_eq!(other.role_of(&worker.secret), None);
        assert_eq!(one.role_of(&[0; 16]), None);
        assert_ne!(worker.digest, other.token(Role::Worker).digest);
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
