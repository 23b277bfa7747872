//! The 17 endpoints as a table: each works, each refuses what it should, and each failure means what the contract says.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use plexd_core::control::client::{
    Artifact, ArtifactError, Class, Client, ClientError, Credentials, Record, StateAnswer,
};
use plexd_core::control::secret;
use plexd_core::control::sse::Item;
use plexd_core::control::wire::{
    AuditEntry, ExecutionAck, HeartbeatRequest, LogEntry, MetricPoint, ReportSyncRequest,
};
use plexd_core::types::{NodeSecretKey, PrivateKey};
use reqwest::Method;
use serde_json::{Value, json};

use crate::artifacts::{BINARY, checksum_of};
use crate::devcp::{Devcp, example, example_lines, fixture, registration};

/// What a call is made with.
struct With {
    client: Client,
    who: Credentials,
    token: String,
    directory: tempfile::TempDir,
}

type Outcome<'a> = BoxFuture<'a, Result<(), ClientError>>;

/// A row: the name by which devcp breaks the endpoint, the call, what devcp keeps of it, and what that is.
struct Endpoint {
    name: &'static str,
    call: fn(&With) -> Outcome<'_>,
    kept: Option<(&'static str, &'static str)>,
}

const ENDPOINTS: [Endpoint; 17] = [
    Endpoint { name: "register", call: register, kept: None },
    Endpoint { name: "events", call: events, kept: None },
    Endpoint { name: "heartbeat", call: heartbeat, kept: Some(("heartbeats", "heartbeat_request.json")) },
    Endpoint { name: "deregister", call: |with| with.client.deregister(&with.who).boxed(), kept: None },
    Endpoint { name: "rotate", call: rotate, kept: None },
    Endpoint {
        name: "capabilities",
        call: |with| {
            async { with.client.capabilities(&with.who, &example("capabilities_request.json")).await }.boxed()
        },
        kept: Some(("capabilities", "capabilities_request.json")),
    },
    Endpoint { name: "endpoint", call: endpoint, kept: Some(("endpoint", "endpoint_request.json")) },
    Endpoint { name: "state", call: state, kept: None },
    Endpoint {
        name: "drift",
        call: |with| async { with.client.drift(&with.who, &example("drift_request.json")).await }.boxed(),
        kept: Some(("drift", "drift_request.json")),
    },
    Endpoint { name: "secrets", call: secret, kept: None },
    Endpoint {
        name: "report",
        call: |with| async { with.client.report(&with.who, &example("report_request.json")).await }.boxed(),
        kept: Some(("reports", "report_request.json")),
    },
    Endpoint {
        name: "ack",
        call: |with| async { with.client.acknowledge(&with.who, &example("ack_request.json")).await }.boxed(),
        kept: Some(("acks", "ack_request.json")),
    },
    Endpoint {
        name: "result",
        call: |with| async { with.client.result(&with.who, &example("result_request.json")).await }.boxed(),
        kept: Some(("results", "result_request.json")),
    },
    Endpoint { name: "metrics", call: metrics, kept: Some(("metrics", "metrics_request.json")) },
    Endpoint { name: "logs", call: logs, kept: Some(("logs", "logs_request.ndjson")) },
    Endpoint { name: "audit", call: audit, kept: Some(("audit", "audit_request.ndjson")) },
    Endpoint { name: "artifacts", call: artifact, kept: None },
];

fn register(with: &With) -> Outcome<'_> {
    async {
        let hostname = format!("new-{}", with.who.node_id);
        let registered = with.client.register(&registration(&with.token, &hostname)).await?;
        assert_ne!(registered.node_id, with.who.node_id);
        assert!(registered.rejected_peers.is_empty() && !registered.peers.is_empty());
        Ok(())
    }
    .boxed()
}

fn events(with: &With) -> Outcome<'_> {
    async {
        let mut stream = with.client.events(&with.who, None).await?;
        assert_eq!(stream.next(&|| {}).await?, Some(Item::Retry(Duration::from_secs(1))));
        Ok(())
    }
    .boxed()
}

fn heartbeat(with: &With) -> Outcome<'_> {
    async {
        let example = example("heartbeat_request.json");
        let request = HeartbeatRequest { node_id: with.who.node_id.to_string(), ..example };
        with.client.heartbeat(&with.who, &request).await.map(drop)
    }
    .boxed()
}

fn rotate(with: &With) -> Outcome<'_> {
    async {
        let peers = with.client.rotate_keys(&with.who, &PrivateKey::generate().unwrap().public()).await?;
        assert!(!peers.accepted.is_empty() && peers.rejected.is_empty());
        Ok(())
    }
    .boxed()
}

fn endpoint(with: &With) -> Outcome<'_> {
    async {
        let peers = with.client.endpoint(&with.who, &example("endpoint_request.json")).await?;
        assert!(!peers.accepted.is_empty() && peers.rejected.is_empty());
        Ok(())
    }
    .boxed()
}

fn state(with: &With) -> Outcome<'_> {
    async {
        let answer = with.client.state(&with.who, None).await?;
        let StateAnswer::State { state, .. } = answer else { panic!("no state") };
        assert!(!state.peers.is_empty());
        Ok(())
    }
    .boxed()
}

fn secret(with: &With) -> Outcome<'_> {
    async {
        let answer = with.client.secret(&with.who, "tls/server.key").await?;
        assert_eq!(*secret::decrypt(&with.who.secret, &answer).unwrap(), "s3cret");
        Ok(())
    }
    .boxed()
}

fn metrics(with: &With) -> Outcome<'_> {
    async {
        let points: Vec<MetricPoint> = example("metrics_request.json");
        let batch: Vec<_> = points.iter().map(|point| Record::new(point).unwrap()).collect();
        with.client.metrics(&with.who, &batch).await
    }
    .boxed()
}

fn logs(with: &With) -> Outcome<'_> {
    async {
        let entries: Vec<LogEntry> = example_lines("logs_request.ndjson");
        let batch: Vec<_> = entries.iter().map(|entry| Record::new(entry).unwrap()).collect();
        with.client.logs(&with.who, &batch).await
    }
    .boxed()
}

fn audit(with: &With) -> Outcome<'_> {
    async {
        let entries: Vec<AuditEntry> = example_lines("audit_request.ndjson");
        let batch: Vec<_> = entries.iter().map(|entry| Record::new(entry).unwrap()).collect();
        with.client.audit(&with.who, &batch).await
    }
    .boxed()
}

fn artifact(with: &With) -> Outcome<'_> {
    async {
        let wanted = Artifact { version: "1.5.0", os: "linux", arch: "amd64", checksum: checksum_of(BINARY) };
        let destination = with.directory.path().join("plexd");
        match with.client.artifact(&with.who, &wanted, &destination).await {
            Ok(length) => assert_eq!(length, BINARY.len() as u64),
            Err(ArtifactError::Call(error)) => return Err(error),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(std::fs::read(destination).unwrap(), BINARY);
        Ok(())
    }
    .boxed()
}

/// A control plane with a node beside the one that calls, a secret of that one, and a binary.
async fn prepare(devcp: &Devcp, hostname: &str) -> With {
    let who = devcp.enrol(hostname).await;
    let path = format!("nodes/{}/secrets/tls%2Fserver.key", who.node_id);
    devcp.manage(Method::PUT, &path, &json!({"value": "s3cret"})).await;
    let directory = tempfile::tempdir().unwrap();
    With { client: devcp.client.clone(), who, token: devcp.token().await, directory }
}

async fn start() -> Devcp {
    let devcp = Devcp::start().await;
    devcp.enrol("other").await;
    let folder = devcp.dir.path().join("artifacts/plexd/1.5.0/linux");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("amd64"), BINARY).unwrap();
    devcp
}

/// What the example says, as devcp shows it, for the node that sent it.
fn wanted(example: &str, who: &Credentials) -> Value {
    if example.ends_with(".ndjson") {
        return fixture(example).lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    }
    let mut value: Value = serde_json::from_str(&fixture(example)).unwrap();
    if let Some(node_id) = value.get_mut("node_id") {
        *node_id = who.node_id.as_str().into();
    }
    value
}

#[tokio::test]
async fn every_endpoint_takes_the_documents_example_and_what_arrives_is_what_was_sent() {
    let devcp = start().await;
    for Endpoint { name, call, kept } in ENDPOINTS {
        let with = prepare(&devcp, name).await;
        call(&with).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Some((kind, example)) = kept {
            assert_eq!(devcp.received(&with.who, kind).await, [wanted(example, &with.who)], "{name}");
        }
    }
}

/// What a status means for trying again (contract, section 2).
fn class(name: &str, status: u16) -> Class {
    let is_about_something_else = ["register", "secrets", "ack", "result", "artifacts"].contains(&name);
    match status {
        401 if name == "register" => Class::Refused,
        404 if is_about_something_else => Class::Refused,
        401 | 404 => Class::Identity,
        429 => Class::RetryAfter(None),
        400..=499 if status != 408 => Class::Refused,
        _ => Class::Retry,
    }
}

#[tokio::test]
async fn every_failure_of_every_endpoint_means_what_the_contract_says_and_names_no_credential() {
    let devcp = start().await;
    for Endpoint { name, call, kept } in ENDPOINTS {
        let with = prepare(&devcp, name).await;
        for status in [302, 304, 400, 401, 403, 404, 408, 409, 413, 429, 500, 502, 503, 504] {
            devcp.break_with(name, status).await;
            let error = call(&with).await.expect_err(name);
            let shown = format!("{error} {error:?}");
            assert_eq!(error.class(), class(name, status), "{name} {status}: {shown}");
            assert!(!shown.contains(with.who.secret.as_str()) && !shown.contains(&with.token), "{shown}");
        }
        devcp.heal().await;
        call(&with).await.unwrap_or_else(|error| panic!("{name} after all that: {error}"));
        if let Some((kind, example)) = kept {
            assert_eq!(devcp.received(&with.who, kind).await, [wanted(example, &with.who)], "{name}");
        }
    }
}

#[tokio::test]
async fn answers_that_are_read_and_are_garbage_are_unusable_and_others_do_not_matter() {
    let devcp = start().await;
    for Endpoint { name, call, .. } in ENDPOINTS {
        // Of a stream only items are read, and a binary is judged by its checksum.
        if ["events", "artifacts"].contains(&name) {
            continue;
        }
        let with = prepare(&devcp, name).await;
        devcp.manage(Method::PUT, "faults", &json!({"endpoint": name, "garbage": true})).await;
        let is_read = ["register", "heartbeat", "rotate", "endpoint", "state", "secrets"].contains(&name);
        match call(&with).await {
            Ok(()) => assert!(!is_read, "{name}"),
            Err(error) => {
                assert!(is_read && matches!(error, ClientError::Protocol { .. }), "{name}: {error}");
            }
        }
        devcp.heal().await;
    }
}

#[tokio::test]
async fn a_wrong_credential_is_refused_everywhere() {
    let devcp = start().await;
    for Endpoint { name, call, .. } in ENDPOINTS {
        let with = prepare(&devcp, name).await;
        let secret = NodeSecretKey::parse("FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlGo=").unwrap();
        let who = Credentials { secret, ..with.who };
        let error = call(&With { who, token: "used".to_owned(), ..with }).await.expect_err(name);
        assert!(matches!(error, ClientError::Unauthorized { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn an_unknown_node_is_told_so_everywhere_but_where_no_node_is_named() {
    let devcp = start().await;
    for Endpoint { name, call, .. } in ENDPOINTS {
        let with = prepare(&devcp, name).await;
        let who = Credentials { node_id: "n_nobody".parse().unwrap(), ..with.who };
        let result = call(&With { who, ..with }).await;
        match name {
            "register" | "artifacts" => assert_eq!(result, Ok(()), "{name}"),
            _ => assert!(matches!(result, Err(ClientError::NotFound { .. })), "{name}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn what_the_documents_refuse_is_refused_for_good() {
    let devcp = start().await;
    let with = prepare(&devcp, "one").await;
    let Devcp { client, .. } = &devcp;

    let again = client.register(&registration(&with.token, "one")).await.unwrap_err();
    assert!(matches!(again, ClientError::Conflict { .. }), "{again}");
    assert!(again.to_string().contains("plexd-ctl join"), "{again}");

    let mut malformed = registration(&with.token, "two");
    malformed.public_key = "short".to_owned();
    let error = client.register(&malformed).await.unwrap_err();
    assert!(matches!(error, ClientError::BadRequest { status: 400, .. }), "{error}");

    let missing = client.secret(&with.who, "none").await.unwrap_err();
    assert!(matches!(missing, ClientError::NotFound { .. }) && missing.is_final(), "{missing}");

    let mut report: ReportSyncRequest = example("report_request.json");
    client.report(&with.who, &report).await.unwrap();
    report.entries[0].version -= 1;
    report.entries[0].content_type = "text/plain".to_owned();
    let stale = client.report(&with.who, &report).await.unwrap_err();
    assert!(matches!(stale, ClientError::Conflict { .. }) && stale.is_final(), "{stale}");

    let ack = ExecutionAck { status: "perhaps".to_owned(), ..example("ack_request.json") };
    let error = client.acknowledge(&with.who, &ack).await.unwrap_err();
    assert!(matches!(error, ClientError::BadRequest { status: 400, .. }), "{error}");

    let entry = LogEntry { message: "x".repeat(5 << 20), ..example_lines("logs_request.ndjson").remove(0) };
    let error = client.logs(&with.who, &[Record::new(&entry).unwrap()]).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }) && error.is_final(), "{error}");
}
