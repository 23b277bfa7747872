//! Registration, capabilities, and the peer as every endpoint writes it.

use serde::{Deserialize, Serialize};

use super::{Raw, SecretText, list, or_absent, or_no_secret};

/// Body of `POST /v1/register`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegisterRequest {
    /// Bootstrap token.
    pub token: SecretText,
    /// WireGuard public key, base64.
    pub public_key: String,
    /// Host name.
    pub hostname: String,
    /// About the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<NodeMetadata>,
    /// What the node can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilitiesPayload>,
}

/// Metadata of a registration (contract, section 2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMetadata {
    /// `linux`.
    pub os: String,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
}

/// Body of `PUT /v1/nodes/{node_id}/capabilities`, and part of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CapabilitiesPayload {
    /// The running binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<BinaryInfo>,
    /// Actions built in.
    #[serde(default, deserialize_with = "list")]
    pub builtin_actions: Vec<ActionInfo>,
    /// Hooks installed.
    #[serde(default, deserialize_with = "list")]
    pub hooks: Vec<HookInfo>,
}

/// The running binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinaryInfo {
    /// Version.
    pub version: String,
    /// `sha256:` and hex digits.
    pub checksum: String,
}

/// A built-in action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionInfo {
    /// Name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// What it takes.
    #[serde(default, deserialize_with = "list")]
    pub parameters: Vec<ActionParam>,
}

/// A parameter of an action or hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionParam {
    /// Name.
    pub name: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it must be given.
    pub required: bool,
    /// What it means.
    pub description: String,
}

/// A hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookInfo {
    /// Name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// Where it comes from.
    pub source: String,
    /// `sha256:` and hex digits.
    pub checksum: String,
    /// What it takes.
    #[serde(default, deserialize_with = "list")]
    pub parameters: Vec<ActionParam>,
    /// How long it may run, as `300s`.
    pub timeout: String,
    /// How it is confined.
    pub sandbox: String,
}

/// Answer to a registration.
#[derive(Debug, Clone, Deserialize)]
pub struct RegisterResponse<'a> {
    /// Node id.
    pub node_id: String,
    /// Address in the mesh.
    pub mesh_ip: String,
    /// Ed25519 key of the control plane, base64.
    pub signing_public_key: String,
    /// Credential and AES-256 key of the node, base64.
    pub node_secret_key: SecretText,
    /// Each a [`Peer`].
    #[serde(borrow, default, deserialize_with = "list")]
    pub peers: Vec<Raw<'a>>,
}

/// A peer.
#[derive(Debug, Clone, Deserialize)]
pub struct Peer {
    /// Node id.
    #[serde(default, deserialize_with = "or_absent")]
    pub id: Option<String>,
    /// What event payloads may call the node id.
    #[serde(default, deserialize_with = "or_absent")]
    pub peer_id: Option<String>,
    /// WireGuard public key, base64.
    pub public_key: String,
    /// Address in the mesh.
    pub mesh_ip: String,
    /// `HOST:PORT`.
    #[serde(default, deserialize_with = "or_absent")]
    pub endpoint: Option<String>,
    /// Addresses and networks.
    #[serde(default, deserialize_with = "list")]
    pub allowed_ips: Vec<String>,
    /// Preshared key, base64.
    #[serde(default, deserialize_with = "or_no_secret")]
    pub psk: Option<SecretText>,
}
