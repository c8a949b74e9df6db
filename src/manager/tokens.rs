//! Join tokens as operators ask for them and joiners show them. The state knows generations and
//! hashes; the secrets are derived or drawn here, said once, and not kept.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use aws_lc_rs::digest;
use tonic::Status;
use tracing::warn;
use zeroize::Zeroizing;

use super::{Shared, random, status};
use crate::{
    api::{JoinToken, Malformed, proto::JoinTokenRequest, tls::root_digest},
    engine::cluster::{Command, CreateToken, Outcome, Refusal, TokenHash, TokenUse},
    types::Role,
};

/// A token as it was asked for.
pub struct Issued {
    /// The token.
    pub token: JoinToken,
    /// When it ends, in seconds since 1970.
    pub expires_at_s: Option<u64>,
    /// How many nodes it lets in.
    pub uses: Option<u32>,
}

impl Shared {
    /// Returns the standing token of a role, rotates it first, or makes one with an end, as asked.
    pub(super) async fn issue_token(
        &self,
        role: Role,
        request: &JoinTokenRequest,
    ) -> Result<Issued, Status> {
        let limited = request.ttl_s.is_some() || request.uses.is_some();
        if request.rotate && limited {
            return Err(Status::invalid_argument(
                "a rotated token has no end; leave out --rotate, or --ttl and --uses",
            ));
        }
        if limited {
            return self.issue_limited(role, request).await;
        }
        let generation = if request.rotate {
            let rotate = Command::RotateToken { role, now_s: now_s()? };
            match self.log.propose(rotate).await.map_err(status::of_proposal)?.1 {
                Outcome::Generation(generation) => generation,
                Outcome::Done
                | Outcome::Node(_)
                | Outcome::Network(_)
                | Outcome::Endpoint(_)
                | Outcome::Service(_) => {
                    return Err(Status::internal("rotating a token gave none"));
                }
            }
        } else {
            self.log.read(|state| state.token_generation(role))
        };
        let token = self.trust.token(role, generation);
        Ok(Issued { token, expires_at_s: None, uses: None })
    }

    async fn issue_limited(&self, role: Role, asked: &JoinTokenRequest) -> Result<Issued, Status> {
        if asked.ttl_s.is_some_and(|ttl| !(1..=MAX_TTL_S).contains(&ttl)) {
            return Err(Malformed { field: "ttl", why: "use 1s to 3650d".to_owned() }.into());
        }
        if asked.uses == Some(0) {
            return Err(Malformed { field: "uses", why: "use 1 or more".to_owned() }.into());
        }
        let secret = Zeroizing::new(random::bytes().map_err(status::of_failure)?);
        let now_s = now_s()?;
        let create = CreateToken {
            hash: hash(&secret),
            role,
            expires_at_s: asked.ttl_s.map(|ttl| now_s + ttl),
            uses: asked.uses,
            now_s,
        };
        let (expires_at_s, uses) = (create.expires_at_s, create.uses);
        let created = self.log.propose(Command::CreateToken(create)).await;
        created.map_err(status::of_proposal)?;
        let token = JoinToken { digest: root_digest(self.trust.authority().root()), secret };
        Ok(Issued { token, expires_at_s, uses })
    }

    /// Refuses a source that tried too many wrong tokens or keys.
    pub(super) fn check_tries(&self, source: IpAddr) -> Result<(), Status> {
        match self.admission.may_try(source, Instant::now()) {
            true => Ok(()),
            false => Err(Status::resource_exhausted(
                "too many wrong tokens or keys came from this address; wait a minute",
            )),
        }
    }

    /// Returns what a secret makes of the host that shows it, and what the log is to check again in
    /// the entry that takes the host in.
    pub(super) fn admit(&self, secret: &str, source: IpAddr) -> Result<(Role, TokenUse), Status> {
        self.check_tries(source)?;
        let secret = JoinToken::parse_secret(secret)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let newest = |role| self.log.read(|state| state.token_generation(role));
        let hash = hash(&secret);
        // The map is looked up by a hash, of which no timing tells how to make its secret.
        let limited = self.log.read(|state| state.token_role(&hash));
        let token = match (self.trust.standing(&secret, newest), limited) {
            (Some((role, generation)), _) => Some((role, TokenUse::Standing { generation })),
            (None, Some(role)) => Some((role, TokenUse::Limited { hash, now_s: now_s()? })),
            (None, None) => None,
        };
        match token {
            Some(token) => Ok(token),
            None => {
                self.admission.note_wrong(source, Instant::now());
                warn!(%source, "a join with a wrong token was refused");
                Err(status::of_refusal(Refusal::TokenUnknown))
            }
        }
    }
}

fn hash(secret: &[u8; 16]) -> TokenHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    TokenHash(hash)
}

fn now_s() -> Result<u64, Status> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock");
    Ok(now.map_err(status::of_failure)?.as_secs())
}

/// Ten years; whoever wants longer wants a standing token.
const MAX_TTL_S: u64 = 3650 * 24 * 3600;
