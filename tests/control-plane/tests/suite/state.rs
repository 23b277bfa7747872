//! What an administrator sets, as a node gets it: state, events that announce it, secrets.

use aes_gcm::aead::Aead as _;
use aes_gcm::{Aes256Gcm, Key, KeyInit as _, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Devcp, Node, answer, state_dir};

async fn set(devcp: &Devcp, node: &Node, body: &str) -> Value {
    let answer = devcp.admin(Method::PUT, &format!("nodes/{}/state", node.id), Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn a_state_has_the_documented_members_and_optional_ones_only_when_set() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let names = |state: &Value| state.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let state = devcp.state(&node).await;
    assert_eq!(names(&state), ["data", "peers", "policies", "secret_refs", "signing_keys"]);
    assert_eq!(state["signing_keys"], json!({"current": node.answer["signing_public_key"]}));
    set(&devcp, &node, r#"{"metadata":{"a":"b"},"bridge_config":{"enable_nat":true},"relay_config":null}"#)
        .await;
    let state = devcp.state(&node).await;
    assert_eq!(
        names(&state),
        ["bridge_config", "data", "metadata", "peers", "policies", "secret_refs", "signing_keys"]
    );
    set(&devcp, &node, r#"{"bridge_config":null}"#).await;
    assert!(devcp.state(&node).await.get("bridge_config").is_none());
}

#[tokio::test]
async fn what_is_set_is_announced() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let mut events = devcp.events(&node, None).await;
    set(&devcp, &node, r#"{"metadata":{"region":"eu"}}"#).await;
    let payload = events.expect("node_state_updated").await.payload();
    assert_eq!(payload, json!({"metadata": {"region": "eu"}, "data": []}));
    set(&devcp, &node, r#"{"data":[{"key":"a","payload":1}]}"#).await;
    let payload = events.expect("node_state_updated").await.payload();
    assert_eq!((&payload["metadata"]["region"], &payload["data"][0]["key"]), (&json!("eu"), &json!("a")));
    let policies = json!([{"id": "pol_1", "rules": [{"src": "*", "dst": "*", "port": 443, "protocol": "tcp", "action": "allow"}]}]);
    set(&devcp, &node, &json!({"policies": policies}).to_string()).await;
    assert_eq!(events.expect("policy_updated").await.payload(), json!({"policies": policies}));
    let sections = ["bridge_config", "user_access_config", "ingress_config", "site_to_site_config"];
    for section in sections {
        set(&devcp, &node, &json!({section: {"enabled": true}}).to_string()).await;
        let announced = events.expect(&format!("{section}_updated")).await;
        assert_eq!(announced.payload(), json!({"enabled": true}));
    }
    set(&devcp, &node, r#"{"relay_config":{"sessions":[{"session_id":"s1"}]}}"#).await;
    assert_eq!(events.expect("relay_session_assigned").await.payload(), json!({"session_id": "s1"}));
    set(&devcp, &node, r#"{"relay_config":null}"#).await;
    assert_eq!(events.expect("relay_session_revoked").await.payload(), json!({"session_id": "s1"}));
}

#[tokio::test]
async fn payloads_are_served_byte_for_byte() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let payload = "{ \"z\": 1.0,\n\t\"a\": [9007199254740993, 1e3, \"\\u00e9\\/\"] }";
    set(
        &devcp,
        &node,
        &format!(r#"{{"data":[{{"key":"a","content_type":"application/json","payload":{payload}}}]}}"#),
    )
    .await;
    let body = devcp.get(&node, "state").await.text();
    assert!(body.contains(payload), "{body}");
    let entry = &devcp.state(&node).await["data"][0];
    assert_eq!((&entry["version"], &entry["content_type"]), (&json!(1), &json!("application/json")));
}

#[tokio::test]
async fn an_unchanged_state_is_not_sent_again() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let etag = devcp.get(&node, "state").await.etag.unwrap();
    let conditional = || devcp.as_node(&node, Method::GET, "state").header("if-none-match", &etag);
    let unchanged = answer(conditional()).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (StatusCode::NOT_MODIFIED, 0));
    set(&devcp, &node, r#"{"metadata":{"a":"b"}}"#).await;
    let changed = answer(conditional()).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_ne!(changed.etag.unwrap(), etag);
}

#[tokio::test]
async fn peers_can_be_overridden_with_wrong_ones_and_given_back() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let (one, two) = (devcp.enrol("one", 1).await, devcp.enrol("two", 2).await);
    let mut events = devcp.events(&one, None).await;
    let bad = json!({"id": "n_bad", "public_key": "AAAA", "endpoint": "1.2.3.4:1"});
    let sent = set(&devcp, &one, &json!({"peers": [bad, 7]}).to_string()).await;
    assert_eq!(sent["events"].as_array().unwrap().len(), 3);
    assert_eq!(events.expect("peer_removed").await.payload(), json!({"peer_id": two.id}));
    assert_eq!(events.expect("peer_added").await.payload(), bad);
    assert_eq!(events.expect("peer_added").await.payload(), json!(7));
    assert_eq!(devcp.state(&one).await["peers"], json!([bad, 7]));
    let mut moved = bad.clone();
    moved["endpoint"] = json!("1.2.3.4:2");
    set(&devcp, &one, &json!({"peers": [moved, 7]}).to_string()).await;
    let changed = events.expect("peer_endpoint_changed").await.payload();
    assert_eq!(changed, json!({"peer_id": "n_bad", "endpoint": "1.2.3.4:2"}));
    devcp.enrol("three", 3).await;
    set(&devcp, &one, r#"{"peers":null}"#).await;
    assert_eq!(events.expect("peer_removed").await.payload(), json!({"peer_id": "n_bad"}));
    events.expect("peer_added").await;
    events.expect("peer_added").await;
    assert_eq!(devcp.state(&one).await["peers"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_state_that_cannot_be_stored_changes_nothing() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let path = format!("nodes/{}/state", node.id);
    for bad in [
        r#"{"metadata":{"a":"b"},"unknown":1}"#,
        r#"{"metadata":{"a":"b"},"secret_refs":[]}"#,
        r#"{"metadata":{"a":"b"},"signing_keys":{}}"#,
        r#"{"metadata":{"a":"b"},"data":{}}"#,
        r#"{"metadata":{"a":"b"},"data":[{"key":"a"}]}"#,
        "[]",
        "{",
    ] {
        let refused = devcp.admin(Method::PUT, &path, Some(bad)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
        assert!(!refused.error().is_empty());
    }
    assert!(devcp.state(&node).await.get("metadata").is_none());
    let unknown = devcp.admin(Method::PUT, "nodes/n_unknown/state", Some("{}")).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}

fn open(node: &Node, answer: &Value) -> String {
    let bytes = |name: &str| STANDARD.decode(answer[name].as_str().unwrap()).unwrap();
    let key: [u8; 32] = STANDARD.decode(&node.secret).unwrap().try_into().unwrap();
    let nonce: [u8; 12] = bytes("nonce").try_into().unwrap();
    let plain = Aes256Gcm::new(&Key::<Aes256Gcm>::from(key))
        .decrypt(&Nonce::from(nonce), bytes("ciphertext").as_slice())
        .unwrap();
    String::from_utf8(plain).unwrap()
}

#[tokio::test]
async fn secrets_decrypt_with_the_nodes_key_and_are_announced_without_their_value() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let mut events = devcp.events(&node, None).await;
    let path = format!("nodes/{}/secrets/tls%2Fserver.key", node.id);
    devcp.manage(Method::PUT, &path, &json!({"value": "first"})).await;
    let refs = events.expect("node_secrets_updated").await.payload();
    assert_eq!(refs, json!({"secret_refs": [{"key": "tls/server.key", "version": 1}]}));
    devcp.manage(Method::PUT, &path, &json!({"value": "s3cret-p@ssw0rd"})).await;
    let fetched = devcp.get(&node, "secrets/tls%2Fserver.key").await.json();
    assert_eq!((&fetched["key"], &fetched["version"]), (&json!("tls/server.key"), &json!(2)));
    assert_eq!(open(&node, &fetched), "s3cret-p@ssw0rd");
    let again = devcp.get(&node, "secrets/tls%2Fserver.key").await.json();
    assert_ne!(again["nonce"], fetched["nonce"]);
    assert_eq!(devcp.state(&node).await["secret_refs"], json!([{"key": "tls/server.key", "version": 2}]));
    assert_eq!(devcp.admin(Method::DELETE, &path, None).await.status, StatusCode::OK);
    assert_eq!(devcp.admin(Method::DELETE, &path, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(devcp.get(&node, "secrets/tls%2Fserver.key").await.status, StatusCode::NOT_FOUND);
    events.expect("node_secrets_updated").await;
    assert_eq!(events.expect("node_secrets_updated").await.payload(), json!({"secret_refs": []}));
}
