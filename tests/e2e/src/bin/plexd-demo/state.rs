//! The Local Node API: the guide's own lines, typed by users with and without its groups.

use std::time::Duration;

use plexd_e2e::{guide, wait_until};
use serde_json::{Value, json};

use crate::stage::{begin, check, remark, run, run_as};
use crate::tour::Demo;

/// How long a change may take to arrive.
const SOON: Duration = Duration::from_secs(15);

/// In group `plexd`.
const USER: &str = "plexdt-api";

/// In groups `plexd` and `plexd-secrets`.
const TRUSTED: &str = "plexdt-both";

/// In neither.
const OUTSIDER: &str = "plexdt-none";

/// Shows metadata and data.
pub(crate) fn show_reads(demo: &Demo) {
    begin("State read on node a, by a user in group plexd: the guide's own lines");
    let control_plane = &demo.control_plane;
    let time = "2025-06-01T12:34:56Z";
    let nginx = json!({
        "key": "nginx.conf", "content_type": "text/plain", "payload": "server { listen 80; }", "version": 3,
        "updated_at": time,
    });
    let routes = json!({
        "key": "routes.json", "content_type": "application/json",
        "payload": { "default_backend": "10.0.0.5:8080" }, "version": 1, "updated_at": time,
    });
    let metadata = json!({ "node_id": demo.a_id, "region": "us-west-2", "role": "gateway" });
    remark("(the control plane is given metadata, data and secrets for a)");
    control_plane.set_state(&demo.a_id, &json!({ "metadata": metadata, "data": [nginx, routes] }));
    control_plane.set_secret(&demo.a_id, "tls%2Fserver.key", "-----BEGIN PRIVATE KEY-----");
    control_plane.set_secret(&demo.a_id, "db%2Fpassword", "changeme");
    control_plane.set_secret(&demo.a_id, "db%2Fpassword", "s3cret-p@ssw0rd");
    wait_until(SOON, "the state on a", || {
        let state = demo.a.curl_unix("/v1/state", &[]);
        let ready = state.status == 200
            && state.body.contains("nginx.conf")
            && state.body.contains("\"db/password\",\"version\":2");
        if ready { Ok(()) } else { Err(state.to_string()) }
    });

    let state = guide_line(demo, guide::STATE);
    check(
        "the summary has it all",
        state["metadata"] == metadata && state["data_keys"].as_array().map(Vec::len) == Some(2),
    );
    check("metadata is as set", guide_line(demo, guide::METADATA) == metadata);
    let region = json!({ "key": "region", "value": "us-west-2" });
    check("so is a single key", guide_line(demo, guide::METADATA_REGION) == region);
    let list = json!([
        { "key": "nginx.conf", "version": 3, "content_type": "text/plain" },
        { "key": "routes.json", "version": 1, "content_type": "application/json" },
    ]);
    check("data is listed without payloads", guide_line(demo, guide::DATA) == list);
    check("an entry has its payload", guide_line(demo, guide::DATA_ROUTES) == routes);
}

/// Types a line of the guide as the ordinary user and returns its JSON.
fn guide_line(demo: &Demo, line: &str) -> Value {
    run_as(demo.a.host(), USER, line).succeeded().json()
}

/// Shows secrets, to those who may read them and to those who may not.
pub(crate) fn show_secrets(demo: &Demo) {
    begin("Secrets: everybody in plexd sees their names, only who is also in plexd-secrets their values");
    let names = guide_line(demo, guide::SECRETS);
    check("the names are listed", names.as_array().map(Vec::len) == Some(2));
    let refused = guide_line(demo, guide::SECRET_PASSWORD);
    check("without plexd-secrets, no value", refused == json!({ "error": "forbidden" }));
    let secret = run_as(demo.a.host(), TRUSTED, guide::SECRET_PASSWORD).succeeded().json();
    let expected = json!({ "key": "db/password", "value": "s3cret-p@ssw0rd", "version": 2 });
    check("with it, the value", secret == expected);
}

/// Shows creation, update and a stale update of a report.
pub(crate) fn show_reports(demo: &Demo) {
    begin("A report: created, updated with If-Match, and a stale update refused");
    let created = guide_line(demo, guide::REPORT_CREATE);
    check("it is created as version 1", created["version"] == 1 && created["payload"]["status"] == "healthy");
    let updated = guide_line(demo, guide::REPORT_UPDATE);
    check(
        "it is updated to version 2",
        updated["version"] == 2 && updated["payload"]["status"] == "degraded",
    );
    let stale = guide_line(demo, guide::REPORT_UPDATE);
    check("who has the old version is told", stale == json!({ "error": "version conflict" }));
    check("it reads as written", guide_line(demo, guide::REPORT_READ) == updated);
    let list = guide_line(demo, guide::REPORT_LIST);
    check("it is listed", list == json!([{ "key": "health", "version": 2 }]));
}

/// Shows the report at the control plane.
pub(crate) fn show_sync(demo: &Demo) {
    begin("The report arrives at the control plane");
    wait_for_report(demo, |health| health["version"] == 2);
    let received = run(demo.control_plane.host(), &received(demo)).succeeded().json();
    check("it has the newest version", received["health"]["payload"]["status"] == "degraded");
}

fn received(demo: &Demo) -> String {
    format!("curl -s http://127.0.0.1:8444/admin/nodes/{}/received | jq .reports_current", demo.a_id)
}

fn wait_for_report(demo: &Demo, arrived: impl Fn(&Value) -> bool) {
    wait_until(SOON, "the report at the control plane", || {
        let received = demo.control_plane.received(&demo.a_id);
        let reports = &received["reports_current"];
        if arrived(&reports["health"]) { Ok(()) } else { Err(reports.to_string()) }
    });
}

/// Shows the deletion of the report, on the node and at the control plane.
pub(crate) fn show_deletion(demo: &Demo) {
    begin("The report is deleted, here and at the control plane");
    let deleted = run_as(demo.a.host(), USER, guide::REPORT_DELETE).succeeded();
    check("204 No Content, with an empty body", deleted.stdout.is_empty());
    check("it is gone", guide_line(demo, guide::REPORT_READ) == json!({ "error": "not found" }));
    wait_for_report(demo, Value::is_null);
    run(demo.control_plane.host(), &received(demo)).expect_success();
    check("the control plane knows", true);
}

/// Shows the TCP listener.
pub(crate) fn show_tcp(demo: &Demo) {
    begin("The same over TCP, with the bearer token, and not without");
    let host = demo.a.host();
    let state = run(host, guide::TCP_STATE).succeeded().json();
    check("with the token, the state", state["metadata"]["region"] == "us-west-2");
    let written = run(host, guide::TCP_REPORT).succeeded().json();
    check("and writing, above the deleted version", written["version"].as_u64() > Some(2));
    let refused = run(host, "curl -s -w '\\n%{http_code}\\n' http://127.0.0.1:9100/v1/state").succeeded();
    check("without it, 401 unauthorized", refused.stdout == "{\"error\":\"unauthorized\"}\n401\n");
    let refused =
        run(host, "curl -s -H 'Authorization: Bearer guessed' http://127.0.0.1:9100/v1/state").succeeded();
    check("nor with a wrong one", refused.json() == json!({ "error": "unauthorized" }));
}

/// Shows that those outside the groups get nothing.
pub(crate) fn show_outsiders(demo: &Demo) {
    begin("A user outside the groups gets nothing");
    let host = demo.a.host();
    run_as(host, OUTSIDER, "id").expect_success();
    run_as(host, OUTSIDER, "ls -l /run/plexd/").expect_success();
    let verbose = format!("{} -v 2>&1", guide::CONNECT);
    let refused = run_as(host, OUTSIDER, &verbose);
    let denied = refused.stdout.contains("Permission denied") && refused.code == Some(7);
    check("the API's socket is closed to them", denied);
    let refused = run_as(host, OUTSIDER, "plexd-ctl status");
    check("so is plexd-core's (plexd-ctl: exit code 5)", refused.code == Some(5));
    let refused = run_as(host, USER, "plexd-ctl status");
    check("also to those who are in plexd only", refused.code == Some(5));
}
