//! What all nodes of a network are told alike, kept until it changes: when many nodes ask for their
//! tables at once, each network is gathered once and not once a node.

use std::{collections::BTreeMap, sync::Arc};

use super::{Event, State};
use crate::types::{Endpoint, NetworkId, NodeId};

/// The endpoints of a network at some revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// All of them.
    pub endpoints: Vec<Endpoint>,
    /// How many are behind each node.
    pub behind: BTreeMap<NodeId, usize>,
}

/// The rosters that were asked for since their network changed.
#[derive(Debug, Default)]
pub struct Rosters {
    of: BTreeMap<NetworkId, Arc<Roster>>,
}

impl Roster {
    /// Gathers a network's.
    pub fn new(state: &State, network: NetworkId) -> Self {
        let endpoints: Vec<Endpoint> = state.endpoints_on(network).cloned().collect();
        let mut behind = BTreeMap::new();
        endpoints.iter().for_each(|endpoint| *behind.entry(endpoint.node).or_default() += 1);
        Self { endpoints, behind }
    }
}

impl Rosters {
    /// Returns a network's roster as the state stands.
    pub fn find(&mut self, state: &State, network: NetworkId) -> Arc<Roster> {
        let gather = || Arc::new(Roster::new(state, network));
        self.of.entry(network).or_insert_with(gather).clone()
    }

    /// Forgets what an event changed.
    pub fn handle_event(&mut self, event: &Event) {
        match event {
            Event::EndpointCreated(endpoint) | Event::EndpointRemoved(endpoint) => {
                self.of.remove(&endpoint.network);
            }
            Event::NetworkRemoved(network) => drop(self.of.remove(network)),
            Event::NodeChanged(_)
            | Event::NodeStatusChanged(..)
            | Event::RoleChanged(..)
            | Event::NodeRemoved(_)
            | Event::NetworkChanged(_)
            | Event::SecretsChanged
            | Event::NodeUpdated(_)
            | Event::ServiceChanged(_)
            | Event::ServiceRemoved(_)
            | Event::TaskChanged(_)
            | Event::TaskRemoved(_)
            | Event::RootsChanged => {}
        }
    }

    /// Forgets all of them: another state came.
    pub fn clear(&mut self) {
        self.of.clear();
    }
}
