//! Each of the 24 events, as an example, signed by the control plane: its effect on the node, or that it is counted as
//! unsupported.

use plexd_e2e::wait_until;
use serde_json::{Value, json};

use super::fixture;
use crate::support::{SOON, Single};

/// What an event does.
enum Effect {
    /// WireGuard has this in what `wg show plexd0 WHAT` prints.
    Shown(&'static str, &'static str),
    /// WireGuard has no peer of this key any more.
    Gone(&'static str),
    /// The policy of this name is in force.
    Policy(&'static str),
    /// The state is pulled.
    Pull,
    /// The node has another key.
    OwnKey,
    /// Nothing that can be seen, but that later events are still accepted.
    Accepted,
    /// It is counted, and nothing else.
    Unsupported,
}

/// Key of the peer of the examples, and the one it changes to.
const KEYS: [&str; 2] =
    ["hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="];

/// The events that need the peer to be there.
const OF_A_PEER: [&str; 2] = ["peer_key_rotated", "peer_endpoint_changed"];

fn effect(event_type: &str) -> Effect {
    match event_type {
        "peer_added" => Effect::Shown("allowed-ips", "10.100.1.2/32"),
        "peer_removed" => Effect::Gone(KEYS[0]),
        "peer_key_rotated" => Effect::Shown("peers", KEYS[1]),
        "peer_endpoint_changed" => Effect::Shown("endpoints", "198.51.100.5:51820"),
        "policy_updated" => Effect::Policy("pol_abc"),
        "rotate_keys" => Effect::OwnKey,
        "signing_key_rotated" => Effect::Accepted,
        "node_state_updated"
        | "node_secrets_updated"
        | "bridge_config_updated"
        | "user_access_config_updated"
        | "ingress_config_updated"
        | "site_to_site_config_updated" => Effect::Pull,
        _ => Effect::Unsupported,
    }
}

fn own_key(single: &Single) -> Value {
    single.a.node.status()["identity"]["public_key"].clone()
}

/// Sends an event and waits until it has been handled.
#[track_caller]
fn send(single: &Single, event_type: &str, payload: &Value) {
    let id = single.control_plane.send_event(&single.a.id, event_type, payload);
    single.a.wait_status(event_type, |status| status["control_plane"]["last_event_id"] == id.as_str());
}

#[track_caller]
fn wait_for(single: &Single, event_type: &str, effect: &Effect, before: &(u64, Value)) {
    wait_until(SOON, &format!("the effect of {event_type}"), || {
        let (seen, told) = match effect {
            Effect::Shown(what, text) => {
                let shown = single.a.wg(what);
                (shown.contains(text), shown)
            }
            Effect::Gone(key) => {
                let peers = single.a.wg("peers");
                (!peers.contains(key), peers)
            }
            Effect::Policy(id) => {
                let policies = single.a.node.ctl_json(&["policies"]).to_string();
                (policies.contains(id), policies)
            }
            Effect::Pull => {
                let pulls = single.control_plane.requests("state");
                (pulls > before.0, format!("{pulls} pulls"))
            }
            Effect::OwnKey => {
                let key = own_key(single);
                (key != before.1, key.to_string())
            }
            Effect::Accepted => (true, String::new()),
            Effect::Unsupported => {
                let status = single.a.node.status();
                let counts = &status["control_plane"]["events_unsupported"];
                (counts[event_type] == 1, status.to_string())
            }
        };
        if seen { Ok(()) } else { Err(told) }
    });
}

#[test]
fn every_event_has_its_effect_or_is_counted() {
    let single = Single::new("");
    let anything = json!([{ "id": "all", "rules": [{ "src": "*", "dst": "*", "action": "allow" }] }]);
    single.control_plane.set_state(&single.a.id, &json!({ "policies": anything }));
    single.a.wait_status("the policy", |status| status["policy"]["rules"] == 1);
    let accepted = single.a.node.status()["control_plane"]["events_accepted"].as_u64().unwrap_or_default();

    let examples = fixture("events.json");
    let examples = examples.as_array().expect("a list");
    assert_eq!(examples.len(), 24);
    let mut sent = 0;
    for example in examples {
        let event_type = example["event_type"].as_str().expect("a name");
        if OF_A_PEER.contains(&event_type) {
            send(&single, "peer_added", &examples[0]["payload"]);
            wait_for(&single, "peer_added", &Effect::Shown("peers", KEYS[0]), &(0, Value::Null));
            sent += 1;
        }
        let before = (single.control_plane.requests("state"), own_key(&single));
        send(&single, event_type, &example["payload"]);
        wait_for(&single, event_type, &effect(event_type), &before);
        sent += 1;
    }

    let status = single.a.node.status();
    let events = &status["control_plane"];
    assert_eq!(events["events_rejected"], json!({}), "{status}");
    assert!(events["events_accepted"].as_u64() >= Some(accepted + sent), "{status}");
    assert_eq!(events["events_unsupported"].as_object().map(serde_json::Map::len), Some(11), "{status}");
    single.wait_well();
}

#[test]
fn an_event_that_is_not_in_the_documents_is_counted_and_the_stream_goes_on() {
    let single = Single::new("");
    send(&single, "something_new", &json!({ "any": ["thing"] }));
    send(&single, "session_revoked", &json!({ "session_id": "s" }));
    let status = single.a.node.status();
    let unsupported = json!({ "something_new": 1, "session_revoked": 1 });
    assert_eq!(status["control_plane"]["events_unsupported"], unsupported, "{status}");
    assert_eq!(status["control_plane"]["stream"], "connected");
}

#[test]
fn a_payload_that_is_not_what_its_type_calls_for_is_refused_whole_and_the_state_is_pulled() {
    let single = Single::new("");
    let payloads = [
        ("peer_added", json!({ "id": "n_1", "public_key": "short", "mesh_ip": "10.100.1.2" })),
        ("peer_removed", json!(null)),
        ("peer_key_rotated", json!({ "peer_id": "n_1" })),
        ("peer_endpoint_changed", json!({ "peer_id": "n_1", "endpoint": "nowhere" })),
        ("signing_key_rotated", json!({})),
        ("node_state_updated", json!([])),
        ("node_secrets_updated", json!({ "secret_refs": [{ "version": 1 }] })),
    ];
    for (sent, (event_type, payload)) in (1..).zip(&payloads) {
        let pulls = single.control_plane.requests("state");
        send(&single, event_type, payload);
        wait_for(&single, event_type, &Effect::Pull, &(pulls, Value::Null));
        let status = single.a.node.status();
        assert_eq!(status["control_plane"]["events_rejected"], json!({ "payload": sent }), "{event_type}");
    }
    // A set of policies that is none asks for the state, too, and is not refused.
    let pulls = single.control_plane.requests("state");
    send(&single, "policy_updated", &json!("changed"));
    wait_for(&single, "policy_updated", &Effect::Pull, &(pulls, Value::Null));
    single.wait_well();
}
