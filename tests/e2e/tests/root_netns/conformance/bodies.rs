//! What the node sends has the members of the documents' examples, and what the examples say reaches its place on the node.

use plexd_e2e::wait_until;
use serde_json::{Value, json};

use super::fixture;
use crate::support::{SOON, Single};

/// Keys in place of the examples' placeholders: 32 bytes, base64.
const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const PSK: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

/// Returns the newest body of a kind that the node sent.
#[track_caller]
fn newest(single: &Single, kind: &str) -> Value {
    wait_until(SOON, kind, || {
        let received = single.control_plane.received(&single.a.id);
        received[kind].as_array().and_then(|all| all.last()).map(|last| last["body"].clone())
    })
}

/// Checks that `sent` has the members of `example`, of the same types, but for those in `without`. Lists are compared by
/// their first elements; empty ones say nothing.
#[track_caller]
fn assert_like(sent: &Value, example: &Value, without: &[&str]) {
    match (sent, example) {
        (Value::Object(sent), Value::Object(example)) => {
            let keys = |object: &serde_json::Map<String, Value>| -> Vec<String> {
                object.keys().filter(|key| !without.contains(&key.as_str())).cloned().collect()
            };
            assert_eq!(keys(sent), keys(example));
            for key in keys(example) {
                assert_like(&sent[&key], &example[&key], without);
            }
        }
        (Value::Array(sent), Value::Array(example)) => {
            if let (Some(sent), Some(example)) = (sent.first(), example.first()) {
                assert_like(sent, example, without);
            }
        }
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        (sent, example) => panic!("{sent} where the documents have {example}"),
    }
}

#[test]
fn what_the_node_sends_is_what_the_examples_are() {
    let mut single = Single::settled("node_api:\n  report_debounce: 100ms\n");

    let node = single.control_plane.admin("GET", &format!("/admin/nodes/{}", single.a.id), None);
    let example = fixture("register_request.json");
    assert_like(&node["metadata"], &example["metadata"], &[]);
    assert_like(&node["capabilities"], &example["capabilities"], &[]);

    // Without NAT traversal there is no word of it.
    let heartbeat = newest(&single, "heartbeats");
    assert_like(&heartbeat, &fixture("heartbeat_request.json"), &["nat"]);
    assert_eq!(heartbeat["node_id"], single.a.id.as_str());

    let example = fixture("report_request.json");
    let entry = &example["entries"][0];
    let body = json!({ "content_type": entry["content_type"], "payload": entry["payload"] }).to_string();
    for key in ["old-report-key", "app-health"] {
        let path = format!("/v1/state/report/{key}");
        single.a.node.curl_unix(&path, &["-X", "PUT", "-d", &body]).expect_status(200);
    }
    single.wait_synced(|reports| reports["old-report-key"].is_object() && reports["app-health"].is_object());
    single.a.node.curl_unix("/v1/state/report/old-report-key", &["-X", "DELETE"]);
    single.wait_synced(|reports| reports["old-report-key"].is_null() && reports["app-health"].is_object());
    let sent = single.control_plane.received(&single.a.id);
    assert_eq!(sent["reports_current"]["app-health"]["payload"], entry["payload"]);
    let bodies = sent["reports"].as_array().expect("a list");
    assert!(bodies.iter().any(|sent| sent["body"]["deleted"] == example["deleted"]), "{sent}");
    for sent in bodies {
        assert_like(&sent["body"], &example, &[]);
    }

    single.a.node.host().run(&["nft", "delete table inet plexd"]).expect_success();
    assert_like(&newest(&single, "drift"), &fixture("drift_request.json"), &[]);

    single.a.node.take_core().kill9();
    let told = single.a.node.host().path("/var/lib/plexd/capabilities");
    std::fs::remove_file(told).expect("a registered node has told what it can do");
    single.a.node.start_core();
    assert_like(&newest(&single, "capabilities"), &fixture("capabilities_request.json"), &[]);
}

#[test]
fn the_state_of_the_example_is_in_force_and_served() {
    let single = Single::new("");
    let mut state = fixture("state_response.json");
    state["peers"][0]["public_key"] = json!(KEY);
    state["peers"][0]["psk"] = json!(PSK);
    // So that the peer is somebody this node may speak with.
    let mut policies = state["policies"].clone();
    let own =
        json!({ "src": single.a.id, "dst": "n_peer456", "port": 443, "protocol": "tcp", "action": "allow" });
    policies[0]["rules"].as_array_mut().expect("a list").push(own);
    let members = json!({ "peers": state["peers"], "policies": policies, "metadata": state["metadata"], "data": state["data"] });
    single.control_plane.set_state(&single.a.id, &members);
    for value in ["old", "new"] {
        single.control_plane.set_secret(&single.a.id, "tls-cert", value);
    }

    single.a.wait_wg_peers(1);
    assert_eq!(single.a.wg("allowed-ips"), format!("{KEY}\t10.100.1.2/32\n"));
    assert_eq!(single.a.wg("endpoints"), format!("{KEY}\t203.0.113.10:51820\n"));
    let entry = &state["data"][0];
    let served = single.wait_api("/v1/state/data/database-config", |_| true);
    assert_eq!(&served, entry);
    single.wait_api("/v1/state", |summary| summary["secret_keys"] == state["secret_refs"]);
    for (key, value) in state["metadata"].as_object().expect("an object") {
        let served = single.wait_api(&format!("/v1/state/metadata/{key}"), |_| true);
        assert_eq!(&served["value"], value, "{served}");
    }
    let policies = single.a.node.ctl_json(&["policies"]);
    assert_eq!(policies["policies"][0]["id"], "pol_abc", "{policies}");
    assert_eq!(policies["policies"][0]["rules"][0]["dst"], "10.100.1.5/32", "{policies}");
    let secret = single.a.node.curl_unix("/v1/state/secrets/tls-cert", &[]).with_status(200).json();
    assert_eq!((&secret["value"], &secret["version"]), (&json!("new"), &json!(2)));
}

#[test]
fn the_flags_of_a_heartbeats_answer_are_obeyed() {
    let single = Single::settled("heartbeat:\n  interval: 5s\n");
    let path = format!("/admin/nodes/{}/heartbeat", single.a.id);
    let pulls = single.control_plane.requests("state");
    single.control_plane.admin("PUT", &path, Some(&fixture("heartbeat_response_reconcile.json")));
    wait_until(SOON, "a pull", || single.control_plane.requests("state") > pulls);
    assert_eq!(single.control_plane.requests("rotate"), 0);
    single.control_plane.admin("PUT", &path, Some(&fixture("heartbeat_response_rotate_keys.json")));
    wait_until(SOON, "a rotation", || single.control_plane.requests("rotate") == 1);
    single.wait_well();
}
