//! Under 10,000 datagrams a second that policy forbids, none passes while the policy is changed, core is restarted, killed or
//! upgraded; and none later than a second after somebody flushed the ruleset.

use std::thread;
use std::time::Instant;

use plexd_e2e::{Barrage, Lab, patient, table_id};
use serde_json::json;

use super::{REPAIR, allow_tcp, show, wait_repaired, wait_replaced};
use crate::restart::{Way, replace_core};
use crate::support::{Member, Mesh};

/// Where nothing may arrive.
const FORBIDDEN: u16 = 9_999;

/// Changes of the policy in `make test`, and in `make test-long`.
const FEW: u16 = 15;
const MANY: u16 = 300;

/// Two nodes, of which `b` may be reached at TCP port 8080, and no other way.
fn mesh(more: &str) -> Mesh {
    let mesh = Mesh::configured(Lab::new(&["cp", "a", "b"]), more);
    mesh.set_rules_of(&mesh.a, &json!([{ "src": "*", "dst": "*", "action": "allow" }]));
    mesh.set_rules_of(&mesh.b, &json!([allow_tcp(8080)]));
    mesh.a.wait_peers_up(1);
    mesh.b.wait_peers_up(1);
    mesh
}

fn barrage(mesh: &Mesh) -> Barrage {
    let (from, to) = (mesh.a.node.host(), mesh.b.node.host());
    Barrage::over_mesh(from, (to, &mesh.b.mesh_ip), FORBIDDEN)
}

/// Returns how many packets policy dropped.
fn dropped(member: &Member) -> u64 {
    let line = ["nft", "list", "counter", "inet", "plexd", "denied"];
    let listed = member.node.host().run(&line).succeeded().stdout;
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {listed}"))
}

/// Waits until the barrage reaches the policy of `b` through the tunnel, and checks that none passed so far.
#[track_caller]
fn wait_dropped(mesh: &Mesh, barrage: &Barrage, what: &str) {
    mesh.a.wait_http(&mesh.b, 8080);
    let before = dropped(&mesh.b);
    barrage.wait_sent(1_000);
    let (now, arrivals) = (dropped(&mesh.b), barrage.arrivals().len());
    assert!(now > before, "{what}: nothing comes to be dropped");
    assert_eq!(arrivals, 0, "{what}: of {} datagrams", barrage.sent());
}

fn nothing_passes_while_the_policy_changes(changes: u16) {
    let mesh = mesh("");
    let host = mesh.b.node.host();
    let _server = host.serve(8080, "here");
    let barrage = barrage(&mesh);
    wait_dropped(&mesh, &barrage, "at first");
    let mut id = table_id(host);
    for change in 1..=changes {
        mesh.set_rules_of(&mesh.b, &json!([allow_tcp(8080), allow_tcp(change)]));
        id = wait_replaced(host, id.as_deref());
    }
    wait_dropped(&mesh, &barrage, "after the changes");

    let table = mesh.b.table();
    host.run(&["nft", "flush", "ruleset"]).expect_success();
    let flushed = Instant::now();
    wait_repaired(&mesh.b, &table, "a flush");
    // As long again, in which none passes any more.
    thread::sleep(patient(REPAIR));
    let (sent, arrivals) = barrage.stop();
    let last = arrivals.last().map(|last| last.saturating_duration_since(flushed));
    let last = last.unwrap_or_else(|| panic!("none of {sent} passed without a table: they do not reach it"));
    assert!(last <= patient(REPAIR), "one passed {last:?} after the flush");
    show(&format!(
        "{changes} changes under {sent} datagrams; the last of {} passed {last:?} after a flush",
        arrivals.len()
    ));
}

#[test]
fn nothing_that_is_denied_passes_while_core_changes_the_policy_nor_long_after_a_flush() {
    nothing_passes_while_the_policy_changes(FEW);
}

#[test]
#[ignore = "a minute; make test-long"]
fn long_nothing_that_is_denied_passes_while_core_changes_the_policy_hundreds_of_times() {
    nothing_passes_while_the_policy_changes(MANY);
}

#[test]
fn nothing_that_is_denied_passes_while_core_is_restarted_killed_or_upgraded() {
    let mut mesh = mesh("");
    let _server = mesh.b.node.host().serve(8080, "here");
    let barrage = barrage(&mesh);
    wait_dropped(&mesh, &barrage, "at first");
    for way in [Way::Restarted, Way::Killed, Way::Upgraded] {
        replace_core(&mut mesh.b, way, 0);
        wait_dropped(&mesh, &barrage, &format!("{way:?}"));
    }
    let sent = barrage.stop().0;
    show(&format!("3 restarts under {sent} datagrams: none arrived"));
}

#[test]
fn nothing_that_is_denied_passes_a_node_whose_stop_takes_the_mesh_down() {
    let mut mesh = mesh("on_stop: teardown\n");
    let _server = mesh.b.node.host().serve(8080, "here");
    let barrage = barrage(&mesh);
    wait_dropped(&mesh, &barrage, "at first");
    assert_eq!(mesh.b.node.take_core().terminate().code(), Some(0));
    let left = mesh.b.node.host().run(&["nft", "list", "ruleset"]).succeeded().stdout;
    assert_eq!(left, "", "the table goes with the interface");
    assert!(!mesh.b.node.host().run(&["ip", "link", "show", "plexd0"]).is_success());
    barrage.wait_sent(1_000);
    mesh.b.node.start_core();
    wait_dropped(&mesh, &barrage, "after the start");
}
