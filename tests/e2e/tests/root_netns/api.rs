//! The Local Node API, as the guide has it: its own lines, its statuses, its groups.

use plexd_e2e::{As, guide, wait_until};
use serde_json::{Value, json};

use crate::support::{SOON, Single};

const TCP: &str =
    "node_api:\n  http_enabled: true\n  http_token_file: /etc/plexd/api-token\n  report_debounce: 100ms\n";

const QUICK: &str = "node_api:\n  report_debounce: 100ms\n";

/// Types a line of the guide as a user of group `plexd` and returns its JSON.
#[track_caller]
fn guide_line(single: &Single, line: &str) -> Value {
    single.a.node.host().shell(Some(As::user("plexdt-api")), line).succeeded().json()
}

/// Types a line of the guide as a user of group `plexd`; the answer has to be the guide's, but for the time of a report.
#[track_caller]
fn answers(single: &Single, line: &str, answer: &str) {
    let expected: Value = serde_json::from_str(answer).expect("the guide's answers are JSON");
    let mut found = guide_line(single, line);
    if let (Some(found), Some(expected)) = (found.get_mut("updated_at"), expected.get("updated_at"))
        && found != expected
    {
        let time = found.as_str().unwrap_or_default();
        assert!(time.len() >= 20 && time.ends_with('Z'), "RFC 3339, UTC: {time:?}");
        *found = expected.clone();
    }
    assert_eq!(found, expected, "{line}");
}

#[test]
fn reading_node_state_gives_the_guides_answer() {
    let single = Single::new("");
    let data =
        json!([{ "key": "nginx.conf", "content_type": "text/plain", "payload": "server {}", "version": 3 }]);
    let metadata = json!({ "node_id": "edge-us-west-42", "region": "us-west-2", "role": "gateway" });
    single.control_plane.set_state(&single.a.id, &json!({ "metadata": metadata, "data": data }));
    single.control_plane.set_secret(&single.a.id, "tls%2Fserver.key", "PEM");
    for _ in 0..5 {
        single.put_report("health", "1");
    }
    let expected: Value = serde_json::from_str(guide::STATE_ANSWER).expect("the guide's answers are JSON");
    single.wait_api("/v1/state", |state| *state == expected);
    answers(&single, guide::CONNECT, guide::STATE_ANSWER);
    answers(&single, guide::STATE, guide::STATE_ANSWER);
}

#[test]
fn the_guides_lines_give_the_guides_answers() {
    let mut single = Single::new("").with_the_guides_state();
    for (line, answer) in [
        (guide::METADATA, guide::METADATA_ANSWER),
        (guide::METADATA_REGION, guide::METADATA_REGION_ANSWER),
        (guide::DATA, guide::DATA_ANSWER),
        (guide::DATA_ROUTES, guide::DATA_ROUTES_ANSWER),
        (guide::SECRETS, guide::SECRETS_ANSWER),
        (guide::REPORT_CREATE, guide::REPORT_CREATE_ANSWER),
        (guide::REPORT_UPDATE, guide::REPORT_UPDATE_ANSWER),
        (guide::REPORT_UPDATE, guide::VERSION_CONFLICT),
        (guide::REPORT_READ, guide::REPORT_UPDATE_ANSWER),
    ] {
        answers(&single, line, answer);
    }
    single.put_report("inventory", "[]");
    answers(&single, guide::REPORT_LIST, guide::REPORT_LIST_ANSWER);

    let host = single.a.node.host();
    let delete = format!("{} -w '%{{http_code}}'", guide::REPORT_DELETE);
    let user = Some(As::user("plexdt-api"));
    assert_eq!(host.shell(user, &delete).succeeded().stdout, "204");
    assert_eq!(host.shell(user, &delete).succeeded().stdout, "{\"error\":\"not found\"}404");
    answers(&single, guide::REPORT_READ, guide::NOT_FOUND);

    // Who may read secrets is in both groups.
    let secret = |single: &Single| {
        let both = Some(As::user("plexdt-both"));
        single.a.node.host().shell(both, guide::SECRET_PASSWORD).succeeded().json()
    };
    let of = |answer: &str| serde_json::from_str::<Value>(answer).expect("the guide's answers are JSON");
    assert_eq!(secret(&single), of(guide::SECRET_PASSWORD_ANSWER));
    single.control_plane.stop();
    assert_eq!(secret(&single), of(guide::CONTROL_PLANE_UNAVAILABLE));
}

#[test]
fn the_rows_of_the_troubleshooting_table() {
    let single = Single::new("").with_the_guides_state();
    let node = &single.a.node;
    let put = |body: &'static str| vec!["-X", "PUT", "-H", "Content-Type: application/json", "-d", body];
    let report = "/v1/state/report/health";
    let with_version = |version: &'static str| {
        [put(r#"{"content_type":"application/json","payload":1}"#), vec!["-H", version]].concat()
    };
    let cases: [(&str, Vec<&str>, u16, &str); 14] = [
        (report, put("{not json"), 400, "invalid JSON body"),
        (report, put(r#"{"payload":1}"#), 400, "content_type is required"),
        (report, put(r#"{"content_type":"application/json"}"#), 400, "payload must be valid JSON"),
        (report, with_version("If-Match: soon"), 400, "If-Match must be an integer"),
        (report, with_version("If-Match: 7"), 409, "version conflict"),
        (report, vec![], 404, "not found"),
        (report, vec!["-X", "DELETE"], 404, "not found"),
        ("/v1/state/metadata/none", vec![], 404, "not found"),
        ("/v1/state/data/none", vec![], 404, "not found"),
        ("/v1/state/secrets/none", vec![], 404, "not found"),
        ("/v1/nowhere", vec![], 404, "not found"),
        ("/v1/state", vec!["-X", "POST"], 405, "method not allowed"),
        ("/v1/state/report/%0a", put(r#"{"content_type":"t","payload":1}"#), 400, "invalid key"),
        (report, with_version("If-Match: \"x\""), 400, "If-Match must be an integer"),
    ];
    for (path, arguments, status, error) in cases {
        let answer = node.curl_unix(path, &arguments);
        assert_eq!(
            (answer.status, answer.json()),
            (status, json!({ "error": error })),
            "{path} {arguments:?}"
        );
    }
}

#[test]
fn the_groups_a_process_has_decide_what_it_may() {
    let single = Single::new("").with_the_guides_state();
    let node = &single.a.node;
    let nobody = As::user("plexdt-none");
    // Who; the status of the state and of a secret's value; None is a connection refused.
    let table: [(&str, As<'_>, Option<u16>, Option<u16>); 8] = [
        ("in no group", nobody, None, None),
        ("in plexd-secrets alone", As::user("plexdt-secrets"), None, None),
        ("in plexd", As::user("plexdt-api"), Some(200), Some(403)),
        ("in both", As::user("plexdt-both"), Some(200), Some(200)),
        ("by the process's groups, not the database's", nobody.with_groups(&["plexd"]), Some(200), Some(403)),
        (
            "both by the process's groups",
            nobody.with_groups(&["plexd", "plexd-secrets"]),
            Some(200),
            Some(200),
        ),
        ("who gave the groups up", As::user("plexdt-both").with_groups(&[]), None, None),
        ("in plexd-admin alone", nobody.with_groups(&["plexd-admin"]), None, None),
    ];
    for (who, caller, state, secret) in table {
        for (path, expected) in [("/v1/state", state), ("/v1/state/secrets/db%2Fpassword", secret)] {
            let answer = node.try_curl_unix(Some(caller), path, &[]);
            match (answer, expected) {
                (Ok(answer), Some(status)) => assert_eq!(answer.status, status, "{who}: {path}: {answer}"),
                (Err(output), None) => assert_eq!(output.code, Some(7), "{who}: {path}: {output}"),
                (answer, expected) => panic!("{who}: {path}: {answer:?}, not {expected:?}"),
            }
        }
    }
    // By the primary group.
    for (groups, secret) in
        [("--clear-groups", "403"), ("--groups=$(getent group plexd-secrets | cut -d: -f3)", "200")]
    {
        let line = format!(
            "setpriv --reuid=plexdt-none --regid=plexd {groups} -- {} -w '\\n%{{http_code}}' -o /dev/null {}",
            "curl -s --unix-socket /var/run/plexd/api.sock",
            "http://localhost/v1/state/secrets/db%2Fpassword"
        );
        assert_eq!(node.host().shell(None, &line).succeeded().stdout.trim(), secret, "{groups}");
    }
    let answer = node.curl_unix_as(As::user("plexdt-both"), "/v1/state/secrets/db%2Fpassword", &[]);
    assert_eq!(answer.json(), json!({ "key": "db/password", "value": "s3cret-p@ssw0rd", "version": 2 }));
    let answer = node.curl_unix_as(As::user("plexdt-api"), "/v1/state/secrets/none", &[]);
    assert_eq!((answer.status, answer.json()), (403, json!({ "error": "forbidden" })));
}

#[test]
fn tcp_needs_the_token_for_everything() {
    let mut single = Single::new(TCP).with_the_guides_state();
    single.a.node.host().shell(None, guide::TOKEN).expect_success();
    // Only plexd-core reads the token, when it starts.
    single.a.node.take_core().terminate();
    single.a.node.start_core();
    let node = &single.a.node;
    let host = node.host();
    let token = host.shell(None, "cat /etc/plexd/api-token").succeeded().stdout;
    let token = token.trim();
    let answer = wait_until(SOON, "the new token", || {
        let output = host.shell(None, guide::TCP_STATE);
        let answer = output.json();
        if answer["metadata"].is_object() { Ok(answer) } else { Err(output) }
    });
    let state = answer;
    assert_eq!(state["metadata"]["region"], "us-west-2");
    assert_eq!(host.shell(None, guide::CONNECT_TCP).succeeded().json(), state);
    assert_eq!(host.shell(None, guide::TCP_REPORT).succeeded().json()["version"], 1);
    let right = format!("Authorization: Bearer {token}");
    let right = ["-H", right.as_str()];
    let secret = node.curl_tcp("/v1/state/secrets/db%2Fpassword", &right).unwrap().with_status(200);
    assert_eq!(secret.json()["value"], "s3cret-p@ssw0rd");

    let shorter = format!("Authorization: Bearer {}", &token[..token.len() - 1]);
    let longer = format!("Authorization: Bearer {token}2");
    let bare = format!("Authorization: {token}");
    let wrong: [&[&str]; 6] = [
        &[],
        &["-H", &shorter],
        &["-H", &longer],
        &["-H", "Authorization: Bearer "],
        &["-H", "Authorization: Basic dGNwLXRva2Vu"],
        &["-H", &bare],
    ];
    let unauthorized: Value =
        serde_json::from_str(guide::UNAUTHORIZED).expect("the guide's answers are JSON");
    for arguments in wrong {
        for path in ["/v1/state", "/v1/state/secrets/db%2Fpassword", "/v1/state/report/health", "/v1/nowhere"]
        {
            let answer = node.curl_tcp(path, arguments).unwrap();
            assert_eq!((answer.status, &answer.json()), (401, &unauthorized), "{path} {arguments:?}");
        }
    }
}

#[test]
fn reports_and_their_deletion_reach_the_control_plane() {
    let single = Single::new(QUICK);
    single.put_report("health", r#"{"status":"healthy"}"#);
    single.put_report("inventory%2Fdisks", "[1,2]");
    single.wait_synced(|reports| {
        reports["health"]["payload"] == json!({ "status": "healthy" })
            && reports["inventory/disks"]["payload"] == json!([1, 2])
    });
    assert_eq!(single.put_report("health", "2"), 2);
    single.wait_synced(|reports| reports["health"]["version"] == 2 && reports["health"]["payload"] == 2);

    single.a.node.curl_unix("/v1/state/report/health", &["-X", "DELETE"]).expect_status(204);
    single.wait_synced(|reports| reports["health"].is_null() && !reports["inventory/disks"].is_null());
    assert!(single.put_report("health", "3") > 2, "a version never comes again");
    single.wait_synced(|reports| reports["health"]["payload"] == 3);
    single.a.wait_status("nothing pending", |status| status["reports"]["pending"] == 0);
}

#[test]
fn payloads_come_back_byte_for_byte() {
    const PAYLOAD: &str = r#"{"b":1.10,"a":1e400,"b":"\u00e9\/","n":[ 9007199254740993 ,-0.0 ]}"#;
    let single = Single::new(QUICK);
    let node = &single.a.node;
    let entry = |body: &str| {
        let payload = body.split_once(r#""payload":"#).map(|(_, rest)| rest.to_owned());
        payload.unwrap_or_else(|| panic!("no payload: {body}"))
    };
    let put = format!(r#"{{"content_type":"application/json","payload":{PAYLOAD}}}"#);
    node.curl_unix("/v1/state/report/exact", &["-X", "PUT", "--data-raw", &put]).expect_status(200);
    let report = node.curl_unix("/v1/state/report/exact", &[]).with_status(200);
    assert!(entry(&report.body).starts_with(PAYLOAD), "{}", report.body);

    let data = format!(r#"{{"data":[{{"key":"exact","payload":{PAYLOAD}}}]}}"#);
    let url = format!("http://127.0.0.1:8444/admin/nodes/{}/state", single.a.id);
    let json_type = "Content-Type: application/json";
    let put = ["curl", "-sS", "--fail", "-X", "PUT", "-H", json_type, "--data-raw", &data, &url];
    single.control_plane.host().run(&put).expect_success();
    single.wait_data("exact");
    let body = node.curl_unix("/v1/state/data/exact", &[]).with_status(200).body;
    // The control plane sends it in an event and in a state; white space that means nothing may have gone on the way
    // there (the signature is over compact bytes), not in here.
    assert!(
        entry(&body).starts_with(PAYLOAD) || entry(&body).starts_with(&PAYLOAD.replace(' ', "")),
        "{body}"
    );
}

#[test]
fn a_secret_is_fetched_at_every_read_and_never_kept() {
    let mut single = Single::new("").with_the_guides_state();
    let path = "/v1/state/secrets/db%2Fpassword";
    single.a.node.curl_unix(path, &[]).expect_status(200);
    for status in [500, 429, 401] {
        single.control_plane.set_faults(&json!({ "endpoint": "secrets", "status": status }));
        let answer = single.a.node.curl_unix(path, &[]);
        assert_eq!(
            (answer.status, answer.json()),
            (503, json!({ "error": "control plane unavailable" })),
            "{status}"
        );
    }
    single.control_plane.clear_faults();
    single.control_plane.stop();
    let answer = single.a.node.curl_unix(path, &[]);
    assert_eq!((answer.status, answer.json()), (503, json!({ "error": "control plane unavailable" })));
    single.a.node.curl_unix("/v1/state/secrets", &[]).expect_status(200);
    single.control_plane.start_again();
    single.a.node.curl_unix(path, &[]).expect_status(200);

    let files =
        single.a.node.host().run(&["grep", "-rlaF", "s3cret-p@ssw0rd", "/var/lib/plexd", "/run/plexd"]);
    assert_eq!(files.stdout, "", "the value is in a file");
}
