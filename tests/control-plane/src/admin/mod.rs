//! The admin API on loopback, JSON without authentication: what the demo, the tests and a person at a terminal
//! drive the control plane with. `PUT …/state` and `POST …/events` are beside this file.

use std::collections::BTreeMap;
use std::time::Duration;

use http::request::Parts;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::certificates::Issuer;
use crate::faults::Rule;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::node::{HeartbeatFlags, Node, raw};
use crate::store::received::Kind;
use crate::store::{Model, desired};
use crate::wire::state::state_text;

mod events;
mod state;

const BODY_LIMIT: usize = 256 << 20;
const DEFAULT_TTL: Duration = Duration::from_hours(1);
const DEFAULT_TRANSITION: Duration = Duration::from_hours(24);

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TokenRequest {
    ttl: Option<String>,
}

#[derive(Serialize)]
struct TokenResponse {
    token: String,
    expires_at: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RotateRequest {
    transition: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretRequest {
    value: String,
}

#[derive(Serialize)]
struct SecretResponse {
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateRequest {
    issuer: Issuer,
}

#[derive(Serialize)]
struct NodeList<'a> {
    nodes: Vec<NodeSummary<'a>>,
}

#[derive(Serialize)]
struct NodeSummary<'a> {
    id: &'a str,
    hostname: &'a str,
    public_key: &'a str,
    mesh_ip: String,
    endpoint: String,
    registered_at: &'a str,
    last_heartbeat: Option<&'a str>,
    streams: usize,
}

#[derive(Serialize)]
struct NodeDetail<'a> {
    #[serde(flatten)]
    summary: NodeSummary<'a>,
    metadata: Option<&'a RawValue>,
    capabilities: Option<&'a RawValue>,
    heartbeat: HeartbeatFlags,
    state: Box<RawValue>,
}

#[derive(Serialize)]
struct ReceivedResponse<'a, T: Serialize> {
    #[serde(flatten)]
    received: BTreeMap<Kind, T>,
    reports_current: BTreeMap<&'a str, &'a RawValue>,
}

#[derive(Serialize)]
struct SecretRefs<'a> {
    secret_refs: Vec<desired::SecretRef<'a>>,
}

/// Answers one request.
pub(crate) async fn handle(app: &App, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    match respond(app, &parts, body).await {
        Ok(reply) => reply,
        Err(refusal) => refusal.into_reply(),
    }
}

async fn respond(app: &App, parts: &Parts, body: Incoming) -> Result<Reply, Refusal> {
    let path = parts.uri.path();
    let Some(path) = path.strip_prefix("/admin/") else {
        return Err(Refusal::not_found());
    };
    let segments: Vec<&str> = path.split('/').collect();
    let body = reply::read(body, BODY_LIMIT).await?;
    let route = (&parts.method, segments.as_slice());
    match route {
        (&Method::POST, ["tokens"]) => create_token(app, &body),
        (&Method::GET, ["nodes"]) => Ok(list_nodes(app)),
        (&Method::GET, ["nodes", id]) => show_node(app, &reply::segment(id)?),
        (&Method::PUT, ["nodes", id, "state"]) => state::put(app, &reply::segment(id)?, &body),
        (&Method::PUT, ["nodes", id, "secrets", key]) => {
            put_secret(app, &reply::segment(id)?, &reply::segment(key)?, &body)
        }
        (&Method::DELETE, ["nodes", id, "secrets", key]) => {
            delete_secret(app, &reply::segment(id)?, &reply::segment(key)?)
        }
        (&Method::POST, ["nodes", id, "events"]) => events::send(app, &reply::segment(id)?, &body),
        (&Method::POST, ["nodes", id, "events", "reversed"]) => {
            events::send_reversed(app, &reply::segment(id)?, &body)
        }
        (&Method::POST, ["nodes", id, "events", "replay"]) => {
            events::replay(app, &reply::segment(id)?, &body)
        }
        (&Method::GET, ["nodes", id, "received"]) => received(app, &reply::segment(id)?),
        (&Method::PUT, ["nodes", id, "heartbeat"]) => set_heartbeat(app, &reply::segment(id)?, &body),
        (&Method::POST, ["signing-key", "rotate"]) => rotate_signing_key(app, &body),
        (&Method::POST, ["certificate"]) => swap_certificate(app, &body),
        (&Method::GET, ["rates"]) => Ok(reply::ok(&app.rates.shown())),
        (&Method::PUT, ["faults"]) => {
            app.faults.set(&optional::<Rule>(&body)?)?;
            Ok(reply::ok(&app.faults.shown()))
        }
        (&Method::DELETE, ["faults"]) => {
            app.faults.clear();
            Ok(reply::ok(&app.faults.shown()))
        }
        (_, segments) => Err(allowed(segments).map_or_else(Refusal::not_found, Refusal::method_not_allowed)),
    }
}

fn allowed(segments: &[&str]) -> Option<&'static str> {
    match segments {
        ["rates" | "nodes"] | ["nodes", _] | ["nodes", _, "received"] => Some("GET"),
        ["tokens" | "certificate"]
        | ["nodes", _, "events"]
        | ["nodes", _, "events", "reversed" | "replay"]
        | ["signing-key", "rotate"] => Some("POST"),
        ["nodes", _, "state" | "heartbeat"] => Some("PUT"),
        ["faults"] | ["nodes", _, "secrets", _] => Some("PUT, DELETE"),
        _ => None,
    }
}

fn create_token(app: &App, body: &[u8]) -> Result<Reply, Refusal> {
    let request: TokenRequest = optional(body)?;
    let ttl = duration("ttl", request.ttl.as_deref(), DEFAULT_TTL)?;
    let (token, expires_at) = app.store.lock().create_token(ttl)?;
    Ok(reply::ok(&TokenResponse { token, expires_at }))
}

fn list_nodes(app: &App) -> Reply {
    let model = app.store.lock();
    reply::ok(&NodeList { nodes: model.nodes().map(summary).collect() })
}

fn show_node(app: &App, id: &str) -> Result<Reply, Refusal> {
    let model = app.store.lock();
    let node = model.node(id).ok_or_else(unknown_node)?;
    let state = RawValue::from_string(state_text(&model, id)?)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(reply::ok(&NodeDetail {
        summary: summary(node),
        metadata: node.record.metadata.as_deref(),
        capabilities: node.record.capabilities.as_deref(),
        heartbeat: node.record.heartbeat,
        state,
    }))
}

fn summary(node: &Node) -> NodeSummary<'_> {
    NodeSummary {
        id: &node.record.id,
        hostname: &node.record.hostname,
        public_key: &node.record.public_key,
        mesh_ip: node.record.mesh_ip.to_string(),
        endpoint: node.record.endpoint().to_string(),
        registered_at: &node.record.registered_at,
        last_heartbeat: node.received.last(Kind::Heartbeats),
        streams: node.events.streams(),
    }
}

fn put_secret(app: &App, id: &str, key: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let request: SecretRequest = reply::object(body)?;
    if key.is_empty() {
        return Err(Refusal::bad_request("secret key is empty"));
    }
    let mut model = app.store.lock();
    let node = model.node_mut(id).ok_or_else(unknown_node)?;
    let version = node.desired.set_secret(key, request.value);
    node.write_desired()?;
    announce_secrets(&mut model, id)?;
    Ok(reply::ok(&SecretResponse { version }))
}

fn delete_secret(app: &App, id: &str, key: &str) -> Result<Reply, Refusal> {
    let mut model = app.store.lock();
    let node = model.node_mut(id).ok_or_else(unknown_node)?;
    if !node.desired.delete_secret(key) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "unknown secret"));
    }
    node.write_desired()?;
    announce_secrets(&mut model, id)?;
    Ok(reply::acknowledged())
}

fn announce_secrets(model: &mut Model, id: &str) -> Result<(), Refusal> {
    let Some(node) = model.node(id) else {
        return Ok(());
    };
    let payload = raw(&SecretRefs { secret_refs: node.desired.secret_refs() });
    model.emit(id, "node_secrets_updated", &payload)?;
    Ok(())
}

fn received(app: &App, id: &str) -> Result<Reply, Refusal> {
    let model = app.store.lock();
    let node = model.node(id).ok_or_else(unknown_node)?;
    let received = node.received.shown();
    Ok(reply::ok(&ReceivedResponse { received, reports_current: node.reports.shown() }))
}

fn set_heartbeat(app: &App, id: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let flags: HeartbeatFlags = reply::object(body)?;
    let mut model = app.store.lock();
    let node = model.node_mut(id).ok_or_else(unknown_node)?;
    node.record.heartbeat = flags;
    node.write_record()?;
    Ok(reply::ok(&flags))
}

fn rotate_signing_key(app: &App, body: &[u8]) -> Result<Reply, Refusal> {
    let request: RotateRequest = optional(body)?;
    let transition = duration("transition", request.transition.as_deref(), DEFAULT_TRANSITION)?;
    Ok(reply::ok(&app.store.lock().rotate_signing_key(transition)?))
}

fn swap_certificate(app: &App, body: &[u8]) -> Result<Reply, Refusal> {
    let request: CertificateRequest = reply::object(body)?;
    app.certificates
        .swap(request.issuer)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(reply::acknowledged())
}

fn unknown_node() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "unknown node")
}

/// An absent body reads as an empty object where every member has a default.
fn optional<T: serde::de::DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() { Ok(T::default()) } else { reply::object(body) }
}

fn duration(name: &str, text: Option<&str>, default: Duration) -> Result<SignedDuration, Refusal> {
    let duration = match text {
        None => default,
        Some(text) => humantime::parse_duration(text)
            .map_err(|error| Refusal::bad_request(format!("{name}: {error}; write it as 90s, 5m or 24h")))?,
    };
    SignedDuration::try_from(duration).map_err(|_| Refusal::bad_request(format!("{name} is too long")))
}
