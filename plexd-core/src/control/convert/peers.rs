//! Peers and their endpoints.

use std::collections::HashSet;

use crate::state::{Peer, PeerEndpoint};
use crate::types::{AllowedIps, Endpoint, NodeId, PresharedKey, PublicKey};

use super::super::wire::{self, Raw};
use super::{Refusals, Sifted, mesh_ip, name_of, network};

/// Converts a list of peers. One whose id or public key an earlier one has is left out.
pub fn peers(list: &[Raw<'_>]) -> Sifted<Peer> {
    let mut accepted = Vec::with_capacity(list.len());
    let mut refusals = Refusals::default();
    let mut ids = HashSet::new();
    let mut keys = HashSet::new();
    for (index, element) in list.iter().enumerate() {
        let checked = peer(element.text()).and_then(|peer| {
            if ids.contains(&peer.id) {
                return Err("an earlier peer has the same id".to_owned());
            }
            if !keys.insert(peer.public_key) {
                return Err("an earlier peer has the same public key".to_owned());
            }
            ids.insert(peer.id.clone());
            Ok(peer)
        });
        match checked {
            Ok(peer) => accepted.push(peer),
            Err(reason) => refusals.add(|| name_of(*element, "id", "peers", index), reason),
        }
    }
    Sifted { accepted, rejected: refusals.into_list("peers") }
}

/// Converts one peer.
pub fn peer(text: &str) -> Result<Peer, String> {
    let peer: wire::Peer = wire::parse_object(text.as_bytes())?;
    let allowed_ips = peer.allowed_ips.iter().map(|text| network(text));
    Ok(Peer {
        id: node_id(peer.id.as_deref().or(peer.peer_id.as_deref()))?,
        public_key: public_key("public_key", &peer.public_key)?,
        mesh_ip: mesh_ip(&peer.mesh_ip)?,
        endpoint: endpoint(peer.endpoint.as_deref())?,
        allowed_ips: allowed_ips
            .collect::<Result<AllowedIps, _>>()
            .map_err(|error| format!("allowed_ips: {error}"))?,
        psk: psk("psk", peer.psk.as_ref())?,
    })
}

/// Converts a list of peer endpoints.
pub fn peer_endpoints(list: &[Raw<'_>]) -> Sifted<PeerEndpoint> {
    let mut accepted = Vec::with_capacity(list.len());
    let mut refusals = Refusals::default();
    for (index, element) in list.iter().enumerate() {
        match peer_endpoint(element.text()) {
            Ok(endpoint) => accepted.push(endpoint),
            Err(reason) => refusals.add(|| name_of(*element, "id", "peer_endpoints", index), reason),
        }
    }
    Sifted { accepted, rejected: refusals.into_list("peer_endpoints") }
}

/// Converts one peer endpoint.
pub fn peer_endpoint(text: &str) -> Result<PeerEndpoint, String> {
    let peer: wire::PeerEndpoint = wire::parse_object(text.as_bytes())?;
    Ok(PeerEndpoint {
        id: node_id(peer.peer_id.as_deref().or(peer.id.as_deref()))?,
        endpoint: endpoint(peer.endpoint.as_deref())?,
    })
}

/// Converts the id of a peer.
pub(in super::super) fn node_id(text: Option<&str>) -> Result<NodeId, String> {
    text.ok_or("has no id")?.parse().map_err(|error| format!("id: {error}"))
}

pub(in super::super) fn public_key(member: &str, text: &str) -> Result<PublicKey, String> {
    PublicKey::from_base64(text).map_err(|error| format!("{member} {error}"))
}

pub(in super::super) fn psk(
    member: &str,
    text: Option<&wire::SecretText>,
) -> Result<Option<PresharedKey>, String> {
    text.map(|text| PresharedKey::from_base64(text.expose()))
        .transpose()
        .map_err(|error| format!("{member} {error}"))
}

fn endpoint(text: Option<&str>) -> Result<Option<Endpoint>, String> {
    text.map(str::parse::<Endpoint>).transpose().map_err(|error| error.to_string())
}
