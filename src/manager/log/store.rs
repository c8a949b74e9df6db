//! The entries as openraft sees them: in memory, whole, since the last that was purged. The file is
//! their durable image; what openraft must know to be there is answered for by the writer.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};

use super::{
    raft::{Entry, LogId, StorageError, TypeConfig, Vote},
    writer::{Op, Writer},
};

/// What of a log is no state.
#[derive(Default)]
pub(super) struct Kept {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    /// The last that is gone.
    pub purged: Option<LogId>,
    /// Without a gap from the one behind `purged`; with how many bytes each has in the file.
    pub entries: BTreeMap<u64, (Entry, usize)>,
}

impl Kept {
    /// Returns the index that the first entry has, or will have.
    pub fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Store {
    kept: Arc<Mutex<Kept>>,
    writer: Writer,
}

impl Store {
    pub fn new(kept: Kept, writer: Writer) -> Self {
        Self { kept: Arc::new(Mutex::new(kept)), writer }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<TypeConfig> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        // A range that is empty backwards is one without entries; a map takes it for a mistake.
        let empty = match (range.start_bound(), range.end_bound()) {
            (Bound::Included(start), Bound::Excluded(end)) => start >= end,
            _ => false,
        };
        let kept = self.kept();
        Ok(if empty {
            Vec::new()
        } else {
            kept.entries.range(range).map(|(_, (entry, _))| entry.clone()).collect()
        })
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let kept = self.kept();
        let mut bytes = 0;
        let fits = |(_, (_, len)): &(&u64, &(Entry, usize))| {
            let first = bytes == 0;
            bytes += len;
            first || bytes <= MAX_BYTES
        };
        let entries = kept.entries.range(start..end).take_while(fits);
        Ok(entries.map(|(_, (entry, _))| entry.clone()).collect())
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let kept = self.kept();
        let last = kept.entries.last_key_value().map(|(_, (entry, _))| entry.log_id);
        Ok(LogState { last_purged_log_id: kept.purged, last_log_id: last.or(kept.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.kept().vote = Some(*vote);
        #[cfg(feature = "plant")]
        if crate::plant::forgets_votes() {
            return Ok(());
        }
        let written = self.writer.have_done(|done| Op::Vote { vote: *vote, done }).await;
        written.map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.kept().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.kept().committed = committed;
        let sent = committed.map_or(Ok(()), |committed| self.writer.send(Op::Committed(committed)));
        sent.map_err(|error| StorageIOError::write(AnyError::new(&error)).into())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.kept().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        flushed: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut written = Vec::new();
        {
            let mut kept = self.kept();
            for entry in entries {
                let (index, body) = (entry.log_id.index, json(&entry));
                kept.entries.insert(index, (entry, body.len()));
                written.push((index, body));
            }
        }
        let sent = self.writer.send(Op::Append { entries: written, flushed: Some(flushed) });
        sent.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        self.kept().entries.split_off(&from.index);
        let gone = self.writer.have_done(|done| Op::Truncate { from: from.index, done }).await;
        gone.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        {
            let mut kept = self.kept();
            kept.entries = kept.entries.split_off(&(upto.index + 1));
            kept.purged = Some(upto);
        }
        // That they are gone nobody needs to know.
        let sent = self.writer.send(Op::Purge(upto));
        sent.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }
}

/// An entry, a vote or a place in the log, as the file holds it.
pub(super) fn json(of: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(of).expect("nothing in the log has keys but strings")
}

/// Entries sent to another member at once, in bytes, unless one has more.
const MAX_BYTES: usize = 1 << 20;
