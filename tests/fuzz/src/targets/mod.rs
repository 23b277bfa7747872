//! The targets, and what several of them check.

pub mod answers;
pub mod connection;
pub mod envelope;
pub mod event;
pub mod policy;
pub mod proof;
pub mod requests;
pub mod sse;
pub mod state;
pub mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use plexd_core::config::Config;
use plexd_core::control::convert::Registration;
use plexd_core::identity::Identity;
use plexd_core::policy::{MAX_ENTRIES, MAX_RULES};
use plexd_core::reconcile::{Input, Resolved, Wanted};
use plexd_core::state::{Desired, OnDisk, Peer, Rejected, SigningKeys};
use plexd_core::types::{NodeSecretKey, PrivateKey, SigningPublicKey};
use serde_json::value::RawValue;

/// Most that is told of one refusal, in bytes.
const MAX_REASON: usize = 4096;

/// Most refusals that are told of one list.
const MAX_REJECTED: usize = 1000;

/// What a table has beside the policy's entries: hooks, chains, the rules that do the lookups.
const MAX_SKELETON: usize = 2 * MAX_RULES + 100;

/// When everything happens.
fn now() -> Timestamp {
    Timestamp::from_second(1_768_473_005).expect("2026-01-15T10:30:05Z")
}

fn signing_key(seed: u8) -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[seed; 32])
}

fn public(key: &ed25519_dalek::SigningKey) -> SigningPublicKey {
    SigningPublicKey::from_base64(&STANDARD.encode(key.verifying_key().as_bytes())).expect("a public key")
}

/// The node that receives all this.
static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity {
    node_id: "n_here".parse().expect("a node id"),
    mesh_ip: [10, 100, 0, 1].into(),
    secret_key: NodeSecretKey::parse(&STANDARD.encode([9; 32])).expect("a key"),
    signing_key: public(&signing_key(7)),
    private_key: PrivateKey::from_base64(&STANDARD.encode([8; 32])).expect("a key"),
});

static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::from_text("api: https://api.plexd.example\n").expect("a configuration"));

/// The state that events and answers are applied to: what `corpus/state/base.json` makes.
static BASE: LazyLock<Desired> = LazyLock::new(|| {
    let text = include_bytes!("../../corpus/state/base.json");
    let full = state::parse(text).expect("a state");
    assert!(full.rejected_peers.is_empty() && full.rejected_data.is_empty(), "{full:?}");
    let keys = Some(SigningKeys::only(public(&signing_key(7))));
    Desired { signing_keys: keys, ..Desired::default().replaced_by(full).0 }
});

/// Panics if a value is not read back from disk as it was written.
fn assert_stored<T: OnDisk + PartialEq + Debug>(value: &T) {
    let text = value.to_disk().expect("any value can be stored");
    assert_eq!(T::from_disk(&text).as_ref(), Some(value), "{}", String::from_utf8_lossy(&text));
}

fn assert_peers_stored<'a>(peers: impl IntoIterator<Item = &'a Peer>) {
    let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for peer in peers {
        assert_stored(peer);
        assert!(ids.insert(peer.id.clone()), "two peers are {}", peer.id);
        assert!(keys.insert(peer.public_key), "two peers have the key {}", peer.public_key);
        assert!(peer.allowed_ips.iter().all(|net| *net == net.trunc()), "{peer:?}");
    }
}

/// Panics if a list of refusals, or one of them, is longer than a person would read.
fn assert_bounded(rejected: &[Rejected]) {
    assert!(rejected.len() <= MAX_REJECTED, "{} refusals", rejected.len());
    for rejected in rejected {
        assert!(!rejected.reason.is_empty() && !rejected.name.is_empty(), "{rejected:?}");
        assert_message(&rejected.to_string());
    }
}

/// Panics if a message could not go into a log: too long, or more than one line.
fn assert_message(text: &str) {
    assert!(text.len() <= MAX_REASON, "{} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// Panics if the state could not be kept and restored.
fn assert_sound(desired: &Desired) {
    assert_peers_stored(desired.peers.values().map(AsRef::as_ref));
    for (id, peer) in &desired.peers {
        assert_eq!(*id, peer.id);
    }
    assert_stored(&*desired.policies);
    if let Some(keys) = &desired.signing_keys {
        assert_stored(keys);
    }
    assert_stored(&desired.own_key);
    assert_bounded(&desired.rejected_peers);
    if let Some(reason) = &desired.policies_rejected {
        assert_message(reason);
    }
    let in_order = |positions: Vec<u64>| {
        let places: BTreeSet<u64> = positions.iter().copied().collect();
        assert_eq!(places.len(), positions.len(), "two entries in one place");
    };
    for (key, placed) in desired.data.iter() {
        assert_stored(&*placed.entry);
        assert!(*key == placed.entry.key && is_key(key), "{key:?}");
    }
    in_order(desired.data.iter().map(|(_, placed)| placed.position).collect());
    for (key, placed) in desired.secret_refs.iter() {
        assert_stored(&*placed.entry);
        assert!(*key == placed.entry.key && is_key(key), "{key:?}");
    }
    in_order(desired.secret_refs.iter().map(|(_, placed)| placed.position).collect());
    assert!(desired.metadata.keys().all(|key| is_key(key)), "{:?}", desired.metadata);
    for section in desired.sections.values() {
        let again = RawValue::from_string(section.get().to_owned()).expect("a section is read from disk");
        assert_eq!(again.get(), section.get());
    }
}

/// Whether the Local Node API could name it.
fn is_key(key: &str) -> bool {
    (1..=256).contains(&key.len()) && !key.chars().any(char::is_control)
}

/// Works out what the kernel should have. Panics if that is not the same every time, or not sound.
fn wanted(desired: &Desired) -> Option<Wanted> {
    let resolved = Resolved::new();
    let input = Input {
        desired,
        policies: &desired.policies,
        identity: &IDENTITY,
        mesh: &CONFIG.mesh,
        settings: CONFIG.policy,
        resolved: &resolved,
    };
    let wanted = match input.wanted() {
        Ok(wanted) => wanted,
        Err(error) => {
            assert_message(&error.to_string());
            return None;
        }
    };
    let again = input.wanted().expect("as before");
    assert_eq!((&wanted.peers, &wanted.routes, &wanted.table), (&again.peers, &again.routes, &again.table));
    assert!(wanted.table.as_ref().is_none_or(|table| table.size() <= MAX_ENTRIES + MAX_SKELETON));

    let mut owners = BTreeMap::new();
    for (key, peer) in &wanted.peers {
        assert_eq!((*key, desired.peers[&peer.id].public_key), (peer.config.public_key, *key));
        for net in &peer.config.allowed_ips {
            let other = owners.insert(*net, &peer.id);
            assert_eq!(other, None, "{net} belongs to two");
        }
    }
    assert!(wanted.routes.iter().all(|net| owners.contains_key(net)), "a route to nobody");
    Some(wanted)
}

/// Panics if what `show` makes of `text` shows key material that was put into the place of its own.
fn assert_secrets_hidden(text: &[u8], show: impl Fn(&[u8]) -> String) {
    for planted in crate::planted::plant(text) {
        crate::planted::assert_hidden(&show(&planted));
    }
}

/// What may be shown of a registration.
fn shown_registration(registration: &Registration) -> String {
    let rejected: Vec<String> = registration.rejected_peers.iter().map(ToString::to_string).collect();
    format!("{registration:?} {rejected:?}")
}
