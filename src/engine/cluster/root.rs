//! The root certificate and its successors. While nodes get certificates under a new root, the one
//! before is trusted as well; it is not once no node that is ready has a certificate under it. A node
//! that was down meanwhile finds its way by the bridges: each former root signed the one after it.
//!
//! ```text
//! root 0 --RotateRoot--> root 1, 0 trusted --NoteCertified (each node)--> --DropFormerRoot--> root 1
//! ```

use serde::{Deserialize, Serialize};

use super::{Applied, Event, Kind, Outcome, Refusal, State, limits::MAX_FORMER_ROOTS, unknown};
use crate::types::{Node, NodeId, NodeStatus};

/// A root that was.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerRoot {
    /// The root certificate (DER).
    pub root: Vec<u8>,
    /// The certificate of the root after it, signed by it (DER).
    pub bridge: Vec<u8>,
    /// Whether certificates under it are taken.
    pub trusted: bool,
}

/// See [`super::Command::RotateRoot`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateRoot {
    /// How often the root was rotated before, so that the bridge starts at the newest.
    pub rotations: u32,
    /// The new root certificate (DER).
    pub root: Vec<u8>,
    /// Its key, sealed.
    pub root_key: Vec<u8>,
    /// The new root's certificate, signed by the one before (DER).
    pub bridge: Vec<u8>,
}

impl State {
    /// Tells whether a root before the newest is trusted.
    pub fn is_root_rotating(&self) -> bool {
        let secrets = self.secrets();
        secrets.is_some_and(|secrets| secrets.former_roots.iter().any(|former| former.trusted))
    }

    /// Lists the nodes that are ready under a certificate of a root before the newest.
    pub fn under_former_roots(&self) -> impl Iterator<Item = &Node> {
        let rotations = self.secrets().map_or(0, |secrets| secrets.root_rotations);
        let ready = self.nodes().filter(|node| node.status == NodeStatus::Ready);
        ready.filter(move |node| self.certified_at(node.id) != rotations)
    }

    /// Returns how often the root had been rotated when a node's certificate was made.
    pub fn certified_at(&self, node: NodeId) -> u32 {
        self.certified.get(&node).copied().unwrap_or(0)
    }

    pub(super) fn rotate_root(&mut self, rotate: RotateRoot) -> Result<Applied, Refusal> {
        let under = self.under_former_roots().count();
        let rotating = self.is_root_rotating();
        let secrets = &mut self.founded()?.secrets;
        if rotating || rotate.rotations != secrets.root_rotations {
            return Err(Refusal::RootRotating { nodes: under });
        }
        let root = std::mem::replace(&mut secrets.root, rotate.root);
        secrets.root_key = rotate.root_key;
        secrets.root_rotations += 1;
        let former = FormerRoot { root, bridge: rotate.bridge, trusted: true };
        secrets.former_roots.insert(0, former);
        secrets.former_roots.truncate(MAX_FORMER_ROOTS);
        Ok(Applied { outcome: Outcome::Done, events: vec![Event::RootsChanged] })
    }

    /// Ends the trust in the roots before that of so many rotations.
    pub(super) fn drop_former_root(&mut self, rotations: u32) -> Result<Applied, Refusal> {
        let rotating = self.is_root_rotating();
        let secrets = &mut self.founded()?.secrets;
        let dropped = rotating && rotations == secrets.root_rotations;
        if dropped {
            secrets.former_roots.iter_mut().for_each(|former| former.trusted = false);
        }
        let events = dropped.then_some(Event::RootsChanged).into_iter().collect();
        Ok(Applied { outcome: Outcome::Done, events })
    }

    /// Notes under which root a node is about to get a certificate.
    pub(super) fn note_certified(
        &mut self,
        node: NodeId,
        rotations: u32,
    ) -> Result<Applied, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(unknown(Kind::Node, node));
        }
        self.certified.insert(node, rotations);
        Ok(Applied { outcome: Outcome::Done, events: Vec::new() })
    }
}

impl std::fmt::Debug for FormerRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FormerRoot(trusted {}, …)", self.trusted)
    }
}

impl std::fmt::Debug for RotateRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RotateRoot(rotations {}, …)", self.rotations)
    }
}
