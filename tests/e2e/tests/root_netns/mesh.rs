//! The mesh and its policy, seen by `wg`, `nft`, `tcpdump` and the traffic itself.

use std::fs;
use std::time::Duration;

use plexd_e2e::{Lab, Node, wait_until};
use serde_json::json;

use crate::support::{Member, Mesh, SOON, set_rules};

#[test]
fn traffic_passes_as_policy_says_also_after_it_changed() {
    let mesh = Mesh::up();
    let (a, b) = (&mesh.a, &mesh.b);
    let _servers = [8080, 9090].map(|port| b.node.host().serve(port, &format!("on {port}")));

    a.wait_http(b, 8080);
    assert_eq!(a.http(b, 8080).stdout, "on 8080\n");
    assert_eq!(a.http(b, 9090).code, Some(28), "nothing comes back from a port that is not allowed");
    let ping = ["ping", "-c1", "-W1", &b.mesh_ip];
    assert!(!a.node.host().run(&ping).is_success(), "only TCP is allowed");

    mesh.set_rules(&json!([mesh.allow(9090)]));
    a.wait_http(b, 9090);
    wait_until(SOON, "the end of port 8080", || a.http(b, 8080).code == Some(28));

    mesh.set_rules(&json!([{ "src": "*", "dst": "*", "action": "allow" }]));
    wait_until(SOON, "a ping", || a.node.host().run(&ping).is_success());
    let back = ["ping", "-c1", "-W2", &a.mesh_ip];
    wait_until(SOON, "a ping back", || b.node.host().run(&back).is_success());
}

#[test]
fn peers_without_an_allow_rule_are_not_in_wireguard() {
    let mesh = Mesh::new();
    mesh.a.wait_status("the peer in the desired state", |status| status["mesh"]["peers_desired"] == json!(1));
    assert_eq!(mesh.a.wg("peers"), "");
    let peers = mesh.a.node.ctl_json(&["peers"]);
    assert_eq!(peers["peers"][0]["state"], "off", "{peers}");
    assert!(peers["peers"][0]["problem"].is_string(), "it says why: {peers}");

    mesh.set_rules(&json!([mesh.allow(8080)]));
    mesh.a.wait_peers_up(1);
    let key = mesh.b.node.status()["identity"]["public_key"].as_str().unwrap().to_owned();
    assert_eq!(mesh.a.wg("allowed-ips"), format!("{key}\t{}/32\n", mesh.b.mesh_ip));
    assert_eq!(mesh.a.wg("persistent-keepalive"), format!("{key}\t25\n"));
    assert!(!mesh.a.wg("latest-handshakes").ends_with("\t0\n"));

    mesh.set_rules(&json!([]));
    mesh.a.wait_wg_peers(0);
    mesh.b.wait_wg_peers(0);
}

#[test]
fn a_connection_that_policy_no_longer_allows_ends_at_once() {
    let mesh = Mesh::up();
    let (a, b) = (&mesh.a, &mesh.b);
    // The second rule keeps the peer in WireGuard: it is the firewall that ends the connection.
    mesh.set_rules(&json!([mesh.allow(8080), mesh.allow(9090)]));
    let _server = b.node.host().serve(8080, "tick");
    a.wait_http(b, 8080);
    let url = format!("http://{}:8080/stream", b.mesh_ip);
    let stream = a.node.host().spawn("stream", &["curl", "-sS", "--no-buffer", &url]);
    let lines = || stream.log().lines().count();
    wait_until(SOON, "the stream", || lines() > 10);

    // At one end alone: each enforces it.
    mesh.set_rules_of(b, &json!([mesh.allow(9090)]));
    let mut last = (lines(), std::time::Instant::now());
    wait_until(SOON, "the end of the stream", || {
        if lines() != last.0 {
            last = (lines(), std::time::Instant::now());
        }
        // The server writes every 20 ms.
        last.1.elapsed() > Duration::from_millis(500)
    });
    mesh.set_rules_of(b, &json!([mesh.allow(8080), mesh.allow(9090)]));
    a.wait_http(b, 8080);
}

#[test]
fn the_wire_carries_no_plain_text() {
    const TEXT: &str = "the quick brown fox jumps over the lazy dog";
    let mesh = Mesh::up();
    let (a, b) = (&mesh.a, &mesh.b);
    let host = b.node.host();
    let _server = host.serve(8080, TEXT);
    let mut captures = ["plexd0", "eth0"].map(|interface| {
        let file = host.directory().join(format!("{interface}.pcap"));
        let path = file.display().to_string();
        let line = ["tcpdump", "-i", interface, "-n", "--immediate-mode", "-U", "-Z", "root", "-w", &path];
        let daemon = host.spawn(&format!("tcpdump-{interface}"), &line);
        (daemon, file)
    });
    for (daemon, _) in &mut captures {
        wait_until(SOON, "tcpdump", || daemon.log().contains("listening on"));
    }
    a.wait_http(b, 8080);

    let [in_mesh, on_wire] = captures.map(|(_daemon, file)| file);
    let read = |file| fs::read(file).unwrap_or_default();
    let contains =
        |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    wait_until(SOON, "the text in the mesh", || contains(&read(&in_mesh), TEXT));
    let wire = on_wire.display().to_string();
    let data = ["tcpdump", "-n", "-r", &wire, "udp port 51820 and udp[8] == 4"];
    wait_until(SOON, "WireGuard's data packets on the wire", || host.run(&data).stdout.lines().count() > 4);
    assert!(!contains(&read(&on_wire), TEXT) && !contains(&read(&on_wire), "HTTP/1.1 200 OK"));
}

#[test]
fn a_third_node_joins_and_leaves() {
    let lab = Lab::new(&["cp", "a", "b", "c"]);
    let mesh = Mesh::in_lab(lab);
    let (a, control_plane) = (&mesh.a, &mesh.control_plane);
    let all = json!([{ "src": "*", "dst": "*", "action": "allow" }]);
    mesh.set_rules(&all);
    a.wait_peers_up(1);

    let node = Node::new(mesh.lab.host("c"), control_plane, "deregister_on_shutdown: true\n");
    let mut c = Member::enrol(node, control_plane);
    set_rules(control_plane, &c, &all);
    c.wait_peers_up(2);
    a.wait_peers_up(2);
    let ping = ["ping", "-c1", "-W2", &c.mesh_ip];
    wait_until(SOON, "a ping of the new node", || a.node.host().run(&ping).is_success());

    assert_eq!(c.node.take_core().terminate().code(), Some(0));
    a.wait_wg_peers(1);
    let routes = a.node.host().run(&["ip", "route", "show", "dev", "plexd0"]).succeeded().stdout;
    assert!(routes.contains(&mesh.b.mesh_ip) && !routes.contains(&c.mesh_ip), "{routes}");
    wait_until(SOON, "the end of its membership", || {
        let nodes = control_plane.admin("GET", "/admin/nodes", None);
        if nodes.to_string().contains(&c.id) { Err(nodes.to_string()) } else { Ok(()) }
    });
}

#[test]
fn a_policy_table_that_somebody_removes_is_back() {
    let mesh = Mesh::up();
    let (a, b) = (&mesh.a, &mesh.b);
    let host = b.node.host();
    host.run(&["nft", "add table inet foreign; add chain inet foreign c"]).expect_success();
    let before = b.table();
    for hook in ["hook input", "hook forward", "hook output"] {
        assert!(before.contains(hook), "{before}");
    }
    for command in ["flush table inet plexd", "delete table inet plexd"] {
        host.run(&["nft", command]).expect_success();
        wait_until(SOON, "the same table as before", || {
            let output = host.run(&["nft", "--stateless", "list", "table", "inet", "plexd"]);
            if output.stdout == before { Ok(()) } else { Err(output) }
        });
    }
    let _servers = [8080, 9090].map(|port| host.serve(port, "here"));
    a.wait_http(b, 8080);
    assert_eq!(a.http(b, 9090).code, Some(28));
    host.run(&["nft", "list chain inet foreign c"]).expect_success();
}

#[test]
fn the_control_plane_hears_how_the_node_is() {
    let mesh = Mesh::up();
    let heartbeat = wait_until(SOON, "a heartbeat", || {
        let received = mesh.control_plane.received(&mesh.a.id);
        received["heartbeats"].as_array().and_then(|all| all.last()).map(|last| last["body"].clone())
    });
    assert_eq!(heartbeat["status"], "healthy", "{heartbeat}");
    assert_eq!(heartbeat["mesh"]["interface"], "plexd0", "{heartbeat}");
    assert!(
        heartbeat["binary_checksum"]
            .as_str()
            .is_some_and(|sum| sum.starts_with("sha256:") && sum.len() == 71),
        "{heartbeat}"
    );
    assert_eq!(heartbeat["mesh"]["listen_port"], 51820, "{heartbeat}");
    assert!(heartbeat["uptime"].as_str().is_some_and(|uptime| !uptime.is_empty()), "{heartbeat}");
    let nodes = mesh.control_plane.admin("GET", "/admin/nodes", None);
    let endpoints: Vec<_> =
        nodes["nodes"].as_array().into_iter().flatten().map(|node| &node["endpoint"]).collect();
    for host in [mesh.a.node.host(), mesh.b.node.host()] {
        let endpoint = json!(format!("{}:51820", host.ipv4()));
        assert!(endpoints.contains(&&endpoint), "{endpoint} in {nodes}");
    }
}
