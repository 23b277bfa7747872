//! Two nodes; to the second 10,000 datagrams a second are sent through the mesh that its policy forbids. How many arrive while
//! its policy is changed 1,000 times and while plexd-core is restarted, killed and replaced by a copy of it; and how long it
//! takes for the table to be back after `nft flush ruleset`, from the moment that has returned, as `nft` lists it.

use std::env;
use std::time::{Duration, Instant};

use plexd_e2e::{Barrage, ControlPlane, Daemon, Lab, Node, median, table_id, wait_until};
use serde_json::{Value, json};

/// Changes of the policy.
const CHANGES: usize = 1_000;

/// Restarts of each way.
const RESTARTS: usize = 3;

/// Flushes, for the median.
const FLUSHES: usize = 15;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_mins(1);

/// Where nothing may arrive.
const FORBIDDEN: u16 = 9_999;

/// Rules of each policy.
const RULES: usize = 100;

/// Prints the figures. The first argument is another number of changes.
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
pub(crate) fn measure() {
    let changes = env::args().nth(1).map_or(CHANGES, |number| number.parse().expect("a number of changes"));
    let mut mesh = Mesh::new();
    let barrage = Barrage::over_mesh(mesh.nodes[0].host(), (mesh.nodes[1].host(), &mesh.address), FORBIDDEN);
    let begun = Instant::now();
    for change in 0..changes {
        mesh.change(change);
    }
    let took = begun.elapsed();
    let (sent, by_changes) = (barrage.sent(), barrage.arrivals().len());
    println!("policy: {by_changes} of {sent} datagrams arrived during {changes} changes in {took:.1?}");
    let restarts = mesh.restart();
    let (sent, leaked) = barrage.stop();
    println!("policy: {} of {sent} datagrams arrived in all, {restarts} restarts among it", leaked.len());
    println!("bench policy.leaked_packets {} packets", leaked.len());

    let repairs: Vec<f64> = (0..FLUSHES).map(|_| mesh.flush().as_secs_f64() * 1e3).collect();
    let slowest = repairs.iter().copied().fold(0.0, f64::max);
    println!("policy: back after a flush in {slowest:.0} ms at most");
    println!("bench policy.flush_repair_ms {:.0} ms", median(repairs));
}

/// The nodes: what the first sends is judged by the second. Fields are dropped in this order: the lab last.
struct Mesh {
    nodes: [Node; 2],
    ids: [String; 2],
    /// Of the second node, in the mesh.
    address: String,
    /// What the forbidden datagrams are told from: it goes on being allowed.
    _server: Daemon,
    control_plane: ControlPlane,
    _lab: Lab,
}

impl Mesh {
    fn new() -> Self {
        let lab = Lab::new(&["cp", "a", "b"]);
        let control_plane = ControlPlane::start(lab.host("cp"));
        let mut nodes = ["a", "b"].map(|name| Node::new(lab.host(name), &control_plane, ""));
        let ids = nodes.each_mut().map(|node| {
            node.write_token(&control_plane.token());
            node.start_core();
            node.wait_enrolled()
        });
        let everything = json!([{ "id": "all", "rules": [{ "src": "*", "dst": "*", "action": "allow" }] }]);
        control_plane.set_state(&ids[0], &json!({ "policies": everything }));
        let address = nodes[1].status()["identity"]["mesh_ip"].as_str().expect("an address").to_owned();
        let server = lab.host("b").serve(8080, "here");
        let mesh = Self { nodes, ids, address, _server: server, control_plane, _lab: lab };
        mesh.change(CHANGES);
        mesh.wait_answer();
        mesh
    }

    /// Gives the second node a policy by an event, and waits until it is in the kernel.
    fn change(&self, number: usize) {
        let host = self.nodes[1].host();
        let before = table_id(host);
        self.control_plane.set_state(&self.ids[1], &json!({ "policies": policies(number) }));
        wait_until(DEADLINE, "another table", || table_id(host).is_some_and(|now| Some(now) != before));
    }

    /// Replaces the second node's plexd-core in each way, under way until packets come through again; returns how often.
    fn restart(&mut self) -> usize {
        let host = self.nodes[1].host().clone();
        let program = host.program("plexd-core");
        let copy = host.directory().join("plexd-core-copy").display().to_string();
        host.run(&["cp", &program, &copy]).expect_success();
        for _ in 0..RESTARTS {
            for (is_killed, next) in [(false, &program), (true, &program), (false, &copy)] {
                let core = self.nodes[1].take_core();
                if is_killed {
                    core.kill9();
                } else {
                    core.terminate();
                }
                self.nodes[1].start_core_from(next);
                self.wait_answer();
            }
        }
        3 * RESTARTS
    }

    /// Waits until the first node gets an answer through the mesh from where policy allows it.
    fn wait_answer(&self) {
        let url = format!("http://{}:8080/", self.address);
        wait_until(DEADLINE, "an answer over the mesh", || {
            let output = self.nodes[0].host().run(&["curl", "-sS", "--max-time", "1", &url]);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
    }

    /// Flushes the second node's ruleset; returns how long it took from there until its table was back, as it was.
    fn flush(&self) -> Duration {
        let host = self.nodes[1].host();
        let table = || host.run(&["nft", "--stateless", "list", "table", "inet", "plexd"]).stdout;
        let before = table();
        host.run(&["nft", "flush", "ruleset"]).expect_success();
        let flushed = Instant::now();
        while table() != before {
            assert!(flushed.elapsed() < DEADLINE, "the table is not back");
        }
        flushed.elapsed()
    }
}

/// Returns policies that differ by their number, and of which each allows TCP port 8080 and no UDP.
fn policies(number: usize) -> Value {
    let rule = |n: usize| {
        let source = format!("10.{}.{}.{n}", 128 + number / 250 % 100, number % 250);
        json!({ "src": source, "dst": "*", "port": 1 + n, "protocol": "tcp", "action": "allow" })
    };
    let mut rules: Vec<Value> = (0..RULES).map(rule).collect();
    rules.push(json!({ "src": "*", "dst": "*", "port": 8080, "protocol": "tcp", "action": "allow" }));
    json!([{ "id": "bench", "rules": rules }])
}
