//! Becoming a member: the request that says who the node is, and the call that makes it one.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;
use ipnet::IpNet;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::{Status, transport::Channel};

use super::Identity;
use crate::{
    api::{
        JoinToken,
        channel::{self, answer},
        proof::{self, Purpose, Statement},
        proto::{
            ChallengeRequest, ChallengeResponse, JoinRequest, LeaveRequest, ManagerGift,
            membership_client::MembershipClient,
        },
        tls::{self, Credentials, join_statement},
    },
    types::{Name, Node, VersionRange},
    wire::envelope,
};

/// What a node says of itself when it joins.
pub struct Introduction<'a> {
    /// Its session key.
    pub identity: &'a Identity,
    /// Its name.
    pub name: Name,
    /// Whether the operator chose the name, so that a taken one is refused.
    pub name_chosen: bool,
    /// Where its manager would listen.
    pub advertise_addr: SocketAddr,
    /// Where it takes sealed datagrams.
    pub data_ip: IpAddr,
    /// The MTU of that address's interface.
    pub underlay_mtu: u16,
    /// The networks of its host.
    pub underlays: Vec<IpNet>,
}

/// What a node has become.
#[derive(Clone)]
pub struct Joined {
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The node as registered.
    pub node: Node,
    /// Its certificate, that certificate's key, and the root.
    pub credentials: Credentials,
}

/// What a node that was let in is given.
pub struct Admitted {
    /// What it has become.
    pub joined: Joined,
    /// What its manager needs, if it is to have one.
    pub manager: Option<ManagerGift>,
}

/// A new key for a certificate.
pub struct CertificateRequest {
    /// Its public half, an uncompressed P-256 point.
    pub point: Vec<u8>,
    /// Its signature, which binds it to the session key.
    pub proof: Vec<u8>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

impl CertificateRequest {
    /// Makes a key.
    ///
    /// # Errors
    /// The random source fails.
    pub fn new(identity: &Identity) -> anyhow::Result<Self> {
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a certificate key")?;
        let point = key.public_key_raw().to_vec();
        let statement = join_statement(identity.public(), &point);
        let proof = key.sign(&statement).context("sign the request")?;
        Ok(Self { point, proof, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }

    /// Proves to whoever drew the challenge that this node asks for this key's certificate.
    ///
    /// # Errors
    /// The challenge is none.
    pub fn key_proof(
        &self,
        identity: &Identity,
        purpose: Purpose,
        challenge: &ChallengeResponse,
    ) -> anyhow::Result<Vec<u8>> {
        prove(identity, purpose, challenge, &self.point)
    }
}

impl Introduction<'_> {
    /// Makes the request, without a token and the proof of the session key, and the key that it asks
    /// a certificate for.
    ///
    /// # Errors
    /// No key can be made.
    pub fn request(&self) -> anyhow::Result<(JoinRequest, PrivateKeyDer<'static>)> {
        let CertificateRequest { point, proof, key } = CertificateRequest::new(self.identity)?;
        let request = JoinRequest {
            token_secret: String::new(),
            name: self.name.to_string(),
            name_chosen: self.name_chosen,
            advertise_addr: self.advertise_addr.to_string(),
            data_ip: self.data_ip.to_string(),
            underlay_mtu: self.underlay_mtu.into(),
            underlays: self.underlays.iter().map(ToString::to_string).collect(),
            public_key: self.identity.public().to_vec(),
            versions: Some(VERSIONS.into()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            certificate_key: point,
            certificate_key_proof: proof,
            key_proof: Vec::new(),
        };
        Ok((request, key))
    }

    /// Proves the session key of a request to whoever drew the challenge.
    ///
    /// # Errors
    /// The challenge is none.
    pub fn answer(
        &self,
        challenge: &ChallengeResponse,
        request: &mut JoinRequest,
    ) -> anyhow::Result<()> {
        let point = &request.certificate_key;
        request.key_proof = prove(self.identity, Purpose::Join, challenge, point)?;
        Ok(())
    }
}

fn prove(
    identity: &Identity,
    purpose: Purpose,
    challenge: &ChallengeResponse,
    certificate_key: &[u8],
) -> anyhow::Result<Vec<u8>> {
    let cluster = challenge.cluster_id.as_slice().try_into();
    let cluster = cluster.context("the manager's challenge names no cluster")?;
    let statement = Statement { purpose, cluster, certificate_key };
    let proof = proof::prove(identity.private(), &challenge.challenge, &statement);
    proof.context("the manager's challenge is no key")
}

/// Joins the cluster that the token is of.
///
/// # Errors
/// The manager is not reachable, is of another cluster, or refuses.
pub async fn join(
    manager: SocketAddr,
    token: &JoinToken,
    introduction: &Introduction<'_>,
) -> Result<Admitted, Status> {
    let internal = |error: anyhow::Error| Status::internal(format!("{error:#}"));
    let config = tls::joiner_config(token.digest).map_err(|error| internal(error.into()))?;
    let channel = channel::to_manager(manager, Arc::new(config)).await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let (mut request, key) = introduction.request().map_err(internal)?;
    request.token_secret = token.secret_text();
    let mut client = MembershipClient::new(channel);
    let challenge = answer(client.challenge(ChallengeRequest {})).await?;
    introduction.answer(&challenge, &mut request).map_err(internal)?;
    let joined = answer(client.join(request)).await?;

    let bent = |what| Status::internal(format!("the manager's answer has no {what}"));
    let cluster = joined.cluster_id.as_slice().try_into().map_err(|_| bent("cluster id"))?;
    let node = joined.node.ok_or_else(|| bent("node"))?.try_into()?;
    let root = CertificateDer::from(joined.root);
    if tls::root_digest(&root) != token.digest {
        return Err(bent("root of the token's digest"));
    }
    let certificate = CertificateDer::from(joined.certificate);
    let credentials = Credentials { certificate, key, roots: vec![root] };
    let manager = joined.manager;
    Ok(Admitted { joined: Joined { cluster, node, credentials }, manager })
}

/// Undoes a join.
///
/// # Errors
/// The manager does not do it.
pub async fn leave(channel: Channel) -> Result<(), Status> {
    answer(MembershipClient::new(channel).leave(LeaveRequest { asks: false })).await?;
    Ok(())
}

/// Asks whether the calling node may leave.
///
/// # Errors
/// It may not.
pub async fn ask_to_leave(channel: Channel) -> Result<(), Status> {
    answer(MembershipClient::new(channel).leave(LeaveRequest { asks: true })).await?;
    Ok(())
}

/// The wire versions that this program speaks.
const VERSIONS: VersionRange =
    VersionRange { lowest: envelope::VERSION, highest: envelope::VERSION };
