//! The stream of events for administrators. A receiver that is too slow is told how many it missed, and holds nobody up.

use std::collections::VecDeque;
use std::pin::Pin;

use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt};
use plexd_proto::admin::v1;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::Status;

use crate::control::history::{History, News, Outcome, Seen};
use crate::supervisor::Shutdown;

/// What the RPC answers with.
pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEventsResponse, Status>> + Send>>;

struct Reader {
    history: History,
    recorded: watch::Receiver<u64>,
    position: u64,
    waiting: VecDeque<v1::WatchEventsResponse>,
    follow: bool,
    shutdown: Shutdown,
}

/// Streams what `request` asks for; `permit` is held for as long as the stream lives.
pub(super) fn stream(
    history: History,
    request: v1::WatchEventsRequest,
    shutdown: Shutdown,
    permit: OwnedSemaphorePermit,
) -> EventStream {
    let recorded = history.recorded();
    let position = history.position_of_last(usize::try_from(request.recent).unwrap_or(usize::MAX));
    let mut reader =
        Reader { history, recorded, position, waiting: VecDeque::new(), follow: request.follow, shutdown };
    reader.read();
    let events = unfold(reader, |mut reader| async move { reader.next().await.map(|item| (item, reader)) });
    Box::pin(events.map(move |item| {
        let _ = &permit;
        item
    }))
}

impl Reader {
    async fn next(&mut self) -> Option<Result<v1::WatchEventsResponse, Status>> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(Ok(event));
            }
            if !self.follow {
                return None;
            }
            // Cancel safe: what was recorded stays to be read.
            tokio::select! {
                () = self.shutdown.cancelled() => {
                    self.follow = false;
                    return Some(Err(Status::unavailable("plexd-core is stopping")));
                }
                changed = self.recorded.changed() => changed.ok()?,
            }
            self.read();
        }
    }

    fn read(&mut self) {
        self.recorded.mark_unchanged();
        let News { mut missed, events, next } = self.history.since(self.position);
        self.position = next;
        for seen in events {
            let event = Some(event(seen));
            self.waiting.push_back(v1::WatchEventsResponse { event, missed: std::mem::take(&mut missed) });
        }
    }
}

fn event(seen: Seen) -> v1::Event {
    let (outcome, reason) = match seen.outcome {
        Outcome::Applied => (v1::EventOutcome::Applied, ""),
        Outcome::Unsupported => (v1::EventOutcome::Unsupported, ""),
        Outcome::Unknown => (v1::EventOutcome::Unknown, ""),
        Outcome::Rejected(reason) => (v1::EventOutcome::Rejected, reason),
    };
    v1::Event {
        received_unix_ms: seen.received.as_millisecond(),
        event_type: seen.event_type,
        event_id: seen.event_id,
        issued_unix_ms: seen.issued_at.map(jiff::Timestamp::as_millisecond),
        outcome: outcome.into(),
        reason: reason.to_owned(),
    }
}
