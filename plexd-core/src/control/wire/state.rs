//! The state pull and secrets.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Raw, list, map, or_absent, or_default};

/// Answer to `GET /v1/nodes/{node_id}/state`. What must not spoil the rest stays undecoded.
#[derive(Debug, Clone, Deserialize)]
pub struct StateResponse<'a> {
    /// Each a [`super::Peer`].
    #[serde(borrow, default, deserialize_with = "list")]
    pub peers: Vec<Raw<'a>>,
    /// A list of [`Policy`].
    #[serde(borrow, default)]
    pub policies: Option<Raw<'a>>,
    /// [`SigningKeys`].
    #[serde(borrow, default)]
    pub signing_keys: Option<Raw<'a>>,
    /// Each a text.
    #[serde(borrow, default, deserialize_with = "map")]
    pub metadata: BTreeMap<String, Raw<'a>>,
    /// Of the bridge mode.
    #[serde(borrow, default)]
    pub bridge_config: Option<Raw<'a>>,
    /// Of the relay.
    #[serde(borrow, default)]
    pub relay_config: Option<Raw<'a>>,
    /// Of user access.
    #[serde(borrow, default)]
    pub user_access_config: Option<Raw<'a>>,
    /// Of ingress.
    #[serde(borrow, default)]
    pub ingress_config: Option<Raw<'a>>,
    /// Of site-to-site tunnels.
    #[serde(borrow, default)]
    pub site_to_site_config: Option<Raw<'a>>,
    /// Each a [`DataEntry`].
    #[serde(borrow, default, deserialize_with = "list")]
    pub data: Vec<Raw<'a>>,
    /// Each a [`SecretRef`].
    #[serde(borrow, default, deserialize_with = "list")]
    pub secret_refs: Vec<Raw<'a>>,
}

/// A policy.
#[derive(Debug, Clone, Deserialize)]
pub struct Policy<'a> {
    /// Id.
    pub id: String,
    /// Each a [`PolicyRule`].
    #[serde(borrow, default, deserialize_with = "list")]
    pub rules: Vec<Raw<'a>>,
}

/// A rule of a policy.
#[derive(Debug, Clone, Deserialize)]
pub struct PolicyRule {
    /// Source: network, address, node id or `*`.
    #[serde(default, deserialize_with = "or_default")]
    pub src: String,
    /// Destination, likewise.
    #[serde(default, deserialize_with = "or_default")]
    pub dst: String,
    /// Destination port, 0 for any.
    #[serde(default, deserialize_with = "or_default")]
    pub port: i64,
    /// `tcp`, `udp`, or empty for any.
    #[serde(default, deserialize_with = "or_default")]
    pub protocol: String,
    /// `allow` or `deny`.
    #[serde(default, deserialize_with = "or_default")]
    pub action: String,
}

/// The signing keys.
#[derive(Debug, Clone, Deserialize)]
pub struct SigningKeys {
    /// Ed25519 public key, base64.
    pub current: String,
    /// The one before it.
    #[serde(default, deserialize_with = "or_absent")]
    pub previous: Option<String>,
    /// When the previous one ends, RFC 3339.
    #[serde(default, deserialize_with = "or_absent")]
    pub transition_expires: Option<String>,
}

/// A data entry.
#[derive(Debug, Clone, Deserialize)]
pub struct DataEntry<'a> {
    /// Key.
    pub key: String,
    /// MIME type.
    #[serde(default, deserialize_with = "or_default")]
    pub content_type: String,
    /// One JSON value; `null` is one.
    #[serde(borrow)]
    pub payload: Raw<'a>,
    /// Version.
    pub version: i64,
    /// Time of the last change, RFC 3339.
    #[serde(default, deserialize_with = "or_default")]
    pub updated_at: String,
}

/// Name and version of a secret.
#[derive(Debug, Clone, Deserialize)]
pub struct SecretRef {
    /// Key.
    pub key: String,
    /// Version.
    pub version: i64,
}

/// Answer to `GET /v1/nodes/{node_id}/secrets/{key}`: encrypted with the node secret key.
#[derive(Debug, Clone, Deserialize)]
pub struct SecretResponse {
    /// Key.
    pub key: String,
    /// AES-256-GCM ciphertext with the tag at its end, base64.
    pub ciphertext: String,
    /// Nonce of 12 bytes, base64.
    pub nonce: String,
    /// Version.
    pub version: i64,
}
