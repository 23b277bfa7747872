//! `GET /v1/state/watch`: what changes, as server-sent events. A watcher compares the state it last told of with the
//! one there is: one that is slow misses intermediate versions, holds nobody up and needs no queue.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::sync::watch;

use super::error::ApiError;
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

pub(super) fn watch(State(api): State<Arc<Api>>) -> std::future::Ready<Response> {
    std::future::ready(open(&api).unwrap_or_else(IntoResponse::into_response))
}

fn open(api: &Arc<Api>) -> Result<Response, ApiError> {
    // Subscribed before the state is taken: nothing between the two is missed.
    let changes = api.mirror.changes();
    let told = api.state()?;
    let watcher = Watcher { api: Arc::clone(api), changes, told, greeted: false };
    let events = futures_util::stream::unfold(watcher, |mut watcher| async move {
        let text = watcher.next().await?;
        Some((Ok::<_, Infallible>(text), watcher))
    });
    let mut response = Response::new(Body::from_stream(events));
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
            let text = events(&self.told, &now);
            self.told = now;
            if !text.is_empty() {
                return Some(text.into());
            }
        }
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
