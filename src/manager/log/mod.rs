//! The log of commands behind the few calls that a manager needs of it: propose a command and learn
//! its revision and outcome, read the state, and be told of every applied command in order.
//!
//! ```text
//! propose -> (bounded) -> batches -> openraft -> store -> writer thread: what waits is one
//!                                       |                 transaction of the file, durable
//!                                       '-> machine: applied to the state, told to the watcher,
//!                                                    answered
//! read    -> state
//! ```
//! A revision is the number of a command; entries, which are batches of commands, have indices of
//! their own. What was answered stays through a power cut. The first failure of the disk ends the
//! writing: a later success says nothing about what the disk dropped before. Reading goes on.

mod batches;
mod checkpoint;
mod file;
mod machine;
mod network;
mod raft;
mod record;
mod runtime;
mod snapshot;
#[cfg(feature = "plant")]
mod standing;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    thread::JoinHandle,
    time::Duration,
};

use openraft::{
    ChangeMembers, EmptyNode, RaftMetrics, Snapshot,
    error::{CheckIsLeaderError, ClientWriteError, RaftError},
    raft::AppendEntriesResponse,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task,
    time::{Instant, sleep, timeout},
};

#[cfg(feature = "plant")]
pub use self::standing::Standing;
use self::{
    batches::{Author, Batches, Proposal},
    checkpoint::{Comparer, Digests},
    file::Held,
    machine::{Machine, Replica},
    network::Network,
    raft::Raft,
    snapshot::Body,
    store::Store,
    writer::{Op, Place, Writer, WriterThread},
};
pub use self::{
    file::{LogFile, OpenError},
    network::{Alone, Answering, NotReached, Request, Response, Transport},
    raft::{Answers, Batch, SnapshotMeta, Vote},
    writer::{Pace, Snapshots},
};
use crate::{
    engine::cluster::{Command, Event, Outcome, Refusal, State},
    types::{NodeId, Revision},
};

/// Is told what becomes of the state, in order, while it stands right after that.
pub trait Watch: Send {
    /// A command was applied.
    fn handle_applied(&mut self, state: &State, revision: Revision, events: &[Event]);
    /// Another state came in the place of the one before: this member was too late for entries.
    fn handle_replaced(&mut self, state: &State);
    /// These may have begun or ceased to decide.
    fn handle_members(&mut self, _managers: &BTreeSet<NodeId>) {}
}

/// How a member of the log is run.
pub struct Member {
    /// The manager's node.
    pub manager: NodeId,
    /// A file that is nobody's becomes that of a member that others will call, instead of one that
    /// decides alone.
    pub joins: bool,
    /// How often the state is written out.
    pub snapshots: Snapshots,
    /// The way to the others.
    pub transport: Arc<dyn Transport>,
    /// Is told of everything from now on.
    pub watcher: Box<dyn Watch>,
}

/// The log and the state that it makes.
pub struct Log {
    common: Arc<Common>,
    /// Taken at the end; the batches end when they have answered what they were sent.
    proposals: Mutex<Option<mpsc::Sender<Proposal>>>,
    batches: Mutex<Option<task::JoinHandle<()>>>,
    writer: Writer,
    writing: Mutex<Option<Writing>>,
}

/// What the writer runs on.
enum Writing {
    Thread(JoinHandle<()>),
    Task(task::JoinHandle<()>),
}

/// What the callers, openraft's tasks and the writer have in common.
struct Common {
    path: PathBuf,
    replica: RwLock<Replica>,
    /// Where work is done that takes a while.
    place: Place,
    stopped: OnceLock<Stopped>,
    transport: Arc<dyn Transport>,
    /// Set once the log has started.
    raft: OnceLock<Raft>,
    /// When a leader last said something.
    led_at: Mutex<Option<Instant>>,
    digests: Mutex<Digests>,
}

/// Why a log does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file cannot be taken.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The disk failed meanwhile.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The system gives no thread.
    #[error("start the log's writer: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The state refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing is written any more. Whether this command was is known after the next start.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Nobody leads. Whether this command comes to be is not known.
    #[error(
        "no manager leads now, because more than half of them must be reached for that; look at them with 'overlayctl node ls --stale' and ask again"
    )]
    NoLeader,
    /// No command is that large.
    #[error(
        "the request has {bytes} bytes in the log, at most {MAX_COMMAND_BYTES}; make it smaller"
    )]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
}

/// Why the members of the log stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// Another manager leads, or none.
    #[error("this manager does not lead")]
    NotLeader(Option<NodeId>),
    /// The last change has not ended yet.
    #[error("{0}")]
    Busy(String),
    /// A new one does not catch up.
    #[error("manager {0} is not reached, or does not catch up")]
    Late(NodeId),
    /// Nothing is written any more.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why the log takes no more commands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The disk is full.
    #[error("the log {} is stopped: {why}; free space on that disk, then start overlayd again", .path.display())]
    Full {
        /// The log's file.
        path: PathBuf,
        /// What the disk said.
        why: String,
    },
    /// The disk, or what is on it, fails.
    #[error("the log {} is stopped: {why}; check that disk, then start overlayd again", .path.display())]
    Failed {
        /// The log's file.
        path: PathBuf,
        /// What the disk said.
        why: String,
    },
    /// The state is not the one that the others have: what it says counts for nothing.
    #[error("the log {} is stopped: the state after entry {entry} is not the one that the other managers have; start overlayd again, and if this comes again, check this machine's memory, demote this node and promote it anew", .path.display())]
    Differs {
        /// The log's file.
        path: PathBuf,
        /// The entry at which they were compared.
        entry: u64,
    },
    /// The manager ends.
    #[error("this manager is ending; ask again, or start overlayd again if it does not run")]
    Ending,
}

impl Stopped {
    fn by(path: &Path, failure: &redb::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let (path, why) = (path.to_owned(), failure.to_string());
        match failure {
            redb::Error::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded) => {
                Self::Full { path, why }
            }
            _ => Self::Failed { path, why },
        }
    }
}

impl Log {
    /// Starts a manager's log. One that decides alone leads it when this returns.
    ///
    /// # Errors
    /// The file is another manager's, the disk fails, or the system gives no thread.
    pub async fn start(file: LogFile, member: Member) -> Result<Self, StartError> {
        Self::start_with(file, member, None).await
    }

    /// Starts a manager's log all of which runs where this is called, in the time of that runtime; so
    /// that what happens comes of nothing but what is put in. Each transaction takes as long as `pace`
    /// says.
    ///
    /// # Errors
    /// The file is another manager's, or the disk fails.
    pub async fn start_inline(
        file: LogFile,
        member: Member,
        pace: Pace,
    ) -> Result<Self, StartError> {
        Self::start_with(file, member, Some(pace)).await
    }

    async fn start_with(
        mut file: LogFile,
        member: Member,
        pace: Option<Pace>,
    ) -> Result<Self, StartError> {
        let Member { manager, joins, snapshots, transport, watcher } = member;
        file.claim(manager, joins)?;
        let alone = file.held.is_alone();
        let LogFile { database, path, held: Held { mut kept, replica, extent, .. } } = file;
        // One that led is elected anew: openraft would have it go on, and the file need not know all
        // that was decided when it ended, so that what is read then may be too old.
        if let Some(vote) = kept.vote.as_mut().filter(|vote| vote.leader_id.node_id == manager) {
            vote.committed = false;
        }
        let (replica, stopped) = (RwLock::new(replica), OnceLock::new());
        let raft = OnceLock::new();
        let place = if pace.is_some() { Place::Here } else { Place::Threads };
        let common = Arc::new(Common {
            path,
            replica,
            place,
            stopped,
            transport: transport.clone(),
            raft,
            led_at: Mutex::default(),
            digests: Mutex::default(),
        });
        let due = Arc::new(Notify::new());
        let (thread, writer) =
            WriterThread::new(common.clone(), database, extent, snapshots, due.clone());
        let writing = match pace {
            None => Writing::Thread(
                std::thread::Builder::new().name("log".into()).spawn(|| thread.run())?,
            ),
            Some(pace) => Writing::Task(tokio::spawn(thread.run_inline(pace))),
        };
        let (proposals, proposed) = mpsc::channel(MAX_WAITING);
        let log = Self {
            common: common.clone(),
            proposals: Mutex::new(Some(proposals)),
            batches: Mutex::default(),
            writer: writer.clone(),
            writing: Mutex::new(Some(writing)),
        };
        let (checkpoints, compared) = watch::channel(None);
        let machine = Machine::new(common.clone(), writer.clone(), watcher, checkpoints);
        let comparer = Comparer { own: manager, common: common.clone(), writer: writer.clone() };
        let config = Arc::new(raft::config(snapshots.entries / 8));
        let network = Network { own: manager, transport: transport.clone() };
        let started = Raft::new(manager, config, network, Store::new(kept, writer), machine).await;
        let raft = started.map_err(|_| log.stopped())?;
        let raft = common.raft.get_or_init(|| raft);
        let (raft_of_batches, proposals, named) = (raft.clone(), proposed, None);
        let batches = Batches { raft: raft_of_batches, transport, proposals, due, named };
        *locked(&log.batches) = Some(tokio::spawn(batches.run()));
        tokio::spawn(comparer.run(compared, raft.clone()));
        tokio::spawn(checkpoint::mark(raft.clone()));
        if alone {
            log.lead(raft).await?;
        }
        Ok(log)
    }

    /// Waits until this manager leads, which nobody else can, and all that is in the log is applied.
    async fn lead(&self, raft: &Raft) -> Result<(), Stopped> {
        if !raft.metrics().borrow().state.is_leader() {
            raft.trigger().elect().await.map_err(|_| self.stopped())?;
        }
        let leads = |metrics: &RaftMetrics<NodeId, EmptyNode>| {
            let applied = metrics.last_applied.map(|applied| applied.index);
            metrics.state.is_leader() && applied == metrics.last_log_index
        };
        let waited = raft.wait(Some(LEADS_AFTER)).metrics(leads, "to lead alone").await;
        waited.map(drop).map_err(|_| self.stopped())
    }

    /// Has a command written and applied, and returns its revision and outcome when it is durable.
    ///
    /// # Errors
    /// The state refuses the command, it is too large, nobody leads, or the log is stopped.
    pub async fn propose(&self, command: Command) -> Result<(Revision, Outcome), ProposeError> {
        self.propose_as(Author::Anybody, command).await
    }

    /// The same of what this manager decides because it leads: if it does not any more, another one
    /// decides by what it sees itself.
    ///
    /// # Errors
    /// As of [`Self::propose`]; that nobody leads may also be that another one does.
    pub async fn propose_leading(
        &self,
        command: Command,
    ) -> Result<(Revision, Outcome), ProposeError> {
        self.propose_as(Author::ThisLeader, command).await
    }

    async fn propose_as(
        &self,
        author: Author,
        command: Command,
    ) -> Result<(Revision, Outcome), ProposeError> {
        let bytes = store::json(&command).len();
        if bytes > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        let (answer, answered) = oneshot::channel();
        let sender = locked(&self.proposals).clone();
        let sender = sender.ok_or_else(|| self.stopped())?;
        let sent = sender.send(Proposal { command, author, bytes, answer }).await;
        drop(sender);
        sent.map_err(|_| self.stopped())?;
        answered.await.map_err(|_| self.stopped())?
    }

    /// Reads the state. What is read is as of one revision, and nothing is applied meanwhile; a
    /// reader does not read within.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        // A panic elsewhere cannot leave a half-applied command: `apply` checks before it changes.
        let replica = self.common.replica.read().unwrap_or_else(PoisonError::into_inner);
        read(&replica.made.state)
    }

    /// Answers another member.
    pub async fn handle(&self, request: Request) -> Response {
        let Some(raft) = self.common.raft.get() else {
            return Response::Refused("this manager is starting".to_owned());
        };
        let refused = |error: &dyn std::error::Error| Response::Refused(error.to_string());
        match request {
            Request::Append(entries) => match raft.append_entries(entries).await {
                Ok(answer) => {
                    if matches!(
                        answer,
                        AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)
                    ) {
                        *locked(&self.common.led_at) = Some(Instant::now());
                    }
                    Response::Append(answer)
                }
                Err(error) => refused(&error),
            },
            Request::Vote(vote) => match raft.vote(vote).await {
                Ok(answer) => Response::Vote(answer),
                Err(error) => refused(&error),
            },
            Request::Snapshot(vote, meta, body) => {
                let snapshot = Snapshot { meta, snapshot: Box::new(Body::Here(body)) };
                match raft.install_full_snapshot(vote, snapshot).await {
                    Ok(answer) => Response::Snapshot(answer),
                    Err(error) => refused(&error),
                }
            }
            Request::ReadIndex => match timeout(CONFIRMED_WITHIN, raft.get_read_log_id()).await {
                Ok(Ok((read, _))) => Response::ReadIndex(read.map(|read| read.index)),
                Ok(Err(error)) => refused(&error),
                Err(late) => refused(&late),
            },
            Request::Digest(entry) => Response::Digest(locked(&self.common.digests).find(entry)),
            Request::Propose(batch) => match raft.client_write(batch).await {
                Ok(written) => Response::Proposed(written.log_id.index, written.data),
                Err(error) => refused(&error),
            },
        }
    }

    /// Makes exactly these managers decide. One that is new hears all that is in the log first, which
    /// is waited for; one that is none any more hears no more.
    ///
    /// # Errors
    /// This manager does not lead, another change is under way, or a new one cannot be reached.
    pub async fn set_members(&self, members: BTreeSet<NodeId>) -> Result<(), MembersError> {
        let raft = self.common.raft.get().ok_or(MembersError::Stopped(Stopped::Ending))?;
        self.remove_strays(raft, &members).await?;
        for new in members.difference(&self.members()) {
            self.cut(raft).await?;
            let added = raft.add_learner(*new, EmptyNode {}, false).await;
            added.map_err(|error| self.not_changed(error))?;
            // openraft's own waiting takes one that never answered for caught up if the log is short.
            let has_caught_up = |metrics: &RaftMetrics<NodeId, EmptyNode>| {
                let last = replicated(metrics, *new);
                last.is_some_and(|last| Some(last + MOST_BEHIND) >= metrics.last_log_index)
            };
            let wait = raft.wait(Some(CAUGHT_UP_AFTER));
            let caught_up = wait.metrics(has_caught_up, "a new member").await;
            caught_up.map_err(|_| MembersError::Late(*new))?;
        }
        // One that goes hears no more from here on: it may come back with nothing at once.
        let changed = raft.change_membership(members, false).await;
        changed.map(drop).map_err(|error| self.not_changed(error))
    }

    /// Takes everything out of the log that the state stands for, so that a new member is given the state.
    /// From its beginning the log tells of times when others decided: one that was a member before, the
    /// first of all above all, would hold itself for one again and lead, until it has heard of all since.
    async fn cut(&self, raft: &Raft) -> Result<(), MembersError> {
        let Some(applied) = raft.metrics().borrow().last_applied else { return Ok(()) };
        let is_written = move |metrics: &RaftMetrics<NodeId, EmptyNode>| {
            metrics.snapshot.is_some_and(|written| written >= applied)
        };
        let written = async {
            while !is_written(&raft.metrics().borrow()) {
                // It is not heard while an older one is being written.
                raft.trigger().snapshot().await.map_err(|_| self.stopped())?;
                let wait = raft.wait(Some(raft::HEARTBEAT));
                let _ = wait.metrics(is_written, "the state").await;
            }
            Ok::<_, Stopped>(())
        };
        let late = || MembersError::Busy("the log is not written out yet".to_owned());
        timeout(CUT_WITHIN, written).await.map_err(|_| late())??;
        raft.trigger().purge_log(applied.index).await.map_err(|_| self.stopped())?;
        let is_cut = move |metrics: &RaftMetrics<NodeId, EmptyNode>| {
            metrics.purged.is_some_and(|purged| purged >= applied)
        };
        let cut = raft.wait(Some(CUT_WITHIN)).metrics(is_cut, "the log").await;
        cut.map(drop).map_err(|_| late())
    }

    /// Those that were to become members and are not wanted any more, or were members.
    fn strays(&self, members: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let replica = self.common.replica.read().unwrap_or_else(PoisonError::into_inner);
        let membership = replica.membership.membership();
        membership.learner_ids().filter(|learner| !members.contains(learner)).collect()
    }

    async fn remove_strays(
        &self,
        raft: &Raft,
        members: &BTreeSet<NodeId>,
    ) -> Result<(), MembersError> {
        let strays = self.strays(members);
        if strays.is_empty() {
            return Ok(());
        }
        let removed = raft.change_membership(ChangeMembers::RemoveNodes(strays), false).await;
        removed.map(drop).map_err(|error| self.not_changed(error))
    }

    /// Lists those that decide, as this member has it applied.
    pub fn members(&self) -> BTreeSet<NodeId> {
        let replica = self.common.replica.read().unwrap_or_else(PoisonError::into_inner);
        replica.membership.voter_ids().collect()
    }

    /// Whether a change of members was begun, by this member or one that led before, and not ended:
    /// both those before and those after are asked until then (Raft, section 6), or some hear what is
    /// in the log and do not decide.
    pub fn is_changing(&self) -> bool {
        let replica = self.common.replica.read().unwrap_or_else(PoisonError::into_inner);
        let membership = replica.membership.membership();
        membership.get_joint_config().len() > 1 || membership.learner_ids().next().is_some()
    }

    /// Returns who leads, as far as this member knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.common.raft.get().and_then(|raft| raft.metrics().borrow().current_leader)
    }

    /// Waits until this member has applied all that was decided when it was asked, so that what is read
    /// then is no older: by the leader's read index, which others confirm (Raft, section 6.4).
    ///
    /// # Errors
    /// Nobody leads, or the log is stopped.
    pub async fn catch_up(&self) -> Result<(), ProposeError> {
        let raft = self.common.raft.get().ok_or(Stopped::Ending)?;
        let caught_up = self.await_read_index(raft).await;
        // It may be found out at any moment, before its log has ended too.
        self.check_state()?;
        caught_up
    }

    async fn await_read_index(&self, raft: &Raft) -> Result<(), ProposeError> {
        if leads_alone(&raft.metrics().borrow()) {
            // What it acknowledged it has applied, also when it writes no more.
            return Ok(());
        }
        let read = timeout(CAUGHT_UP_WITHIN, self.read_index(raft)).await;
        let Some(index) = read.map_err(|_| ProposeError::NoLeader)?? else { return Ok(()) };
        let wait = raft.wait(Some(CAUGHT_UP_WITHIN));
        let applied = wait.applied_index_at_least(Some(index), "to read").await;
        applied.map(drop).map_err(|_| ProposeError::NoLeader)
    }

    async fn read_index(&self, raft: &Raft) -> Result<Option<u64>, ProposeError> {
        // Not those that change with every question.
        let mut metrics = raft.server_metrics();
        loop {
            metrics.mark_unchanged();
            match raft.get_read_log_id().await {
                Ok((read, _)) => return Ok(read.map(|read| read.index)),
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                    if let Some(leader) = to.leader_id {
                        let call = self.common.transport.call(leader, Request::ReadIndex);
                        let answer = raft::while_leads(raft, leader, call).await;
                        if let Some(Ok(Response::ReadIndex(index))) = answer {
                            return Ok(index);
                        }
                    }
                }
                Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {}
                Err(RaftError::Fatal(_)) => return Err(self.stopped().into()),
            }
            // Until there is another leader; one that was only just busy is asked again soon.
            tokio::select! {
                biased;
                changed = metrics.changed() => changed.map_err(|_| self.stopped())?,
                () = sleep(raft::HEARTBEAT) => {}
            }
        }
    }

    /// Refuses a state that is known to be wrong.
    ///
    /// # Errors
    /// It is not the one that the other members have.
    pub fn check_state(&self) -> Result<(), Stopped> {
        match self.common.stopped.get() {
            Some(differs @ Stopped::Differs { .. }) => Err(differs.clone()),
            _ => Ok(()),
        }
    }

    /// Whether this manager leads, and more than half of the members just said so.
    pub async fn is_confirmed(&self) -> bool {
        let Some(raft) = self.common.raft.get() else { return false };
        matches!(timeout(CONFIRMED_WITHIN, raft.get_read_log_id()).await, Ok(Ok(_)))
    }

    /// Whether this member knows what is decided, but for what is on its way: as a leader, more than
    /// half of the members answered it of late, and otherwise a leader said something.
    pub fn is_current(&self) -> bool {
        let Some(raft) = self.common.raft.get() else { return false };
        let metrics = raft.metrics().borrow().clone();
        if leads_alone(&metrics) || metrics.running_state.is_err() {
            // Whoever decides alone has nobody to whom its agents could go.
            return leads_alone(&metrics);
        }
        if metrics.state.is_leader() {
            let acked = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            return acked.is_some_and(|acked| acked < STALE_AFTER);
        }
        locked(&self.common.led_at).is_some_and(|led_at| led_at.elapsed() < STALE_AFTER)
    }

    /// Waits until somebody leads, as far as this member knows; `None` once the log has stopped.
    pub async fn await_leader(&self) -> Option<NodeId> {
        let mut metrics = self.common.raft.get()?.metrics();
        let known = metrics
            .wait_for(|metrics| metrics.running_state.is_err() || metrics.current_leader.is_some());
        known.await.ok()?.current_leader
    }

    /// Waits until a manager decides, or has no say any more, as far as this member knows; or until
    /// the log has stopped.
    pub async fn await_deciding(&self, manager: NodeId, decides: bool) {
        let Some(raft) = self.common.raft.get() else { return };
        let mut metrics = raft.metrics();
        let changed = metrics.wait_for(|metrics| {
            let mut voters = metrics.membership_config.voter_ids();
            metrics.running_state.is_err() || voters.any(|voter| voter == manager) == decides
        });
        // The sender lives as long as openraft.
        let _ = changed.await;
    }

    /// Waits until this manager leads and has applied all that was decided before.
    ///
    /// # Errors
    /// The log has stopped.
    pub async fn led(&self) -> Result<(), Stopped> {
        self.await_leadership(true).await
    }

    /// Waits until this manager does not lead.
    ///
    /// # Errors
    /// The log has stopped.
    pub async fn not_led(&self) -> Result<(), Stopped> {
        self.await_leadership(false).await
    }

    async fn await_leadership(&self, wanted: bool) -> Result<(), Stopped> {
        let raft = self.common.raft.get().ok_or(Stopped::Ending)?;
        let mut metrics = raft.metrics();
        let leads = |metrics: &RaftMetrics<NodeId, EmptyNode>| {
            let applied = metrics.last_applied.map(|applied| applied.leader_id);
            let own = applied.is_some_and(|leader| leader.term == metrics.current_term);
            metrics.state.is_leader() && own
        };
        let changed =
            metrics.wait_for(|metrics| metrics.running_state.is_err() || leads(metrics) == wanted);
        let running = changed.await.is_ok_and(|metrics| metrics.running_state.is_ok());
        running.then_some(()).ok_or_else(|| self.stopped())
    }

    fn not_changed(
        &self,
        error: RaftError<NodeId, ClientWriteError<NodeId, EmptyNode>>,
    ) -> MembersError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                MembersError::NotLeader(to.leader_id)
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
                MembersError::Busy(error.to_string())
            }
            RaftError::Fatal(_) => MembersError::Stopped(self.stopped()),
        }
    }

    /// Ends the writing when what was proposed is answered, and closes the file.
    pub async fn close(&self) {
        drop(locked(&self.proposals).take());
        let batches = locked(&self.batches).take();
        if let Some(batches) = batches {
            // Batches that panicked have left their proposals without an answer, which says enough.
            let _ = batches.await;
        }
        let _ = self.writer.send(Op::End);
        let writing = locked(&self.writing).take();
        // A writer that panicked has stopped the log, which was told to whoever proposed.
        match writing {
            None => {}
            Some(Writing::Thread(thread)) => {
                let _ = task::spawn_blocking(|| thread.join()).await;
            }
            Some(Writing::Task(task)) => {
                let _ = task.await;
            }
        }
    }

    fn stopped(&self) -> Stopped {
        match (self.common.stopped.get(), &*locked(&self.proposals)) {
            (Some(stopped), _) => stopped.clone(),
            (None, None) => Stopped::Ending,
            (None, Some(_)) => self.failed("its writer broke off".to_owned()),
        }
    }

    fn failed(&self, why: String) -> Stopped {
        Stopped::Failed { path: self.common.path.clone(), why }
    }
}

impl Drop for Log {
    /// Waits for the writer, so that the file is closed when the log is gone.
    fn drop(&mut self) {
        drop(locked(&self.proposals).take());
        let _ = self.writer.send(Op::End);
        match locked(&self.writing).take() {
            // A task ends when it is told to, or with its runtime.
            None | Some(Writing::Task(_)) => {}
            Some(Writing::Thread(thread)) => {
                let _ = thread.join();
            }
        }
    }
}

/// Whether nobody else decides, nor is to; so it is with one that leads, or that did until its disk failed.
fn leads_alone(metrics: &RaftMetrics<NodeId, EmptyNode>) -> bool {
    let leads = metrics.state.is_leader() || metrics.running_state.is_err();
    leads && metrics.membership_config.voter_ids().eq([metrics.id])
}

/// Up to which entry a leader knows a member to have the log.
fn replicated(metrics: &RaftMetrics<NodeId, EmptyNode>, member: NodeId) -> Option<u64> {
    let last = metrics.replication.as_ref()?.get(&member).copied().flatten();
    last.map(|last| last.index)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Proposals that wait for the entry before to be durable and become one together: the more wait for
/// a sync of the disk, the more one sync is shared by. With those being written at most 128 MB.
const MAX_WAITING: usize = 256;
/// Labels, the largest part of any command, have 16 KB, which may be six times that as JSON.
const MAX_COMMAND_BYTES: usize = 256 << 10;
/// A manager that decides alone waits for nothing but its disk.
const LEADS_AFTER: Duration = Duration::from_secs(10);
/// So many entries a member that has caught up may lack, while others are written.
const MOST_BEHIND: u64 = 16;
/// Writing a large state out takes seconds.
const CUT_WITHIN: Duration = Duration::from_secs(20);
/// A new member may need all of the state first.
const CAUGHT_UP_AFTER: Duration = Duration::from_secs(60);
/// Longer than it takes to find another leader.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// Members that are there answer within milliseconds.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(2);
/// Longer than it takes to find another leader, shorter than callers wait.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(4);
