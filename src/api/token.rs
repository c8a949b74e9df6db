//! The standing join tokens: `OVTKN-1-<digest of the root CA>-<secret>`. The digest lets the joiner
//! know the cluster before it says the secret; the secret lets the manager know the role.
//!
//! Both are base 36 as ids are: 50 characters for 32 bytes, 25 for 16.

use std::{fmt, str::FromStr};

use zeroize::Zeroizing;

use crate::types::Id;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate (DER).
    pub digest: [u8; 32],
    /// What decides the role.
    pub secret: Zeroizing<[u8; 16]>,
}

/// Says why a text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not start as ours do.
    #[error(
        "the token does not start with OVTKN-1-; copy the line that 'overlayctl join-token worker' prints"
    )]
    Prefix,
    /// Something is missing or too much.
    #[error(
        "the token is cut or bent; copy the whole line that 'overlayctl join-token worker' prints"
    )]
    Form,
}

impl JoinToken {
    /// Writes a secret as it stands in the token and in a join request.
    pub fn secret_text(&self) -> String {
        Id::<()>::from_bytes(*self.secret).to_string()
    }

    /// Reads a secret as it stands in a join request.
    ///
    /// # Errors
    /// It is not 25 characters of base 36.
    pub fn parse_secret(text: &str) -> Result<Zeroizing<[u8; 16]>, TokenError> {
        let id: Id<()> = text.parse().map_err(|_| TokenError::Form)?;
        Ok(Zeroizing::new(id.to_bytes()))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = self.digest.split_at(16);
        let half = |bytes: &[u8]| bytes.try_into().map(Id::<()>::from_bytes);
        let (high, low) = (half(high).map_err(|_| fmt::Error)?, half(low).map_err(|_| fmt::Error)?);
        write!(f, "{PREFIX}{high}{low}-{}", self.secret_text())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let (digest, secret) = rest.split_once('-').ok_or(TokenError::Form)?;
        let (high, low) = digest.split_at_checked(25).ok_or(TokenError::Form)?;
        let half = |text: &str| text.parse::<Id<()>>().map_err(|_| TokenError::Form);
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&half(high)?.to_bytes());
        bytes[16..].copy_from_slice(&half(low)?.to_bytes());
        Ok(Self { digest: bytes, secret: Self::parse_secret(secret)? })
    }
}

const PREFIX: &str = "OVTKN-1-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_token_are_the_same() {
        let token = JoinToken { digest: [0xab; 32], secret: Zeroizing::new([0x5c; 16]) };
        let text = token.to_string();
        assert_eq!(text.len(), 8 + 50 + 1 + 25);
        assert_eq!(text.parse(), Ok(token));
    }

    #[test]
    fn a_cut_or_bent_token_is_refused() {
        let token =
            JoinToken { digest: [0xab; 32], secret: Zeroizing::new([0x5c; 16]) }.to_string();
        for cut in 8..token.len() {
            assert_eq!(token[..cut].parse::<JoinToken>(), Err(TokenError::Form), "{cut}");
        }
        assert_eq!(token[..7].parse::<JoinToken>(), Err(TokenError::Prefix));
        assert_eq!("SWMTKN-1-a-b".parse::<JoinToken>(), Err(TokenError::Prefix));
        assert_eq!(format!("{token}x").parse::<JoinToken>(), Err(TokenError::Form));
        assert_eq!("OVTKN-1-ü".parse::<JoinToken>(), Err(TokenError::Form));
    }
}
