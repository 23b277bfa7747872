//! The payloads of verified envelopes, parsed into what they ask for (contract, section 2, event payloads). Applies
//! nothing.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::policy::PolicySet;
use crate::state::{DataEntry, Peer, PeerEndpoint, Rejected, SecretRef};
use crate::types::{NodeId, PresharedKey, PublicKey};

use super::convert;
use super::signing_key_rotation::SigningKeyRotation;
use super::wire::{self, Raw, SecretText};

/// What a verified event asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Upsert the peer.
    PeerAdded(Peer),
    /// Remove the peer.
    PeerRemoved(NodeId),
    /// Replace key and PSK of a peer in one transaction.
    PeerKeyRotated(PeerKeyRotation),
    /// The peer is somewhere else.
    PeerEndpointChanged(PeerEndpoint),
    /// Replace the policy set; or why the new one is invalid: then the old one stays.
    PolicyUpdated(Result<PolicySet, String>),
    /// Rotate this node's key.
    RotateKeys,
    /// The control plane signs with another key.
    SigningKeyRotated(SigningKeyRotation),
    /// Upsert metadata and data by key, then pull the state.
    NodeStateUpdated(StateDelta),
    /// Upsert secret references by key, then pull the state.
    NodeSecretsUpdated(Vec<SecretRef>),
    /// Pull the state.
    Reconcile,
    /// Known, but of a feature that this version does not have.
    Unsupported(EventKind),
    /// Not in the documents.
    Unknown(String),
}

/// A peer has another key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerKeyRotation {
    /// Id of the peer.
    pub id: NodeId,
    /// Its new key.
    pub public_key: PublicKey,
    /// The new shared key, if the event has one.
    pub psk: Option<PresharedKey>,
    /// The peer as a whole, if the event has it, with the new keys.
    pub peer: Option<Peer>,
}

/// Metadata and data to upsert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDelta {
    /// Metadata by key.
    pub metadata: BTreeMap<String, String>,
    /// Data entries; keys are unique.
    pub data: Vec<DataEntry>,
    /// What was left out.
    pub rejected: Vec<Rejected>,
}

/// A payload is not what its event type calls for: the event is rejected whole, and the state is to be pulled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("payload of {kind}: {reason}")]
pub struct PayloadError {
    /// The event's type.
    pub kind: EventKind,
    /// What is wrong. Never holds key material.
    pub reason: String,
}

macro_rules! event_kinds {
    ($($kind:ident $name:literal,)*) => {
        /// The event types of the documents.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum EventKind {
            $(#[doc = concat!("`", $name, "`")] $kind,)*
        }

        impl EventKind {
            /// All of them, in the documents' order.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Returns the type's name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

event_kinds! {
    PeerAdded "peer_added",
    PeerRemoved "peer_removed",
    PeerKeyRotated "peer_key_rotated",
    PeerEndpointChanged "peer_endpoint_changed",
    PolicyUpdated "policy_updated",
    ActionRequest "action_request",
    SessionRevoked "session_revoked",
    SshSessionSetup "ssh_session_setup",
    RotateKeys "rotate_keys",
    SigningKeyRotated "signing_key_rotated",
    NodeStateUpdated "node_state_updated",
    NodeSecretsUpdated "node_secrets_updated",
    BridgeConfigUpdated "bridge_config_updated",
    RelaySessionAssigned "relay_session_assigned",
    RelaySessionRevoked "relay_session_revoked",
    UserAccessConfigUpdated "user_access_config_updated",
    UserAccessPeerAssigned "user_access_peer_assigned",
    UserAccessPeerRevoked "user_access_peer_revoked",
    IngressConfigUpdated "ingress_config_updated",
    IngressRuleAssigned "ingress_rule_assigned",
    IngressRuleRevoked "ingress_rule_revoked",
    SiteToSiteConfigUpdated "site_to_site_config_updated",
    SiteToSiteTunnelAssigned "site_to_site_tunnel_assigned",
    SiteToSiteTunnelRevoked "site_to_site_tunnel_revoked",
}

impl EventKind {
    /// Returns the type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Parses the payload of a verified event.
pub fn decode(event_type: &str, payload: &RawValue) -> Result<Event, PayloadError> {
    let Some(kind) = EventKind::from_name(event_type) else {
        return Ok(Event::Unknown(event_type.to_owned()));
    };
    decode_known(kind, payload.get()).map_err(|reason| PayloadError { kind, reason })
}

fn decode_known(kind: EventKind, payload: &str) -> Result<Event, String> {
    Ok(match kind {
        EventKind::PeerAdded => Event::PeerAdded(convert::peer(payload)?),
        EventKind::PeerRemoved => Event::PeerRemoved(peer_id(payload)?),
        EventKind::PeerKeyRotated => Event::PeerKeyRotated(peer_key_rotation(payload)?),
        EventKind::PeerEndpointChanged => Event::PeerEndpointChanged(convert::peer_endpoint(payload)?),
        EventKind::PolicyUpdated => policy_updated(payload),
        EventKind::RotateKeys => Event::RotateKeys,
        EventKind::SigningKeyRotated => Event::SigningKeyRotated(SigningKeyRotation::parse(payload)?),
        EventKind::NodeStateUpdated => Event::NodeStateUpdated(state_delta(payload)?),
        EventKind::NodeSecretsUpdated => Event::NodeSecretsUpdated(secret_refs(payload)?),
        EventKind::BridgeConfigUpdated
        | EventKind::UserAccessConfigUpdated
        | EventKind::IngressConfigUpdated
        | EventKind::SiteToSiteConfigUpdated => Event::Reconcile,
        EventKind::ActionRequest
        | EventKind::SessionRevoked
        | EventKind::SshSessionSetup
        | EventKind::RelaySessionAssigned
        | EventKind::RelaySessionRevoked
        | EventKind::UserAccessPeerAssigned
        | EventKind::UserAccessPeerRevoked
        | EventKind::IngressRuleAssigned
        | EventKind::IngressRuleRevoked
        | EventKind::SiteToSiteTunnelAssigned
        | EventKind::SiteToSiteTunnelRevoked => Event::Unsupported(kind),
    })
}

fn peer_id(payload: &str) -> Result<NodeId, String> {
    #[derive(Deserialize)]
    struct Removed {
        #[serde(default)]
        peer_id: Option<String>,
        #[serde(default)]
        id: Option<String>,
    }
    let removed: Removed = wire::parse_object(payload.as_bytes())?;
    convert::node_id(removed.peer_id.or(removed.id).as_deref())
}

fn peer_key_rotation(payload: &str) -> Result<PeerKeyRotation, String> {
    #[derive(Deserialize)]
    struct Rotated<'a> {
        #[serde(default)]
        peer_id: Option<String>,
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        public_key: Option<String>,
        #[serde(default)]
        new_public_key: Option<String>,
        #[serde(default)]
        psk: Option<SecretText>,
        #[serde(default)]
        new_psk: Option<SecretText>,
        #[serde(borrow, default)]
        mesh_ip: Option<Raw<'a>>,
    }
    let rotated: Rotated<'_> = wire::parse_object(payload.as_bytes())?;
    let is_whole = rotated.mesh_ip.is_some() && rotated.public_key.is_some();
    let given = |psk: &SecretText| !psk.expose().is_empty();
    let psk = rotated.new_psk.filter(given).or(rotated.psk.filter(given));
    let key =
        rotated.new_public_key.or(rotated.public_key).ok_or("has neither public_key nor new_public_key")?;
    let rotation = PeerKeyRotation {
        id: convert::node_id(rotated.peer_id.or(rotated.id).as_deref())?,
        public_key: convert::public_key("public_key", &key)?,
        psk: convert::psk("psk", psk.as_ref())?,
        peer: None,
    };
    if !is_whole {
        return Ok(rotation);
    }
    let mut peer = convert::peer(payload)?;
    peer.id = rotation.id.clone();
    peer.public_key = rotation.public_key;
    peer.psk.clone_from(&rotation.psk);
    Ok(PeerKeyRotation { peer: Some(peer), ..rotation })
}

/// A payload that holds no list of policies asks for the state to be pulled.
fn policy_updated(payload: &str) -> Event {
    #[derive(Deserialize)]
    struct Updated<'a> {
        #[serde(borrow, default)]
        policies: Option<Raw<'a>>,
    }
    if payload.starts_with('[') {
        return Event::PolicyUpdated(convert::policies(payload));
    }
    match wire::parse_object::<Updated<'_>>(payload.as_bytes()) {
        Ok(Updated { policies: Some(list) }) if list.text().starts_with('[') => {
            Event::PolicyUpdated(convert::policies(list.text()))
        }
        _ => Event::Reconcile,
    }
}

fn state_delta(payload: &str) -> Result<StateDelta, String> {
    #[derive(Deserialize)]
    struct Updated<'a> {
        #[serde(borrow, default)]
        metadata: Option<BTreeMap<String, Raw<'a>>>,
        #[serde(borrow, default)]
        data: Option<Vec<Raw<'a>>>,
    }
    let updated: Updated<'_> = wire::parse_object(payload.as_bytes())?;
    let (metadata, rejected) = convert::metadata(&updated.metadata.unwrap_or_default());
    let data = convert::data_entries(&updated.data.unwrap_or_default());
    Ok(StateDelta { metadata, data: data.accepted, rejected: [data.rejected, rejected].concat() })
}

fn secret_refs(payload: &str) -> Result<Vec<SecretRef>, String> {
    #[derive(Deserialize)]
    struct Updated<'a> {
        #[serde(borrow, default)]
        secret_refs: Option<Vec<Raw<'a>>>,
    }
    let updated: Updated<'_> = wire::parse_object(payload.as_bytes())?;
    let refs = convert::secret_refs(&updated.secret_refs.unwrap_or_default());
    match refs.rejected.first() {
        None => Ok(refs.accepted),
        Some(rejected) => Err(rejected.to_string()),
    }
}

#[cfg(test)]
mod tests;
