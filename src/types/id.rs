//! Identifiers: 128 random bits, written as 25 characters of base 36 as Swarm's users know them.
//! They order like the numbers that they are ("the lower node id wins" is decided on that order).

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Identifies one object of kind `K`; never used again for another object.
pub struct Id<K> {
    value: u128,
    kind: PhantomData<fn() -> K>,
}

/// Marks the identifiers of nodes.
pub enum NodeKind {}
/// Marks the identifiers of networks.
pub enum NetworkKind {}
/// Marks the identifiers of endpoints.
pub enum EndpointKind {}
/// Marks the identifiers of services.
pub enum ServiceKind {}
/// Marks the identifiers of tasks.
pub enum TaskKind {}

/// Identifies a node.
pub type NodeId = Id<NodeKind>;
/// Identifies a network.
pub type NetworkId = Id<NetworkKind>;
/// Identifies an endpoint.
pub type EndpointId = Id<EndpointKind>;
/// Identifies a service.
pub type ServiceId = Id<ServiceKind>;
/// Identifies a task.
pub type TaskId = Id<TaskKind>;

/// Says that a text is not an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 25 characters of 0-9 and a-z")]
pub struct ParseIdError;

impl<K> Id<K> {
    /// Makes an identifier of 128 bits that the caller drew at random.
    pub const fn from_u128(value: u128) -> Self {
        Self { value, kind: PhantomData }
    }

    /// Returns the number behind the identifier.
    pub const fn as_u128(self) -> u128 {
        self.value
    }

    /// Returns the identifier as it stands in wire messages: big endian.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.value.to_be_bytes()
    }

    /// Reads an identifier from a wire message.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self::from_u128(u128::from_be_bytes(bytes))
    }
}

impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'0'; LENGTH];
        let mut rest = self.value;
        // In parts that a processor divides by itself: of 128 bits it takes many times as long, and
        // every id in every log entry and digest is written here.
        for part in text.rchunks_mut(PART) {
            let mut digits = (rest % 36u128.pow(PART as u32)) as u64;
            rest /= 36u128.pow(PART as u32);
            for place in part.iter_mut().rev() {
                *place = DIGITS[(digits % 36) as usize];
                digits /= 36;
            }
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl<K> FromStr for Id<K> {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != LENGTH {
            return Err(ParseIdError);
        }
        let mut value: u128 = 0;
        for byte in text.bytes() {
            let digit = DIGITS.iter().position(|&d| d == byte).ok_or(ParseIdError)?;
            value = value
                .checked_mul(36)
                .and_then(|v| v.checked_add(digit as u128))
                .ok_or(ParseIdError)?;
        }
        Ok(Self::from_u128(value))
    }
}

impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> Default for Id<K> {
    /// The id that no object has.
    fn default() -> Self {
        Self::from_u128(0)
    }
}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.value.cmp(&other.value)
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}

impl<K> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// 36^25 > 2^128: every identifier has exactly this length.
const LENGTH: usize = 25;
/// So many digits fit 64 bits.
const PART: usize = 12;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_are_the_same_identifier() {
        for value in [0, 1, 35, 36, u128::from(u64::MAX), u128::MAX] {
            let id = NodeId::from_u128(value);
            assert_eq!(id.to_string().len(), 25);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn what_is_not_an_identifier_is_refused() {
        for text in ["", "abc", "zzzzzzzzzzzzzzzzzzzzzzzzz", "A000000000000000000000000", "é"] {
            assert_eq!(text.parse::<NodeId>(), Err(ParseIdError), "{text}");
        }
    }
}
