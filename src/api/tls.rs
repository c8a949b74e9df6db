//! Mutual TLS between nodes: TLS 1.3 only, one root, the node's id in its certificate. A manager's
//! certificate carries a further name, without which no node takes the other end for a manager.

use std::{fmt, sync::Arc};

use aws_lc_rs::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs as provider},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
};

use crate::types::NodeId;

/// The name in the certificate of every manager.
pub const MANAGER_NAME: &str = "manager.overlay.internal";

/// What a node shows of itself and trusts of others.
pub struct Credentials {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// The certificate's key.
    pub key: PrivateKeyDer<'static>,
    /// The cluster's roots that are trusted, the first of which signed the certificate.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        let (certificate, roots) = (self.certificate.clone(), self.roots.clone());
        Self { certificate, key: self.key.clone_key(), roots }
    }
}

/// Returns the name that a node's certificate carries.
pub fn node_name(node: NodeId) -> String {
    format!("{node}{NODE_SUFFIX}")
}

/// Reads the node's id from a certificate whose chain was verified.
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let ids = certificate.valid_dns_names().filter_map(|name| name.strip_suffix(NODE_SUFFIX));
    let mut ids = ids.filter_map(|id| id.parse().ok());
    match (ids.next(), ids.next()) {
        (Some(only), None) => Some(only),
        (_, _) => None,
    }
}

/// Whether a certificate is a manager's: it has the name that nodes ask managers for.
pub fn is_managers(certificate: &CertificateDer<'_>) -> bool {
    let certificate = webpki::EndEntityCert::try_from(certificate);
    certificate
        .is_ok_and(|certificate| certificate.valid_dns_names().any(|name| name == MANAGER_NAME))
}

/// Returns the digest by which a joiner knows a cluster.
pub fn root_digest(root: &CertificateDer<'_>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, root).as_ref());
    bytes
}

/// What a joiner signs with its certificate key, so that nobody has a key certified that is not
/// theirs or bound to somebody else's session key.
pub fn join_statement(public_key: &[u8], certificate_key: &[u8]) -> Vec<u8> {
    [b"overlay join 1".as_slice(), public_key, certificate_key].concat()
}

/// The manager's side: shows its certificate, the `bridges` that lead to it from former roots, and the
/// root; takes clients with a certificate of a trusted root, and clients without one, which may only join or renew.
///
/// # Errors
/// The key does not fit the certificate.
pub fn server_config(
    credentials: &Credentials,
    bridges: &[CertificateDer<'static>],
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(provider::default_provider());
    let roots = store(&credentials.roots)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let mut chain = vec![credentials.certificate.clone()];
    chain.extend(bridges.iter().cloned());
    // Last: there a joiner looks for what its token names.
    chain.extend(credentials.roots.first().cloned());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, credentials.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection is verified anew, so that a removed node cannot come back by a ticket.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A member's side towards a manager.
///
/// # Errors
/// The key does not fit the certificate.
pub fn member_config(credentials: &Credentials) -> Result<ClientConfig, Error> {
    let chain = vec![credentials.certificate.clone()];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(store(&credentials.roots)?)
        .with_client_auth_cert(chain, credentials.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The side of a member that shows no certificate, and may only renew the one that it has.
///
/// # Errors
/// A root is none.
pub fn unknown_config(roots: &[CertificateDer<'static>]) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(store(roots)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// A joiner's side: only the root of that digest is trusted.
///
/// # Errors
/// The crypto provider does not offer TLS 1.3.
pub fn joiner_config(digest: [u8; 32]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(provider::default_provider());
    let verifier = PinnedRoot { digest, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Says that a server's root is not the one that the token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the manager's root certificate is not the one that the token names")]
pub struct OtherRoot;

impl OtherRoot {
    /// Tells whether a TLS error is this one.
    pub fn is_in(error: &Error) -> bool {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref::<Self>().is_some()
            }
            _ => false,
        }
    }
}

/// Accepts a chain that ends in the root of one digest, and verifies the rest against that root.
struct PinnedRoot {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for PinnedRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinnedRoot")
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates.last().filter(|root| root_digest(root) == self.digest);
        let Some(root) = root else {
            let other = OtherError(Arc::new(OtherRoot));
            return Err(Error::InvalidCertificate(CertificateError::Other(other)));
        };
        let roots = store(&[root.clone().into_owned()])?;
        WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn store(roots: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    roots.iter().try_for_each(|root| store.add(root.clone()))?;
    Ok(Arc::new(store))
}

const ALPN: &[u8] = b"h2";
const NODE_SUFFIX: &str = ".node.overlay.internal";
