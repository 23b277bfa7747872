//! What readers see while everything happens at once: applications write and delete, the control plane changes its
//! data, plexd-core is killed and comes back. For no reader anything ever goes back; who waits for changes is told the
//! last of each key; writers read what they wrote.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plexd_e2e::{HttpAnswer, Wire, wait_until};
use serde_json::{Value, json};

use crate::background::{Background, Over};
use crate::dice::Dice;
use crate::support::{SOON, Single};

/// How often core is killed in `make test`, and in `make test-long`.
const ROUNDS: (u64, u64) = (3, 40);

const READERS: usize = 4;

/// Writers, each with keys of its own; and keys that all write to.
const WRITERS: usize = 4;
const OWN_KEYS: u64 = 3;
const SHARED_KEYS: u64 = 2;

/// Data entries of the control plane, which all change together.
const ENTRIES: usize = 50;

/// The pause between two requests of a reader or writer.
const BEAT: Duration = Duration::from_millis(2);

/// The newest version that was seen, by the kind of entry and its key.
type Versions = BTreeMap<(&'static str, String), i64>;

/// What became visible to all readers together.
#[derive(Debug, Default)]
struct Sights {
    /// Answers that said how old the state was.
    aged: AtomicUsize,
    answers: AtomicUsize,
}

/// Somebody who remembers what it saw.
struct Reader {
    wire: Wire,
    seen: Versions,
    sights: Arc<Sights>,
}

impl Reader {
    /// Reads `path`; returns the answer unless there is nothing.
    fn get(&mut self, path: &str) -> Option<Value> {
        let answer = self.wire.ask("GET", path, &[], None).unwrap_or_else(|error| panic!("{path}: {error}"));
        self.sights.answers.fetch_add(1, Ordering::Relaxed);
        if let Some(age) = answer.header("plexd-state-age") {
            assert!(age.parse::<u64>().is_ok_and(|age| age < 60), "{age}");
            self.sights.aged.fetch_add(1, Ordering::Relaxed);
        }
        match answer.status {
            200 => Some(answer.json()),
            404 => None,
            _ => panic!("{path}: {answer}"),
        }
    }

    /// Notes the version of an entry, or of its row in a list.
    fn see(&mut self, kind: &'static str, entry: &Value) {
        let key = entry["key"].as_str().expect("an entry has a key").to_owned();
        let version = entry["version"].as_i64().expect("an entry has a version");
        let newest = self.seen.entry((kind, key)).or_default();
        assert!(version >= *newest, "gone back from {newest}: {kind} {entry}");
        *newest = version;
    }

    /// Notes a list of data, which is of one state of the control plane.
    fn see_data(&mut self, list: &Value) {
        let list = list.as_array().expect("a list");
        assert_eq!(list.len(), ENTRIES);
        for entry in list {
            assert_eq!(entry["version"], list[0]["version"], "a torn view");
            self.see("data", entry);
        }
    }

    fn see_reports(&mut self, list: &Value) {
        let list = list.as_array().expect("a list");
        assert!(list.is_sorted_by_key(|entry| entry["key"].as_str()), "{list:?}");
        for entry in list {
            self.see("report", entry);
        }
    }

    fn look(&mut self, dice: &mut Dice) {
        match dice.below(5) {
            0 => {
                let state = self.get("/v1/state").expect("a state");
                self.see_data(&state["data_keys"]);
                self.see_reports(&state["report_keys"]);
            }
            1 => {
                let list = self.get("/v1/state/data").expect("a list");
                self.see_data(&list);
            }
            2 => {
                let list = self.get("/v1/state/report").expect("a list");
                self.see_reports(&list);
            }
            3 => {
                let entry = self.get(&format!("/v1/state/data/{}", data_key(dice.below(ENTRIES as u64))));
                let entry = entry.expect("an entry");
                assert_eq!(entry["payload"]["of"], entry["version"], "{entry}");
                self.see("data", &entry);
            }
            _ => {
                let key = some_key(dice, dice.clone().below(WRITERS as u64));
                if let Some(entry) = self.get(&format!("/v1/state/report/{key}")) {
                    self.see("report", &entry);
                }
            }
        }
    }
}

fn data_key(number: u64) -> String {
    format!("data-{number:02}")
}

/// Returns a key of a writer, or one that is everybody's.
fn some_key(dice: &mut Dice, writer: u64) -> String {
    match dice.below(OWN_KEYS + SHARED_KEYS) {
        number if number < OWN_KEYS => format!("own-{writer}-{number}"),
        number => format!("shared-{number}"),
    }
}

/// Writes and deletes; what was acknowledged of an own key is what another connection reads.
fn write(mut wire: Wire, mut other: Reader, mut dice: Dice, writer: u64, over: &Over) -> u64 {
    let mut acknowledged = 0;
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    let mut step = 0_u64;
    while !over.after(BEAT) {
        step += 1;
        let key = some_key(&mut dice, writer);
        let path = format!("/v1/state/report/{key}");
        let is_own = key.starts_with("own");
        let deletes = dice.below(5) == 0;
        let payload = format!(r#"{{"by":{writer},"step":{step}}}"#);
        let answer = if deletes {
            wire.ask("DELETE", &path, &[], None)
        } else {
            let body = format!(r#"{{"content_type":"application/json","payload":{payload}}}"#);
            wire.ask("PUT", &path, &[], Some(&body))
        };
        let answer: HttpAnswer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        match answer.status {
            200 => {
                let version = answer.json()["version"].as_i64().expect("a version");
                let before = newest.insert(key.clone(), version).unwrap_or(0);
                assert!(version > before, "{path}: {version} after {before}");
                let read = other.get(&path);
                if is_own {
                    assert_eq!(read.as_ref(), Some(&answer.json()), "what was written is read");
                }
                if let Some(read) = read {
                    other.see("report", &read);
                    assert!(read["version"].as_i64() >= Some(version), "{read} after {version}");
                }
                acknowledged += 1;
            }
            204 => {
                let read = other.get(&path);
                assert!(!is_own || read.is_none(), "{read:?} was deleted");
                acknowledged += 1;
            }
            404 if deletes => {}
            // Core is away.
            503 => assert_eq!(answer.json()["error"], "core unavailable", "{answer}"),
            _ => panic!("{path}: {answer}"),
        }
    }
    acknowledged
}

/// What a watcher was told last of each entry.
#[derive(Debug, Default)]
struct Told(BTreeMap<(String, String), (i64, bool)>);

impl Told {
    /// Takes an event in: versions rise.
    fn event(&mut self, event: &str) {
        let mut lines = event.lines();
        let Some(kind) = lines.next().and_then(|line| line.strip_prefix("event: ")) else {
            assert!(event.starts_with(": "), "{event}");
            return;
        };
        let data = lines.next().and_then(|line| line.strip_prefix("data: ")).expect("an event has data");
        let data: Value = serde_json::from_str(data).expect("JSON");
        let (Some(key), Some(version)) = (data["key"].as_str(), data["version"].as_i64()) else {
            panic!("{event}");
        };
        let is_gone = data["deleted"] == true;
        let before = self.0.insert((kind.to_owned(), key.to_owned()), (version, is_gone));
        let Some((last, was_gone)) = before else { return };
        // A deletion names the version that is gone, which may have been told of.
        let is_newer = version > last || version == last && is_gone && !was_gone;
        assert!(is_newer, "{last}, gone: {was_gone}, and then {event}");
    }
}

/// Hears what the watch says until it is over and nothing more comes; the stream never ends meanwhile.
fn watch(mut wire: Wire, over: &Over) -> Told {
    let mut told = Told::default();
    wire.set_patience(Duration::from_millis(500)).expect("a timeout");
    loop {
        match wire.until(b"\n\n") {
            Ok(event) => told.event(&String::from_utf8(event).expect("text")),
            // Nothing happens, and nothing will.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if over.now() {
                    return told;
                }
            }
            Err(error) => panic!("the watch ended: {error}"),
        }
    }
}

#[track_caller]
fn set_data(single: &Single, version: u64) {
    let data: Vec<Value> = (0..ENTRIES as u64)
        .map(|number| {
            json!({ "key": data_key(number), "content_type": "application/json", "payload": { "of": version },
                    "version": version, "updated_at": "2025-06-01T12:34:56Z" })
        })
        .collect();
    single.control_plane.set_state(&single.a.id, &json!({ "data": data }));
}

/// Waits until the state is of data version `version`, and as core has it.
#[track_caller]
fn wait_current(single: &Single, version: u64) {
    wait_until(SOON, "a state that is up to date", || {
        let answer = single.a.node.curl_unix("/v1/state/data/data-00", &[]);
        let is_current = answer.status == 200 && answer.json()["version"] == json!(version);
        if is_current && answer.header("plexd-state-age").is_none() { Ok(()) } else { Err(answer) }
    });
}

#[expect(clippy::print_stdout, reason = "how much there was to see")]
fn nothing_goes_back(rounds: u64) {
    let mut dice = Dice::thrown();
    let mut single = Single::new("node_api:\n  report_debounce: 200ms\n");
    set_data(&single, 1);
    wait_current(&single, 1);
    let connect = |single: &Single| single.a.node.connect_unix().expect("plexd-api listens");
    let mut watching = connect(&single);
    // In version 1.0 the events come as they are.
    watching.send(b"GET /v1/state/watch HTTP/1.0\r\n\r\n").expect("it listens");
    let begun = watching.until(b"\r\n\r\n").expect("an answer");
    assert!(begun.starts_with(b"HTTP/1.0 200") || begun.starts_with(b"HTTP/1.1 200"));
    let watcher = Background::start(move |over| watch(watching, over));

    let sights = Arc::<Sights>::default();
    let reader = |single: &Single| Reader {
        wire: connect(single),
        seen: Versions::new(),
        sights: Arc::clone(&sights),
    };
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (mut reader, mut dice) = (reader(&single), dice.other());
            Background::start(move |over| {
                while !over.after(BEAT) {
                    reader.look(&mut dice);
                }
            })
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS as u64)
        .map(|writer| {
            let (wire, other, dice) = (connect(&single), reader(&single), dice.other());
            Background::start(move |over| write(wire, other, dice, writer, over))
        })
        .collect();

    let mut version = 1;
    for _ in 0..rounds {
        for _ in 0..=dice.below(3) {
            version += 1;
            set_data(&single, version);
            // Changes and kills come at any moment.
            std::thread::sleep(Duration::from_millis(dice.below(300)));
        }
        single.a.node.take_core().kill9();
        let aged = sights.aged.load(Ordering::Relaxed);
        wait_until(SOON, "answers that say how old the state is", || {
            sights.aged.load(Ordering::Relaxed) > aged + READERS
        });
        if dice.below(2) == 0 {
            version += 1;
            set_data(&single, version);
        }
        single.a.node.start_core();
        wait_current(&single, version);
    }

    let acknowledged: u64 = writers.into_iter().map(Background::finish).sum();
    readers.into_iter().for_each(Background::finish);
    let told = watcher.finish();
    let state = single.a.node.curl_unix("/v1/state", &[]).with_status(200).json();
    let mut there: BTreeMap<(String, String), i64> = BTreeMap::new();
    for (kind, list) in [("data", "data_keys"), ("report", "report_keys")] {
        for entry in state[list].as_array().expect("a list") {
            let key = entry["key"].as_str().expect("a key").to_owned();
            there.insert((kind.to_owned(), key), entry["version"].as_i64().expect("a version"));
        }
    }
    let heard: BTreeMap<_, _> = told
        .0
        .iter()
        .filter(|(_, (_, is_gone))| !is_gone)
        .map(|(entry, (version, _))| (entry.clone(), *version))
        .collect();
    assert_eq!(heard, there, "what was told last is what is there");
    let answers = sights.answers.load(Ordering::Relaxed);
    println!(
        "{rounds} rounds: {answers} reads, {acknowledged} writes acknowledged, {version} states of data"
    );
    assert!(acknowledged > 10 * rounds && answers > 100);
}

#[test]
fn for_no_reader_anything_goes_back_and_no_watcher_misses_the_last_change_while_core_is_killed() {
    nothing_goes_back(ROUNDS.0);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn long_for_no_reader_anything_goes_back_over_40_kills() {
    nothing_goes_back(ROUNDS.1);
}
