//! The event stream: connected for as long as the node lives, each event handed to the state in the order received, the
//! truth about the connection on the board.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Session, at};
use crate::control::backoff::{self, Backoff};
use crate::control::client::{ClientError, EventStream};
use crate::control::sse::Item;
use crate::reconcile::drift::Correction;
use crate::state::State;
use crate::status::{Stream, Subsystem};
use crate::supervisor::Shutdown;

/// Status says so when there was no stream for this long (contract, section 2).
const SILENCE: Duration = Duration::from_mins(5);

/// A connection that lived this long was a good one: the next attempt starts from the first delay.
const GOOD: Duration = Duration::from_secs(10);

/// The state pull that follows a connect is put off by at most this part of the time without a stream, and by no more than
/// [`MOST_SPREAD`]: events are replayed at once, and after an outage, which all nodes had together, they do not
/// all pull together.
const SPREAD_PART: u32 = 2;
/// See [`SPREAD_PART`].
const MOST_SPREAD: Duration = Duration::from_secs(30);

/// The task.
#[derive(Debug)]
pub struct StreamReader {
    /// Shared with the other loops.
    pub session: Session,
    /// Takes the events.
    pub state: State,
    /// Where to tell what of an event was refused.
    pub drift: mpsc::Sender<Vec<Correction>>,
    /// Longest wait of a node that finds its identity on disk, before it connects.
    pub first_contact: Duration,
}

impl StreamReader {
    /// Reads until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new();
        if !self.session.first_contact(self.first_contact, &shutdown).await {
            return Ok(());
        }
        let enrolled = Instant::now();
        let mut without = Instant::now();
        while let Some(identity) = self.session.identity(&shutdown).await {
            self.set(Stream::Connecting);
            let mut connected = None;
            let last = self.state.last_event_id();
            // Cancel safe: an event that was not handled completely is replayed after the last one that was.
            let ended = tokio::select! {
                () = shutdown.cancelled() => break,
                // The stream of an identity that is no more says nothing to the next one.
                () = self.session.replaced(&identity) => Ok(()),
                ended = async {
                    let stream = self.session.client.events(&identity.credentials(), last.as_deref()).await?;
                    self.session.answered();
                    connected = Some(Instant::now());
                    self.read(stream, without.elapsed(), &mut backoff).await
                } => ended,
            };
            self.set(Stream::Disconnected);
            if let Some(since) = connected {
                without = Instant::now();
                if since.elapsed() >= GOOD {
                    backoff.reset();
                }
            }
            let delay = match ended {
                Ok(()) => backoff.next(backoff::random()),
                Err(error) => self.session.failed(&error, &mut backoff),
            };
            let heard = self.session.board.control_status().last_byte;
            if heard.unwrap_or(enrolled).elapsed() >= SILENCE {
                let message =
                    "there has been no event stream for 5 minutes; changes arrive by the periodic pull only";
                self.session.board.raise(Subsystem::ControlPlane, "stream", message);
            }
            if !self.session.pause(delay, &shutdown).await {
                break;
            }
        }
        Ok(())
    }

    /// Reads one connection, the first for the time `without`, to its end.
    async fn read(
        &self,
        mut stream: EventStream,
        without: Duration,
        backoff: &mut Backoff,
    ) -> Result<(), ClientError> {
        self.heard();
        self.set(Stream::Connected);
        self.session.board.clear(Subsystem::ControlPlane, "stream");
        // What happened while there was no stream, and is too old to be replayed, comes with the state.
        let spread = (without / SPREAD_PART).min(MOST_SPREAD);
        let mut pull_at = Some(Instant::now() + backoff::part_of(spread, backoff::random()));
        let heard = || self.heard();
        loop {
            // Cancel safe: the stream says so of itself.
            let item = tokio::select! {
                biased;
                () = at(pull_at) => {
                    pull_at = None;
                    self.session.pulls.notify_one();
                    continue;
                }
                item = stream.next(&heard) => item?,
            };
            let Some(item) = item else { return Ok(()) };
            // A stream that ends right after `retry:`, with which it may begin, was no success.
            if !matches!(item, Item::Retry(_)) {
                backoff.reset();
            }
            if !self.handle(item, backoff).await {
                return Ok(());
            }
        }
    }

    /// Hands an item on; returns whether to go on reading.
    async fn handle(&self, item: Item, backoff: &mut Backoff) -> bool {
        match item {
            Item::Event { id, data, .. } => match self.state.event(id, data).await {
                Ok(outcome) => {
                    if outcome.pull {
                        self.session.pulls.notify_one();
                    }
                    if !outcome.corrections.is_empty() && self.drift.try_send(outcome.corrections).is_err() {
                        tracing::warn!("drift report dropped: earlier ones are still unsent");
                    }
                    true
                }
                Err(_) => false,
            },
            Item::Retry(base) => {
                backoff.set_base(base);
                true
            }
            Item::TooLarge { id } => {
                tracing::warn!(
                    event = id.as_deref().unwrap_or(""),
                    "event larger than 8 MiB dropped; the state is pulled"
                );
                self.session.pulls.notify_one();
                self.state.skip_event(id).await.is_ok()
            }
        }
    }

    fn heard(&self) {
        self.session.board.control(|control| control.last_byte = Some(Instant::now()));
    }

    fn set(&self, stream: Stream) {
        self.session.board.control(|control| control.stream = stream);
    }
}
