//! plexd beside the rulesets that Docker, ufw and firewalld load (`tests/e2e/rulesets`): through its start, changes, restart
//! and stop their tables are as they were, to the handle; and when they load them anew, flushing everything, ours is back
//! within a second and theirs are as they loaded them. What then passes is shown with the kernel alone (`nft_kernel`).

use plexd_e2e::{ControlPlane, Host, Lab, Node, table_id};
use serde_json::{Value, json};

use super::{allow_tcp, corrections, wait_corrections, wait_repaired, wait_replaced};
use crate::support::{Member, set_rules};

/// A host for each, by what loads its ruleset from `tests/e2e/rulesets`, leaving other tables alone, and from nothing.
const TOOLS: [(&str, &str, &str); 3] = [
    (
        "docker",
        "iptables-nft-restore docker.iptables",
        "nft flush ruleset && iptables-nft-restore docker.iptables",
    ),
    (
        "ufw",
        "iptables-nft-restore ufw.iptables && ip6tables-nft-restore ufw.ip6tables",
        "nft flush ruleset && iptables-nft-restore ufw.iptables && ip6tables-nft-restore ufw.ip6tables",
    ),
    // In one transaction, as nftables.service does it.
    (
        "firewalld",
        "(echo 'table inet firewalld'; echo 'delete table inet firewalld'; cat firewalld.nft) | nft -f -",
        "(echo flush ruleset; cat firewalld.nft) | nft -f -",
    ),
];

#[track_caller]
fn load(host: &Host, line: &str) {
    let rulesets = concat!(env!("CARGO_MANIFEST_DIR"), "/rulesets");
    host.shell(None, &format!("cd '{rulesets}' && {line}")).expect_success();
}

/// Returns everything of the ruleset but ours, without what it counted.
#[track_caller]
fn others(host: &Host) -> Vec<Value> {
    let listed = host.run(&["nft", "-j", "list", "ruleset"]).succeeded().json();
    let mut objects = listed["nftables"].as_array().cloned().unwrap_or_default();
    let is_ours = |object: &Value| {
        let object = object.as_object().and_then(|object| object.values().next()).unwrap_or(&Value::Null);
        object["family"] == "inet" && (object["table"] == "plexd" || object["name"] == "plexd")
    };
    objects.retain(|object| object["metainfo"].is_null() && !is_ours(object));
    assert!(objects.len() > 10, "somebody else's ruleset is loaded");
    objects.into_iter().map(|object| without(object, &["packets", "bytes"])).collect()
}

/// Returns the same without the numbers that the kernel gives to what is loaded anew.
fn loaded(objects: &[Value]) -> Vec<Value> {
    objects.iter().map(|object| without(object.clone(), &["handle"])).collect()
}

/// Returns a value without these members, wherever they are in it.
fn without(value: Value, names: &[&str]) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(name, _)| !names.contains(&name.as_str()));
            kept.map(|(name, value)| (name, without(value, names))).collect()
        }
        Value::Array(values) => values.into_iter().map(|value| without(value, names)).collect(),
        other => other,
    }
}

fn lives_beside(
    lab: &Lab,
    control_plane: &ControlPlane,
    (tool, reload, flush_and_reload): (&str, &str, &str),
) {
    let host = lab.host(tool);
    load(host, reload);
    let before = others(host);
    let node = Node::new(host, control_plane, "on_stop: teardown\nreconcile:\n  interval: 1h\n");
    let mut member = Member::enrol(node, control_plane);
    let id = table_id(host);
    assert_eq!(others(host), before, "{tool}: after the start");
    set_rules(control_plane, &member, &json!([allow_tcp(22), allow_tcp(8080)]));
    wait_replaced(host, id.as_deref());
    assert_eq!(others(host), before, "{tool}: after a change");

    // A reload that leaves us alone is nothing to repair.
    let (table, id) = (member.table(), table_id(host));
    load(host, reload);
    assert_eq!(loaded(&others(host)), loaded(&before), "{tool}: reloaded");
    let reloaded = others(host);
    assert_eq!(table_id(host), id, "{tool}: it was not ours that was reloaded");
    assert_eq!(corrections(control_plane, &member, "policy_restored"), Vec::<String>::new());
    load(host, flush_and_reload);
    wait_repaired(&member, &table, tool);
    let told = wait_corrections(control_plane, &member, ("policy_restored", 1));
    assert!(told.contains("was missing"), "{tool}: {told}");
    let before = others(host);
    assert_eq!(loaded(&others(host)), loaded(&reloaded), "{tool}: flushed and loaded again");

    member.node.take_core().kill9();
    member.node.start_core();
    assert_eq!(others(host), before, "{tool}: after a restart");
    assert_eq!(member.table(), table, "{tool}: after a restart");
    assert_eq!(member.node.take_core().terminate().code(), Some(0));
    assert_eq!(others(host), before, "{tool}: after the stop");
    assert_eq!(table_id(host), None, "{tool}: the stop takes the table down");
}

#[test]
fn the_tables_of_docker_ufw_and_firewalld_stay_as_they_are_and_their_reloads_are_survived() {
    let lab = Lab::new(&["cp", "docker", "ufw", "firewalld"]);
    let control_plane = ControlPlane::start(lab.host("cp"));
    for tool in TOOLS {
        lives_beside(&lab, &control_plane, tool);
    }
}
