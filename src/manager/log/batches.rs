//! What waits becomes one entry: proposals that came while the entry before was made durable go
//! together, so the more there are, the less each costs.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::{Notify, mpsc, oneshot};
use tracing::debug;

use super::{
    MAX_WAITING,
    raft::{Batch, Raft},
};
use crate::{
    engine::cluster::{Command, Outcome, Refusal},
    types::Revision,
};

/// One command on its way into the log.
pub(super) struct Proposal {
    pub command: Command,
    /// How large it is in the log.
    pub bytes: usize,
    /// Dropped without an answer when the log stops.
    pub answer: oneshot::Sender<Result<(Revision, Outcome), Refusal>>,
}

/// The one task that proposes; it also asks for snapshots, and ends openraft at the end.
pub(super) struct Batches {
    raft: Raft,
    proposals: mpsc::Receiver<Proposal>,
    /// There should be another snapshot.
    due: Arc<Notify>,
}

impl Batches {
    pub fn new(raft: Raft, proposals: mpsc::Receiver<Proposal>, due: Arc<Notify>) -> Self {
        Self { raft, proposals, due }
    }

    /// Proposes until nobody can any more.
    pub async fn run(mut self) {
        let mut waiting = Vec::with_capacity(MAX_WAITING);
        loop {
            tokio::select! {
                count = self.proposals.recv_many(&mut waiting, MAX_WAITING) => {
                    if count == 0 {
                        break;
                    }
                    let mut waiting = waiting.drain(..).collect();
                    while let Some((batch, answers)) = cut(&mut waiting) {
                        self.propose(batch, answers).await;
                    }
                }
                () = self.due.notified() => {
                    // It is asked for again when openraft goes on.
                    let _ = self.raft.trigger().snapshot().await;
                }
            }
        }
        if let Err(error) = self.raft.shutdown().await {
            debug!(%error, "openraft broke off");
        }
    }

    /// Has one entry written and applied, and answers those that proposed it. When the log has
    /// stopped they are left without.
    async fn propose(&self, batch: Batch, answers: Vec<Answer>) {
        let written = self.raft.client_write(batch).await;
        let Ok(written) = written.inspect_err(|error| debug!(%error, "not written")) else {
            return;
        };
        for (answer, outcome) in answers.into_iter().zip(written.data.0) {
            // Whoever asked may have gone.
            let _ = answer.send(outcome);
        }
    }
}

type Answer = oneshot::Sender<Result<(Revision, Outcome), Refusal>>;

/// Takes as many as one entry holds.
fn cut(waiting: &mut VecDeque<Proposal>) -> Option<(Batch, Vec<Answer>)> {
    let (mut commands, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(next) = waiting.front() {
        bytes += next.bytes;
        if !commands.is_empty() && bytes > MAX_ENTRY_BYTES {
            break;
        }
        let Some(Proposal { command, answer, .. }) = waiting.pop_front() else { break };
        commands.push(command);
        answers.push(answer);
    }
    (!commands.is_empty()).then_some((Batch(commands), answers))
}

/// So that an entry, as JSON, is well below what one message between managers may have.
const MAX_ENTRY_BYTES: usize = 1 << 20;
