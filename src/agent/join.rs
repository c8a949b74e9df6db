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
        JoinToken, channel,
        proto::{JoinRequest, LeaveRequest, membership_client::MembershipClient},
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

impl Introduction<'_> {
    /// Makes the request, without a token, and the key that it asks a certificate for.
    ///
    /// # Errors
    /// No key can be made.
    pub fn request(&self) -> anyhow::Result<(JoinRequest, PrivateKeyDer<'static>)> {
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a certificate key")?;
        let point = key.public_key_raw().to_vec();
        let public_key = self.identity.public();
        let proof = key.sign(&join_statement(public_key, &point)).context("sign the request")?;
        let request = JoinRequest {
            token_secret: String::new(),
            name: self.name.to_string(),
            name_chosen: self.name_chosen,
            advertise_addr: self.advertise_addr.to_string(),
            data_ip: self.data_ip.to_string(),
            underlay_mtu: self.underlay_mtu.into(),
            underlays: self.underlays.iter().map(ToString::to_string).collect(),
            public_key: public_key.to_vec(),
            versions: Some(VERSIONS.into()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            certificate_key: point,
            certificate_key_proof: proof,
        };
        Ok((request, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

/// Joins the cluster that the token is of.
///
/// # Errors
/// The manager is not reachable, is of another cluster, or refuses.
pub async fn join(
    manager: SocketAddr,
    token: &JoinToken,
    introduction: &Introduction<'_>,
) -> Result<Joined, Status> {
    let internal = |error: anyhow::Error| Status::internal(format!("{error:#}"));
    let config = tls::joiner_config(token.digest).map_err(|error| internal(error.into()))?;
    let channel = channel::to_manager(manager, Arc::new(config)).await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let (mut request, key) = introduction.request().map_err(internal)?;
    request.token_secret = token.secret_text();
    let answer = MembershipClient::new(channel).join(request).await?.into_inner();

    let bent = |what| Status::internal(format!("the manager's answer has no {what}"));
    let cluster = answer.cluster_id.as_slice().try_into().map_err(|_| bent("cluster id"))?;
    let node = answer.node.ok_or_else(|| bent("node"))?.try_into()?;
    let root = CertificateDer::from(answer.root);
    if tls::root_digest(&root) != token.digest {
        return Err(bent("root of the token's digest"));
    }
    let certificate = CertificateDer::from(answer.certificate);
    Ok(Joined { cluster, node, credentials: Credentials { certificate, key, root } })
}

/// Undoes a join.
///
/// # Errors
/// The manager does not do it.
pub async fn leave(channel: Channel) -> Result<(), Status> {
    MembershipClient::new(channel).leave(LeaveRequest {}).await?;
    Ok(())
}

/// The wire versions that this program speaks.
const VERSIONS: VersionRange =
    VersionRange { lowest: envelope::VERSION, highest: envelope::VERSION };
