//! The one writer: owns the file and does what changes it, in order, but for snapshots, which are written
//! little by little. A thread, because it waits for
//! the disk: what waits for it meanwhile is the next transaction; or a task, where a disk that is
//! none takes its time as it is told. It ends when it is told to, or with the first failure; it is
//! not aborted.

use std::{collections::VecDeque, sync::Arc, time::Duration};

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
    file::{self, Extent, Meta},
    raft::{LogId, TypeConfig, Vote},
    snapshot::{Draft, PART_BYTES, Reading},
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
    /// How much of one is written with one transaction, in bytes; not 0.
    pub part: usize,
}

impl Default for Snapshots {
    /// What a start reads in some tenths of a second.
    fn default() -> Self {
        Self { entries: 8192, bytes: 8 << 20, part: PART_BYTES }
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
    /// Removes the entries up to one, as soon as there is a snapshot that stands for them.
    Purge(LogId),
    /// Puts a snapshot in the place of an older one.
    Snapshot { draft: Draft, done: Done },
    /// Begins to read the snapshot.
    ReadSnapshot(Done<Result<Option<Reading>, redb::Error>>),
    /// Ends the writer as a failure of its own does.
    Stop(Stopped),
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

    /// Ends the writing for a reason from elsewhere, and waits until it is known.
    pub async fn stop(&self, stopped: Stopped) {
        // It may have ended before, for a reason of its own.
        let _ = self.send(Op::Stop(stopped));
        self.ops.closed().await;
    }
}

pub(super) struct WriterThread {
    common: Arc<Common>,
    database: Database,
    extent: Extent,
    snapshots: Snapshots,
    /// Told when there should be another snapshot.
    due: Arc<Notify>,
    asked: bool,
    committed: Option<LogId>,
    /// Snapshots that are being written, one after the other, and who waits for them.
    drafts: VecDeque<(Draft, Done)>,
    /// Up to where entries are to be removed for which only a snapshot yet to be written stands.
    purge: Option<LogId>,
    /// What is behind those and would leave a gap.
    held: Vec<Op>,
    ops: mpsc::UnboundedReceiver<Op>,
    #[cfg(feature = "plant")]
    late: Vec<Op>,
}

impl WriterThread {
    /// Makes the thread's work, and the way to it.
    pub fn new(
        common: Arc<Common>,
        database: Database,
        extent: Extent,
        snapshots: Snapshots,
        due: Arc<Notify>,
    ) -> (Self, Writer) {
        let (sender, ops) = mpsc::unbounded_channel();
        let thread = Self {
            common,
            database,
            extent,
            snapshots,
            due,
            asked: false,
            committed: None,
            drafts: VecDeque::new(),
            purge: None,
            held: Vec::new(),
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
            && (self.take_ready(&mut ops) || self.ops.blocking_recv_many(&mut ops, MAX_AT_ONCE) > 0)
        {
            next = self.write_until_end(&mut ops);
        }
        self.end(next);
    }

    /// Writes as a task, at its pace.
    pub async fn run_inline(mut self, mut pace: Pace) {
        let (mut ops, mut next) = (Vec::new(), Ok(Next::More));
        while let Ok(Next::More) = next
            && (self.take_ready(&mut ops) || self.ops.recv_many(&mut ops, MAX_AT_ONCE).await > 0)
        {
            sleep(pace()).await;
            next = self.write_until_end(&mut ops);
        }
        self.end(next);
    }

    /// If there is something to write anyway, takes what else waits, and does not wait for more.
    fn take_ready(&mut self, ops: &mut Vec<Op>) -> bool {
        let is_busy = !self.drafts.is_empty()
            || self.extent.purged.is_some()
            || self.purge.is_some_and(|upto| self.covers(upto));
        while is_busy
            && ops.len() < MAX_AT_ONCE
            && let Ok(op) = self.ops.try_recv()
        {
            ops.push(op);
        }
        is_busy
    }

    /// Whether the snapshot in the file stands for an entry and all before.
    fn covers(&self, entry: LogId) -> bool {
        Some(entry) <= self.extent.snapshot
    }

    /// Takes out what is not written now.
    fn sort(&mut self, ops: &mut Vec<Op>) {
        let purge = self.purge.take().map(Op::Purge);
        let held = std::mem::take(&mut self.held);
        let all: Vec<Op> = purge.into_iter().chain(held).chain(ops.drain(..)).collect();
        for op in all {
            match &op {
                Op::Purge(upto) if !self.covers(*upto) => self.purge = self.purge.max(Some(*upto)),
                Op::Append { .. } | Op::Truncate { .. } if !self.has_place(&op) => {
                    self.held.push(op);
                }
                _ => {
                    self.note_next(&op);
                    ops.push(op);
                }
            }
        }
        let is_draft = |op: &mut Op| matches!(op, Op::Snapshot { .. });
        for op in ops.extract_if(.., is_draft) {
            if let Op::Snapshot { draft, done } = op {
                (self.extent.entries, self.extent.entry_bytes) = (0, 0);
                self.drafts.push_back((draft, done));
            }
        }
        // An older one than there is says nothing new.
        while let Some((draft, _)) = self.drafts.front()
            && draft.last() <= self.extent.snapshot
        {
            self.finish_draft();
        }
    }

    /// Whether the log has no gap with it, and nothing before it waits.
    fn has_place(&self, op: &Op) -> bool {
        let first = match op {
            Op::Append { entries, .. } => entries.first().map(|(index, _)| *index),
            _ => None,
        };
        let goes_on = self.extent.next.zip(first).is_none_or(|(next, first)| first <= next);
        self.held.is_empty() && goes_on
    }

    /// Whether an entry stands in the file, or the snapshot for it. Of one that waits, what stands there in
    /// its place must not be taken for committed.
    fn is_here(&self, entry: LogId) -> bool {
        self.covers(entry) || self.extent.next.is_some_and(|next| entry.index < next)
    }

    fn note_next(&mut self, op: &Op) {
        let next = &mut self.extent.next;
        match op {
            Op::Append { entries, .. } => {
                *next = entries.last().map(|(index, _)| index + 1).or(*next);
            }
            Op::Truncate { from, .. } => *next = Some(*from),
            Op::Purge(upto) => *next = (*next).max(Some(upto.index + 1)),
            _ => {}
        }
    }

    fn finish_draft(&mut self) {
        let Some((draft, done)) = self.drafts.pop_front() else { return };
        self.asked = false;
        if draft.last() > self.extent.snapshot {
            self.extent.snapshot = draft.last();
            self.extent.snapshot_bytes = draft.bytes();
        }
        debug!(bytes = draft.bytes(), "snapshot written");
        // Whoever asked may have gone.
        let _ = done.send(());
    }

    fn write_until_end(&mut self, ops: &mut Vec<Op>) -> Result<Next, Stopped> {
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

    fn end(self, last: Result<Next, Stopped>) {
        if let Err(stopped) = last {
            error!("{stopped}");
            // Set once: there is one writer, and it ends here. With it go those that wait, who hear of
            // it after the reason is known.
            let _ = self.common.stopped.set(stopped);
            return;
        }
        // What is durable stays so; a close that fails only makes the next start check more.
        if let Err(failure) = self.database.close() {
            debug!(error = %failure, "the log was not closed cleanly");
        }
    }

    /// Does what was asked in one transaction, and says so when it is durable.
    fn write(&mut self, ops: &mut Vec<Op>) -> Result<(), Stopped> {
        let stops = ops.iter().position(|op| matches!(op, Op::Stop(_)));
        if let Some(Op::Stop(stopped)) = stops.map(|at| ops.swap_remove(at)) {
            return Err(stopped);
        }
        #[cfg(feature = "plant")]
        if crate::plant::acknowledges_early() {
            self.acknowledge_early(ops);
        }
        self.sort(ops);
        for op in ops.iter() {
            if let Op::Committed(committed) = op {
                self.committed = Some(*committed);
            }
        }
        let is_due = !self.drafts.is_empty() || self.extent.purged.is_some();
        if is_due || ops.iter().any(Op::is_change) {
            let committed = self.committed.filter(|committed| self.is_here(*committed));
            self.committed = self.committed.filter(|_| committed.is_none());
            let Self { database, extent, drafts, snapshots, .. } = self;
            let is_whole = file::write(database, |transaction| {
                for op in ops.iter() {
                    put(transaction, op, extent)?;
                }
                if let Some(committed) = committed {
                    file::put_meta(transaction, Meta::Committed, &json(&committed))?;
                }
                if let Some(upto) = extent.purged
                    && !file::remove_purged(transaction, upto, MAX_AT_ONCE)?
                {
                    extent.purged = None;
                }
                let draft = drafts.front_mut();
                draft.map_or(Ok(false), |(draft, _)| draft.put_part(transaction, snapshots.part))
            });
            let is_whole = is_whole.map_err(|failure| Stopped::by(&self.common.path, &failure))?;
            if is_whole {
                self.finish_draft();
            }
        }
        ops.drain(..).for_each(|op| self.finish(op));
        let Extent { entries, entry_bytes, snapshot_bytes, .. } = self.extent;
        let many = entries >= self.snapshots.entries || entry_bytes >= self.snapshots.bytes;
        if many && entry_bytes >= snapshot_bytes && !self.asked {
            self.asked = true;
            self.due.notify_one();
        }
        Ok(())
    }

    /// Tells that something is durable. Whoever asked may have gone.
    fn finish(&self, op: Op) {
        match op {
            Op::Append { flushed, .. } => {
                flushed.into_iter().for_each(|flushed| flushed.log_io_completed(Ok(())));
            }
            Op::Vote { done, .. } | Op::Truncate { done, .. } => {
                let _ = done.send(());
            }
            Op::ReadSnapshot(done) => {
                let _ = done.send(Reading::begin(&self.database));
            }
            Op::Purge(_) | Op::Committed(_) | Op::End => {}
            // Taken out before.
            Op::Snapshot { .. } | Op::Stop(_) => {}
        }
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
        self.is_of_log() || matches!(self, Self::Vote { .. })
    }

    /// Whether it changes which entries there are.
    fn is_of_log(&self) -> bool {
        matches!(self, Self::Append { .. } | Self::Truncate { .. } | Self::Purge(_))
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
            late.iter().try_for_each(|op| put(transaction, op, &mut self.extent))
        });
        if let Err(failure) = written {
            error!(%failure, "what was late is lost");
        }
    }
}

/// Does one thing of a transaction.
fn put(transaction: &WriteTransaction, op: &Op, extent: &mut Extent) -> Result<(), redb::Error> {
    match op {
        Op::Append { entries, .. } => {
            extent.entries += entries.len() as u64;
            extent.entry_bytes += entries.iter().map(|(_, body)| body.len() as u64).sum::<u64>();
            file::put_entries(transaction, entries)
        }
        Op::Vote { vote, .. } => file::put_meta(transaction, Meta::Vote, &json(vote)),
        Op::Truncate { from, .. } => file::remove_entries(transaction, *from..),
        Op::Purge(upto) => {
            extent.purged = Some(upto.index);
            file::put_meta(transaction, Meta::Purged, &json(upto))
        }
        Op::Snapshot { .. } | Op::ReadSnapshot(_) | Op::Committed(_) | Op::Stop(_) | Op::End => {
            Ok(())
        }
    }
}

/// Things done in one transaction.
const MAX_AT_ONCE: usize = 256;
