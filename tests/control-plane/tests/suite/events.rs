//! Event streams: signatures, replay, key rotation.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use plexd_devcp::envelope::{Draft, canonical};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::{Devcp, Event, Node, state_dir};

#[derive(Deserialize)]
struct Envelope {
    event_type: String,
    event_id: String,
    issued_at: String,
    nonce: String,
    payload: Box<RawValue>,
    signature: String,
}

/// Checks an event's signature and that the stream's fields agree with it; returns the envelope.
fn verified(event: &Event, key: &Value) -> Envelope {
    let envelope: Envelope = serde_json::from_str(&event.data).unwrap();
    assert_eq!((&envelope.event_id, &envelope.event_type), (&event.id, &event.kind));
    let text = canonical(&Draft {
        event_type: &envelope.event_type,
        event_id: &envelope.event_id,
        issued_at: &envelope.issued_at,
        nonce: &envelope.nonce,
        payload: &envelope.payload,
    });
    let key = STANDARD.decode(key.as_str().unwrap()).unwrap();
    let key = VerifyingKey::from_bytes(&key.try_into().unwrap()).unwrap();
    let signature = Signature::from_slice(&STANDARD.decode(&envelope.signature).unwrap()).unwrap();
    key.verify_strict(text.as_bytes(), &signature).unwrap();
    envelope
}

async fn send(devcp: &Devcp, node: &Node, body: &str) -> String {
    let answer = devcp.admin(Method::POST, &format!("nodes/{}/events", node.id), Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()["event_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn events_are_signed_fresh_and_numbered() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let mut events = devcp.events(&node, None).await;
    let body = "{\"event_type\":\"something_new\",\"payload\":{\"z\": 1.0,\n \"a\":\"<&>\u{2028}\"}}";
    let first = send(&devcp, &node, body).await;
    let second = send(&devcp, &node, r#"{"event_type":"rotate_keys","payload":null}"#).await;
    let envelopes = [events.next().await.unwrap(), events.next().await.unwrap()]
        .map(|event| verified(&event, &node.answer["signing_public_key"]));
    assert_eq!([&envelopes[0].event_id, &envelopes[1].event_id], [&first, &second]);
    assert!(first < second);
    assert_ne!(envelopes[0].nonce, envelopes[1].nonce);
    assert_eq!(envelopes[0].payload.get(), r#"{"z":1.0,"a":"\u003c\u0026\u003e\u2028"}"#);
    assert_eq!(envelopes[1].payload.get(), "null");
}

#[tokio::test]
async fn a_stream_resumes_after_the_last_event_id() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(send(&devcp, &node, r#"{"event_type":"rotate_keys","payload":{}}"#).await);
    }
    let mut resumed = devcp.events(&node, Some(&ids[0])).await;
    assert_eq!(resumed.next().await.unwrap().id, ids[1]);
    assert_eq!(resumed.next().await.unwrap().id, ids[2]);
    let mut unknown = devcp.events(&node, Some("evt_unknown")).await;
    let mut fresh = devcp.events(&node, None).await;
    let live = send(&devcp, &node, r#"{"event_type":"rotate_keys","payload":{}}"#).await;
    for events in [&mut resumed, &mut unknown, &mut fresh] {
        assert_eq!(events.next().await.unwrap().id, live);
    }
}

#[tokio::test]
async fn a_rotated_signing_key_is_announced_under_the_old_one() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let old = node.answer["signing_public_key"].clone();
    let mut events = devcp.events(&node, None).await;
    let keys = devcp.manage(Method::POST, "signing-key/rotate", &json!({"transition": "1h"})).await;
    assert_eq!(keys["previous"], old);
    assert_ne!(keys["current"], old);
    let announced = events.expect("signing_key_rotated").await;
    verified(&announced, &old);
    assert_eq!(announced.payload(), keys);
    send(&devcp, &node, r#"{"event_type":"rotate_keys","payload":{}}"#).await;
    verified(&events.next().await.unwrap(), &keys["current"]);
    assert_eq!(devcp.state(&node).await["signing_keys"], keys);
    assert_eq!(devcp.enrol("two", 2).await.answer["signing_public_key"], keys["current"]);
}

#[tokio::test]
async fn a_transition_that_is_over_leaves_only_the_current_key() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let keys = devcp.manage(Method::POST, "signing-key/rotate", &json!({"transition": "0s"})).await;
    assert_eq!(devcp.state(&node).await["signing_keys"], json!({"current": keys["current"]}));
}

#[tokio::test]
async fn an_event_that_would_break_the_stream_is_refused() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let path = format!("nodes/{}/events", node.id);
    for bad in [
        r#"{"event_type":"a\ndata: b","payload":{}}"#,
        r#"{"event_type":"","payload":{}}"#,
        r#"{"event_type":"a"}"#,
    ] {
        assert_eq!(
            devcp.admin(Method::POST, &path, Some(bad)).await.status,
            StatusCode::BAD_REQUEST,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn events_that_no_control_plane_would_send_can_be_sent() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let path = format!("nodes/{}/events", node.id);
    let mut events = devcp.events(&node, None).await;
    let key = &node.answer["signing_public_key"];
    let event = |more: Value| {
        let mut event = json!({"event_type": "rotate_keys", "payload": {}});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };

    devcp.manage(Method::POST, &path, &event(json!({"issued_at_offset": -86_400}))).await;
    let stale = verified(&events.next().await.unwrap(), key);
    let issued: jiff::Timestamp = stale.issued_at.parse().unwrap();
    assert_eq!(jiff::Timestamp::now().duration_since(issued).as_hours(), 24);

    devcp.manage(Method::POST, &path, &event(json!({"forged": true}))).await;
    let forged = events.next().await.unwrap();
    let check = std::panic::catch_unwind(|| verified(&forged, key));
    assert!(check.is_err(), "the signature is somebody else's");

    let sent = devcp.manage(Method::POST, &path, &event(json!({}))).await;
    let first = events.next().await.unwrap();
    devcp.manage(Method::POST, &format!("{path}/replay"), &sent).await;
    assert_eq!(events.next().await.unwrap(), first, "byte for byte");
    let unknown = devcp.admin(Method::POST, &format!("{path}/replay"), Some(r#"{"event_id":"evt_x"}"#)).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);

    let both = json!({"events": [event(json!({})), event(json!({}))]});
    let ids = devcp.manage(Method::POST, &format!("{path}/reversed"), &both).await["event_ids"].clone();
    let received = [events.next().await.unwrap(), events.next().await.unwrap()].map(|event| event.id);
    assert_eq!(json!(received), json!([ids[1], ids[0]]));
    let next = devcp.manage(Method::POST, &path, &event(json!({}))).await;
    assert!(next["event_id"].as_str() > ids[1].as_str(), "numbers are not used twice");
}
