//! State that changes: writes that show at once, a stream that lags, a core that goes away, watchers, large updates,
//! and an orderly end.

use std::time::Duration;

use plexd_proto::node::v1::change::Change as Wire;

use crate::client::Client;
use crate::node::{Node, Setup, data, metadata, registered, secret};

const PATH: &str = "/v1/state/report/k";
const BODY: &str = r#"{"content_type":"x","payload":1}"#;

#[tokio::test]
async fn a_write_shows_at_once_though_the_stream_is_silent() {
    let node = Node::start().await;
    node.core.store().lagging = true;
    let (mut writer, mut reader) = (node.client(), node.client());
    for version in 1..=5 {
        assert_eq!(writer.put(PATH, &[], BODY).await.json()["version"], version);
        assert_eq!(reader.get(PATH).await.json()["version"], version);
        assert_eq!(
            reader.get("/v1/state/report").await.body,
            format!(r#"[{{"key":"k","version":{version}}}]"#)
        );
    }
    // The stream tells of the past: a version that was, and then what is.
    let old = node.core.store().reports["k"].clone();
    let stale = plexd_proto::node::v1::ReportEntry { version: 2, revision: 2, ..old };
    node.core.tell(false, vec![Wire::Report(stale), metadata(&[("seen", "1")])], true);
    node.until("/v1/state/metadata/seen", |answer| answer.status == 200).await;
    assert_eq!(reader.get(PATH).await.json()["version"], 5, "never back");
    assert_eq!(writer.request("DELETE", PATH, &[], None).await.status, 204);
    reader.get(PATH).await.is_error(404, "not found");
}

#[tokio::test]
async fn reads_go_on_while_core_is_away_and_say_so() {
    let state = [registered(), vec![data("d", 1, "x", "1", 0), secret("s", 1, 0)]].concat();
    let mut node = Setup { state, ..Setup::default() }.start().await;
    let mut client = node.client();
    client.put(PATH, &[], BODY).await;
    assert_eq!(client.get("/v1/state").await.header("plexd-state-age"), None);

    node.core.kill();
    let answer = node.until("/v1/state", |answer| answer.header("plexd-state-age").is_some()).await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("plexd-state-age").unwrap().parse::<u64>().is_ok());
    for path in ["/v1/state/data/d", "/v1/state/metadata", "/v1/state/secrets", PATH] {
        let answer = client.get(path).await;
        assert!(answer.status == 200 && answer.header("plexd-state-age").is_some(), "{path}: {answer:?}");
    }
    let etag = client.get("/v1/state").await.header("etag").unwrap().to_owned();
    let same = client.get_with("/v1/state", &[&format!("If-None-Match: {etag}")]).await;
    assert!(same.status == 304 && same.header("plexd-state-age").is_some());
    client.put(PATH, &[], BODY).await.is_error(503, "core unavailable");
    client.request("DELETE", PATH, &[], None).await.is_error(503, "core unavailable");
    client.get("/v1/state/secrets/s").await.is_error(503, "core unavailable");

    node.core.store().state.push(data("new", 1, "x", "2", 1));
    node.core.start();
    node.until("/v1/state/data/new", |answer| answer.status == 200).await;
    let answer = client.get("/v1/state").await;
    assert_eq!((answer.status, answer.header("plexd-state-age")), (200, None));
    assert_eq!(client.put(PATH, &[], BODY).await.json()["version"], 2);
}

#[tokio::test]
async fn without_any_state_reads_are_unavailable() {
    let mut node = Setup { core: false, ..Setup::default() }.start().await;
    let mut client = node.client();
    for path in ["/v1/state", "/v1/state/data", "/v1/state/data/k", "/v1/state/watch", "/readyz"] {
        let answer = client.get(path).await;
        answer.is_error(503, "core unavailable");
        assert_eq!(answer.header("plexd-state-age"), None);
    }
    client.put(PATH, &[], BODY).await.is_error(503, "core unavailable");
    assert_eq!(client.get("/healthz").await.status, 200);
    node.core.start();
    node.until("/readyz", |answer| answer.status == 200).await;
}

#[tokio::test]
async fn a_node_that_is_not_registered_says_so() {
    let node = Setup { state: Vec::new(), ..Setup::default() }.start().await;
    let mut client = node.client();
    client.get("/v1/state").await.is_error(503, "node not registered");
    client.get("/v1/state/metadata/k").await.is_error(503, "node not registered");
    node.core.tell(false, registered(), true);
    node.until("/v1/state", |answer| answer.status == 200).await;
    // Deregistered: a new snapshot without a node.
    node.core.tell(true, Vec::new(), true);
    node.until("/v1/state", |answer| answer.body.contains("node not registered")).await;
}

#[tokio::test]
async fn half_a_change_never_shows() {
    let state = [registered(), vec![data("a", 1, "x", "1", 0), data("b", 1, "x", "1", 1)]].concat();
    let node = Setup { state, ..Setup::default() }.start().await;
    let mut client = node.client();
    let before = client.get("/v1/state/data").await.body;
    node.core.tell(true, vec![data("c", 1, "x", "1", 0)], false);
    for _ in 0..20 {
        assert_eq!(client.get("/v1/state/data").await.body, before);
    }
    node.core.tell(false, registered(), true);
    let after = node.until("/v1/state/data", |answer| answer.body != before).await;
    assert_eq!(after.body, r#"[{"key":"c","version":1,"content_type":"x"}]"#);
}

#[tokio::test]
async fn readers_are_served_amid_an_update_of_10_000_entries() {
    let node = Node::start().await;
    let payload = format!("\"{}\"", "x".repeat(1024));
    for piece in 0..10u64 {
        let changes = (0..1000)
            .map(|n| data(&format!("k{}", piece * 1000 + n), 1, "text/plain", &payload, piece * 1000 + n))
            .collect();
        node.core.tell(false, changes, piece == 9);
    }
    let mut client = node.client();
    let mut reads = 0;
    loop {
        let answer = client.get("/v1/state/data").await;
        if answer.body != "[]" {
            assert_eq!(answer.json().as_array().map(Vec::len), Some(10_000), "whole or not at all");
            break;
        }
        reads += 1;
    }
    assert!(reads > 50, "{reads} reads while the update came in");
    assert_eq!(client.get("/v1/state/data/k9999").await.status, 200);
}

async fn watch(node: &Node) -> Client {
    let mut client = node.client();
    client.send("GET /v1/state/watch HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let head = client.head().await.unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    assert!(client.until("\n\n").await.unwrap().ends_with(": watching\n\n"));
    client
}

/// Reads events until one says `last`; returns them without the chunks' framing.
async fn events(client: &mut Client, last: &str) -> Vec<String> {
    let mut events = Vec::new();
    loop {
        let text = client.until("\n\n").await.expect("another event");
        let event = text[text.find("event: ").unwrap()..].trim_end().to_owned();
        let done = event.contains(last);
        events.push(event);
        if done {
            return events;
        }
    }
}

#[tokio::test]
async fn watchers_are_told_of_every_change() {
    let state = [
        registered(),
        vec![metadata(&[("m", "1"), ("gone", "1")]), data("a", 1, "x", "1", 0), secret("s", 1, 0)],
    ]
    .concat();
    let node = Setup { state, ..Setup::default() }.start().await;
    let mut client = watch(&node).await;
    let changes = vec![
        metadata(&[("m", "2")]),
        Wire::DataDeleted("a".into()),
        data("b\n", 4, "x", "1", 1),
        secret("s", 2, 0),
    ];
    node.core.tell(false, changes, true);
    assert_eq!(
        events(&mut client, "secret").await,
        [
            "event: metadata\ndata: {\"key\":\"m\"}",
            "event: metadata\ndata: {\"key\":\"gone\",\"deleted\":true}",
            "event: data\ndata: {\"key\":\"a\",\"version\":1,\"deleted\":true}",
            "event: data\ndata: {\"key\":\"b\\n\",\"version\":4}",
            "event: secret\ndata: {\"key\":\"s\",\"version\":2}",
        ]
    );
    let mut writer = node.client();
    writer.put(PATH, &[], BODY).await;
    assert_eq!(events(&mut client, "report").await, ["event: report\ndata: {\"key\":\"k\",\"version\":1}"]);
    writer.request("DELETE", PATH, &[], None).await;
    assert_eq!(
        events(&mut client, "report").await,
        ["event: report\ndata: {\"key\":\"k\",\"version\":1,\"deleted\":true}"]
    );
}

#[tokio::test]
async fn a_restart_of_core_is_no_event_and_what_it_changed_is() {
    let state = [registered(), vec![data("a", 1, "x", "1", 0), data("b", 1, "x", "1", 1)]].concat();
    let mut node = Setup { state, ..Setup::default() }.start().await;
    let mut client = watch(&node).await;
    node.core.kill();
    node.until("/v1/state", |answer| answer.header("plexd-state-age").is_some()).await;
    node.core.store().state.pop();
    node.core.store().state.push(data("b", 2, "x", "1", 1));
    node.core.start();
    assert_eq!(events(&mut client, "data").await, ["event: data\ndata: {\"key\":\"b\",\"version\":2}"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_shows_that_it_is_alive_and_is_not_idle() {
    let node = Node::start().await;
    let mut client = watch(&node).await;
    let start = tokio::time::Instant::now();
    for _ in 0..20 {
        let text =
            tokio::time::timeout(Duration::from_secs(16), client.until("\n\n")).await.unwrap().unwrap();
        assert!(text.ends_with(": alive\n\n"), "{text:?}");
    }
    assert!(start.elapsed() > Duration::from_secs(290));
}

#[tokio::test]
async fn stopping_ends_watches_and_idle_connections_at_once() {
    let node = Node::start().await;
    let mut watcher = watch(&node).await;
    let mut idle = node.client();
    assert_eq!(idle.get("/healthz").await.status, 200);
    node.shutdown.cancel();
    assert!(watcher.closed().await && idle.closed().await);
    tokio::time::timeout(Duration::from_secs(10), node.server.finished()).await.unwrap();
}
