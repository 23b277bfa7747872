//! Wire to domain: whatever passes here is valid. Peers and entries stand or fall one by one, each refusal with a name
//! and a reason; policies as a whole. No reason quotes key material.

mod entries;
mod peers;
mod policies;

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;

use crate::policy::PolicySet;
use crate::state::{FullState, Peer, Rejected, SigningKeys};
use crate::types::{NodeId, NodeSecretKey, SigningPublicKey};

use super::wire::{self, Raw};

pub use entries::{data_entries, metadata, secret_refs};
pub(super) use peers::{node_id, psk, public_key};
pub use peers::{peer, peer_endpoint, peer_endpoints, peers};
pub use policies::{MAX_RULES, policies};

/// A received list: what of it is valid, and what was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sifted<T> {
    /// In the order received.
    pub accepted: Vec<T>,
    /// In the order received.
    pub rejected: Vec<Rejected>,
}

/// Most refusals of one list that are told one by one.
const MAX_REFUSALS: usize = 256;

/// What is left out of one list. A list may have a million elements that are all wrong: only the first are named.
#[derive(Debug, Default)]
struct Refusals {
    told: Vec<Rejected>,
    untold: usize,
}

impl Refusals {
    fn add(&mut self, name: impl FnOnce() -> String, reason: String) {
        if self.told.len() < MAX_REFUSALS {
            self.told.push(Rejected { name: name(), reason });
        } else {
            self.untold += 1;
        }
    }

    /// Returns them; the others of list `list` as one.
    fn into_list(mut self, list: &str) -> Vec<Rejected> {
        if self.untold > 0 {
            let reason = format!("{} more are invalid", self.untold);
            self.told.push(Rejected { name: format!("{list} (others)"), reason });
        }
        self.told
    }
}

/// The identity that a registration gave.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The node's id.
    pub node_id: NodeId,
    /// The node's address in the mesh.
    pub mesh_ip: IpAddr,
    /// The key with which events are signed.
    pub signing_key: SigningPublicKey,
    /// The node's credential and the key of its secrets.
    pub node_secret_key: NodeSecretKey,
    /// The first peers.
    pub peers: Vec<Peer>,
    /// Peers that were left out.
    pub rejected_peers: Vec<Rejected>,
}

/// Converts the answer to a registration. The error names the member that is wrong.
pub fn registration(response: &wire::RegisterResponse<'_>) -> Result<Registration, String> {
    let peers = peers(&response.peers);
    Ok(Registration {
        node_id: response.node_id.parse().map_err(|error| format!("node_id: {error}"))?,
        mesh_ip: mesh_ip(&response.mesh_ip)?,
        signing_key: SigningPublicKey::from_base64(&response.signing_public_key)
            .map_err(|error| format!("signing_public_key {error}"))?,
        node_secret_key: NodeSecretKey::parse(response.node_secret_key.expose())
            .map_err(|error| format!("node_secret_key {error}"))?,
        peers: peers.accepted,
        rejected_peers: peers.rejected,
    })
}

/// Converts the answer to a state pull. Nothing in it can make the whole of it invalid.
pub fn state(response: &wire::StateResponse<'_>) -> FullState {
    let peers = peers(&response.peers);
    let data = data_entries(&response.data);
    let secret_refs = secret_refs(&response.secret_refs);
    let (metadata, rejected_metadata) = metadata(&response.metadata);
    let (signing_keys, rejected_signing_keys) =
        match response.signing_keys.map(|keys| signing_keys(keys.text())) {
            None => (None, None),
            Some(Ok(keys)) => (Some(keys), None),
            Some(Err(reason)) => (None, Some(reason)),
        };
    let sections = [
        ("bridge_config", response.bridge_config),
        ("relay_config", response.relay_config),
        ("user_access_config", response.user_access_config),
        ("ingress_config", response.ingress_config),
        ("site_to_site_config", response.site_to_site_config),
    ];
    FullState {
        peers: peers.accepted,
        rejected_peers: peers.rejected,
        policies: response.policies.map_or_else(|| Ok(PolicySet::default()), |list| policies(list.text())),
        signing_keys,
        rejected_signing_keys,
        metadata,
        data: data.accepted,
        rejected_data: [data.rejected, rejected_metadata, secret_refs.rejected].concat(),
        secret_refs: secret_refs.accepted,
        sections: sections
            .into_iter()
            .filter_map(|(name, section)| Some((name, section?.to_owned())))
            .collect(),
    }
}

/// Converts signing keys. A previous key equal to the current one counts as none.
pub fn signing_keys(text: &str) -> Result<SigningKeys, String> {
    let keys: wire::SigningKeys = wire::parse_object(text.as_bytes())?;
    let current = signing_key("current", &keys.current)?;
    let previous = keys.previous.map(|key| signing_key("previous", &key)).transpose()?;
    let transition_expires =
        keys.transition_expires.map(|text| time("transition_expires", &text)).transpose()?;
    Ok(SigningKeys { current, previous: previous.filter(|key| *key != current), transition_expires })
}

pub(super) fn signing_key(member: &str, text: &str) -> Result<SigningPublicKey, String> {
    SigningPublicKey::from_base64(text).map_err(|error| format!("{member} {error}"))
}

pub(super) fn time(member: &str, text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{member} {:?} is not an RFC 3339 time", excerpt(text)))
}

/// Parses a network or an address; host bits are cleared, an address is a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(net.trunc());
    }
    text.parse::<IpAddr>()
        .map(IpNet::from)
        .map_err(|_| format!("{:?} is neither an address nor a network", excerpt(text)))
}

fn mesh_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("mesh_ip {:?} is not an address", excerpt(text)))
}

/// Returns as much of a received text as a message may hold.
fn excerpt(text: &str) -> &str {
    const MAX: usize = 128;
    if text.len() <= MAX {
        return text;
    }
    let mut end = MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Returns a received name as a message may hold it: bounded, on one line.
fn shown(name: &str) -> String {
    excerpt(name).escape_debug().to_string()
}

/// Returns how a list element calls itself by the member `member`, else where it stands in `list`.
fn name_of(element: Raw<'_>, member: &str, list: &str, index: usize) -> String {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        peer_id: Option<String>,
        #[serde(default)]
        key: Option<String>,
    }
    let named = wire::parse_object::<Named>(element.text().as_bytes()).ok();
    let name = named.and_then(|named| if member == "key" { named.key } else { named.id.or(named.peer_id) });
    match name {
        Some(name) if !name.is_empty() => shown(&name),
        _ => format!("{list}[{index}]"),
    }
}

#[cfg(test)]
mod tests;
