//! Registration, the mesh it makes, key rotation, deregistration.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{Devcp, answer, key, state_dir};

#[tokio::test]
async fn a_registration_answers_what_the_documents_say() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let node = devcp.enrol("web-01", 1).await;
    assert!(node.id.starts_with("n_"));
    assert_eq!(node.answer["mesh_ip"], "10.100.0.1");
    assert_eq!(node.answer["peers"], json!([]));
    for name in ["signing_public_key", "node_secret_key"] {
        assert_eq!(node.answer[name].as_str().unwrap().len(), 44, "{name} is 32 bytes of base64");
    }
    assert_eq!(devcp.enrol("web-02", 2).await.answer["mesh_ip"], "10.100.0.2");
}

#[tokio::test]
async fn the_same_token_and_key_get_the_same_answer_and_another_key_none() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let token = devcp.token(&json!({})).await;
    let mut body = json!({"token": token, "public_key": key(1), "hostname": "web-01"});
    let first = devcp.register(&body).await;
    let again = devcp.register(&body).await;
    assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::CREATED));
    assert_eq!(first.text(), again.text());
    body["public_key"] = json!(key(2));
    let other = devcp.register(&body).await;
    assert_eq!((other.status, other.error().as_str()), (StatusCode::UNAUTHORIZED, "unauthorized"));
}

#[tokio::test]
async fn unknown_and_expired_tokens_are_refused() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let expired = devcp.token(&json!({"ttl": "0s"})).await;
    for token in [expired.as_str(), "plx_enroll_unknown"] {
        let body = json!({"token": token, "public_key": key(1), "hostname": "web-01"});
        assert_eq!(devcp.register(&body).await.status, StatusCode::UNAUTHORIZED, "{token}");
    }
}

#[tokio::test]
async fn a_hostname_is_registered_once_and_the_refusal_keeps_the_token() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    devcp.enrol("web-01", 1).await;
    let token = devcp.token(&json!({})).await;
    let mut body = json!({"token": token, "public_key": key(2), "hostname": "web-01"});
    assert_eq!(devcp.register(&body).await.status, StatusCode::CONFLICT);
    body["hostname"] = json!("web-02");
    assert_eq!(devcp.register(&body).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn malformed_registrations_are_refused_with_400() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let token = devcp.token(&json!({})).await;
    let good = json!({"token": token, "public_key": key(1), "hostname": "web-01"});
    for name in ["token", "public_key", "hostname"] {
        for bad in [json!(null), json!(""), json!(7)] {
            let mut body = good.clone();
            body[name] = bad;
            assert_eq!(devcp.register(&body).await.status, StatusCode::BAD_REQUEST, "{body}");
        }
    }
    for bad in ["...", "AAAA", &key(1)[..43]] {
        let mut body = good.clone();
        body["public_key"] = json!(bad);
        assert_eq!(devcp.register(&body).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let request = devcp.request(Method::POST, "register").body(good.to_string());
    assert_eq!(answer(request).await.status, StatusCode::BAD_REQUEST, "no content type");
    assert_eq!(devcp.register(&good).await.status, StatusCode::CREATED, "the token is still good");
}

#[tokio::test]
async fn nodes_become_peers_with_one_psk_per_pair() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let one = devcp.enrol("one", 1).await;
    let mut events = devcp.events(&one, None).await;
    let two = devcp.enrol("two", 2).await;
    let added = events.expect("peer_added").await.payload();
    let seen_by_two = &two.answer["peers"][0];
    let seen_by_one = devcp.state(&one).await["peers"][0].clone();
    assert_eq!(added, seen_by_one);
    assert_eq!(seen_by_one["psk"], seen_by_two["psk"]);
    assert_eq!(seen_by_one["psk"].as_str().unwrap().len(), 44);
    assert_eq!(seen_by_one["id"], two.id.as_str());
    assert_eq!(seen_by_one["public_key"], key(2));
    assert_eq!(seen_by_one["mesh_ip"], "10.100.0.2");
    assert_eq!(seen_by_one["allowed_ips"], json!(["10.100.0.2/32"]));
    assert_eq!(seen_by_one["endpoint"], "127.0.0.1:51820");
    let three = devcp.enrol("three", 3).await;
    let psks: Vec<_> =
        three.answer["peers"].as_array().unwrap().iter().map(|peer| peer["psk"].clone()).collect();
    assert!(psks[0] != psks[1] && !psks.contains(&seen_by_one["psk"]), "a PSK per pair");
}

#[tokio::test]
async fn endpoints_follow_the_heartbeat_and_then_the_report() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let (one, two) = (devcp.enrol("one", 1).await, devcp.enrol("two", 2).await);
    let mut events = devcp.events(&two, None).await;
    let heartbeat = json!({
        "node_id": one.id, "timestamp": "2026-01-15T10:30:00Z", "status": "healthy", "uptime": "72h15m",
        "binary_checksum": "sha256:a1", "mesh": {"interface": "plexd0", "peer_count": 1, "listen_port": 51900},
    });
    devcp.send(&one, Method::POST, "heartbeat", &heartbeat.to_string()).await;
    let changed = events.expect("peer_endpoint_changed").await.payload();
    assert_eq!(changed, json!({"peer_id": one.id, "endpoint": "127.0.0.1:51900"}));
    let report = r#"{"public_endpoint":"203.0.113.10:51820","nat_type":"full_cone"}"#;
    let answer = devcp.send(&one, Method::PUT, "endpoint", report).await;
    assert_eq!(
        answer.json(),
        json!({"peer_endpoints": [{"peer_id": two.id, "endpoint": "127.0.0.1:51820"}]})
    );
    let changed = events.expect("peer_endpoint_changed").await.payload();
    assert_eq!(changed["endpoint"], "203.0.113.10:51820");
    assert_eq!(devcp.state(&two).await["peers"][0]["endpoint"], "203.0.113.10:51820");
    let bad =
        devcp.send(&one, Method::PUT, "endpoint", r#"{"public_endpoint":"nowhere","nat_type":""}"#).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_rotated_key_is_announced_once_and_the_same_request_is_answered_again() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let (one, two) = (devcp.enrol("one", 1).await, devcp.enrol("two", 2).await);
    let old_psk = devcp.state(&one).await["peers"][0]["psk"].clone();
    let mut events = devcp.events(&two, None).await;
    let body = json!({"node_id": one.id, "new_public_key": key(9)}).to_string();
    let rotate = |bearer: &str| {
        let request = devcp.request(Method::POST, "keys/rotate").header("content-type", "application/json");
        answer(request.bearer_auth(bearer).body(body.clone()))
    };
    assert_eq!(rotate(&two.secret).await.status, StatusCode::UNAUTHORIZED, "another node's credential");
    let first = rotate(&one.secret).await;
    assert_eq!(first.status, StatusCode::OK);
    let psk = first.json()["updated_peers"][0]["psk"].clone();
    assert_ne!(psk, old_psk);
    let rotated = events.expect("peer_key_rotated").await.payload();
    assert_eq!(rotated, json!({"peer_id": one.id, "public_key": key(9), "psk": psk}));
    assert_eq!(rotate(&one.secret).await.text(), first.text());
    devcp.enrol("three", 3).await;
    events.expect("peer_added").await;
}

#[tokio::test]
async fn a_deregistered_node_is_gone_for_everybody() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let (one, two) = (devcp.enrol("one", 1).await, devcp.enrol("two", 2).await);
    let mut own = devcp.events(&one, None).await;
    let mut events = devcp.events(&two, None).await;
    let gone = answer(devcp.as_node(&one, Method::POST, "deregister")).await;
    assert_eq!(gone.status, StatusCode::OK);
    assert_eq!(events.expect("peer_removed").await.payload(), json!({"peer_id": one.id}));
    assert!(own.next().await.is_none(), "its stream ends");
    assert_eq!(devcp.state(&two).await["peers"], json!([]));
    assert_eq!(devcp.get(&one, "state").await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        devcp.enrol("one", 1).await.answer["mesh_ip"],
        "10.100.0.3",
        "the name is free, the address is not"
    );
}

#[tokio::test]
async fn every_endpoint_asks_for_the_nodes_own_credential() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let (one, two) = (devcp.enrol("one", 1).await, devcp.enrol("two", 2).await);
    let calls = [
        (Method::GET, "events"),
        (Method::POST, "heartbeat"),
        (Method::POST, "deregister"),
        (Method::PUT, "capabilities"),
        (Method::PUT, "endpoint"),
        (Method::GET, "state"),
        (Method::POST, "drift"),
        (Method::GET, "secrets/k"),
        (Method::POST, "report"),
        (Method::POST, "executions/e/ack"),
        (Method::POST, "executions/e/result"),
        (Method::POST, "metrics"),
        (Method::POST, "logs"),
        (Method::POST, "audit"),
    ];
    for (method, path) in calls {
        let own = format!("nodes/{}/{path}", one.id);
        let none = answer(devcp.request(method.clone(), &own)).await;
        assert_eq!(
            (none.status, none.error().as_str()),
            (StatusCode::UNAUTHORIZED, "unauthorized"),
            "{path}"
        );
        let wrong = answer(devcp.request(method.clone(), &own).bearer_auth(&two.secret)).await;
        assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "{path}");
        let unknown =
            devcp.request(method.clone(), &format!("nodes/n_unknown/{path}")).bearer_auth(&one.secret);
        assert_eq!(answer(unknown).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["keys/rotate", "artifacts/plexd/1.5.0/linux/amd64"] {
        let method = if path.starts_with("keys") { Method::POST } else { Method::GET };
        assert_eq!(answer(devcp.request(method, path)).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let wrong_method = answer(devcp.as_node(&one, Method::DELETE, "state")).await;
    assert_eq!(
        (wrong_method.status, wrong_method.allow.as_deref()),
        (StatusCode::METHOD_NOT_ALLOWED, Some("GET"))
    );
}
