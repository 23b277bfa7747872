//! What somebody changes by hand in the kernel is put right and told to the control plane, and traffic passes again: at
//! once where the kernel announces it, by the next reconciliation otherwise. Where nothing is to be put right, nothing is
//! written. The same for both backends; WireGuard of the kernel can be changed by `wg set` as well, the built-in cannot.

use std::fs;
use std::time::Duration;

use plexd_e2e::{Lab, wait_until};
use serde_json::{Value, json};

use crate::support::{Member, Mesh, SOON};

/// How long a hundred reconciliations may take.
const HUNDRED: Duration = Duration::from_mins(2);

/// Prints what the kernel has of a node's mesh, but for what changes by itself: counters, the time of handshakes, the
/// interface's index.
const KERNEL_STATE: &str = r"
printf '%s\n' 'link show plexd0' 'address show dev plexd0 scope global' 'route show dev plexd0' |
    ip -oneline -batch - | sed -E 's/^[0-9]+: //; s/ (qdisc|state) .*//'
ip -6 route show dev plexd0 | grep -v ^fe80
wg show plexd0 dump | awk 'NR == 1 { print $2, $3 } NR > 1 { print $1, $2, $3, $4, $8 }' | sort
nft --stateless list table inet plexd
";

/// What somebody does, what kind of correction answers it, and a word of its detail. `$A` is the other node's address.
type Edit = (&'static str, &'static str, &'static str);

/// What the kernel announces.
const ANNOUNCED: [Edit; 11] = [
    ("ip link del plexd0", "interface_restored", "the interface was missing"),
    (
        // In one go, before it is up again: an interface that is up keeps its name.
        r"printf 'link set plexd0 down\nlink set plexd0 name other0\n' | ip -batch -",
        "interface_restored",
        "the interface was missing",
    ),
    ("ip link set plexd0 down", "interface_restored", "was down"),
    ("ip link set plexd0 mtu 1300", "interface_restored", "another MTU"),
    ("ip address flush dev plexd0 scope global", "address_restored", "was missing"),
    ("ip address add 10.99.0.1/32 dev plexd0", "address_restored", "10.99.0.1/32 was there"),
    ("ip route del $A dev plexd0", "route_added", "was missing"),
    ("ip route add 10.98.0.0/16 dev plexd0", "route_removed", "10.98.0.0/16 was there"),
    ("nft delete table inet plexd", "policy_restored", "was missing"),
    ("nft flush table inet plexd", "policy_restored", "differed"),
    ("nft insert rule inet plexd judge accept", "policy_restored", "differed"),
];

/// What of WireGuard somebody changes in the time between two reconciliations. `$A` is the other node's key, `$ABSENT`
/// that of a peer that was never heard.
const CONFIGURED: [(&str, &[(&str, &str)]); 4] = [
    (
        "wg set plexd0 peer $A remove
         wg set plexd0 peer $FOREIGN allowed-ips 10.97.0.0/16
         wg set plexd0 peer $ABSENT persistent-keepalive 7",
        &[
            ("peer_added", "was missing from WireGuard config"),
            ("peer_removed", "was in WireGuard and should not be"),
            ("peer_updated", "n_absent had another keepalive"),
        ],
    ),
    // The other node's address as well, which is taken from it with that.
    (
        "wg set plexd0 peer $ABSENT allowed-ips 10.97.0.0/16,$ADDRESS/32",
        &[("peer_updated", "n_absent had another set of allowed IPs"), ("peer_updated", "another set of")],
    ),
    (
        "wg set plexd0 private-key /etc/plexd/other-key
         wg set plexd0 peer $ABSENT endpoint 192.0.2.88:9",
        &[
            ("interface_restored", "the interface had another private key"),
            ("peer_updated", "n_absent had another endpoint"),
        ],
    ),
    (
        "wg set plexd0 listen-port 4500
         wg set plexd0 peer $A preshared-key /etc/plexd/other-psk",
        &[
            ("interface_restored", "the interface had another listen port"),
            ("peer_updated", "had another preshared key"),
        ],
    ),
];

/// Two nodes that may all, which reconcile every `interval`.
fn mesh(interval: &str) -> Mesh {
    let more = format!("reconcile:\n  interval: {interval}\n");
    let mesh = Mesh::configured(Lab::new(&["cp", "a", "b"]), &more);
    mesh.set_rules(&json!([{ "src": "*", "dst": "*", "action": "allow" }]));
    mesh.a.wait_peers_up(1);
    mesh.b.wait_peers_up(1);
    mesh
}

fn kernel_state(member: &Member) -> String {
    member.node.host().shell(None, KERNEL_STATE).stdout
}

/// Corrections of a kind that the control plane was told of, with a word of the detail.
fn told(mesh: &Mesh, member: &Member, (kind, word): (&str, &str)) -> usize {
    let received = mesh.control_plane.received(&member.id);
    let reports = received["drift"].as_array().map(Vec::as_slice).unwrap_or_default();
    let corrections = reports.iter().filter_map(|report| report["body"]["corrections"].as_array()).flatten();
    let is_it = |correction: &&Value| {
        correction["type"] == kind && correction["detail"].as_str().unwrap_or_default().contains(word)
    };
    corrections.filter(is_it).count()
}

/// Waits until the kernel has what it had, the control plane was told `corrections` more than `before`, and packets pass
/// both ways.
#[track_caller]
fn wait_repaired(mesh: &Mesh, state: &str, corrections: &[(&str, &str)], before: &[usize]) {
    let (a, b) = (&mesh.a, &mesh.b);
    let at = format!("{corrections:?}");
    wait_until(SOON, &format!("a ping after {at}"), || {
        a.node.host().run(&["ping", "-c1", "-W1", &b.mesh_ip]).is_success()
    });
    wait_until(SOON, &format!("what the kernel had before {at}"), || {
        let now = kernel_state(b);
        if now == state { Ok(()) } else { Err(format!("{now}--- instead of\n{state}")) }
    });
    for (correction, before) in corrections.iter().zip(before) {
        wait_until(SOON, &format!("the report of {correction:?}"), || told(mesh, b, *correction) > *before);
    }
    wait_until(SOON, &format!("a ping back after {at}"), || {
        b.node.host().run(&["ping", "-c1", "-W1", &a.mesh_ip]).is_success()
    });
}

#[test]
fn what_the_kernel_announces_is_put_right_at_once() {
    // Far too long for a reconciliation to be what does it.
    let mesh = mesh("1h");
    let (a, b) = (&mesh.a, &mesh.b);
    let state = kernel_state(b);
    assert!(state.contains("mtu 1420") && state.contains("hook output"), "{state}");
    for (line, kind, word) in ANNOUNCED {
        let before = told(&mesh, b, (kind, word));
        b.node.host().shell(None, &format!("A={}\n{line}", a.mesh_ip)).expect_success();
        wait_repaired(&mesh, &state, &[(kind, word)], &[before]);
    }
    let shown = b.node.host().run(&["ip", "link", "show"]).succeeded().stdout;
    assert!(!shown.contains("other0"), "what was renamed is gone: {shown}");
}

/// Gives `b` a second peer, which nobody is, at an address where nobody answers. Returns its key.
fn add_absent_peer(mesh: &Mesh) -> String {
    let b = &mesh.b;
    let line = "wg genkey | wg pubkey; wg genpsk";
    let keys = b.node.host().shell(None, line).succeeded().stdout;
    let (key, psk) = keys.trim_end().split_once('\n').expect("two lines");
    let state = mesh.control_plane.admin("GET", &format!("/admin/nodes/{}", b.id), None);
    let absent = json!({
        "id": "n_absent", "public_key": key, "mesh_ip": "10.100.9.9", "allowed_ips": ["10.100.9.9/32"],
        "endpoint": "192.0.2.77:51820", "psk": psk,
    });
    let peers = json!([state["state"]["peers"][0], absent]);
    mesh.control_plane.set_state(&b.id, &json!({ "peers": peers }));
    b.wait_wg_peers(2);
    key.to_owned()
}

#[test]
fn what_somebody_configures_in_wireguard_is_put_right_by_the_next_reconciliation() {
    let mesh = mesh("5s");
    let (a, b) = (&mesh.a, &mesh.b);
    let absent = add_absent_peer(&mesh);
    let host = b.node.host();
    host.shell(None, "umask 077; wg genkey > /etc/plexd/other-key; wg genpsk > /etc/plexd/other-psk")
        .expect_success();
    let key = a.node.status()["identity"]["public_key"].as_str().unwrap_or_default().to_owned();
    let foreign = host.shell(None, "wg genkey | wg pubkey").succeeded().stdout;
    let names = format!("A={key}\nADDRESS={}\nABSENT={absent}\nFOREIGN={foreign}", a.mesh_ip);
    let state = kernel_state(b);
    let is_kernel = b.node.status()["mesh"]["backend"] == "kernel";
    for (lines, corrections) in CONFIGURED {
        let before: Vec<usize> = corrections.iter().map(|one| told(&mesh, b, *one)).collect();
        let output = host.shell(None, &format!("{names}set -e\n{lines}"));
        if is_kernel {
            output.expect_success();
            wait_repaired(&mesh, &state, corrections, &before);
        } else {
            assert!(output.stderr.contains("Operation not permitted"), "{output}");
            assert_eq!(kernel_state(b), state);
        }
    }
    if is_kernel {
        // Of a peer that is heard, the endpoint is where it is heard: it says so itself, and that is no drift.
        let before = told(&mesh, b, ("peer_updated", "endpoint"));
        host.shell(None, &format!("{names}wg set plexd0 peer $A endpoint 192.0.2.88:9")).expect_success();
        wait_repaired(&mesh, &state, &[], &[]);
        assert_eq!(told(&mesh, b, ("peer_updated", "endpoint")), before);
    }
}

/// Netlink messages that plexd-core sent, by what it asked for, from the lines of `strace`.
fn sent<'a>(trace: &'a str, kind: &str) -> impl Iterator<Item = &'a str> {
    let kind = format!("nlmsg_type={kind}");
    trace.lines().filter(move |line| line.contains(&kind))
}

/// Lines of `strace` with a netlink message that is no question.
fn writes(trace: &str) -> Vec<&str> {
    let messages = trace.lines().filter(|line| line.contains("nlmsg_type="));
    messages.filter(|line| line.split("nlmsg_type=").skip(1).any(|message| !is_question(message))).collect()
}

fn is_question(message: &str) -> bool {
    let message_type = message.split([',', ' ', '}']).next().unwrap_or_default();
    match message_type.strip_prefix("NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_") {
        Some(of_nftables) => of_nftables.starts_with("GET"),
        // The command is the first byte: 0 is WG_CMD_GET_DEVICE.
        None if message_type == "wireguard" => message.contains(r#", "\x00\x01"#),
        // Where generic netlink's families are asked for.
        None => message_type.starts_with("RTM_GET") || message_type == "nlctrl",
    }
}

/// How many reconciliations are looked at: a hundred, unless `PLEXD_E2E_RECONCILIATIONS` says less for a machine on which
/// that takes minutes.
fn reconciliations() -> usize {
    let number = std::env::var("PLEXD_E2E_RECONCILIATIONS").ok();
    number.and_then(|number| number.parse().ok()).unwrap_or(100)
}

#[test]
fn a_hundred_reconciliations_with_nothing_to_do_write_nothing() {
    let mut mesh = mesh("1h");
    let pid = mesh.b.node.core().pid().to_string();
    let (a, b) = (&mesh.a, &mesh.b);
    a.node.host().run(&["ping", "-c1", "-W5", &b.mesh_ip]).expect_success();
    let host = b.node.host();
    let file = host.directory().join("netlink.strace");
    let path = file.display().to_string();
    let line =
        ["strace", "-f", "-e", "trace=sendto,sendmsg,sendmmsg", "-e", "signal=none", "-o", &path, "-p", &pid];
    let mut strace = host.spawn("strace", &line);
    let log = host.directory().join("strace.log");
    strace.wait_ready("strace", || fs::read_to_string(&log).unwrap_or_default().contains("attached"));
    let state = kernel_state(b);
    let handshakes = b.wg("latest-handshakes");
    let drift = mesh.control_plane.received(&b.id)["drift"].clone();
    // The kernel announces what changes of the interface, also what plexd does not care about.
    let announce =
        "for round in $(seq 10); do echo round-$round >/sys/class/net/plexd0/ifalias; sleep 0.12; done";
    let trace = wait_until(HUNDRED, "the reconciliations", || {
        host.shell(None, announce).expect_success();
        let trace = fs::read_to_string(&file).unwrap_or_default();
        let addresses_read = sent(&trace, "RTM_GETADDR").count();
        if addresses_read >= reconciliations() { Ok(trace) } else { Err(format!("{addresses_read} so far")) }
    });
    assert_eq!(writes(&trace), Vec::<&str>::new());
    assert_eq!(b.wg("latest-handshakes"), handshakes);
    assert_eq!(kernel_state(b), state);
    assert_eq!(mesh.control_plane.received(&b.id)["drift"], drift);

    // What is counted would be seen: one thing to do.
    host.run(&["ip", "link", "set", "plexd0", "mtu", "1300"]).expect_success();
    wait_until(SOON, "a write", || {
        let trace = fs::read_to_string(&file).unwrap_or_default();
        if writes(&trace).is_empty() { Err(String::new()) } else { Ok(()) }
    });
    strace.terminate();
}
