//! The mesh: a handshake, HTTP that policy allows and refuses, before and after a change, and what is on the wire.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use plexd_e2e::{Daemon, Host, wait_until};
use serde_json::{Value, json};

use crate::stage::{begin, check, command, remark, run};
use crate::tour::Demo;

/// How long the mesh may take to follow.
const SOON: Duration = Duration::from_secs(15);

/// What the web server on `b` says; looked for on the wire.
const TEXT: &str = "Hello from b, over the mesh";

/// Lets `a` reach TCP port `port` of `b`, and nothing else.
fn allow(demo: &Demo, port: u16) {
    let rule =
        json!({ "src": demo.a_id, "dst": demo.b_id, "port": port, "protocol": "tcp", "action": "allow" });
    let policies = json!({ "policies": [{ "id": "web", "rules": [rule] }] });
    for id in [&demo.a_id, &demo.b_id] {
        let url = format!("http://127.0.0.1:8444/admin/nodes/{id}/state");
        let put = format!("curl -s -X PUT {url} -d '{policies}'");
        run(demo.control_plane.host(), &put).expect_success();
    }
}

/// Shows that nothing is there without policy, and a real handshake once there is one.
pub(crate) fn show_handshake(demo: &Demo) {
    begin("Without an allow rule the nodes do not even know each other; with one, WireGuard shakes hands");
    let (a, b) = (demo.a.host(), demo.b.host());
    wait_until(SOON, "the peer's name in the desired state", || {
        demo.a.status()["mesh"]["peers_desired"] == json!(1)
    });
    let before = run(a, "wg show plexd0 peers").succeeded();
    check("no peer is configured", before.stdout.trim().is_empty());
    allow(demo, 8080);
    for node in [&demo.a, &demo.b] {
        wait_until(SOON, "a handshake", || {
            let peers = node.ctl_json(&["peers"]);
            if peers["peers"][0]["state"] == "up" { Ok(()) } else { Err(peers.to_string()) }
        });
    }
    let shown = run(a, "wg show plexd0").succeeded().stdout;
    check("wg shows a handshake on a", shown.contains("latest handshake:"));
    run(a, "plexd-ctl peers").expect_success();
    let shown = run(b, "wg show plexd0 latest-handshakes").succeeded().stdout;
    let when = shown.split_whitespace().nth(1).and_then(|when| when.parse().ok()).unwrap_or(0_u64);
    check("and on b", when > 0);
}

/// Shows HTTP on the allowed port, and none on another.
pub(crate) fn show_policed_http(demo: &Demo) -> [Daemon; 2] {
    begin("HTTP over the mesh: the allowed port answers, the other one does not");
    let servers = [8080, 9090].map(|port| {
        command(demo.b.host(), "root", &format!("plexd-demo serve 0.0.0.0:{port} '{TEXT}' &"));
        demo.b.host().serve(port, TEXT)
    });
    check_ports(demo, 8080, 9090);
    servers
}

fn check_ports(demo: &Demo, open: u16, closed: u16) {
    let curl = |port| format!("curl -sS -m 1 http://{}:{port}/", demo.b_address);
    let answer = run(demo.a.host(), &curl(open));
    check(&format!("port {open} answers"), answer.is_success() && answer.stdout.trim() == TEXT);
    let refused = run(demo.a.host(), &curl(closed));
    check(&format!("port {closed} does not"), !refused.is_success());
}

/// Shows that the underlay carries WireGuard and not what is said.
pub(crate) fn show_ciphertext(demo: &Demo) {
    begin("A packet capture during an HTTP exchange: plain text in the mesh, WireGuard's UDP on the wire");
    let (a, b) = (demo.a.host(), demo.b.host());
    let captures = ["plexd0", "eth0"].map(|interface| Capture::start(b, interface));
    run(a, &format!("curl -sS -m 5 http://{}:8080/", demo.b_address)).expect_success();
    let [mesh, wire] = captures.map(|capture| {
        let packets = capture.packets_after_handshake();
        run(b, &format!("tcpdump -n -r {} 2>/dev/null | head -4", capture.file)).expect_success();
        capture.stop();
        packets
    });
    check("in the mesh, the text can be read", contains(&mesh, TEXT));
    check("on the wire, it cannot", !contains(&wire, TEXT) && !contains(&wire, "HTTP/1.1"));
    let packets = run(b, &format!("tcpdump -n -r {} udp port 51820 2>/dev/null | wc -l", file(b, "eth0")));
    let packets: u32 = packets.stdout.trim().parse().unwrap_or(0);
    check("there are UDP packets of WireGuard on the wire", packets > 0);
}

/// A running tcpdump.
struct Capture {
    daemon: Daemon,
    file: String,
}

impl Capture {
    fn start(host: &Host, interface: &str) -> Self {
        let file = file(host, interface);
        let line =
            ["tcpdump", "-i", interface, "-n", "--immediate-mode", "-U", "-Z", "root", "-w", file.as_str()];
        command(host, "root", &format!("{} &", line.join(" ")));
        let mut daemon = host.spawn(&format!("tcpdump-{interface}"), &line);
        let log = |daemon: &Daemon| daemon.log().contains("listening on");
        wait_until(SOON, "tcpdump", || log(&daemon) || !daemon.is_running());
        Self { daemon, file }
    }

    /// Returns what was captured once it is more than the file's header (24 bytes) and no longer grows.
    fn packets_after_handshake(&self) -> Vec<u8> {
        let read = || fs::read(Path::new(&self.file)).unwrap_or_default();
        let mut last = 0;
        wait_until(SOON, "packets in the capture", || {
            let size = read().len();
            let settled = size > 24 && size == last;
            last = size;
            settled
        });
        read()
    }

    fn stop(mut self) {
        self.daemon.signal(Signal::SIGINT);
        self.daemon.wait(SOON);
    }
}

fn file(host: &Host, interface: &str) -> String {
    host.directory().join(format!("{interface}.pcap")).display().to_string()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Shows the same two ports after the policy changed.
pub(crate) fn show_policy_change(demo: &Demo) {
    begin("The policy changes while all runs: now port 9090, no longer port 8080");
    allow(demo, 9090);
    for node in [&demo.a, &demo.b] {
        wait_until(SOON, "the new policy", || {
            let policies = node.ctl_json(&["policies"]);
            if *port_of(&policies) == json!(9090) { Ok(()) } else { Err(policies.to_string()) }
        });
    }
    run(demo.b.host(), "plexd-ctl policies").expect_success();
    check_ports(demo, 9090, 8080);
}

fn port_of(policies: &Value) -> &Value {
    &policies["policies"][0]["rules"][0]["port"]
}

/// Shows the firewall as the kernel has it.
pub(crate) fn show_table(demo: &Demo) {
    begin("What the kernel enforces: one table, on the mesh interface only");
    let table = run(demo.b.host(), "nft list table inet plexd").succeeded().stdout;
    for hook in ["input", "forward", "output"] {
        check(&format!("it covers {hook}"), table.contains(&format!("hook {hook}")));
    }
    let denied = demo.b.ctl_json(&["policies"])["denied_packets"].as_u64().unwrap_or(0);
    let denied_at_a = demo.a.ctl_json(&["policies"])["denied_packets"].as_u64().unwrap_or(0);
    remark(&format!("denied packets: {denied_at_a} leaving a, {denied} entering b"));
    check("packets were denied", denied + denied_at_a > 0);
}
