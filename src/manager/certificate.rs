//! Certificates: those that nodes ask for, and the one that the manager's listener shows, which it
//! makes for itself, in memory, at every start and whenever the one before is due.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use tokio::time::sleep;
use tonic::Status;
use tracing::warn;

use super::{
    Shared, random, status,
    trust::{CertificateKey, Trust},
};
use crate::{
    api::{
        Validity,
        tls::{self, Credentials},
    },
    types::{Node, NodeId, Role},
};

impl Shared {
    /// Signs a certificate for a node.
    pub(super) fn certify(
        &self,
        node: &Node,
        key: CertificateKey,
    ) -> Result<CertificateDer<'static>, Status> {
        let issued = self.trust.issue(node.id, node.role, key, self.certificate_life);
        issued.map_err(status::of_failure)
    }
}

/// Makes what the listener of a manager's node shows, with a new key.
pub fn of_listener(
    trust: &Trust,
    node: NodeId,
    life: Duration,
) -> anyhow::Result<(ServerConfig, Validity)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a certificate key")?;
    let certificate = trust.issue(node, Role::Manager, CertificateKey::of(&key), life)?;
    let validity = Validity::of(&certificate).context("read the certificate")?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let credentials = Credentials { certificate, key, root: trust.root() };
    Ok((tls::server_config(&credentials)?, validity))
}

/// Keeps the listener's certificate valid; connections that are open keep theirs. May be aborted.
pub struct CertificateTask {
    shared: Arc<Shared>,
    validity: Validity,
}

impl CertificateTask {
    /// Makes the task; the certificate that the listener shows is valid so long.
    pub fn new(shared: Arc<Shared>, validity: Validity) -> Self {
        Self { shared, validity }
    }

    /// Renews for as long as it is polled.
    pub async fn run(mut self) {
        loop {
            // Without a random source the middle does as well.
            let [drawn] = random::bytes().unwrap_or([128]);
            self.until_due(drawn).await;
            let shared = &self.shared;
            match of_listener(&shared.trust, shared.node, shared.certificate_life) {
                Ok((config, validity)) => {
                    shared.tls.store(Arc::new(config));
                    self.validity = validity;
                }
                Err(error) => {
                    warn!(error = format!("{error:#}"), "the manager's certificate is not renewed");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Looks at the clock now and then: a timer does not count the time that the host sleeps.
    async fn until_due(&self, drawn: u8) {
        loop {
            let left = self.validity.renewed_in(drawn, SystemTime::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }
}

const RETRY: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(60);
