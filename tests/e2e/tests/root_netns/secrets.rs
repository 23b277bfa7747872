//! Secrets from end to end: a record of each read at the control plane, one request each, answers that are none, and
//! the token that opens them over TCP.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use plexd_e2e::{As, wait_until};
use serde_json::{Value, json};

use crate::support::{SOON, Single, wait_problem, wait_status};

const TCP: &str = "node_api:\n  http_enabled: true\n  http_token_file: /etc/plexd/api-token\n";

const PASSWORD: &str = "/v1/state/secrets/db%2Fpassword";

const VALUE: &str = "s3cret-p@ssw0rd";

/// In both groups.
fn both() -> As<'static> {
    As::user("plexdt-both")
}

/// In group `plexd` alone.
fn member() -> As<'static> {
    As::user("plexdt-api")
}

/// Returns the audit records that the control plane has.
#[track_caller]
fn records(single: &Single) -> Vec<Value> {
    let received = single.control_plane.received(&single.a.id);
    let batches = received["audit"].as_array().cloned().unwrap_or_default();
    batches.iter().flat_map(|batch| batch["body"].as_array().expect("a batch is a list").clone()).collect()
}

/// Returns for how many reads a record stands.
#[track_caller]
fn reads(record: &Value) -> u64 {
    match record["raw"].as_str().expect("text") {
        "" => 1,
        raw => serde_json::from_str::<Value>(raw).expect("JSON")["reads"].as_u64().expect("a number"),
    }
}

/// Waits until the records stand for `count` reads, and returns them.
#[track_caller]
fn wait_reads(single: &Single, count: u64) -> Vec<Value> {
    wait_until(SOON, "the records of all reads", || {
        let records = records(single);
        let found = records.iter().map(reads).sum::<u64>();
        if found >= count { Ok(records) } else { Err(format!("{found} of {count}: {records:?}")) }
    })
}

/// Waits until a token opens the state over TCP, or no longer does.
#[track_caller]
fn wait_token(single: &Single, token: &str, status: u16) {
    let header = format!("Authorization: Bearer {token}");
    wait_until(SOON, "the token to count", || match single.a.node.curl_tcp(PASSWORD, &["-H", &header]) {
        Ok(answer) if answer.status == status => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn every_read_of_a_secret_leaves_a_record_at_the_control_plane() {
    let mut single = Single::new(TCP).with_the_guides_state();
    let uid = |name: &str| {
        let output = single.a.node.host().run(&["id", "-u", name]).succeeded().stdout;
        output.trim().parse::<u64>().expect("a number")
    };
    let (uid_both, uid_member) = (uid("plexdt-both"), uid("plexdt-api"));
    let node = &single.a.node;
    let fault = |rule: Value| single.control_plane.set_faults(&rule);
    let as_both = |path: &str, status: u16| node.curl_unix_as(both(), path, &[]).expect_status(status);
    let by_tcp = |path: &str, arguments: &[&str], status: u16| {
        node.curl_tcp(path, arguments).expect("an answer").expect_status(status);
    };
    as_both(PASSWORD, 200);
    as_both("/v1/state/secrets/none", 404);
    fault(json!({ "endpoint": "secrets", "status": 500 }));
    as_both("/v1/state/secrets/unavailable", 503);
    fault(json!({ "endpoint": "secrets", "status": 403 }));
    as_both("/v1/state/secrets/kept", 403);
    // Who leaves meanwhile has asked all the same, and is given nothing.
    fault(json!({ "endpoint": "secrets", "latency_ms": 2_000 }));
    node.try_curl_unix(Some(both()), "/v1/state/secrets/tls%2Fserver.key", &["--max-time", "1"])
        .expect_err("too late");
    single.control_plane.clear_faults();
    node.curl_unix_as(member(), "/v1/state/secrets/member", &[]).expect_status(403);
    by_tcp(PASSWORD, &["-H", "Authorization: Bearer tcp-token"], 200);
    by_tcp("/v1/state/secrets/bad", &["-H", "Authorization: Bearer wrong-token"], 401);
    by_tcp("/v1/state/secrets/no", &[], 401);
    // What is no read of a secret's value leaves none.
    node.curl_unix_as(member(), "/v1/state/secrets", &[]).expect_status(200);
    node.curl_unix_as(member(), PASSWORD, &["-X", "DELETE"]).expect_status(403);

    let found = wait_reads(&single, 9);
    let who = |record: &Value| match &record["subject"] {
        subject if *subject == json!({ "via": "tcp" }) => "tcp",
        subject if subject["uid"] == uid_both && subject["gid"].is_u64() && subject["pid"].is_u64() => "both",
        subject if subject["uid"] == uid_member => "member",
        other => panic!("nobody known: {other}"),
    };
    let mut told: Vec<_> = found
        .iter()
        .map(|record| {
            let text = |member: &str| record[member].as_str().expect("text").to_owned();
            assert_eq!(
                [text("source"), text("event_type"), text("action")],
                ["plexd", "SECRET_READ", "read"]
            );
            assert_eq!((text("hostname").as_str(), text("raw").as_str()), ("a", ""));
            assert!(text("timestamp").ends_with('Z'), "{record}");
            (record["object"]["secret"].as_str().expect("text").to_owned(), who(record), text("result"))
        })
        .collect();
    told.sort();
    let expected = [
        ("bad", "tcp", "denied"),
        ("db/password", "both", "success"),
        ("db/password", "tcp", "success"),
        ("kept", "both", "denied"),
        ("member", "member", "denied"),
        ("no", "tcp", "denied"),
        ("none", "both", "error"),
        ("tls/server.key", "both", "error"),
        ("unavailable", "both", "error"),
    ];
    let expected = expected.map(|(key, who, result)| (key.to_owned(), who, result.to_owned()));
    assert_eq!(told, expected);

    // So has one whose sidecar does not live to see the answer.
    single.control_plane.set_faults(&json!({ "endpoint": "secrets", "latency_ms": 60_000 }));
    let asked = single.control_plane.requests("secrets");
    let line = [
        "curl",
        "-s",
        "--unix-socket",
        "/var/run/plexd/api.sock",
        "http://localhost/v1/state/secrets/killed",
    ];
    let curl = single.a.node.host().spawn_as("curl", both(), &line);
    wait_until(SOON, "the request", || single.control_plane.requests("secrets") > asked);
    single.a.node.take_api().kill9();
    let last = wait_reads(&single, 10).pop().expect("a record");
    assert_eq!([&last["object"]["secret"], &last["result"]], ["killed", "error"]);
    drop(curl);
    single.control_plane.clear_faults();
    single.a.node.start_api();

    // Without the control plane they wait; refused ones by the hundred are few.
    single.control_plane.stop();
    single.a.node.curl_unix_as(both(), PASSWORD, &[]).expect_status(503);
    let many = "http://localhost/v1/state/secrets/many[1-300]";
    let line = ["curl", "-s", "-o", "/dev/null", "--unix-socket", "/var/run/plexd/api.sock", many];
    single.a.node.host().run_as(member(), &line).expect_success();
    single.control_plane.start_again();
    let later = wait_reads(&single, 10 + 1 + 300);
    assert_eq!(later.iter().map(reads).sum::<u64>(), 311);
    assert!(later.len() < 100, "{} records", later.len());

    let received = single.control_plane.received(&single.a.id).to_string();
    for hidden in [VALUE, "tcp-token", "wrong-token"] {
        assert!(!received.contains(hidden), "{hidden} went to the control plane");
    }
    let status = single.a.node.status();
    assert!(!status.to_string().contains("audit records lost"), "{status}");
}

#[test]
fn each_read_of_a_secret_is_one_request_to_the_control_plane() {
    let single = Single::new("").with_the_guides_state();
    let node = &single.a.node;
    let before = single.control_plane.requests("secrets");
    let etag = node.curl_unix(PASSWORD, &[]).with_status(200).header("etag").expect("an ETag").to_owned();
    node.curl_unix(PASSWORD, &["-H", &format!("If-None-Match: {etag}")]).expect_status(304);
    node.curl_unix(PASSWORD, &["--head"]).expect_status(200);
    node.curl_unix("/v1/state/secrets/none", &[]).expect_status(404);
    let many = format!("http://localhost{PASSWORD}?[1-40]");
    let unix = ["--unix-socket", "/var/run/plexd/api.sock"];
    let line =
        [&["curl", "-s", "--parallel", "--parallel-max", "20", "-o", "/dev/null"][..], &unix, &[&many]];
    node.host().run(&line.concat()).expect_success();
    // Names of secrets are known, and asked for by nobody.
    node.curl_unix("/v1/state/secrets", &[]).expect_status(200);
    node.curl_unix_as(member(), PASSWORD, &[]).expect_status(403);
    assert_eq!(single.control_plane.requests("secrets") - before, 44);
}

#[test]
fn an_answer_that_is_no_secret_or_never_comes_is_told_in_time() {
    let single = Single::new("").with_the_guides_state();
    let unavailable = json!({ "error": "control plane unavailable" });
    let faults = [
        json!({ "garbage": true }),
        json!({ "wrong_type": true }),
        json!({ "gzip_bomb": true }),
        json!({ "pad_to": 2 * 1024 * 1024 }),
        json!({ "latency_ms": 60_000 }),
    ];
    for mut fault in faults {
        fault["endpoint"] = json!("secrets");
        single.control_plane.set_faults(&fault);
        let started = Instant::now();
        let answer = single.a.node.curl_unix(PASSWORD, &["--max-time", "55"]);
        assert_eq!((answer.status, answer.json()), (503, unavailable.clone()), "{fault}");
        assert!(started.elapsed() < Duration::from_secs(45), "{fault}: {:?}", started.elapsed());
    }
    single.control_plane.clear_faults();
    single.a.node.curl_unix(PASSWORD, &[]).expect_status(200);
}

#[test]
fn a_changed_token_file_counts_after_a_reload_and_one_that_is_refused_does_not() {
    let mut single = Single::new(TCP).with_the_guides_state();
    wait_token(&single, "tcp-token", 200);
    let host = single.a.node.host().clone();
    let path = "/etc/plexd/api-token";
    host.write(path, 0o600, "another-token\n\n");
    host.run(&["chown", "plexd-core", path]).expect_success();
    wait_token(&single, "tcp-token", 200);
    single.a.node.core().signal(Signal::SIGHUP);
    wait_token(&single, "another-token", 200);
    wait_token(&single, "tcp-token", 401);

    for (text, mode, what) in
        [("", 0o600, "is empty"), ("next-token", 0o602, "chmod 600"), (" x", 0o600, "blank")]
    {
        host.write(path, mode, text);
        host.run(&["chown", "plexd-core", path]).expect_success();
        single.a.node.core().signal(Signal::SIGHUP);
        wait_problem(&single.a.node, &["http_token_file", what, "stays in force"]);
        wait_token(&single, "another-token", 200);
    }
    // As root made it, for the start: not for the process that gave root up.
    host.write(path, 0o600, "next-token\n");
    host.run(&["chown", "root", path]).expect_success();
    single.a.node.core().signal(Signal::SIGHUP);
    wait_problem(&single.a.node, &["http_token_file", "Permission denied", "restart plexd-core"]);
    host.run(&["chown", "plexd-core", path]).expect_success();
    single.a.node.core().signal(Signal::SIGHUP);
    wait_token(&single, "next-token", 200);
    wait_status(&single.a.node, "no problem", |status| !status.to_string().contains("http_token_file"));
}
