//! Certificates: those that nodes ask for, and the one that the manager's listener shows. That one the
//! manager makes for itself, in memory, and anew when it is due or the roots changed: looked at for
//! every connection, so that none is taken with what is over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tonic::Status;
use tracing::warn;

use super::{
    Shared,
    authority::{Authority, CertificateKey},
    random, status,
    trust::Trust,
};
use crate::{
    api::{
        Validity,
        tls::{self, Credentials},
    },
    engine::cluster::{Command, State},
    types::{Node, NodeId, Role},
};

/// A certificate as it was asked for.
pub struct Certified {
    /// The certificate (DER).
    pub certificate: Vec<u8>,
    /// The roots that are trusted (DER), the first of which signed it.
    pub roots: Vec<Vec<u8>>,
}

impl Shared {
    /// Signs a certificate for a node. Under which root is noted before the node can have it.
    pub(super) async fn certify(
        &self,
        node: &Node,
        key: CertificateKey,
    ) -> Result<Certified, Status> {
        let authority = self.trust.authority();
        let rotations = authority.rotations();
        let noted = |state: &State| state.certified_at(node.id);
        if self.log.read(noted) != rotations {
            let note = Command::NoteCertified { node: node.id, rotations };
            self.log.propose(note).await.map_err(status::of_proposal)?;
        }
        let issued = authority.issue(node.id, node.role, key, self.settings.certificate_life);
        let certificate = issued.map_err(status::of_failure)?.to_vec();
        let roots = authority.roots().iter().map(|root| root.to_vec()).collect();
        Ok(Certified { certificate, roots })
    }
}

/// What the listener shows, and whom it takes.
pub struct ListenerTls {
    trust: Arc<Trust>,
    node: NodeId,
    life: Duration,
    made: Mutex<Made>,
}

struct Made {
    config: Arc<ServerConfig>,
    authority: Arc<Authority>,
    validity: Validity,
    /// Decides when it is due.
    drawn: u8,
}

impl ListenerTls {
    /// Makes what the listener of a manager's node shows first.
    ///
    /// # Errors
    /// The random source or a signature fails.
    pub fn new(trust: Arc<Trust>, node: NodeId, life: Duration) -> anyhow::Result<Self> {
        let made = Mutex::new(Made::new(trust.authority(), node, life)?);
        Ok(Self { trust, node, life, made })
    }

    /// Returns what the next connection is taken with. Those that are open keep theirs.
    pub fn config(&self) -> Arc<ServerConfig> {
        let authority = self.trust.authority();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let due = made.validity.renewed_in(made.drawn, SystemTime::now()).is_zero();
        if due || !Arc::ptr_eq(&made.authority, &authority) {
            match Made::new(authority, self.node, self.life) {
                Ok(newer) => *made = newer,
                Err(error) => {
                    warn!(error = format!("{error:#}"), "the manager's certificate is not renewed");
                }
            }
        }
        made.config.clone()
    }
}

impl Made {
    fn new(authority: Arc<Authority>, node: NodeId, life: Duration) -> anyhow::Result<Self> {
        let credentials = own_credentials(&authority, node, life)?;
        let validity = Validity::of(&credentials.certificate).context("read the certificate")?;
        let config = Arc::new(tls::server_config(&credentials, authority.bridges())?);
        let [drawn] = random::bytes()?;
        Ok(Self { config, authority, validity, drawn })
    }
}

/// What a manager shows of itself, with a key of its own: the certificate of its node is the agent's.
///
/// # Errors
/// The random source or a signature fails.
pub(super) fn own_credentials(
    authority: &Authority,
    node: NodeId,
    life: Duration,
) -> anyhow::Result<Credentials> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a certificate key")?;
    let certificate = authority.issue(node, Role::Manager, CertificateKey::of(&key), life)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Credentials { certificate, key, roots: authority.roots() })
}
