//! Joining, renewing certificates, and leaving. Joining and renewing need no certificate: a token's
//! secret stands for it, or the node's registered key. Whoever joins proves that key too, because a
//! host with the key of a node that is down takes that node's place.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{Shared, authority::CertificateKey, listener::Caller, random, status};
use crate::{
    api::{
        Malformed, parse_id, parse_list, parse_text,
        proof::{Purpose, Statement},
        proto::{
            self, ChallengeRequest, ChallengeResponse, GiftRequest, GiftResponse, JoinRequest,
            JoinResponse, LeaveRequest, LeaveResponse, RenewRequest, RenewResponse,
        },
    },
    engine::cluster::{Command, NameChoice, Outcome, RegisterNode, State, TokenUse},
    types::{Availability, Node, NodeId, NodeStatus, Role},
};

/// The service.
pub struct Membership {
    pub(super) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl proto::membership_server::Membership for Membership {
    async fn challenge(
        &self,
        request: Request<ChallengeRequest>,
    ) -> Result<Response<ChallengeResponse>, Status> {
        let drawn = super::caller_of(&request)?.draw_challenge();
        let drawn = drawn.map_err(|_| Status::internal("no challenge could be drawn"))?;
        Ok(Response::new(ChallengeResponse {
            challenge: drawn.public().to_vec(),
            cluster_id: self.shared.settings.cluster.to_vec(),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = super::caller_of(&request)?.clone();
        let request = request.into_inner();
        let (role, token) = self.shared.admit(&request.token_secret, caller.addr.ip())?;
        let key = proven_key(&request)?;
        let (public_key, proof) = (public_key(&request)?, &request.key_proof);
        if !self.proves(&caller, Purpose::Join, &request.certificate_key, &public_key, proof)? {
            return Err(Status::permission_denied(
                "the session key is not proven to be this host's; join with the overlayd of this host",
            ));
        }
        let register = registration(request, role, self.shared.settings.data_port, token)?;
        // What is refused anyhow need not go through the log.
        let check = |state: &State| state.check_token(&register.token, &register.node);
        self.shared.log.read(check).map_err(status::of_refusal)?;
        let (_, outcome) = self
            .shared
            .log
            .propose(Command::RegisterNode(register))
            .await
            .map_err(status::of_proposal)?;
        let Outcome::Node(node) = outcome else {
            return Err(Status::internal("registering gave no node"));
        };
        let mut certified = self.shared.certify(&node, key).await?;
        let manager = match node.role {
            Role::Worker => None,
            Role::Manager => Some(self.shared.gift()?),
        };
        info!(node = %node.name, id = %node.id, "node joined");
        Ok(Response::new(JoinResponse {
            cluster_id: self.shared.settings.cluster.to_vec(),
            node: Some((&node).into()),
            certificate: certified.certificate,
            root: certified.roots.swap_remove(0),
            manager,
        }))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let caller = super::caller_of(&request)?.clone();
        self.shared.check_tries(caller.addr.ip())?;
        let request = request.into_inner();
        let id: NodeId = parse_id("node", &request.node)?;
        let node = self.shared.registered(id)?;
        let RenewRequest { certificate_key, certificate_key_proof, key_proof, .. } = request;
        let (purpose, public_key) = (Purpose::Renew(id), &node.public_key);
        if !self.proves(&caller, purpose, &certificate_key, public_key, &key_proof)? {
            return Err(Status::permission_denied(format!(
                "node {} is registered with another key; use the state folder that it joined with, or remove it on a manager with 'overlayctl node rm' and join anew",
                node.name
            )));
        }
        let key = CertificateKey::proven(certificate_key, public_key, &certificate_key_proof)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let certified = self.shared.certify(&node, key).await?;
        info!(node = %node.name, %id, "certificate renewed");
        let certificate = certified.certificate;
        Ok(Response::new(RenewResponse { certificate, roots: certified.roots }))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let node = self.shared.member(&request)?;
        self.shared.check_dispensable(&node).await?;
        if request.get_ref().asks {
            return Ok(Response::new(LeaveResponse {}));
        }
        self.shared.remove(&node).await?;
        info!(node = %node.name, id = %node.id, "node left");
        Ok(Response::new(LeaveResponse {}))
    }

    async fn gift(&self, request: Request<GiftRequest>) -> Result<Response<GiftResponse>, Status> {
        let node = self.shared.member(&request)?;
        match node.role {
            Role::Manager => Ok(Response::new(GiftResponse { manager: Some(self.shared.gift()?) })),
            Role::Worker => Err(Status::permission_denied(format!(
                "node {} is a worker; promote it first",
                node.name
            ))),
        }
    }
}

impl Membership {
    /// Tells whether a proof is of the holder of a session key. One that is not counts as a try.
    fn proves(
        &self,
        caller: &Caller,
        purpose: Purpose,
        certificate_key: &[u8],
        public_key: &[u8; 32],
        proof: &[u8],
    ) -> Result<bool, Status> {
        let challenge = caller.challenge();
        let challenge = challenge
            .ok_or_else(|| Status::failed_precondition("ask for a challenge of this connection"))?;
        let statement =
            Statement { purpose, cluster: &self.shared.settings.cluster, certificate_key };
        let proven = challenge.verify(&statement, public_key, proof).is_ok();
        if !proven {
            self.shared.admission.note_wrong(caller.addr.ip(), Instant::now());
            warn!(source = %caller.addr.ip(), "a request with a wrong key was refused");
        }
        Ok(proven)
    }
}

/// Takes the certificate key of a request whose joiner holds it.
pub(super) fn proven_key(request: &JoinRequest) -> Result<CertificateKey, Status> {
    let (point, proof) = (request.certificate_key.clone(), &request.certificate_key_proof);
    CertificateKey::proven(point, &request.public_key, proof)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Makes the command that registers the sender of a join request.
pub(super) fn registration(
    request: JoinRequest,
    role: Role,
    data_port: u16,
    token: TokenUse,
) -> Result<RegisterNode, Status> {
    let advertise_addr: SocketAddr = parse_text("advertise_addr", &request.advertise_addr)?;
    let data_ip: IpAddr = parse_text("data_ip", &request.data_ip)?;
    for (addr, field) in [(advertise_addr.ip(), "advertise_addr"), (data_ip, "data_ip")] {
        if addr.is_unspecified() || addr.is_multicast() {
            let why = format!("{addr} is not the address of one host");
            return Err(Malformed { field, why }.into());
        }
    }
    let underlay_mtu = u16::try_from(request.underlay_mtu).unwrap_or(u16::MAX);
    if underlay_mtu < MIN_UNDERLAY_MTU {
        let why = format!("{underlay_mtu} is too small; at least {MIN_UNDERLAY_MTU}");
        return Err(Malformed { field: "underlay_mtu", why }.into());
    }
    let public_key = public_key(&request)?;
    let versions = request
        .versions
        .ok_or_else(|| Malformed { field: "versions", why: "missing".to_owned() })?;
    if request.version.len() > MAX_VERSION_BYTES {
        return Err(Malformed { field: "version", why: "too long".to_owned() }.into());
    }
    let node = Node {
        id: random::id().map_err(status::of_failure)?,
        name: parse_text("name", &request.name)?,
        role,
        availability: Availability::Active,
        status: NodeStatus::Down,
        advertise_addr,
        data_addr: SocketAddr::new(data_ip, data_port),
        underlay_mtu,
        public_key,
        versions: versions.try_into()?,
        version: request.version,
        labels: Default::default(),
    };
    let name = if request.name_chosen { NameChoice::Exact } else { NameChoice::Near };
    let underlays = parse_list("underlays", &request.underlays)?;
    Ok(RegisterNode { node, name, underlays, token })
}

fn public_key(request: &JoinRequest) -> Result<[u8; 32], Malformed> {
    let key = request.public_key.as_slice().try_into();
    key.map_err(|_| Malformed { field: "public_key", why: "a key has 32 bytes".to_owned() })
}

/// What every IPv4 host must take (RFC 791, section 3.1).
const MIN_UNDERLAY_MTU: u16 = 576;
const MAX_VERSION_BYTES: usize = 64;
