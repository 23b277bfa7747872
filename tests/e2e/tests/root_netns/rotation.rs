//! Rotation of a node's WireGuard key, under traffic, without a control plane, and killed half way.

use std::thread;
use std::time::Duration;

use plexd_e2e::{Flow, Lab, Loss, Node, wait_until};
use serde_json::{Value, json};

use crate::support::{Member, Mesh, SOON, set_rules, wait_problem};

/// Time around a rotation, so that a flow has begun before it and goes on after it, in seconds.
const AROUND: Duration = Duration::from_secs(2);

fn everything() -> Value {
    json!([{ "src": "*", "dst": "*", "action": "allow" }])
}

fn up() -> Mesh {
    let mesh = Mesh::new();
    mesh.set_rules(&everything());
    mesh.a.wait_peers_up(1);
    mesh.b.wait_peers_up(1);
    mesh
}

fn public_key(member: &Member) -> String {
    member.node.status()["identity"]["public_key"].as_str().unwrap_or_default().to_owned()
}

/// Waits until `rotated` has another key than `old`, in its interface, at the control plane and at `peer`, and that both
/// speak with each other.
fn wait_rotated(mesh: &Mesh, old: &str) -> String {
    let (rotated, peer) = (&mesh.a, &mesh.b);
    let new = wait_until(SOON, "another key", || {
        let key = public_key(rotated);
        if key == old { Err(key) } else { Ok(key) }
    });
    wait_until(SOON, "the new key at the peer alone", || {
        let peers = peer.wg("peers");
        if peers.trim_end() == new { Ok(()) } else { Err(peers) }
    });
    assert_converged(mesh);
    new
}

/// Checks that the node, its interface, the control plane and the peer have one key, and that traffic passes.
fn assert_converged(mesh: &Mesh) {
    wait_until(SOON, "one key everywhere", || {
        let node = mesh.control_plane.admin("GET", &format!("/admin/nodes/{}", mesh.a.id), None);
        let keys = [public_key(&mesh.a), node["public_key"].as_str().unwrap_or_default().to_owned()];
        let peers = mesh.b.wg("peers");
        let same = keys.iter().all(|key| key == peers.trim_end());
        if same { Ok(()) } else { Err(format!("{keys:?} {peers}")) }
    });
    for (from, to) in [(&mesh.a, &mesh.b), (&mesh.b, &mesh.a)] {
        wait_until(SOON, "a ping", || {
            let output = from.node.host().run(&["ping", "-c1", "-W1", &to.mesh_ip]);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
    }
    assert!(!mesh.a.node.host().path("/var/lib/plexd/wireguard.key.pending").exists());
}

fn flow(a: &Member, b: &Member, number: u16, seconds: u64) -> Flow {
    Flow::start((a.node.host(), &a.mesh_ip), (b.node.host(), &b.mesh_ip), number, seconds)
}

fn by_event(mesh: &Mesh) {
    mesh.control_plane.send_event(&mesh.a.id, "rotate_keys", &json!({}));
}

#[expect(clippy::print_stdout, reason = "the figures are what `make bench-control` shows")]
fn show(what: &str, loss: Loss) {
    println!(
        "{what}: {} of {} datagrams lost ({} of them came seconds later), longest gap {} ms (senders up to {} ms late)",
        loss.lost, loss.sent, loss.late, loss.longest_gap_ms, loss.latest_ms
    );
}

/// How many a rotation loses is a figure of `make bench-control`: on a busy machine a test would count what the machine does
/// not get done.
#[track_caller]
fn assert_most_arrives(loss: Loss) {
    assert!(loss.lost < loss.sent / 2, "{loss:?}");
}

/// Rotates under traffic, and returns what was lost.
fn rotate_under_traffic(mesh: &Mesh, number: u16, seconds: u64) -> Loss {
    let old = public_key(&mesh.a);
    let flow = flow(&mesh.a, &mesh.b, number, seconds);
    thread::sleep(AROUND);
    by_event(mesh);
    wait_until(Duration::from_secs(seconds), "another key", || public_key(&mesh.a) != old);
    let loss = flow.finish();
    wait_rotated(mesh, &old);
    loss
}

#[test]
#[expect(clippy::print_stdout, reason = "the figure is what `make bench-control` shows")]
fn a_rotation_under_traffic_loses_little_and_changes_no_route() {
    let mesh = up();
    let monitors = [&mesh.a, &mesh.b].map(|member| {
        let routes = ["ip", "-o", "monitor", "route"];
        member.node.host().spawn("routes", &routes)
    });
    let mut worst = 0;
    for number in 0..3 {
        // Long enough to see what the 5 s until WireGuard repeats a handshake bring.
        let loss = rotate_under_traffic(&mesh, number, 9);
        show("rotation by event", loss);
        assert_most_arrives(loss);
        worst = worst.max(loss.lost);
    }
    for monitor in monitors {
        let log = monitor.log();
        assert!(!log.contains("plexd0"), "routes were changed: {log}");
    }
    println!("bench control.rotation_lost_datagrams {worst} datagrams");
}

#[test]
fn a_heartbeat_flag_rotates_and_other_peers_lose_nothing() {
    let lab = Lab::new(&["cp", "a", "b", "c"]);
    let control_plane = plexd_e2e::ControlPlane::start(lab.host("cp"));
    let [a, b, c] = ["a", "b", "c"].map(|name| {
        let node = Node::new(lab.host(name), &control_plane, "heartbeat:\n  interval: 5s\n");
        Member::enrol(node, &control_plane)
    });
    for member in [&a, &b, &c] {
        set_rules(&control_plane, member, &everything());
    }
    for member in [&a, &b, &c] {
        member.wait_peers_up(2);
    }
    let old = public_key(&a);
    let others_key = public_key(&c);
    let handshake = || {
        let all = b.wg("latest-handshakes");
        let line = all.lines().find(|line| line.starts_with(&others_key)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no handshake: {all}"))
    };
    let (rotating, others) = (flow(&a, &b, 0, 12), flow(&b, &c, 1, 12));
    let before = handshake();
    thread::sleep(AROUND);
    let path = format!("/admin/nodes/{}/heartbeat", a.id);
    control_plane.admin("PUT", &path, Some(&json!({ "rotate_keys": true })));
    let new = wait_until(SOON, "another key", || {
        let key = public_key(&a);
        if key == old { Err(key) } else { Ok(key) }
    });
    let (rotating, others) = (rotating.finish(), others.finish());
    show("rotation by heartbeat", rotating);
    show("meanwhile between two others", others);
    assert_most_arrives(rotating);
    assert_most_arrives(others);
    assert_eq!(handshake(), before, "the session of two others goes on");
    for peer in [&b, &c] {
        assert!(peer.wg("peers").contains(&new) && !peer.wg("peers").contains(&old));
    }
    let unsupported = a.node.status().to_string();
    assert!(!unsupported.contains("rotate_keys"), "{unsupported}");
}

#[test]
fn without_the_control_plane_the_old_key_stays() {
    let mut mesh = up();
    let old = public_key(&mesh.a);
    mesh.control_plane.set_faults(&json!({ "endpoint": "rotate", "status": 503 }));
    by_event(&mesh);
    wait_problem(&mesh.a.node, &["has not confirmed", "the old key stays in force"]);
    let pending = mesh.a.node.host().path("/var/lib/plexd/wireguard.key.pending");
    let text = std::fs::read_to_string(&pending).unwrap_or_default();
    mesh.control_plane.stop();
    mesh.a.node.take_core().kill9();
    mesh.a.node.start_core();
    assert_eq!(public_key(&mesh.a), old);
    wait_problem(&mesh.a.node, &["has not confirmed"]);
    assert_eq!(std::fs::read_to_string(&pending).unwrap_or_default(), text, "the same key is sent again");
    let loss = flow(&mesh.a, &mesh.b, 0, 3).finish();
    show("while the control plane is down", loss);
    assert_eq!(public_key(&mesh.a), old);

    mesh.control_plane.start_again();
    let new = wait_rotated(&mesh, &old);
    let kept = mesh.a.node.host().path("/var/lib/plexd/wireguard.key");
    assert_eq!(std::fs::read_to_string(kept).unwrap_or_default(), text, "the pending key is the key");
    mesh.a.wait_status("no problem", |status| status["health"] == "healthy");
    assert_ne!(new, old);
}

#[test]
fn a_refused_rotation_is_given_up() {
    let mesh = up();
    let old = public_key(&mesh.a);
    mesh.control_plane.set_faults(&json!({ "endpoint": "rotate", "status": 409 }));
    by_event(&mesh);
    wait_problem(&mesh.a.node, &["refuses this node's new WireGuard key", "the old key stays in force"]);
    assert_eq!(public_key(&mesh.a), old);
    mesh.control_plane.clear_faults();
    assert_converged(&mesh);
    by_event(&mesh);
    wait_rotated(&mesh, &old);
    mesh.a.wait_status("no problem", |status| status["health"] == "healthy");
}

#[test]
fn a_node_killed_while_it_rotates_has_one_key_in_the_end() {
    let mut mesh = up();
    for round in 0..5_u64 {
        let old = public_key(&mesh.a);
        by_event(&mesh);
        // From before the request arrives until after the swap.
        thread::sleep(Duration::from_millis(random_below(60)));
        mesh.a.node.take_core().kill9();
        mesh.a.node.start_core();
        let new = wait_rotated(&mesh, &old);
        assert_ne!(new, old, "round {round}");
    }
}

fn random_below(limit: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) % limit
}
