//! Reads, in turn with the bare handler that gives out the same bytes.

use std::path::Path;

use plexd_e2e::{Daemon, wait_until};
use serde_json::{Map, Value};

use crate::answer::Request;
use crate::bare;
use crate::door::Door;
use crate::exchange::{Answer, fetch};
use crate::findings::{Findings, Target, say};
use crate::go::{self, Go};
use crate::load::Waits;
use crate::scene::{DEADLINE, Figure, ROUNDS, Scene, entry_path, figure};

/// The part of the bare handler's rate that is to be reached.
const OVER_BARE: f64 = 0.9;

/// What is read.
struct What {
    name: &'static str,
    requests: Vec<Request>,
    go: Go,
    /// How many times as fast as Go with 64 connections, if that is a target.
    times: Option<f64>,
}

/// Measures single entries and the summary, with 1 and with 64 connections.
pub(crate) fn measure(scene: &mut Scene, findings: &mut Findings) {
    let bare_socket = scene.host().directory().join("bare.sock");
    let bare = start_bare(scene, &bare_socket);
    let summary = fetched(&scene.socket(), "/v1/state").body.len();
    let length = fetched(&scene.socket(), &entry_path(0)).body.len();
    let entries = (0..scene.size).map(|number| Request::get(&entry_path(number), Some(length))).collect();
    let many = scene.size >= 10_000;
    let table = [
        What { name: "entry", requests: entries, go: go::ENTRY, times: Some(2.3) },
        What {
            name: "summary",
            requests: vec![Request::get("/v1/state", Some(summary))],
            go: go::SUMMARY,
            times: many.then_some(15.0),
        },
    ];
    for what in table {
        for connections in [1, 64] {
            let [ours, bare] = compare(scene, &what.requests, connections, (&bare_socket, bare.pid()));
            report((scene.size, connections), &what, [&ours, &bare], findings);
        }
    }
}

/// Puts the load on both, in turn; whoever is first has it no easier for it.
fn compare(
    scene: &mut Scene,
    requests: &[Request],
    connections: usize,
    (bare, pid): (&Path, u32),
) -> [Figure; 2] {
    let doors = [Door::Unix(scene.socket()), Door::Unix(bare.to_owned())];
    let pids = [scene.pids().to_vec(), vec![pid]];
    // Of one connection the two ends take turns, and are best off on one processor.
    let waits = if connections == 1 { Waits::Asleep } else { Waits::Awake };
    let mut rounds = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            rounds[which].push(scene.round(&doors[which], requests, (connections, waits), &pids[which]));
        }
    }
    rounds.map(|rounds| figure(&rounds))
}

fn report((size, connections): (usize, usize), what: &What, both: [&Figure; 2], findings: &mut Findings) {
    let [ours, bare] = both;
    let name = what.name;
    let over_bare = ours.rate / bare.rate;
    let go = what.go.rate(size, connections);
    say(&format!(
        "  {name:<8} {size:>5} entries {connections:>2} connections {:>8.0} req/s p50 {:>7.0} p99 {:>7.0} µs, CPU {:.1} + {:.1} µs; \
         bare {:>8.0} req/s p50 {:>7.0} p99 {:>7.0} µs, CPU {:.1} µs; {over_bare:.3} of bare, {:.2} of Go's {:.0}",
        ours.rate,
        ours.p50,
        ours.p99,
        ours.cpu[0],
        ours.cpu[1],
        bare.rate,
        bare.p50,
        bare.p99,
        bare.cpu[0],
        go.map_or(f64::NAN, |go| ours.rate / go),
        go.unwrap_or(f64::NAN),
    ));
    let about = format!("{name}, {size} entries, {connections} connections");
    findings.judge(&format!("{about}, over bare"), over_bare, Target::AtLeast(OVER_BARE));
    if let (64, Some(times), Some(go)) = (connections, what.times, go) {
        findings.judge(&format!("{about}, over Go"), ours.rate / go, Target::AtLeast(times));
    }
    match (name, connections) {
        ("entry", 1) => findings.line("api.read.unix.c1.rps", ours.rate),
        ("entry", 64) => {
            findings.line("api.read.unix.c64.rps", ours.rate);
            findings.line("api.read.unix.c64.over_bare", over_bare);
        }
        ("summary", 64) if size == 10_000 => {
            findings.line("api.summary_10000.unix.c64.rps", ours.rate);
            findings.line("api.summary_10000.unix.c64.over_bare", over_bare);
        }
        _ => {}
    }
}

/// Starts the bare handler with what the API answers, and makes sure that both answer the same.
fn start_bare(scene: &Scene, socket: &Path) -> Daemon {
    let mut answers = Map::new();
    let paths: Vec<String> = (0..scene.size).map(entry_path).chain(["/v1/state".to_owned()]).collect();
    for path in &paths {
        let answer = fetched(&scene.socket(), path);
        let etag = answer.header("etag").unwrap_or_else(|| panic!("no ETag: {}", answer.head));
        bare::remember(&mut answers, path, etag, &answer.body);
    }
    let host = scene.host();
    let file = host.directory().join("bare.json");
    let written = std::fs::write(&file, Value::Object(answers).to_string());
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    let program = host.program("plexd-bench-api");
    let line = [&program, bare::WORD, &socket.display().to_string(), &file.display().to_string()];
    let handler = host.spawn("bare", &line);
    wait_until(DEADLINE, "the bare handler", || fetch(socket, "/v1/state"));
    for path in paths.iter().rev().take(10) {
        let [ours, bare] = [fetched(&scene.socket(), path), fetched(socket, path)];
        assert_eq!((ours.lasting_head(), &ours.body), (bare.lasting_head(), &bare.body), "{path}");
    }
    handler
}

fn fetched(socket: &Path, path: &str) -> Answer {
    let answer =
        fetch(socket, path).unwrap_or_else(|error| panic!("{path} of {}: {error}", socket.display()));
    assert!(answer.is_success(), "{path} of {}: {}", socket.display(), answer.head);
    answer
}
