//! Join tokens as the state knows them: how often the standing ones were rotated, and those with an
//! end. A token is used up in the same step as the node that it lets in; its secret is never here.
//!
//! ```text
//! standing (one a role): generation 1, 2, ...   only the newest lets in
//! limited:               hash -> role, end, uses left
//! ```

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Applied, Outcome, Refusal, State, limits::MAX_TOKENS};
use crate::types::{Node, NodeId, NodeStatus, Role};

/// SHA-256 of a limited token's secret, written as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash(pub [u8; 32]);

/// What lets a node in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenUse {
    /// It makes the cluster: the first node.
    Founding,
    /// The standing token of the node's role.
    Standing {
        /// Which of those that there were.
        generation: u64,
    },
    /// A token with an end.
    Limited {
        /// Which.
        hash: TokenHash,
        /// The proposer's clock, in seconds since 1970.
        now_s: u64,
    },
}

/// See [`super::Command::CreateToken`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateToken {
    /// What it is known by.
    pub hash: TokenHash,
    /// What a node becomes that it lets in.
    pub role: Role,
    /// When it ends, in seconds since 1970.
    pub expires_at_s: Option<u64>,
    /// How many nodes it lets in.
    pub uses: Option<u32>,
    /// The proposer's clock, in seconds since 1970.
    pub now_s: u64,
}

/// All tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tokens {
    /// How often the standing token of a role was rotated; absent is never.
    rotations: BTreeMap<Role, u64>,
    limited: BTreeMap<TokenHash, LimitedToken>,
    /// By which limited token a node came in that was not heard yet: its answer may be lost, and
    /// its next try is the same use.
    unheard: BTreeMap<NodeId, TokenHash>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LimitedToken {
    role: Role,
    expires_at_s: Option<u64>,
    uses_left: Option<u32>,
}

impl State {
    /// Returns which standing token of a role lets in, from 1.
    pub fn token_generation(&self, role: Role) -> u64 {
        1 + self.tokens.rotations.get(&role).copied().unwrap_or(0)
    }

    /// Returns what a limited token makes of a node, if there is such a token, valid or not.
    pub fn token_role(&self, hash: &TokenHash) -> Option<Role> {
        self.tokens.limited.get(hash).map(|token| token.role)
    }

    /// Tells whether a token lets this node in as things stand.
    ///
    /// # Errors
    /// It does not.
    pub fn check_token(&self, token: &TokenUse, node: &Node) -> Result<(), Refusal> {
        match token {
            TokenUse::Founding if self.nodes.is_empty() => Ok(()),
            TokenUse::Founding => Err(Refusal::ClusterExists),
            TokenUse::Standing { generation } => {
                let newest = *generation == self.token_generation(node.role);
                newest.then_some(()).ok_or(Refusal::TokenRotated)
            }
            TokenUse::Limited { hash, now_s } => {
                let token = self.tokens.limited.get(hash);
                let token = token.filter(|token| token.role == node.role);
                let token = token.ok_or(Refusal::TokenUnknown)?;
                if token.is_over(*now_s) {
                    return Err(Refusal::TokenExpired);
                }
                let used_up = token.uses_left == Some(0) && !self.is_same_use(hash, node);
                (!used_up).then_some(()).ok_or(Refusal::TokenUsedUp)
            }
        }
    }

    /// Takes one use of a checked token for a node that is about to be taken in.
    pub(super) fn use_token(&mut self, token: TokenUse, node: &Node) {
        let TokenUse::Limited { hash, now_s: _ } = token else { return };
        let same_use = self.is_same_use(&hash, node);
        if let Some(token) = self.tokens.limited.get_mut(&hash)
            && !same_use
        {
            token.uses_left = token.uses_left.map(|left| left.saturating_sub(1));
        }
        self.tokens.unheard.insert(node.id, hash);
    }

    /// Notes that a node is heard, or gone: whoever comes with its key again needs a token anew.
    pub(super) fn end_token_use(&mut self, node: NodeId) {
        self.tokens.unheard.remove(&node);
    }

    pub(super) fn rotate_token(&mut self, role: Role, now_s: u64) -> Result<Applied, Refusal> {
        self.founded()?;
        *self.tokens.rotations.entry(role).or_default() += 1;
        self.tokens.sweep(now_s);
        let outcome = Outcome::Generation(self.token_generation(role));
        Ok(Applied { outcome, events: Vec::new() })
    }

    pub(super) fn create_token(&mut self, create: CreateToken) -> Result<Applied, Refusal> {
        self.founded()?;
        let CreateToken { hash, role, expires_at_s, uses, now_s } = create;
        let over = |token: &&LimitedToken| token.is_over(now_s) || token.uses_left == Some(0);
        let gone = self.tokens.limited.values().filter(over).count();
        if self.tokens.limited.len() - gone >= MAX_TOKENS {
            return Err(Refusal::TooManyTokens);
        }
        self.tokens.sweep(now_s);
        // One that is used up is kept while there is room, to be told from one that never was.
        if self.tokens.limited.len() >= MAX_TOKENS {
            self.tokens.limited.retain(|_, token| token.uses_left != Some(0));
        }
        self.tokens.limited.insert(hash, LimitedToken { role, expires_at_s, uses_left: uses });
        Ok(Applied { outcome: Outcome::Done, events: Vec::new() })
    }

    /// Tells whether a node came in by that token already and was not heard since.
    fn is_same_use(&self, hash: &TokenHash, node: &Node) -> bool {
        let of_token = self.tokens.unheard.iter().filter(|(_, other)| *other == hash);
        let mut nodes = of_token.filter_map(|(id, _)| self.nodes.get(id));
        nodes
            .any(|former| former.public_key == node.public_key && former.status == NodeStatus::Down)
    }
}

impl Tokens {
    fn sweep(&mut self, now_s: u64) {
        self.limited.retain(|_, token| !token.is_over(now_s));
    }
}

impl LimitedToken {
    fn is_over(&self, now_s: u64) -> bool {
        self.expires_at_s.is_some_and(|end| now_s >= end)
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for TokenHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for TokenHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a token's hash is 64 hexadecimal digits";
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong);
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong)?;
        }
        Ok(Self(hash))
    }
}
