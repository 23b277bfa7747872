//! Report entries: `POST …/report`. A batch is taken whole or not at all.

use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::liveness::list;
use super::{fields, node_mut};
use crate::encoding;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::node::Node;
use crate::store::received::{EntryParts, Kind};

#[derive(Deserialize)]
struct ReportSync {
    #[serde(default, deserialize_with = "list")]
    entries: Vec<Box<RawValue>>,
    #[serde(default, deserialize_with = "list")]
    deleted: Vec<String>,
}

#[derive(Deserialize)]
struct UpdatedAt {
    updated_at: String,
}

pub(super) fn sync(app: &App, id: &str, body: Box<RawValue>) -> Result<Reply, Refusal> {
    let request: ReportSync = fields(&body)?;
    let entries = request.entries.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    if request.deleted.iter().any(String::is_empty) {
        return Err(Refusal::bad_request("a deleted key is empty"));
    }
    let mut model = app.store.lock();
    let node = node_mut(&mut model, id)?;
    node.received.push(Kind::Reports, body)?;
    if entries.iter().any(|(parts, _)| conflicts(node, parts)) {
        return Err(Refusal::new(StatusCode::CONFLICT, "version conflict"));
    }
    for key in &request.deleted {
        node.reports.delete(key)?;
    }
    for (parts, entry) in entries {
        if node.reports.get(&parts.key).is_none_or(|stored| stored.version <= parts.version) {
            node.reports.put(parts, entry)?;
        }
    }
    Ok(reply::acknowledged())
}

fn entry(entry: Box<RawValue>) -> Result<(EntryParts, Box<RawValue>), Refusal> {
    let parts: EntryParts = fields(&entry)?;
    let UpdatedAt { updated_at } = fields(&entry)?;
    if parts.key.is_empty() || parts.content_type.is_empty() {
        return Err(Refusal::bad_request("an entry needs key and content_type"));
    }
    if encoding::parse_time(&updated_at).is_none() {
        return Err(Refusal::bad_request("updated_at must be RFC 3339"));
    }
    Ok((parts, entry))
}

/// An older version with other content contradicts what is stored; with the same content it is a repetition.
fn conflicts(node: &Node, parts: &EntryParts) -> bool {
    node.reports.get(&parts.key).is_some_and(|stored| {
        parts.version < stored.version
            && (parts.content_type != stored.content_type || parts.payload.get() != stored.payload.get())
    })
}
