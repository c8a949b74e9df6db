//! The cluster's root at one time: it signs certificates, and says which roots are trusted.
//!
//! ```text
//! root 0 --signs--> bridge of root 1         root 1 --signs--> bridge of root 2
//!                                            root 2 --signs--> certificates of nodes
//! ```
//! Whoever trusts the newest root needs no bridge. A node that was down while a root was rotated
//! trusts an older one only, and follows the bridges from there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aws_lc_rs::signature;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
    SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::random;
use crate::{
    api::{
        BACKDATED,
        tls::{MANAGER_NAME, join_statement, node_name},
    },
    engine::cluster::Secrets,
    types::{NodeId, Role},
};

/// The newest root with its key, and the roots before it.
pub struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    rotations: u32,
    /// The newest first; whether each is trusted.
    former: Vec<(CertificateDer<'static>, bool)>,
    /// The newest first.
    bridges: Vec<CertificateDer<'static>>,
}

/// A root that may follow another.
pub struct NextRoot {
    /// Its certificate.
    pub root: CertificateDer<'static>,
    /// Its key (PKCS #8).
    pub key: Zeroizing<Vec<u8>>,
    /// Its certificate, signed by the root before.
    pub bridge: CertificateDer<'static>,
}

impl Authority {
    /// Makes the first root of a cluster.
    ///
    /// # Errors
    /// The random source or the making of the root fails.
    pub fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make the root's key")?;
        let params = root_params(0)?;
        let root = params.self_signed(&key).context("sign the root certificate")?;
        Ok(Self {
            root: root.der().clone(),
            issuer: Issuer::new(params, key),
            rotations: 0,
            former: Vec::new(),
            bridges: Vec::new(),
        })
    }

    /// Takes the roots of the state and the newest one's key (PKCS #8).
    ///
    /// # Errors
    /// The key is none.
    pub fn open(secrets: &Secrets, key: &[u8]) -> anyhow::Result<Self> {
        let key = PrivatePkcs8KeyDer::from(key);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .context("read the root's key")?;
        let der = |bytes: &Vec<u8>| CertificateDer::from(bytes.clone());
        let former = secrets.former_roots.iter();
        Ok(Self {
            root: der(&secrets.root),
            // A signature names the root by its name and key, which are the same as ever.
            issuer: Issuer::new(root_params(secrets.root_rotations)?, key),
            rotations: secrets.root_rotations,
            former: former.clone().map(|former| (der(&former.root), former.trusted)).collect(),
            bridges: former.map(|former| der(&former.bridge)).collect(),
        })
    }

    /// Returns the newest root's key (PKCS #8).
    pub fn key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().serialize_der())
    }

    /// Returns the newest root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Returns the roots that are trusted, the newest first.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        let trusted = self.former.iter().filter(|(_, trusted)| *trusted).map(|(root, _)| root);
        [&self.root].into_iter().chain(trusted).cloned().collect()
    }

    /// Returns the newest roots signed by those before them.
    pub fn bridges(&self) -> &[CertificateDer<'static>] {
        &self.bridges
    }

    /// Returns how often the root was rotated.
    pub fn rotations(&self) -> u32 {
        self.rotations
    }

    /// Tells whether a root is or was this cluster's.
    pub fn knows(&self, root: &CertificateDer<'_>) -> bool {
        *root == self.root || self.former.iter().any(|(former, _)| former == root)
    }

    /// Makes a root that may follow.
    ///
    /// # Errors
    /// The random source or a signature fails.
    pub fn next(&self) -> anyhow::Result<NextRoot> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make the root's key")?;
        let root = root_params(self.rotations + 1)?.self_signed(&key);
        let root = root.context("sign the root certificate")?;
        let mut params = root_params(self.rotations + 1)?;
        // More bridges may stand between it and a certificate.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        let bridge = params.signed_by(&key, &self.issuer).context("sign the new root")?;
        Ok(NextRoot {
            root: root.der().clone(),
            bridge: bridge.der().clone(),
            key: Zeroizing::new(key.serialize_der()),
        })
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

fn root_params(rotations: u32) -> anyhow::Result<CertificateParams> {
    // Each root has a name of its own, by which the certificate of the one that signed it is found.
    let name = match rotations {
        0 => "overlay root".to_owned(),
        after => format!("overlay root {}", after + 1),
    };
    let mut params = params(&name, ROOT_LIFE)?;
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

const DAY: Duration = Duration::from_secs(24 * 3600);
/// As long as Swarm's: a root is changed by rotation, not by its end.
const ROOT_LIFE: Duration = DAY.saturating_mul(20 * 365);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::WebPkiServerVerifier,
        crypto::aws_lc_rs::default_provider,
        pki_types::{ServerName, UnixTime},
    };

    use super::*;
    use crate::engine::cluster::FormerRoot;

    /// Secrets of which only the roots count.
    fn secrets(root: &CertificateDer<'_>, former_roots: Vec<FormerRoot>) -> Secrets {
        Secrets {
            root: root.to_vec(),
            root_key: Vec::new(),
            token_key: Vec::new(),
            cluster_secret: Vec::new(),
            epoch: 1,
            older: None,
            root_rotations: u32::try_from(former_roots.len()).unwrap(),
            former_roots,
        }
    }

    /// Rotates so many times; each former root is trusted or not.
    fn rotated(times: u32, trusted: bool) -> Vec<Authority> {
        let mut all = vec![Authority::new().unwrap()];
        let mut former = Vec::new();
        for _ in 0..times {
            let before = all.last().unwrap();
            let next = before.next().unwrap();
            let (root, bridge) = (before.root().to_vec(), next.bridge.to_vec());
            former.insert(0, FormerRoot { root, bridge, trusted });
            let secrets = secrets(&next.root, former.clone());
            all.push(Authority::open(&secrets, &next.key).unwrap());
        }
        all
    }

    /// Whether a node that trusts one root takes a manager's certificate of another authority.
    fn is_taken(anchor: &CertificateDer<'static>, of: &Authority) -> bool {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (node, life) = (NodeId::from_u128(1), Duration::from_secs(60));
        let shown = of.issue(node, Role::Manager, CertificateKey::of(&key), life).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone()).unwrap();
        let provider = Arc::new(default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let mut chain = of.bridges().to_vec();
        chain.push(of.root().clone());
        let name = ServerName::try_from(MANAGER_NAME).unwrap();
        let verifier = verifier.build().unwrap();
        let verified = rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            &shown,
            &chain,
            &name,
            &[],
            UnixTime::now(),
        );
        verified.is_ok()
    }

    #[test]
    fn whoever_trusts_a_former_root_finds_the_newest_by_the_bridges() {
        let all = rotated(4, false);
        let newest = all.last().unwrap();
        for (rotations, former) in all.iter().enumerate() {
            assert!(is_taken(former.root(), newest), "from {rotations}");
            assert!(newest.knows(former.root()));
        }
        assert!(!is_taken(newest.root(), &all[0]), "a bridge leads one way");
        let other = Authority::new().unwrap();
        assert!(!is_taken(other.root(), newest) && !newest.knows(other.root()));
        assert_eq!(newest.roots(), [newest.root().clone()]);
    }

    #[test]
    fn trusted_roots_are_listed_the_newest_first() {
        let all = rotated(1, true);
        assert_eq!(all[1].roots(), [all[1].root().clone(), all[0].root().clone()]);
        assert_eq!((all[0].rotations(), all[1].rotations()), (0, 1));
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
