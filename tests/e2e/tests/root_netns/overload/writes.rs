//! Tens of thousands of writes while the control plane is away: what waits for it is the newest of each key, on disk.

use std::thread;
use std::time::Duration;

use plexd_e2e::{Node, wait_until};
use serde_json::json;

use super::memory::{Before, MIB, SLACK};
use crate::support::Single;

/// Writers at once.
const WRITERS: usize = 16;

/// Payload of a report, in bytes.
const PAYLOAD: usize = 1024;

/// Writes of all that may wait in plexd-core, with those of the commit under way ("One way through" in
/// docs/architecture.md), in KiB.
const WAITING: u64 = (16 + 8) * MIB;

/// What the two databases keep in memory of what is on disk, in KiB.
const CACHES: u64 = 2 * 4 * MIB;

/// How long the outbox may take after its last attempt failed.
const DELIVERY: Duration = Duration::from_secs(90);

/// Writes `rounds` times to each of `keys` keys, from [`WRITERS`] connections at once.
fn write(node: &Node, keys: usize, rounds: usize) {
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut wire = node.connect_unix().expect("plexd-api listens");
            scope.spawn(move || {
                for round in 1..=rounds {
                    for key in (0..keys).filter(|key| key % WRITERS == writer) {
                        let mut fill = format!("{key}/{round}/");
                        fill.extend(std::iter::repeat_n('x', PAYLOAD - fill.len()));
                        let body = format!(r#"{{"content_type":"text/plain","payload":"{fill}"}}"#);
                        let path = format!("/v1/state/report/key-{key:05}");
                        let answer =
                            wire.ask("PUT", &path, &[], Some(&body)).expect("an answer").with_status(200);
                        let version = format!(r#""version":{round},"#);
                        assert!(answer.body.contains(&version), "{answer}");
                    }
                }
            });
        }
    });
}

#[track_caller]
fn are_kept_in_bounded_memory(keys: usize, rounds: usize) {
    let mut single = Single::new("node_api:\n  report_debounce: 200ms\n");
    // Something is pending from the first moment on.
    single.control_plane.stop();
    let core = Before::of("plexd-core", single.a.node.core());
    let api = Before::of("plexd-api", single.a.node.api());
    write(&single.a.node, keys, rounds);
    let reports = single.a.node.status()["reports"].clone();
    assert_eq!((&reports["entries"], &reports["pending"]), (&json!(keys), &json!(keys)), "{reports}");
    // The sidecar shows every report, in two forms; core has them on disk.
    let shown = (keys * 2 * (PAYLOAD + 512) / 1024) as u64;
    core.has_grown_by_at_most(WAITING + CACHES + SLACK, single.a.node.core());
    api.has_grown_by_at_most(shown + SLACK, single.a.node.api());
    single.control_plane.start_again();
    wait_until(DELIVERY, "an empty outbox", || {
        let reports = single.a.node.status()["reports"].clone();
        if reports["pending"] == 0 { Ok(()) } else { Err(reports.to_string()) }
    });
    single.wait_synced(|received| {
        let received = received.as_object().expect("an object");
        received.len() == keys
            && received.iter().all(|(key, entry)| {
                let number: usize = key["key-".len()..].parse().expect("a number");
                let payload = entry["payload"].as_str().unwrap_or_default();
                entry["version"] == json!(rounds) && payload.starts_with(&format!("{number}/{rounds}/"))
            })
    });
}

#[test]
fn ten_thousand_writes_without_the_control_plane_are_kept_in_bounded_memory_and_delivered() {
    are_kept_in_bounded_memory(1_000, 10);
}

#[test]
#[ignore = "minutes on a slow disk: `make test-long`"]
fn long_fifty_thousand_writes_without_the_control_plane_are_kept_in_bounded_memory_and_delivered() {
    are_kept_in_bounded_memory(10_000, 5);
}
