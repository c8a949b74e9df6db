//! The node's certificate while the node runs: what a new connection to a manager shows. Connections
//! that are open keep what they were opened with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio::sync::Notify;

use crate::api::tls::{self, Credentials};

/// The certificate, its key, and what they make.
pub struct Certificate {
    held: ArcSwap<Held>,
    doubted: Notify,
}

struct Held {
    credentials: Credentials,
    config: Arc<ClientConfig>,
}

impl Certificate {
    /// Takes what the node joined with, or renewed last.
    ///
    /// # Errors
    /// The key does not fit the certificate.
    pub fn new(credentials: Credentials) -> Result<Self, rustls::Error> {
        let held = ArcSwap::from_pointee(Held::new(credentials)?);
        Ok(Self { held, doubted: Notify::new() })
    }

    /// Returns what a connection is opened with now.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.held.load().config.clone()
    }

    /// Returns what is held now.
    pub fn credentials(&self) -> Credentials {
        self.held.load().credentials.clone()
    }

    /// Takes newer credentials in the place of those before.
    ///
    /// # Errors
    /// The key does not fit the certificate; those before stay.
    pub fn replace(&self, credentials: Credentials) -> Result<(), rustls::Error> {
        self.held.store(Arc::new(Held::new(credentials)?));
        Ok(())
    }

    /// Notes that a manager may not take the certificate: it is renewed at once.
    pub fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Compares the digests of the roots that managers trust with those held here: where they differ
    /// the certificate is renewed, which brings the roots along.
    pub fn handle_roots(&self, digests: &[Vec<u8>]) {
        let held = self.held.load();
        let roots = held.credentials.roots.iter().map(tls::root_digest);
        if !roots.eq(digests.iter().map(Vec::as_slice)) {
            self.doubt();
        }
    }

    /// Waits until the certificate is doubted.
    pub async fn until_doubted(&self) {
        self.doubted.notified().await;
    }
}

impl Held {
    fn new(credentials: Credentials) -> Result<Self, rustls::Error> {
        let config = Arc::new(tls::member_config(&credentials)?);
        Ok(Self { credentials, config })
    }
}
