//! The state pull: after every connect of the stream, when an event asks for it, and every `reconcile.interval`, stream up
//! or down (contract, section 2). At start it waits for the stream, though not for long.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;

use super::Session;
use crate::control::backoff::{self, Backoff};
use crate::control::client::{ClientError, StateAnswer};
use crate::identity::Identity;
use crate::reconcile::drift::Correction;
use crate::state::{PullOutcome, PullTicket, State};
use crate::supervisor::Shutdown;

/// Pulls in a row that events may overtake before there is a pause.
const MAX_OVERTAKEN: u32 = 5;

/// How long the pause is. The events may not bring what the pull was asked for: one that was too large, say.
const OVERTAKEN_PAUSE: Duration = Duration::from_secs(5);

/// How long the first pull waits for the stream, which asks for one once it is connected.
const FIRST_PULL: Duration = Duration::from_secs(10);

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

/// What became of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pulled {
    /// The state is what the control plane says.
    Done,
    /// Events came faster than answers.
    Overtaken,
}

impl Puller {
    /// Pulls until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new();
        let mut known = Known::default();
        let first = backoff::jittered(FIRST_PULL, backoff::random());
        if self.session.identity(&shutdown).await.is_none() || !self.wait(first, &shutdown).await {
            return Ok(());
        }
        while let Some(identity) = self.session.identity(&shutdown).await {
            // The answer to this pull is also that to whoever asked for one until now.
            let _ = self.session.pulls.notified().now_or_never();
            // Cancel safe: an answer that is not taken over is pulled again.
            let result = tokio::select! {
                () = shutdown.cancelled() => break,
                result = self.pull(&identity, &mut known) => result,
            };
            let goes_on = match result {
                Ok(pulled) => {
                    backoff.reset();
                    self.session.answered();
                    let next = match pulled {
                        Pulled::Done => self.interval,
                        Pulled::Overtaken => self.interval.min(OVERTAKEN_PAUSE),
                    };
                    self.wait(backoff::jittered(next, backoff::random()), &shutdown).await
                }
                Err(error) => {
                    let delay = self.session.failed(&error, &mut backoff);
                    if error.is_unreachable() {
                        // The stream finds out first that there is a control plane again.
                        self.wait(delay, &shutdown).await
                    } else {
                        self.session.pause(delay, &shutdown).await
                    }
                }
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    async fn pull(&self, identity: &Identity, known: &mut Known) -> Result<Pulled, ClientError> {
        for _ in 0..MAX_OVERTAKEN {
            // The keeper fails only when it has stopped: then there is nothing to pull for.
            let Ok(ticket) = self.state.begin_pull().await else { return Ok(Pulled::Done) };
            let etag = known.etag.as_deref().filter(|_| known.ticket == Some(ticket));
            match self.session.client.state(&identity.credentials(), etag).await? {
                StateAnswer::NotModified => return Ok(Pulled::Done),
                StateAnswer::State { state, etag } => match self.state.pulled(ticket, *state).await {
                    Ok(PullOutcome::Overtaken) => {}
                    Ok(PullOutcome::Applied(corrections)) => {
                        *known = Known { etag, ticket: Some(ticket) };
                        if !corrections.is_empty() && self.drift.try_send(corrections).is_err() {
                            tracing::warn!("drift report dropped: earlier ones are still unsent");
                        }
                        return Ok(Pulled::Done);
                    }
                    Err(_) => return Ok(Pulled::Done),
                },
            }
        }
        Ok(Pulled::Overtaken)
    }

    /// Waits for somebody to ask for a pull, no longer than `most`; returns whether to go on.
    async fn wait(&mut self, most: Duration, shutdown: &Shutdown) -> bool {
        // Cancel safe: a notification that is not consumed stays.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => false,
            () = tokio::time::sleep(most) => true,
            () = self.session.pulls.notified() => true,
            Ok(()) = self.session.identity.changed() => true,
        }
    }
}
