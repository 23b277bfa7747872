//! What is no right request, over both real sockets: it is answered as the reference has it, in JSON, or the connection
//! ends where nothing can be answered ([`rows`] says which). The process lives on, says nothing of a panic, and another
//! client never notices.

mod rows;

use std::io;

use plexd_e2e::{HttpAnswer, Node, Wire};
use serde_json::json;

use crate::bystander::{Bystander, TCP, TOKEN};
use crate::dice::Dice;
use crate::support::Single;
use rows::{Row, Then};

/// A listener of the API.
#[derive(Debug, Clone, Copy)]
enum Listener {
    Unix,
    Tcp,
}

impl Listener {
    #[track_caller]
    fn connect(self, node: &Node) -> Wire {
        let connected = match self {
            Self::Unix => node.connect_unix(),
            Self::Tcp => node.connect_tcp(),
        };
        connected.unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Returns the header lines that this listener takes besides.
    fn headers(self) -> &'static [&'static str] {
        match self {
            Self::Unix => &[],
            Self::Tcp => &[TOKEN],
        }
    }

    /// Returns the bytes of a row with those lines.
    fn bytes(self, row: &Row) -> Vec<u8> {
        row.bytes(&self.headers().iter().map(|line| format!("{line}\r\n")).collect::<String>())
    }
}

/// Panics unless `answer` is the error `text` with `status`, as every error is told.
#[track_caller]
fn assert_error(answer: &HttpAnswer, status: u16, text: &str, about: &str) {
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (status, &*format!(r#"{{"error":"{text}"}}"#)),
        "{about}"
    );
    assert_eq!(answer.header("content-type"), Some("application/json"), "{about}: {answer}");
}

/// Sends a row in the given pieces, and holds what comes of it against the row.
#[track_caller]
fn hold(node: &Node, listener: Listener, row: &Row, cuts: impl Iterator<Item = usize>) {
    let about = format!("{} over {listener:?}", row.name);
    let bytes = listener.bytes(row);
    let mut wire = listener.connect(node);
    let mut rest = bytes.as_slice();
    for cut in cuts {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        // The other end may have closed: then what it said before counts.
        if !wire.send_what_it_takes(piece) {
            break;
        }
        rest = after;
    }
    wire.send_what_it_takes(rest);
    if row.then == Then::ClosedOnceAllIsSaid {
        wire.finish();
    }
    for (status, text) in &row.answers {
        let answer = wire.answer().unwrap_or_else(|error| panic!("{about}: {error}, not {status} {text}"));
        if *status >= 400 {
            assert_error(&answer, *status, text, &about);
        } else {
            assert_eq!(answer.status, *status, "{about}: {answer}");
        }
    }
    match row.then {
        Then::GoesOn => {
            let answer = wire.ask("GET", "/healthz", listener.headers(), None);
            let status = answer.as_ref().map(|answer| answer.status).map_err(io::Error::kind);
            assert_eq!(status, Ok(200), "{about}: the connection goes on, {answer:?}");
        }
        Then::Closed | Then::ClosedOnceAllIsSaid => {
            let rest = wire.rest().unwrap_or_else(|error| panic!("{about}: the connection is open: {error}"));
            assert_eq!(String::from_utf8_lossy(&rest), "", "{about}: and then the connection ends");
        }
    }
}

/// Panics unless plexd-api is the process it was, and says nothing that it should not.
#[track_caller]
fn assert_unharmed(node: &mut Node, pid: u32) {
    let api = node.api();
    assert!(api.is_running() && api.pid() == pid, "plexd-api ended: {}", api.log());
    let log = api.log();
    assert!(!log.contains("panic") && !log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn what_is_no_right_request_is_refused_in_json_or_its_connection_ends_and_nobody_else_notices() {
    let mut single = Single::new(TCP).with_the_guides_state();
    let pid = single.a.node.api().pid();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    for row in rows::all() {
        for listener in [Listener::Unix, Listener::Tcp] {
            hold(&single.a.node, listener, &row, std::iter::empty());
        }
    }
    bystander.finish();
    assert_unharmed(&mut single.a.node, pid);
    let reports = single.a.node.curl_unix("/v1/state/report", &[]).json();
    let keys: Vec<_> = reports.as_array().expect("a list").iter().map(|entry| entry["key"].clone()).collect();
    assert_eq!(keys, ["bystander"], "nothing of it was written");
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn long_what_is_no_right_request_is_refused_however_it_is_cut() {
    let mut single = Single::new(TCP).with_the_guides_state();
    let pid = single.a.node.api().pid();
    let mut dice = Dice::thrown();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    for row in rows::all().iter().filter(|row| row.bytes("").len() < 2_000) {
        for listener in [Listener::Unix, Listener::Tcp] {
            let length = listener.bytes(row).len();
            hold(&single.a.node, listener, row, std::iter::repeat_n(1, length));
            for _ in 0..10 {
                let longest = 1 + dice.below(40);
                let cuts: Vec<_> =
                    (0..length).map(|_| usize::try_from(1 + dice.below(longest)).unwrap_or(1)).collect();
                hold(&single.a.node, listener, row, cuts.into_iter());
            }
        }
    }
    bystander.finish();
    assert_unharmed(&mut single.a.node, pid);
}

/// The rows of the guide's table that a request brings about, over both listeners. 403 is told by the socket's mode
/// (`access`), and a secret's value over either by its group.
#[test]
fn every_row_of_the_guides_table_over_both_listeners() {
    let mut single = Single::new(TCP).with_the_guides_state();
    let report = "/v1/state/report/health";
    let body = r#"{"content_type":"t","payload":1}"#;
    let rows: [(&str, &str, &[&str], Option<&str>, u16, &str); 10] = [
        ("PUT", report, &[], Some("{"), 400, "invalid JSON body"),
        ("PUT", report, &[], Some(r#"{"payload":1}"#), 400, "content_type is required"),
        ("PUT", report, &[], Some(r#"{"content_type":"t"}"#), 400, "payload must be valid JSON"),
        ("PUT", report, &["If-Match: three"], Some(body), 400, "If-Match must be an integer"),
        ("GET", "/v1/state/metadata/none", &[], None, 404, "not found"),
        ("GET", "/v1/state/data/none", &[], None, 404, "not found"),
        ("GET", "/v1/state/secrets/none", &[], None, 404, "not found"),
        ("DELETE", report, &[], None, 404, "not found"),
        ("PUT", report, &["If-Match: 3"], Some(body), 409, "version conflict"),
        // Once the control plane is away, below.
        ("GET", "/v1/state/secrets/db%2Fpassword", &[], None, 503, "control plane unavailable"),
    ];
    for (index, (method, path, headers, body, status, text)) in rows.into_iter().enumerate() {
        if status == 503 {
            single.control_plane.stop();
        }
        for listener in [Listener::Unix, Listener::Tcp] {
            let mut wire = listener.connect(&single.a.node);
            let about = format!("row {index}, {method} {path} over {listener:?}");
            let headers = [listener.headers(), headers].concat();
            let answer = wire.ask(method, path, &headers, body);
            let answer = answer.unwrap_or_else(|error| panic!("{about}: {error}"));
            assert_error(&answer, status, text, &about);
            let next = wire.ask("GET", "/v1/state/metadata/region", listener.headers(), None);
            let next = next.map(|answer| answer.status).map_err(|error| error.kind());
            assert_eq!(next, Ok(200), "{about}: the connection goes on");
        }
    }
    for headers in [&[][..], &["Authorization: Bearer wrong"], &["Authorization: Basic dGNwLXRva2Vu"]] {
        let mut wire = Listener::Tcp.connect(&single.a.node);
        let answer = wire.ask("GET", "/v1/state", headers, None).expect("an answer");
        assert_error(&answer, 401, "unauthorized", &format!("{headers:?}"));
    }
    let state = single.a.node.curl_unix("/v1/state", &[]).with_status(200).json();
    assert_eq!(state["report_keys"], json!([]));
}
