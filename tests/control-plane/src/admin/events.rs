//! `POST /admin/nodes/{id}/events`: signs and sends any event, also one that no control plane would send; and the same
//! out of order (`…/events/reversed`) or once more (`…/events/replay`).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::unknown_node;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::node::Crafted;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventRequest {
    event_type: String,
    payload: Box<RawValue>,
    /// Seconds by which the time of issue is off.
    #[serde(default)]
    issued_at_offset: i64,
    /// Whether somebody else signs it.
    #[serde(default)]
    forged: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReversedRequest {
    events: Vec<EventRequest>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventId {
    event_id: String,
}

#[derive(Serialize)]
struct EventIds {
    event_ids: Vec<String>,
}

impl EventRequest {
    fn crafted(&self) -> Result<Crafted<'_>, Refusal> {
        // The type becomes a line of the stream.
        if self.event_type.is_empty() || self.event_type.chars().any(char::is_control) {
            return Err(Refusal::bad_request("event_type must be text without control characters"));
        }
        Ok(Crafted {
            event_type: &self.event_type,
            payload: &self.payload,
            issued_at_offset: self.issued_at_offset,
            forged: self.forged,
        })
    }
}

pub(super) fn send(app: &App, id: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let request: EventRequest = reply::object(body)?;
    let sent = app.store.lock().emit_crafted(id, &[request.crafted()?])?.ok_or_else(unknown_node)?;
    let event_id = sent.into_iter().next().ok_or_else(unknown_node)?;
    Ok(reply::ok(&EventId { event_id }))
}

/// Numbers and signs the events in the order given, and sends the last first.
pub(super) fn send_reversed(app: &App, id: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let request: ReversedRequest = reply::object(body)?;
    let events: Vec<Crafted<'_>> =
        request.events.iter().map(EventRequest::crafted).collect::<Result<_, _>>()?;
    let event_ids = app.store.lock().emit_crafted(id, &events)?.ok_or_else(unknown_node)?;
    Ok(reply::ok(&EventIds { event_ids }))
}

/// Sends an event of the history once more, byte for byte.
pub(super) fn replay(app: &App, id: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let request: EventId = reply::object(body)?;
    let mut model = app.store.lock();
    let node = model.node_mut(id).ok_or_else(unknown_node)?;
    if !node.events.replay(&request.event_id) {
        return Err(Refusal::bad_request("event_id is not in the history"));
    }
    Ok(reply::ok(&request))
}
