//! Snapshots: the state as JSON, in the file and on its way through openraft.
//!
//! ```text
//! 0 -> record of the head, 1.. -> records of the state, cut
//! ```
//! One is written in parts, each with whatever else is written then, so that nobody waits for all of
//! it; the last part puts it in the place of the one before. It is read beside the writer.

use std::path::PathBuf;

use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::{
    Stopped,
    file::{LoadError, Named},
    raft::{LogId, SnapshotMeta},
    record::{self, Position},
    store::json,
    writer::{Ended, Place, Writer},
};

/// A snapshot's state on its way through openraft.
pub enum Body {
    /// All of it, as JSON.
    Here(Bytes),
    /// Still in the file.
    Stored(Box<Stored>),
}

/// A snapshot that stands in the file, as of when it was asked for, and how it is read.
pub struct Stored {
    pub(super) reading: Reading,
    pub(super) place: Place,
    pub(super) path: PathBuf,
    pub(super) writer: Writer,
}

impl Body {
    /// Returns it as JSON; a disk that fails ends the log.
    pub(super) async fn read(self) -> Result<Bytes, Ended> {
        let stored = match self {
            Self::Here(state) => return Ok(state),
            Self::Stored(stored) => *stored,
        };
        let Stored { reading, place, path, writer } = stored;
        // A reader that broke off has damaged pages before it, as at the start.
        let read = place.run(move || reading.read()).await;
        match read.unwrap_or_else(|error| Err(redb::Error::Corrupted(error.to_string()))) {
            Ok(state) => Ok(state),
            Err(failure) => {
                writer.stop(Stopped::by(&path, &failure)).await;
                Err(Ended)
            }
        }
    }
}

/// A snapshot as it stood in the file at some moment.
pub(super) struct Reading {
    pub meta: SnapshotMeta,
    transaction: ReadTransaction,
}

impl Reading {
    /// Begins to read the one that is there now, which may be replaced meanwhile.
    pub fn begin(database: &Database) -> Result<Option<Self>, redb::Error> {
        let transaction = database.begin_read()?;
        let head = load_head(&transaction, &Named::nothing()).map_err(LoadError::into_failure)?;
        let head = head.filter(|head| head.meta.last_log_id.is_some());
        Ok(head.map(|head| Self { meta: head.meta, transaction }))
    }

    fn read(&self) -> Result<Bytes, redb::Error> {
        let loaded = load(&self.transaction, &Named::nothing());
        let loaded = loaded.map_err(LoadError::into_failure)?;
        Ok(loaded.map(|(_, state)| state.into()).unwrap_or_default())
    }
}

/// A snapshot that is being written.
pub(super) struct Draft {
    meta: SnapshotMeta,
    state: Bytes,
    /// How many parts are written, and bytes with them.
    parts: u64,
    written: usize,
}

impl Draft {
    /// Begins one.
    pub fn new(meta: SnapshotMeta, state: Bytes) -> Self {
        Self { meta, state, parts: 0, written: 0 }
    }

    /// What it is of.
    pub fn last(&self) -> Option<LogId> {
        self.meta.last_log_id
    }

    /// How large it is.
    pub fn bytes(&self) -> u64 {
        self.state.len() as u64
    }

    /// Writes the next part, of at most so many bytes; after the last one it stands in the place of the
    /// one before, and the answer is `true`.
    pub fn put_part(
        &mut self,
        transaction: &WriteTransaction,
        bytes: usize,
    ) -> Result<bool, redb::Error> {
        if self.written == 0 {
            // What is left of one that was not finished.
            transaction.delete_table(DRAFT)?;
        }
        let mut head = Head { meta: self.meta.clone(), parts: 0 };
        let mut table = transaction.open_table(DRAFT)?;
        let rest = &self.state[self.written..];
        let part = &rest[..rest.len().min(bytes)];
        self.parts += 1;
        let position = Position::Part(head.index(), self.parts);
        table.insert(self.parts, record::seal(position, part).as_slice())?;
        self.written += part.len();
        if self.written < self.state.len() {
            return Ok(false);
        }
        head.parts = self.parts;
        table.insert(0, record::seal(Position::Head, &json(&head)).as_slice())?;
        drop(table);
        transaction.delete_table(SNAPSHOT)?;
        transaction.rename_table(DRAFT, SNAPSHOT)?;
        Ok(true)
    }

    /// Writes all of it.
    pub fn put(mut self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        while !self.put_part(transaction, PART_BYTES)? {}
        Ok(())
    }
}

/// The first record of a snapshot.
#[derive(Serialize, Deserialize)]
struct Head {
    meta: SnapshotMeta,
    parts: u64,
}

impl Head {
    /// What tells its parts from those of another.
    fn index(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |last| last.index)
    }
}

/// Makes the place of snapshots in a new file.
pub(super) fn create(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(SNAPSHOT)?;
    Ok(())
}

fn load_head(transaction: &ReadTransaction, named: &Named<'_>) -> Result<Option<Head>, LoadError> {
    let table = transaction.open_table(SNAPSHOT)?;
    let Some((number, record)) = table.first()? else { return Ok(None) };
    let what = "the snapshot's head";
    if number.value() != 0 {
        return Err(named.damaged(format!("{what} is missing")));
    }
    named.read(what, Position::Head, record.value()).map(Some)
}

/// Reads the one that is there, which holds together.
pub(super) fn load(
    transaction: &ReadTransaction,
    named: &Named<'_>,
) -> Result<Option<(SnapshotMeta, Vec<u8>)>, LoadError> {
    let Some(head) = load_head(transaction, named)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let mut number = 0;
    for part in transaction.open_table(SNAPSHOT)?.range(1..)? {
        let (key, value) = part?;
        number += 1;
        let what = format!("part {number} of the snapshot");
        if key.value() != number || number > head.parts {
            return Err(named.damaged(format!("{what} is missing or too much")));
        }
        let position = Position::Part(head.index(), number);
        bytes.extend_from_slice(named.open(&what, position, value.value())?);
    }
    if number != head.parts {
        return Err(named.damaged(format!("part {} of the snapshot is missing", number + 1)));
    }
    Ok(Some((head.meta, bytes)))
}

const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");
const DRAFT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("draft");
/// Large enough to cost few pages' headers and few transactions, small enough that nobody waits long
/// for the transaction that it is written with.
pub(super) const PART_BYTES: usize = 256 << 10;
