//! Faults on purpose, and the way back from each.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Devcp, state_dir};

#[tokio::test]
async fn a_status_or_garbage_replaces_the_answer_of_the_named_endpoint_only() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    devcp.manage(Method::PUT, "faults", &json!({"endpoint": "state", "status": 503})).await;
    let failed = devcp.get(&node, "state").await;
    assert_eq!((failed.status, failed.error().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "injected fault"));
    assert_eq!(devcp.get(&node, "secrets/k").await.status, StatusCode::NOT_FOUND, "works as ever");
    devcp.manage(Method::PUT, "faults", &json!({"endpoint": "state", "garbage": true})).await;
    let garbage = devcp.get(&node, "state").await;
    assert_eq!(garbage.status, StatusCode::OK);
    assert!(serde_json::from_slice::<serde_json::Value>(&garbage.body).is_err());
    devcp.admin(Method::DELETE, "faults", None).await;
    assert!(devcp.state(&node).await.is_object());
}

#[tokio::test]
async fn latency_delays_the_answer() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    devcp.manage(Method::PUT, "faults", &json!({"latency_ms": 300})).await;
    let begun = Instant::now();
    assert_eq!(devcp.get(&node, "state").await.status, StatusCode::OK);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn dropped_streams_are_cut_and_resume_where_they_were() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let rotate = json!({"event_type": "rotate_keys", "payload": {}});
    let path = format!("nodes/{}/events", node.id);
    let mut events = devcp.events(&node, None).await;
    devcp.manage(Method::POST, &path, &rotate).await;
    let last = events.next().await.unwrap().id;
    devcp.manage(Method::PUT, "faults", &json!({"drop_streams": true})).await;
    assert!(events.next().await.is_none(), "cut");
    assert!(devcp.events(&node, None).await.next().await.is_none(), "new ones end at once");
    assert_eq!(devcp.get(&node, "state").await.status, StatusCode::OK, "only streams");
    let missed = devcp.manage(Method::POST, &path, &rotate).await;
    devcp.admin(Method::DELETE, "faults", None).await;
    let mut resumed = devcp.events(&node, Some(&last)).await;
    assert_eq!(resumed.next().await.unwrap().id, missed["event_id"]);
}

#[tokio::test]
async fn refused_connections_close_open_and_new_ones() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let mut events = devcp.events(&node, None).await;
    devcp.manage(Method::PUT, "faults", &json!({"refuse_connections": true})).await;
    assert!(events.next().await.is_none());
    assert!(devcp.as_node(&node, Method::GET, "state").send().await.is_err());
    devcp.admin(Method::DELETE, "faults", None).await;
    assert_eq!(devcp.get(&node, "state").await.status, StatusCode::OK);
}

#[tokio::test]
async fn answers_are_spoiled_and_what_was_asked_is_done() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let whole = devcp.get(&node, "state").await.body;
    let set = async |rule: Value| devcp.manage(Method::PUT, "faults", &rule).await;

    set(json!({"endpoint": "state", "pad_to": 70_000_000})).await;
    let padded = devcp.get(&node, "state").await.body;
    assert_eq!((padded.len(), padded.trim_ascii_end()), (70_000_000, &*whole));

    set(json!({"endpoint": "state", "truncate": "clean"})).await;
    assert_eq!(devcp.get(&node, "state").await.body, whole.slice(..whole.len() / 2));
    set(json!({"endpoint": "state", "truncate": "broken"})).await;
    let broken = devcp.as_node(&node, Method::GET, "state").send().await.unwrap();
    assert_eq!(broken.content_length(), Some(whole.len() as u64));
    assert!(broken.bytes().await.is_err(), "the connection ends first");

    set(json!({"endpoint": "state", "wrong_type": true})).await;
    let page = devcp.as_node(&node, Method::GET, "state").send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");

    set(json!({"endpoint": "state", "gzip_bomb": true})).await;
    let bomb = devcp.as_node(&node, Method::GET, "state").send().await.unwrap();
    assert_eq!(bomb.headers()["content-encoding"], "gzip");
    assert!(bomb.bytes().await.unwrap().starts_with(&[0x1f, 0x8b]));

    set(json!({"endpoint": "state", "status": 429, "retry_after": {"seconds": 7}})).await;
    let limited = devcp.as_node(&node, Method::GET, "state").send().await.unwrap();
    assert_eq!((limited.status().as_u16(), &limited.headers()["retry-after"]), (429, &"7".parse().unwrap()));

    let rates = devcp.admin(Method::GET, "rates", None).await.json();
    let seconds = rates.as_object().unwrap().values();
    let counted: u64 = seconds.filter_map(|second| second["requests"]["state"].as_u64()).sum();
    assert_eq!(counted, 7, "what is not answered well is counted, too");
}

#[tokio::test]
async fn another_certificate_ends_open_connections_and_only_its_authority_is_trusted() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let mut events = devcp.events(&node, None).await;
    devcp.manage(Method::POST, "certificate", &json!({"issuer": "stranger"})).await;
    assert!(events.next().await.is_none());
    assert!(devcp.as_node(&node, Method::GET, "state").send().await.is_err());
    devcp.manage(Method::POST, "certificate", &json!({"issuer": "own"})).await;
    assert_eq!(devcp.get(&node, "state").await.status, StatusCode::OK);
    let refused = devcp.admin(Method::POST, "certificate", Some(r#"{"issuer":"nobody"}"#)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn rules_that_make_no_sense_are_refused() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    for bad in [r#"{"endpoint":"nowhere"}"#, r#"{"latncy_ms":1}"#, r#"{"status":1000}"#, "x"] {
        let refused = devcp.admin(Method::PUT, "faults", Some(bad)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let wrong = devcp.admin(Method::GET, "faults", None).await;
    assert_eq!((wrong.status, wrong.allow.as_deref()), (StatusCode::METHOD_NOT_ALLOWED, Some("PUT, DELETE")));
    assert_eq!(devcp.admin(Method::GET, "nothing", None).await.status, StatusCode::NOT_FOUND);
}
