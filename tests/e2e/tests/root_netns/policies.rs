//! What `plexd-ctl policies` says of the policy, beside what the packets do; and the table it prints, in another namespace.

use plexd_e2e::{Output, wait_until};
use serde_json::{Value, json};

use crate::support::{Member, Mesh, SOON, set_rules};

fn explain(on: &Member, from: &str, to: &str, more: &[&str]) -> Value {
    on.node.ctl_json(&[&["policies", "explain", "--src", from, "--dst", to], more].concat())
}

/// Tries whether a packet passes: TCP to a port, or an echo where there is none.
fn passes(from: &Member, to: &Member, port: Option<u16>) -> bool {
    match port {
        Some(port) => from.http(to, port).is_success(),
        None => from.node.host().run(&["ping", "-c1", "-W1", &to.mesh_ip]).is_success(),
    }
}

/// Waits until the rules on `member` are these many.
#[track_caller]
fn wait_rules(member: &Member, count: usize) {
    member.wait_status("the policy", |status| status["policy"]["rules"] == json!(count));
}

#[test]
fn an_explanation_agrees_with_the_packets_on_both_nodes() {
    let mesh = Mesh::new();
    let (a, b) = (&mesh.a, &mesh.b);
    let any = |action: &str, src: &str, dst: &str| json!({ "src": src, "dst": dst, "action": action });
    let tcp = |action: &str, port| json!({ "src": a.id, "dst": b.id, "protocol": "tcp", "port": port, "action": action });
    let wide = json!({ "src": "10.100.0.0/16", "dst": "*", "protocol": "tcp", "action": "allow" });
    let rules =
        json!([tcp("allow", 8080), tcp("deny", 9090), wide, any("allow", &b.id, &a.id), tcp("allow", 8080)]);
    mesh.set_rules(&rules);
    for member in [a, b] {
        wait_rules(member, 5);
        member.wait_peers_up(1);
    }
    let _servers = [8080, 9090, 7070].map(|port| b.node.host().serve(port, "here"));
    a.wait_http(b, 8080);
    for (from, to, port, rule) in [
        (a, b, Some(8080), Some(1)),
        (a, b, Some(9090), Some(2)),
        (a, b, Some(7070), Some(3)),
        (a, b, None, None),
        (b, a, None, Some(4)),
    ] {
        let number = port.unwrap_or_default().to_string();
        let service = ["--proto", "tcp", "--port", &number];
        let service = if port.is_some() { &service[..] } else { &["--proto", "icmp"] };
        for (on, direction) in [(from, "out"), (to, "in")] {
            let answer = explain(on, &from.id, &to.mesh_ip, service);
            assert_eq!(answer["decided_by"]["rule"], json!(rule), "{answer}");
            assert_eq!(
                (&answer["direction"], &answer["crosses_mesh"]),
                (&json!(direction), &json!(true)),
                "{answer}"
            );
            assert_eq!(answer["verdict"] == json!("allow"), passes(from, to, port), "{answer}");
        }
    }
    // Without a port it depends, and is said by which rules.
    let answer = explain(a, &a.id, &b.id, &["--proto", "tcp"]);
    assert_eq!(
        (&answer["verdict"], &answer["depends_on"][1]["rule"]),
        (&json!("depends"), &json!(2)),
        "{answer}"
    );
    let listed = a.node.ctl_json(&["policies"]);
    let shadowed =
        json!([{ "policy": "test", "rule": 1, "text": format!("allow tcp {} -> {}:8080", a.id, b.id) }]);
    assert_eq!(listed["policies"][0]["rules"][4]["shadowed_by"], shadowed, "{listed}");
    let table = a.node.ctl(&["policies"]).succeeded().stdout;
    assert!(table.lines().nth(5).unwrap().ends_with("test rule 1"), "{table}");
}

#[test]
fn an_explanation_says_what_keeps_packets_off_the_mesh() {
    let mesh = Mesh::new();
    let (a, b) = (&mesh.a, &mesh.b);
    // No rule lets the two talk.
    a.wait_status("the peer", |status| status["mesh"]["peers_desired"] == json!(1));
    let answer = explain(a, &a.id, &b.id, &[]);
    assert_eq!((&answer["verdict"], &answer["crosses_mesh"]), (&json!("deny"), &json!(false)), "{answer}");
    let remarks = answer["remarks"].to_string();
    assert!(remarks.contains(&format!("{} is hidden from this node", b.id)), "{remarks}");
    let output = a.node.ctl(&["policies", "explain", "--src", "n_gone", "--dst", &b.id]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("there is no node n_gone"), "{output}");

    // A rule for it, and a newer set that is refused.
    let gone = json!({ "src": "n_gone", "dst": "*", "action": "allow" });
    mesh.set_rules_of(a, &json!([mesh.allow(8080), gone]));
    wait_rules(a, 2);
    let listed = a.node.ctl_json(&["policies"]);
    assert_eq!(
        listed["policies"][0]["rules"][1]["matches_nobody"],
        json!("there is no node n_gone"),
        "{listed}"
    );
    mesh.set_rules_of(a, &json!([{ "src": "*", "dst": "*", "action": "drop" }]));
    a.wait_status("the refusal", |status| !status["policy"]["rejected"].is_null());
    let answer = explain(a, &a.id, &b.id, &["--proto", "tcp", "--port", "8080"]);
    assert_eq!((&answer["verdict"], &answer["crosses_mesh"]), (&json!("allow"), &json!(true)), "{answer}");
    let remarks = answer["remarks"].to_string();
    assert!(remarks.contains("a newer set of policies is refused and not in force"), "{remarks}");
}

#[test]
fn expectations_hold_or_not_as_the_exit_code_says() {
    let mesh = Mesh::up();
    let (a, b) = (&mesh.a, &mesh.b);
    let test = |text: &str| -> Output {
        a.node.host().write("/etc/plexd/expectations", 0o644, text);
        a.node.ctl(&["policies", "test", "/etc/plexd/expectations"])
    };
    let holds = format!(
        "allow tcp {a} -> {b}:8080\ndeny tcp {a} -> {b}:22 # no shell\ndeny icmp {ip} -> {b}\ndeny {b} -> {a}\n",
        a = a.id,
        b = b.id,
        ip = a.mesh_ip
    );
    let output = test(&holds).succeeded();
    assert_eq!(output.stdout, "4 expectations, all hold\n");
    let output = test(&format!("{holds}allow tcp {} -> {}:8081\ndeny tcp {0} -> {1}\n", a.id, b.id));
    assert_eq!(output.code, Some(1), "{output}");
    assert!(
        output.stdout.starts_with("line 5: allow tcp ") && output.stdout.contains("denied, by the default")
    );
    assert!(output.stdout.contains("line 6: ") && output.stdout.contains("depends on the protocol or port"));
    let output = test(&format!("{holds}\nallow {} to {}\n", a.id, b.id));
    assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{output}");
    assert!(output.stderr.contains("line 6: "), "{output}");
}

#[test]
fn an_exported_table_is_loaded_by_nft_and_lets_pass_what_policy_allows() {
    let mesh = Mesh::up();
    let (a, b) = (&mesh.a, &mesh.b);
    let _servers = [8080, 9090].map(|port| b.node.host().serve(port, "here"));
    a.wait_http(b, 8080);
    let host = b.node.host();
    host.shell(None, "plexd-ctl policies export > /etc/plexd/table.nft").expect_success();
    host.run(&["nft", "-c", "-f", "/etc/plexd/table.nft"]).expect_success();
    let text = b.node.ctl(&["policies", "export"]).succeeded().stdout;
    assert!(text.contains(" . tcp . 8080 : accept # policy \"test\", rule 1\n"), "{text}");
    // Where no plexd-core puts its own back.
    let cp = mesh.lab.host("cp");
    cp.write("/etc/plexd/exported.nft", 0o644, &text);
    cp.run(&["nft", "-f", "/etc/plexd/exported.nft"]).expect_success();
    let loaded = cp.run(&["nft", "--stateless", "list", "table", "inet", "plexd"]).succeeded().stdout;
    let maps = |text: &str| {
        text.lines().filter(|line| line.contains("elements = ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(maps(&loaded), maps(&b.table()));
    // In place of plexd's own, for as long as that takes to come back: it decides the same.
    host.run(&["nft", "-f", "/etc/plexd/table.nft"]).expect_success();
    a.wait_http(b, 8080);
    assert!(!a.http(b, 9090).is_success());
    mesh.set_rules_of(b, &json!([]));
    wait_until(SOON, "another policy", || b.node.ctl(&["policies", "export"]).succeeded().stdout != text);
}

#[test]
fn a_set_that_needs_too_many_entries_leaves_the_old_one_in_force_over_a_restart() {
    let mut mesh = Mesh::up();
    let _server = mesh.b.node.host().serve(8080, "here");
    mesh.a.wait_http(&mesh.b, 8080);
    // A node with many addresses, and rules that pair each of them with each.
    let addresses: Vec<String> = (0..500).map(|n| format!("10.9.{}.{}/32", n / 100, n % 100 * 2)).collect();
    let wide = json!({
        "id": "n_wide", "public_key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "mesh_ip": "10.100.9.9",
        "allowed_ips": addresses
    });
    let state = mesh.control_plane.admin("GET", &format!("/admin/nodes/{}", mesh.b.id), None);
    let mut peers = state["state"]["peers"].as_array().expect("peers").clone();
    peers.push(wide);
    mesh.control_plane.set_state(&mesh.b.id, &json!({ "peers": peers }));
    let rule = json!({ "src": "n_wide", "dst": "n_wide", "action": "allow" });
    let pairs: Vec<Value> = (1..=200)
        .map(|port| {
            let mut rule = rule.clone();
            rule["protocol"] = json!("tcp");
            rule["port"] = json!(port);
            rule
        })
        .collect();
    set_rules(&mesh.control_plane, &mesh.b, &json!(pairs));
    let refused = |status: &Value| {
        let rejected = status["policy"]["rejected"].as_str().unwrap_or_default().to_owned();
        status["health"] == "degraded" && rejected.contains("entries") && rejected.contains("rule")
    };
    mesh.b.wait_status("the refusal", refused);
    mesh.a.wait_http(&mesh.b, 8080);
    assert_eq!(mesh.b.node.take_core().terminate().code(), Some(0));
    mesh.control_plane.stop();
    mesh.b.node.start_core();
    let status = mesh.b.wait_status("the refusal after a restart", refused);
    assert_eq!(status["policy"]["rules"], json!(1), "{status}");
    mesh.a.wait_http(&mesh.b, 8080);
    let answer = explain(&mesh.b, &mesh.a.id, &mesh.b.id, &["--proto", "tcp", "--port", "8080"]);
    assert_eq!((&answer["verdict"], &answer["decided_by"]["rule"]), (&json!("allow"), &json!(1)), "{answer}");
}
