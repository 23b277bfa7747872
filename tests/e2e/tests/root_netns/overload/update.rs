//! A change of 10,000 entries amid reads: every answer is right, of the state before or of the one after.

use std::time::Duration;

use plexd_e2e::{Wire, wait_until};
use serde_json::{Value, json};

use crate::background::{Background, Over};
use crate::bystander::{Bystander, TCP};
use crate::support::Single;

const ENTRIES: usize = 10_000;

/// How long a change of all of them may take to show on a busy machine: what is under test is what shows meanwhile.
const IN_THE_END: Duration = Duration::from_mins(1);

/// Readers of lists at once.
const READERS: usize = 2;

/// Returns all entries of one version of the state.
fn entries(version: usize) -> Vec<Value> {
    (0..ENTRIES)
        .map(|number| {
            json!({ "key": format!("e-{number:05}"), "content_type": "text/plain", "payload": version, "version": version,
                    "updated_at": "2025-06-01T12:34:56Z" })
        })
        .collect()
}

/// Returns which version of the state a list of entries is of; panics if it is of several, or not whole.
#[track_caller]
fn version_of(list: &Value) -> u64 {
    let list = list.as_array().expect("a list");
    assert_eq!(list.len(), ENTRIES);
    let version = list[0]["version"].as_u64().expect("a version");
    for (index, entry) in list.iter().enumerate() {
        let expected = (Some(version), format!("e-{index:05}"));
        let found = (entry["version"].as_u64(), entry["key"].as_str().unwrap_or_default().to_owned());
        assert_eq!(found, expected, "a torn view, at {index}");
    }
    version
}

/// Reads until it is over, and returns how many different states were seen.
fn read(mut wire: Wire, over: &Over) -> usize {
    let (mut newest, mut seen) = (0, 0);
    while !over.now() {
        for path in ["/v1/state", "/v1/state/data"] {
            let answer = wire.ask("GET", path, &[], None).expect("an answer").with_status(200).json();
            let list = if path == "/v1/state" { &answer["data_keys"] } else { &answer };
            let version = version_of(list);
            assert!(version >= newest, "{version} after {newest}");
            seen += usize::from(version > newest);
            newest = version;
            // Entries are of that state, or of one that came meanwhile.
            let path = format!("/v1/state/data/e-{:05}", version * 17 % ENTRIES as u64);
            let entry = wire.ask("GET", &path, &[], None).expect("an answer").with_status(200).json();
            assert!(
                entry["version"].as_u64() >= Some(version) && entry["version"] == entry["payload"],
                "{entry}"
            );
        }
    }
    seen
}

#[test]
fn a_change_of_ten_thousand_entries_shows_whole_or_not_at_all_and_keeps_no_read_waiting() {
    let single = Single::new(TCP).with_the_guides_state();
    single.control_plane.set_state(&single.a.id, &json!({ "data": entries(1) }));
    let node = &single.a.node;
    let wait_version = |version: usize| {
        wait_until(IN_THE_END, "the new state", || {
            let answer = node.curl_unix("/v1/state/data/e-00000", &[]);
            let is_new = answer.status == 200 && answer.json()["version"] == json!(version);
            if is_new { Ok(()) } else { Err(answer) }
        });
    };
    wait_version(1);
    // What else there was goes with the pull after the event.
    wait_until(IN_THE_END, "the pull", || node.curl_unix("/v1/state/data/nginx.conf", &[]).status == 404);
    let bystander = Bystander::reading(node);
    let readers = [(); READERS].map(|()| {
        let wire = node.connect_unix().expect("plexd-api listens");
        Background::start(move |over| read(wire, over))
    });
    for version in 2..=4 {
        single.control_plane.set_state(&single.a.id, &json!({ "data": entries(version) }));
        wait_version(version);
    }
    for reader in readers {
        let seen = reader.finish();
        assert!(seen > 1, "{seen} states were seen");
    }
    bystander.finish();
}
