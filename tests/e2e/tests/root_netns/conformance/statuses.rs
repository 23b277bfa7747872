//! What each status of each endpoint that the node uses does to the node: those of the documents, and one of each class
//! that the contract (section 2) adds. Other endpoints work on meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use plexd_e2e::{ControlPlane, Lab, Node, wait_until};
use serde_json::{Value, json};

use crate::support::{SOON, Single, wait_problem, wait_status};

/// How long nothing must come where nothing is to be tried again: longer than the first two delays of the backoff.
const QUIET: Duration = Duration::from_secs(4);

/// What a status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// Tried again, with backoff.
    Again,
    /// Tried again when the control plane says, which is in eight seconds.
    Later,
    /// The identity is refused: not tried again for a minute, and said.
    Identity,
    /// The request is refused: not tried again blindly, and said.
    Refused,
}

/// A status of an endpoint.
struct Row {
    endpoint: &'static str,
    answer: Value,
    means: Means,
}

fn row(endpoint: &'static str, status: u16, means: Means) -> Row {
    Row { endpoint, answer: json!({ "status": status }), means }
}

fn later(endpoint: &'static str, form: &str) -> Row {
    Row { endpoint, answer: json!({ "status": 429, "retry_after": { form: 8 } }), means: Means::Later }
}

impl Row {
    /// Makes the endpoint answer so; `provoke` makes the node call it.
    #[track_caller]
    fn put(&self, single: &mut Single, provoke: impl FnOnce(&mut Single)) {
        let Self { endpoint, answer, means } = self;
        let mut rule = answer.clone();
        rule["endpoint"] = json!(endpoint);
        single.control_plane.set_faults(&rule);
        let table = single.a.table();
        let before = single.control_plane.requests(endpoint);
        provoke(single);
        let since = || single.control_plane.requests(endpoint) - before;
        wait_until(SOON, &format!("a request to {endpoint}"), || since() > 0);
        match means {
            Means::Again => wait_until(SOON, &format!("{endpoint} again after {answer}"), || since() > 2),
            Means::Later => {
                thread::sleep(QUIET);
                assert_eq!(since(), 1, "{endpoint} again too early after {answer}");
                wait_until(SOON, &format!("{endpoint} again after {answer}"), || since() > 1);
            }
            Means::Identity | Means::Refused => {
                let words = if *means == Means::Identity { "identity" } else { *endpoint };
                wait_problem(&single.a.node, &[words]);
                thread::sleep(QUIET);
                assert_eq!(since(), 1, "{endpoint} again after {answer}");
            }
        }
        // Nothing of what is enforced and served changes.
        assert_eq!(single.a.table(), table);
        single.a.node.curl_unix("/v1/state", &[]).expect_status(200);
        single.control_plane.clear_faults();
    }
}

/// Puts an endpoint that is called at every start through its statuses.
#[track_caller]
fn after_a_start(rows: &[Row]) {
    let mut single = Single::settled("");
    for row in rows {
        row.put(&mut single, Single::restart_core);
        // What was refused is not tried for a minute.
        single.restart_core();
        single.wait_well();
    }
}

#[test]
fn heartbeat() {
    after_a_start(&[
        row("heartbeat", 401, Means::Identity),
        row("heartbeat", 400, Means::Refused),
        row("heartbeat", 503, Means::Again),
        later("heartbeat", "seconds"),
    ]);
}

#[test]
fn events() {
    after_a_start(&[
        row("events", 401, Means::Identity),
        row("events", 404, Means::Identity),
        row("events", 408, Means::Again),
        later("events", "date"),
    ]);
}

#[test]
fn streams_that_end_at_once_are_opened_with_growing_delays() {
    let single = Single::settled("");
    let begun = Instant::now();
    single.control_plane.set_faults(&json!({ "endpoint": "events", "drop_streams": true }));
    let before = single.control_plane.requests("events");
    wait_until(SOON, "the third attempt", || single.control_plane.requests("events") - before >= 3);
    // 1, 2 and 4 s, each a quarter less at most. That each stream begins with `retry:` is no success.
    let shortest = Duration::from_millis(5_250);
    assert!(begun.elapsed() >= shortest, "after {:?}", begun.elapsed());
}

#[test]
fn state() {
    after_a_start(&[
        row("state", 401, Means::Identity),
        row("state", 404, Means::Identity),
        row("state", 500, Means::Again),
        later("state", "date"),
    ]);
}

#[test]
fn capabilities() {
    let mut single = Single::settled("");
    let forget = |single: &mut Single| {
        single.a.node.take_core().kill9();
        let told = single.a.node.host().path("/var/lib/plexd/capabilities");
        std::fs::remove_file(told).expect("a registered node has told what it can do");
        single.a.node.start_core();
    };
    let rows = [
        row("capabilities", 401, Means::Identity),
        row("capabilities", 400, Means::Refused),
        row("capabilities", 502, Means::Again),
    ];
    for row in &rows {
        // They are told at the next start: nothing of them is left behind by the one before.
        row.put(&mut single, forget);
        single.restart_core();
        single.wait_well();
        wait_until(SOON, "a note that they were told", || {
            single.a.node.host().path("/var/lib/plexd/capabilities").exists()
        });
    }
    let received = single.control_plane.received(&single.a.id);
    assert_eq!(received["capabilities"].as_array().map(Vec::len), Some(rows.len()), "{received}");
}

#[test]
fn report() {
    let mut single = Single::settled("node_api:\n  report_debounce: 100ms\n");
    for (version, row) in (1_u64..).zip([
        row("report", 401, Means::Identity),
        row("report", 504, Means::Again),
        later("report", "seconds"),
    ]) {
        row.put(&mut single, |single| assert_eq!(single.put_report("health", "1"), version));
        single.restart_core();
        single.wait_well();
        single.wait_synced(|reports| reports["health"]["version"] == version);
    }
    // 409: sent once more by itself, then kept here.
    single.control_plane.set_faults(&json!({ "endpoint": "report", "status": 409 }));
    let before = single.control_plane.requests("report");
    single.put_report("other", "1");
    wait_problem(&single.a.node, &["refused", "report"]);
    thread::sleep(QUIET);
    assert_eq!(single.control_plane.requests("report") - before, 2);
    let status = single.a.node.status();
    assert_eq!((&status["reports"]["conflicted"], &status["reports"]["pending"]), (&json!(1), &json!(0)));
    single.a.node.curl_unix("/v1/state/report/other", &[]).expect_status(200);
    single.control_plane.clear_faults();
    single.put_report("other", "2");
    single.wait_synced(|reports| reports["other"]["version"] == 2);
    single.wait_well();
}

/// Has the policy's table removed, which the node puts right and tells.
fn cause_drift(single: &mut Single) {
    single.a.node.host().run(&["nft", "delete table inet plexd"]).expect_success();
    wait_until(SOON, "the table", || {
        let list = ["nft", "list", "table", "inet", "plexd"];
        single.a.node.host().run(&list).is_success()
    });
}

#[test]
fn drift() {
    let mut single = Single::settled("");
    let told = |single: &Single| {
        let received = single.control_plane.received(&single.a.id);
        received["drift"].to_string().matches("policy_restored").count()
    };
    row("drift", 401, Means::Identity).put(&mut single, cause_drift);
    single.restart_core();
    single.wait_well();
    row("drift", 503, Means::Again).put(&mut single, cause_drift);
    wait_until(SOON, "the drift at the control plane", || told(&single) == 1);
    // Refused, and not sent again: the next one is.
    single.control_plane.set_faults(&json!({ "endpoint": "drift", "status": 400 }));
    let before = single.control_plane.requests("drift");
    cause_drift(&mut single);
    wait_until(SOON, "the report", || single.control_plane.requests("drift") > before);
    single.control_plane.clear_faults();
    cause_drift(&mut single);
    wait_until(SOON, "the next drift at the control plane", || told(&single) == 2);
    single.wait_well();
}

#[test]
fn rotate() {
    let mut single = Single::settled("");
    let key = |single: &Single| single.a.node.status()["identity"]["public_key"].clone();
    for row in [row("rotate", 401, Means::Identity), row("rotate", 503, Means::Again)] {
        let old = key(&single);
        row.put(&mut single, |single| {
            single.control_plane.send_event(&single.a.id, "rotate_keys", &json!({}));
        });
        assert_eq!(key(&single), old, "not before the control plane has confirmed it");
        single.restart_core();
        wait_until(SOON, "another key", || key(&single) != old);
        single.wait_well();
    }
}

#[test]
fn secrets() {
    let single = Single::new("").with_the_guides_state();
    let path = "/v1/state/secrets/db%2Fpassword";
    let unavailable = "control plane unavailable";
    for (rule, status, error) in [
        (json!({ "status": 401 }), 503, unavailable),
        (json!({ "status": 403 }), 403, "forbidden"),
        (json!({ "status": 404 }), 404, "not found"),
        (json!({ "status": 500 }), 503, unavailable),
        (json!({ "status": 429, "retry_after": { "seconds": 60 } }), 503, unavailable),
        (json!({ "garbage": true }), 503, unavailable),
        (json!({ "truncate": "broken" }), 503, unavailable),
    ] {
        let mut faults = rule.clone();
        faults["endpoint"] = json!("secrets");
        single.control_plane.set_faults(&faults);
        let before = single.control_plane.requests("secrets");
        let answer = single.a.node.curl_unix(path, &[]);
        assert_eq!((answer.status, &answer.json()["error"]), (status, &json!(error)), "{rule}");
        assert_eq!(single.control_plane.requests("secrets") - before, 1, "{rule}");
        single.control_plane.clear_faults();
    }
    let answer = single.a.node.curl_unix(path, &[]).with_status(200).json();
    assert_eq!(answer["value"], "s3cret-p@ssw0rd");
    single.wait_well();
}

#[test]
fn register() {
    let lab = Lab::new(&["cp", "a"]);
    let control_plane = ControlPlane::start(lab.host("cp"));
    let mut node = Node::new(lab.host("a"), &control_plane, "");
    let answer = |status: u16| control_plane.set_faults(&json!({ "endpoint": "register", "status": status }));
    let is_quiet = || {
        let before = control_plane.requests("register");
        thread::sleep(QUIET);
        assert_eq!(control_plane.requests("register"), before, "a token that is refused is not tried again");
    };

    answer(400);
    node.write_token(&control_plane.token());
    node.start_core();
    wait_problem(&node, &["register", "400"]);
    wait_status(&node, "waiting", |status| status["identity"]["enrolment"] == "waiting_for_token");
    is_quiet();
    for (status, word) in [(401, "token"), (409, "host name")] {
        answer(status);
        node.host().write("/etc/plexd/token", 0o600, control_plane.token());
        let refused = node.ctl(&["join", "--token-file", "/etc/plexd/token"]);
        assert!(!refused.is_success() && refused.stderr.contains(word), "{refused}");
        wait_problem(&node, &[word, "plexd-ctl join"]);
        is_quiet();
    }

    answer(503);
    node.host().write("/etc/plexd/token", 0o600, control_plane.token());
    let refused = node.ctl(&["join", "--token-file", "/etc/plexd/token"]);
    assert!(!refused.is_success() && refused.stderr.contains("keeps trying"), "{refused}");
    let before = control_plane.requests("register");
    wait_until(SOON, "further attempts", || control_plane.requests("register") > before + 1);
    control_plane.clear_faults();
    node.wait_enrolled();
    wait_status(&node, "health", |status| status["health"] == "healthy");
}
