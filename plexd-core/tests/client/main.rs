//! The client against a server of a few lines: real TLS, canned answers, one per connection.
#![expect(clippy::unwrap_used, reason = "tests")]

mod artifact;
mod clock;
mod server;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plexd_core::control::client::{
    Class, Client, ClientConfig, ClientError, IDLE_TIMEOUT, SetupError, StateAnswer,
};
use plexd_core::control::sse::Item;
use plexd_core::control::wire::{
    DriftReport, HeartbeatRequest, HeartbeatResponse, RegisterRequest, ReportSyncRequest, SecretText,
};
use plexd_core::types::PrivateKey;
use server::{Answer, NSK, Server, answer, client, who};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

fn registration() -> RegisterRequest {
    RegisterRequest {
        token: SecretText::from("plx_enroll_hunter2"),
        public_key: PrivateKey::generate().unwrap().public().to_string(),
        hostname: "web-01".into(),
        metadata: None,
        capabilities: None,
    }
}

#[tokio::test]
async fn a_registration_sends_no_credential_and_reads_the_identity() {
    let body = format!(
        r#"{{"node_id":"n_abc123","mesh_ip":"10.100.1.1","signing_public_key":"lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=","node_secret_key":"{NSK}","peers":[{{"id":"bad"}}],"new":1}}"#
    );
    let server = Server::answering(answer("201 Created", "", &body)).await;
    let registration = server.client().register(&registration()).await.unwrap();
    assert_eq!(registration.node_id.as_str(), "n_abc123");
    assert_eq!((registration.peers.len(), registration.rejected_peers.len()), (0, 1));
    let request = server.request();
    assert!(request.starts_with("POST /v1/register HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("user-agent: plexd-core/1.2.3\r\n"), "{request}");
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    assert!(!request.contains("authorization") && !request.contains("accept-encoding"), "{request}");
    assert!(request.contains(r#"{"token":"plx_enroll_hunter2","public_key":""#), "{request}");
}

#[tokio::test]
async fn a_node_secret_key_of_31_bytes_is_an_unusable_answer_that_names_it() {
    let body = r#"{"node_id":"n","mesh_ip":"10.100.1.1","signing_public_key":"lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=","node_secret_key":"FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlA=="}"#;
    let server = Server::answering(answer("201 Created", "", body)).await;
    let error = server.client().register(&registration()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "POST /v1/register: the control plane's answer is not usable: node_secret_key has 31 bytes, not 32"
    );
}

#[tokio::test]
async fn a_state_is_pulled_with_the_credential_and_not_again_while_it_is_the_same() {
    let answers = vec![
        Answer::Text(answer("200 OK", "ETag: \"v1\"\r\n", r#"{"metadata":{"a":"b"}}"#)),
        Answer::Text("HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n".into()),
    ];
    let server = Server::start("127.0.0.1", answers).await;
    let client = server.client();
    let Ok(StateAnswer::State { state, etag: Some(etag) }) = client.state(&who(), None).await else {
        panic!("no state")
    };
    assert_eq!((state.metadata["a"].as_str(), etag.as_str()), ("b", "\"v1\""));
    let request = server.request();
    assert!(request.starts_with("GET /v1/nodes/n_abc123/state HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("authorization: Bearer {NSK}\r\n")), "{request}");
    assert!(matches!(client.state(&who(), Some(&etag)).await, Ok(StateAnswer::NotModified)));
    assert!(server.request().contains("if-none-match: \"v1\"\r\n"));
}

#[tokio::test]
async fn answers_that_are_no_success_are_classified_and_never_repeat_the_credential() {
    let echo = format!(r#"{{"error":"bad {NSK}"}}"#);
    for (status, headers, body, class, text) in [
        ("401 Unauthorized", "", "", Class::Identity, "refuses the node's identity"),
        ("404 Not Found", "", "", Class::Identity, "does not know this node"),
        ("403 Forbidden", "", echo.as_str(), Class::Refused, "forbids it"),
        (
            "400 Bad Request",
            "",
            r#"{"error":"no timestamp"}"#,
            Class::Refused,
            "status 400 (it says: no timestamp)",
        ),
        ("409 Conflict", "", "", Class::Refused, "has something newer"),
        ("413 Payload Too Large", "", "", Class::Refused, "too large"),
        ("408 Request Timeout", "", "", Class::Retry, "status 408"),
        ("503 Service Unavailable", "", "<html>", Class::Retry, "status 503"),
        (
            "429 Too Many",
            "Retry-After: 7\r\n",
            "",
            Class::RetryAfter(Some(Duration::from_secs(7))),
            "slow down",
        ),
        ("429 Too Many", "", "", Class::RetryAfter(None), "slow down"),
        ("302 Found", "Location: https://evil.example/\r\n", "", Class::Retry, "redirects are not followed"),
    ] {
        let server = Server::answering(answer(status, headers, body)).await;
        let report = DriftReport { timestamp: "2026-01-15T10:30:00Z".parse().unwrap(), corrections: vec![] };
        let error = server.client().drift(&who(), &report).await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert_eq!(error.class(), class, "{shown}");
        assert!(shown.starts_with("POST /v1/nodes/{node_id}/drift: ") && shown.contains(text), "{shown}");
        assert!(!shown.contains(NSK), "{shown}");
    }
}

#[tokio::test]
async fn an_empty_answer_to_a_heartbeat_asks_for_nothing() {
    let heartbeat = HeartbeatRequest {
        node_id: "n_abc123".into(),
        timestamp: "2026-01-15T10:30:00Z".parse().unwrap(),
        status: "healthy".into(),
        uptime: "1h".into(),
        binary_checksum: String::new(),
        mesh: None,
        nat: None,
        bridge: None,
        user_access: None,
        ingress: None,
        site_to_site: None,
    };
    for (body, reconcile) in [("", false), ("{}", false), (r#"{"reconcile":true,"rotate_keys":null}"#, true)]
    {
        let server = Server::answering(answer("200 OK", "", body)).await;
        let response = server.client().heartbeat(&who(), &heartbeat).await.unwrap();
        assert_eq!(response, HeartbeatResponse { reconcile, rotate_keys: false });
    }
}

#[tokio::test]
async fn an_answer_that_says_to_be_something_else_than_json_confirms_nothing() {
    let report = ReportSyncRequest { entries: Vec::new(), deleted: Vec::new() };
    for (headers, body, is_taken) in [
        ("Content-Type: application/json\r\n", "{}", true),
        ("content-type: Application/JSON; charset=utf-8\r\n", "{}", true),
        ("", "{}", true),
        ("Content-Type: text/html\r\n", "", true),
        ("Content-Type: text/html\r\n", "<p>Back soon</p>", false),
        ("Content-Type: text/plain\r\n", "{}", false),
    ] {
        let server = Server::answering(answer("200 OK", headers, body)).await;
        let result = server.client().report(&who(), &report).await;
        assert_eq!(result.is_ok(), is_taken, "{headers:?} {body:?}: {result:?}");
        if let Err(error) = result {
            assert_eq!(error.class(), Class::Retry);
            assert!(error.to_string().contains("not application/json; check that 'api'"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_secret_is_asked_for_by_one_encoded_segment_and_has_to_be_the_one_asked_for() {
    let body = r#"{"key":"tls/server.key","ciphertext":"AAAA","nonce":"AAAA","version":2}"#;
    let server = Server::answering(answer("200 OK", "", body)).await;
    assert_eq!(server.client().secret(&who(), "tls/server.key").await.unwrap().version, 2);
    assert!(server.request().starts_with("GET /v1/nodes/n_abc123/secrets/tls%2Fserver.key HTTP/1.1\r\n"));

    let server = Server::answering(answer("200 OK", "", body)).await;
    let error = server.client().secret(&who(), "other").await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    let error = server.client().secret(&who(), "..").await.unwrap_err();
    assert!(matches!(error, ClientError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_body_over_the_bound_is_dropped_whether_announced_or_not() {
    let body = "x".repeat(1024 * 1024 + 1);
    let unannounced = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
    for text in [answer("200 OK", "", &body), unannounced] {
        let server = Server::answering(text).await;
        let report = ReportSyncRequest { entries: vec![], deleted: vec![] };
        let error = server.client().report(&who(), &report).await.unwrap_err().to_string();
        assert!(error.ends_with("it is larger than 1048576 bytes"), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_or_another_name_is_refused_and_says_the_way_out() {
    let server =
        Server::start("127.0.0.1", vec![Answer::Text(String::new()), Answer::Text(String::new())]).await;
    let untrusted = client(server.address, None).unwrap();
    let other = Server::answering("").await;
    let pinned_to_other = client(server.address, Some(other.ca())).unwrap();
    let misnamed = Server::start("cp.example", vec![Answer::Text(String::new())]).await;
    for (client, text) in [
        (untrusted, "set api_ca_file to the control plane's CA certificate"),
        (pinned_to_other, "no authority in api_ca_file ("),
        (misnamed.client(), "it is for another host name; check 'api'"),
    ] {
        let error = client.deregister(&who()).await.unwrap_err();
        assert!(matches!(error, ClientError::Certificate { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_when_the_client_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let address = "127.0.0.1:1".parse().unwrap();
    let missing = dir.path().join("none.pem");
    let error = client(address, Some(missing)).unwrap_err().to_string();
    assert!(error.starts_with("api_ca_file: cannot read "), "{error}");
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    let error = client(address, Some(empty)).unwrap_err().to_string();
    assert!(error.contains("holds no certificate"), "{error}");
    let plain = ClientConfig { base: "http://127.0.0.1/".parse().unwrap(), ca_file: None, version: "1" };
    assert!(matches!(Client::new(plain), Err(SetupError::NotHttps(_))));
}

#[tokio::test]
async fn nobody_listening_is_a_network_error_that_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = client(address, None).unwrap().deregister(&who()).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry);
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_request_that_is_never_answered_ends_after_30_seconds() {
    let server = Server::start("127.0.0.1", vec![Answer::Hang(String::new())]).await;
    let error = server.client().deregister(&who()).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { limit, .. } if limit.as_secs() == 30), "{error}");
}

#[tokio::test]
async fn an_event_stream_gives_its_items_and_ends_after_90_seconds_of_silence() {
    let text = "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n\r\nretry: 100\n: hi\n\nid: 7\ndata: {}\n\n";
    let server = Server::start("127.0.0.1", vec![Answer::Hang(text.into())]).await;
    let mut stream = server.client().events(&who(), Some("6")).await.unwrap();
    assert!(server.request().contains("last-event-id: 6\r\n"));
    assert_eq!(stream.next(&|| {}).await, Ok(Some(Item::Retry(Duration::from_millis(100)))));
    let Ok(Some(Item::Event { id, data, .. })) = stream.next(&|| {}).await else { panic!("no event") };
    assert_eq!((id.as_deref(), &data[..]), (Some("7"), b"{}".as_slice()));
    tokio::time::pause();
    let started = Instant::now();
    let error = stream.next(&|| {}).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { limit, .. } if limit == IDLE_TIMEOUT), "{error}");
    assert!(started.elapsed() + Duration::from_secs(5) > IDLE_TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stream_of_nothing_but_comments_lives_on() {
    let (comment, comments) = mpsc::unbounded_channel();
    let server = Server::start("127.0.0.1", vec![Answer::Comments(comments)]).await;
    let mut stream = server.client().events(&who(), None).await.unwrap();
    tokio::time::pause();
    let started = Instant::now();
    let heard = AtomicUsize::new(0);
    let count = || {
        heard.fetch_add(1, Ordering::Relaxed);
    };
    let drive = async {
        for comments in 1..=20 {
            tokio::time::advance(Duration::from_mins(1)).await;
            comment.send(()).unwrap();
            // Never idle: time goes on only where this says so.
            while heard.load(Ordering::Relaxed) < comments {
                tokio::task::yield_now().await;
            }
        }
        drop(comment);
        while heard.load(Ordering::Relaxed) < 21 {
            tokio::task::yield_now().await;
        }
    };
    let (item, ()) = tokio::join!(stream.next(&count), drive);
    assert!(matches!(&item, Ok(Some(Item::Event { id: Some(id), .. })) if id == "8"), "{item:?}");
    assert!(started.elapsed() >= Duration::from_mins(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stream_that_ends_is_no_error_and_what_is_no_stream_is_one() {
    let text = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: a\n\n";
    let server = Server::answering(text).await;
    let mut stream = server.client().events(&who(), None).await.unwrap();
    assert!(matches!(stream.next(&|| {}).await, Ok(Some(Item::Event { .. }))));
    assert_eq!(stream.next(&|| {}).await, Ok(None));
    assert!(!server.request().contains("last-event-id"));

    let server = Server::answering(answer("200 OK", "Content-Type: text/html\r\n", "data: a\n\n")).await;
    let error = server.client().events(&who(), None).await.unwrap_err();
    assert!(error.to_string().ends_with("status 200, not a text/event-stream"), "{error}");
}
