//! Rotates the cluster secret, from which the keys of all pairs come, when a node was taken out, and
//! ends the trust in a root that was rotated.
//!
//! ```text
//! a node goes -> draw a secret, RotateSecret -> agents get the keys of both epochs
//!     -> every node that is ready has acknowledged them, or 10 minutes are over -> DropOlderSecret
//!
//! RotateRoot -> agents renew their certificates under the new root (`session`, `membership`)
//!     -> no node that is ready has one under a former root -> DropFormerRoot
//! ```
//! A node that is ready and hears no manager goes on with the older keys that long; one that is down
//! gets the new ones before it speaks to anybody. Sessions that are open stay: their next renewal
//! takes a key of the newest epoch that both sides have.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Shared;
use crate::engine::cluster::{Command, OlderSecret};

/// The task; may be aborted, and goes on from the state when it is started again.
pub struct RotationTask {
    shared: Arc<Shared>,
    /// The older secret's epoch, and until when it is kept at most.
    dropped_at: Option<(u32, Instant)>,
}

/// What the state asks for.
enum Wanted {
    Nothing,
    Secret,
    Drop(OlderSecret),
}

impl RotationTask {
    /// Makes the task.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, dropped_at: None }
    }

    /// Rotates for as long as it is polled.
    pub async fn run(mut self) {
        let mut progress = self.shared.dispatcher.progress();
        loop {
            progress.mark_unchanged();
            for rotated in [self.rotate_secret().await, self.drop_root().await] {
                if let Err(error) = rotated {
                    warn!(error = format!("{error:#}"), "the cluster's secrets are not rotated");
                    sleep(RETRY).await;
                }
            }
            // The end of a time is looked for now and then; everything else is progress.
            if let Ok(Err(_)) = timeout(LOOK, progress.changed()).await {
                return;
            }
            // What comes together is looked at once.
            sleep(COALESCED).await;
        }
    }

    async fn rotate_secret(&mut self) -> anyhow::Result<()> {
        let shared = self.shared.clone();
        let wanted = shared.log.read(|state| match state.secrets().map(|secrets| &secrets.older) {
            None => Wanted::Nothing,
            Some(None) if state.is_secret_due() => Wanted::Secret,
            Some(None) => Wanted::Nothing,
            Some(Some(older)) => Wanted::Drop(older.clone()),
        });
        match wanted {
            Wanted::Nothing => {}
            Wanted::Secret => {
                let secret = shared.trust.draw_secret()?;
                shared.log.propose(Command::RotateSecret { secret }).await?;
                info!("a node went; the keys of all pairs change");
            }
            Wanted::Drop(OlderSecret { epoch, secret: _, since }) => {
                let now = Instant::now();
                let until = match self.dropped_at {
                    Some((of, at)) if of == epoch => at,
                    Some(_) | None => now + LONGEST,
                };
                self.dropped_at = Some((epoch, until));
                let lacking = shared.log.read(|state| shared.dispatcher.lacks_keys(state, since));
                if !lacking || now >= until {
                    shared.log.propose(Command::DropOlderSecret { epoch }).await?;
                    info!(epoch, "the keys before hold no more");
                }
            }
        }
        Ok(())
    }

    async fn drop_root(&self) -> anyhow::Result<()> {
        let over = self.shared.log.read(|state| {
            let over = state.is_root_rotating() && state.under_former_roots().next().is_none();
            state.secrets().filter(|_| over).map(|secrets| secrets.root_rotations)
        });
        if let Some(rotations) = over {
            self.shared.log.propose(Command::DropFormerRoot { rotations }).await?;
            info!("the root before is not trusted any more");
        }
        Ok(())
    }
}

/// Longer than a management link is down for, and short enough for the keys of a removed node.
const LONGEST: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_secs(5);
const COALESCED: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(1);
