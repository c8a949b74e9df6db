//! The agent's copy of its table while a stream keeps it up to date. A step costs what changes, not
//! what the table holds; a copy that a step did not fit is of no more use until a snapshot has
//! replaced what is wrong.
//!
//! ```text
//!           snapshot (whole)                delta that fits, bookmark that agrees
//! unknown ----------------------> current <---------------------------------------.
//!    ^                              |  |  '-----------------------------------------'
//!    |   delta that does not fit    |  |  bookmark that disagrees
//!    '------------------------------'  '-> current, some scopes in doubt -- snapshot of those --> current
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Table, TableError, digest};
use crate::types::{
    Digest, Endpoint, EndpointId, Network, NetworkId, NodeId, NodeTask, Peer, Position, ScopeId,
};

/// The copy.
#[derive(Clone, Debug)]
pub struct Replica {
    table: Table,
    standing: Standing,
    /// Endpoints behind each node.
    behind: BTreeMap<NodeId, usize>,
    networks: BTreeMap<NetworkId, NetworkSums>,
    peers: Digest,
    tasks: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Deltas go on from here.
    Current,
    /// Nothing is known of it until a whole snapshot comes.
    Unknown,
}

/// What is counted of a network.
#[derive(Clone, Copy, Debug, Default)]
struct NetworkSums {
    digest: Digest,
    endpoints: usize,
}

/// A snapshot of a whole table or of some scopes of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is as of.
    pub position: Position,
    /// The scopes that it replaces; of a network that it names and does not hold nothing is left.
    /// `None` is the whole table.
    pub scopes: Option<BTreeSet<ScopeId>>,
    /// Its networks.
    pub networks: Vec<Network>,
    /// Its peers.
    pub peers: Vec<Peer>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The node's tasks.
    pub tasks: Vec<NodeTask>,
}

impl Replica {
    /// Goes on from a table of an earlier stream, or process.
    pub fn new(table: Table) -> Self {
        let mut replica = Self {
            standing: if table.revision == 0 { Standing::Unknown } else { Standing::Current },
            table,
            behind: BTreeMap::new(),
            networks: BTreeMap::new(),
            peers: Digest::default(),
            tasks: Digest::default(),
        };
        replica.count();
        replica
    }

    /// Returns the table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Returns what the table is as of.
    pub fn position(&self) -> Position {
        self.table.position()
    }

    /// Returns the digest of every scope that the table has, in the order of the scopes.
    pub fn digests(&self) -> Vec<(ScopeId, Digest)> {
        let networks = self.networks.iter().map(|(id, sums)| (ScopeId::Network(*id), sums.digest));
        networks.chain([(ScopeId::Peers, self.peers), (ScopeId::Tasks, self.tasks)]).collect()
    }

    /// Takes a snapshot in the place of what it replaces.
    ///
    /// # Errors
    /// It is older than the table, or the result does not hang together. Then a whole one is due.
    pub fn handle_snapshot(&mut self, snapshot: Snapshot) -> Result<(), TableError> {
        let (given, held) = (snapshot.position, self.position());
        if given < held {
            return Err(TableError::Older { given, held });
        }
        let Some(scopes) = &snapshot.scopes else {
            let mut table = Table::empty(self.table.node);
            extend(&mut table, snapshot);
            return self.replace(table);
        };
        if self.standing == Standing::Unknown || given.epoch != held.epoch {
            return Err(TableError::PartOfUnknown);
        }
        // Whatever comes of it, nothing older is taken later.
        let nothing =
            Table { epoch: held.epoch, revision: held.revision, ..Table::empty(self.table.node) };
        let mut table = std::mem::replace(&mut self.table, nothing);
        self.standing = Standing::Unknown;
        for scope in scopes {
            match scope {
                ScopeId::Network(id) => {
                    table.networks.remove(id);
                    table.endpoints.retain(|_, endpoint| endpoint.network != *id);
                }
                ScopeId::Peers => table.peers.clear(),
                ScopeId::Tasks => table.tasks.clear(),
            }
        }
        extend(&mut table, snapshot);
        self.replace(table)
    }

    /// Takes the changes of `(from, to]`.
    ///
    /// # Errors
    /// The delta does not start where the table stands, or its result does not hang together. Then
    /// a whole snapshot is due.
    pub fn handle_delta(
        &mut self,
        from: Position,
        to: Position,
        changes: Vec<Change>,
    ) -> Result<(), TableError> {
        let held = self.position();
        if self.standing == Standing::Unknown {
            return Err(TableError::PartOfUnknown);
        }
        if to < from || to.epoch != held.epoch || to.revision < held.revision {
            return Err(TableError::Older { given: to, held });
        }
        if from != held && !takes_gaps() {
            return Err(TableError::Gap { from, held });
        }
        self.standing = Standing::Unknown;
        let mut touched = Touched::default();
        for change in changes {
            self.apply(change, &mut touched)?;
        }
        self.check(&touched)?;
        self.table.revision = to.revision;
        self.standing = Standing::Current;
        Ok(())
    }

    /// Compares digests that hold at a position; returns the scopes that differ.
    ///
    /// # Errors
    /// The table does not stand there. Then a whole snapshot is due.
    pub fn handle_bookmark(
        &mut self,
        position: Position,
        digests: &[(ScopeId, Digest)],
    ) -> Result<BTreeSet<ScopeId>, TableError> {
        let held = self.position();
        if self.standing == Standing::Unknown || position.epoch != held.epoch {
            return Err(TableError::PartOfUnknown);
        }
        if position < held {
            return Err(TableError::Older { given: position, held });
        }
        if position > held {
            return Err(TableError::Gap { from: position, held });
        }
        let theirs: BTreeMap<_, _> = digests.iter().copied().collect();
        let ours: BTreeMap<_, _> = self.digests().into_iter().collect();
        let all = theirs.keys().chain(ours.keys());
        Ok(all.filter(|scope| theirs.get(scope) != ours.get(scope)).copied().collect())
    }

    fn replace(&mut self, table: Table) -> Result<(), TableError> {
        table.check()?;
        self.table = table;
        self.standing = Standing::Current;
        self.count();
        Ok(())
    }

    /// Counts anew what steps keep up to date.
    fn count(&mut self) {
        let table = &self.table;
        self.peers = table.peers.values().map(digest::of_peer).collect();
        self.tasks = table.tasks.values().map(digest::of_task).collect();
        let of_network =
            |network: &Network| NetworkSums { digest: digest::of_network(network), endpoints: 0 };
        self.networks =
            table.networks.iter().map(|(id, network)| (*id, of_network(network))).collect();
        self.behind.clear();
        for endpoint in table.endpoints.values() {
            *self.behind.entry(endpoint.node).or_default() += 1;
            let sums = self.networks.entry(endpoint.network).or_default();
            sums.digest.add(digest::of_endpoint(endpoint));
            sums.endpoints += 1;
        }
    }

    fn apply(&mut self, change: Change, touched: &mut Touched) -> Result<(), TableError> {
        match change {
            Change::Network(network) => {
                let sums = self.networks.entry(network.id).or_default();
                sums.digest.add(digest::of_network(&network));
                if let Some(old) = self.table.networks.insert(network.id, network) {
                    sums.digest.remove(digest::of_network(&old));
                }
            }
            Change::NetworkGone(id) => {
                let old = self.table.networks.remove(&id).ok_or(TableError::UnknownNetwork(id))?;
                if let Some(sums) = self.networks.get_mut(&id) {
                    sums.digest.remove(digest::of_network(&old));
                }
                touched.networks_gone.insert(id);
            }
            Change::Peer(peer) => {
                self.peers.add(digest::of_peer(&peer));
                if let Some(old) = self.table.peers.insert(peer.id, peer) {
                    self.peers.remove(digest::of_peer(&old));
                }
            }
            Change::PeerGone(id) => {
                let old = self.table.peers.remove(&id).ok_or(TableError::StrayPeer(id))?;
                self.peers.remove(digest::of_peer(&old));
                touched.peers_gone.insert(id);
            }
            Change::Endpoint(_) if loses_a_change() => {}
            Change::Endpoint(endpoint) => {
                touched.endpoints.insert(endpoint.id);
                self.add_endpoint(&endpoint);
                if let Some(old) = self.table.endpoints.insert(endpoint.id, endpoint) {
                    self.remove_endpoint(&old);
                }
            }
            Change::EndpointGone(id) => {
                let old = self.table.endpoints.remove(&id).ok_or(TableError::StrayEndpoint(id))?;
                self.remove_endpoint(&old);
            }
            Change::Task(task) => {
                self.tasks.add(digest::of_task(&task));
                if let Some(old) = self.table.tasks.insert(task.id, *task) {
                    self.tasks.remove(digest::of_task(&old));
                }
            }
            Change::TaskGone(id) => {
                let old = self.table.tasks.remove(&id).ok_or(TableError::UnknownTask(id))?;
                self.tasks.remove(digest::of_task(&old));
            }
        }
        Ok(())
    }

    fn add_endpoint(&mut self, endpoint: &Endpoint) {
        *self.behind.entry(endpoint.node).or_default() += 1;
        let sums = self.networks.entry(endpoint.network).or_default();
        sums.digest.add(digest::of_endpoint(endpoint));
        sums.endpoints += 1;
    }

    fn remove_endpoint(&mut self, endpoint: &Endpoint) {
        if let Some(behind) = self.behind.get_mut(&endpoint.node) {
            *behind -= 1;
            if *behind == 0 {
                self.behind.remove(&endpoint.node);
            }
        }
        if let Some(sums) = self.networks.get_mut(&endpoint.network) {
            sums.digest.remove(digest::of_endpoint(endpoint));
            sums.endpoints -= 1;
        }
    }

    /// Checks that every reference of what was touched leads to something in the table.
    fn check(&mut self, touched: &Touched) -> Result<(), TableError> {
        let (table, own) = (&self.table, self.table.node);
        for id in &touched.endpoints {
            let Some(endpoint) = table.endpoints.get(id) else { continue };
            let known = endpoint.node == own || table.peers.contains_key(&endpoint.node);
            if !known || !table.networks.contains_key(&endpoint.network) {
                return Err(TableError::StrayEndpoint(*id));
            }
        }
        if table.peers.contains_key(&own) {
            return Err(TableError::StrayPeer(own));
        }
        let peer_in_use = |id: &&NodeId| {
            !table.peers.contains_key(id) && self.behind.contains_key(id) && **id != own
        };
        if let Some(id) = touched.peers_gone.iter().find(peer_in_use) {
            return Err(TableError::PeerInUse(*id));
        }
        for id in touched.networks_gone.iter().filter(|id| !table.networks.contains_key(id)) {
            if self.networks.get(id).is_some_and(|sums| sums.endpoints > 0) {
                return Err(TableError::NetworkInUse(*id));
            }
            self.networks.remove(id);
        }
        Ok(())
    }
}

/// What a delta touched, to be looked at when all of it is there.
#[derive(Default)]
struct Touched {
    endpoints: BTreeSet<EndpointId>,
    peers_gone: BTreeSet<NodeId>,
    networks_gone: BTreeSet<NetworkId>,
}

/// Whether deltas are taken wherever they go on from, as a planted defect.
fn takes_gaps() -> bool {
    #[cfg(feature = "plant")]
    return crate::plant::takes_gaps();
    #[cfg(not(feature = "plant"))]
    false
}

/// Whether this change is lost, as a planted defect.
fn loses_a_change() -> bool {
    #[cfg(feature = "plant")]
    return crate::plant::loses_a_change();
    #[cfg(not(feature = "plant"))]
    false
}

fn extend(table: &mut Table, snapshot: Snapshot) {
    let Snapshot { position, scopes: _, networks, peers, endpoints, tasks } = snapshot;
    (table.epoch, table.revision) = (position.epoch, position.revision);
    table.networks.extend(networks.into_iter().map(|network| (network.id, network)));
    table.peers.extend(peers.into_iter().map(|peer| (peer.id, peer)));
    table.endpoints.extend(endpoints.into_iter().map(|endpoint| (endpoint.id, endpoint)));
    table.tasks.extend(tasks.into_iter().map(|task| (task.id, task)));
}

#[cfg(test)]
mod tests;
