//! What a node does while the control plane, or one of its own halves, is away.

use plexd_e2e::wait_until;
use serde_json::json;

use crate::support::{Mesh, SOON, Single, wait_problem};

#[test]
fn a_killed_core_restores_everything_without_the_control_plane() {
    let mut mesh = Mesh::up();
    let _servers = [8080, 9090].map(|port| mesh.b.node.host().serve(port, "here"));
    let data = json!([{ "key": "routes.json", "payload": { "x": 1 } }]);
    mesh.control_plane.set_state(&mesh.b.id, &json!({ "metadata": { "region": "eu" }, "data": data }));
    let node = &mesh.b.node;
    wait_until(SOON, "the state", || {
        let answer = node.curl_unix("/v1/state", &[]);
        answer.status == 200 && answer.body.contains("routes.json") && answer.body.contains("region")
    });
    let body = r#"{"content_type":"application/json","payload":"kept"}"#;
    node.curl_unix("/v1/state/report/health", &["-X", "PUT", "-d", body]).expect_status(200);
    let before = (node.curl_unix("/v1/state", &[]).json(), mesh.b.table(), sorted(&mesh.b.wg("allowed-ips")));

    mesh.control_plane.stop();
    mesh.b.node.take_core().kill9();
    mesh.b.node.start_core();
    let b = &mesh.b;
    b.wait_status("the peer in WireGuard", |status| status["mesh"]["peers_configured"] == 1);
    assert_eq!(sorted(&b.wg("allowed-ips")), before.2);
    assert_eq!(b.table(), before.1);
    wait_until(SOON, "the state as it was", || {
        let answer = b.node.curl_unix("/v1/state", &[]);
        if answer.json() == before.0 { Ok(()) } else { Err(answer) }
    });
    let report = b.node.curl_unix("/v1/state/report/health", &[]).with_status(200).json();
    assert_eq!((&report["payload"], &report["version"]), (&json!("kept"), &json!(1)));
    mesh.a.wait_http(b, 8080);
    assert_eq!(mesh.a.http(b, 9090).code, Some(28), "policy is enforced");
    let routes = b.node.host().run(&["ip", "route", "show", "dev", "plexd0"]).succeeded().stdout;
    assert!(routes.contains(&mesh.a.mesh_ip), "{routes}");
    assert_eq!(b.node.status()["identity"]["enrolment"], "enrolled");
}

/// The machine's clock is everybody's here, so that only what a node remembers of it can be moved.
#[test]
fn a_clock_that_was_later_before_a_restart_is_said_to_be_why_handshakes_fail() {
    let mut mesh = Mesh::up();
    let status = mesh.a.wait_status("a comparison of clocks", |status| {
        status["control_plane"]["clock_skew_seconds"].is_number()
    });
    assert_eq!(status["control_plane"]["clock_skew_seconds"], 0);
    assert_eq!(mesh.a.node.take_core().terminate().code(), Some(0));
    // A handshake would show that none fails.
    mesh.b.node.take_core().terminate();
    let path = "/var/lib/plexd/clock.json";
    let host = mesh.a.node.host();
    let mut kept: serde_json::Value = host.run(&["cat", path]).succeeded().json();
    assert!(kept["known"].is_string() && kept["told"].is_null(), "{kept}");
    kept["highest"][0] = json!("2090-01-01T00:00:00Z");
    host.run(&["sh", "-c", &format!("echo '{kept}' > {path}")]).expect_success();
    mesh.a.node.start_core();
    wait_problem(&mesh.a.node, &["went back", "until 2090-01-01T00:00:00Z", "rotate this node's key"]);
    // A new key begins anew.
    let path = format!("/admin/nodes/{}/heartbeat", mesh.a.id);
    mesh.control_plane.admin("PUT", &path, Some(&json!({ "rotate_keys": true })));
    mesh.a.wait_status("health", |status| status["health"] == "healthy");
}

fn sorted(lines: &str) -> Vec<String> {
    let mut lines: Vec<String> = lines.lines().map(Into::into).collect();
    lines.sort();
    lines
}

#[test]
fn reports_written_without_the_control_plane_arrive_later() {
    let mut single = Single::new("node_api:\n  report_debounce: 100ms\n");
    single.control_plane.stop();
    for version in 1..=3 {
        assert_eq!(single.put_report("health", &version.to_string()), version);
    }
    single.put_report("inventory", "[]");
    single.a.node.take_core().kill9();
    single.a.node.start_core();
    single.control_plane.start_again();
    single.wait_synced(|reports| {
        reports["health"]["version"] == 3
            && reports["health"]["payload"] == 3
            && reports["inventory"].is_object()
    });
    single.a.wait_status("nothing pending", |status| status["reports"]["pending"] == 0);
}

#[test]
fn reads_go_on_while_core_is_away() {
    let mut single = Single::new("").with_the_guides_state();
    single.put_report("health", "1");
    let here = single.a.node.curl_unix("/v1/state", &[]).with_status(200);
    assert_eq!(here.header("plexd-state-age"), None);

    single.a.node.take_core().kill9();
    let node = &single.a.node;
    let away = wait_until(SOON, "an age on the state", || {
        let answer = node.curl_unix("/v1/state", &[]);
        if answer.header("plexd-state-age").is_some() { Ok(answer) } else { Err(answer) }
    });
    assert_eq!((away.status, away.json()), (200, here.json()));
    let age: u64 = away.header("plexd-state-age").unwrap_or_default().parse().unwrap();
    assert!(age < 60, "{age} s");
    for path in ["/v1/state/metadata/region", "/v1/state/data/routes.json", "/v1/state/report/health"] {
        node.curl_unix(path, &[]).expect_status(200);
    }

    let body = r#"{"content_type":"t","payload":2}"#;
    let refused: [(&str, &[&str]); 3] = [
        ("/v1/state/report/health", &["-X", "PUT", "-d", body]),
        ("/v1/state/report/health", &["-X", "DELETE"]),
        ("/v1/state/secrets/db%2Fpassword", &[]),
    ];
    for (path, arguments) in refused {
        let answer = node.curl_unix(path, arguments);
        assert_eq!((answer.status, answer.json()), (503, json!({ "error": "core unavailable" })), "{path}");
    }

    single.a.node.start_core();
    wait_until(SOON, "a fresh state", || {
        let answer = single.a.node.curl_unix("/v1/state", &[]);
        answer.status == 200 && answer.header("plexd-state-age").is_none()
    });
    assert_eq!(single.put_report("health", "2"), 2);
}

#[test]
fn a_restarted_api_serves_what_core_has() {
    let mut single = Single::new("").with_the_guides_state();
    let before = single.a.node.curl_unix("/v1/state", &[]).json();
    single.a.node.take_api().kill9();
    single.a.node.start_api();
    let after = single.wait_api("/v1/state", |_| true);
    assert_eq!(after, before);
}

#[test]
fn a_node_that_is_killed_again_and_again_always_serves_again() {
    let mut single = Single::new("").with_the_guides_state();
    // The longest key there is, in bytes that need escaping.
    let key = "%2F".repeat(256);
    for round in 1..=8 {
        assert_eq!(single.put_report(&key, &round.to_string()), round);
        single.a.node.take_core().kill9();
        if round % 2 == 0 {
            single.a.node.take_api().kill9();
            single.a.node.start_api();
        }
        single.a.node.start_core();
        let path = format!("/v1/state/report/{key}");
        let report = wait_until(SOON, "the report, from a state that is known again", || {
            let answer = single.a.node.curl_unix(&path, &[]);
            let is_fresh = answer.header("plexd-state-age").is_none();
            if answer.status == 200 && is_fresh { Ok(answer.json()) } else { Err(answer) }
        });
        assert_eq!((&report["version"], &report["payload"]), (&json!(round), &json!(round)));
    }
    let name = "/".repeat(256);
    single.wait_synced(|reports| reports[&name]["version"] == 8);
    single.wait_api("/v1/state", |state| state["metadata"]["region"] == "us-west-2");
}

#[test]
fn a_report_acknowledged_just_before_a_stop_is_sent_after_the_start() {
    // The default waits 5 s for further changes.
    let mut single = Single::new("");
    single.put_report("health", "1");
    assert_eq!(single.a.node.take_core().terminate().code(), Some(0));
    single.a.node.start_core();
    single.wait_synced(|reports| reports["health"]["version"] == 1);
}
