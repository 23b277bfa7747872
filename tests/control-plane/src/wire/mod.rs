//! The 17 endpoints of the control-plane documents: which path and method is which, who may call it, and what is
//! logged. The handlers are beside this file, by group.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, Request, header};
use hyper::body::Incoming;
use serde_json::value::RawValue;
use subtle::ConstantTimeEq as _;

use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::sse::{self, Interruptions};
use crate::store::Model;
use crate::store::node::Node;

mod artifacts;
mod executions;
mod identity;
mod liveness;
mod observability;
mod reports;
pub(crate) mod state;

/// A request to one of the endpoints, its path parameters decoded.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Register,
    Rotate,
    Artifact { version: String, os: String, arch: String },
    Node(String, NodeCall),
}

/// The endpoints below `/v1/nodes/{node_id}`.
#[derive(Debug, PartialEq, Eq)]
enum NodeCall {
    Events,
    Heartbeat,
    Deregister,
    Capabilities,
    Endpoint,
    State,
    Drift,
    Secret(String),
    Report,
    Ack(String),
    Result(String),
    Metrics,
    Logs,
    Audit,
}

impl Target {
    fn parse(path: &str) -> Result<Self, Refusal> {
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        let decoded = reply::segment;
        match segments.as_slice() {
            ["v1", "register"] => Ok(Self::Register),
            ["v1", "keys", "rotate"] => Ok(Self::Rotate),
            ["v1", "artifacts", "plexd", version, os, arch] => {
                Ok(Self::Artifact { version: decoded(version)?, os: decoded(os)?, arch: decoded(arch)? })
            }
            ["v1", "nodes", id, call @ ..] => Ok(Self::Node(decoded(id)?, NodeCall::parse(call)?)),
            _ => Err(Refusal::not_found()),
        }
    }

    /// The name in fault rules and logs, and the method.
    fn endpoint(&self) -> (&'static str, Method) {
        match self {
            Self::Register => ("register", Method::POST),
            Self::Rotate => ("rotate", Method::POST),
            Self::Artifact { .. } => ("artifacts", Method::GET),
            Self::Node(_, call) => call.endpoint(),
        }
    }
}

impl NodeCall {
    fn parse(segments: &[&str]) -> Result<Self, Refusal> {
        Ok(match segments {
            ["events"] => Self::Events,
            ["heartbeat"] => Self::Heartbeat,
            ["deregister"] => Self::Deregister,
            ["capabilities"] => Self::Capabilities,
            ["endpoint"] => Self::Endpoint,
            ["state"] => Self::State,
            ["drift"] => Self::Drift,
            ["secrets", key] => Self::Secret(reply::segment(key)?),
            ["report"] => Self::Report,
            ["executions", id, "ack"] => Self::Ack(reply::segment(id)?),
            ["executions", id, "result"] => Self::Result(reply::segment(id)?),
            ["metrics"] => Self::Metrics,
            ["logs"] => Self::Logs,
            ["audit"] => Self::Audit,
            _ => return Err(Refusal::not_found()),
        })
    }

    fn endpoint(&self) -> (&'static str, Method) {
        match self {
            Self::Events => ("events", Method::GET),
            Self::Heartbeat => ("heartbeat", Method::POST),
            Self::Deregister => ("deregister", Method::POST),
            Self::Capabilities => ("capabilities", Method::PUT),
            Self::Endpoint => ("endpoint", Method::PUT),
            Self::State => ("state", Method::GET),
            Self::Drift => ("drift", Method::POST),
            Self::Secret(_) => ("secrets", Method::GET),
            Self::Report => ("report", Method::POST),
            Self::Ack(_) => ("ack", Method::POST),
            Self::Result(_) => ("result", Method::POST),
            Self::Metrics => ("metrics", Method::POST),
            Self::Logs => ("logs", Method::POST),
            Self::Audit => ("audit", Method::POST),
        }
    }
}

/// Answers one request; `from` is the address it came from.
pub(crate) async fn handle(app: &Arc<App>, from: IpAddr, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    match respond(app, from, &parts, body).await {
        Ok(reply) => {
            tracing::debug!(method = %parts.method, path = parts.uri.path(), status = reply.status().as_u16(), "answered");
            reply
        }
        Err(refusal) => {
            let status = refusal.status.as_u16();
            tracing::info!(method = %parts.method, path = parts.uri.path(), status, error = %refusal.message, "refused");
            refusal.into_reply()
        }
    }
}

async fn respond(app: &Arc<App>, from: IpAddr, parts: &Parts, body: Incoming) -> Result<Reply, Refusal> {
    let target = Target::parse(parts.uri.path())?;
    let (endpoint, method) = target.endpoint();
    if parts.method != method {
        return Err(Refusal::method_not_allowed(match method {
            Method::GET => "GET",
            Method::PUT => "PUT",
            _ => "POST",
        }));
    }
    app.rates.request(endpoint);
    if let Some(reply) = app.faults.suffer(endpoint).await {
        return Ok(reply);
    }
    let reply = answer(app, from, &parts.headers, body, target).await?;
    Ok(app.faults.spoil(endpoint, reply).await)
}

async fn answer(
    app: &Arc<App>,
    from: IpAddr,
    headers: &HeaderMap,
    body: Incoming,
    target: Target,
) -> Result<Reply, Refusal> {
    match target {
        Target::Register => identity::register(app, from, headers, body).await,
        Target::Rotate => identity::rotate(app, headers, body).await,
        Target::Artifact { version, os, arch } => artifacts::get(app, headers, [&version, &os, &arch]),
        Target::Node(id, call) => {
            authorized(&app.store.lock(), &id, headers)?;
            node_call(app, from, headers, body, &id, call).await
        }
    }
}

async fn node_call(
    app: &App,
    from: IpAddr,
    headers: &HeaderMap,
    body: Incoming,
    id: &str,
    call: NodeCall,
) -> Result<Reply, Refusal> {
    match call {
        NodeCall::Events => events(app, id, headers),
        NodeCall::Heartbeat => liveness::heartbeat(app, id, from, json_body(headers, body).await?),
        NodeCall::Deregister => identity::deregister(app, id),
        NodeCall::Capabilities => liveness::capabilities(app, id, json_body(headers, body).await?),
        NodeCall::Endpoint => liveness::endpoint(app, id, json_body(headers, body).await?),
        NodeCall::State => state::get(app, id, headers),
        NodeCall::Drift => state::drift(app, id, json_body(headers, body).await?),
        NodeCall::Secret(key) => state::secret(app, id, &key),
        NodeCall::Report => reports::sync(app, id, json_body(headers, body).await?),
        NodeCall::Ack(execution) => executions::ack(app, id, &execution, json_body(headers, body).await?),
        NodeCall::Result(execution) => {
            executions::result(app, id, &execution, json_body(headers, body).await?)
        }
        NodeCall::Metrics => observability::metrics(app, id, headers, body).await,
        NodeCall::Logs => observability::logs(app, id, headers, body).await,
        NodeCall::Audit => observability::audit(app, id, headers, body).await,
    }
}

fn events(app: &App, id: &str, headers: &HeaderMap) -> Result<Reply, Refusal> {
    if app.faults.drops_streams() {
        return Ok(sse::cut_reply());
    }
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let interruptions = Interruptions { cut: app.faults.cut(), tearing: app.faults.tearing() };
    let subscription = node_mut(&mut app.store.lock(), id)?.events.subscribe(last);
    Ok(sse::reply(subscription, interruptions))
}

/// JSON bodies other than observability batches are bounded by this.
const JSON_LIMIT: usize = 16 << 20;

/// Reads a JSON body, which keeps its bytes, and insists on its content type.
async fn json_body(headers: &HeaderMap, body: Incoming) -> Result<Box<RawValue>, Refusal> {
    content_type(headers, "application/json")?;
    reply::parse(&reply::read(body, JSON_LIMIT).await?)
}

/// Insists on a content type; parameters such as a charset are allowed.
fn content_type(headers: &HeaderMap, wanted: &str) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(Refusal::bad_request(format!("Content-Type must be {wanted}")))
}

/// Reads the fields of a body or record whose bytes are kept.
fn fields<T: serde::de::DeserializeOwned>(body: &RawValue) -> Result<T, Refusal> {
    reply::object(body.get().as_bytes())
}

/// Finds the node that `id` names and compares the credential in constant time.
fn authorized<'a>(model: &'a Model, id: &str, headers: &HeaderMap) -> Result<&'a Node, Refusal> {
    let credential = bearer(headers).ok_or_else(Refusal::unauthorized)?;
    let node = model.node(id).ok_or_else(|| Refusal::new(http::StatusCode::NOT_FOUND, "unknown node"))?;
    if bool::from(node.record.node_secret_key.as_bytes().ct_eq(credential)) {
        Ok(node)
    } else {
        Err(Refusal::unauthorized())
    }
}

/// Says whether the credential is that of any node; every node is compared.
fn authorized_as_any(model: &Model, headers: &HeaderMap) -> Result<(), Refusal> {
    let credential = bearer(headers).ok_or_else(Refusal::unauthorized)?;
    let known = model
        .nodes()
        .fold(0, |known, node| known | node.record.node_secret_key.as_bytes().ct_eq(credential).unwrap_u8());
    if known == 1 { Ok(()) } else { Err(Refusal::unauthorized()) }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, credential) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(credential)
}

/// The node a request was authorised for; it may be gone since.
fn node_mut<'a>(model: &'a mut Model, id: &str) -> Result<&'a mut Node, Refusal> {
    model.node_mut(id).ok_or_else(Refusal::unauthorized)
}

#[cfg(test)]
mod tests {
    use super::{NodeCall, Target};
    use crate::faults::ENDPOINTS;

    #[test]
    fn every_endpoint_of_the_documents_has_its_path_method_and_fault_name() {
        let table = [
            ("POST", "/v1/register"),
            ("GET", "/v1/nodes/n_1/events"),
            ("POST", "/v1/nodes/n_1/heartbeat"),
            ("POST", "/v1/nodes/n_1/deregister"),
            ("POST", "/v1/keys/rotate"),
            ("PUT", "/v1/nodes/n_1/capabilities"),
            ("PUT", "/v1/nodes/n_1/endpoint"),
            ("GET", "/v1/nodes/n_1/state"),
            ("POST", "/v1/nodes/n_1/drift"),
            ("GET", "/v1/nodes/n_1/secrets/k"),
            ("POST", "/v1/nodes/n_1/report"),
            ("POST", "/v1/nodes/n_1/executions/e_1/ack"),
            ("POST", "/v1/nodes/n_1/executions/e_1/result"),
            ("POST", "/v1/nodes/n_1/metrics"),
            ("POST", "/v1/nodes/n_1/logs"),
            ("POST", "/v1/nodes/n_1/audit"),
            ("GET", "/v1/artifacts/plexd/1.5.0/linux/amd64"),
        ];
        for (name, (method, path)) in ENDPOINTS.iter().zip(table) {
            let (endpoint, wanted) = Target::parse(path).unwrap().endpoint();
            assert_eq!((endpoint, wanted.as_str()), (*name, method), "{path}");
        }
    }

    #[test]
    fn a_secret_key_is_one_percent_encoded_segment() {
        let target = Target::parse("/v1/nodes/n_1/secrets/tls%2Fserver.key%20%C3%BC").unwrap();
        assert_eq!(target, Target::Node("n_1".to_owned(), NodeCall::Secret("tls/server.key ü".to_owned())));
        for unknown in
            ["/", "/v1", "/v1/nodes/n_1", "/v1/nodes/n_1/secrets/a/b", "/v1/register/", "/v1/nodes/n_1/x"]
        {
            assert!(Target::parse(unknown).is_err(), "{unknown}");
        }
    }
}
