//! Nothing that was acknowledged is lost: when processes are killed ([`kills`]), and on disks that are full or take no
//! writes, which are used again by themselves once they do.

#[expect(clippy::unwrap_used, reason = "of threads and locks of tests")]
mod kills;

use plexd_e2e::{ControlPlane, HttpAnswer, Lab, Node, wait_until};
use serde_json::{Value, json};

use crate::support::{Member, SOON, Single, wait_problem, wait_status};

/// Returns an answer of an API that hears core.
fn up_to_date(node: &Node) -> Result<HttpAnswer, String> {
    let answer = node.try_curl_unix(None, "/v1/state/report", &[]).map_err(|output| output.to_string())?;
    if answer.status == 200 && answer.header("plexd-state-age").is_none() {
        Ok(answer)
    } else {
        Err(answer.to_string())
    }
}

/// An enrolled node whose data directory is a file system of 16 MiB.
fn on_a_small_disk() -> Single {
    let lab = Lab::new(&["cp", "a"]);
    let control_plane = ControlPlane::start(lab.host("cp"));
    let node = Node::new(lab.host("a"), &control_plane, "node_api:\n  report_debounce: 200ms\n");
    let host = node.host();
    host.run(&["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "plexd-test", "/var/lib/plexd"])
        .expect_success();
    host.run(&["chown", "plexd-core:plexd-core", "/var/lib/plexd"]).expect_success();
    let a = Member::enrol(node, &control_plane);
    Single::of(a, control_plane, lab)
}

/// Puts 600 KB under `key`; returns status and error or version.
fn put_large(node: &Node, key: &str) -> (u16, Value) {
    let body = format!(r#"{{"content_type":"text/plain","payload":"{}"}}"#, "x".repeat(600_000));
    let file = node.host().directory().join("large.json");
    std::fs::write(&file, body).expect("the test may write");
    let answer = node.curl_unix(
        &format!("/v1/state/report/{key}"),
        &["-X", "PUT", "--data-binary", &format!("@{}", file.display())],
    );
    let json = answer.json();
    (answer.status, if answer.status == 200 { json["version"].clone() } else { json["error"].clone() })
}

#[track_caller]
fn wait_healthy(node: &Node) {
    wait_status(node, "a disk that takes reports", |status| {
        !status["problems"].to_string().contains("reports cannot be stored")
    });
}

#[test]
fn a_full_disk_loses_nothing_says_507_and_is_used_again_once_there_is_room() {
    let mut single = on_a_small_disk();
    assert_eq!(single.put_report("health", "1"), 1);
    assert_eq!(put_large(&single.a.node, "large"), (200, json!(1)));
    let until_full =
        "dd if=/dev/zero of=/var/lib/plexd/ballast bs=4096 2>&1; ls -l /var/lib/plexd; df /var/lib/plexd";
    let filled = single.a.node.host().shell(None, until_full);
    for restarted in [false, true] {
        if restarted {
            single.a.node.take_core().kill9();
            // The disk is as full as before.
            single.a.node.host().shell(None, until_full);
            single.a.node.start_core();
            wait_until(SOON, "the API", || up_to_date(&single.a.node));
        }
        let node = &single.a.node;
        let full = (507, json!("insufficient storage"));
        wait_until(SOON, "the end of what redb had in stock", || {
            let answer = put_large(node, "more");
            if answer == full { Ok(()) } else { Err(format!("{answer:?} {filled}")) }
        });
        assert_eq!(put_large(node, "large"), full, "{filled}");
        wait_problem(node, &["reports cannot be stored", "No space left", "free space"]);
        let health = node.curl_unix("/v1/state/report/health", &[]).with_status(200);
        assert_eq!(health.json()["version"], 1);
        assert_eq!(node.curl_unix("/v1/state/report/large", &[]).with_status(200).json()["version"], 1);
    }
    let node = &single.a.node;
    node.host().run(&["rm", "/var/lib/plexd/ballast"]).expect_success();
    // Whether somebody writes or not.
    wait_healthy(node);
    assert_eq!(put_large(node, "large"), (200, json!(2)));
    single.put_report("health", "2");
    wait_status(&single.a.node, "nothing pending", |status| status["reports"]["pending"] == 0);
    single.wait_synced(|reports| reports["large"]["version"] == 2 && reports["health"]["version"] == 2);
}

#[test]
fn a_read_only_disk_is_served_from_says_500_and_is_used_again_once_it_can_be_written() {
    let mut single = on_a_small_disk();
    assert_eq!(single.put_report("health", "1"), 1);
    assert_eq!(single.put_report("kept", "[1, 2]"), 1);
    single.wait_synced(|reports| reports["kept"]["version"] == 1);
    // Killed, so that there is something to repair. A file system with files open for writing cannot become read-only.
    single.a.node.take_core().kill9();
    let remount = |node: &Node, how: &str| {
        node.host().run(&["mount", "-o", &format!("remount,{how}"), "/var/lib/plexd"]).expect_success();
    };
    remount(&single.a.node, "ro");
    single.a.node.start_core();
    wait_until(SOON, "the API", || up_to_date(&single.a.node));
    let node = &single.a.node;
    for _ in 0..2 {
        let body = r#"{"content_type":"text/plain","payload":2}"#;
        let put = node.curl_unix("/v1/state/report/health", &["-X", "PUT", "-d", body]).with_status(500);
        assert_eq!(put.json(), json!({ "error": "storage failure" }));
        let delete = node.curl_unix("/v1/state/report/kept", &["-X", "DELETE"]).with_status(500);
        assert_eq!(delete.json(), json!({ "error": "storage failure" }));
        assert_eq!(
            node.curl_unix("/v1/state/report/kept", &[]).with_status(200).json()["payload"],
            json!([1, 2])
        );
    }
    wait_problem(node, &["reports cannot be stored", "Read-only file system", "writable"]);
    // What the control plane wants is followed all the same.
    let data = json!([{ "key": "motd", "content_type": "text/plain", "payload": "hello", "version": 1,
                        "updated_at": "2026-01-15T10:30:00Z" }]);
    single.control_plane.set_state(&single.a.id, &json!({ "data": data }));
    single.wait_data("motd");
    remount(node, "rw");
    wait_healthy(node);
    assert_eq!(single.put_report("health", "2"), 2);
    single.wait_synced(|reports| reports["health"]["version"] == 2 && reports["kept"]["version"] == 1);
    // The state, too, is on disk again once something about it is new.
    single.control_plane.set_state(&single.a.id, &json!({ "metadata": { "region": "eu" } }));
    single.wait_api("/v1/state/metadata", |metadata| metadata["region"] == "eu");
    single.a.node.take_core().kill9();
    single.control_plane.stop();
    single.a.node.start_core();
    wait_until(SOON, "the API", || up_to_date(&single.a.node));
    single.wait_data("motd");
}
