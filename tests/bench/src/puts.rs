//! Writes of reports: durable when they are answered. How many syncs that takes is counted in a run of its own, in which
//! `strace` stops plexd-core at these calls and at no others.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::answer::Request;
use crate::door::Door;
use crate::findings::{Findings, Target, say};
use crate::go;
use crate::load::{Load, Waits};
use crate::scene::{ROUNDS, Scene, figure, payload};

/// How many times as fast as Go it is to be with 64 connections.
const TIMES: f64 = 10.0;

/// Most syncs for each write.
const SYNCS: f64 = 0.1;

/// Reports that are written; each of 64 connections has one to itself.
const REPORTS: usize = 64;

/// How long syncs are counted.
const COUNTED: std::time::Duration = std::time::Duration::from_secs(3);

/// Every call that makes something durable.
const SYNC_CALLS: &str = "fsync,fdatasync,sync,syncfs,sync_file_range,msync";

/// Measures writes with 1 and with 64 connections, then their syncs.
pub(crate) fn measure(scene: &mut Scene, findings: &mut Findings) {
    let door = Door::Unix(scene.socket());
    let pids = scene.pids();
    for connections in [1, 64] {
        let round = |_| scene.round(&door, &requests(), (connections, Waits::Asleep), &pids);
        let ours = figure(&(0..ROUNDS).map(round).collect::<Vec<_>>());
        let (size, go) = (scene.size, go::PUT.rate(scene.size, connections));
        say(&format!(
            "  put      {size:>5} entries {connections:>2} connections {:>8.0} req/s p50 {:>7.0} p99 {:>7.0} µs, CPU {:.1} + {:.1} µs; {:.2} of Go's {:.0}",
            ours.rate,
            ours.p50,
            ours.p99,
            ours.cpu[0],
            ours.cpu[1],
            go.map_or(f64::NAN, |go| ours.rate / go),
            go.unwrap_or(f64::NAN),
        ));
        if connections == 64 {
            findings.line("api.put.unix.c64.rps", ours.rate);
            if let Some(go) = go {
                let about = format!("put, {size} entries, 64 connections, over Go");
                findings.judge(&about, ours.rate / go, Target::AtLeast(TIMES));
            }
        }
    }
    count_syncs(scene, &door, findings);
}

fn count_syncs(scene: &mut Scene, door: &Door, findings: &mut Findings) {
    let host = scene.host();
    let (script, trace) = (host.directory().join("traced-core"), host.directory().join("syncs"));
    // As a grandchild (-D), strace leaves the process its id, and its end.
    let text = format!(
        "#!/bin/sh\nexec strace -D -f --seccomp-bpf -qq -e trace={SYNC_CALLS} -e signal=none -o '{}' '{}' \"$@\"\n",
        trace.display(),
        host.program("plexd-core")
    );
    let written = fs::write(&script, text)
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)));
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", script.display()));
    scene.node.take_core().terminate();
    scene.node.start_core_from(&script.display().to_string());
    scene.node.take_api().terminate();
    scene.node.start_api();
    scene.wait_complete();
    for connections in [1, 64] {
        let load = Load { door, requests: &requests(), connections, waits: Waits::Asleep };
        let (outcome, before, after) = load.run(COUNTED, || calls(&trace));
        let (size, each) = (scene.size, (after - before) / outcome.answers);
        say(&format!(
            "  syncs    {size:>5} entries {connections:>2} connections {each:.3} for each put ({:.0} syncs, {:.0} puts, {:.0} req/s under strace)",
            after - before,
            outcome.answers,
            outcome.rate,
        ));
        if connections == 64 {
            findings.line("api.put.unix.c64.syncs_per_put", each);
            findings.judge(
                &format!("syncs for each put, {size} entries, 64 connections"),
                each,
                Target::AtMost(SYNCS),
            );
        }
    }
    scene.stop();
    scene.node.start();
}

/// The calls so far; one that another thread's line cut in two is counted where it began.
fn calls(trace: &Path) -> f64 {
    let text =
        fs::read_to_string(trace).unwrap_or_else(|error| panic!("cannot read {}: {error}", trace.display()));
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let calls = text.lines().filter(|line| line.contains('(') && !line.contains(" resumed>")).count() as f64;
    calls
}

fn requests() -> Vec<Request> {
    let report = |number| {
        let body = json!({ "content_type": "application/json", "payload": payload(number) });
        Request::put(&format!("/v1/state/report/bench-{number:02}"), &body.to_string())
    };
    (0..REPORTS).map(report).collect()
}
