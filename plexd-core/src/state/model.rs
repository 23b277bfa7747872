//! The values of the desired state, parsed: peers, data, secret references, signing keys. No storage, no wire format.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::payload::Payload;
use crate::policy::PolicySet;
use crate::types::{AllowedIps, Endpoint, NodeId, PresharedKey, PublicKey, SigningPublicKey};

/// Another node of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its node id.
    pub id: NodeId,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// Its address in the mesh.
    pub mesh_ip: IpAddr,
    /// Where it is reached, if anyone knows.
    pub endpoint: Option<Endpoint>,
    /// What may come from it and is routed to it; host bits are zero.
    pub allowed_ips: AllowedIps,
    /// The key it shares with this node.
    pub psk: Option<PresharedKey>,
}

/// Where a peer is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEndpoint {
    /// Its node id.
    pub id: NodeId,
    /// Where it is reached, if anyone knows.
    pub endpoint: Option<Endpoint>,
}

/// Where this node's own key stands (contract, section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnKey {
    /// Whether the control plane asked for a new key and has confirmed none since.
    pub rotation_wanted: bool,
    /// Public key that the control plane confirmed last, if it ever did: the peers belong to it. Stored in one
    /// transaction with them, so that a start after a crash can tell whether a pending key is the one in force.
    pub confirmed: Option<PublicKey>,
}

/// A data entry of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataEntry {
    /// Key, 1 to 256 bytes without control characters.
    pub key: String,
    /// MIME type as received.
    pub content_type: String,
    /// Version the control plane gave it.
    pub version: i64,
    /// Time of the last change, as received.
    pub updated_at: String,
    /// One JSON value. The last, as it costs most to compare.
    pub payload: Payload,
}

/// Name and version of a secret; its value is fetched when asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// Key, 1 to 256 bytes without control characters.
    pub key: String,
    /// Version the control plane gave it.
    pub version: i64,
}

/// The keys with which events may be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKeys {
    /// The key in force.
    pub current: SigningPublicKey,
    /// The one before it.
    pub previous: Option<SigningPublicKey>,
    /// When the previous one ends. Without an end it is not accepted at all.
    pub transition_expires: Option<Timestamp>,
}

impl SigningKeys {
    /// Creates the keys of a control plane that has one.
    pub fn only(current: SigningPublicKey) -> Self {
        Self { current, previous: None, transition_expires: None }
    }

    /// Returns the keys accepted at `now`: the current one, and the previous one while `now < transition_expires`.
    pub fn accepted(&self, now: Timestamp) -> impl Iterator<Item = &SigningPublicKey> {
        let in_transition = self.transition_expires.is_some_and(|expires| now < expires);
        std::iter::once(&self.current).chain(self.previous.iter().filter(move |_| in_transition))
    }
}

/// Something received that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// What it calls itself, or where it stood.
    pub name: String,
    /// What is wrong with it. Never holds key material.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// The answer to a state pull. Peers and entries stand or fall one by one, the policies as a whole.
#[derive(Clone)]
pub struct FullState {
    /// In the control plane's order; ids and public keys are unique.
    pub peers: Vec<Peer>,
    /// Peers that were left out.
    pub rejected_peers: Vec<Rejected>,
    /// The policies, or why they are invalid.
    pub policies: Result<PolicySet, String>,
    /// The signing keys, if they were sent and are valid.
    pub signing_keys: Option<SigningKeys>,
    /// Why the signing keys that were sent are not used.
    pub rejected_signing_keys: Option<String>,
    /// Metadata by key.
    pub metadata: BTreeMap<String, String>,
    /// In the control plane's order; keys are unique.
    pub data: Vec<DataEntry>,
    /// Entries of data, metadata and secret references that were left out; each name begins with its kind.
    pub rejected_data: Vec<Rejected>,
    /// In the control plane's order; keys are unique.
    pub secret_refs: Vec<SecretRef>,
    /// Configuration of later features as received, by member name. May hold key material.
    pub sections: BTreeMap<&'static str, Box<RawValue>>,
}

impl Default for FullState {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            rejected_peers: Vec::new(),
            policies: Ok(PolicySet::default()),
            signing_keys: None,
            rejected_signing_keys: None,
            metadata: BTreeMap::new(),
            data: Vec::new(),
            rejected_data: Vec::new(),
            secret_refs: Vec::new(),
            sections: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for FullState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FullState")
            .field("peers", &self.peers)
            .field("rejected_peers", &self.rejected_peers)
            .field("policies", &self.policies)
            .field("signing_keys", &self.signing_keys)
            .field("rejected_signing_keys", &self.rejected_signing_keys)
            .field("metadata", &self.metadata)
            .field("data", &self.data)
            .field("rejected_data", &self.rejected_data)
            .field("secret_refs", &self.secret_refs)
            .field("sections", &self.sections.keys())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(previous: bool, expires: Option<&str>) -> SigningKeys {
        let current = SigningPublicKey::from_base64("lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=").unwrap();
        let old = SigningPublicKey::from_base64("GUnpgjkh9DVLngRw/Xgbqy4CM9RZM6bQ38chRh0yMlQ=").unwrap();
        SigningKeys {
            current,
            previous: previous.then_some(old),
            transition_expires: expires.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn the_previous_key_is_accepted_until_the_moment_the_transition_expires() {
        let accepted = |keys: &SigningKeys, now: &str| keys.accepted(now.parse().unwrap()).count();
        let both = keys(true, Some("2026-01-16T10:30:00Z"));
        assert_eq!(accepted(&both, "2026-01-16T10:29:59.999Z"), 2);
        assert_eq!(accepted(&both, "2026-01-16T10:30:00Z"), 1);
        assert_eq!(accepted(&keys(true, None), "2026-01-16T10:30:00Z"), 1);
        assert_eq!(accepted(&keys(false, Some("2030-01-16T10:30:00Z")), "2026-01-16T10:30:00Z"), 1);
    }

    #[test]
    fn sections_do_not_show_in_debug() {
        let mut state = FullState::default();
        let section = RawValue::from_string(r#"{"key_pem":"hunter2"}"#.to_owned()).unwrap();
        state.sections.insert("ingress_config", section);
        let shown = format!("{state:?}");
        assert!(shown.contains("ingress_config") && !shown.contains("hunter2"), "{shown}");
    }
}
