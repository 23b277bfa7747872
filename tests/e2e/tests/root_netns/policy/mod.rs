//! Policy as plexd-core keeps it in the kernel: without a gap, repaired, beside the rulesets of others, and never half of a
//! set.

mod coexistence;
mod no_gap;
mod refusals;
mod repair;

use std::time::{Duration, Instant};

use plexd_e2e::{ControlPlane, Host, patient, table_id, wait_until};
use serde_json::Value;

use crate::support::{Member, SOON};

/// How long a table that somebody changed may take to be back (contract, section 5).
const REPAIR: Duration = Duration::from_secs(1);

/// Details of the corrections of a kind that the control plane was told of, in order.
fn corrections(control_plane: &ControlPlane, member: &Member, kind: &str) -> Vec<String> {
    let received = control_plane.received(&member.id);
    let reports = received["drift"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = reports.iter().filter_map(|report| report["body"]["corrections"].as_array()).flatten();
    let of_kind = all.filter(|correction| correction["type"] == kind);
    of_kind.filter_map(|correction| correction["detail"].as_str().map(str::to_owned)).collect()
}

/// Waits until the control plane was told of `count` corrections of a kind in all, and returns the last.
#[track_caller]
fn wait_corrections(control_plane: &ControlPlane, member: &Member, (kind, count): (&str, usize)) -> String {
    wait_until(SOON, &format!("{count} times {kind}"), || {
        let told = corrections(control_plane, member, kind);
        if told.len() >= count { Ok(()) } else { Err(told.join("; ")) }
    });
    let mut told = corrections(control_plane, member, kind);
    assert_eq!(told.len(), count, "{told:?}");
    told.pop().unwrap_or_default()
}

/// Waits until the table is `table` again, no longer than a repair may take from now, and returns how long it took.
#[track_caller]
fn wait_repaired(member: &Member, table: &str, what: &str) -> Duration {
    let start = Instant::now();
    wait_until(REPAIR, &format!("the table, after {what}"), || {
        let output = member.node.host().run(&["nft", "--stateless", "list", "table", "inet", "plexd"]);
        if output.stdout == table { Ok(()) } else { Err(output) }
    });
    let took = start.elapsed();
    assert!(took <= patient(REPAIR), "{what}: back after {took:?}");
    took
}

/// Waits until another table is in place than that one, and returns what tells it.
#[track_caller]
fn wait_replaced(host: &Host, before: Option<&str>) -> Option<String> {
    wait_until(SOON, "another table", || table_id(host).filter(|now| Some(now.as_str()) != before).map(Some))
}

/// Returns the rule that lets everybody reach a TCP port of everybody.
fn allow_tcp(port: u16) -> Value {
    serde_json::json!({ "src": "*", "dst": "*", "port": port, "protocol": "tcp", "action": "allow" })
}

/// Tells a figure.
#[expect(clippy::print_stdout, reason = "shown with a failure, and by --no-capture")]
fn show(line: &str) {
    println!("{line}");
}
