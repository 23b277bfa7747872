//! The examples of the guide, request by request, on a state that makes their answers exact, and what the contract
//! adds to reads: conditional requests, `HEAD`, bytes as they were sent.

use plexd_proto::node::v1::change::Change as Wire;
use serde_json::{Value, json};

use crate::client::Client;
use crate::node::{Node, Setup, TOKEN, data, metadata, registered, secret};

fn guide_state() -> Vec<Wire> {
    let mut state = registered();
    state.extend([
        metadata(&[("node_id", "edge-us-west-42"), ("region", "us-west-2"), ("role", "gateway")]),
        data("nginx.conf", 3, "text/plain", "\"worker_processes 1;\"", 0),
        data("routes.json", 1, "application/json", r#"{ "default_backend": "10.0.0.5:8080" }"#, 1),
        secret("tls/server.key", 1, 0),
        secret("db/password", 2, 1),
    ]);
    state
}

async fn guide_node() -> Node {
    let node = Setup { state: guide_state(), ..Setup::default() }.start().await;
    let mut store = node.core.store();
    store.secrets.insert("db/password".into(), Ok(("s3cret-p@ssw0rd", 2)));
    store.times = vec!["2025-06-01T13:00:00Z", "2025-06-01T13:05:00Z"];
    drop(store);
    node
}

async fn get(client: &mut Client, path: &str) -> Value {
    let answer = client.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

const HEALTHY: &str = r#"{
"content_type": "application/json",
"payload": { "status": "healthy", "uptime_s": 86400 }
}"#;
const DEGRADED: &str = r#"{
"content_type": "application/json",
"payload": { "status": "degraded", "uptime_s": 90000 }
}"#;

#[tokio::test]
async fn reading_node_state() {
    let node = guide_node().await;
    let mut client = node.client();
    for _ in 0..5 {
        client.put("/v1/state/report/health", &[], HEALTHY).await;
    }
    let answer = client.get("/v1/state").await;
    assert_eq!(
        answer.body,
        concat!(
            r#"{"metadata":{"node_id":"edge-us-west-42","region":"us-west-2","role":"gateway"},"#,
            r#""data_keys":[{"key":"nginx.conf","version":3,"content_type":"text/plain"},"#,
            r#"{"key":"routes.json","version":1,"content_type":"application/json"}],"#,
            r#""secret_keys":[{"key":"tls/server.key","version":1},{"key":"db/password","version":2}],"#,
            r#""report_keys":[{"key":"health","version":5}]}"#
        )
    );
    assert_eq!(
        get(&mut client, "/v1/state/metadata").await,
        json!({"node_id": "edge-us-west-42", "region": "us-west-2", "role": "gateway"})
    );
    assert_eq!(client.get("/v1/state/metadata/region").await.body, r#"{"key":"region","value":"us-west-2"}"#);
    client.get("/v1/state/metadata/none").await.is_error(404, "not found");
    assert_eq!(
        client.get("/v1/state/data").await.body,
        concat!(
            r#"[{"key":"nginx.conf","version":3,"content_type":"text/plain"},"#,
            r#"{"key":"routes.json","version":1,"content_type":"application/json"}]"#
        )
    );
    let answer = client.get("/v1/state/data/routes.json").await;
    assert_eq!(
        answer.body,
        r#"{"key":"routes.json","content_type":"application/json","payload":{ "default_backend": "10.0.0.5:8080" },"version":1,"updated_at":"2025-06-01T12:34:56Z"}"#
    );
    assert_eq!(answer.header("etag"), Some("\"1\""));
}

#[tokio::test]
async fn reading_secrets() {
    let node = guide_node().await;
    let mut client = node.client();
    assert_eq!(
        client.get("/v1/state/secrets").await.body,
        r#"[{"key":"tls/server.key","version":1},{"key":"db/password","version":2}]"#
    );
    let answer = client.get("/v1/state/secrets/db%2Fpassword").await;
    assert_eq!(answer.body, r#"{"key":"db/password","value":"s3cret-p@ssw0rd","version":2}"#);
    assert_eq!((answer.header("etag"), answer.header("cache-control")), (Some("\"2\""), Some("no-store")));
    let answer = client.get_with("/v1/state/secrets/db%2Fpassword", &["If-None-Match: \"2\""]).await;
    assert_eq!((answer.status, answer.body.as_str()), (304, ""));
}

#[tokio::test]
async fn managing_report_entries() {
    let node = guide_node().await;
    let mut client = node.client();
    let path = "/v1/state/report/health";
    let created = client.put(path, &[], HEALTHY).await;
    assert_eq!(
        (created.status, created.body.as_str()),
        (
            200,
            r#"{"key":"health","content_type":"application/json","payload":{ "status": "healthy", "uptime_s": 86400 },"version":1,"updated_at":"2025-06-01T13:00:00Z"}"#
        )
    );
    assert_eq!(created.header("etag"), Some("\"1\""));
    let updated = client.put(path, &["If-Match: 1"], DEGRADED).await;
    assert_eq!(
        updated.body,
        r#"{"key":"health","content_type":"application/json","payload":{ "status": "degraded", "uptime_s": 90000 },"version":2,"updated_at":"2025-06-01T13:05:00Z"}"#
    );
    client.put(path, &["If-Match: 1"], DEGRADED).await.is_error(409, "version conflict");
    client.put(path, &["If-Match: 0"], DEGRADED).await.is_error(409, "version conflict");
    assert_eq!(client.get(path).await.body, updated.body);
    assert_eq!(client.put("/v1/state/report/inventory", &["If-Match: \"0\""], HEALTHY).await.status, 200);
    assert_eq!(
        client.get("/v1/state/report").await.body,
        r#"[{"key":"health","version":2},{"key":"inventory","version":1}]"#
    );
    client.request("DELETE", path, &["If-Match: 7"], None).await.is_error(409, "version conflict");
    let deleted = client.request("DELETE", path, &["If-Match: \"2\""], None).await;
    assert_eq!((deleted.status, deleted.body.as_str()), (204, ""));
    client.request("DELETE", path, &[], None).await.is_error(404, "not found");
    client.get(path).await.is_error(404, "not found");
    let again = client.put(path, &[], HEALTHY).await;
    assert_eq!(again.json()["version"], 3, "versions do not go back over a deletion");
}

#[tokio::test]
async fn using_the_tcp_listener() {
    let node = guide_node().await;
    let mut client = node.connect_tcp().await;
    let token = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(client.get_with("/v1/state", &[&token]).await.status, 200);
    let body = r#"{"content_type":"application/json","payload":{"status":"healthy"}}"#;
    let answer = client.put("/v1/state/report/health", &[&token], body).await;
    assert_eq!(answer.json()["payload"], json!({"status": "healthy"}));
    client.get("/v1/state").await.is_error(401, "unauthorized");
    client.get_with("/v1/state", &["Authorization: Bearer wrong"]).await.is_error(401, "unauthorized");
}

#[tokio::test]
async fn reads_are_conditional_on_etags() {
    let node = guide_node().await;
    let mut client = node.client();
    for path in [
        "/v1/state",
        "/v1/state/metadata",
        "/v1/state/metadata/role",
        "/v1/state/data",
        "/v1/state/data/nginx.conf",
        "/v1/state/secrets",
        "/v1/state/report",
    ] {
        let etag = client.get(path).await.header("etag").unwrap_or_default().to_owned();
        let header = format!("If-None-Match: \"x\", W/{etag}");
        let same = client.get_with(path, &[&header]).await;
        assert_eq!(
            (same.status, same.body.as_str(), same.header("etag")),
            (304, "", Some(etag.as_str())),
            "{path}"
        );
        let other = client.get_with(path, &["If-None-Match: \"x\""]).await;
        assert_eq!(other.status, 200, "{path}");
        let head = client.request("HEAD", path, &[], None).await;
        let length = other.body.len().to_string();
        assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())), "{path}");
        assert_eq!(head.header("etag"), Some(etag.as_str()));
    }
    let before = client.get("/v1/state").await.header("etag").map(str::to_owned);
    client.put("/v1/state/report/health", &[], HEALTHY).await;
    assert_ne!(client.get("/v1/state").await.header("etag").map(str::to_owned), before);
}

#[tokio::test]
async fn payloads_come_back_byte_for_byte() {
    let node = Node::start().await;
    let mut client = node.client();
    let payloads = [
        "null",
        "0.10",
        "1e400",
        "123456789012345678901234567890",
        "{\"b\":1, \"a\" :[ ],\r\n\t\"b\":2}",
        "\"\\u00e9\\/é\\ud800\"",
        "-0",
    ];
    for payload in payloads {
        let body = format!("{{\"payload\": {payload} ,\"content_type\":\"x\"}}");
        let written = client.put("/v1/state/report/k", &[], &body).await;
        assert_eq!(written.status, 200, "{payload}: {written:?}");
        let read = client.get("/v1/state/report/k").await;
        assert_eq!(written.body, read.body);
        assert!(read.body.contains(&format!("\"payload\":{payload},\"version\"")), "{}", read.body);
    }
}

#[tokio::test]
async fn an_empty_state_is_empty_lists_and_an_empty_object() {
    let node = Node::start().await;
    let mut client = node.client();
    assert_eq!(
        client.get("/v1/state").await.body,
        r#"{"metadata":{},"data_keys":[],"secret_keys":[],"report_keys":[]}"#
    );
    assert_eq!(client.get("/v1/state/metadata").await.body, "{}");
    for list in ["data", "secrets", "report"] {
        assert_eq!(client.get(&format!("/v1/state/{list}")).await.body, "[]");
    }
}

#[tokio::test]
async fn any_key_of_text_is_a_key() {
    let node = Node::start().await;
    let mut client = node.client();
    let long = "k".repeat(256);
    for (encoded, key) in [
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("..%2F..%2Fpwned", "../../pwned"),
        ("%C3%BC%20%22", "ü \""),
        (long.as_str(), long.as_str()),
    ] {
        let path = format!("/v1/state/report/{encoded}");
        assert_eq!(client.put(&path, &[], HEALTHY).await.json()["key"], key);
        assert_eq!(client.get(&path).await.json()["key"], key);
        assert_eq!(client.request("DELETE", &path, &[], None).await.status, 204);
    }
}
