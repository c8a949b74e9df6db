//! What waits becomes one entry: proposals that came while the entry before was made durable go
//! together, so the more there are, the less each costs. Where another member leads, it gets them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use openraft::error::{ClientWriteError, RaftError};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    MAX_WAITING, ProposeError,
    network::{Request, Response, Transport},
    raft::{self, Answers, Batch, BatchId, HEARTBEAT, Raft, batch_id},
};
use crate::{
    engine::cluster::{Command, Outcome},
    manager::random,
    types::Revision,
};

/// Who may write a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    /// Whoever leads.
    Anybody,
    /// This member, as long as it leads: what it decides as the leader is not for another one to write.
    ThisLeader,
}

/// One command on its way into the log.
pub(super) struct Proposal {
    pub command: Command,
    pub author: Author,
    /// How large it is in the log.
    pub bytes: usize,
    /// Dropped without an answer when the log stops.
    pub answer: Answer,
}

type Answer = oneshot::Sender<Result<(Revision, Outcome), ProposeError>>;

/// The one task that proposes; it also asks for snapshots, and ends openraft at the end.
pub(super) struct Batches {
    pub raft: Raft,
    pub transport: Arc<dyn Transport>,
    pub proposals: mpsc::Receiver<Proposal>,
    /// Told when there should be another snapshot.
    pub due: Arc<Notify>,
    /// Under which name it proposes, and how many batches it did.
    pub named: Option<(u64, u64)>,
}

impl Batches {
    /// Proposes until nobody can any more.
    pub async fn run(mut self) {
        let mut waiting = Vec::with_capacity(MAX_WAITING);
        loop {
            tokio::select! {
                // First what is seldom: under a load there is always something to propose.
                biased;
                () = self.due.notified() => {
                    // It is asked for again when openraft goes on.
                    let _ = self.raft.trigger().snapshot().await;
                }
                count = self.proposals.recv_many(&mut waiting, MAX_WAITING) => {
                    if count == 0 {
                        break;
                    }
                    let mut waiting = waiting.drain(..).collect();
                    while let Some((author, commands, answers)) = cut(&mut waiting) {
                        self.propose(author, commands, answers).await;
                    }
                }
            }
        }
        if let Err(error) = self.raft.shutdown().await {
            debug!(%error, "openraft broke off");
        }
    }

    /// Has one entry written and applied, and answers those that proposed it. When the log has
    /// stopped they are left without.
    async fn propose(&mut self, author: Author, commands: Vec<Command>, answers: Vec<Answer>) {
        let id = match self.next_id() {
            Ok(id) => id,
            Err(error) => return warn!(error = format!("{error:#}"), "nothing is proposed"),
        };
        let decided = timeout(PATIENCE, self.decide(author, Batch { id, commands })).await;
        let outcomes = match decided {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(Undecided::Stopped)) => return,
            Ok(Err(Undecided::LeadsNoMore)) | Err(_) => {
                for answer in answers {
                    let _ = answer.send(Err(ProposeError::NoLeader));
                }
                return;
            }
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes.0) {
            // Whoever asked may have gone.
            let _ = answer.send(outcome.map_err(ProposeError::Refused));
        }
    }

    fn next_id(&mut self) -> anyhow::Result<BatchId> {
        let (name, count) = match self.named {
            Some(named) => named,
            None => (u64::from_be_bytes(random::bytes()?), 0),
        };
        self.named = Some((name, count + 1));
        Ok(batch_id(name, count + 1))
    }

    /// Proposes until somebody who leads has said what came of it, or the log has stopped. A batch
    /// that is proposed twice is applied once.
    async fn decide(&self, author: Author, batch: Batch) -> Result<Answers, Undecided> {
        // Not those that change with every try.
        let mut metrics = self.raft.server_metrics();
        loop {
            metrics.mark_unchanged();
            let leader = match self.raft.client_write(batch.clone()).await {
                Ok(written) => return Ok(written.data),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => to.leader_id,
                Err(error) => {
                    debug!(%error, "not written");
                    return Err(Undecided::Stopped);
                }
            };
            if author == Author::ThisLeader {
                return Err(Undecided::LeadsNoMore);
            }
            if let Some(leader) = leader {
                let call = self.transport.call(leader, Request::Propose(batch.clone()));
                match raft::while_leads(&self.raft, leader, timeout(ONE_TRY, call)).await {
                    Some(Ok(Ok(Response::Proposed(index, answers)))) => {
                        // Whoever has the answer reads what came of it here too.
                        let wait = self.raft.wait(None);
                        let applied = wait.applied_index_at_least(Some(index), "the answer").await;
                        return applied.map(|_| answers).map_err(|_| Undecided::Stopped);
                    }
                    Some(Ok(other)) => debug!(%leader, ?other, "the leader does not take it"),
                    Some(Err(_)) | None => debug!(%leader, "the leader does not answer"),
                }
            }
            // Until there is another leader; one that was only just busy is asked again soon.
            tokio::select! {
                biased;
                changed = metrics.changed() => changed.map_err(|_| Undecided::Stopped)?,
                () = sleep(HEARTBEAT) => {}
            }
        }
    }
}

/// Why nothing came of a batch.
enum Undecided {
    /// It was this member's to write, which does not lead any more.
    LeadsNoMore,
    /// The log has stopped.
    Stopped,
}

/// Takes as many as one entry holds, all of which have the same author.
fn cut(waiting: &mut VecDeque<Proposal>) -> Option<(Author, Vec<Command>, Vec<Answer>)> {
    let author = waiting.front()?.author;
    let (mut commands, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(next) = waiting.front() {
        bytes += next.bytes;
        let is_full = !commands.is_empty() && bytes > MAX_ENTRY_BYTES;
        if is_full || next.author != author {
            break;
        }
        let Some(Proposal { command, answer, .. }) = waiting.pop_front() else { break };
        commands.push(command);
        answers.push(answer);
    }
    Some((author, commands, answers))
}

/// So that an entry, as JSON, is well below what one message between managers may have.
const MAX_ENTRY_BYTES: usize = 1 << 20;
/// Longer than it takes to find another leader, shorter than callers wait.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a leader may take, which may be one no more.
const ONE_TRY: Duration = Duration::from_secs(2);
