//! Mistakes, each told in one line that names the thing and the way out, and nothing half applied.

use std::fs;
use std::time::Duration;

use plexd_e2e::{ControlPlane, Daemon, Lab, Node, Output, wait_until};
use serde_json::{Value, json};

use crate::support::{Member, Mesh, SOON, Single, wait_problem};

/// How long a start that is to fail may take.
const REFUSAL: Duration = Duration::from_secs(10);

/// A node that has not been started, and what keeps its host up.
struct Idle {
    node: Node,
    control_plane: ControlPlane,
    lab: Lab,
}

fn idle(more: &str) -> Idle {
    let lab = Lab::new(&["cp", "a", "other"]);
    let control_plane = ControlPlane::start(lab.host("cp"));
    let node = Node::new(lab.host("a"), &control_plane, more);
    Idle { node, control_plane, lab }
}

/// Waits for the end of a daemon that must refuse to start; returns its last words.
#[track_caller]
fn last_words(mut daemon: Daemon) -> String {
    let status = daemon.wait(REFUSAL);
    assert!(!status.success() && status.code().is_some(), "{status}: {}", daemon.log());
    daemon.log().lines().last().unwrap_or_default().to_owned()
}

#[track_caller]
fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is not said: {line}");
    }
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_the_nearest_one() {
    let idle = idle("node_api:\n  soket_group: plexd\n");
    let words = ["/etc/plexd/config.yaml:5:", "soket_group", "socket_group"];
    for daemon in [idle.node.spawn_core(), idle.node.spawn_api()] {
        assert_says(&last_words(daemon), &words);
    }
    assert!(!idle.node.host().path("/run/plexd/admin.sock").exists(), "nothing is half started");
}

#[test]
fn check_says_what_run_would_say() {
    let idle = idle("mesh:\n  mtu: 100\n");
    let host = idle.node.host();
    let check = || -> Output {
        host.run(&[&host.program("plexd-core"), "check", "--config", "/etc/plexd/config.yaml"])
    };
    let output = check();
    assert!(!output.is_success());
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
    assert_says(&output.stderr, &["mesh.mtu", "1280 to 9000"]);
    idle.node.configure("api: https://192.0.2.1:8443\nmesh:\n  mtu: 1300\n");
    check().expect_success();
    idle.node.configure("api: http://192.0.2.1:8443\n");
    assert_says(&check().stderr, &["api", "https"]);
    fs::remove_file(host.path("/etc/plexd/config.yaml")).expect("the file was there");
    let output = check();
    assert_says(&output.stderr, &["/etc/plexd/config.yaml", "No such file", "--config"]);
    assert_eq!(output.stderr.matches("No such file").count(), 1, "the cause is told once: {output}");
}

#[test]
fn a_missing_group_is_named_and_no_wider_mode_is_used() {
    let idle = idle("node_api:\n  socket_group: no-such-group\n");
    assert_says(&last_words(idle.node.spawn_api()), &["no-such-group", "does not exist", "groupadd"]);
    assert!(!idle.node.host().path("/run/plexd/api.sock").exists());

    // The groups of the machine, without plexd-admin, for this host only.
    let host = idle.node.host();
    let groups = fs::read_to_string("/etc/group").unwrap();
    let without: Vec<&str> = groups.lines().filter(|line| !line.starts_with("plexd-admin:")).collect();
    let file = host.directory().join("group");
    fs::write(&file, without.join("\n") + "\n").unwrap();
    host.run(&["mount", "--bind", &file.display().to_string(), "/etc/group"]).expect_success();
    idle.node.configure("api: https://192.0.2.1:8443\n");
    assert_says(&last_words(idle.node.spawn_core()), &["plexd-admin", "does not exist", "groupadd"]);
    assert!(!host.path("/run/plexd/admin.sock").exists());
}

#[test]
fn a_token_file_that_cannot_be_used_leaves_core_up_and_degraded() {
    let mut idle = idle("");
    let path = idle.node.host().path("/etc/plexd/bootstrap-token");
    fs::create_dir(&path).unwrap();
    idle.node.start_core();
    wait_problem(&idle.node, &["/etc/plexd/bootstrap-token", "cannot be read", "plexd-ctl join"]);
    idle.node.take_core().kill9();

    fs::remove_dir(&path).unwrap();
    idle.node.write_token("");
    idle.node.start_core();
    wait_problem(&idle.node, &["/etc/plexd/bootstrap-token", "empty"]);

    // The way out.
    idle.node.host().write("/etc/plexd/token", 0o600, idle.control_plane.token());
    idle.node.ctl(&["join", "--token-file", "/etc/plexd/token"]).expect_success();
    idle.node.wait_enrolled();
}

#[test]
fn a_used_token_is_refused_with_the_way_out() {
    let mut idle = idle("");
    let token = idle.control_plane.token();
    let mut other = Node::new(idle.lab.host("other"), &idle.control_plane, "");
    other.write_token(&token);
    other.start_core();
    other.wait_enrolled();
    idle.node.write_token(&token);
    idle.node.start_core();
    wait_problem(&idle.node, &["token", "plexd-ctl join"]);
    let status = idle.node.status();
    assert!(!status.to_string().contains(&token), "the token is shown: {status}");
    assert!(!idle.node.core().log().contains(&token), "the token is logged");
}

#[test]
fn a_control_plane_with_another_certificate_is_not_believed() {
    let mut idle = idle("");
    let other = ControlPlane::start(idle.lab.host("other"));
    idle.node.host().write("/etc/plexd/ca.pem", 0o644, other.ca_pem());
    idle.node.write_token(&idle.control_plane.token());
    idle.node.start_core();
    wait_problem(&idle.node, &["certificate"]);
    assert_eq!(
        idle.control_plane.admin("GET", "/admin/nodes", None)["nodes"],
        json!([]),
        "it sent its token"
    );
    let status = idle.node.status();
    assert_ne!(status["identity"]["enrolment"], "enrolled");
    assert_eq!(status["mesh"]["peers_configured"], 0);
}

#[test]
fn an_enrolled_node_keeps_its_state_when_the_certificate_is_wrong() {
    let mut mesh = Mesh::up();
    let other = mesh.lab.host("b");
    // Another authority, at the same address: what a hijacked name would look like.
    let stranger = {
        let lab = Lab::new(&["cp"]);
        ControlPlane::start(lab.host("cp")).ca_pem()
    };
    let host = mesh.a.node.host().clone();
    host.write("/etc/plexd/ca.pem", 0o644, stranger);
    let table = mesh.a.table();
    mesh.a.node.take_core().kill9();
    mesh.a.node.start_core();
    wait_problem(&mesh.a.node, &["certificate"]);
    assert_eq!(mesh.a.table(), table);
    let _server = other.serve(8080, "here");
    mesh.a.wait_http(&mesh.b, 8080);
}

#[test]
fn bad_peers_are_named_and_the_others_are_up() {
    let mesh = Mesh::up();
    let Value::Object(state) = mesh.control_plane.admin("GET", &format!("/admin/nodes/{}", mesh.a.id), None)
    else {
        panic!("no object")
    };
    let good = state["state"]["peers"][0].clone();
    let like_good = |id: &str, key: &str, address: &str, changes: Value| {
        let mut peer = good.clone();
        peer["id"] = json!(id);
        peer["public_key"] = json!(format!("{key}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="));
        peer["mesh_ip"] = json!(address);
        peer["allowed_ips"] = json!([format!("{address}/32")]);
        for (name, value) in changes.as_object().into_iter().flatten() {
            peer[name] = value.clone();
        }
        peer
    };
    let everything = |id, key, address: &str| {
        like_good(
            id,
            key,
            address,
            json!({ "allowed_ips": [format!("{address}/32"), "0.0.0.0/0"], "endpoint": null }),
        )
    };
    let peers = json!([
        // 31 bytes.
        like_good(
            "n_short",
            "BA",
            "10.100.9.1",
            json!({ "public_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==" })
        ),
        like_good("n_port", "BB", "10.100.9.2", json!({ "endpoint": "host:99999" })),
        like_good("n_address", "BC", "10.100.9.3", json!({ "mesh_ip": "10.100.9" })),
        everything("n_first", "BD", "10.100.9.4"),
        everything("n_second", "BE", "10.100.9.5"),
        good,
    ]);
    mesh.set_rules_of(&mesh.a, &json!([{ "src": "*", "dst": "*", "action": "allow" }]));
    mesh.control_plane.set_state(&mesh.a.id, &json!({ "peers": peers }));
    for words in [
        ["n_short", "31"],
        ["n_port", "host:99999"],
        ["n_address", "10.100.9"],
        ["0.0.0.0/0 of n_second", "n_first"],
    ] {
        wait_problem(&mesh.a.node, &words);
        wait_until(SOON, &format!("drift that says {words:?}"), || {
            let drift = mesh.control_plane.received(&mesh.a.id)["drift"].clone();
            let reports = drift.as_array().map(Vec::as_slice).unwrap_or_default();
            let mut corrections =
                reports.iter().filter_map(|report| report["body"]["corrections"].as_array()).flatten();
            let says = |correction: &Value| {
                let detail = correction["detail"].as_str().unwrap_or_default();
                correction["type"] == "peer_rejected" && words.iter().all(|word| detail.contains(word))
            };
            if corrections.any(says) { Ok(()) } else { Err(drift.to_string()) }
        });
    }
    mesh.a.wait_wg_peers(3);
    let _server = mesh.b.node.host().serve(8080, "here");
    mesh.a.wait_http(&mesh.b, 8080);
}

#[test]
fn an_invalid_policy_leaves_the_old_one_in_force() {
    let mesh = Mesh::up();
    let b = &mesh.b;
    let before = b.table();
    let invalid = [
        json!({ "src": "*", "dst": "*", "action": "drop" }),
        json!({ "src": "*", "dst": "*", "port": 80, "action": "allow" }),
        json!({ "src": "*", "dst": "*", "protocol": "icmp", "action": "allow" }),
        json!({ "src": "10.100.0.300", "dst": "*", "action": "allow" }),
    ];
    for rule in invalid {
        // The first rule of the set is fine, and must not be applied either.
        mesh.set_rules_of(b, &json!([mesh.allow(9090), rule]));
        let word = if rule["action"] == "drop" { "drop" } else { "rule 2" };
        let status = b.wait_status(&format!("the refusal of {rule}"), |status| {
            let rejected = status["policy"]["rejected"].as_str().unwrap_or_default();
            status["health"] == "degraded" && rejected.contains(word)
        });
        assert_eq!(b.table(), before, "{status}");
        mesh.set_rules_of(b, &json!([mesh.allow(8080)]));
        b.wait_status("the end of the refusal", |status| {
            status["policy"]["rejected"].is_null() && status["health"] == "healthy"
        });
    }
    wait_until(SOON, "the drift at the control plane", || {
        let drift = mesh.control_plane.received(&b.id)["drift"].to_string();
        if drift.contains("policy_rejected") { Ok(()) } else { Err(drift) }
    });
}

#[test]
fn a_token_file_of_the_api_that_others_can_read_or_that_is_empty_stops_the_start() {
    let idle = idle("node_api:\n  http_enabled: true\n  http_token_file: /etc/plexd/api-token\n");
    let host = idle.node.host();
    assert_says(&last_words(idle.node.spawn_core()), &["/etc/plexd/api-token", "http_token_file"]);
    host.write("/etc/plexd/api-token", 0o644, "token\n");
    assert_says(&last_words(idle.node.spawn_core()), &["/etc/plexd/api-token", "chmod 600"]);
    host.write("/etc/plexd/api-token", 0o600, "\n");
    assert_says(&last_words(idle.node.spawn_core()), &["/etc/plexd/api-token", "empty"]);
    assert!(!host.path("/run/plexd/admin.sock").exists(), "nothing is half started");
}

#[test]
fn data_that_makes_no_sense_is_named_and_the_rest_is_there() {
    let single = Single::new("");
    let Member { node, id, .. } = &single.a;
    let time = "2025-06-01T12:34:56Z";
    let bad_key = "x".repeat(300);
    let data = json!([
        { "key": bad_key, "content_type": "t", "payload": 1, "version": 1, "updated_at": time },
        { "key": "../../../pwned", "content_type": "t", "payload": 1, "version": 1, "updated_at": time },
        { "key": "good", "content_type": "t", "payload": 1, "version": 1, "updated_at": time },
    ]);
    single.control_plane.set_state(id, &json!({ "data": data }));
    single.wait_api("/v1/state/data", |list| list.to_string().contains("\"good\""));
    node.curl_unix("/v1/state/data/..%2F..%2F..%2Fpwned", &["--path-as-is"]).expect_status(200);
    wait_problem(node, &["xxx"]);
    // Where the key would lead from anywhere below these, or from a working directory.
    let folders = ["/var/lib", "/run", "/etc", "/tmp"].map(|folder| format!("'{folder}'")).join(" ");
    let stray =
        node.host().shell(None, &format!("find / -maxdepth 1 -name pwned; find {folders} -name pwned"));
    assert_eq!(stray.stdout, "", "no key is a file name");
}

#[test]
fn the_example_configuration_is_valid() {
    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/examples/config.yaml");
    let idle = idle("");
    let host = idle.node.host();
    idle.node.configure(&fs::read_to_string(EXAMPLE).expect("the example is in the repository"));
    host.run(&[&host.program("plexd-core"), "check"]).expect_success();
    let mut api = idle.node.spawn_api();
    api.wait_ready("any answer to curl", || idle.node.try_curl_unix(None, "/v1/state", &[]));
}

#[test]
fn a_node_whose_identity_is_refused_says_so_and_keeps_its_mesh() {
    let mesh = Mesh::up();
    let table = mesh.a.table();
    mesh.control_plane.set_faults(&json!({ "status": 401, "drop_streams": true }));
    mesh.a.wait_status("the refusal", |status| status["identity"]["enrolment"] == "unauthorized");
    assert_eq!(mesh.a.node.status()["health"], "degraded");
    assert_eq!(mesh.a.table(), table);
    let _server = mesh.b.node.host().serve(8080, "here");
    mesh.a.wait_http(&mesh.b, 8080);
    mesh.a.node.curl_unix("/v1/state", &[]).expect_status(200);
}
