//! The log on disk: one redb file with the entries since a snapshot, and the snapshot.
//!
//! ```text
//! entries:   revision -> record of a command (JSON)
//! snapshot:  0 -> record of the head (revision, parts), 1.. -> records of the state (JSON, cut)
//! ```
//! What is in it after any call that returned `Ok` stays through a power cut, and a call that broke
//! off left all or nothing: every change is one transaction, committed in two phases, each of them
//! synced. What cannot be read whole is not read at all.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    StorageBackend, TableDefinition, WriteTransaction, backends::FileBackend,
};
use serde::{Deserialize, Serialize};

use super::record::{self, Position, RecordError};
use crate::{
    engine::cluster::{Command, State},
    types::Revision,
};

/// A log's file, held by this process, and the state that it makes.
pub struct LogFile {
    pub(super) database: Database,
    pub(super) path: PathBuf,
    pub(super) state: State,
    pub(super) grown: Grown,
}

/// How much stands in the file beside the snapshot, and how large that is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grown {
    pub entries: u64,
    pub entry_bytes: u64,
    pub snapshot_bytes: u64,
}

/// Why a log cannot be opened. Nothing of it is used, and the file is left for whoever looks at it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's sentence says what it is")]
pub enum OpenError {
    #[error("the log {} is there already: this state folder holds a cluster; remove {} to give that cluster up", .path.display(), .path.parent().unwrap_or(Path::new(".")).display())]
    Exists { path: PathBuf },
    #[error("the log {} is not there; restore a backup with overlayd --restore", .path.display())]
    Missing { path: PathBuf },
    #[error("the log {}: {what} was written by a newer overlayd; start that version again", .path.display())]
    Newer { path: PathBuf, what: String },
    #[error("the log {} is damaged: {what}; restore a backup with overlayd --restore", .path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("the log {} is in use by another process; end that one", .path.display())]
    InUse { path: PathBuf },
    #[error("the log {}: {error}; check that disk, its space, and who may write there", .path.display())]
    Io { path: PathBuf, error: io::Error },
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
        let io = |error| OpenError::Io { path: path.to_owned(), error };
        let json = serde_json::to_vec(&state).map_err(|error| io(error.into()))?;
        if let Err(error) = replace(&made.database, state.revision(), &json) {
            // What cannot be removed is found and named by the next attempt.
            let _ = std::fs::remove_file(path);
            return Err(open_error(path, error));
        }
        made.grown.snapshot_bytes = json.len() as u64;
        made.state = state;
        Ok(made)
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
                transaction.open_table(SNAPSHOT)?;
                Ok(())
            })?;
            Ok(database)
        };
        let database = make().map_err(|error| open_error(path, error))?;
        let (state, grown) = (State::default(), Grown::default());
        Ok(Self { database, path: path.to_owned(), state, grown })
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
            let (state, grown) = load(&database.begin_read()?, path)?;
            Ok(Self { database, path: path.to_owned(), state, grown })
        };
        // redb takes some damage for a defect of its own, and panics.
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(LoadError::Storage(error))) => Err(open_error(path, error)),
            Ok(Err(LoadError::Refused(error))) => Err(error),
            Err(_) => Err(damaged("reading it broke off")),
        }
    }

    /// Returns the state that the log makes.
    pub fn state(&self) -> &State {
        &self.state
    }
}

/// Puts entries, whose bodies are commands as JSON, behind what there is.
pub(super) fn append<'a>(
    database: &Database,
    entries: impl Iterator<Item = (Revision, &'a [u8])>,
) -> Result<(), redb::Error> {
    write(database, |transaction| {
        let mut table = transaction.open_table(ENTRIES)?;
        for (revision, body) in entries {
            let record = record::seal(Position::Entry(revision), body);
            table.insert(revision, record.as_slice())?;
        }
        Ok(())
    })
}

/// Puts a state, as JSON, in the place of all entries and the snapshot before them.
pub(super) fn replace(
    database: &Database,
    revision: Revision,
    state: &[u8],
) -> Result<(), redb::Error> {
    write(database, |transaction| {
        transaction.delete_table(ENTRIES)?;
        transaction.delete_table(SNAPSHOT)?;
        transaction.open_table(ENTRIES)?;
        let mut table = transaction.open_table(SNAPSHOT)?;
        let head = Head { revision, parts: state.len().div_ceil(PART_BYTES) as u64 };
        let head = serde_json::to_vec(&head).map_err(io::Error::from)?;
        table.insert(0, record::seal(Position::Head, &head).as_slice())?;
        for (number, part) in (1..).zip(state.chunks(PART_BYTES)) {
            let record = record::seal(Position::Part(revision, number), part);
            table.insert(number, record.as_slice())?;
        }
        Ok(())
    })
}

/// The first record of a snapshot.
#[derive(Serialize, Deserialize)]
struct Head {
    revision: Revision,
    parts: u64,
}

/// Has a change made durable, whole or not at all.
fn write(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // Without it a crash may bring back the commit before the last, or leave a torn one.
    transaction.set_two_phase_commit(true);
    change(&transaction)?;
    transaction.commit()?;
    Ok(())
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn backend(file: File, path: &Path) -> Result<FileBackend, OpenError> {
    FileBackend::new(file).map_err(|error| open_error(path, error.into()))
}

enum LoadError {
    Storage(redb::Error),
    Refused(OpenError),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Storage(error.into())
    }
}

/// Makes the state: the snapshot, and every entry behind it.
fn load(transaction: &ReadTransaction, path: &Path) -> Result<(State, Grown), LoadError> {
    let damaged =
        |what: String| LoadError::Refused(OpenError::Damaged { path: path.to_owned(), what });
    let bent = |what: String, error: RecordError| match error {
        RecordError::Newer(_) => {
            LoadError::Refused(OpenError::Newer { path: path.to_owned(), what })
        }
        RecordError::Checksum | RecordError::Cut => damaged(format!("{what}: {error}")),
    };
    let (mut state, mut grown) = load_snapshot(transaction, &damaged, &bent)?;
    for entry in transaction.open_table(ENTRIES)?.iter()? {
        let (key, value) = entry?;
        let (revision, wanted) = (key.value(), state.revision() + 1);
        if revision != wanted {
            return Err(damaged(format!("entry {wanted} is missing before entry {revision}")));
        }
        let what = || format!("entry {revision}");
        let body = record::open(Position::Entry(revision), value.value());
        let body = body.map_err(|error| bent(what(), error))?;
        let command: Command = serde_json::from_slice(body)
            .map_err(|error| damaged(format!("{}: {error}", what())))?;
        // That it was refused is a part of the log as well.
        let _ = state.apply(revision, command);
        grown.entries += 1;
        grown.entry_bytes += body.len() as u64;
    }
    Ok((state, grown))
}

fn load_snapshot(
    transaction: &ReadTransaction,
    damaged: &dyn Fn(String) -> LoadError,
    bent: &dyn Fn(String, RecordError) -> LoadError,
) -> Result<(State, Grown), LoadError> {
    let table = transaction.open_table(SNAPSHOT)?;
    let mut records = table.iter()?;
    let Some(head) = records.next().transpose()? else {
        return Ok((State::default(), Grown::default()));
    };
    let what = || "the snapshot's head".to_owned();
    if head.0.value() != 0 {
        return Err(damaged(format!("{} is missing", what())));
    }
    let body = record::open(Position::Head, head.1.value()).map_err(|error| bent(what(), error))?;
    let head: Head =
        serde_json::from_slice(body).map_err(|error| damaged(format!("{}: {error}", what())))?;
    let mut bytes = Vec::new();
    let mut number = 0;
    for part in records {
        let (key, value) = part?;
        number += 1;
        let what = || format!("part {number} of the snapshot");
        if key.value() != number || number > head.parts {
            return Err(damaged(format!("{} is missing or too much", what())));
        }
        let body = record::open(Position::Part(head.revision, number), value.value());
        bytes.extend_from_slice(body.map_err(|error| bent(what(), error))?);
    }
    if number != head.parts {
        return Err(damaged(format!("part {} of the snapshot is missing", number + 1)));
    }
    let state: State = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("the snapshot: {error}")))?;
    if state.revision() != head.revision {
        return Err(damaged("the snapshot is of another revision than its head".to_owned()));
    }
    Ok((state, Grown { snapshot_bytes: bytes.len() as u64, ..Grown::default() }))
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
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");
/// Large enough to cost few pages' headers, small enough that one is cheap to check and to keep.
const PART_BYTES: usize = 256 << 10;
/// Entries are written once and read at the start: the cache holds the pages of one transaction.
const CACHE_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    #[test]
    fn a_command_that_this_program_does_not_know_is_named() {
        let path = Path::new("log.redb");
        let made = LogFile::create_on(InMemoryBackend::new(), path).unwrap();
        append(&made.database, [(1, br#"{"Unheard":1}"#.as_slice())].into_iter()).unwrap();
        let error = match load(&made.database.begin_read().unwrap(), path) {
            Err(LoadError::Refused(error)) => error.to_string(),
            Err(LoadError::Storage(error)) => panic!("{error}"),
            Ok(_) => panic!("it was taken"),
        };
        let start = "the log log.redb is damaged: entry 1: unknown variant `Unheard`, ";
        assert!(error.starts_with(start), "{error}");
    }

    #[test]
    fn a_state_of_many_parts_is_read_as_it_was_written() {
        let path = Path::new("log.redb");
        let made = LogFile::create_on(InMemoryBackend::new(), path).unwrap();
        let mut json = serde_json::to_vec(&State::default()).unwrap();
        // White space means nothing in JSON.
        json.resize(json.len() + 2 * PART_BYTES, b' ');
        replace(&made.database, 0, &json).unwrap();
        replace(&made.database, 0, &json).unwrap();
        match load(&made.database.begin_read().unwrap(), path) {
            Ok((state, grown)) => {
                assert!(state == State::default());
                assert_eq!(grown.snapshot_bytes, json.len() as u64);
            }
            Err(LoadError::Refused(error)) => panic!("{error}"),
            Err(LoadError::Storage(error)) => panic!("{error}"),
        }
    }
}
