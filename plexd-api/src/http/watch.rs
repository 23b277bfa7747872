//! `GET /v1/state/watch`: what changes, as server-sent events. A watcher compares the state it last told of with the
//! one there is: one that is slow misses intermediate versions, holds nobody up and needs no queue.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::sync::watch;

use super::error::ApiError;
use super::message::{Body, Request, Response};
use super::{Api, read};
use crate::mirror::{Change, Snapshot, json};

/// How often a silent stream says that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

struct Watcher {
    api: Arc<Api>,
    changes: watch::Receiver<()>,
    /// The state told of so far.
    told: Arc<Snapshot>,
    greeted: bool,
}

pub(super) fn watch(api: &Arc<Api>, _: &Request) -> Result<Response, ApiError> {
    // Subscribed before the state is taken: nothing between the two is missed.
    let changes = api.mirror.changes();
    let told = api.state()?;
    let watcher = Watcher { api: Arc::clone(api), changes, told, greeted: false };
    let events = futures_util::stream::unfold(watcher, |mut watcher| async move {
        let text = watcher.next().await?;
        Some((text, watcher))
    });
    let mut response = Response::new(Body::Pieces(Box::pin(events)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    read::mark_age(api, &mut response);
    Ok(response)
}

impl Watcher {
    /// Returns the next piece of the stream; `None` when the process stops.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.greeted {
            self.greeted = true;
            return Some(Bytes::from_static(b": watching\n\n"));
        }
        loop {
            // Safe to cancel: a change not yet marked as seen is seen the next time.
            tokio::select! {
                () = self.api.shutdown.cancelled() => return None,
                changed = self.changes.changed() => changed.ok()?,
                () = tokio::time::sleep(SIGN_OF_LIFE) => return Some(Bytes::from_static(b": alive\n\n")),
            }
            let now = self.api.mirror.snapshot()?;
            let text = self.api.told.between(&self.told, &now);
            self.told = now;
            if !text.is_empty() {
                return Some(text);
            }
        }
    }
}

/// The last thing that a watcher was told, for the others who are to be told the same: so that a change of ten thousand
/// entries is written once, and not once for each of them.
#[derive(Debug, Default)]
pub struct Told(Mutex<Option<Step>>);

/// From one state to another, neither of which is kept alive by this.
#[derive(Debug)]
struct Step {
    from: Weak<Snapshot>,
    to: Weak<Snapshot>,
    text: Bytes,
}

impl Told {
    /// Returns what differs between two states.
    fn between(&self, from: &Arc<Snapshot>, to: &Arc<Snapshot>) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &Weak<Snapshot>, state| std::ptr::eq(known.as_ptr(), Arc::as_ptr(state));
        // An address is not used again while there is a weak reference to what was there.
        if let Some(step) = last.as_ref().filter(|step| same(&step.from, from) && same(&step.to, to)) {
            return step.text.clone();
        }
        let text = Bytes::from(events(from, to));
        *last = Some(Step { from: Arc::downgrade(from), to: Arc::downgrade(to), text: text.clone() });
        text
    }
}

/// Writes what differs between two states.
fn events(old: &Snapshot, new: &Snapshot) -> Vec<u8> {
    let mut out = Vec::new();
    new.changes_since(old, |kind, key, version, change| {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\ndata: {\"key\":");
        // JSON escapes line ends, which would end the field.
        json(&mut out, key);
        if let Some(version) = version {
            out.extend_from_slice(b",\"version\":");
            json(&mut out, &version);
        }
        if change == Change::Gone {
            out.extend_from_slice(b",\"deleted\":true");
        }
        out.extend_from_slice(b"}\n\n");
    });
    out
}

#[cfg(test)]
mod tests {
    use plexd_proto::node::v1::change::Change as Wire;
    use plexd_proto::node::v1::{Change, ReportEntry, WatchResponse};

    use super::*;
    use crate::mirror::{Mirror, Pace, Stage};

    /// Returns the state with version `version` of a report.
    async fn state(mirror: &Mirror, version: i64) -> Arc<Snapshot> {
        let entry = ReportEntry {
            key: "k".into(),
            version,
            revision: u64::try_from(version).unwrap(),
            ..Default::default()
        };
        let changes = vec![Change { change: Some(Wire::Report(entry)) }];
        let mut stage = Stage::snapshot();
        stage.add(WatchResponse { reset: true, changes, complete: true }, &mut Pace::new()).await;
        mirror.publish(stage).await;
        mirror.snapshot().unwrap()
    }

    #[tokio::test]
    async fn what_many_are_to_be_told_is_written_once() {
        let mirror = Mirror::new();
        let [one, two, three] = [state(&mirror, 1).await, state(&mirror, 2).await, state(&mirror, 3).await];
        let event = |version| format!("event: report\ndata: {{\"key\":\"k\",\"version\":{version}}}\n\n");
        let told = Told::default();
        let first = told.between(&one, &two);
        assert_eq!(first, event(2));
        assert_eq!(told.between(&one, &two).as_ptr(), first.as_ptr());
        assert_eq!(told.between(&one, &three), event(3));
        assert_eq!(told.between(&two, &three), event(3));
        assert_eq!(told.between(&three, &three), "");
    }
}
