//! Giving a node's identity up, seen from outside: nothing of it is left in the kernel, on disk or at the control plane,
//! and the node can join again.

use std::fs;
use std::thread;
use std::time::Duration;

use plexd_e2e::{As, ControlPlane, Host, Node, wait_until};
use serde_json::{Value, json};

use crate::support::{Mesh, SOON, Single, wait_problem, wait_status};

const DATA: &str = "/var/lib/plexd";

/// What a node without an identity keeps.
const EMPTY: [&str; 3] = ["format", "reports.redb", "state.redb"];

/// Longest time that a stop may take that deregisters in vain: that, and the stop itself.
const STOP: Duration = Duration::from_secs(20);

fn files(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.path(DATA)).expect("the data directory is there");
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Returns all that must not be found any more: the private key and the node secret key.
fn secrets(host: &Host) -> Vec<String> {
    let read = |name: &str| {
        let path = host.path(DATA).join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let identity: Value = serde_json::from_str(&read("identity.json")).expect("it is JSON");
    let secret = identity["node_secret_key"].as_str().expect("it has a credential").to_owned();
    vec![read("wireguard.key").trim().to_owned(), secret]
}

fn mesh_in_kernel(host: &Host) -> (bool, bool, bool) {
    let link = host.run(&["ip", "link", "show", "dev", "plexd0"]).is_success();
    let table = host.run(&["nft", "list", "tables"]).succeeded().stdout.contains("table inet plexd");
    let routes = host.run(&["ip", "route", "show", "table", "all"]).succeeded().stdout;
    (link, table, routes.contains("plexd0"))
}

/// Checks that nothing of the identity is left on the node.
fn assert_gone(node: &Node, secrets: &[String]) {
    let host = node.host();
    assert_eq!(mesh_in_kernel(host), (false, false, false), "interface, table, routes");
    assert_eq!(files(host), EMPTY);
    for name in EMPTY {
        let bytes = fs::read(host.path(DATA).join(name)).expect("it can be read");
        for secret in secrets {
            assert!(
                !bytes.windows(secret.len()).any(|window| window == secret.as_bytes()),
                "a key in {name}"
            );
        }
    }
    let status = node.status();
    assert_eq!(status["identity"]["enrolment"], "waiting_for_token", "{status}");
    assert_eq!(status["identity"]["node_id"], Value::Null);
    assert_eq!(status["control_plane"]["last_event_id"], Value::Null);
    wait_problem(node, &["plexd-ctl join"]);
    wait_until(SOON, "an answer of the API that there is no node", || {
        let answer = node.curl_unix("/v1/state", &[]);
        let is_told = answer.status == 503 && answer.json() == json!({ "error": "node not registered" });
        if is_told { Ok(()) } else { Err(answer) }
    });
}

/// Enrols the node once more; returns its new id.
fn join(node: &Node, control_plane: &ControlPlane) -> String {
    node.host().write("/etc/plexd/token", 0o600, control_plane.token());
    let joined = node.ctl_json(&["join", "--token-file", "/etc/plexd/token"]);
    joined["node_id"].as_str().expect("it has an id").to_owned()
}

fn listed(control_plane: &ControlPlane) -> usize {
    let nodes = control_plane.admin("GET", "/admin/nodes", None);
    nodes["nodes"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_node_that_deregisters_leaves_nothing_but_its_reports_and_joins_again() {
    let mut mesh = Mesh::up();
    let body = r#"{"content_type":"text/plain","payload":"kept"}"#;
    let put = ["-X", "PUT", "-d", body];
    mesh.a.node.curl_unix("/v1/state/report/health", &put).expect_status(200);
    let host = mesh.a.node.host();
    assert_eq!(mesh_in_kernel(host), (true, true, true));
    let mut secrets = secrets(host);
    secrets.extend(mesh.a.wg("preshared-keys").split_whitespace().nth(1).map(str::to_owned));
    let output = mesh.a.node.ctl(&["deregister"]).succeeded();
    assert_eq!(output.stdout, format!("{} is deregistered; to enrol again: plexd-ctl join\n", mesh.a.id));
    assert_gone(&mesh.a.node, &secrets);
    assert_eq!(listed(&mesh.control_plane), 1);
    mesh.b.wait_wg_peers(0);
    let again = mesh.a.node.ctl(&["deregister"]);
    assert_eq!((again.code, again.stdout.as_str()), (Some(3), ""), "{again}");
    assert!(mesh.a.node.core().is_running() && mesh.a.node.api().is_running());

    // A restart does not change that: the token file is still there, but its token is used.
    mesh.a.node.take_core().kill9();
    mesh.a.node.start_core();
    wait_problem(&mesh.a.node, &["plexd-ctl join"]);
    assert_eq!(mesh_in_kernel(mesh.a.node.host()), (false, false, false));

    let first = std::mem::take(&mut mesh.a.id);
    mesh.a.id = join(&mesh.a.node, &mesh.control_plane);
    assert_ne!(mesh.a.id, first);
    let status = wait_status(&mesh.a.node, "health", |status| status["health"] == "healthy");
    mesh.a.mesh_ip = status["identity"]["mesh_ip"].as_str().unwrap_or_default().to_owned();
    mesh.set_rules(&json!([mesh.allow(8080)]));
    mesh.a.wait_peers_up(1);
    wait_until(SOON, "the report under the new identity", || {
        mesh.control_plane.received(&mesh.a.id)["reports_current"]["health"]["version"] == 1
    });
    let report = mesh.a.node.curl_unix("/v1/state/report/health", &put).with_status(200).json();
    assert_eq!(report["version"], 2, "versions go on: {report}");
}

#[test]
fn a_purge_leaves_no_report_either() {
    let single = Single::new("").with_the_guides_state();
    let node = &single.a.node;
    for _ in 0..3 {
        single.put_report("health", r#""hunter2""#);
    }
    let mut secrets = secrets(node.host());
    secrets.push("hunter2".to_owned());
    node.host().write("/var/lib/plexd/wireguard.key.damaged-1", 0o600, "an older key");
    let done = node.ctl_json(&["deregister", "--purge"]);
    let expected =
        json!({ "node_id": single.a.id, "control_plane": "confirmed", "purged": true, "remains": [] });
    assert_eq!(done, expected);
    assert_gone(node, &secrets);

    let id = join(node, &single.control_plane);
    wait_status(node, "health", |status| status["health"] == "healthy");
    let answer = wait_until(SOON, "the node of the next identity", || {
        let answer = node.curl_unix("/v1/state", &[]);
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer) }
    });
    assert_eq!(answer["report_keys"], json!([]), "{answer}");
    assert_eq!(single.put_report("health", "1"), 1, "versions begin anew");
    wait_until(SOON, "the report", || {
        single.control_plane.received(&id)["reports_current"]["health"].is_object()
    });
}

#[test]
fn without_the_control_plane_nothing_changes_unless_it_is_forced() {
    let mut single = Single::new("");
    single.control_plane.stop();
    let node = &single.a.node;
    let secrets = secrets(node.host());
    let before = files(node.host());
    for arguments in [&["deregister"][..], &["deregister", "--purge"]] {
        let output = node.ctl(arguments);
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output}");
        assert_eq!(output.stderr.lines().count(), 1, "{output}");
        let says = ["nothing has changed", "cannot reach the control plane", "plexd-ctl deregister --force"];
        assert!(says.iter().all(|words| output.stderr.contains(words)), "{output}");
    }
    assert_eq!(files(node.host()), before);
    assert!(mesh_in_kernel(node.host()).1, "the policy is there");
    assert_eq!(node.status()["identity"]["enrolment"], "enrolled");
    // Who may not administer may not do this either.
    let nobody = As::user("plexdt-none");
    let output = node.ctl_as(nobody, &["deregister", "--force"]);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr.contains("plexd-admin"), "{output}");
    assert_eq!(files(node.host()), before);

    let output = node.ctl(&["deregister", "--force"]).succeeded();
    assert!(output.stdout.contains("the control plane still lists it: remove it there"), "{output}");
    assert_gone(node, &secrets);
    single.control_plane.start_again();
    assert_eq!(listed(&single.control_plane), 1);
}

#[test]
fn a_node_killed_while_it_deregisters_is_still_one_or_is_none_and_never_half_of_one() {
    let mut single = Single::new("");
    for (round, delay) in [0, 4, 8, 12, 16, 24, 40].into_iter().enumerate() {
        let node = &mut single.a.node;
        let secrets = secrets(node.host());
        let mut command = node.host().spawn("deregister", &[&node.host().program("plexd-ctl"), "deregister"]);
        thread::sleep(Duration::from_millis(delay));
        node.take_core().kill9();
        command.wait(STOP);
        node.start_core();
        let is_enrolled = node.host().path(DATA).join("identity.json").exists();
        assert_eq!(node.status()["identity"]["node_id"].is_string(), is_enrolled, "round {round}");
        if is_enrolled {
            assert!(node.host().path(DATA).join("wireguard.key").exists());
            node.ctl(&["deregister"]).expect_success();
        }
        wait_until(SOON, "a node that is gone", || {
            let files = files(node.host());
            // The token file is still there, and a key is made to try its token with.
            let left: Vec<_> = files.iter().filter(|name| name.as_str() != "wireguard.key").collect();
            if left == EMPTY.iter().collect::<Vec<_>>() { Ok(()) } else { Err(format!("{files:?}")) }
        });
        let key = fs::read_to_string(node.host().path(DATA).join("wireguard.key")).unwrap_or_default();
        assert_ne!(key.trim(), secrets[0], "round {round}: the key of the identity that is no more");
        assert_eq!(mesh_in_kernel(node.host()), (false, false, false), "round {round}");
        join(node, &single.control_plane);
        node.wait_enrolled();
        wait_until(SOON, "the mesh", || mesh_in_kernel(node.host()) == (true, true, true));
    }
}

#[test]
fn a_departure_that_was_broken_off_is_finished_by_the_next_start() {
    let mut single = Single::new("");
    single.put_report("health", "1");
    let secrets = secrets(single.a.node.host());
    single.a.node.take_core().kill9();
    let host = single.a.node.host();
    assert!(mesh_in_kernel(host).1, "the policy stays");
    let mark = host.path(DATA).join("deregistering");
    host.write("/var/lib/plexd/deregistering", 0o600, "identity\n");
    let owner = host.path(DATA).display().to_string();
    host.run(&["chown", "--reference", &owner, &mark.display().to_string()]).expect_success();
    fs::remove_file(host.path("/etc/plexd/bootstrap-token")).expect("it was there");
    single.a.node.start_core();
    assert_gone(&single.a.node, &secrets);
    assert_eq!(single.a.node.status()["reports"]["entries"], 1);
}

#[test]
fn a_stop_that_deregisters_leaves_nothing_and_without_the_control_plane_the_node_stays() {
    let mut single = Single::new("deregister_on_shutdown: true\n");
    let secrets = secrets(single.a.node.host());
    single.control_plane.stop();
    let core = single.a.node.take_core();
    assert_eq!(core.terminate().code(), Some(0));
    assert!(files(single.a.node.host()).contains(&"identity.json".to_owned()));
    assert!(mesh_in_kernel(single.a.node.host()).1);
    single.control_plane.start_again();
    single.a.node.start_core();
    wait_status(&single.a.node, "the same node", |status| {
        status["identity"]["node_id"] == single.a.id.as_str() && status["health"] == "healthy"
    });

    assert_eq!(single.a.node.take_core().terminate().code(), Some(0));
    assert_eq!(listed(&single.control_plane), 0);
    assert_eq!(files(single.a.node.host()), EMPTY);
    assert_eq!(mesh_in_kernel(single.a.node.host()), (false, false, false));
    fs::remove_file(single.a.node.host().path("/etc/plexd/bootstrap-token")).expect("it was there");
    single.a.node.start_core();
    assert_gone(&single.a.node, &secrets);
    assert_ne!(join(&single.a.node, &single.control_plane), single.a.id);
    wait_until(SOON, "the mesh", || mesh_in_kernel(single.a.node.host()) == (true, true, true));
}
