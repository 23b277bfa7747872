//! The state pull: at start, after every connect of the stream, when an event asks for it, and every
//! `reconcile.interval`, stream up or down (contract, section 2).

use std::time::Duration;

use tokio::sync::mpsc;

use super::Session;
use crate::control::backoff::{self, Backoff};
use crate::control::client::{ClientError, StateAnswer};
use crate::identity::Identity;
use crate::reconcile::drift::Correction;
use crate::state::{PullOutcome, PullTicket, State};
use crate::supervisor::Shutdown;

/// Pulls in a row that events may overtake before the next waits its turn: then events bring the state.
const MAX_OVERTAKEN: u32 = 5;

/// The task.
#[derive(Debug)]
pub struct Puller {
    /// Shared with the other loops.
    pub session: Session,
    /// Takes the answers.
    pub state: State,
    /// Takes what the answers corrected.
    pub drift: mpsc::Sender<Vec<Correction>>,
    /// Period of pulls.
    pub interval: Duration,
}

/// The version of the state that was taken over last, and when; an answer that it has not changed is only worth something
/// if no event changed the copy since.
#[derive(Debug, Default)]
struct Known {
    etag: Option<String>,
    ticket: Option<PullTicket>,
}

impl Puller {
    /// Pulls until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new();
        let mut known = Known::default();
        while let Some(identity) = self.session.identity(&shutdown).await {
            // Cancel safe: an answer that is not taken over is pulled again.
            let result = tokio::select! {
                () = shutdown.cancelled() => break,
                result = self.pull(&identity, &mut known) => result,
            };
            match result {
                Ok(()) => {
                    backoff.reset();
                    self.session.answered();
                    self.wait(&shutdown).await;
                }
                Err(error) => {
                    let delay = self.session.failed(&error, &mut backoff);
                    if !self.session.pause(delay, &shutdown).await {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn pull(&self, identity: &Identity, known: &mut Known) -> Result<(), ClientError> {
        for _ in 0..MAX_OVERTAKEN {
            let Ok(ticket) = self.state.begin_pull().await else { return Ok(()) };
            let etag = known.etag.as_deref().filter(|_| known.ticket == Some(ticket));
            match self.session.client.state(&identity.credentials(), etag).await? {
                StateAnswer::NotModified => return Ok(()),
                StateAnswer::State { state, etag } => match self.state.pulled(ticket, *state).await {
                    Ok(PullOutcome::Overtaken) => {}
                    Ok(PullOutcome::Applied(corrections)) => {
                        *known = Known { etag, ticket: Some(ticket) };
                        if !corrections.is_empty() && self.drift.try_send(corrections).is_err() {
                            tracing::warn!("drift report dropped: earlier ones are still unsent");
                        }
                        return Ok(());
                    }
                    Err(_) => return Ok(()),
                },
            }
        }
        // Events come faster than answers; they bring the state along, and the next pull checks it.
        Ok(())
    }

    async fn wait(&mut self, shutdown: &Shutdown) {
        let period = backoff::jittered(self.interval, backoff::random());
        // Cancel safe: a notification that is not consumed stays.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(period) => {}
            () = self.session.pulls.notified() => {}
            Ok(()) = self.session.identity.changed() => {}
        }
    }
}
