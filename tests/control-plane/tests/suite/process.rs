//! The process: arguments, refusals to start, restarts, certificates.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Devcp, client, command, key, state_dir};

/// Runs what has to fail; returns the exit code and what was said.
fn fails(args: &[&str], dir: &Path) -> (Option<i32>, String) {
    let output = command().args(args).arg("--state").arg(dir).output().unwrap();
    assert!(output.stdout.is_empty());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_admin_api_is_never_off_loopback() {
    let dir = state_dir();
    for admin in ["0.0.0.0:0", "192.0.2.1:0", "[::]:0"] {
        let (code, said) = fails(&["serve", "--listen", "127.0.0.1:0", "--admin", admin], dir.path());
        assert_eq!(code, Some(1));
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("loopback"), "{said}");
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let dir = state_dir();
    let (code, _) = fails(&["serve", "--listen", "nowhere", "--admin", "127.0.0.1:0"], dir.path());
    assert_eq!(code, Some(2));
}

#[test]
fn a_directory_in_use_and_a_damaged_one_are_refused_in_one_line() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let (code, said) = fails(&args, dir.path());
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("in use"), "{said}");
    devcp.kill();
    std::fs::write(dir.path().join("signing.json"), "{").unwrap();
    let (code, said) = fails(&args, dir.path());
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("signing.json") && said.contains("damaged"), "{said}");
}

/// Who is registered, without what depends on open connections.
async fn identities(devcp: &Devcp) -> Vec<(Value, Value, Value)> {
    let nodes = devcp.admin(Method::GET, "nodes", None).await.json();
    let nodes = nodes["nodes"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| (node["id"].clone(), node["mesh_ip"].clone(), node["public_key"].clone()))
        .collect()
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = state_dir();
    let devcp = Devcp::start(dir.path());
    let used = devcp.token(&json!({})).await;
    let registration = json!({"token": used, "public_key": key(7), "hostname": "seven"});
    let first = devcp.register(&registration).await.json();
    let (one, two) = (devcp.enrol("one", 1).await, devcp.enrol("two", 2).await);
    let unused = devcp.token(&json!({})).await;
    let state = json!({"metadata": {"a": "b"}, "data": [{"key": "k", "payload": 1}], "policies": [{"id": "p", "rules": []}]});
    devcp.manage(Method::PUT, &format!("nodes/{}/state", one.id), &state).await;
    devcp.manage(Method::PUT, &format!("nodes/{}/secrets/s", one.id), &json!({"value": "v"})).await;
    devcp.manage(Method::POST, "signing-key/rotate", &json!({})).await;
    let entry = json!({"key": "r", "content_type": "text/plain", "payload": "x", "version": 1, "updated_at": "2026-01-15T10:30:00Z"});
    devcp.send(&one, Method::POST, "report", &json!({"entries": [entry], "deleted": []}).to_string()).await;
    let mut events = devcp.events(&one, Some("evt_000000000001")).await;
    let replayed = [events.next().await.unwrap(), events.next().await.unwrap(), events.next().await.unwrap()];
    let before = (devcp.state(&one).await, devcp.state(&two).await, devcp.received(&one).await);
    let nodes = identities(&devcp).await;
    let (ca, pinned) = (std::fs::read(&devcp.ca).unwrap(), devcp.client.clone());
    devcp.kill();

    let devcp = Devcp::start(dir.path());
    assert_eq!(std::fs::read(&devcp.ca).unwrap(), ca);
    let url = format!("{}/v1/nodes/{}/state", devcp.wire, one.id);
    assert_eq!(pinned.get(url).bearer_auth(&one.secret).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!((devcp.state(&one).await, devcp.state(&two).await, devcp.received(&one).await), before);
    let mut events = devcp.events(&one, Some("evt_000000000001")).await;
    for event in replayed {
        assert_eq!(events.next().await.unwrap(), event);
    }
    drop(events);
    let again = devcp.register(&registration).await;
    assert_eq!((again.status, &again.json()["node_id"]), (StatusCode::CREATED, &first["node_id"]));
    assert_eq!(identities(&devcp).await, nodes);
    let body = json!({"token": unused, "public_key": key(3), "hostname": "three"});
    let three = devcp.register(&body).await;
    assert_eq!((three.status, &three.json()["mesh_ip"]), (StatusCode::CREATED, &json!("10.100.0.4")));
}

#[tokio::test]
async fn names_of_the_certificate_are_the_ones_asked_for() {
    let dir = state_dir();
    let devcp = Devcp::start_with(dir.path(), &["--name", "cp.example.org", "--name", "192.0.2.7"]);
    let port = devcp.wire.rsplit_once(':').unwrap().1.to_owned();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let pem = reqwest::Certificate::from_pem(&std::fs::read(&devcp.ca).unwrap()).unwrap();
    let named = reqwest::Client::builder()
        .tls_certs_only([pem])
        .no_proxy()
        .resolve("cp.example.org", address)
        .resolve("other.example.org", address)
        .build()
        .unwrap();
    for (name, works) in [("cp.example.org", true), ("other.example.org", false)] {
        let answer = named.get(format!("https://{name}:{port}/v1/register")).send().await;
        assert_eq!(answer.is_ok(), works, "{name}");
    }
    assert!(devcp.client.get(format!("https://localhost:{port}/")).send().await.is_ok());
    let other = state_dir();
    let stranger = Devcp::start(other.path());
    assert!(client(&stranger.ca).get(&devcp.wire).send().await.is_err(), "another CA is not trusted");
}

#[tokio::test]
async fn files_are_private_and_the_certificate_is_not() {
    let dir = state_dir();
    let state = dir.path().join("state");
    let devcp = Devcp::start(&state);
    let node = devcp.enrol("one", 1).await;
    devcp.manage(Method::PUT, &format!("nodes/{}/secrets/s", node.id), &json!({"value": "v"})).await;
    let mode = |path: &str| std::fs::metadata(state.join(path)).unwrap().permissions().mode() & 0o777;
    let own = format!("nodes/{}", node.id);
    for path in ["", "nodes", &own] {
        assert_eq!(mode(path), 0o700, "{path}");
    }
    for file in [
        "signing.json",
        "tokens.json",
        "ca-key.pem",
        &format!("{own}/node.json"),
        &format!("{own}/desired.json"),
    ] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    assert_eq!(mode("ca.pem"), 0o644);
}
