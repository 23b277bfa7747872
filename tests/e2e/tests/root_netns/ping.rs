//! What the administrator sees of the mesh and does about it: echoes through the tunnel, and routes, addresses and
//! interfaces that belong to somebody else, by their names.

use plexd_e2e::{Lab, Node, Output, wait_until};
use serde_json::{Value, json};

use crate::support::{Member, Mesh, SOON, Single, wait_problem};

/// Every group, as systemd sets it at boot.
const ALL_GROUPS: &str = "0 2147483647";

/// Two nodes whose cores may send echoes, with the rule that lets `a` reach `b`, whatever the protocol.
fn reaching() -> Mesh {
    let mesh = Mesh::new();
    for member in [&mesh.a, &mesh.b] {
        set_groups(member, ALL_GROUPS);
    }
    mesh.set_rules(&json!([{ "src": mesh.a.id, "dst": mesh.b.id, "action": "allow" }]));
    mesh.a.wait_peers_up(1);
    mesh.b.wait_peers_up(1);
    mesh
}

/// Kills the core of `member` and removes the interface, which goes with the process only where WireGuard is built in.
#[track_caller]
fn take_away(member: &mut Member) {
    member.node.take_core().kill9();
    let host = member.node.host();
    host.run(&["ip", "link", "del", "plexd0"]);
    assert!(!host.run(&["ip", "link", "show", "plexd0"]).is_success());
}

#[track_caller]
fn set_groups(member: &Member, range: &str) {
    let line = format!("echo '{range}' > /proc/sys/net/ipv4/ping_group_range");
    member.node.host().shell(None, &line).expect_success();
}

fn ping(from: &Member, peer: &str, more: &[&str]) -> Output {
    from.node.ctl(&[&["ping", peer], more].concat())
}

/// Checks that a command failed with code 1 and one line that contains all of `words`.
#[track_caller]
fn assert_fails_with(output: &Output, words: &[&str]) {
    assert_eq!((output.code, output.stderr.lines().count()), (Some(1), 1), "{output}");
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} is not said: {output}");
    }
}

/// Returns what `plexd-ctl peers` has of the only peer.
#[track_caller]
fn peer(of: &Member) -> Value {
    of.node.ctl_json(&["peers"])["peers"][0].clone()
}

#[test]
fn a_ping_measures_through_the_tunnel_where_policy_allows_it() {
    let mesh = reaching();
    let (a, b) = (&mesh.a, &mesh.b);
    let report = wait_until(SOON, "an answer to each echo", || {
        let output = ping(a, &b.id, &["-c", "3", "-i", "0.1", "--json"]);
        if output.is_success() && output.json()["received"] == json!(3) {
            Ok(output.json())
        } else {
            Err(output)
        }
    });
    assert_eq!((&report["peer"], &report["mesh_ip"]), (&json!(b.id), &json!(b.mesh_ip)), "{report}");
    let [min, avg, max] =
        ["min", "avg", "max"].map(|what| report["rtt_us"][what].as_u64().expect("times in microseconds"));
    assert!(0 < min && min <= avg && avg <= max && max < 2_000_000, "{report}");
    // By its address too, and as people see it.
    let output = ping(a, &b.mesh_ip, &["-c", "1"]).succeeded();
    assert!(output.stdout.contains("1 echo sent, 1 answered, 0% lost; min/avg/max "), "{output}");
    // Of callers that go away nothing goes on: 8 pings at a time are all there are.
    let line =
        format!("for n in 1 2 3 4 5 6 7 8; do timeout -s KILL 1 plexd-ctl ping {} -c 100 & done; wait", b.id);
    a.node.host().shell(None, &line);
    wait_until(SOON, "a ping after those that were killed", || {
        let output = ping(a, &b.id, &["-c", "1"]);
        if output.is_success() { Ok(()) } else { Err(output) }
    });
    // Core keeps no capability for it.
    let capabilities = a.node.status()["capabilities"].clone();
    assert_eq!(capabilities, json!(["CAP_NET_ADMIN"]));

    // The answers need no rule of their own, and give no right to ask.
    assert_fails_with(&ping(b, &a.id, &[]), &["policy denies icmp to", &a.id, "no rule allows it"]);
    assert_fails_with(&ping(a, "n_nobody", &[]), &["there is no peer n_nobody", "plexd-ctl peers"]);

    // Denied by the peer alone, this node can only guess.
    mesh.set_rules_of(b, &json!([mesh.allow(8080)]));
    let output = wait_until(SOON, "the end of the answers", || {
        let output = ping(a, &b.id, &["-c", "1"]);
        if output.is_success() { Err(output) } else { Ok(output) }
    });
    assert!(output.stdout.contains("1: timeout\n"), "{output}");
    assert_fails_with(&output, &[&b.id, "does not answer", "its policy, too, has to allow icmp from", &a.id]);
}

#[test]
fn a_ping_that_policy_denies_or_that_has_no_peer_says_so_before_anything_is_sent() {
    let mesh = Mesh::up();
    let (a, b) = (&mesh.a, &mesh.b);
    set_groups(a, ALL_GROUPS);
    let denied =
        format!("policy denies icmp to {} ({}): no rule allows it, and the default is deny", b.id, b.mesh_ip);
    let output = ping(a, &b.id, &[]);
    assert_fails_with(&output, &[&denied, "allow it by a rule from", "without protocol and port"]);
    assert_eq!(output.stdout, "");

    let deny = json!({ "src": "*", "dst": b.id, "action": "deny" });
    mesh.set_rules_of(a, &json!([mesh.allow(8080), deny]));
    wait_until(SOON, "the rule that denies", || {
        let output = ping(a, &b.id, &[]);
        if output.stderr.contains("rule 2 of policy test denies it") { Ok(()) } else { Err(output) }
    });

    mesh.set_rules(&json!([]));
    a.wait_wg_peers(0);
    assert_fails_with(&ping(a, &b.mesh_ip, &[]), &["policy hides", &b.id, "no rule lets this node and"]);
    assert_eq!(peer(a)["routes"], "hidden");
    let table = a.node.ctl(&["peers"]).succeeded().stdout;
    assert!(table.contains("hidden by policy"), "{table}");
}

#[test]
fn a_ping_of_a_peer_that_is_down_tells_of_the_last_handshake() {
    let mut mesh = reaching();
    take_away(&mut mesh.b);
    let output = ping(&mesh.a, &mesh.b.id, &["-c", "2", "-i", "0.1"]);
    assert!(
        output.stdout.contains("1: timeout\n2: timeout\n2 echoes sent, 0 answered, 100% lost\n"),
        "{output}"
    );
    let words = [mesh.b.id.as_str(), "does not answer", "the last handshake with", "s ago: it is down since"];
    assert_fails_with(&output, &words);
    // An interface that is made anew has never heard of it.
    take_away(&mut mesh.a);
    mesh.a.node.start_core();
    mesh.a.wait_wg_peers(1);
    let output = ping(&mesh.a, &mesh.b.id, &["-c", "1"]);
    assert_fails_with(&output, &["never had a handshake with this node", ":51820 passes"]);
}

#[test]
fn a_core_that_may_send_no_echo_says_what_to_set_and_it_is_enough() {
    let mesh = reaching();
    let (a, b) = (&mesh.a, &mesh.b);
    // As a kernel starts, and as somebody may have set it for others.
    for (range, shown) in [("1 0", "(1 0)"), ("0 0", "(0 0)")] {
        set_groups(a, range);
        let output = ping(a, &b.id, &[]);
        assert_fails_with(
            &output,
            &["plexd-core may send no echo", shown, "set: sysctl -w net.ipv4.ping_group_range="],
        );
        let setting = output.stderr.trim_end().rsplit("set: ").next().unwrap_or_default().to_owned();
        a.node.host().shell(None, &setting).expect_success();
        wait_until(SOON, "an answer", || {
            let output = ping(a, &b.id, &["-c", "1"]);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
    }
}

#[test]
fn what_belongs_to_somebody_else_is_named_and_the_rest_works() {
    let mesh = reaching();
    let (a, b) = (&mesh.a, &mesh.b);
    let backend = &a.node.status()["mesh"]["backend"];
    assert_eq!((&peer(a)["routes"], &peer(a)["backend"]), (&json!("routed"), backend));
    let host = a.node.host();
    for line in [
        "ip link add eth1 type veth peer name far1",
        "ip link set eth1 up",
        "ip route add 10.7.0.0/16 dev eth1",
        &format!("ip address add {}/24 dev eth1", a.mesh_ip),
    ] {
        host.shell(None, line).expect_success();
    }
    let node = mesh.control_plane.admin("GET", &format!("/admin/nodes/{}", a.id), None);
    let mut claims = node["state"]["peers"][0].clone();
    claims["allowed_ips"] = json!([format!("{}/32", b.mesh_ip), "10.7.0.0/16", "10.8.0.0/16"]);
    let mut rival = claims.clone();
    rival["id"] = json!("zz_rival");
    rival["mesh_ip"] = json!("10.100.9.9");
    rival["public_key"] = json!("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    rival["allowed_ips"] = json!(["10.100.9.9/32", "10.8.0.0/16"]);
    mesh.set_rules_of(a, &json!([{ "src": "*", "dst": "*", "action": "allow" }]));
    mesh.control_plane.set_state(&a.id, &json!({ "peers": [claims, rival] }));

    let owned = json!([{ "network": "10.7.0.0/16", "reason": "route", "owner": "eth1" }]);
    let disputed = json!([{ "network": "10.8.0.0/16", "reason": "node", "owner": b.id }]);
    wait_until(SOON, "the conflicts", || {
        let peers = a.node.ctl_json(&["peers"])["peers"].clone();
        let are_told = peers[0]["unrouted"] == owned && peers[1]["unrouted"] == disputed;
        if are_told { Ok(()) } else { Err(peers.to_string()) }
    });
    let table = a.node.ctl(&["peers"]).succeeded().stdout;
    assert!(table.contains("10.7.0.0/16 belongs to eth1"), "{table}");
    assert!(table.contains(&format!("10.8.0.0/16 belongs to {}", b.id)), "{table}");
    wait_problem(&a.node, &["route 10.7.0.0/16 belongs to eth1"]);
    wait_problem(&a.node, &["allowed IP 10.8.0.0/16 of zz_rival already belongs to", &b.id]);
    let kept = host.run(&["ip", "route", "show", "10.7.0.0/16"]).succeeded().stdout;
    assert!(kept.contains("dev eth1") && !kept.contains("plexd0"), "{kept}");
    ping(a, &b.id, &["-c", "1"]).expect_success();

    // The address on another interface is looked for when it is reconciled; a link that goes down is one occasion.
    host.run(&["ip", "link", "set", "plexd0", "down"]).expect_success();
    wait_problem(&a.node, &["mesh address", &a.mesh_ip, "in use on eth1", "ip address del"]);
    host.run(&["ip", "link", "del", "eth1"]).expect_success();
    host.run(&["ip", "link", "set", "plexd0", "down"]).expect_success();
    a.wait_status("the end of the conflicts with eth1", |status| !status.to_string().contains("eth1"));
    wait_until(SOON, "the route", || {
        let peers = a.node.ctl_json(&["peers"])["peers"].clone();
        if peers[0]["routes"] == "routed" { Ok(()) } else { Err(peers.to_string()) }
    });
    ping(a, &b.id, &["-c", "1"]).expect_success();
}

#[test]
fn an_interface_of_the_meshs_name_that_is_somebody_elses_is_named_and_left_as_it_is() {
    let lab = Lab::new(&["cp", "a"]);
    let control_plane = plexd_e2e::ControlPlane::start(lab.host("cp"));
    let node = Node::new(lab.host("a"), &control_plane, "");
    let host = node.host().clone();
    for line in [
        "ip link add plexd0 type veth peer name far0",
        "ip link set plexd0 up",
        "ip address add 10.55.0.1/24 dev plexd0",
        "ip route add 10.66.0.0/16 dev plexd0",
    ] {
        host.shell(None, line).expect_success();
    }
    let member = Member::enrol(node, &control_plane);
    wait_problem(&member.node, &["plexd0", "a veth interface of that name exists", "mesh.interface"]);
    // It answers all the same.
    member.node.curl_unix("/v1/state", &[]).expect_status(200);
    let shown = host.shell(None, "ip address show dev plexd0; ip route show dev plexd0").succeeded().stdout;
    for kept in ["10.55.0.1/24", "10.66.0.0/16"] {
        assert!(shown.contains(kept), "{kept} is gone: {shown}");
    }
    assert!(!shown.contains(&member.mesh_ip), "{shown}");
    host.run(&["ip", "link", "del", "plexd0"]).expect_success();
    member.wait_status("the mesh", |status| status["health"] == "healthy");
    let shown = host.run(&["ip", "address", "show", "dev", "plexd0"]).succeeded().stdout;
    assert!(shown.contains(&member.mesh_ip), "{shown}");
}

#[test]
fn a_node_that_is_not_enrolled_pings_nobody() {
    let single = Single::new("");
    let node = &single.a.node;
    node.ctl(&["deregister"]).expect_success();
    assert_eq!(node.ctl(&["ping", "n_b"]).code, Some(3));
}
