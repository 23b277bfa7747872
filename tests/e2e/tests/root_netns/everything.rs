//! A peer that has everything: the machine's packets go through the tunnel, those of the tunnel itself and of plexd-core
//! do not, and nothing of it stays behind.

use std::path::PathBuf;

use plexd_e2e::{Daemon, Host, Lab, wait_until};
use serde_json::{Value, json};

use super::support::{Member, Mesh, SOON};

/// A host that only the gateway knows.
const BEYOND: &str = "198.51.100.9";

/// Two nodes, of which `b` is the gateway to a host beyond, and `a` has nothing but a default route: whatever covers
/// everything covers the control plane and the gateway's endpoint as well.
fn with_gateway() -> Mesh {
    let lab = Lab::new(&["cp", "a", "b", "far"]);
    let sh = |host: &str, line: &str| lab.host(host).shell(None, line).expect_success();
    sh("a", "ip route del 192.0.2.0/24 dev eth0; ip route add default dev eth0");
    sh("a", "ip -6 route del 2001:db8::/64 dev eth0; ip -6 route add default dev eth0");
    sh("b", "ip address add 198.51.100.1/24 dev eth0; echo 1 > /proc/sys/net/ipv4/ip_forward");
    sh("far", "ip address add 198.51.100.9/24 dev eth0; ip route add 10.100.0.0/16 via 198.51.100.1");
    let mesh = Mesh::configured(lab, "heartbeat:\n  interval: 5s\n");
    mesh.set_rules(&json!([{ "src": "*", "dst": "*", "action": "allow" }]));
    mesh.a.wait_peers_up(1);
    mesh
}

/// Gives the gateway these allowed IPs beside its own address, in what `a` is told.
fn allow(mesh: &Mesh, more: &[&str]) {
    let path = format!("/admin/nodes/{}", mesh.a.id);
    let node = mesh.control_plane.admin("GET", &path, None);
    let mut peer = node["state"]["peers"][0].clone();
    let own = format!("{}/32", mesh.b.mesh_ip);
    peer["allowed_ips"] = [&[own.as_str()], more].concat().into();
    mesh.control_plane.set_state(&mesh.a.id, &json!({ "peers": [peer] }));
}

/// Everything that routing looks at, in order.
fn routing(member: &Member) -> String {
    let line = "ip rule show; ip -6 rule show; ip -4 -d route show table all | grep -w plexd0 | sort; \
                ip -d -6 route show table all | grep -w plexd0 | sort";
    member.node.host().shell(None, line).stdout
}

fn wait_routing(member: &Member, what: &str, condition: impl Fn(&str) -> bool) -> String {
    wait_until(SOON, what, || {
        let routing = routing(member);
        if condition(&routing) { Ok(routing) } else { Err(routing) }
    })
}

fn wait_beyond(member: &Member) {
    wait_until(SOON, "an answer from beyond the gateway", || {
        let url = format!("http://{BEYOND}:8080/");
        let output = member.node.host().run(&["curl", "-sS", "--max-time", "1", &url]);
        if output.is_success() { Ok(()) } else { Err(output) }
    });
}

/// Packets of an interface, into a file.
struct Capture {
    host: Host,
    file: PathBuf,
    _tcpdump: Daemon,
}

impl Capture {
    fn start(host: &Host, interface: &str) -> Self {
        let file = host.directory().join(format!("{interface}.pcap"));
        let path = file.display().to_string();
        let line = ["tcpdump", "-i", interface, "-n", "--immediate-mode", "-U", "-Z", "root", "-w", &path];
        let tcpdump = host.spawn(&format!("tcpdump-{interface}"), &line);
        wait_until(SOON, "tcpdump", || tcpdump.log().contains("listening on"));
        Self { host: host.clone(), file, _tcpdump: tcpdump }
    }

    fn matching(&self, filter: &str) -> String {
        self.host.run(&["tcpdump", "-n", "-r", &self.file.display().to_string(), filter]).stdout
    }
}

fn heartbeats(mesh: &Mesh) -> usize {
    let received = mesh.control_plane.received(&mesh.a.id);
    received["heartbeats"].as_array().map_or(0, Vec::len)
}

#[test]
fn what_covers_everything_carries_all_but_the_tunnels_own_packets_and_the_control_planes() {
    let mesh = with_gateway();
    let (a, far) = (&mesh.a, mesh.lab.host("far"));
    let _server = far.serve(8080, "beyond");
    let before = routing(a);
    assert!(!before.contains("lookup 112"), "{before}");
    allow(&mesh, &["0.0.0.0/0", "::/0"]);
    let routed = wait_routing(a, "rules and routes", |routing| {
        routing.matches("lookup 11200").count() == 4 && routing.matches("table 11200").count() == 2
    });

    let host = a.node.host();
    let [wire, tunnel, beyond] =
        [(host, "eth0"), (host, "plexd0"), (far, "eth0")].map(|(host, of)| Capture::start(host, of));
    let (heard, mark) = (heartbeats(&mesh), a.wg("fwmark"));
    assert_eq!(mark.trim(), "0x1000");
    wait_beyond(a);
    // New connections, not only those that are there.
    mesh.control_plane.swap_certificate("own");
    let data = "udp port 51820 and udp[8] == 4";
    wait_until(SOON, "data packets of the tunnel outside", || wire.matching(data).lines().count() > 4);
    let opened = format!("host {} and tcp[tcpflags] & tcp-syn != 0", mesh.control_plane.host().ipv4());
    wait_until(SOON, "a new connection to the control plane outside", || {
        wire.matching(&opened).lines().count() > 1
    });
    wait_until(SOON, "heartbeats", || heartbeats(&mesh) >= heard + 2);
    let from_mesh = format!("src host {} and dst host {BEYOND}", a.mesh_ip);
    wait_until(SOON, "packets beyond", || !beyond.matching(&from_mesh).is_empty());
    assert_eq!(wire.matching(&format!("ip host {BEYOND}")), "", "nothing went around the tunnel");
    let inside = tunnel.matching("ip net 192.0.2.0/24");
    assert_eq!(inside, "", "nothing of its own went through it");
    assert!(!tunnel.matching(&from_mesh).is_empty());
    let status = a.node.status();
    assert_eq!(status["health"], "healthy", "{status}");

    // What somebody takes away comes back at once.
    for line in [
        "ip rule del pref 11712",
        "ip rule del pref 11713",
        "ip -6 rule del pref 11714",
        "ip rule add pref 11713 from 10.8.0.0/16 lookup 99 proto 112",
        "ip route flush table 11200",
        "ip -6 route flush table 11200",
    ] {
        host.shell(None, line).expect_success();
        wait_routing(a, line, |routing| routing == routed);
    }
    wait_beyond(a);

    allow(&mesh, &[]);
    wait_routing(a, "nothing of it any more", |routing| routing == before);
}

#[test]
fn halves_of_everything_are_kept_apart_as_well_and_a_departure_leaves_no_rule() {
    let mut mesh = with_gateway();
    let far = mesh.lab.host("far").clone();
    let _server = far.serve(8080, "beyond");
    let rules = |mesh: &Mesh| mesh.a.node.host().shell(None, "ip rule show; ip -6 rule show").stdout;
    let before = rules(&mesh);
    // The third is where the gateway is reached, by its endpoint.
    allow(&mesh, &["0.0.0.0/1", "128.0.0.0/1", "192.0.2.0/24"]);
    let apart = ["lookup 11201", "lookup 11224", "suppress_prefixlength 24"];
    wait_routing(&mesh.a, "rules", |routing| apart.iter().all(|text| routing.contains(text)));
    let heard = heartbeats(&mesh);
    wait_beyond(&mesh.a);
    mesh.a.wait_peers_up(1);
    mesh.control_plane.swap_certificate("own");
    wait_until(SOON, "heartbeats", || heartbeats(&mesh) >= heard + 2);

    // The interface goes with the process, and comes back with the next one.
    mesh.a.node.take_core().kill9();
    mesh.a.node.start_core();
    mesh.a.wait_peers_up(1);
    wait_beyond(&mesh.a);

    mesh.a.node.ctl(&["deregister"]).expect_success();
    assert_eq!(rules(&mesh), before);
    let left =
        mesh.a.node.host().shell(None, "ip route show table all | grep -e plexd0 -e 'table 112'").stdout;
    assert_eq!(left, "");
}

#[test]
fn a_number_that_somebody_else_uses_is_named_and_the_rest_of_the_mesh_works() {
    let mesh = with_gateway();
    let host = mesh.a.node.host();
    host.shell(None, "ip rule add pref 11713 from 10.9.0.0/16 lookup 77").expect_success();
    let _server = mesh.b.node.host().serve(8080, "b");
    allow(&mesh, &["0.0.0.0/0"]);
    super::support::wait_problem(&mesh.a.node, &["0.0.0.0/0 not routed", "rule 11713"]);
    mesh.a.wait_http(&mesh.b, 8080);
    host.shell(None, "ip rule show pref 11713 | grep -q 10.9.0.0/16").expect_success();
    host.shell(None, "ip rule del pref 11713").expect_success();
    wait_routing(&mesh.a, "the rules once they can be", |routing| routing.contains("lookup 11200"));
    mesh.a.wait_status("health", |status: &Value| status["health"] == "healthy");
}
