//! The Local Node API does what its OpenAPI document says: schemathesis makes requests by the document, those that it
//! allows and those that it does not, and holds every answer against it. All of its checks are on. `/v1/state/watch`
//! never ends, and is tried by others.

use std::path::Path;
use std::time::Duration;

use crate::support::Single;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plexd-api/openapi.json");

/// Where `packaging/install-schemathesis` puts it.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/schemathesis/bin/schemathesis");

const CONFIG: &str =
    "node_api:\n  http_enabled: true\n  http_token_file: /etc/plexd/api-token\n  metrics: true\n";

/// How long it may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(5);

/// Requests per operation that are made up, beside the examples and the borders of what is allowed.
const MADE_UP: &str = "--max-examples=30";

/// Tries the API at `url`, with further arguments for schemathesis.
#[track_caller]
fn holds(single: &Single, url: &str, arguments: &[&str]) {
    assert!(Path::new(PROGRAM).is_file(), "schemathesis is missing; install it with: make dependencies-api");
    let fixed = [PROGRAM, "run", DOCUMENT, "--url", url, "--exclude-path=/v1/state/watch", MADE_UP];
    let quiet = ["--no-color", "--generation-database=none", "--continue-on-failure", "--seed=1"];
    let line = [&fixed[..], &quiet, arguments].concat();
    let mut run = single.a.node.host().spawn("schemathesis", &line);
    let status = run.wait(PATIENCE);
    let log = run.log();
    assert!(status.success(), "{status}\n{log}");
    assert!(log.contains("Operations:       15 selected / 16 total"), "{log}");
    assert!(log.contains("4 covered / 4 selected / 4 total"), "{log}");
}

#[test]
fn schemathesis_finds_nothing_over_the_unix_socket() {
    let single = Single::new("").with_the_guides_state();
    // It speaks TCP alone; what passes its bytes on is in both groups.
    let pass_on = "exec setpriv --reuid=plexdt-both --regid=nogroup --init-groups \
        socat TCP-LISTEN:9200,bind=127.0.0.1,fork,reuseaddr,backlog=128 UNIX-CONNECT:/run/plexd/api.sock";
    let host = single.a.node.host();
    let mut socat = host.spawn("socat", &["sh", "-c", pass_on]);
    socat.wait_ready("an answer through socat", || {
        let output = host.run(&["curl", "-sS", "--fail", "http://127.0.0.1:9200/healthz"]);
        if output.is_success() { Ok(()) } else { Err(output) }
    });
    holds(&single, "http://127.0.0.1:9200", &[]);
}

#[test]
fn schemathesis_finds_nothing_over_tcp() {
    let single = Single::new(CONFIG).with_the_guides_state();
    holds(&single, "http://127.0.0.1:9100", &["--header=Authorization: Bearer tcp-token"]);
}
