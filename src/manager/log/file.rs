//! The log on disk: one redb file with the latest entries, the snapshot before most of them, and what
//! openraft must not forget.
//!
//! ```text
//! entries:   index -> record of an entry (JSON)
//! snapshot:  see the module of snapshots
//! meta:      see Meta
//! ```
//! What is in it after any call that returned `Ok` stays through a power cut, and a call that broke
//! off left all or nothing: every change is one transaction, committed in two phases, each of them
//! synced. What cannot be read whole is not read at all.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    ops::RangeBounds,
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use openraft::{CommittedLeaderId, Membership};
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    StorageBackend, TableDefinition, TableError, WriteTransaction, backends::FileBackend,
};
use serde::de::DeserializeOwned;

use super::{
    machine::{self, Replica},
    raft::{Entry, LogId, SnapshotMeta, StoredMembership},
    record::{self, Position, RecordError},
    snapshot::{self, Draft},
    store::{Kept, json},
};
use crate::{engine::cluster::State, types::NodeId};

/// A log's file, held by this process, and what it held when it was opened.
pub struct LogFile {
    pub(super) database: Database,
    pub(super) path: PathBuf,
    pub(super) held: Held,
}

/// What a log's file holds.
#[derive(Default)]
pub(super) struct Held {
    /// The manager whose log it is, once one has taken it.
    pub owner: Option<NodeId>,
    pub kept: Kept,
    pub replica: Replica,
    pub extent: Extent,
}

impl Held {
    /// Whether its owner decides alone: then all that is in the log is committed.
    pub fn is_alone(&self) -> bool {
        let newest = self.kept.entries.values().rev().find_map(|(entry, _)| match &entry.payload {
            openraft::EntryPayload::Membership(membership) => Some(membership),
            openraft::EntryPayload::Blank | openraft::EntryPayload::Normal(_) => None,
        });
        let membership = newest.unwrap_or(self.replica.membership.membership());
        membership.voter_ids().eq(self.owner)
    }
}

/// What is kept once, beside entries and snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    /// Whose log it is.
    Owner = 0,
    /// The vote.
    Vote = 1,
    /// How far the log was known to be committed.
    Committed = 2,
    /// The last entry that was removed.
    Purged = 3,
}

/// How much stands in the file, and up to where.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    pub entries: u64,
    pub entry_bytes: u64,
    pub snapshot_bytes: u64,
    /// The last entry that the snapshot stands for.
    pub snapshot: Option<LogId>,
    /// The index that the next entry has, unless it may have any.
    pub next: Option<u64>,
    /// Up to where there may be entries that are purged.
    pub purged: Option<u64>,
}

/// Why a log cannot be opened. Nothing of it is used, and the file is left for whoever looks at it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's sentence says what it is")]
pub enum OpenError {
    #[error("the log {} is there already: this state folder holds a cluster; remove {} to give that cluster up", .path.display(), folder(.path))]
    Exists { path: PathBuf },
    #[error("the log {} is not there; restore a backup with overlayd --restore", .path.display())]
    Missing { path: PathBuf },
    #[error("the log {}: {what} was written by a newer overlayd; start that version again", .path.display())]
    Newer { path: PathBuf, what: String },
    #[error("the log {}: {what} was written by an older overlayd; make a backup with that version, then restore it with this one", .path.display())]
    Older { path: PathBuf, what: String },
    #[error("the log {} is damaged: {what}; where other managers go on, demote this node there, remove {} and start overlayd; otherwise restore a backup with overlayd --restore", .path.display(), folder(.path))]
    Damaged { path: PathBuf, what: String },
    #[error("the log {} is in use by another process; end that one", .path.display())]
    InUse { path: PathBuf },
    #[error("the log {} is that of manager {owner}, and this is {manager}; put the state folders back as they were", .path.display())]
    Foreign { path: PathBuf, owner: NodeId, manager: NodeId },
    #[error("the log {}: {error}; check that disk, its space, and who may write there", .path.display())]
    Io { path: PathBuf, error: io::Error },
}

fn folder(path: &Path) -> std::path::Display<'_> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).display()
}

impl LogFile {
    /// Makes an empty log, which only its owner may read.
    ///
    /// # Errors
    /// There is one already, or the disk does not take it; nothing is left.
    pub fn create(path: &Path) -> Result<Self, OpenError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => OpenError::Exists { path: path.to_owned() },
            _ => OpenError::Io { path: path.to_owned(), error },
        };
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).map_err(failed)?;
        let made = backend(file, path).and_then(|backend| Self::create_on(backend, path));
        let made = made.and_then(|made| {
            // The name is as durable as the file from here on.
            let folder = path.parent().unwrap_or(Path::new("."));
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
            Ok(made)
        });
        if made.is_err() {
            // What cannot be removed is found and named by the next attempt.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Makes a log that begins with a state.
    ///
    /// # Errors
    /// There is one already, or the disk does not take it; nothing is left.
    pub fn create_with(path: &Path, state: State) -> Result<Self, OpenError> {
        let mut made = Self::create(path)?;
        let meta = machine::meta(None, StoredMembership::default());
        made.held.replica.made.state = state;
        let draft = Draft::new(meta, json(&made.held.replica.made).into());
        made.held.extent.snapshot_bytes = draft.bytes();
        let written = write(&made.database, |transaction| draft.put(transaction));
        if let Err(error) = written {
            // What cannot be removed is found and named by the next attempt.
            let _ = std::fs::remove_file(path);
            return Err(open_error(path, error));
        }
        Ok(made)
    }

    /// Makes a manager decide alone from here on, with all that is in the log: also with what the others
    /// never agreed to, of which nobody can say any more whether they did.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn force_alone(&mut self, manager: NodeId) -> Result<(), OpenError> {
        let Held { kept, replica, extent, .. } = &mut self.held;
        let first = replica.applied.map_or(0, |applied| applied.index + 1);
        for (entry, _) in std::mem::take(&mut kept.entries).split_off(&first).into_values() {
            let _ = replica.apply(entry, |_, _, _| {});
        }
        let last = replica.applied;
        let alone = Membership::new(vec![BTreeSet::from([manager])], None);
        replica.membership = StoredMembership::new(last, alone);
        (kept.purged, kept.committed) = (last, last);
        let meta = machine::meta(last, replica.membership.clone());
        let draft = Draft::new(meta, json(&replica.made).into());
        let next = last.map(|last| last.index + 1);
        *extent =
            Extent { snapshot_bytes: draft.bytes(), snapshot: last, next, ..Extent::default() };
        let written = write(&self.database, |transaction| {
            remove_entries(transaction, ..)?;
            put_meta(transaction, Meta::Purged, &json(&last))?;
            put_meta(transaction, Meta::Committed, &json(&last))?;
            draft.put(transaction)
        });
        written.map_err(|error| open_error(&self.path, error))
    }

    /// Makes the log that of a manager, if nobody has taken it yet: of one that decides alone, or of
    /// one that joins others and hears from them who they are.
    ///
    /// # Errors
    /// It is another manager's, or the disk does not take it.
    pub(super) fn claim(&mut self, manager: NodeId, joins: bool) -> Result<(), OpenError> {
        match self.held.owner {
            Some(owner) if owner == manager => return Ok(()),
            Some(owner) => {
                return Err(OpenError::Foreign { path: self.path.clone(), owner, manager });
            }
            None => {}
        }
        self.held.owner = Some(manager);
        let own =
            |transaction: &WriteTransaction| put_meta(transaction, Meta::Owner, &json(&manager));
        let written = if joins {
            write(&self.database, own)
        } else {
            let first = LogId::new(CommittedLeaderId::new(0, manager), 0);
            let alone = Membership::new(vec![BTreeSet::from([manager])], None);
            let Held { kept, replica, extent, .. } = &mut self.held;
            kept.purged = Some(first);
            replica.applied = Some(first);
            replica.membership = StoredMembership::new(Some(first), alone);
            let meta = machine::meta(Some(first), replica.membership.clone());
            let draft = Draft::new(meta, json(&replica.made).into());
            (extent.snapshot, extent.snapshot_bytes) = (Some(first), draft.bytes());
            extent.next = Some(first.index + 1);
            write(&self.database, |transaction| {
                own(transaction)?;
                put_meta(transaction, Meta::Purged, &json(&first))?;
                draft.put(transaction)
            })
        };
        written.map_err(|error| open_error(&self.path, error))
    }

    /// Opens the log of an earlier run.
    ///
    /// # Errors
    /// It is not there, in use, damaged, or of a newer program.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OpenError::Missing { path: path.to_owned() },
            _ => OpenError::Io { path: path.to_owned(), error },
        })?;
        Self::open_on(backend(file, path)?, path)
    }

    /// Makes an empty log on storage that `path` names in sentences.
    ///
    /// # Errors
    /// The storage does not take it.
    pub fn create_on(backend: impl StorageBackend, path: &Path) -> Result<Self, OpenError> {
        let make = || {
            let database = builder().create_with_backend(backend)?;
            write(&database, |transaction| {
                transaction.open_table(ENTRIES)?;
                snapshot::create(transaction)?;
                transaction.open_table(META)?;
                Ok(())
            })?;
            Ok(database)
        };
        let database = make().map_err(|error| open_error(path, error))?;
        Ok(Self { database, path: path.to_owned(), held: Held::default() })
    }

    /// Opens the log on storage that `path` names in sentences: checks every page and every
    /// record, and makes the state from them.
    ///
    /// # Errors
    /// It is damaged, or of a newer program.
    pub fn open_on(backend: impl StorageBackend, path: &Path) -> Result<Self, OpenError> {
        let damaged = |what: &str| OpenError::Damaged { path: path.to_owned(), what: what.into() };
        // redb makes a new database of an empty file; ours was never empty.
        match backend.len() {
            Ok(0) => return Err(damaged("the file is empty")),
            Ok(_) => {}
            Err(error) => return Err(OpenError::Io { path: path.to_owned(), error }),
        }
        let open = || {
            let database = builder().create_with_backend(backend).map_err(redb::Error::from)?;
            let held = load(&database.begin_read()?, path)?;
            Ok(Self { database, path: path.to_owned(), held })
        };
        // redb takes some damage for a defect of its own, and panics.
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(LoadError::Storage(error))) => Err(open_error(path, error)),
            Ok(Err(LoadError::Refused(error))) => Err(error),
            Err(_) => Err(damaged("reading it broke off")),
        }
    }

    /// Whether it is a manager's, or nobody's yet.
    pub fn is_of(&self, manager: NodeId) -> bool {
        self.held.owner.is_none_or(|owner| owner == manager)
    }

    /// Whether a manager may decide, by what was decided or what came after that.
    pub fn decides(&self, manager: NodeId) -> bool {
        let Held { kept, replica, .. } = &self.held;
        let applied = replica.applied.map_or(0, |applied| applied.index);
        let newer =
            kept.entries.range(applied..).filter_map(|(_, (entry, _))| match &entry.payload {
                openraft::EntryPayload::Membership(membership) => Some(membership),
                openraft::EntryPayload::Blank | openraft::EntryPayload::Normal(_) => None,
            });
        let mut all = newer.chain([replica.membership.membership()]);
        all.any(|membership| membership.voter_ids().any(|voter| voter == manager))
    }

    /// Returns the state that the log makes, as far as it is known to be committed.
    pub fn state(&self) -> &State {
        &self.held.replica.made.state
    }
}

/// Puts entries, as JSON, behind what there is.
pub(super) fn put_entries(
    transaction: &WriteTransaction,
    entries: &[(u64, Vec<u8>)],
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(ENTRIES)?;
    for (index, body) in entries {
        table.insert(index, record::seal(Position::Entry(*index), body).as_slice())?;
    }
    Ok(())
}

/// Removes the entries of some indices.
pub(super) fn remove_entries(
    transaction: &WriteTransaction,
    indices: impl RangeBounds<u64>,
) -> Result<(), redb::Error> {
    transaction.open_table(ENTRIES)?.retain_in(indices, |_, _| false)?;
    Ok(())
}

/// Removes entries that are purged, up to an index but only so many; tells whether there are more.
pub(super) fn remove_purged(
    transaction: &WriteTransaction,
    upto: u64,
    most: usize,
) -> Result<bool, redb::Error> {
    let mut table = transaction.open_table(ENTRIES)?;
    let last = table.range(..=upto)?.nth(most - 1).transpose()?.map(|(index, _)| index.value());
    table.retain_in(..=last.unwrap_or(upto), |_, _| false)?;
    Ok(last.is_some())
}

/// Puts something, as JSON, in the place of what it was.
pub(super) fn put_meta(
    transaction: &WriteTransaction,
    meta: Meta,
    body: &[u8],
) -> Result<(), redb::Error> {
    let number = meta as u64;
    let record = record::seal(Position::Meta(number), body);
    transaction.open_table(META)?.insert(number, record.as_slice())?;
    Ok(())
}

/// Has a change made durable, whole or not at all.
pub(super) fn write<T>(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // Without it a crash may bring back the commit before the last, or leave a torn one.
    transaction.set_two_phase_commit(true);
    let changed = change(&transaction)?;
    transaction.commit()?;
    Ok(changed)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn backend(file: File, path: &Path) -> Result<FileBackend, OpenError> {
    FileBackend::new(file).map_err(|error| open_error(path, error.into()))
}

pub(super) enum LoadError {
    Storage(redb::Error),
    Refused(OpenError),
}

impl LoadError {
    /// What it is while the file is in use: an error of the disk.
    pub fn into_failure(self) -> redb::Error {
        match self {
            Self::Storage(error) => error,
            Self::Refused(refused) => redb::Error::Corrupted(refused.to_string()),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Storage(error.into())
    }
}

/// Says what is wrong with a file of this name.
pub(super) struct Named<'a> {
    path: &'a Path,
}

impl Named<'_> {
    /// Leaves the name out.
    pub fn nothing() -> Self {
        Self { path: Path::new("") }
    }

    pub fn damaged(&self, what: String) -> LoadError {
        LoadError::Refused(OpenError::Damaged { path: self.path.to_owned(), what })
    }

    pub fn open<'a>(
        &self,
        what: &str,
        position: Position,
        record: &'a [u8],
    ) -> Result<&'a [u8], LoadError> {
        record::open(position, record).map_err(|error| match error {
            RecordError::Newer(_) => LoadError::Refused(OpenError::Newer {
                path: self.path.to_owned(),
                what: what.to_owned(),
            }),
            RecordError::Older(_) => LoadError::Refused(OpenError::Older {
                path: self.path.to_owned(),
                what: what.to_owned(),
            }),
            RecordError::Checksum | RecordError::Cut => self.damaged(format!("{what}: {error}")),
        })
    }

    pub fn read<T: DeserializeOwned>(
        &self,
        what: &str,
        position: Position,
        record: &[u8],
    ) -> Result<T, LoadError> {
        let body = self.open(what, position, record)?;
        serde_json::from_slice(body).map_err(|error| self.damaged(format!("{what}: {error}")))
    }
}

/// Reads all of it, and makes the state: the snapshot, and every entry behind it that is known to be
/// committed.
fn load(transaction: &ReadTransaction, path: &Path) -> Result<Held, LoadError> {
    let named = Named { path };
    let mut held = Held::default();
    if let Some((meta, json)) = snapshot::load(transaction, &named)? {
        let made = serde_json::from_slice(&json)
            .map_err(|error| named.damaged(format!("the snapshot: {error}")))?;
        let SnapshotMeta { last_log_id: applied, last_membership: membership, .. } = meta;
        held.replica = Replica { made, applied, membership };
        held.extent.snapshot = applied;
        held.extent.snapshot_bytes = json.len() as u64;
    }
    let table = transaction.open_table(META).map_err(|error| match error {
        // The first format had none, nor anything else of its kind.
        TableError::TableDoesNotExist(_) => LoadError::Refused(OpenError::Older {
            path: path.to_owned(),
            what: "all of it".to_owned(),
        }),
        error => LoadError::from(error),
    })?;
    let meta = |meta: Meta| table.get(meta as u64);
    let position = |meta: Meta| Position::Meta(meta as u64);
    if let Some(record) = meta(Meta::Owner)? {
        held.owner = named.read("its owner", position(Meta::Owner), record.value())?;
    }
    if let Some(record) = meta(Meta::Vote)? {
        held.kept.vote = named.read("the vote", position(Meta::Vote), record.value())?;
    }
    if let Some(record) = meta(Meta::Committed)? {
        let what = "what is committed";
        held.kept.committed = named.read(what, position(Meta::Committed), record.value())?;
    }
    if let Some(record) = meta(Meta::Purged)? {
        held.kept.purged =
            named.read("what was removed", position(Meta::Purged), record.value())?;
    }
    load_entries(transaction, &named, &mut held)?;
    Ok(held)
}

fn load_entries(
    transaction: &ReadTransaction,
    named: &Named<'_>,
    held: &mut Held,
) -> Result<(), LoadError> {
    let mut wanted = held.kept.first();
    // Those before it are still to be removed.
    for record in transaction.open_table(ENTRIES)?.range(wanted..)? {
        let (index, record) = record?;
        let index = index.value();
        if index != wanted {
            return Err(named.damaged(format!("entry {wanted} is missing before entry {index}")));
        }
        let what = format!("entry {index}");
        let entry: Entry = named.read(&what, Position::Entry(index), record.value())?;
        if entry.log_id.index != index {
            return Err(named.damaged(format!("{what} is entry {}", entry.log_id.index)));
        }
        held.extent.entries += 1;
        held.extent.entry_bytes += record.value().len() as u64;
        held.kept.entries.insert(index, (entry, record.value().len()));
        wanted += 1;
    }
    held.extent.next =
        (held.kept.purged.is_some() || !held.kept.entries.is_empty()).then_some(wanted);
    let committed = match held.is_alone() {
        true => Some(wanted),
        false => held.kept.committed.map(|committed| committed.index + 1),
    };
    let first = held.replica.applied.map_or(0, |applied| applied.index + 1);
    let Held { kept, replica, .. } = held;
    if let Some(end) = committed.filter(|end| first < *end) {
        for entry in kept.entries.range(first..end).map(|(_, (entry, _))| entry.clone()) {
            // That a command was refused is a part of the log as well.
            let _ = replica.apply(entry, |_, _, _| {});
        }
    }
    Ok(())
}

fn open_error(path: &Path, error: redb::Error) -> OpenError {
    let path = path.to_owned();
    match error {
        // What the system did not say, redb concluded from the bytes.
        redb::Error::Io(error) if error.raw_os_error().is_some() => OpenError::Io { path, error },
        redb::Error::DatabaseAlreadyOpen => OpenError::InUse { path },
        error => OpenError::Damaged { path, what: error.to_string() },
    }
}

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("meta");
/// Entries are written once and read at the start: the cache holds the pages of one transaction.
const CACHE_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::{
        super::{machine::Made, snapshot::PART_BYTES},
        *,
    };

    fn refused(made: &LogFile) -> String {
        match load(&made.database.begin_read().unwrap(), &made.path) {
            Err(LoadError::Refused(error)) => error.to_string(),
            Err(LoadError::Storage(error)) => panic!("{error}"),
            Ok(_) => panic!("it was taken"),
        }
    }

    fn made() -> LogFile {
        let mut made = LogFile::create_on(InMemoryBackend::new(), Path::new("log.redb")).unwrap();
        made.claim(NodeId::from_u128(1), false).unwrap();
        made
    }

    #[test]
    fn a_command_that_this_program_does_not_know_is_named() {
        let made = made();
        let entry = r#"{"log_id":{"leader_id":{"term":1,"node_id":"0000000000000000000000001"},"index":1},"payload":{"Normal":{"id":"0000000000000000000000007","commands":[{"Unheard":1}]}}}"#;
        write(&made.database, |t| put_entries(t, &[(1, entry.into())])).unwrap();
        let error = refused(&made);
        let start = "the log log.redb is damaged: entry 1: unknown variant `Unheard`, ";
        assert!(error.starts_with(start), "{error}");
    }

    /// What the next version of openraft, or of a command, must still read.
    #[test]
    fn an_entry_is_written_as_ever() {
        let text = r#"{"log_id":{"leader_id":{"term":3,"node_id":"0000000000000000000000001"},"index":1},"payload":{"Normal":{"id":"0000000000000000000000007","commands":["StartEpoch",{"RemoveNode":"0000000000000000000000002"}]}}}"#;
        let made = made();
        write(&made.database, |t| put_entries(t, &[(1, text.into())])).unwrap();
        let held = load(&made.database.begin_read().unwrap(), &made.path);
        let held = held.unwrap_or_else(|_| panic!("it is refused"));
        assert_eq!(json(&held.kept.entries[&1].0), text.as_bytes());
        assert_eq!(held.replica.made.state.revision(), 2);
    }

    #[test]
    fn an_entry_in_the_place_of_another_is_named() {
        let made = made();
        let entry = r#"{"log_id":{"leader_id":{"term":1,"node_id":"0000000000000000000000001"},"index":2},"payload":"Blank"}"#;
        write(&made.database, |t| put_entries(t, &[(1, entry.into())])).unwrap();
        let what = "the log log.redb is damaged: entry 1 is entry 2; where other managers go on, demote this node there, remove . and start overlayd; otherwise restore a backup with overlayd --restore";
        assert_eq!(refused(&made), what);
    }

    #[test]
    fn a_log_is_one_managers() {
        let mut made = made();
        made.claim(NodeId::from_u128(1), false).unwrap();
        let error = made.claim(NodeId::from_u128(2), true).unwrap_err().to_string();
        assert_eq!(
            error,
            "the log log.redb is that of manager 0000000000000000000000001, and this is 0000000000000000000000002; put the state folders back as they were"
        );
    }

    #[test]
    fn a_state_of_many_parts_is_read_as_it_was_written() {
        let made = made();
        let mut json = json(&Made::default());
        // White space means nothing in JSON.
        json.resize(json.len() + 2 * PART_BYTES, b' ');
        let meta = machine::meta(None, StoredMembership::default());
        for _ in 0..2 {
            let draft = Draft::new(meta.clone(), json.clone().into());
            write(&made.database, |transaction| draft.put(transaction)).unwrap();
        }
        match load(&made.database.begin_read().unwrap(), &made.path) {
            Ok(held) => {
                assert!(held.replica.made == Made::default());
                assert_eq!(held.extent.snapshot_bytes, json.len() as u64);
            }
            Err(LoadError::Refused(error)) => panic!("{error}"),
            Err(LoadError::Storage(error)) => panic!("{error}"),
        }
    }
}
