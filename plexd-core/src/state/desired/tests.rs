//! Every event, and pulls: what changes, what stays shared, what is told.

use proptest::prelude::*;

use super::*;
use crate::control::events::{self, EventKind};
use crate::state::samples::{any_full_state, data, peer, policies, public, secret, signing_key};
use crate::state::{PeerEndpoint, SECTION_NAMES};
use crate::types::{PresharedKey, PublicKey};

fn now() -> Timestamp {
    "2026-01-15T10:30:00Z".parse().unwrap()
}

fn full() -> FullState {
    FullState {
        peers: vec![peer("n_b", 2), peer("n_c", 3)],
        policies: Ok(policies(80)),
        signing_keys: Some(SigningKeys::only(public(&signing_key(1)))),
        metadata: BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
        data: vec![data("z", 1), data("a", 1)],
        secret_refs: vec![secret("db", 1)],
        sections: BTreeMap::from([("relay_config", raw("{}"))]),
        ..FullState::default()
    }
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn state() -> Desired {
    Desired::default().replaced_by(full()).0
}

/// Applies the event twice, which has to be the same as once.
fn apply(state: &Desired, event: &Event) -> Applied {
    let applied = state.apply(event.clone(), now());
    let again = applied.desired.apply(event.clone(), now());
    assert!(again.desired.is_same_as(&applied.desired), "{event:?}");
    applied
}

/// Keys in the order in which they are listed.
fn listed<T: PartialEq>(entries: &Ordered<T>) -> Vec<&str> {
    let mut placed: Vec<(u64, &str)> = entries.iter().map(|(key, placed)| (placed.position, key)).collect();
    placed.sort_unstable();
    placed.into_iter().map(|(_, key)| key).collect()
}

fn kinds(corrections: &[Correction]) -> Vec<&'static str> {
    corrections.iter().map(|correction| correction.kind.as_str()).collect()
}

#[test]
fn a_peer_is_added_or_replaced_and_takes_its_key_from_whoever_had_it() {
    let before = state();
    let after = apply(&before, &Event::PeerAdded(peer("n_d", 4)));
    assert_eq!((after.desired.peers.len(), after.pull), (3, false));
    assert!(Arc::ptr_eq(&after.desired.peers["n_b"], &before.peers["n_b"]));
    let moved = Peer { mesh_ip: [10, 100, 9, 9].into(), ..peer("n_b", 2) };
    assert_eq!(*apply(&before, &Event::PeerAdded(moved.clone())).desired.peers["n_b"], moved);
    let taken = apply(&before, &Event::PeerAdded(peer("n_d", 2))).desired;
    assert_eq!(taken.peers.keys().map(NodeId::as_str).collect::<Vec<_>>(), ["n_c", "n_d"]);
}

#[test]
fn a_peer_is_removed_once_and_for_all() {
    let after = apply(&state(), &Event::PeerRemoved("n_b".parse().unwrap()));
    assert_eq!(after.desired.peers.keys().map(NodeId::as_str).collect::<Vec<_>>(), ["n_c"]);
    assert!(!after.pull);
    let unknown = apply(&state(), &Event::PeerRemoved("n_x".parse().unwrap()));
    assert!(unknown.desired.is_same_as(&state()) || unknown.desired.peers.len() == 2);
}

#[test]
fn a_rotated_key_comes_with_its_shared_key_or_with_a_pull() {
    let new = PublicKey::from_bytes([99; 32]);
    let psk = PresharedKey::from_bytes([98; 32]);
    let rotation = |id: &str, psk: Option<&PresharedKey>, whole: Option<Peer>| {
        Event::PeerKeyRotated(PeerKeyRotation {
            id: id.parse().unwrap(),
            public_key: new,
            psk: psk.cloned(),
            peer: whole,
        })
    };
    let before = state();
    let old_psk = before.peers["n_b"].psk.clone();
    for (event, expected_psk, pull) in [
        (rotation("n_b", Some(&psk), None), Some(psk.clone()), false),
        (rotation("n_b", None, None), old_psk, true),
        (rotation("n_b", None, Some(Peer { public_key: new, psk: None, ..peer("n_b", 2) })), None, false),
    ] {
        let after = apply(&before, &event);
        let peer = &after.desired.peers["n_b"];
        assert_eq!((peer.public_key, &peer.psk, after.pull), (new, &expected_psk, pull), "{event:?}");
        assert_eq!(peer.allowed_ips, before.peers["n_b"].allowed_ips);
    }
    let unknown = apply(&before, &rotation("n_x", Some(&psk), None));
    assert!(unknown.pull && unknown.desired.is_same_as(&before));
    let whole = apply(&before, &rotation("n_x", None, Some(Peer { public_key: new, ..peer("n_x", 7) })));
    assert!(!whole.pull && whole.desired.peers.contains_key("n_x"));
}

#[test]
fn an_endpoint_changes_or_goes_away_and_that_of_an_unknown_peer_asks_for_a_pull() {
    let before = state();
    for endpoint in [Some("198.51.100.1:1"), Some("vpn.example:2"), None] {
        let endpoint = endpoint.map(|text| text.parse().unwrap());
        let moved = PeerEndpoint { id: "n_b".parse().unwrap(), endpoint: endpoint.clone() };
        let after = apply(&before, &Event::PeerEndpointChanged(moved));
        let expected = Peer { endpoint, ..peer("n_b", 2) };
        assert_eq!((&*after.desired.peers["n_b"], after.pull), (&expected, false));
    }
    let unknown = PeerEndpoint { id: "n_x".parse().unwrap(), endpoint: None };
    let after = apply(&before, &Event::PeerEndpointChanged(unknown));
    assert!(after.pull && after.desired.is_same_as(&before));
}

#[test]
fn a_policy_set_replaces_the_old_one_and_an_invalid_one_only_says_why() {
    let before = state();
    let after = apply(&before, &Event::PolicyUpdated(Ok(policies(443)))).desired;
    assert_eq!(*after.policies, policies(443));
    let refused = apply(&after, &Event::PolicyUpdated(Err("rule 2".to_owned()))).desired;
    assert!(Arc::ptr_eq(&refused.policies, &after.policies));
    assert_eq!(refused.policies_rejected.as_deref(), Some("rule 2"));
    let again = apply(&refused, &Event::PolicyUpdated(Ok(policies(443)))).desired;
    assert!(again.is_same_as(&after) && Arc::ptr_eq(&again.policies, &after.policies));
}

#[test]
fn a_new_signing_key_counts_beside_the_old_one() {
    let new = signing_key(7);
    let payload = raw(&format!(r#"{{"current":"{}"}}"#, public(&new)));
    let rotated = events::decode("signing_key_rotated", &payload).unwrap();
    let keys = apply(&state(), &rotated).desired.signing_keys.unwrap();
    assert_eq!((keys.current, keys.previous), (public(&new), Some(public(&signing_key(1)))));
    assert_eq!(apply(&Desired::default(), &rotated).desired.signing_keys, None);
}

#[test]
fn metadata_and_data_are_upserted_by_key_and_the_state_is_pulled() {
    let before = state();
    let delta = StateDelta {
        metadata: BTreeMap::from([("role".to_owned(), "gw".to_owned())]),
        data: vec![data("m", 1), data("z", 2), data("b", 1)],
        rejected: Vec::new(),
    };
    let after = apply(&before, &Event::NodeStateUpdated(delta));
    assert!(after.pull);
    assert_eq!(after.desired.metadata.keys().collect::<Vec<_>>(), ["region", "role"]);
    assert_eq!(listed(&after.desired.data), ["z", "a", "m", "b"]);
    assert_eq!(after.desired.data.get("z").unwrap().version, 2);
    assert!(Arc::ptr_eq(after.desired.data.get("a").unwrap(), before.data.get("a").unwrap()));
}

#[test]
fn secret_references_are_upserted_by_key_and_the_state_is_pulled() {
    let after = apply(&state(), &Event::NodeSecretsUpdated(vec![secret("tls", 4), secret("db", 2)]));
    assert!(after.pull);
    assert_eq!(
        listed(&after.desired.secret_refs),
        ["tls", "db"],
        "a set that names all is in the control plane's order"
    );
    assert_eq!(after.desired.secret_refs.get("db").unwrap().version, 2);
}

#[test]
fn what_this_version_cannot_do_is_named_and_changes_nothing() {
    let before = state();
    let reconcile = apply(&before, &Event::Reconcile);
    assert!(reconcile.pull && reconcile.unsupported.is_none() && reconcile.desired.is_same_as(&before));
    for (event, name) in [
        (Event::Unsupported(EventKind::ActionRequest), "action_request"),
        (Event::Unknown("novelty".to_owned()), "novelty"),
    ] {
        let after = apply(&before, &event);
        assert_eq!(after.unsupported.as_deref(), Some(name));
        assert!(!after.pull && after.desired.is_same_as(&before));
    }
}

#[test]
fn a_rotation_is_wanted_until_a_key_is_confirmed_and_then_upserts_the_peers() {
    let before = state();
    let wanted = apply(&before, &Event::RotateKeys);
    assert!(wanted.desired.own_key.rotation_wanted && wanted.unsupported.is_none() && !wanted.pull);
    assert!(apply(&wanted.desired, &Event::RotateKeys).desired.is_same_as(&wanted.desired));
    assert!(wanted.desired.replaced_by(full()).0.own_key.rotation_wanted, "a pull says nothing of it");
    let first = Peer::clone(before.peers.values().next().unwrap());
    let renewed = Peer { psk: Some(crate::types::PresharedKey::from_bytes([7; 32])), ..first };
    let key = PublicKey::from_bytes([8; 32]);
    let after = wanted.desired.rotated_to(key, vec![renewed.clone()]);
    assert_eq!(after.own_key, OwnKey { rotation_wanted: false, confirmed: Some(key) });
    assert_eq!(*after.peers[&renewed.id], renewed);
    assert_eq!(after.peers.len(), before.peers.len());
}

#[test]
fn a_pull_that_says_the_same_changes_nothing_and_shares_everything() {
    let before = state();
    let (after, corrections) = before.replaced_by(full());
    assert_eq!(corrections, []);
    assert!(after.is_same_as(&before));
    assert!(after.peers.ptr_eq(&before.peers) && Arc::ptr_eq(&after.sections, &before.sections));
    for (key, placed) in after.data.iter() {
        assert!(Arc::ptr_eq(&placed.entry, before.data.get(key).unwrap()));
    }
}

#[test]
fn a_pull_takes_order_and_content_over_and_says_what_was_wrong() {
    let before = state();
    let (after, corrections) = before.replaced_by(FullState {
        peers: vec![peer("n_c", 3), peer("n_b", 5)],
        policies: Ok(policies(443)),
        signing_keys: Some(SigningKeys::only(public(&signing_key(2)))),
        metadata: BTreeMap::new(),
        data: vec![data("a", 1), data("n", 1), data("z", 1)],
        secret_refs: vec![secret("db", 9)],
        sections: BTreeMap::new(),
        ..FullState::default()
    });
    assert_eq!(
        kinds(&corrections),
        ["signing_keys_updated", "metadata_updated", "data_updated", "secret_refs_updated"]
    );
    assert_eq!(corrections[2].detail, "a, n", "z stays where it is");
    assert_eq!(listed(&after.data), ["a", "n", "z"]);
    for key in ["a", "z"] {
        assert!(Arc::ptr_eq(after.data.get(key).unwrap(), before.data.get(key).unwrap()), "{key} only moved");
    }
    assert!(Arc::ptr_eq(&after.peers["n_c"], &before.peers["n_c"]));
    assert_eq!(*after.peers["n_b"], peer("n_b", 5));
    assert!(after.sections.is_empty());
    let (emptied, corrections) = after.replaced_by(FullState::default());
    assert_eq!(kinds(&corrections), ["data_updated", "secret_refs_updated"]);
    assert!(emptied.data.is_empty() && emptied.peers.is_empty() && emptied.policies.policies.is_empty());
    assert_eq!(emptied.signing_keys, after.signing_keys, "keys that are not named stay");
}

#[test]
fn of_many_entries_only_those_that_went_came_or_moved_are_told_as_drift() {
    let many = |from: u32| (from..10_000).map(|n| data(&format!("k{n:05}"), 1)).collect::<Vec<_>>();
    let before = Desired::default().replaced_by(FullState { data: many(0), ..FullState::default() }).0;
    let (after, corrections) = before.replaced_by(FullState { data: many(1), ..FullState::default() });
    assert_eq!(corrections, [Correction::new(Kind::DataUpdated, "k00000")]);
    let mut moved = many(1);
    moved.rotate_left(1);
    moved.insert(5_000, data("new", 1));
    let (_, corrections) = after.replaced_by(FullState { data: moved, ..FullState::default() });
    assert_eq!(corrections, [Correction::new(Kind::DataUpdated, "k00001, new")]);
}

#[test]
fn many_changed_keys_are_named_in_short() {
    let many = (0..9).map(|n| data(&format!("k{n}"), 1)).collect();
    let (_, corrections) = Desired::default().replaced_by(FullState { data: many, ..FullState::default() });
    assert_eq!(corrections[0].detail, "k0, k1, k2 and 6 more");
}

#[test]
fn peers_stand_or_fall_one_by_one_and_a_refused_one_is_told_once() {
    let bad = Rejected { name: "n_x".to_owned(), reason: "public_key is not base64".to_owned() };
    let with_bad = || FullState { rejected_peers: vec![bad.clone()], ..full() };
    let (after, corrections) = state().replaced_by(with_bad());
    assert_eq!(corrections, [Correction::new(Kind::PeerRejected, "n_x: public_key is not base64")]);
    assert_eq!((after.peers.len(), after.rejected_peers.len()), (2, 1));
    assert_eq!(after.replaced_by(with_bad()).1, []);
    assert!(after.replaced_by(full()).0.rejected_peers.is_empty());
}

#[test]
fn an_invalid_policy_set_leaves_the_old_one_whole_and_is_told_once() {
    let before = state();
    let invalid = || FullState { policies: Err("rule 2: unknown action".to_owned()), ..full() };
    let (after, corrections) = before.replaced_by(invalid());
    assert_eq!(corrections, [Correction::new(Kind::PolicyRejected, "rule 2: unknown action")]);
    assert!(Arc::ptr_eq(&after.policies, &before.policies));
    assert_eq!(after.replaced_by(invalid()).1, []);
    let (valid, corrections) = after.replaced_by(full());
    assert!(valid.policies_rejected.is_none() && corrections.is_empty());
}

#[test]
fn very_many_entries_or_peers_at_once_take_no_more_than_linear_time() {
    let started = std::time::Instant::now();
    let count = 25_000_u32;
    let many = (0..count).map(|n| data(&format!("new {n:06}"), 1)).collect();
    let delta = StateDelta { metadata: BTreeMap::new(), data: many, rejected: Vec::new() };
    let merged = apply(&state(), &Event::NodeStateUpdated(delta)).desired;
    assert_eq!(listed(&merged.data)[state().data.len()..][..2], ["new 000000", "new 000001"]);

    let peers = (0..count).map(|n| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        Peer {
            id: format!("n_{n}").parse().unwrap(),
            public_key: PublicKey::from_bytes(key),
            ..peer("n_x", 9)
        }
    });
    let rotated = merged.rotated_to(PublicKey::from_bytes([8; 32]), peers.collect());
    assert_eq!(rotated.peers.len(), state().peers.len() + 25_000);
    // What is quadratic takes minutes for this.
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn sections_are_replaced_only_by_others() {
    let before = state();
    for sections in [
        BTreeMap::new(),
        BTreeMap::from([("relay_config", raw(r#"{"sessions":[]}"#))]),
        SECTION_NAMES.map(|name| (name, raw("{}"))).into(),
    ] {
        let (after, _) = before.replaced_by(FullState { sections: sections.clone(), ..full() });
        assert_eq!(after.sections.keys().collect::<Vec<_>>(), sections.keys().collect::<Vec<_>>());
        assert!(!after.is_same_as(&before));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_pull_the_state_is_the_answer_in_its_order(first in any_full_state(), second in any_full_state()) {
        let before = Desired::default().replaced_by(first).0;
        let (after, corrections) = before.replaced_by(second.clone());
        let data: Vec<&str> = second.data.iter().map(|entry| entry.key.as_str()).collect();
        prop_assert_eq!(listed(&after.data), data);
        for entry in &second.data {
            prop_assert_eq!(&**after.data.get(&entry.key).unwrap(), entry);
            if let Some(known) = before.data.get(&entry.key).filter(|known| ***known == *entry) {
                prop_assert!(Arc::ptr_eq(known, after.data.get(&entry.key).unwrap()));
            }
        }
        prop_assert_eq!(&*after.metadata, &second.metadata);
        prop_assert_eq!(after.peers.values().map(|peer| Peer::clone(peer)).collect::<Vec<_>>(), {
            let mut peers = second.peers.clone();
            peers.sort_by(|one, other| one.id.cmp(&other.id));
            peers
        });
        let expected = second.policies.as_ref().unwrap_or(&before.policies);
        prop_assert_eq!(&*after.policies, expected);
        let (again, none) = after.replaced_by(second);
        prop_assert!(again.is_same_as(&after) && none.is_empty());
        let data_told = corrections.iter().any(|correction| correction.kind == Kind::DataUpdated);
        prop_assert_eq!(data_told, after.data != before.data);
    }
}
