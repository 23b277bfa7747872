//! What is no right request, over both real sockets: it is answered as the reference has it, in JSON, or the connection
//! ends where nothing can be answered ([`rows`] says which). The process lives on, says nothing of a panic, and another
//! client never notices.

mod rows;

use std::io::ErrorKind;

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
        row.bytes(&[self.headers(), &[""]].concat().join("\r\n"))
    }
}

/// Whether `answer` is the error `text` with `status`, as every error is told.
fn is_error(answer: &HttpAnswer, status: u16, text: &str) -> bool {
    (answer.status, answer.body.as_str()) == (status, &*format!(r#"{{"error":"{text}"}}"#))
        && answer.header("content-type") == Some("application/json")
}

/// Sends a row in the given pieces; says what came of it that is not as the row has it.
fn hold(node: &Node, listener: Listener, row: &Row, cuts: impl Iterator<Item = usize>) -> Result<(), String> {
    let bytes = listener.bytes(row);
    let mut wire = listener.connect(node);
    let mut rest = bytes.as_slice();
    let mut cuts = cuts.peekable();
    // hyper looks at what came in pieces only once a head has ended; without an end its time does.
    let may_be_silent = cuts.peek().is_some() && row.then == Then::Closed && !row.ends_a_head();
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
    for (index, (status, text)) in row.answers.iter().enumerate() {
        let answer = match wire.answer() {
            Err(error) if may_be_silent && error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            answer => answer.map_err(|error| format!("{error}, not answer {index}, {status} {text}"))?,
        };
        let is_right = match status {
            400.. => is_error(&answer, *status, text),
            _ => answer.status == *status,
        };
        if !is_right {
            return Err(format!("answer {index} is not {status} {text}: {answer}"));
        }
    }
    match row.then {
        Then::GoesOn => {
            let answer = wire.ask("GET", "/healthz", listener.headers(), None);
            let answer = answer.map_err(|error| format!("the connection does not go on: {error}"))?;
            if answer.status == 200 { Ok(()) } else { Err(format!("then: {answer}")) }
        }
        Then::Closed | Then::ClosedOnceAllIsSaid => {
            let rest = wire.rest().map_err(|error| format!("the connection is open: {error}"))?;
            // Where nothing need be said: hyper tells HTTP/2 apart if its opening comes whole.
            let is_refused = row.answers.is_empty()
                && rest.starts_with(b"HTTP/1.1 400 ")
                && rest.ends_with(b"\r\n\r\n{\"error\":\"bad request\"}");
            if rest.is_empty() || is_refused {
                Ok(())
            } else {
                Err(format!("then: {}", String::from_utf8_lossy(&rest)))
            }
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
    let mut wrong = Vec::new();
    for row in rows::all() {
        for listener in [Listener::Unix, Listener::Tcp] {
            if let Err(what) = hold(&single.a.node, listener, &row, std::iter::empty()) {
                wrong.push(format!("{} over {listener:?}: {what:.300}", row.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
            let mut tries = vec![vec![1; length]];
            // Those without an end take the ten seconds of a head.
            for _ in 0..if row.ends_a_head() { 10 } else { 1 } {
                let longest = 1 + dice.below(40);
                let mut cut = || usize::try_from(1 + dice.below(longest)).unwrap_or(1);
                tries.push((0..length).map(|_| cut()).collect());
            }
            for cuts in tries {
                let held = hold(&single.a.node, listener, row, cuts.iter().copied());
                held.unwrap_or_else(|what| panic!("{} over {listener:?}, cut by {cuts:?}: {what}", row.name));
            }
        }
    }
    bystander.finish();
    assert_unharmed(&mut single.a.node, pid);
}

/// Method, path, headers, body; status and error.
type GuideRow<'a> = (&'a str, &'a str, &'a [&'a str], Option<&'a str>, u16, &'a str);

/// The rows of the guide's table that a request brings about, over both listeners. 403 is told by the socket's mode
/// (`access`), and a secret's value over either by its group.
#[test]
fn every_row_of_the_guides_table_over_both_listeners() {
    let mut single = Single::new(TCP).with_the_guides_state();
    let report = "/v1/state/report/health";
    let body = r#"{"content_type":"t","payload":1}"#;
    let rows: [GuideRow<'_>; 10] = [
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
            assert!(is_error(&answer, status, text), "{about}: {answer}");
            let next = wire.ask("GET", "/v1/state/metadata/region", listener.headers(), None);
            let next = next.map(|answer| answer.status).map_err(|error| error.kind());
            assert_eq!(next, Ok(200), "{about}: the connection goes on");
        }
    }
    for headers in [&[][..], &["Authorization: Bearer wrong"], &["Authorization: Basic dGNwLXRva2Vu"]] {
        let mut wire = Listener::Tcp.connect(&single.a.node);
        let answer = wire.ask("GET", "/v1/state", headers, None).expect("an answer");
        assert!(is_error(&answer, 401, "unauthorized"), "{headers:?}: {answer}");
    }
    let state = single.a.node.curl_unix("/v1/state", &[]).with_status(200).json();
    assert_eq!(state["report_keys"], json!([]));
}
