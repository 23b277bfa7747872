//! What a node says of itself: `POST …/heartbeat`, `PUT …/capabilities`, `PUT …/endpoint`.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{fields, node_mut};
use crate::encoding;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::peers::{PeerEndpoint, Sighting};
use crate::store::received::Kind;

/// The fields that types, `HeartbeatRequest`, does not call optional.
#[derive(Deserialize)]
struct Heartbeat {
    node_id: String,
    timestamp: String,
    status: String,
    uptime: String,
    binary_checksum: String,
    #[serde(default)]
    mesh: Option<MeshInfo>,
    #[serde(default)]
    #[serde(rename = "nat")]
    _nat: Option<NatInfo>,
}

#[derive(Deserialize)]
struct MeshInfo {
    interface: String,
    #[serde(rename = "peer_count")]
    _peer_count: u64,
    listen_port: u16,
}

#[derive(Deserialize)]
struct NatInfo {
    #[serde(rename = "public_endpoint")]
    _public_endpoint: String,
    #[serde(rename = "type")]
    _kind: String,
}

#[derive(Deserialize)]
struct EndpointReport {
    public_endpoint: String,
    #[serde(rename = "nat_type")]
    _nat_type: String,
}

#[derive(Serialize)]
struct EndpointResponse {
    peer_endpoints: Vec<PeerEndpoint>,
}

/// Checked for its shape only; what is kept are the bytes.
#[derive(Deserialize)]
pub(super) struct Capabilities {
    #[serde(default, rename = "binary")]
    _binary: Option<BinaryInfo>,
    #[serde(rename = "builtin_actions", deserialize_with = "list")]
    _builtin_actions: Vec<ActionInfo>,
    #[serde(rename = "hooks", deserialize_with = "list")]
    _hooks: Vec<HookInfo>,
}

#[derive(Deserialize)]
struct BinaryInfo {
    #[serde(rename = "version")]
    _version: String,
    #[serde(rename = "checksum")]
    _checksum: String,
}

#[derive(Deserialize)]
struct ActionInfo {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "description")]
    _description: String,
    #[serde(rename = "parameters", deserialize_with = "list")]
    _parameters: Vec<ActionParam>,
}

#[derive(Deserialize)]
struct ActionParam {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "type")]
    _kind: String,
    #[serde(rename = "required")]
    _required: bool,
    #[serde(rename = "description")]
    _description: String,
}

#[derive(Deserialize)]
struct HookInfo {
    #[serde(flatten)]
    _action: ActionInfo,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "checksum")]
    _checksum: String,
    #[serde(rename = "timeout")]
    _timeout: String,
    #[serde(rename = "sandbox")]
    _sandbox: String,
}

/// A list that may be null, as an empty one is written by some languages.
pub(super) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

pub(super) fn heartbeat(app: &App, id: &str, from: IpAddr, body: Box<RawValue>) -> Result<Reply, Refusal> {
    let heartbeat: Heartbeat = fields(&body)?;
    check(&heartbeat, id)?;
    let port = heartbeat.mesh.map(|mesh| mesh.listen_port);
    let mut model = app.store.lock();
    model.see(id, Sighting::Heartbeat(from, port))?;
    let node = node_mut(&mut model, id)?;
    node.received.push(Kind::Heartbeats, body)?;
    let flags = std::mem::take(&mut node.record.heartbeat);
    if flags != node.record.heartbeat {
        node.write_record()?;
    }
    Ok(reply::ok(&flags))
}

fn check(heartbeat: &Heartbeat, id: &str) -> Result<(), Refusal> {
    if heartbeat.node_id != id {
        return Err(Refusal::bad_request("node_id is not the one of the path"));
    }
    if encoding::parse_time(&heartbeat.timestamp).is_none() {
        return Err(Refusal::bad_request("timestamp must be RFC 3339"));
    }
    let texts = [
        ("status", &heartbeat.status),
        ("uptime", &heartbeat.uptime),
        ("binary_checksum", &heartbeat.binary_checksum),
    ];
    if let Some((name, _)) = texts.into_iter().find(|(_, text)| text.is_empty()) {
        return Err(Refusal::bad_request(format!("{name} is required")));
    }
    match &heartbeat.mesh {
        Some(mesh) if mesh.interface.is_empty() => Err(Refusal::bad_request("mesh.interface is required")),
        Some(mesh) if mesh.listen_port == 0 => Err(Refusal::bad_request("mesh.listen_port is required")),
        _ => Ok(()),
    }
}

pub(super) fn capabilities(app: &App, id: &str, body: Box<RawValue>) -> Result<Reply, Refusal> {
    fields::<Capabilities>(&body)?;
    let mut model = app.store.lock();
    let node = node_mut(&mut model, id)?;
    node.record.capabilities = Some(body.clone());
    node.write_record()?;
    node.received.push(Kind::Capabilities, body)?;
    Ok(reply::acknowledged())
}

pub(super) fn endpoint(app: &App, id: &str, body: Box<RawValue>) -> Result<Reply, Refusal> {
    let report: EndpointReport = fields(&body)?;
    let public = match report.public_endpoint.as_str() {
        "" => None,
        text => match text.parse::<SocketAddr>() {
            Ok(endpoint) => Some(endpoint),
            Err(_) => return Err(Refusal::bad_request("public_endpoint must be ADDRESS:PORT")),
        },
    };
    let mut model = app.store.lock();
    model.see(id, Sighting::Public(public))?;
    node_mut(&mut model, id)?.received.push(Kind::Endpoint, body)?;
    Ok(reply::ok(&EndpointResponse { peer_endpoints: model.peer_endpoints(id) }))
}
