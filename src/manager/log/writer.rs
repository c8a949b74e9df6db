//! The one writer: owns the file and does what changes it, in order. A thread, because it waits for
//! the disk: what waits for it meanwhile is the next transaction; or a task, where a disk that is
//! none takes its time as it is told. It ends when it is told to, or with the first failure; it is
//! not aborted.

use std::{sync::Arc, time::Duration};

use openraft::storage::LogFlushed;
use redb::{Database, WriteTransaction};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{JoinError, spawn_blocking},
    time::sleep,
};
use tracing::{debug, error};

use super::{
    Common, Stopped,
    file::{self, Grown, Meta},
    raft::{LogId, SnapshotMeta, TypeConfig, Vote},
    store::json,
};

/// How much stands behind a snapshot before there is another: so many entries or so many bytes, but
/// at least as many bytes as the snapshot has; so no more is written for snapshots than for entries.
#[derive(Clone, Copy, Debug)]
pub struct Snapshots {
    /// How many entries.
    pub entries: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Default for Snapshots {
    /// What a start reads in some tenths of a second.
    fn default() -> Self {
        Self { entries: 8192, bytes: 8 << 20 }
    }
}

/// Says how long the next transaction takes.
pub type Pace = Box<dyn FnMut() -> Duration + Send>;

/// Where work is done that keeps a processor busy for a while.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Beside the tasks, which go on.
    Threads,
    /// Where it is asked for.
    Here,
}

impl Place {
    /// Does it.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self {
            Self::Threads => spawn_blocking(work).await,
            Self::Here => Ok(work()),
        }
    }
}

/// Is told when something is durable; dropped if it never will be.
pub(super) type Done<T = ()> = oneshot::Sender<T>;

/// A snapshot as it stands in the file, its state as JSON.
pub(super) type Stored = (SnapshotMeta, Vec<u8>);

/// Something for the writer to do.
pub(super) enum Op {
    /// Puts entries behind those that are there.
    Append { entries: Vec<(u64, Vec<u8>)>, flushed: Option<LogFlushed<TypeConfig>> },
    /// Keeps the vote.
    Vote { vote: Vote, done: Done },
    /// Keeps how far the log is committed, when something else is written.
    Committed(LogId),
    /// Removes the entries from an index on.
    Truncate { from: u64, done: Done },
    /// Removes the entries up to one.
    Purge { upto: LogId, done: Done },
    /// Puts a snapshot in the place of an older one.
    Snapshot { meta: SnapshotMeta, state: Vec<u8>, done: Done },
    /// Reads the snapshot.
    ReadSnapshot(Done<Option<Stored>>),
    /// Ends the writer.
    End,
}

/// The way to the writer.
#[derive(Clone)]
pub(super) struct Writer {
    ops: mpsc::UnboundedSender<Op>,
}

/// The writer has ended, and the log's [`Stopped`] says why.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("nothing is written any more")]
pub(super) struct Ended;

impl Writer {
    /// Has something done some time.
    pub fn send(&self, op: Op) -> Result<(), Ended> {
        self.ops.send(op).map_err(|_| Ended)
    }

    /// Has something done, and waits for it.
    pub async fn have_done<T>(&self, op: impl FnOnce(Done<T>) -> Op) -> Result<T, Ended> {
        let (done, is_done) = oneshot::channel();
        self.send(op(done))?;
        is_done.await.map_err(|_| Ended)
    }
}

pub(super) struct WriterThread {
    common: Arc<Common>,
    database: Database,
    grown: Grown,
    snapshots: Snapshots,
    /// Told when there should be another snapshot.
    due: Arc<Notify>,
    asked: bool,
    committed: Option<LogId>,
    ops: mpsc::UnboundedReceiver<Op>,
    #[cfg(feature = "plant")]
    late: Vec<Op>,
}

impl WriterThread {
    /// Makes the thread's work, and the way to it.
    pub fn new(
        common: Arc<Common>,
        database: Database,
        grown: Grown,
        snapshots: Snapshots,
        due: Arc<Notify>,
    ) -> (Self, Writer) {
        let (sender, ops) = mpsc::unbounded_channel();
        let thread = Self {
            common,
            database,
            grown,
            snapshots,
            due,
            asked: false,
            committed: None,
            ops,
            #[cfg(feature = "plant")]
            late: Vec::new(),
        };
        (thread, Writer { ops: sender })
    }

    /// Writes until it is told to end, or writing fails.
    pub fn run(mut self) {
        let (mut ops, mut next) = (Vec::new(), Ok(Next::More));
        while let Ok(Next::More) = next
            && self.ops.blocking_recv_many(&mut ops, MAX_AT_ONCE) > 0
        {
            next = self.write_until_end(&mut ops);
        }
        self.end(next);
    }

    /// Writes as a task, at its pace.
    pub async fn run_inline(mut self, mut pace: Pace) {
        let (mut ops, mut next) = (Vec::new(), Ok(Next::More));
        while let Ok(Next::More) = next
            && self.ops.recv_many(&mut ops, MAX_AT_ONCE).await > 0
        {
            sleep(pace()).await;
            next = self.write_until_end(&mut ops);
        }
        self.end(next);
    }

    fn write_until_end(&mut self, ops: &mut Vec<Op>) -> Result<Next, redb::Error> {
        let ends = ops.iter().position(|op| matches!(op, Op::End));
        ops.truncate(ends.unwrap_or(ops.len()));
        self.write(ops)?;
        if ends.is_none() {
            return Ok(Next::More);
        }
        #[cfg(feature = "plant")]
        self.write_late();
        Ok(Next::End)
    }

    fn end(self, last: Result<Next, redb::Error>) {
        if let Err(failure) = last {
            // Who waits for the rest hears of it after the reason is known.
            return self.stop(failure);
        }
        // What is durable stays so; a close that fails only makes the next start check more.
        if let Err(failure) = self.database.close() {
            debug!(error = %failure, "the log was not closed cleanly");
        }
    }

    /// Does what was asked in one transaction, and says so when it is durable.
    fn write(&mut self, ops: &mut Vec<Op>) -> Result<(), redb::Error> {
        #[cfg(feature = "plant")]
        if crate::plant::acknowledges_early() {
            self.acknowledge_early(ops);
        }
        for op in ops.iter() {
            if let Op::Committed(committed) = op {
                self.committed = Some(*committed);
            }
        }
        if ops.iter().any(Op::is_change) {
            let Self { database, grown, committed, .. } = self;
            file::write(database, |transaction| {
                for op in ops.iter() {
                    put(transaction, op, grown)?;
                }
                let committed = committed.take();
                committed.map_or(Ok(()), |committed| {
                    file::put_meta(transaction, Meta::Committed, &json(&committed))
                })
            })?;
        }
        for op in ops.drain(..) {
            self.finish(op)?;
        }
        let Grown { entries, entry_bytes, snapshot_bytes } = self.grown;
        let many = entries >= self.snapshots.entries || entry_bytes >= self.snapshots.bytes;
        if many && entry_bytes >= snapshot_bytes && !self.asked {
            self.asked = true;
            self.due.notify_one();
        }
        Ok(())
    }

    /// Tells that something is durable. Whoever asked may have gone.
    fn finish(&mut self, op: Op) -> Result<(), redb::Error> {
        match op {
            Op::Append { flushed, .. } => {
                flushed.into_iter().for_each(|flushed| flushed.log_io_completed(Ok(())));
            }
            Op::Vote { done, .. } | Op::Truncate { done, .. } | Op::Purge { done, .. } => {
                let _ = done.send(());
            }
            Op::Snapshot { meta, state, done } => {
                self.asked = false;
                debug!(snapshot = %meta, bytes = state.len(), "snapshot written");
                let _ = done.send(());
            }
            Op::ReadSnapshot(done) => {
                let _ = done.send(file::read_snapshot(&self.database)?);
            }
            Op::Committed(_) | Op::End => {}
        }
        Ok(())
    }

    /// Tells everyone why there is no answer, now and later.
    fn stop(self, failure: redb::Error) {
        let (path, why) = (self.common.path.clone(), failure.to_string());
        let stopped = if is_full(&failure) {
            Stopped::Full { path, why }
        } else {
            Stopped::Failed { path, why }
        };
        error!("{stopped}");
        // Set once: there is one writer, and it ends here. With it go those that wait.
        let _ = self.common.stopped.set(stopped);
    }
}

/// What the writer does after a transaction.
enum Next {
    More,
    End,
}

impl Op {
    /// Whether it changes what the file holds, or can wait until something does.
    fn is_change(&self) -> bool {
        !matches!(self, Self::Committed(_) | Self::ReadSnapshot(_) | Self::End)
    }
}

/// The planted defect: entries are said to be durable, and written with those that come next.
#[cfg(feature = "plant")]
impl WriterThread {
    fn acknowledge_early(&mut self, ops: &mut Vec<Op>) {
        let (mut appends, others): (Vec<Op>, _) =
            ops.drain(..).partition(|op| matches!(op, Op::Append { .. }));
        for append in &mut appends {
            if let Op::Append { flushed, .. } = append
                && let Some(flushed) = flushed.take()
            {
                flushed.log_io_completed(Ok(()));
            }
        }
        if !appends.is_empty() {
            *ops = std::mem::replace(&mut self.late, appends);
        }
        ops.extend(others);
    }

    /// Writes what is late at an orderly end, which is no power cut.
    fn write_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        let written = file::write(&self.database, |transaction| {
            late.iter().try_for_each(|op| put(transaction, op, &mut self.grown))
        });
        if let Err(failure) = written {
            error!(%failure, "what was late is lost");
        }
    }
}

/// Does one thing of a transaction.
fn put(transaction: &WriteTransaction, op: &Op, grown: &mut Grown) -> Result<(), redb::Error> {
    match op {
        Op::Append { entries, .. } => {
            grown.entries += entries.len() as u64;
            grown.entry_bytes += entries.iter().map(|(_, body)| body.len() as u64).sum::<u64>();
            file::put_entries(transaction, entries)
        }
        Op::Vote { vote, .. } => file::put_meta(transaction, Meta::Vote, &json(vote)),
        Op::Truncate { from, .. } => file::remove_entries(transaction, *from..),
        Op::Purge { upto, .. } => {
            file::remove_entries(transaction, ..=upto.index)?;
            file::put_meta(transaction, Meta::Purged, &json(upto))
        }
        Op::Snapshot { meta, state, .. } => {
            *grown = Grown { snapshot_bytes: state.len() as u64, ..Grown::default() };
            file::put_snapshot(transaction, meta, state)
        }
        Op::Committed(_) | Op::ReadSnapshot(_) | Op::End => Ok(()),
    }
}

fn is_full(failure: &redb::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match failure {
        redb::Error::Io(error) => matches!(error.kind(), StorageFull | QuotaExceeded),
        _ => false,
    }
}

/// Things done in one transaction.
const MAX_AT_ONCE: usize = 256;
