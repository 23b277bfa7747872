//! Values for tests: states, signed envelopes, a clock that stands.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::{DataEntry, FullState, Peer, SecretRef};
use crate::policy::{Action, Policy, PolicySet, Rule, Selector, Service};
use crate::types::{Clock, PresharedKey, PublicKey, SigningPublicKey};

/// A clock that stands until it is moved.
#[derive(Debug)]
pub(crate) struct StandingClock(Mutex<Timestamp>);

impl Default for StandingClock {
    fn default() -> Self {
        Self(Mutex::new("2026-01-15T10:30:00.123456789Z".parse().unwrap()))
    }
}

impl StandingClock {
    pub(crate) fn advance(&self, seconds: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += SignedDuration::from_secs(seconds);
    }
}

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn public(key: &SigningKey) -> SigningPublicKey {
    SigningPublicKey::from_base64(&STANDARD.encode(key.verifying_key().as_bytes())).unwrap()
}

/// A signed envelope, its id also its nonce; `payload` is compact JSON without characters that are escaped.
pub(crate) fn envelope(key: &SigningKey, event_type: &str, id: &str, at: Timestamp, payload: &str) -> Bytes {
    let members = format!(
        r#""event_type":"{event_type}","event_id":"{id}","issued_at":"{at}","nonce":"nonce-{id}","payload":{payload}"#
    );
    let signature = STANDARD.encode(key.sign(format!("{{{members}}}").as_bytes()).to_bytes());
    format!(r#"{{{members},"signature":"{signature}"}}"#).into()
}

pub(crate) fn peer(id: &str, seed: u8) -> Peer {
    let mesh_ip = [10, 100, 0, seed].into();
    Peer {
        id: id.parse().unwrap(),
        public_key: PublicKey::from_bytes([seed; 32]),
        mesh_ip,
        endpoint: Some(format!("192.0.2.{seed}:51820").parse().unwrap()),
        allowed_ips: [IpNet::from(mesh_ip)].into(),
        psk: Some(PresharedKey::from_bytes([seed; 32])),
    }
}

pub(crate) fn data(key: &str, version: i64) -> DataEntry {
    DataEntry {
        key: key.to_owned(),
        content_type: "application/json".to_owned(),
        payload: Bytes::from(format!(r#"{{"b":1.50, "a":{version}}}"#)).into(),
        version,
        updated_at: "2025-06-01T12:34:56Z".to_owned(),
    }
}

pub(crate) fn secret(key: &str, version: i64) -> SecretRef {
    SecretRef { key: key.to_owned(), version }
}

pub(crate) fn policies(port: u16) -> PolicySet {
    let rule = Rule {
        src: Selector::Node("n_b".parse().unwrap()),
        dst: Selector::Net("fd00::/8".parse().unwrap()),
        service: Service::Tcp(std::num::NonZeroU16::new(port)),
        action: Action::Allow,
    };
    let any = Rule { src: Selector::Any, dst: Selector::Any, service: Service::Any, action: Action::Deny };
    PolicySet { policies: vec![Policy { id: format!("pol_{port}"), rules: vec![rule, any] }] }
}

/// Any answer to a pull, within few names so that answers overlap; sometimes with an invalid policy set or no keys.
pub(crate) fn any_full_state() -> impl Strategy<Value = FullState> {
    let key = "[a-c/.]{1,3}";
    let peers = btree_map("n_[a-d]", (1_u8..200, any::<bool>(), any::<bool>()), 0..4).prop_map(|peers| {
        let mut peers: Vec<Peer> = peers
            .into_iter()
            .map(|(id, (seed, psk, endpoint))| {
                let peer = peer(&id, seed);
                Peer {
                    psk: peer.psk.clone().filter(|_| psk),
                    endpoint: peer.endpoint.clone().filter(|_| endpoint),
                    ..peer
                }
            })
            .collect();
        peers.dedup_by_key(|peer| peer.public_key);
        peers
    });
    let unique = |mut list: Vec<(String, i64)>| {
        let mut seen = std::collections::BTreeSet::new();
        list.retain(|(key, _)| seen.insert(key.clone()));
        list
    };
    let entries = move || vec((key, 1_i64..3), 0..6).prop_map(unique);
    let policies = prop_oneof![
        (0_u16..3).prop_map(|port| Ok(policies(port))),
        Just(Err("policy pol_1, rule 1: unknown action".to_owned()))
    ];
    let keys = proptest::option::of((1_u8..4).prop_map(|seed| public(&signing_key(seed))));
    let section = proptest::option::of("[a-z]{0,3}");
    (peers, policies, keys, btree_map(key, "[a-z]{0,2}", 0..3), entries(), entries(), section).prop_map(
        |(peers, policies, keys, metadata, entries, refs, section)| FullState {
            peers,
            policies,
            signing_keys: keys.map(super::SigningKeys::only),
            metadata,
            data: entries.into_iter().map(|(key, version)| data(&key, version)).collect(),
            secret_refs: refs.into_iter().map(|(key, version)| secret(&key, version)).collect(),
            sections: section
                .map(|text| ("relay_config", serde_json::value::to_raw_value(&text).unwrap()))
                .into_iter()
                .collect(),
            ..FullState::default()
        },
    )
}
