//! Registration, deregistration and key rotation: `POST /v1/register`, `POST /v1/nodes/{node_id}/deregister`,
//! `POST /v1/keys/rotate`.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::liveness::Capabilities;
use super::{authorized, authorized_as_any, fields, json_body};
use crate::encoding;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::Model;
use crate::store::peers::{Peer, Sighting};
use crate::store::registry::{Candidate, RegisterError};

/// Longest name the domain name system knows.
const MAX_HOSTNAME: usize = 253;

#[derive(Deserialize)]
struct RegisterRequest {
    token: String,
    public_key: String,
    hostname: String,
    #[serde(default)]
    metadata: Option<Box<RawValue>>,
    #[serde(default)]
    capabilities: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct RegisterResponse<'a> {
    node_id: &'a str,
    mesh_ip: String,
    signing_public_key: String,
    node_secret_key: &'a str,
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct RotateRequest {
    node_id: String,
    new_public_key: String,
}

#[derive(Serialize)]
struct RotateResponse {
    updated_peers: Vec<Peer>,
}

pub(super) async fn register(
    app: &App,
    from: IpAddr,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Reply, Refusal> {
    let body = json_body(headers, body).await?;
    let candidate = candidate(fields(&body)?, from)?;
    let mut model = app.store.lock();
    let id = model.register(candidate).map_err(refused)?;
    // The answer to a request sent again may come from elsewhere than the first.
    model.see(&id, Sighting::From(from))?;
    registered(&model, &id)
}

fn registered(model: &Model, id: &str) -> Result<Reply, Refusal> {
    let record = &model.node(id).ok_or_else(Refusal::unauthorized)?.record;
    tracing::info!(node = %id, hostname = %record.hostname, mesh_ip = %record.mesh_ip, "registered");
    Ok(reply::json(
        StatusCode::CREATED,
        &RegisterResponse {
            node_id: id,
            mesh_ip: record.mesh_ip.to_string(),
            signing_public_key: model.signing_keys().current,
            node_secret_key: &record.node_secret_key,
            peers: model.peers_of(id),
        },
    ))
}

fn candidate(request: RegisterRequest, source_ip: IpAddr) -> Result<Candidate, Refusal> {
    if request.token.is_empty() {
        return Err(Refusal::bad_request("token is required"));
    }
    if request.hostname.is_empty() || request.hostname.len() > MAX_HOSTNAME {
        return Err(Refusal::bad_request("hostname must have 1 to 253 bytes"));
    }
    if encoding::key32(&request.public_key).is_none() {
        return Err(Refusal::bad_request("public_key must be 32 bytes of base64"));
    }
    if let Some(metadata) = &request.metadata {
        fields::<std::collections::BTreeMap<String, String>>(metadata)?;
    }
    if let Some(capabilities) = &request.capabilities {
        fields::<Capabilities>(capabilities)?;
    }
    Ok(Candidate {
        token: request.token,
        public_key: request.public_key,
        hostname: request.hostname,
        metadata: request.metadata,
        capabilities: request.capabilities,
        source_ip,
    })
}

fn refused(error: RegisterError) -> Refusal {
    let status = match error {
        RegisterError::Token => StatusCode::UNAUTHORIZED,
        RegisterError::Hostname => StatusCode::CONFLICT,
        RegisterError::Addresses => StatusCode::SERVICE_UNAVAILABLE,
        RegisterError::Store(error) => return error.into(),
    };
    Refusal::new(status, error.to_string())
}

pub(super) fn deregister(app: &App, id: &str) -> Result<Reply, Refusal> {
    app.store.lock().deregister(id)?;
    tracing::info!(node = %id, "deregistered");
    Ok(reply::acknowledged())
}

pub(super) async fn rotate(app: &Arc<App>, headers: &HeaderMap, body: Incoming) -> Result<Reply, Refusal> {
    authorized_as_any(&app.store.lock(), headers)?;
    let body = json_body(headers, body).await?;
    let request: RotateRequest = fields(&body)?;
    if encoding::key32(&request.new_public_key).is_none() {
        return Err(Refusal::bad_request("new_public_key must be 32 bytes of base64"));
    }
    let mut model = app.store.lock();
    authorized(&model, &request.node_id, headers)?;
    let rotation = model.rotate_key(&request.node_id, &request.new_public_key)?;
    let answer = RotateResponse { updated_peers: rotation.updated_peers };
    if !rotation.announce {
        return Ok(reply::ok(&answer));
    }
    tracing::info!(node = %request.node_id, "key rotated");
    let app = Arc::clone(app);
    Ok(reply::ok(&answer).map(|body| announced_after(body, app, request.node_id)))
}

/// Wraps the answer of a rotation so that the others hear of the new key once it has been written out: the rotating
/// node swaps first, its peers follow (contract, section 4).
fn announced_after(body: reply::Body, app: Arc<App>, node: String) -> reply::Body {
    AnnouncingBody { body, announcement: Some((app, node)) }.boxed_unsync()
}

struct AnnouncingBody {
    body: reply::Body,
    announcement: Option<(Arc<App>, String)>,
}

impl Body for AnnouncingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body is dropped when it is written, or when its connection broke: the key is the node's new one either way.
impl Drop for AnnouncingBody {
    fn drop(&mut self) {
        let Some((app, node)) = self.announcement.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        // A task of its own, so that this connection's buffer is flushed before the announcement is made.
        runtime.spawn(async move {
            if let Err(error) = app.store.lock().announce_key(&node) {
                tracing::error!(%node, %error, "rotated key not announced");
            }
        });
    }
}
