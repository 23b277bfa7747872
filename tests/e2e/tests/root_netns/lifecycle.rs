//! The life of a node from one identity to the next, and what a stop leaves behind.

use std::time::Duration;

use plexd_e2e::wait_until;
use serde_json::{Value, json};

use crate::support::{SOON, Single, wait_status};

/// How long the first state of 10,000 entries may take to arrive, on a slow machine in a debug build.
const LATE: Duration = Duration::from_secs(90);

/// Tells the control plane, with the node's own credential, to forget the node.
fn deregister(single: &Single) {
    let host = single.a.node.host();
    let identity =
        std::fs::read(host.path("/var/lib/plexd/identity.json")).expect("an enrolled node has one");
    let identity: Value = serde_json::from_slice(&identity).expect("it is JSON");
    let secret = identity["node_secret_key"].as_str().expect("it has a credential");
    let url = format!("{}/v1/nodes/{}/deregister", single.control_plane.url(), single.a.id);
    let bearer = format!("Authorization: Bearer {secret}");
    host.run(&["curl", "-sSf", "--cacert", "/etc/plexd/ca.pem", "-X", "POST", "-H", &bearer, &url])
        .expect_success();
}

#[test]
fn a_node_that_the_control_plane_forgot_joins_anew_and_keeps_its_reports() {
    let single = Single::new("heartbeat:\n  interval: 5s\n");
    single.put_report("health", "1");
    single.wait_synced(|reports| reports["health"].is_object());
    deregister(&single);
    let node = &single.a.node;
    let status = wait_status(node, "the refusal", |status| status["identity"]["enrolment"] == "unauthorized");
    assert!(status["problems"].to_string().contains("plexd-ctl join"), "{status}");
    node.curl_unix("/v1/state/report/health", &[]).expect_status(200);

    node.host().write("/etc/plexd/token", 0o600, single.control_plane.token());
    let joined = node.ctl_json(&["join", "--token-file", "/etc/plexd/token"]);
    assert_ne!(joined["node_id"], single.a.id.as_str());
    wait_status(node, "health", |status| {
        status["health"] == "healthy"
            && status["identity"]["node_id"] == joined["node_id"]
            && status["control_plane"]["stream"] == "connected"
    });
    let report = node.curl_unix("/v1/state/report/health", &[]).with_status(200).json();
    assert_eq!(report["version"], 1);
    let id = joined["node_id"].as_str().expect("an id").to_owned();
    assert_eq!(single.put_report("health", "2"), 2);
    wait_until(SOON, "the report under the new identity", || {
        let received = single.control_plane.received(&id);
        let version = &received["reports_current"]["health"]["version"];
        if *version == 2 { Ok(()) } else { Err(received.to_string()) }
    });
}

#[test]
fn a_stop_keeps_the_policy_or_takes_it_down_as_configured() {
    for (more, tables) in [("", 1), ("on_stop: teardown\n", 0)] {
        let mut single = Single::new(more);
        single.a.table();
        single.a.node.take_core().terminate();
        let left = single.a.node.host().run(&["nft", "list", "tables"]).succeeded().stdout;
        assert_eq!(
            left.lines().filter(|line| *line == "table inet plexd").count(),
            tables,
            "{more:?}: {left}"
        );
    }
}

#[test]
fn ten_thousand_entries_are_there_after_a_start_with_and_without_the_control_plane() {
    let mut single = Single::new("");
    let entry = |n: u32| json!({ "key": format!("entry-{n:05}"), "payload": { "n": n } });
    let data: Vec<Value> = (0..10_000).map(entry).collect();
    single.control_plane.set_state(&single.a.id, &json!({ "data": data }));
    let all_there = |single: &Single| {
        wait_until(LATE, "10,000 entries", || {
            let answer = single.a.node.curl_unix("/v1/state/data", &[]);
            let count = answer.json().as_array().map(Vec::len);
            if answer.status == 200 && count == Some(10_000) { Ok(()) } else { Err(format!("{count:?}")) }
        });
        let last = single.a.node.curl_unix("/v1/state/data/entry-09999", &[]).with_status(200).json();
        assert_eq!(last["payload"], json!({ "n": 9_999 }));
    };
    all_there(&single);
    single.a.node.take_core().kill9();
    single.a.node.start_core();
    all_there(&single);
    single.control_plane.stop();
    single.a.node.take_core().kill9();
    single.a.node.start_core();
    all_there(&single);
}
