//! Scopes and their digests in messages.

use std::collections::BTreeSet;

use super::{Malformed, parse_id, proto};
use crate::types::{Digest, ScopeId};

/// Writes scopes.
pub fn scopes<'a>(scopes: impl IntoIterator<Item = &'a ScopeId>) -> Vec<proto::Scope> {
    scopes.into_iter().map(|scope| write(*scope)).collect()
}

/// Reads scopes.
///
/// # Errors
/// One of them is none.
pub fn read_scopes(scopes: &[proto::Scope]) -> Result<BTreeSet<ScopeId>, Malformed> {
    scopes.iter().map(|scope| read(Some(scope))).collect()
}

/// Writes digests.
pub fn scope_digests(digests: &[(ScopeId, Digest)]) -> Vec<proto::ScopeDigest> {
    let write = |(scope, digest): &(ScopeId, Digest)| proto::ScopeDigest {
        scope: Some(write(*scope)),
        digest: digest.to_bytes().to_vec(),
    };
    digests.iter().map(write).collect()
}

/// Reads digests.
///
/// # Errors
/// One of them is none.
pub fn read_scope_digests(
    digests: &[proto::ScopeDigest],
) -> Result<Vec<(ScopeId, Digest)>, Malformed> {
    let read = |one: &proto::ScopeDigest| {
        let why = || Malformed { field: "digest", why: "a digest has 16 bytes".to_owned() };
        let bytes = one.digest.as_slice().try_into().map_err(|_| why())?;
        Ok((read(one.scope.as_ref())?, Digest::from_bytes(bytes)))
    };
    digests.iter().map(read).collect()
}

fn write(scope: ScopeId) -> proto::Scope {
    use proto::scope::Scope;
    let scope = match scope {
        ScopeId::Network(id) => Scope::Network(id.to_bytes().to_vec()),
        ScopeId::Peers => Scope::Peers(proto::Peers {}),
        ScopeId::Tasks => Scope::Tasks(proto::Tasks {}),
    };
    proto::Scope { scope: Some(scope) }
}

fn read(scope: Option<&proto::Scope>) -> Result<ScopeId, Malformed> {
    use proto::scope::Scope;
    let missing = || Malformed { field: "scope", why: "missing".to_owned() };
    match scope.and_then(|scope| scope.scope.as_ref()).ok_or_else(missing)? {
        Scope::Network(id) => Ok(ScopeId::Network(parse_id("scope", id)?)),
        Scope::Peers(_) => Ok(ScopeId::Peers),
        Scope::Tasks(_) => Ok(ScopeId::Tasks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NetworkId;

    #[test]
    fn scopes_and_digests_are_read_as_they_were_written() {
        let all = [ScopeId::Network(NetworkId::from_u128(7)), ScopeId::Peers, ScopeId::Tasks];
        assert_eq!(read_scopes(&scopes(&all)), Ok(all.into_iter().collect()));
        let digests = all.map(|scope| (scope, Digest::from_bytes([9; 16])));
        assert_eq!(read_scope_digests(&scope_digests(&digests)), Ok(digests.to_vec()));
    }

    #[test]
    fn what_is_none_is_named() {
        let nothing = [proto::Scope { scope: None }];
        assert_eq!(read_scopes(&nothing).unwrap_err().to_string(), "scope: missing");
        let mut cut = scope_digests(&[(ScopeId::Peers, Digest::default())]);
        cut[0].digest.pop();
        let error = read_scope_digests(&cut).unwrap_err().to_string();
        assert_eq!(error, "digest: a digest has 16 bytes");
    }
}
