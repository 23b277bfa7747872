//! Who sees whom: every registered node is a peer of every other, with one random PSK per pair, unless a node's
//! peers are overridden; and the announcement of what changes to the nodes it concerns.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::journal::Journal;
use super::node::{Crafted, Node, Record, raw};
use super::{Model, StoreError};
use crate::encoding;

/// A peer as registration, state and events show it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Peer {
    pub(crate) id: String,
    pub(crate) public_key: String,
    mesh_ip: String,
    endpoint: String,
    allowed_ips: Vec<String>,
    pub(crate) psk: String,
}

/// Where a peer is reached, as `PUT endpoint` answers and `peer_endpoint_changed` announces it.
#[derive(Debug, Serialize)]
pub(crate) struct PeerEndpoint {
    pub(crate) peer_id: String,
    pub(crate) endpoint: String,
}

/// What a node was seen with, or said of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sighting {
    /// It connected from this address.
    From(IpAddr),
    /// Its heartbeat came from this address and names this UDP port of the mesh, when it has a mesh.
    Heartbeat(IpAddr, Option<u16>),
    /// It reported this public endpoint, or that it has none.
    Public(Option<SocketAddr>),
}

impl Model {
    /// The peers of a node as the registry has them.
    pub(crate) fn peers_of(&self, id: &str) -> Vec<Peer> {
        self.nodes.keys().filter(|other| *other != id).filter_map(|other| self.peer_of(id, other)).collect()
    }

    /// `peer` as `viewer` sees it.
    pub(crate) fn peer_of(&self, viewer: &str, peer: &str) -> Option<Peer> {
        let Record { id, public_key, mesh_ip, .. } = &self.nodes.get(peer)?.record;
        Some(Peer {
            id: id.clone(),
            public_key: public_key.clone(),
            mesh_ip: mesh_ip.to_string(),
            endpoint: self.nodes.get(peer)?.record.endpoint().to_string(),
            allowed_ips: vec![format!("{mesh_ip}/32")],
            psk: self.psks.get(viewer, peer)?.to_owned(),
        })
    }

    /// The peers that a node's state shows: the override when there is one.
    pub(crate) fn shown_peers(&self, id: &str) -> Vec<Box<RawValue>> {
        match self.nodes.get(id).and_then(|node| node.desired.peers.as_ref()) {
            Some(peers) => peers.clone(),
            None => self.peers_of(id).iter().map(raw).collect(),
        }
    }

    /// The endpoints of a node's peers.
    pub(crate) fn peer_endpoints(&self, id: &str) -> Vec<PeerEndpoint> {
        self.peers_of(id)
            .into_iter()
            .map(|peer| PeerEndpoint { peer_id: peer.id, endpoint: peer.endpoint })
            .collect()
    }

    /// Notes where a node is and announces its endpoint to the others when that changed.
    pub(crate) fn see(&mut self, id: &str, sighting: Sighting) -> Result<(), StoreError> {
        let Some(node) = self.nodes.get_mut(id) else {
            return Ok(());
        };
        let before = node.record.endpoint();
        if !note(&mut node.record, sighting) {
            return Ok(());
        }
        node.write_record()?;
        let after = node.record.endpoint();
        if after == before {
            return Ok(());
        }
        let payload = raw(&PeerEndpoint { peer_id: id.to_owned(), endpoint: after.to_string() });
        self.announce_to_others(id, "peer_endpoint_changed", |_, _| Some(payload.clone()))
    }

    /// Signs and sends an event to one node; `None` when there is no such node.
    pub(crate) fn emit(
        &mut self,
        id: &str,
        event_type: &str,
        payload: &RawValue,
    ) -> Result<Option<String>, StoreError> {
        let key = &self.signing.current;
        self.nodes.get_mut(id).map(|node| node.emit(key, event_type, payload)).transpose()
    }

    /// Sends events to one node, the last first; `None` when there is no such node.
    pub(crate) fn emit_crafted(
        &mut self,
        id: &str,
        events: &[Crafted<'_>],
    ) -> Result<Option<Vec<String>>, StoreError> {
        let key = &self.signing.current;
        self.nodes.get_mut(id).map(|node| node.emit_reversed(key, events)).transpose()
    }

    /// Sends an event about `subject` to every other node whose peers are not overridden.
    pub(super) fn announce_to_others(
        &mut self,
        subject: &str,
        event_type: &str,
        payload_for: impl Fn(&Self, &str) -> Option<Box<RawValue>>,
    ) -> Result<(), StoreError> {
        let concerned = |node: &&Node| node.record.id != subject && node.desired.peers.is_none();
        let others: Vec<String> =
            self.nodes.values().filter(concerned).map(|node| node.record.id.clone()).collect();
        for other in others {
            if let Some(payload) = payload_for(self, &other) {
                self.emit(&other, event_type, &payload)?;
            }
        }
        Ok(())
    }
}

/// Says whether anything changed.
fn note(record: &mut Record, sighting: Sighting) -> bool {
    let before = (record.source_ip, record.listen_port, record.public_endpoint);
    match sighting {
        Sighting::From(ip) => record.source_ip = ip,
        Sighting::Heartbeat(ip, port) => {
            record.source_ip = ip;
            record.listen_port = port.or(record.listen_port);
        }
        Sighting::Public(endpoint) => record.public_endpoint = endpoint,
    }
    before != (record.source_ip, record.listen_port, record.public_endpoint)
}

/// One random PSK per pair of nodes.
#[derive(Debug)]
pub(crate) struct PresharedKeys {
    journal: Journal,
    pairs: BTreeMap<(String, String), String>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    a: String,
    b: String,
    psk: String,
}

impl PresharedKeys {
    /// Opens the keys and drops those of nodes that are gone.
    pub(crate) fn open(dir: &Path, exists: impl Fn(&str) -> bool) -> Result<Self, StoreError> {
        let path = dir.join("psks.journal");
        let (mut journal, records) = Journal::open(path.clone())?;
        let mut pairs = BTreeMap::new();
        let found = records.len();
        for record in records {
            let line: Line =
                serde_json::from_str(&record).map_err(|error| StoreError::damaged(&path, &error))?;
            if exists(&line.a) && exists(&line.b) {
                pairs.insert((line.a, line.b), line.psk);
            }
        }
        if pairs.len() < found {
            let lines: Vec<String> = pairs.iter().map(|((a, b), psk)| line(a, b, psk)).collect();
            journal.rewrite(lines.iter().map(String::as_str))?;
        }
        Ok(Self { journal, pairs })
    }

    /// Gives every pair of `id` with one of `others` a new key.
    pub(crate) fn renew<'a>(
        &mut self,
        id: &str,
        others: impl Iterator<Item = &'a String>,
    ) -> Result<(), StoreError> {
        let keys: Vec<_> =
            others.map(|other| (ordered(id, other), encoding::base64(&encoding::random::<32>()))).collect();
        let lines: Vec<String> = keys.iter().map(|((a, b), psk)| line(a, b, psk)).collect();
        self.journal.append_all(lines.iter().map(String::as_str))?;
        self.pairs.extend(keys);
        Ok(())
    }

    /// Forgets the keys of a node that is gone; the file follows at the next start.
    pub(crate) fn forget(&mut self, id: &str) {
        self.pairs.retain(|(a, b), _| a != id && b != id);
    }

    fn get(&self, one: &str, other: &str) -> Option<&str> {
        self.pairs.get(&ordered(one, other)).map(String::as_str)
    }
}

fn ordered(one: &str, other: &str) -> (String, String) {
    let (a, b) = if one <= other { (one, other) } else { (other, one) };
    (a.to_owned(), b.to_owned())
}

fn line(a: &str, b: &str, psk: &str) -> String {
    raw(&Line { a: a.to_owned(), b: b.to_owned(), psk: psk.to_owned() }).get().to_owned()
}
