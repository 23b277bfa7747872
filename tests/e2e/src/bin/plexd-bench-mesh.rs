//! What a mesh of 1, 1,000 and 10,000 peers costs a node: everything put in place from nothing, a reconciliation with
//! nothing to do, one peer more from the first byte of its event to its route in the kernel, and memory. The programs are
//! the real ones, in network namespaces; what is measured, is measured from outside where that can be.
//!
//! `plexd-bench-mesh [PEERS...]`; as root.

use std::fs;
use std::thread;
use std::time::Duration;

use plexd_e2e::{ControlPlane, Daemon, Lab, Node, median, wait_until};
use serde_json::{Value, json};

/// Peers that come one by one, for the median.
const ROUNDS: usize = 15;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_mins(2);

/// The configuration: reconciliations as often as it allows, and all that the log has.
/// Nobody is kept alive: there is nobody.
const CONFIG: &str = "log_level: debug\nreconcile:\n  interval: 5s\nmesh:\n  persistent_keepalive: 0s\n";

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() {
    let sizes: Vec<usize> =
        std::env::args().skip(1).map(|size| size.parse().expect("a number of peers")).collect();
    let sizes = if sizes.is_empty() { vec![1, 10, 1_000, 10_000] } else { sizes };
    println!("mesh: peers, apply ms, no-op ms, one more peer ms, PSS MiB (medians)");
    let mut figures = Vec::new();
    for size in sizes {
        let figure = measure(size);
        println!(
            "mesh: {size:>6} {:>9.1} {:>9.1} {:>9.2} {:>9.1}  {}",
            figure.apply, figure.noop, figure.delta, figure.pss, figure.backend
        );
        figures.push((size, figure));
    }
    let of = |size| figures.iter().find(|(of, _)| *of == size).map(|(_, figure)| figure);
    if let Some(thousand) = of(1_000) {
        println!("bench mesh.apply_1000_ms {:.1} ms", thousand.apply);
    }
    if let Some(many) = of(10_000) {
        println!("bench mesh.apply_10000_ms {:.1} ms", many.apply);
        println!("bench mesh.noop_10000_ms {:.1} ms", many.noop);
        println!("bench mesh.core_pss_10000_mib {:.1} MiB", many.pss);
        if let Some(few) = of(10) {
            println!("bench mesh.delta_10000_over_10 {:.2} ratio", many.delta / few.delta);
        }
    }
}

/// What so many peers cost, in milliseconds and MiB.
struct Figures {
    apply: f64,
    noop: f64,
    delta: f64,
    pss: f64,
    backend: String,
}

fn measure(size: usize) -> Figures {
    let lab = Lab::new(&["cp", "a"]);
    let control_plane = ControlPlane::start(lab.host("cp"));
    let mut node = Node::new(lab.host("a"), &control_plane, CONFIG);
    node.write_token(&control_plane.token());
    node.start_core();
    let id = node.wait_enrolled();
    let everything = json!([{ "id": "all", "rules": [{ "src": "*", "dst": "*", "action": "allow" }] }]);
    let mut peers: Vec<Value> = (0..size).map(peer).collect();
    control_plane.set_state(&id, &json!({ "policies": everything, "peers": peers }));
    wait_until(DEADLINE, "the peers", || node.status()["mesh"]["peers_configured"] == json!(size));
    // From what is on disk, with nothing in the kernel.
    node.take_core().terminate();
    node.host().run(&["nft", "delete", "table", "inet", "plexd"]).expect_success();
    let _ = node.host().run(&["ip", "link", "delete", "plexd0"]);
    let before = node.host().directory().join("plexd-core.log");
    let old = fs::read_to_string(&before).map_or(0, |log| log.len());
    node.start_core();
    let log = |node: &mut Node| node.core().log().get(old..).unwrap_or_default().to_owned();
    wait_until(DEADLINE, "two reconciliations with nothing to do", || {
        reconciliations(&log(&mut node), 0).len() > 3
    });
    let first = wait_until(DEADLINE, "the first reconciliation", || took(&log(&mut node)).first().copied());
    let noop = median(reconciliations(&log(&mut node), 0));
    let status = node.status();
    assert_eq!(status["mesh"]["peers_configured"], json!(size), "{status}");
    let delta = one_more(&mut node, &control_plane, &id, &mut peers);
    #[expect(clippy::cast_precision_loss, reason = "a process has less memory")]
    let pss = node.core().pss() as f64 / 1024.0;
    let backend = status["mesh"]["backend"].as_str().unwrap_or_default().to_owned();
    node.take_core().terminate();
    Figures { apply: first.1, noop, delta, pss, backend }
}

/// Adds peers one by one, and returns the median of the times from the packet with the event to the peer's route.
fn one_more(node: &mut Node, control_plane: &ControlPlane, id: &str, peers: &mut Vec<Value>) -> f64 {
    let host = node.host().clone();
    let routes = host.spawn("routes", &["ip", "-o", "-ts", "monitor", "route"]);
    let packets = host.spawn(
        "packets",
        &["tcpdump", "-i", "eth0", "-l", "-n", "-tt", "--immediate-mode", "src port 8443 and greater 200"],
    );
    wait_until(DEADLINE, "tcpdump", || packets.log().contains("listening"));
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let number = peers.len();
        peers.push(peer(number));
        control_plane.send_event(id, "peer_added", &peer(number));
        let address = format!("{} dev plexd0", address(number));
        let added = wait_until(DEADLINE, "the route", || {
            let log = routes.log();
            log.lines().find(|line| line.contains(&address)).map(seconds_of_day)
        });
        wait_until(DEADLINE, "the packet", || arrival(&packets, added).is_some());
        times.extend(arrival(&packets, added).map(|arrived| (added - arrived) * 1e3));
        // What follows a change is not to be in the way of the next one.
        thread::sleep(Duration::from_millis(400));
    }
    median(times)
}

/// When the last packet before `added` came, in seconds of the day.
fn arrival(packets: &Daemon, added: f64) -> Option<f64> {
    let log = packets.log();
    let times = log.lines().filter_map(|line| line.split(' ').next()?.parse::<f64>().ok());
    times.map(|time| time % 86_400.0).rfind(|time| *time < added)
}

/// The time of a line of `ip -ts monitor`: `[2026-01-31T12:34:56.123456] ...`.
fn seconds_of_day(line: &str) -> f64 {
    let time = line.split(['T', ']']).nth(1).unwrap_or_default();
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap_or(f64::NAN))
}

/// Steps and milliseconds of each reconciliation in the log.
fn took(log: &str) -> Vec<(usize, f64)> {
    let field = |line: &str, name: &str| -> Option<f64> {
        line.split(name).nth(1)?.split([' ', '"']).next()?.parse().ok()
    };
    let reconciled = log.lines().filter(|line| line.contains("reconciled"));
    reconciled
        .filter_map(|line| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
            let steps = field(line, "steps=")? as usize;
            Some((steps, field(line, "took_us=")? / 1e3))
        })
        .collect()
}

fn reconciliations(log: &str, steps: usize) -> Vec<f64> {
    took(log).into_iter().filter(|(taken, _)| *taken == steps).map(|(_, took)| took).collect()
}

/// Address of a peer in the mesh; 10.100.0.0/16 is where the control plane puts nodes.
fn address(number: usize) -> String {
    format!("10.101.{}.{}", number / 250, number % 250 + 1)
}

/// A peer that nobody is behind: its endpoint is an address that nobody has.
fn peer(number: usize) -> Value {
    json!({
        "id": format!("n_bench_{number}"),
        "public_key": key(number),
        "mesh_ip": address(number),
        "endpoint": format!("192.0.2.200:{}", 20_000 + number % 40_000),
        "allowed_ips": [format!("{}/32", address(number))],
        "psk": key(number + 1_000_000),
    })
}

/// 32 bytes in base64, different for each number: no key of anybody.
fn key(number: usize) -> String {
    format!("{number:A>9}{}A=", "plexdBenchNobodysKey0123456789AAB")
}
