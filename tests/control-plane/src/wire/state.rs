//! What a node shall be: `GET …/state`, `GET …/secrets/{key}`, and the answer to it, `POST …/drift`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::liveness::list;
use super::{fields, node_mut};
use crate::encoding;
use crate::reply::{self, Refusal, Reply};
use crate::secrets;
use crate::server::App;
use crate::store::desired::SecretRef;
use crate::store::node::raw;
use crate::store::received::Kind;
use crate::store::{Model, SigningKeys};

/// In the order of types, `StateResponse`; optional sections only when set.
#[derive(Serialize)]
struct State<'a> {
    peers: Vec<Box<RawValue>>,
    policies: &'a RawValue,
    signing_keys: SigningKeys,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(flatten)]
    sections: &'a BTreeMap<String, Box<RawValue>>,
    data: &'a [Box<RawValue>],
    secret_refs: Vec<SecretRef<'a>>,
}

#[derive(Serialize)]
struct SecretResponse<'a> {
    key: &'a str,
    ciphertext: String,
    nonce: String,
    version: u64,
}

#[derive(Deserialize)]
struct DriftReport {
    timestamp: String,
    #[serde(rename = "corrections", deserialize_with = "list")]
    _corrections: Vec<Correction>,
}

#[derive(Deserialize)]
struct Correction {
    #[serde(rename = "type")]
    _kind: String,
    #[serde(rename = "detail")]
    _detail: String,
}

pub(super) fn get(app: &App, id: &str, headers: &HeaderMap) -> Result<Reply, Refusal> {
    let body = state_text(&app.store.lock(), id)?;
    let etag = etag(body.as_bytes());
    let mut answer = if matches(headers, &etag) {
        reply::empty(StatusCode::NOT_MODIFIED)
    } else {
        reply::with_type(StatusCode::OK, "application/json", Bytes::from(body))
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        answer.headers_mut().insert(header::ETAG, value);
    }
    Ok(answer)
}

/// A node's state as it is served.
pub(crate) fn state_text(model: &Model, id: &str) -> Result<String, Refusal> {
    let node = model.node(id).ok_or_else(Refusal::unauthorized)?;
    let no_policies = raw::<[(); 0]>(&[]);
    let state = State {
        peers: model.shown_peers(id),
        policies: node.desired.policies.as_deref().unwrap_or(&no_policies),
        signing_keys: model.signing_keys(),
        metadata: node.desired.metadata.as_deref(),
        sections: &node.desired.sections,
        data: &node.desired.data,
        secret_refs: node.desired.secret_refs(),
    };
    Ok(String::from(Box::<str>::from(raw(&state))))
}

/// A hash of the content is enough for a tag: it protects nothing.
fn etag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("\"{:016x}-{:x}\"", hasher.finish(), body.len())
}

fn matches(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag == etag)
}

pub(super) fn secret(app: &App, id: &str, key: &str) -> Result<Reply, Refusal> {
    let model = app.store.lock();
    let node = model.node(id).ok_or_else(Refusal::unauthorized)?;
    let (value, version) = node.desired.secret(key).ok_or_else(Refusal::not_found)?;
    let secret_key = encoding::key32(&node.record.node_secret_key)
        .ok_or_else(|| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error"))?;
    let sealed = secrets::seal(&secret_key, value);
    Ok(reply::ok(&SecretResponse { key, ciphertext: sealed.ciphertext, nonce: sealed.nonce, version }))
}

pub(super) fn drift(app: &App, id: &str, body: Box<RawValue>) -> Result<Reply, Refusal> {
    let report: DriftReport = fields(&body)?;
    if encoding::parse_time(&report.timestamp).is_none() {
        return Err(Refusal::bad_request("timestamp must be RFC 3339"));
    }
    node_mut(&mut app.store.lock(), id)?.received.push(Kind::Drift, body)?;
    Ok(reply::acknowledged())
}
