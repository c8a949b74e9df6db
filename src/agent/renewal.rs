//! Keeps the node's certificate valid: another with a new key at a random 50 to 80 % of its life, or
//! at once when it is over, a manager does not take it, or other roots are trusted. It is asked for by the node's registered
//! key, over the open connection or one without a certificate; so a node that was off past its
//! certificate's end needs nothing else to come back.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use aws_lc_rs::rand;
use rustls::pki_types::CertificateDer;
use tokio::{sync::watch, time::sleep};
use tonic::{Status, transport::Channel};
use tracing::{info, warn};

use super::{
    Identity, certificate::Certificate, join::CertificateRequest, link::backoff, managers::Managers,
};
use crate::{
    api::{
        Validity, channel,
        proof::Purpose,
        proto::{ChallengeRequest, RenewRequest, membership_client::MembershipClient},
        tls::{self, Credentials},
    },
    types::NodeId,
};

/// The task; may be aborted. `keep` writes new credentials to disk before they are used.
pub struct RenewalTask<K> {
    managers: Arc<Managers>,
    node: NodeId,
    identity: Identity,
    certificate: Arc<Certificate>,
    connected: watch::Receiver<Option<Channel>>,
    keep: K,
}

impl<K: Fn(&Credentials) -> anyhow::Result<()> + Send> RenewalTask<K> {
    /// Makes the task; `connected` holds the channel to the manager while there is one.
    pub fn new(
        managers: Arc<Managers>,
        node: NodeId,
        identity: Identity,
        certificate: Arc<Certificate>,
        connected: watch::Receiver<Option<Channel>>,
        keep: K,
    ) -> Self {
        Self { managers, node, identity, certificate, connected, keep }
    }

    /// Renews for as long as it is polled.
    pub async fn run(self) {
        let mut failures = 0;
        let validity = Validity::of(&self.certificate.credentials().certificate);
        // Once: afterwards time is counted from the answer, whatever this host's clock says.
        let mut wait = validity
            .map_or(Duration::ZERO, |validity| validity.renewed_in(drawn(), SystemTime::now()));
        loop {
            tokio::select! {
                () = sleep(wait) => {}
                () = self.certificate.until_doubted() => {}
            }
            wait = match self.renew().await {
                Ok(validity) => {
                    failures = 0;
                    validity.renewed_after(drawn())
                }
                Err(error) => {
                    failures += 1;
                    warn!(error = format!("{error:#}"), "the certificate is not renewed");
                    backoff(failures)
                }
            };
        }
    }

    async fn renew(&self) -> anyhow::Result<Validity> {
        let channel = self.channel().await?;
        let credentials = renew(channel, self.node, &self.identity).await?;
        let validity = Validity::of(&credentials.certificate);
        let validity = validity.context("the answer has no certificate")?;
        self.adopt(credentials)?;
        info!(life_s = validity.life().as_secs(), "certificate renewed");
        Ok(validity)
    }

    /// Uses new credentials even if they cannot be kept: the next process renews those before.
    fn adopt(&self, credentials: Credentials) -> anyhow::Result<()> {
        if let Err(error) = (self.keep)(&credentials) {
            warn!(error = format!("{error:#}"), "the new certificate is not kept");
        }
        self.certificate.replace(credentials).context("use the new certificate")
    }

    /// The open channel, or one that shows no certificate.
    async fn channel(&self) -> anyhow::Result<Channel> {
        if let Some(channel) = self.connected.borrow().clone() {
            return Ok(channel);
        }
        let config = Arc::new(tls::unknown_config(&self.certificate.credentials().roots)?);
        Ok(channel::to_manager(self.managers.current(), config).await?)
    }
}

/// Asks a manager for another certificate of a registered node, and returns it with its key and the
/// roots that are trusted now.
///
/// # Errors
/// The manager does not answer, or refuses.
pub async fn renew(
    channel: Channel,
    node: NodeId,
    identity: &Identity,
) -> anyhow::Result<Credentials> {
    let mut client = MembershipClient::new(channel);
    let told = |status: Status| anyhow!("{}", status.message().to_owned());
    let challenge = channel::answer(client.challenge(ChallengeRequest {})).await.map_err(told)?;
    let asked = CertificateRequest::new(identity)?;
    let key_proof = asked.key_proof(identity, Purpose::Renew(node), &challenge)?;
    let request = RenewRequest {
        node: node.to_bytes().to_vec(),
        certificate_key: asked.point,
        certificate_key_proof: asked.proof,
        key_proof,
    };
    let answer = channel::answer(client.renew(request)).await.map_err(told)?;
    Ok(Credentials {
        certificate: CertificateDer::from(answer.certificate),
        key: asked.key,
        roots: answer.roots.into_iter().map(CertificateDer::from).collect(),
    })
}

/// Without a random source the middle does as well.
fn drawn() -> u8 {
    let mut byte = [128];
    let _ = rand::fill(&mut byte);
    byte[0]
}
