//! plexd-core restarted, killed and replaced by another copy of it, under traffic. With the kernel's WireGuard nothing
//! is touched by that; the built-in one is core itself, and a new handshake brings the tunnel back.

use std::time::{Duration, Instant};

use plexd_e2e::{Daemon, Flow, Loss, wait_until};
use serde_json::json;

use crate::support::{Member, Mesh, SOON};

/// After this time WireGuard makes another handshake by itself, in seconds.
const REKEY_AFTER: u64 = 120;

/// Restarts of each way; `make bench-mesh` asks for more.
const ROUNDS: u64 = 1;

/// How core is replaced by another process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    Restarted,
    Killed,
    Upgraded,
}

/// What of a node's tunnel is the same as long as nobody touches it.
#[derive(Debug, PartialEq, Eq)]
struct Tunnel {
    interface_index: String,
    endpoints: String,
    /// With the numbers that the kernel gives to what is put there anew.
    table: String,
}

fn tunnel(member: &Member) -> Tunnel {
    let run = |line: &[&str]| member.node.host().run(line).succeeded().stdout;
    Tunnel {
        interface_index: run(&["cat", "/sys/class/net/plexd0/ifindex"]),
        endpoints: member.wg("endpoints"),
        table: run(&["nft", "--handle", "--stateless", "list", "table", "inet", "plexd"]),
    }
}

/// When the last handshake with the only peer was, in seconds.
fn handshake(member: &Member) -> u64 {
    let shown = member.wg("latest-handshakes");
    let seconds = shown.split_whitespace().nth(1).and_then(|text| text.parse().ok());
    seconds.unwrap_or_else(|| panic!("no handshake: {shown}"))
}

/// Replaces the process of plexd-core.
pub(crate) fn replace_core(member: &mut Member, way: Way, round: u64) {
    let copy = member.node.host().directory().join(format!("plexd-core-{round}")).display().to_string();
    if let Way::Upgraded = way {
        let program = member.node.host().program("plexd-core");
        member.node.host().run(&["cp", &program, &copy]).expect_success();
    }
    let core = member.node.take_core();
    match way {
        Way::Killed => core.kill9(),
        Way::Restarted | Way::Upgraded => assert_eq!(core.terminate().code(), Some(0)),
    }
    match way {
        Way::Upgraded => member.node.start_core_from(&copy),
        Way::Restarted | Way::Killed => member.node.start_core(),
    }
    member.wait_status("the peer in WireGuard", |status| status["mesh"]["peers_configured"] == 1);
}

/// Starts what prints every change of links, addresses and routes.
fn a_monitor(member: &Member) -> Daemon {
    let line = ["ip", "-o", "monitor", "link", "address", "route"];
    member.node.host().spawn("monitor", &line)
}

#[expect(clippy::print_stdout, reason = "the figures are what `make bench-mesh` shows")]
fn show(is_kernel: bool, replacements: u64, loss: Loss) {
    let Loss { sent, late, longest_gap_ms, latest_ms, .. } = loss;
    let missing = loss.never_arrived();
    let backend = if is_kernel { "kernel" } else { "built-in" };
    println!(
        "restarts of core, {backend} WireGuard: {replacements} lost {missing} of {sent} datagrams ({late} came over a second late), longest gap {longest_gap_ms} ms (senders up to {latest_ms} ms late)"
    );
    if is_kernel {
        println!("bench mesh.restart_lost_datagrams {missing} datagrams");
    }
}

#[test]
fn a_core_that_is_restarted_killed_or_upgraded_leaves_the_kernels_tunnel_as_it_is() {
    let mut mesh = Mesh::new();
    mesh.set_rules(&json!([{ "src": "*", "dst": "*", "action": "allow" }]));
    mesh.a.wait_peers_up(1);
    mesh.b.wait_peers_up(1);
    let is_kernel = mesh.b.node.status()["mesh"]["backend"] == "kernel";
    let rounds = std::env::var("PLEXD_E2E_RESTARTS").ok().and_then(|text| text.parse().ok());
    let rounds = rounds.unwrap_or(ROUNDS);
    let [a, b] = [&mesh.a, &mesh.b].map(|member| (member.node.host().clone(), member.mesh_ip.clone()));
    let monitor = a_monitor(&mesh.b);
    let flow = Flow::endless((&a.0, &a.1), (&b.0, &b.1), 0);
    // So that there is a flow to interrupt.
    std::thread::sleep(Duration::from_secs(2));
    for round in 0..rounds {
        for way in [Way::Restarted, Way::Killed, Way::Upgraded] {
            let before = (tunnel(&mesh.b), handshake(&mesh.b));
            let start = Instant::now();
            replace_core(&mut mesh.b, way, round);
            if is_kernel {
                assert_eq!(tunnel(&mesh.b), before.0, "{way:?} in round {round}");
                let after = handshake(&mesh.b);
                assert!(
                    after == before.1 || after >= before.1 + REKEY_AFTER - 1,
                    "{way:?} in round {round}, after {:?}: a handshake at {after}, {} before",
                    start.elapsed(),
                    before.1
                );
            } else {
                wait_until(SOON, "a ping", || a.0.run(&["ping", "-c1", "-W1", &b.1]).is_success());
            }
        }
    }
    let loss = flow.stop();
    let changes = monitor.log();
    assert!(!is_kernel || !changes.contains("plexd0"), "core changed what was right: {changes}");
    show(is_kernel, 3 * rounds, loss);
    assert!(loss.never_arrived() < loss.sent, "{loss:?}");
}
