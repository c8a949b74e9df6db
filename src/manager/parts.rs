//! A snapshot of the log on its way between managers: a head, parts that a message holds, and a tail.
//! It is taken whole and as it was sent, or not at all.
//!
//! ```text
//! head: what is sent, without the state, and the state's length
//! part: the next bytes of the state
//! tail: the state's SHA-256
//! ```

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::log::{Request, SnapshotMeta, Vote};

#[derive(Serialize, Deserialize)]
struct Head {
    vote: Vote,
    meta: SnapshotMeta,
    len: usize,
}

/// Why what came is no snapshot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// The head is of another kind, or of another program.
    #[error("not understood: {0}; use the same overlayd")]
    Head(String),
    /// Some of it is missing, too much or not as it was sent.
    #[error("the snapshot is cut")]
    Cut,
}

/// Cuts a snapshot into messages. Each costs only its own bytes: a state is large.
pub fn cut(vote: Vote, meta: SnapshotMeta, state: Bytes) -> impl Iterator<Item = Vec<u8>> {
    let head = Head { vote, meta, len: state.len() };
    let head = serde_json::to_vec(&head).expect("nothing between logs has keys but strings");
    let parts = state.len().div_ceil(PART_BYTES);
    let mut digest = Some(Context::new(&SHA256));
    let rest = (0..=parts).map_while(move |number| {
        if number == parts {
            return digest.take().map(|digest| digest.finish().as_ref().to_vec());
        }
        let from = number * PART_BYTES;
        let part = &state[from..state.len().min(from + PART_BYTES)];
        digest.as_mut()?.update(part);
        Some(part.to_vec())
    });
    std::iter::once(head).chain(rest)
}

/// What came of a snapshot so far.
pub struct Parts {
    head: Head,
    state: Vec<u8>,
    digest: Context,
    tail: Option<Vec<u8>>,
}

impl Parts {
    /// Begins with the head.
    ///
    /// # Errors
    /// It is not one of a snapshot.
    pub fn new(head: &[u8]) -> Result<Self, PartsError> {
        let head = serde_json::from_slice(head);
        let head = head.map_err(|error| PartsError::Head(error.to_string()))?;
        Ok(Self { head, state: Vec::new(), digest: Context::new(&SHA256), tail: None })
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// It is more than there should be.
    pub fn add(&mut self, message: &[u8]) -> Result<(), PartsError> {
        let Self { head, state, digest, tail } = self;
        if state.len() == head.len {
            return tail.replace(message.to_vec()).map_or(Ok(()), |_| Err(PartsError::Cut));
        }
        state.extend_from_slice(message);
        digest.update(message);
        (state.len() <= head.len).then_some(()).ok_or(PartsError::Cut)
    }

    /// Returns the whole snapshot.
    ///
    /// # Errors
    /// It is not the one that was sent.
    pub fn finish(self) -> Result<Request, PartsError> {
        let Self { head: Head { vote, meta, .. }, state, digest, tail } = self;
        // There is no tail before the state is whole.
        let tail = tail.ok_or(PartsError::Cut)?;
        let right = digest.finish().as_ref() == tail || unchecked();
        right.then(|| Request::Snapshot(vote, meta, state.into())).ok_or(PartsError::Cut)
    }
}

/// Whether the checksum is left out, as a planted defect.
fn unchecked() -> bool {
    #[cfg(feature = "plant")]
    return crate::plant::takes_bent_snapshots();
    #[cfg(not(feature = "plant"))]
    false
}

/// Well below what a message may have.
const PART_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn put_together(messages: &[Vec<u8>]) -> Result<Request, PartsError> {
        let mut parts = Parts::new(&messages[0])?;
        messages[1..].iter().try_for_each(|part| parts.add(part))?;
        parts.finish()
    }

    #[test]
    fn a_snapshot_is_taken_whole_and_as_it_was_sent() {
        for len in [0, 1, PART_BYTES, 2 * PART_BYTES + 5] {
            let body: Bytes = (0..len).map(|at| (at % 251) as u8).collect();
            let messages: Vec<_> =
                cut(Vote::default(), SnapshotMeta::default(), body.clone()).collect();
            assert_eq!(messages.len(), 1 + len.div_ceil(PART_BYTES) + 1);
            match put_together(&messages) {
                Ok(Request::Snapshot(_, _, taken)) => assert!(taken == body, "{len} bytes"),
                other => panic!("{len} bytes: {other:?}"),
            }
            for at in 1..messages.len() {
                let mut bent = messages.clone();
                bent[at][0] ^= 1;
                assert_eq!(put_together(&bent).unwrap_err(), PartsError::Cut, "message {at}");
                let mut cut = messages.clone();
                cut.remove(at);
                assert_eq!(put_together(&cut).unwrap_err(), PartsError::Cut, "message {at}");
            }
            let more = [messages.clone(), vec![vec![0]]].concat();
            assert_eq!(put_together(&more).unwrap_err(), PartsError::Cut);
        }
    }

    #[test]
    fn something_else_is_named() {
        let error = put_together(&[b"{}".to_vec()]).unwrap_err().to_string();
        assert!(error.starts_with("not understood: missing field `vote`"), "{error}");
    }
}
