//! Heads and bodies without measure, from 64 connections at once.

use std::sync::Barrier;
use std::thread;

use plexd_e2e::{Node, Wire};

use super::memory::{BODIES_OF_ONE_USER, Before, FULL_CONNECTION, MIB, SLACK};
use crate::bystander::{Bystander, TCP};
use crate::support::Single;

/// Connections at once.
const CONNECTIONS: usize = 64;

/// The largest report, with its members.
const LARGEST: usize = 1024 * 1024;

/// Keys that the flood writes to.
const KEYS: usize = 8;

/// Does something over each of [`CONNECTIONS`] connections at once.
fn at_once(node: &Node, work: impl Fn(usize, Wire) + Sync) {
    let barrier = Barrier::new(CONNECTIONS);
    let (work, barrier) = (&work, &barrier);
    thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            let wire = node.connect_unix().expect("plexd-api listens");
            scope.spawn(move || {
                barrier.wait();
                work(number, wire);
            });
        }
    });
}

#[test]
fn floods_of_heads_cost_a_buffer_for_each_connection_and_disturb_nobody() {
    let mut single = Single::new(TCP).with_the_guides_state();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    let before = Before::of("plexd-api", single.a.node.api());
    let large = [
        format!("GET /v1/state HTTP/1.1\r\n{}", "X-Flood: aaaaaaaa\r\n".repeat(1_000_000 / 19)),
        format!("GET /v1/state HTTP/1.1\r\nX: {}", "x".repeat(1_000_000)),
        format!("GET /{}", "x".repeat(1_000_000)),
    ];
    for flood in &large {
        at_once(&single.a.node, |number, mut wire| {
            // Some after a request that is right.
            if number.is_multiple_of(2) {
                let answer = wire.ask("GET", "/healthz", &[], None).expect("an answer");
                answer.expect_status(200);
            }
            wire.send_what_it_takes(flood.as_bytes());
            let answer = wire.answer().expect("an answer").with_status(431);
            assert_eq!(answer.body, r#"{"error":"request header fields too large"}"#);
            assert_eq!(wire.rest().expect("the end"), b"");
        });
    }
    // As much of a head as there may be, from all at once.
    let together = Barrier::new(CONNECTIONS);
    let head = format!("GET /v1/state/metadata HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(32_000));
    at_once(&single.a.node, |_, mut wire| {
        wire.send(head.as_bytes()).expect("it is taken");
        // None ends before all are there.
        together.wait();
        wire.send(b"\r\n\r\n").expect("it is taken");
        wire.answer().expect("an answer").expect_status(200);
    });
    let bound = CONNECTIONS as u64 * FULL_CONNECTION + SLACK;
    before.has_grown_by_at_most(bound, single.a.node.api());
    bystander.finish();
}

/// A report of the largest size with its length, or in chunks.
fn largest(number: usize) -> Vec<u8> {
    let frame = r#"{"content_type":"text/plain","payload":""}"#;
    let fill = "x".repeat(LARGEST - frame.len());
    let body = frame.replace(r#""""#, &format!(r#""{fill}""#));
    let line = format!("PUT /v1/state/report/flood-{} HTTP/1.1\r\nHost: x\r\n", number % KEYS);
    if number.is_multiple_of(2) {
        return format!("{line}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    }
    let mut bytes = format!("{line}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for piece in body.as_bytes().chunks(100_000) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn floods_of_bodies_wait_for_room_and_disturb_nobody() {
    let mut single = Single::new(TCP).with_the_guides_state();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    let before = Before::of("plexd-api", single.a.node.api());
    // 64 MB of the largest reports there may be, of which none is refused for its size.
    at_once(&single.a.node, |number, mut wire| {
        wire.send_what_it_takes(&largest(number));
        let answer = wire.answer().expect("an answer");
        // On a machine that takes more than 30 s for it.
        let too_many = (503, r#"{"error":"too many requests"}"#);
        assert!(answer.status == 200 || (answer.status, &*answer.body) == too_many, "{answer:.300}");
    });
    // And what never fits.
    at_once(&single.a.node, |number, mut wire| {
        let lengths = ["Content-Length: 5000000", "Transfer-Encoding: chunked"][number % 2];
        let head = format!("PUT /v1/state/report/k HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n");
        let mut bytes = head.into_bytes();
        if number % 2 == 1 {
            bytes.extend_from_slice(b"4c4b40\r\n");
        }
        bytes.resize(bytes.len() + 5_000_000, b' ');
        wire.send_what_it_takes(&bytes);
        let answer = wire.answer().expect("an answer").with_status(413);
        assert_eq!(answer.body, r#"{"error":"payload too large"}"#);
    });
    // The reports that are there, in the state that is shown and in the one before.
    let mirror = 2 * KEYS as u64 * MIB;
    let bound = mirror + BODIES_OF_ONE_USER + CONNECTIONS as u64 * FULL_CONNECTION + SLACK;
    before.has_grown_by_at_most(bound, single.a.node.api());
    bystander.finish();
}
