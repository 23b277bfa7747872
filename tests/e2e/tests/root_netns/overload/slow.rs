//! Clients that are slow: each kind has the time that is documented, no more, and nobody else waits for them.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use plexd_e2e::{Node, Wire, wait_until};
use serde_json::{Value, json};

use crate::background::Background;
use crate::bystander::{Bystander, TCP};
use crate::support::Single;

/// How often a slow client says or takes a byte.
const BEAT: Duration = Duration::from_secs(1);

/// What a machine that is busy may add to a time.
const LATE: Duration = Duration::from_secs(20);

/// What a clock may take off a time.
const EARLY: Duration = Duration::from_millis(500);

/// Clients of each kind at once.
const CLIENTS: usize = 50;

/// Has `text` said a byte at a time, until the other end has closed; returns what came, and after how long.
fn trickle(mut wire: Wire, text: &[u8]) -> (String, Duration) {
    let begun = Instant::now();
    let mut bytes = text.iter().copied().chain(std::iter::repeat(b'x'));
    wire.set_patience(BEAT).expect("a timeout");
    while begun.elapsed() < Duration::from_mins(2) {
        let Some(byte) = bytes.next() else { break };
        if wire.send(&[byte]).is_err() {
            break;
        }
        // The pause between two bytes is the wait for an answer.
        match wire.answer() {
            Ok(answer) => return (format!("{} {}", answer.status, answer.body), begun.elapsed()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    (String::new(), begun.elapsed())
}

/// Has many clients say `first` and then a byte of `text` a second; all must hear `expected` and be closed after `time`.
#[track_caller]
fn all_are_given(node: &Node, first: &str, text: &str, expected: &str, time: Duration) {
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let mut wire = node.connect_unix().expect("plexd-api listens");
            let sender = sender.clone();
            scope.spawn(move || {
                wire.send(first.as_bytes()).expect("it listens");
                sender.send(trickle(wire, text.as_bytes())).expect("it is waited for");
            });
        }
    });
    drop(sender);
    for (heard, after) in results {
        assert_eq!(heard, expected, "after {after:?}");
        assert!(after >= time.saturating_sub(EARLY) && after <= time + LATE, "{after:?} of {time:?}");
    }
}

/// A node whose summary is larger than what a socket takes at once.
#[track_caller]
fn with_ten_thousand_entries() -> Single {
    let single = Single::new(TCP).with_the_guides_state();
    let data: Vec<Value> = (0..10_000)
        .map(|number| json!({ "key": format!("entry-number-{number:05}"), "content_type": "text/plain", "payload": number }))
        .collect();
    single.control_plane.set_state(&single.a.id, &json!({ "data": data }));
    wait_until(Duration::from_mins(1), "the entries", || {
        let answer = single.a.node.curl_unix("/v1/state/data/entry-number-09999", &[]);
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    });
    single
}

/// Files that plexd-api has open, connections among them.
fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("plexd-api runs").count()
}

#[test]
fn heads_that_trickle_are_cut_after_ten_seconds_and_nobody_waits_for_them() {
    let single = Single::new(TCP).with_the_guides_state();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    let head = "GET /v1/state HTTP/1.1\r\nHost: x\r\nX: ";
    all_are_given(&single.a.node, "", head, "", Duration::from_secs(10));
    bystander.finish();
}

#[test]
#[ignore = "with the times that are documented: `make test-long`"]
fn long_bodies_that_trickle_are_refused_after_thirty_seconds() {
    let single = Single::new(TCP).with_the_guides_state();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    let refused = r#"408 {"error":"request timeout"}"#;
    for (lengths, text) in [("Content-Length: 1000", "{"), ("Transfer-Encoding: chunked", "fff\r\n{")] {
        let head = format!("PUT /v1/state/report/k HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n");
        all_are_given(&single.a.node, &head, text, refused, Duration::from_secs(30));
    }
    bystander.finish();
}

#[test]
#[ignore = "with the times that are documented: `make test-long`"]
fn long_connections_that_say_nothing_are_closed_after_75_seconds() {
    let single = Single::new(TCP).with_the_guides_state();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    let mut wires = Vec::new();
    for number in 0..CLIENTS {
        let mut wire = single.a.node.connect_unix().expect("plexd-api listens");
        if number.is_multiple_of(2) {
            wire.ask("GET", "/healthz", &[], None).expect("an answer").expect_status(200);
        }
        wire.set_patience(Duration::from_secs(75) + LATE).expect("a timeout");
        wires.push(wire);
    }
    let begun = Instant::now();
    for wire in wires {
        assert_eq!(wire.rest().expect("the end"), b"");
        // Some were connected before the clock was looked at.
        assert!(begun.elapsed() + LATE / 4 >= Duration::from_secs(75), "{:?}", begun.elapsed());
    }
    bystander.finish();
}

#[test]
#[ignore = "with the times that are documented: `make test-long`"]
fn long_readers_that_take_a_byte_a_second_are_closed() {
    let mut single = with_ten_thousand_entries();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    let pid = single.a.node.api().pid();
    let before = open_files(pid);
    let mut wires = Vec::new();
    for number in 0..CLIENTS {
        let mut wire = single.a.node.connect_unix().expect("plexd-api listens");
        let path = ["/v1/state", "/v1/state/data"][number % 2];
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("it listens");
        wires.push(wire);
    }
    wait_until(LATE, "their being connected", || open_files(pid) >= before + CLIENTS);
    let begun = Instant::now();
    let readers = Background::start(move |over| {
        while !over.after(BEAT) {
            // At the end there is nothing more to take.
            for wire in &mut wires {
                let _ = wire.take(1);
            }
        }
    });
    wait_until(Duration::from_mins(1) + LATE, "the end of those who take too little", || {
        open_files(pid) <= before
    });
    assert!(begun.elapsed() + LATE / 4 >= Duration::from_secs(30), "{:?}", begun.elapsed());
    readers.finish();
    bystander.finish();
}
