//! A node with so many entries, its control plane, and the loads on them. What the node stores is on a disk: where labs
//! are may be memory, on which a sync costs nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexd_e2e::{ControlPlane, Host, Lab, Node, median, wait_until};
use serde_json::{Value, json};

use crate::answer::Request;
use crate::door::Door;
use crate::exchange::fetch;
use crate::load::{Load, Outcome, Waits};
use crate::processes::cpu;

/// Where the nodes' data directories are made.
const DISK: &str = "/var/tmp/plexd-bench";

/// The configuration of a node.
pub(crate) const CONFIG: &str = "/etc/plexd/config.yaml";

/// The socket of the Local Node API, within the host.
pub(crate) const SOCKET: &str = "/run/plexd/api.sock";

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// How long a load is on.
const TIME: Duration = Duration::from_millis(1500);

/// Each load is put on so often, in turn with what it is compared with.
pub(crate) const ROUNDS: usize = 5;

/// Length of an entry's payload, in bytes.
const PAYLOAD: usize = 1024;

/// The lab, with everything running.
#[derive(Debug)]
pub(crate) struct Scene {
    /// The node, both of whose processes run.
    pub(crate) node: Node,
    /// Its control plane.
    pub(crate) control_plane: ControlPlane,
    /// The node's id.
    pub(crate) id: String,
    /// How many entries there are.
    pub(crate) size: usize,
    /// The node's data directory.
    pub(crate) data: PathBuf,
    _lab: Lab,
}

/// What a load found, medians of all rounds: times in µs, of each process for one answer.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) cpu: Vec<f64>,
}

impl Scene {
    /// Makes a lab with a node that is enrolled and has `size` entries, all of them on disk.
    pub(crate) fn new(size: usize) -> Self {
        let lab = Lab::new(&["cp", "a"]);
        sweep();
        let data = Path::new(DISK).join(lab.name());
        fs::create_dir_all(&data).unwrap_or_else(|error| panic!("cannot make {}: {error}", data.display()));
        let control_plane = ControlPlane::start(lab.host("cp"));
        let more = format!("data_dir: {}\n", data.display());
        let mut node = Node::new(lab.host("a"), &control_plane, &more);
        let id = node.enrol(&control_plane);
        let everything = json!([{ "id": "all", "rules": [{ "src": "*", "dst": "*", "action": "allow" }] }]);
        let entries: Vec<Value> = (0..size).map(entry).collect();
        control_plane.set_state(&id, &json!({ "policies": everything, "data": entries }));
        let scene = Self { node, control_plane, id, size, data, _lab: lab };
        scene.wait_complete();
        scene
    }

    /// Waits until every entry can be read.
    pub(crate) fn wait_complete(&self) {
        let last = entry_path(self.size - 1);
        wait_until(DEADLINE, "all entries", || match fetch(&self.socket(), &last) {
            Ok(answer) if answer.is_success() => Ok(()),
            Ok(answer) => Err(answer.head),
            Err(error) => Err(error.to_string()),
        });
    }

    /// Stops both processes, in order, and starts them again from what is on disk.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.node.start();
        self.wait_complete();
    }

    /// Stops both processes, in order.
    pub(crate) fn stop(&mut self) {
        self.node.take_api().terminate();
        self.node.take_core().terminate();
    }

    /// Ends everything and removes what was stored.
    pub(crate) fn end(self) {
        let data = self.data.clone();
        drop(self);
        // What is left is swept by the next run.
        let _ = fs::remove_dir_all(data);
    }

    /// The node's host.
    pub(crate) fn host(&self) -> Host {
        self.node.host().clone()
    }

    /// The API's socket, as seen from outside the host.
    pub(crate) fn socket(&self) -> PathBuf {
        self.node.host().path(SOCKET)
    }

    /// The process ids of plexd-api and plexd-core.
    pub(crate) fn pids(&mut self) -> [u32; 2] {
        [self.node.api().pid(), self.node.core().pid()]
    }

    /// One round of a load from within the node's host, with the processor time of `pids` for each answer.
    pub(crate) fn round(
        &self,
        door: &Door,
        requests: &[Request],
        (connections, waits): (usize, Waits),
        pids: &[u32],
    ) -> (Outcome, Vec<f64>) {
        let load = Load { door, requests, connections, waits };
        let meter = || pids.iter().map(|pid| cpu(*pid)).collect::<Vec<f64>>();
        let (outcome, before, after) = self.node.host().within(|| load.run(TIME, meter));
        let each = before.iter().zip(after).map(|(before, after)| (after - before) / outcome.answers);
        (outcome, each.collect())
    }
}

/// The medians of rounds.
pub(crate) fn figure(rounds: &[(Outcome, Vec<f64>)]) -> Figure {
    let of = |value: fn(&Outcome) -> f64| median(rounds.iter().map(|(outcome, _)| value(outcome)).collect());
    let processes = rounds.first().map_or(0, |(_, cpu)| cpu.len());
    let cpu = (0..processes).map(|process| median(rounds.iter().map(|(_, cpu)| cpu[process]).collect()));
    Figure { rate: of(|it| it.rate), p50: of(|it| it.p50), p99: of(|it| it.p99), cpu: cpu.collect() }
}

/// The path of an entry.
pub(crate) fn entry_path(number: usize) -> String {
    format!("/v1/state/data/{}", key(number))
}

/// Keys are of one length, and so are the entries.
fn key(number: usize) -> String {
    format!("entry-{number:05}")
}

fn entry(number: usize) -> Value {
    json!({
        "key": key(number),
        "content_type": "application/json",
        "payload": payload(number),
        "version": 1,
        "updated_at": "2026-01-01T00:00:00Z",
    })
}

/// JSON of 1 KiB.
pub(crate) fn payload(number: usize) -> Value {
    let around = json!({ "n": "00000", "text": "" }).to_string().len();
    json!({ "n": format!("{number:05}"), "text": "x".repeat(PAYLOAD - around) })
}

/// Removes what runs left that were killed: the labs of those are gone, as every new lab sees to.
fn sweep() {
    for entry in fs::read_dir(DISK).into_iter().flatten().flatten() {
        let lab = Path::new("/run/netns").join(entry.file_name());
        if !lab.exists() {
            // Another run may be removing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_has_a_kibibyte() {
        assert!([0, 7, 9_999].into_iter().all(|number| payload(number).to_string().len() == PAYLOAD));
    }
}
