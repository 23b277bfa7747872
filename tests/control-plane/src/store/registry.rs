//! Who belongs to the mesh: enrolment tokens, registration, key rotation, deregistration. Each change tells the
//! other nodes by signed events, after it is on disk.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::node::{HeartbeatFlags, Node, Record, raw};
use super::peers::Peer;
use super::{Counters, Model, StoreError, files};
use crate::encoding;

/// 10.100.0.0/16 without its network and broadcast addresses.
const MESH_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 0);
const MESH_HOSTS: u32 = 65_534;

/// A one-time enrolment token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) expires_at: String,
    pub(crate) used_by: Option<Registration>,
}

/// What a token was used for; the same request again is answered again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Registration {
    pub(crate) node_id: String,
    pub(crate) public_key: String,
}

/// A registration request whose fields are well-formed.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) token: String,
    pub(crate) public_key: String,
    pub(crate) hostname: String,
    pub(crate) metadata: Option<Box<RawValue>>,
    pub(crate) capabilities: Option<Box<RawValue>>,
    pub(crate) source_ip: IpAddr,
}

/// Why a registration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("unauthorized")]
    Token,
    #[error("hostname already registered")]
    Hostname,
    #[error("mesh address space exhausted")]
    Addresses,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a key rotation gave.
#[derive(Debug)]
pub(crate) struct Rotation {
    pub(crate) updated_peers: Vec<Peer>,
    /// False when the same request came again: then the peers know already.
    pub(crate) announce: bool,
}

#[derive(Serialize)]
struct KeyRotated<'a> {
    peer_id: &'a str,
    public_key: &'a str,
    psk: &'a str,
}

#[derive(Serialize)]
struct PeerRemoved<'a> {
    peer_id: &'a str,
}

impl Model {
    /// Makes a token that is good for one registration within `ttl`; returns it with the end of its life.
    pub(crate) fn create_token(&mut self, ttl: SignedDuration) -> Result<(String, String), StoreError> {
        let now = Timestamp::now();
        self.tokens.retain(|_, token| token.used_by.is_some() || !expired(token, now));
        let text = format!("plx_enroll_{}", encoding::random_hex::<16>());
        let expires_at = encoding::time_text(now.saturating_add(ttl).unwrap_or(Timestamp::MAX));
        self.tokens.insert(text.clone(), Token { expires_at: expires_at.clone(), used_by: None });
        self.write_tokens()?;
        Ok((text, expires_at))
    }

    /// Registers a node and announces it to the others; returns its id. The same token and key give the same node.
    pub(crate) fn register(&mut self, candidate: Candidate) -> Result<String, RegisterError> {
        let token = self.tokens.get(&candidate.token).ok_or(RegisterError::Token)?;
        if let Some(registration) = &token.used_by {
            let same = registration.public_key == candidate.public_key
                && self.nodes.contains_key(&registration.node_id);
            return if same { Ok(registration.node_id.clone()) } else { Err(RegisterError::Token) };
        }
        if expired(token, Timestamp::now()) {
            return Err(RegisterError::Token);
        }
        if self.nodes.values().any(|node| node.record.hostname == candidate.hostname) {
            return Err(RegisterError::Hostname);
        }
        let record = self.new_record(candidate)?;
        let (id, token) = (record.id.clone(), record.token.clone());
        let registration = record.registration();
        let others: Vec<String> = self.nodes.keys().cloned().collect();
        self.psks.renew(&id, others.iter())?;
        let node = Node::create(&self.dir.join("nodes"), record)?;
        self.nodes.insert(id.clone(), node);
        if let Some(token) = self.tokens.get_mut(&token) {
            token.used_by = Some(registration);
        }
        self.write_tokens()?;
        self.announce_to_others(&id, "peer_added", |model, other| {
            model.peer_of(other, &id).map(|peer| raw(&peer))
        })?;
        Ok(id)
    }

    fn new_record(&mut self, candidate: Candidate) -> Result<Record, RegisterError> {
        let mesh_ip = self.next_mesh_ip()?;
        Ok(Record {
            id: format!("n_{}", encoding::random_hex::<8>()),
            hostname: candidate.hostname,
            registered_key: candidate.public_key.clone(),
            public_key: candidate.public_key,
            mesh_ip,
            node_secret_key: encoding::base64(&encoding::random::<32>()),
            token: candidate.token,
            registered_at: encoding::now_text(),
            metadata: candidate.metadata,
            capabilities: candidate.capabilities,
            source_ip: candidate.source_ip,
            listen_port: None,
            public_endpoint: None,
            heartbeat: HeartbeatFlags::default(),
        })
    }

    /// Addresses are given in sequence and not again: a removed node's address must not reach another one.
    fn next_mesh_ip(&mut self) -> Result<Ipv4Addr, RegisterError> {
        let host = self.next_host;
        if host > MESH_HOSTS {
            return Err(RegisterError::Addresses);
        }
        self.next_host += 1;
        files::write_json(&self.dir.join("counters.json"), &Counters { next_host: self.next_host })?;
        Ok(Ipv4Addr::from(u32::from(MESH_NETWORK) + host))
    }

    /// Removes a node and announces it to the others; its open streams end.
    pub(crate) fn deregister(&mut self, id: &str) -> Result<(), StoreError> {
        let Some(node) = self.nodes.remove(id) else {
            return Ok(());
        };
        self.psks.forget(id);
        node.remove_files()?;
        let payload = raw(&PeerRemoved { peer_id: id });
        self.announce_to_others(id, "peer_removed", |_, _| Some(payload.clone()))
    }

    /// Gives a node a new public key and every pair it is in a new PSK. Nobody is told yet: see [`announce_key`].
    ///
    /// [`announce_key`]: Self::announce_key
    pub(crate) fn rotate_key(&mut self, id: &str, public_key: &str) -> Result<Rotation, StoreError> {
        let Some(node) = self.nodes.get_mut(id) else {
            return Ok(Rotation { updated_peers: Vec::new(), announce: false });
        };
        let announce = node.record.public_key != public_key;
        if announce {
            public_key.clone_into(&mut node.record.public_key);
            let others: Vec<String> = self.nodes.keys().filter(|other| *other != id).cloned().collect();
            self.psks.renew(id, others.iter())?;
            if let Some(node) = self.nodes.get(id) {
                node.write_record()?;
            }
        }
        Ok(Rotation { updated_peers: self.peers_of(id), announce })
    }

    /// Tells the other nodes the key that `id` has now and the PSK each of them shares with it.
    pub(crate) fn announce_key(&mut self, id: &str) -> Result<(), StoreError> {
        self.announce_to_others(id, "peer_key_rotated", |model, other| {
            let peer = model.peer_of(other, id)?;
            Some(raw(&KeyRotated { peer_id: id, public_key: &peer.public_key, psk: &peer.psk }))
        })
    }

    fn write_tokens(&self) -> Result<(), StoreError> {
        files::write_json::<BTreeMap<String, Token>>(&self.dir.join("tokens.json"), &self.tokens)
    }
}

fn expired(token: &Token, now: Timestamp) -> bool {
    encoding::parse_time(&token.expires_at).is_none_or(|expires| expires <= now)
}
