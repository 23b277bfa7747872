//! What a node tells of itself: heartbeat, drift, reports, endpoint, key rotation.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Raw, list, or_absent, or_default, time};

/// Body of `POST /v1/nodes/{node_id}/heartbeat`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    /// Node id.
    pub node_id: String,
    /// When it was made.
    #[serde(with = "time")]
    pub timestamp: Timestamp,
    /// `healthy` or `degraded`.
    pub status: String,
    /// Uptime of the machine, as `72h15m`.
    pub uptime: String,
    /// `sha256:` and hex digits.
    pub binary_checksum: String,
    /// The mesh interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshInfo>,
    /// NAT traversal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatInfo>,
    /// Bridge mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeInfo>,
    /// User access.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_access: Option<UserAccessInfo>,
    /// Ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressInfo>,
    /// Site-to-site tunnels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_to_site: Option<SiteToSiteInfo>,
}

/// The mesh interface in a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshInfo {
    /// Name.
    pub interface: String,
    /// Peers with a handshake younger than 180 s.
    pub peer_count: usize,
    /// UDP port.
    pub listen_port: u16,
}

/// NAT traversal in a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatInfo {
    /// Address and port as seen from outside.
    pub public_endpoint: String,
    /// Kind of NAT.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Bridge mode in a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the members of the types document")]
pub struct BridgeInfo {
    /// Whether it is on.
    pub enabled: bool,
    /// Interface towards the access networks.
    pub access_interface: String,
    /// Routes in place.
    pub active_routes: usize,
    /// Whether this node relays.
    pub relay_enabled: bool,
    /// Relay sessions in place.
    pub active_relay_sessions: usize,
    /// Whether ingress is on.
    pub ingress_enabled: bool,
    /// Ingress rules in place.
    pub active_ingress_rules: usize,
    /// Whether site-to-site tunnels are on.
    pub site_to_site_enabled: bool,
    /// Tunnels in place.
    pub active_site_to_site_tunnels: usize,
}

/// User access in a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserAccessInfo {
    /// Whether it is on.
    pub enabled: bool,
    /// Interface.
    pub interface_name: String,
    /// Peers on it.
    pub peer_count: usize,
    /// UDP port.
    pub listen_port: u16,
}

/// Ingress in a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IngressInfo {
    /// Whether it is on.
    pub enabled: bool,
    /// Rules in place.
    pub rule_count: usize,
    /// Connections open.
    pub connection_count: usize,
}

/// Site-to-site tunnels in a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SiteToSiteInfo {
    /// Whether they are on.
    pub enabled: bool,
    /// Tunnels in place.
    pub tunnel_count: usize,
}

/// Answer to a heartbeat; an empty body is one with both false.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct HeartbeatResponse {
    /// Reconcile now.
    #[serde(default, deserialize_with = "or_default")]
    pub reconcile: bool,
    /// Rotate the key now.
    #[serde(default, deserialize_with = "or_default")]
    pub rotate_keys: bool,
}

/// Body of `POST /v1/nodes/{node_id}/drift`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriftReport {
    /// When it was corrected.
    #[serde(with = "time")]
    pub timestamp: Timestamp,
    /// What was corrected.
    pub corrections: Vec<DriftCorrection>,
}

/// A correction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftCorrection {
    /// Type, one of contract, section 3.
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub detail: String,
}

/// Body of `POST /v1/nodes/{node_id}/report`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportSyncRequest {
    /// Entries written.
    pub entries: Vec<ReportEntry>,
    /// Keys deleted.
    pub deleted: Vec<String>,
}

/// A report entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportEntry {
    /// Key.
    pub key: String,
    /// MIME type.
    pub content_type: String,
    /// One JSON value, byte for byte as written.
    pub payload: Box<RawValue>,
    /// Version.
    pub version: i64,
    /// Time of the last change.
    #[serde(with = "time")]
    pub updated_at: Timestamp,
}

/// Body of `PUT /v1/nodes/{node_id}/endpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// Address and port as seen from outside.
    pub public_endpoint: String,
    /// Kind of NAT.
    pub nat_type: String,
}

/// Answer to an endpoint report.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct EndpointResponse<'a> {
    /// Each a [`PeerEndpoint`].
    #[serde(borrow, default, deserialize_with = "list")]
    pub peer_endpoints: Vec<Raw<'a>>,
}

/// Where a peer is now.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PeerEndpoint {
    /// Node id.
    #[serde(default, deserialize_with = "or_absent")]
    pub peer_id: Option<String>,
    /// What event payloads may call the node id.
    #[serde(default, deserialize_with = "or_absent")]
    pub id: Option<String>,
    /// `HOST:PORT`.
    #[serde(default, deserialize_with = "or_absent")]
    pub endpoint: Option<String>,
}

/// Body of `POST /v1/keys/rotate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRotateRequest {
    /// Node id.
    pub node_id: String,
    /// WireGuard public key, base64.
    pub new_public_key: String,
}

/// Answer to a key rotation.
#[derive(Debug, Clone, Deserialize)]
pub struct KeyRotateResponse<'a> {
    /// Each a [`super::Peer`].
    #[serde(borrow, default, deserialize_with = "list")]
    pub updated_peers: Vec<Raw<'a>>,
}
