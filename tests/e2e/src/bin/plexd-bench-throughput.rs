//! How much the built-in WireGuard carries, side by side with Debian's wireguard-go: between the same two network
//! namespaces, in turn, by iperf3 with one and with four streams. As root.

use std::env;

use plexd_e2e::{ControlPlane, Daemon, Host, Lab, Node, median, wait_until};
use serde_json::{Value, json};

use std::time::Duration;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_mins(1);

/// Both are measured so often, one after the other.
const ROUNDS: usize = 5;

/// Seconds of a measurement.
const SECONDS: &str = "5";

/// The other WireGuard's interface, its port, and its addresses by host.
const OTHER: &str = "wgo0";
const PORT: &str = "51999";
const ADDRESSES: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() {
    let rounds = env::args().nth(1).map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let lab = Lab::new(&["cp", "a", "b"]);
    let hosts = ["a", "b"].map(|name| lab.host(name));
    let control_plane = ControlPlane::start(lab.host("cp"));
    let mut nodes = hosts.map(|host| Node::new(host, &control_plane, "mesh:\n  backend: userspace\n"));
    let ids = nodes.each_mut().map(|node| {
        node.write_token(&control_plane.token());
        node.start_core();
        node.wait_enrolled()
    });
    let everything = json!([{ "id": "all", "rules": [{ "src": "*", "dst": "*", "action": "allow" }] }]);
    for id in &ids {
        control_plane.set_state(id, &json!({ "policies": everything }));
    }
    let mesh_ip = nodes[1].status()["identity"]["mesh_ip"].as_str().expect("an address").to_owned();
    let _other = start_other(hosts);
    let servers = [hosts[1].spawn("iperf3", &["iperf3", "--server"])];
    for address in [mesh_ip.as_str(), ADDRESSES[1]] {
        wait_until(DEADLINE, "a ping", || {
            let output = hosts[0].run(&["ping", "-c1", "-W1", address]);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
    }
    for streams in ["1", "4"] {
        let mut figures = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            // Whoever is first has it no easier for it.
            for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let address = [mesh_ip.as_str(), ADDRESSES[1]][which];
                figures[which].push(throughput(hosts[0], address, streams));
            }
        }
        let [ours, other] = figures.map(median);
        println!(
            "throughput: {streams} streams, plexd {ours:.0} Mbit/s, wireguard-go {other:.0} Mbit/s (medians of {rounds})"
        );
        println!("bench mesh.userspace_over_wireguard_go.s{streams} {:.2} ratio", ours / other);
    }
    drop(servers);
}

/// Starts wireguard-go in both hosts and connects the two.
fn start_other(hosts: [&Host; 2]) -> [Daemon; 2] {
    let keys = hosts.map(|host| {
        let private = host.run(&["wg", "genkey"]).succeeded().stdout;
        host.write("/etc/plexd/other.key", 0o600, &private);
        let public = host.run(&["sh", "-c", "wg pubkey < /etc/plexd/other.key"]).succeeded().stdout;
        public.trim_end().to_owned()
    });
    let daemons = hosts.map(|host| host.spawn("wireguard-go", &["wireguard-go", "-f", OTHER]));
    for (number, host) in hosts.into_iter().enumerate() {
        let peer = 1 - number;
        wait_until(DEADLINE, "wireguard-go", || {
            let output = host.run(&["wg", "show", OTHER]);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
        let endpoint = format!("{}:{PORT}", hosts[peer].ipv4());
        let allowed_ips = format!("{}/32", ADDRESSES[peer]);
        let line = [
            "wg",
            "set",
            OTHER,
            "listen-port",
            PORT,
            "private-key",
            "/etc/plexd/other.key",
            "peer",
            &keys[peer],
            "endpoint",
            &endpoint,
            "allowed-ips",
            &allowed_ips,
        ];
        host.run(&line).expect_success();
        let address = format!("{}/24", ADDRESSES[number]);
        host.run(&["ip", "address", "add", &address, "dev", OTHER]).expect_success();
        host.run(&["ip", "link", "set", OTHER, "mtu", "1420", "up"]).expect_success();
    }
    daemons
}

/// Returns what arrived, in Mbit/s.
fn throughput(host: &Host, address: &str, streams: &str) -> f64 {
    let line = ["iperf3", "--client", address, "--parallel", streams, "--time", SECONDS, "--json"];
    let report: Value = host.run(&line).succeeded().json();
    report["end"]["sum_received"]["bits_per_second"].as_f64().map_or(f64::NAN, |bits| bits / 1e6)
}
