//! What a node sends: what is taken, what is refused with which status, and what the administrator sees of it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Devcp, Node, answer, gzip, state_dir};

const TIME: &str = "2026-01-15T10:30:00Z";

fn heartbeat(node: &Node) -> Value {
    json!({"node_id": node.id, "timestamp": TIME, "status": "healthy", "uptime": "72h15m", "binary_checksum": "sha256:a1"})
}

#[tokio::test]
async fn heartbeats_carry_the_flags_once_and_miss_no_field() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    devcp.manage(Method::PUT, &format!("nodes/{}/heartbeat", node.id), &json!({"reconcile": true})).await;
    for reconcile in [true, false] {
        let answer = devcp.send(&node, Method::POST, "heartbeat", &heartbeat(&node).to_string()).await;
        assert_eq!(answer.json(), json!({"reconcile": reconcile, "rotate_keys": false}));
    }
    for name in ["node_id", "timestamp", "status", "uptime", "binary_checksum"] {
        for bad in [json!(null), json!("")] {
            let mut body = heartbeat(&node);
            body[name] = bad;
            let refused = devcp.send(&node, Method::POST, "heartbeat", &body.to_string()).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        }
    }
    let received = devcp.received(&node).await;
    assert_eq!(received["heartbeats"].as_array().unwrap().len(), 2);
    assert_eq!(received["heartbeats"][0]["body"], heartbeat(&node));
}

fn entry(key: &str, version: u64, payload: &str) -> String {
    format!(
        r#"{{"key":"{key}","content_type":"application/json","payload":{payload},"version":{version},"updated_at":"{TIME}"}}"#
    )
}

async fn report(devcp: &Devcp, node: &Node, entries: &[String], deleted: &str) -> StatusCode {
    let body = format!(r#"{{"entries":[{}],"deleted":{deleted}}}"#, entries.join(","));
    devcp.send(node, Method::POST, "report", &body).await.status
}

#[tokio::test]
async fn reports_keep_the_latest_value_and_refuse_a_contradiction() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let payload = "{ \"z\": 1.0,  \"a\": 1 }";
    assert_eq!(
        report(&devcp, &node, &[entry("health", 3, payload), entry("inv", 1, "1")], "[]").await,
        StatusCode::OK
    );
    assert_eq!(
        report(&devcp, &node, &[entry("health", 2, payload)], "null").await,
        StatusCode::OK,
        "a repetition"
    );
    let contradiction = [entry("other", 1, "1"), entry("health", 2, "{}")];
    assert_eq!(report(&devcp, &node, &contradiction, "[]").await, StatusCode::CONFLICT);
    assert_eq!(
        report(&devcp, &node, &[entry("health", 4, "null")], r#"["inv","unknown"]"#).await,
        StatusCode::OK
    );
    let received = devcp.received(&node).await;
    assert_eq!(received["reports"].as_array().unwrap().len(), 4, "refused ones are shown too");
    let current = received["reports_current"].as_object().unwrap();
    assert_eq!(current.keys().collect::<Vec<_>>(), ["health"], "a refused batch is refused whole");
    assert_eq!(current["health"]["version"], 4);
    let text = devcp.admin(Method::GET, &format!("nodes/{}/received", node.id), None).await.text();
    assert!(text.contains(payload), "bodies are kept byte for byte");
}

#[tokio::test]
async fn malformed_reports_are_refused() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    for bad in [
        "[]".to_owned(),
        "{} {}".to_owned(),
        r#"{"entries":[{"key":"a"}]}"#.to_owned(),
        format!(r#"{{"entries":[{}]}}"#, entry("", 1, "1")),
        format!(r#"{{"entries":[{}]}}"#, entry("a", 1, "1").replace(TIME, "yesterday")),
        format!(r#"{{"entries":[{}]}}"#, entry("a", 1, "1").replace(":1,", ":-1,")),
    ] {
        assert_eq!(
            devcp.send(&node, Method::POST, "report", &bad).await.status,
            StatusCode::BAD_REQUEST,
            "{bad}"
        );
    }
    assert_eq!(devcp.received(&node).await["reports_current"], json!({}));
}

#[tokio::test]
async fn drift_capabilities_and_executions_are_kept_in_order() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let drift = json!({"timestamp": TIME, "corrections": [{"type": "peer_added", "detail": "n_2"}]});
    let capabilities = json!({
        "binary": {"version": "1.4.2", "checksum": "sha256:a1"},
        "builtin_actions": [{"name": "a", "description": "b", "parameters": []}],
        "hooks": [{"name": "h", "description": "d", "source": "script", "checksum": "sha256:b", "parameters": null,
                   "timeout": "300s", "sandbox": "namespaced"}],
    });
    let ack = json!({"execution_id": "exec_1", "status": "accepted", "reason": ""});
    let result = json!({
        "execution_id": "exec_1", "status": "success", "exit_code": 0, "stdout": "", "stderr": "", "duration": "2.34s",
        "finished_at": TIME, "triggered_by": {"type": "control_plane", "session_id": "", "user_id": "", "email": ""},
    });
    let cases = [
        (Method::POST, "drift", "drift", drift, "timestamp"),
        (Method::PUT, "capabilities", "capabilities", capabilities, "hooks"),
        (Method::POST, "executions/exec_1/ack", "acks", ack, "status"),
        (Method::POST, "executions/exec_1/result", "results", result, "finished_at"),
    ];
    for (method, path, array, body, required) in cases {
        let taken = devcp.send(&node, method.clone(), path, &body.to_string()).await;
        assert_eq!((taken.status, taken.text().as_str()), (StatusCode::OK, "{}"), "{path}");
        let mut bad = body.clone();
        bad[required] = json!("nonsense");
        assert_eq!(
            devcp.send(&node, method, path, &bad.to_string()).await.status,
            StatusCode::BAD_REQUEST,
            "{path}"
        );
        let received = devcp.received(&node).await;
        assert_eq!(received[array].as_array().unwrap().len(), 1, "{path}");
        assert_eq!(received[array][0]["body"], body, "{path}");
        assert!(received[array][0]["received_at"].is_string());
    }
    let other = devcp
        .send(
            &node,
            Method::POST,
            "executions/exec_2/ack",
            r#"{"execution_id":"exec_1","status":"accepted","reason":""}"#,
        )
        .await;
    assert_eq!(other.status, StatusCode::BAD_REQUEST);
}

async fn batch(devcp: &Devcp, node: &Node, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
    let request = devcp.as_node(node, Method::POST, path).header("content-type", content_type);
    answer(request.header("content-encoding", "gzip").body(body)).await
}

#[tokio::test]
async fn observability_batches_are_gzip_and_bounded() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let metric = json!({"timestamp": TIME, "group": "node_resources", "data": {"cpu_percent": 23.5}});
    let log = json!({"timestamp": TIME, "source": "journald", "unit": "plexd", "message": "m", "severity": "info", "hostname": "h"});
    let audit = json!({"timestamp": TIME, "source": "auditd", "event_type": "SYSCALL", "subject": {"uid": 1000},
                       "object": {"path": "/etc/shadow"}, "action": "open", "result": "denied", "hostname": "h", "raw": ""});
    let cases = [
        ("metrics", "application/json", json!([metric]).to_string(), json!([metric])),
        ("logs", "application/x-ndjson", format!("{log}\n{log}\n"), json!([log, log])),
        ("audit", "application/x-ndjson", audit.to_string(), json!([audit])),
    ];
    for (path, content_type, text, wanted) in cases {
        let taken = batch(&devcp, &node, path, content_type, gzip(text.as_bytes())).await;
        assert_eq!(taken.status, StatusCode::ACCEPTED, "{path}: {}", taken.text());
        assert_eq!(devcp.received(&node).await[path][0]["body"], wanted, "{path}");
        let plain =
            devcp.as_node(&node, Method::POST, path).header("content-type", content_type).body(text.clone());
        assert_eq!(answer(plain).await.status, StatusCode::BAD_REQUEST, "{path} without gzip");
        let torn = gzip(text.as_bytes())[..12].to_vec();
        assert_eq!(
            batch(&devcp, &node, path, content_type, torn).await.status,
            StatusCode::BAD_REQUEST,
            "{path} torn"
        );
        let typed = batch(&devcp, &node, path, "text/plain", gzip(text.as_bytes())).await;
        assert_eq!(typed.status, StatusCode::BAD_REQUEST, "{path} of another type");
        let bomb = gzip(&vec![b' '; 5 << 20]);
        assert!(bomb.len() < 100_000);
        assert_eq!(
            batch(&devcp, &node, path, content_type, bomb).await.status,
            StatusCode::PAYLOAD_TOO_LARGE,
            "{path}"
        );
    }
}

#[tokio::test]
async fn artifacts_are_files_of_the_state_directory_and_nothing_else() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    let folder = dir.path().join("artifacts/plexd/1.5.0/linux");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("amd64"), b"\x7fELF").unwrap();
    let get = |path: &str| answer(devcp.request(Method::GET, path).bearer_auth(&node.secret));
    let found = get("artifacts/plexd/1.5.0/linux/amd64").await;
    assert_eq!((found.status, found.body.as_ref()), (StatusCode::OK, b"\x7fELF".as_slice()));
    for path in [
        "artifacts/plexd/1.5.1/linux/amd64",
        "artifacts/plexd/%2E%2E/%2e%2E/signing.json",
        "artifacts/plexd/1.5.0/linux%2Famd64/x",
    ] {
        assert_eq!(get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn what_comes_is_counted_second_by_second() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("one", 1).await;
    for _ in 0..3 {
        assert_eq!(devcp.get(&node, "state").await.status, StatusCode::OK);
    }
    devcp.get(&node, "nothing").await;
    let rates: Value = devcp.admin(Method::GET, "rates", None).await.json();
    let seconds: Vec<&Value> = rates.as_object().unwrap().values().collect();
    let count = |name: &str| -> u64 {
        seconds.iter().map(|second| second["requests"][name].as_u64().unwrap_or_default()).sum()
    };
    assert_eq!((count("register"), count("state")), (1, 3), "{rates}");
    assert!(seconds.iter().any(|second| second["connections"].as_u64().unwrap() > 0), "{rates}");
}
