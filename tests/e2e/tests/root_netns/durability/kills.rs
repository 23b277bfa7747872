//! Reports written by many at once while plexd-core, plexd-api or both are killed at any moment.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use plexd_e2e::{Wire, wait_until};
use serde_json::Value;

use super::up_to_date;
use crate::dice::Dice;
use crate::support::{SOON, Single};

/// Rounds of `make test`, and of `make test-long`.
const ROUNDS: (u32, u32) = (20, 200);

/// Writers at once. Each has a key of its own; all of them write to another one, too.
const WRITERS: u64 = 12;

/// The key that all write to.
const SHARED: &str = "shared";

/// How long after the start of a round something is killed, at most.
const LATEST_KILL: u64 = 800;

/// Makes a request about the report `key`; returns status and body.
fn request(
    connection: &mut Wire,
    method: &str,
    key: &str,
    if_match: Option<i64>,
    body: Option<&str>,
) -> io::Result<(u16, String)> {
    let condition = if_match.map(|version| format!("If-Match: {version}"));
    let headers: Vec<&str> = condition.iter().map(String::as_str).collect();
    let answer = connection.ask(method, &format!("/v1/state/report/{key}"), &headers, body)?;
    Ok((answer.status, answer.body))
}

/// What is under a key: version and payload, byte for byte.
type Content = Option<(i64, String)>;

/// Takes an entry apart.
fn content(body: &str) -> (i64, String) {
    let entry: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    let payload = body.split_once(r#""payload":"#).and_then(|(_, rest)| rest.split_once(r#","version""#));
    let payload = payload.unwrap_or_else(|| panic!("no payload: {body}")).0;
    (entry["version"].as_i64().expect("an entry has a version"), payload.to_owned())
}

/// What all writers were told, of all rounds.
#[derive(Debug, Default)]
struct Told {
    /// Payloads by key and version. `None`: the version that a deletion removed.
    acknowledged: BTreeMap<(String, i64), Option<String>>,
    /// What may or may not have happened to a key in this round. `None`: a deletion.
    unsure: Vec<(String, Option<String>)>,
    refused: u64,
}

impl Told {
    #[track_caller]
    fn written(&mut self, key: &str, version: i64, payload: &str) {
        let before = self.acknowledged.insert((key.to_owned(), version), Some(payload.to_owned()));
        if key == SHARED && before == Some(None) {
            // Read and deleted by another before this answer was heard.
            self.acknowledged.insert((key.to_owned(), version), None);
            return;
        }
        assert!(before.is_none(), "version {version} of {key} was given twice: {before:?} and {payload}");
        let newer = self.acknowledged.range((key.to_owned(), version + 1)..(key.to_owned(), i64::MAX)).next();
        // Answers to others may be heard first.
        assert!(key == SHARED || newer.is_none(), "{version} of {key} came after {newer:?}");
    }

    /// The newest that was acknowledged of a key: its version, and its payload unless it was deleted.
    fn newest(&self, key: &str) -> Option<(i64, Option<&str>)> {
        let all = self.acknowledged.range((key.to_owned(), 0)..(key.to_owned(), i64::MAX));
        all.last().map(|((_, version), payload)| (*version, payload.as_deref()))
    }

    /// Holds what is there after a round against what was told.
    #[track_caller]
    fn check(&self, key: &str, there: &Content) {
        let newest = self.newest(key);
        let unsure: Vec<_> = self.unsure.iter().filter(|(other, _)| other == key).collect();
        let known = match newest {
            Some((version, Some(payload))) => Some((version, payload.to_owned())),
            _ => None,
        };
        if *there == known {
            return;
        }
        let told = format!("{key}: {there:?}, but {newest:?} was acknowledged, and {unsure:?} may be");
        match there {
            None => assert!(unsure.iter().any(|(_, payload)| payload.is_none()), "lost: {told}"),
            Some((version, payload)) => {
                let last = newest.map_or(0, |(version, _)| version);
                assert!(*version > last, "gone back: {told}");
                let is_whole = unsure.iter().any(|(_, unsure)| unsure.as_ref() == Some(payload));
                assert!(is_whole, "half there: {told}");
            }
        }
    }
}

/// Writes until something fails: each time on top of what it knows is there.
fn write_on(
    socket: &Path,
    name: u64,
    mut dice: Dice,
    mut known: BTreeMap<String, Content>,
    told: &Mutex<Told>,
) {
    let Ok(mut connection) = Wire::unix(socket) else { return };
    let own = format!("w{name}");
    for step in 0_u64.. {
        let key = if dice.below(4) == 0 { SHARED } else { own.as_str() };
        let current = known.get(key).cloned().flatten();
        let expected = current.as_ref().map_or(0, |(version, _)| *version);
        if current.is_some() && dice.below(16) == 0 {
            let answer = request(&mut connection, "DELETE", key, Some(expected), None);
            let mut told = told.lock().unwrap();
            match answer {
                Ok((204, _)) => {
                    // Nobody else deletes, or is told of, this version.
                    told.acknowledged.insert((key.to_owned(), expected), None);
                    known.insert(key.to_owned(), None);
                }
                Ok((409, _)) => {}
                _ => return told.unsure.push((key.to_owned(), None)),
            }
        } else {
            let fill = "x".repeat(usize::try_from(dice.below(3_000)).unwrap_or(0));
            let payload =
                format!(r#"{{"by":{name}, "step":{step},"die":{},"fill":"{fill}"}}"#, dice.below(1 << 40));
            let body = format!(r#"{{"content_type":"application/json","payload":{payload}}}"#);
            let answer = request(&mut connection, "PUT", key, Some(expected), Some(&body));
            let mut told = told.lock().unwrap();
            match answer {
                Ok((200, body)) => {
                    let (version, there) = content(&body);
                    assert_eq!(there, payload);
                    assert!(version > expected, "{version} on top of {expected}");
                    told.written(key, version, &payload);
                    known.insert(key.to_owned(), Some((version, payload)));
                    continue;
                }
                Ok((409, _)) => told.refused += 1,
                _ => return told.unsure.push((key.to_owned(), Some(payload))),
            }
        }
        // Somebody else was faster, or it is gone.
        match request(&mut connection, "GET", key, None, None) {
            Ok((200, body)) => known.insert(key.to_owned(), Some(content(&body))),
            Ok((404, _)) => known.insert(key.to_owned(), None),
            _ => return,
        };
    }
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Core,
    Api,
    Both,
}

/// One round: everybody writes, something is killed and started again, and all is held against what was told.
fn round(
    single: &mut Single,
    dice: &mut Dice,
    known: &mut BTreeMap<String, Content>,
    told: &Arc<Mutex<Told>>,
) {
    let node = &mut single.a.node;
    let socket: PathBuf = node.host().path("/run/plexd/api.sock");
    let writers: Vec<_> = (0..WRITERS)
        .map(|name| {
            let (socket, told, known) = (socket.clone(), Arc::clone(told), known.clone());
            let dice = dice.other();
            thread::spawn(move || write_on(&socket, name, dice, known, &told))
        })
        .collect();
    thread::sleep(Duration::from_millis(dice.below(LATEST_KILL)));
    let victim = dice.of(&[Victim::Core, Victim::Api, Victim::Both]);
    if let Victim::Core | Victim::Both = victim {
        node.take_core().kill9();
    }
    if let Victim::Api | Victim::Both = victim {
        node.take_api().kill9();
    }
    // Before anything is started again: what failed is not tried once more.
    for writer in writers {
        writer.join().unwrap();
    }
    if let Victim::Core | Victim::Both = victim {
        node.start_core();
    }
    if let Victim::Api | Victim::Both = victim {
        node.start_api();
    }
    wait_until(SOON, "an answer that is up to date", || up_to_date(node));
    let mut connection = Wire::unix(&socket).expect("plexd-api is up");
    let mut told = told.lock().unwrap();
    let keys = (0..WRITERS).map(|name| format!("w{name}")).chain([SHARED.to_owned()]);
    for key in keys {
        let there = match request(&mut connection, "GET", &key, None, None).expect("an answer") {
            (200, body) => Some(content(&body)),
            (404, _) => None,
            other => panic!("{other:?}"),
        };
        told.check(&key, &there);
        if let Some((version, payload)) = &there {
            told.acknowledged.insert((key.clone(), *version), Some(payload.clone()));
        } else if let Some((version, _)) = told.newest(&key) {
            told.acknowledged.insert((key.clone(), version), None);
        }
        known.insert(key, there);
    }
    told.unsure.clear();
}

/// What the control plane has and what the node has is the same, byte for byte but for white space.
fn expect_the_same_at_the_control_plane(single: &Single, known: &BTreeMap<String, Content>) {
    let there: BTreeMap<_, _> = known
        .iter()
        .filter_map(|(key, content)| content.as_ref().map(|content| (key.clone(), content)))
        .map(|(key, (version, payload))| {
            (key, (*version, serde_json::from_str::<Value>(payload).expect("JSON")))
        })
        .collect();
    single.wait_synced(|reports| {
        let reports = reports.as_object().expect("an object");
        let received: BTreeMap<_, _> = reports
            .iter()
            .map(|(key, entry)| {
                (key.clone(), (entry["version"].as_i64().unwrap_or(0), entry["payload"].clone()))
            })
            .collect();
        received == there
    });
}

#[expect(clippy::print_stdout, reason = "how much there was to lose")]
fn kill_again_and_again(rounds: u32) {
    let mut dice = Dice::thrown();
    let mut single = Single::new("node_api:\n  report_debounce: 200ms\n");
    let (mut known, told) = (BTreeMap::new(), Arc::new(Mutex::new(Told::default())));
    for _ in 0..rounds {
        round(&mut single, &mut dice, &mut known, &told);
    }
    expect_the_same_at_the_control_plane(&single, &known);
    let told = told.lock().unwrap();
    println!(
        "{rounds} rounds: {} versions acknowledged, {} conflicts",
        told.acknowledged.len(),
        told.refused
    );
    assert!(told.acknowledged.len() > 3 * rounds as usize && told.refused > 0);
}

#[test]
fn what_was_acknowledged_outlives_20_kills_at_any_moment_and_reaches_the_control_plane() {
    kill_again_and_again(ROUNDS.0);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn long_what_was_acknowledged_outlives_200_kills_at_any_moment_and_reaches_the_control_plane() {
    kill_again_and_again(ROUNDS.1);
}
