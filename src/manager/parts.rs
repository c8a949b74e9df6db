//! A snapshot of the log on its way between managers: a head, then parts that a message holds. It is
//! taken whole and as it was sent, or not at all.
//!
//! ```text
//! head: what is sent, without the state; the state's length and SHA-256
//! part: the next bytes of the state
//! ```

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::log::{Request, SnapshotMeta, Vote};

#[derive(Serialize, Deserialize)]
struct Head {
    /// Without the state.
    request: Request,
    len: usize,
    /// SHA-256 of the state.
    digest: Vec<u8>,
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

/// Cuts a snapshot into messages: the head, then its parts.
pub fn cut(vote: Vote, meta: SnapshotMeta, body: Vec<u8>) -> impl Iterator<Item = Vec<u8>> {
    let head = Head {
        request: Request::Snapshot(vote, meta, Vec::new()),
        len: body.len(),
        digest: digest(&SHA256, &body).as_ref().to_vec(),
    };
    let head = serde_json::to_vec(&head).expect("nothing between logs has keys but strings");
    let parts = body.len().div_ceil(PART_BYTES);
    let part = move |number: usize| {
        let (from, to) = (number * PART_BYTES, body.len().min((number + 1) * PART_BYTES));
        body[from..to].to_vec()
    };
    std::iter::once(head).chain((0..parts).map(part))
}

/// What came of a snapshot so far.
pub struct Parts {
    vote: Vote,
    meta: SnapshotMeta,
    len: usize,
    digest: Vec<u8>,
    body: Vec<u8>,
}

impl Parts {
    /// Begins with the head.
    ///
    /// # Errors
    /// It is not one of a snapshot.
    pub fn new(head: &[u8]) -> Result<Self, PartsError> {
        let read = serde_json::from_slice(head);
        let Head { request, len, digest } =
            read.map_err(|error| PartsError::Head(error.to_string()))?;
        let Request::Snapshot(vote, meta, body) = request else {
            return Err(PartsError::Head("this is no snapshot".to_owned()));
        };
        Ok(Self { vote, meta, len, digest, body })
    }

    /// Takes the next part.
    ///
    /// # Errors
    /// It is more than there should be.
    pub fn add(&mut self, part: &[u8]) -> Result<(), PartsError> {
        self.body.extend_from_slice(part);
        (self.body.len() <= self.len).then_some(()).ok_or(PartsError::Cut)
    }

    /// Returns the whole snapshot.
    ///
    /// # Errors
    /// It is not the one that was sent.
    pub fn finish(self) -> Result<Request, PartsError> {
        let whole = self.body.len() == self.len
            && (digest(&SHA256, &self.body).as_ref() == self.digest || unchecked());
        let Self { vote, meta, body, .. } = self;
        whole.then_some(Request::Snapshot(vote, meta, body)).ok_or(PartsError::Cut)
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
            let body: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let messages: Vec<_> =
                cut(Vote::default(), SnapshotMeta::default(), body.clone()).collect();
            assert_eq!(messages.len(), 1 + len.div_ceil(PART_BYTES));
            match put_together(&messages) {
                Ok(Request::Snapshot(_, _, taken)) => assert!(taken == body, "{len} bytes"),
                other => panic!("{len} bytes: {other:?}"),
            }
            if len > 0 {
                let mut bent = messages.clone();
                bent.last_mut().unwrap()[0] ^= 1;
                assert_eq!(put_together(&bent).unwrap_err(), PartsError::Cut);
                let (_, cut) = messages.split_last().unwrap();
                assert_eq!(put_together(cut).unwrap_err(), PartsError::Cut);
            }
            let more = [messages.clone(), vec![vec![0]]].concat();
            assert_eq!(put_together(&more).unwrap_err(), PartsError::Cut);
        }
    }

    #[test]
    fn something_else_is_named() {
        let error = put_together(&[b"{}".to_vec()]).unwrap_err().to_string();
        assert!(error.starts_with("not understood: missing field `request`"), "{error}");
    }
}
