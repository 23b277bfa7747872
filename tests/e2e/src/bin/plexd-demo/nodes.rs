//! The first steps: the hosts, the control plane, and two nodes that enrol and give their privileges up.

use std::fs;

use nix::unistd::User;
use plexd_e2e::{ControlPlane, Lab, Node};
use serde_json::json;

use crate::LAB;
use crate::stage::{begin, check, command, remark, run};
use crate::tour::Demo;

/// What node `a` has beside the defaults: the TCP listener, and reports that are sent at once.
const CONFIG_A: &str = "\
node_api:
  http_enabled: true
  http_token_file: /etc/plexd/api-token
  report_debounce: 1s
";

/// Makes three hosts on a bridge and starts the control plane in one.
pub(crate) fn lay_the_ground() -> (Lab, ControlPlane) {
    begin("Three hosts on a bridge, each a network namespace; the control plane runs on cp");
    let lab = Lab::named(LAB, &["cp", "a", "b"]);
    let cp = lab.host("cp");
    run(cp, "ip -brief address show eth0").expect_success();
    run(lab.host("a"), "ip -brief address show eth0").expect_success();
    run(lab.host("b"), "ip -brief address show eth0").expect_success();
    command(cp, "root", "plexd-devcp serve --listen 192.0.2.1:8443 --admin 127.0.0.1:8444 --state … &");
    let control_plane = ControlPlane::start(cp);
    check(
        "the control plane answers",
        control_plane.admin("GET", "/admin/nodes", None)["nodes"] == json!([]),
    );
    (lab, control_plane)
}

/// Enrols both nodes, one by a token file, one by `plexd-ctl join`.
pub(crate) fn enrol(lab: Lab, control_plane: ControlPlane) -> Demo {
    let cp = lab.host("cp");
    begin("Node a enrols with a one-time token that it finds in a file");
    let mut a = Node::new(lab.host("a"), &control_plane, CONFIG_A);
    let token = run(cp, "curl -s -X POST http://127.0.0.1:8444/admin/tokens").succeeded().json();
    a.write_token(token["token"].as_str().unwrap_or_default());
    remark("(the token is now in a:/etc/plexd/bootstrap-token)");
    let api_token = "(umask 077; head -c 32 /dev/urandom | base64 > /etc/plexd/api-token)";
    run(a.host(), api_token).expect_success();
    run(a.host(), "cat /etc/plexd/config.yaml").expect_success();
    let a_id = start(&mut a);
    run(a.host(), "plexd-ctl status").expect_success();
    check(&format!("a is enrolled, as {a_id}"), !a_id.is_empty());

    begin("Node b waits for its token and is given it with plexd-ctl join");
    let mut b = Node::new(lab.host("b"), &control_plane, "");
    start_waiting(&mut b);
    let status = run(b.host(), "plexd-ctl status").succeeded();
    check("it says what it waits for", status.stdout.contains("plexd-ctl join"));
    let token = run(cp, "curl -s -X POST http://127.0.0.1:8444/admin/tokens").succeeded().json();
    b.host().write("/etc/plexd/token", 0o600, token["token"].as_str().unwrap_or_default());
    let joined = run(b.host(), "plexd-ctl join --token-file /etc/plexd/token -o json").succeeded().json();
    let b_id = joined["node_id"].as_str().unwrap_or_default().to_owned();
    let b_address = joined["mesh_ip"].as_str().unwrap_or_default().to_owned();
    check(&format!("b is enrolled, as {b_id} at {b_address}"), b.wait_enrolled() == b_id);
    check("the token file is deleted", !b.host().path("/etc/plexd/token").exists());
    Demo { a, b, a_id, b_id, b_address, control_plane, lab }
}

fn start(node: &mut Node) -> String {
    start_waiting(node);
    node.wait_enrolled()
}

fn start_waiting(node: &mut Node) {
    command(node.host(), "root", "plexd-core run --config /etc/plexd/config.yaml &");
    node.start_core();
    command(node.host(), "root", "plexd-api --config /etc/plexd/config.yaml &");
    node.start_api();
}

/// Shows that what was started as root no longer is.
pub(crate) fn show_processes(demo: &mut Demo) {
    begin("Both daemons, started as root, gave it up: plexd-core kept CAP_NET_ADMIN, plexd-api nothing");
    for node in [&mut demo.a, &mut demo.b] {
        let daemons = [
            ("plexd-core", node.core().pid(), "0000000000001000"),
            ("plexd-api", node.api().pid(), "0000000000000000"),
        ];
        for (name, pid, capabilities) in daemons {
            let fields = "grep -E '^(Name|Uid|Groups|CapEff|NoNewPrivs):'";
            let status = run(node.host(), &format!("{fields} /proc/{pid}/status")).succeeded().stdout;
            let claim = format!("{name} on {} runs as user {name}", node.host().name());
            check(&claim, runs_as(pid, name) && status.contains(capabilities));
        }
    }
}

/// Returns whether all four user ids of a process are those of `user`.
fn runs_as(pid: u32, user: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let uids: Vec<u32> = uids.split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    let wanted = User::from_name(user).ok().flatten().map(|user| user.uid.as_raw());
    wanted.is_some_and(|wanted| uids == [wanted; 4])
}
