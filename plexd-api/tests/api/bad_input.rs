//! Requests that are wrong: each row of the guide's troubleshooting table, and worse. The answer is JSON or a closed
//! connection, and nobody else notices.

use plexd_proto::node::v1::ReportRefusal;

use crate::client::Client;
use crate::node::{MAX_BODY, Node};

const PATH: &str = "/v1/state/report/k";
const BODY: &str = r#"{"content_type":"x","payload":1}"#;

#[tokio::test]
async fn the_troubleshooting_table() {
    let node = Node::start().await;
    let mut client = node.client();
    let put = [
        ("{", 400, "invalid JSON body"),
        ("", 400, "invalid JSON body"),
        (r#"{"payload":1}"#, 400, "content_type is required"),
        (r#"{"content_type":"x"}"#, 400, "payload must be valid JSON"),
    ];
    for (body, status, text) in put {
        client.put(PATH, &[], body).await.is_error(status, text);
    }
    client.put(PATH, &["If-Match: three"], BODY).await.is_error(400, "If-Match must be an integer");
    client.put(PATH, &["If-Match: 3"], BODY).await.is_error(409, "version conflict");
    node.connect_tcp().await.get("/v1/state").await.is_error(401, "unauthorized");
    node.client_as(1000, &[]).get("/v1/state").await.is_error(403, "forbidden");
    for kind in ["metadata", "data", "secrets", "report"] {
        client.get(&format!("/v1/state/{kind}/none")).await.is_error(404, "not found");
    }
    let unavailable = plexd_proto::node::v1::SecretRefusal::ControlPlaneUnavailable;
    node.core.store().secrets.insert("k".into(), Err(unavailable));
    client.get("/v1/state/secrets/k").await.is_error(503, "control plane unavailable");
}

#[tokio::test]
async fn checks_come_in_the_order_of_the_contract() {
    let node = Node::start().await;
    let mut client = node.client();
    let bad_match = &["If-Match: x"][..];
    client.put("/v1/state/report/%00", bad_match, "{").await.is_error(400, "invalid key");
    client.put(PATH, bad_match, "{").await.is_error(400, "If-Match must be an integer");
    client.put(PATH, &["If-Match: 9"], "{").await.is_error(400, "invalid JSON body");
    client.put(PATH, &["If-Match: 9"], "{}").await.is_error(400, "content_type is required");
    let no_payload = r#"{"content_type":"x"}"#;
    client.put(PATH, &["If-Match: 9"], no_payload).await.is_error(400, "payload must be valid JSON");
    client.put(PATH, &["If-Match: 9"], BODY).await.is_error(409, "version conflict");
    let twice = ["If-Match: 1", "If-Match: 1"];
    client.put(PATH, &twice, BODY).await.is_error(400, "If-Match must be an integer");
    client.request("DELETE", PATH, &twice, None).await.is_error(400, "If-Match must be an integer");
}

#[tokio::test]
async fn keys_that_are_none_are_refused_whatever_the_route() {
    let node = Node::start().await;
    let mut client = node.client();
    let long = "k".repeat(257);
    for kind in ["metadata", "data", "secrets", "report"] {
        for key in ["", "%", "%0", "%zz", "%00", "a%0Ab", "%ff", "%C3%28", "%7F", &long] {
            client.get(&format!("/v1/state/{kind}/{key}")).await.is_error(400, "invalid key");
        }
    }
    for key in ["", "%zz", "%00"] {
        let path = format!("/v1/state/report/{key}");
        client.put(&path, &[], BODY).await.is_error(400, "invalid key");
        client.request("DELETE", &path, &[], None).await.is_error(400, "invalid key");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_in_json() {
    let node = Node::start().await;
    let mut client = node.client();
    for path in
        ["/", "/v1", "/v1/state/", "/v1//state", "/v1/state/data/a/b", "/v2/state", "/v1/state/nothing"]
    {
        client.get(path).await.is_error(404, "not found");
    }
    client.request("OPTIONS", "*", &[], None).await.is_error(404, "not found");
    let table = [
        ("POST", "/v1/state", "GET,HEAD"),
        ("DELETE", "/v1/state/data/k", "GET,HEAD"),
        ("PUT", "/v1/state/metadata", "GET,HEAD"),
        ("PATCH", "/v1/state/report/k", "GET,HEAD,PUT,DELETE"),
        ("OPTIONS", "/v1/state/secrets/k", "GET,HEAD"),
        ("BREW", "/v1/state/watch", "GET,HEAD"),
    ];
    for (method, path, allow) in table {
        let answer = client.request(method, path, &[], None).await;
        answer.is_error(405, "method not allowed");
        assert_eq!(answer.header("allow"), Some(allow), "{path}");
    }
}

#[tokio::test]
async fn a_query_is_passed_over() {
    let node = Node::start().await;
    let mut client = node.client();
    assert_eq!(client.get("/v1/state/metadata?x=/y").await.body, "{}");
    assert_eq!(client.put("/v1/state/report/k?x=/y", &[], BODY).await.json()["key"], "k");
}

#[tokio::test]
async fn a_length_and_a_transfer_encoding_exclude_each_other() {
    let node = Node::start().await;
    let text = "Content-Length and Transfer-Encoding exclude each other";
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "transfer-encoding: CHUNKED\r\ncontent-length: 0",
    ] {
        let mut client = node.client();
        assert_eq!(client.get("/healthz").await.status, 200);
        client.send(format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n0\r\n\r\n")).await;
        client.answer().await.is_error(400, text);
        assert!(client.closed().await);
    }
}

#[tokio::test]
async fn chunked_bodies_are_bodies() {
    let node = Node::start().await;
    let mut client = node.client();
    let head = format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(&head).await;
    for piece in BODY.as_bytes().chunks(5) {
        client.send(format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece))).await;
        tokio::task::yield_now().await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.answer().await.json()["version"], 1);
    assert_eq!(client.get("/healthz").await.status, 200, "the connection goes on");

    for lie in ["5\r\nab", "zz\r\n", "5\r\nabcdefgh\r\n", "fffffffffffffffff\r\n", "-1\r\n"] {
        let mut client = node.client();
        client.send(&head).await;
        client.send(lie).await;
        // Some lies are only found out when more comes, or when nothing does.
        client.send_what_it_takes(b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n").await;
        if let Some(head) = client.head().await {
            assert!(head.starts_with("HTTP/1.1 400"), "{lie}: {head}");
        }
    }
    assert_eq!(node.core.store().reports.len(), 1);
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_and_their_connection_closed() {
    let node = Node::start().await;
    let padded = |length: usize| format!("{BODY}{}", " ".repeat(length - BODY.len()));
    let mut client = node.client();
    assert_eq!(client.put(PATH, &[], &padded(MAX_BODY)).await.status, 200);
    client.put(PATH, &[], &padded(MAX_BODY + 1)).await.is_error(413, "payload too large");
    assert!(client.closed().await);

    let mut client = node.client();
    client.send(format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    client.send(format!("4000\r\n{}\r\n0\r\n\r\n", " ".repeat(0x4000))).await;
    client.answer().await.is_error(413, "payload too large");

    // Not sent before the server agrees, which it does not.
    let mut client = node.client();
    let head =
        format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 50000000\r\n\r\n");
    client.send(head).await;
    client.answer().await.is_error(413, "payload too large");
    assert!(client.closed().await);

    let mut client = node.connect_unix().await;
    client.send(format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n")).await;
    client.send_what_it_takes(&vec![b' '; 50_000_000]).await;
    assert!(client.closed().await);
}

#[tokio::test]
async fn deep_nesting_is_refused_cheaply() {
    let node = Node::start().await;
    let mut client = node.client();
    let body =
        |depth| format!("{{\"content_type\":\"x\",\"payload\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(client.put(PATH, &[], &body(64)).await.status, 200);
    client.put(PATH, &[], &body(65)).await.is_error(400, "payload nested too deeply");
    client.put(PATH, &[], &body(4_900)).await.is_error(400, "payload nested too deeply");
}

#[tokio::test]
async fn what_is_not_http_ends_the_connection_and_disturbs_nobody() {
    let node = Node::start().await;
    let mut other = node.client();
    let flood = format!("GET / HTTP/1.1\r\n{}\r\n", "X-Flood: aaaaaaaa\r\n".repeat(10_000));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let inputs = [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /v1/state\r\n\r\n",
        "GET /v1/state HTTP/9.9\r\n\r\n",
        "GET /v1/st\0ate HTTP/1.1\r\n\r\n",
        "PUT /v1/state/report/k HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "PUT /v1/state/report/k HTTP/1.1\r\nContent-Length: -1\r\n\r\nx",
        "PUT /v1/state/report/k HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nx",
        &flood,
        &long,
    ];
    for input in inputs {
        let mut client = node.client();
        client.send_what_it_takes(input.as_bytes()).await;
        if let Some(answer) = client.try_answer().await {
            assert!((400..500).contains(&answer.status), "{input:.40?}: {answer:?}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{input:.40?}: {answer:?}");
            assert!(answer.json()["error"].is_string(), "{input:.40?}: {answer:?}");
        }
        assert!(client.closed().await, "{input:.40?}");
        assert_eq!(other.get("/v1/state").await.status, 200, "after {input:.40?}");
    }
}

#[tokio::test]
async fn refusals_of_the_http_parser_are_json() {
    let node = Node::start().await;
    let head = |lines: &str| format!("GET /v1/state HTTP/1.1\r\n{lines}\r\n");
    let table = [
        ("garbage\r\n\r\n".to_owned(), 400, "bad request"),
        (head("a b: c\r\n"), 400, "bad request"),
        (head(&"X-Flood: aaaaaaaa\r\n".repeat(65)), 431, "request header fields too large"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)), 431, "request header fields too large"),
    ];
    for (input, status, text) in table {
        for before in ["", "GET /v1/state/data HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let mut client = node.connect_unix().await;
            client.send_what_it_takes(format!("{before}{input}").as_bytes()).await;
            if !before.is_empty() {
                client.answer().await;
            }
            client.answer().await.is_error(status, text);
            assert!(client.closed().await, "{input:.40?}");
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let node = Node::start().await;
    let mut client = node.client();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    client.send([get("/v1/state/metadata"), get("/none"), get("/v1/state/data")].concat()).await;
    assert_eq!(client.answer().await.body, "{}");
    client.answer().await.is_error(404, "not found");
    assert_eq!(client.answer().await.body, "[]");
    client.send([get("/healthz"), "garbage\r\n\r\n".to_owned()].concat()).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.closed().await);
}

#[tokio::test]
async fn a_client_that_has_said_all_it_wants_to_gets_its_answer() {
    let node = Node::start().await;
    let length = BODY.len();
    let requests = [
        format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{BODY}"),
        format!("GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n"),
        "GET /v1/state HTTP/1.0\r\n\r\n".to_owned(),
    ];
    for request in requests {
        let mut client = node.client();
        client.send(&request).await;
        client.finish().await;
        assert_eq!(client.answer().await.status, 200, "{request}");
        assert!(client.closed().await);
    }
    let mut silent = node.client();
    silent.finish().await;
    assert!(silent.closed().await);
    let mut half = node.client();
    half.send(format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{")).await;
    half.finish().await;
    if let Some(head) = half.head().await {
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    }
    assert!(half.closed().await);
    assert_eq!(node.core.store().reports["k"].version, 1);
}

#[tokio::test]
async fn refusals_of_core_are_told() {
    let node = Node::start().await;
    let mut client = node.client();
    let table = [
        (ReportRefusal::TooManyEntries, 507, "too many report entries"),
        (ReportRefusal::InsufficientStorage, 507, "insufficient storage"),
        (ReportRefusal::StorageFailed, 500, "storage failure"),
        (ReportRefusal::NotRegistered, 503, "node not registered"),
        (ReportRefusal::Invalid, 400, "invalid JSON body"),
        (ReportRefusal::Unspecified, 503, "core unavailable"),
    ];
    for (refusal, status, text) in table {
        node.core.store().refuse = Some(refusal);
        client.put(PATH, &[], BODY).await.is_error(status, text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let node = Node::start().await;
    let mut client: Client = node.client();
    client.send(format!("PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{")).await;
    let start = tokio::time::Instant::now();
    client.answer().await.is_error(408, "request timeout");
    assert_eq!(start.elapsed().as_secs(), 30);
    assert!(client.closed().await);
}
