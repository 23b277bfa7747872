//! The sidecar's place taken by a program that has its user, its groups and its socket, and wants more than that.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use plexd_e2e::{As, Daemon, Node, wait_until};
use serde_json::{Value, json};

use crate::support::{SOON, Single};

const PASSWORD: &str = "db/password";

/// It, in the place of plexd-api.
struct Hostile {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Hostile {
    /// Kills plexd-api and takes its place.
    #[track_caller]
    fn replace(node: &mut Node) -> Self {
        node.take_api().kill9();
        let host = node.host();
        let mut command = host.command(&host.program("plexd-hostile"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut hostile = Self { child, input, output };
        assert_eq!(hostile.heard(), "ready");
        hostile
    }

    #[track_caller]
    fn heard(&mut self) -> String {
        self.output.next().expect("a line").expect("text")
    }

    /// Has it do something, and returns what it says of it.
    #[track_caller]
    fn does(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("it listens");
        self.heard()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has `who` connect to `api.sock` and stay there without a word.
#[track_caller]
fn client(node: &Node, name: &str, who: As<'_>) -> Daemon {
    let stay = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/plexd/api.sock')\n\
                print('connected', flush=True)\ns.recv(1)\nprint('end', flush=True)";
    let client = node.host().spawn_as(name, who, &["python3", "-c", stay]);
    let log = client.log();
    wait_until(SOON, "its connection", || client.log().len() > log.len());
    client
}

/// Returns the audit records that the control plane has, without their times.
#[track_caller]
fn records(single: &Single) -> Vec<(Value, String, String)> {
    let received = single.control_plane.received(&single.a.id);
    let batches = received["audit"].as_array().cloned().unwrap_or_default();
    let all = batches.iter().flat_map(|batch| batch["body"].as_array().expect("a list").clone());
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    all.map(|record| (record["subject"].clone(), text(&record["object"]["secret"]), text(&record["result"])))
        .collect()
}

#[test]
fn a_hostile_sidecar_gets_no_secret_but_while_a_client_is_connected_who_may_have_it() {
    let mut single = Single::new("").with_the_guides_state();
    // Whoever connects there is told that root listens, and is not shown by that.
    let path = single.a.node.host().path("/run/plexd/roots.sock");
    let _listens = UnixListener::bind(&path).expect("a socket of root's");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("open to all");
    let mut hostile = Hostile::replace(&mut single.a.node);
    let node = &single.a.node;

    let forged = [
        ("nothing", "ended FailedPrecondition"),
        ("claiming", "refused Unproven"),
        ("listener", "refused Unproven"),
        ("pair", "refused Unproven"),
        ("connected /run/plexd/roots.sock", "refused Unproven"),
        ("connected /run/plexd/core.sock", "refused Unproven"),
        ("file /dev/null", "ended FailedPrecondition"),
        // Its own connection is one, and it is what it is.
        ("accepted", "refused NotPermitted"),
        ("connected /run/plexd/api.sock", "refused Unproven"),
    ];
    for (what, expected) in forged {
        assert_eq!(hostile.does(&format!("read {PASSWORD} {what}")), expected, "{what}");
    }
    // The last of them waits to be accepted.
    assert_eq!(hostile.does("accept"), "0");
    assert_eq!(hostile.does("forget"), "forgotten");

    let member = client(node, "member", As::user("plexdt-api"));
    assert_eq!(hostile.does("accept"), "0");
    assert_eq!(hostile.does(&format!("read {PASSWORD} client 0")), "refused NotPermitted");

    // What remains to it: whatever secret it likes, for as long as somebody who may read stays connected.
    let both = client(node, "both", As::user("plexdt-both"));
    assert_eq!(hostile.does("accept"), "1");
    for (key, value) in
        [(PASSWORD, "s3cret-p@ssw0rd"), (PASSWORD, "s3cret-p@ssw0rd"), ("tls/server.key", "PEM")]
    {
        assert_eq!(hostile.does(&format!("read {key} client 1")), format!("secret {value}"));
    }
    drop(both);
    wait_until(SOON, "the end of it", || {
        let came = hostile.does(&format!("read {PASSWORD} client 1"));
        if came == "refused Unproven" { Ok(()) } else { Err(came) }
    });
    drop(member);

    // The records name whom core saw.
    let id = |name: &str| {
        let output = node.host().run(&["id", "-u", name]).succeeded().stdout;
        output.trim().parse::<u64>().expect("a number")
    };
    let (both, member, itself) = (id("plexdt-both"), id("plexdt-api"), id("plexd-api"));
    let all = wait_until(SOON, "the records", || {
        let found = records(&single);
        let enough = found.iter().filter(|(.., result)| result == "success").count() == 3
            && found.iter().any(|(subject, ..)| subject["uid"] == member);
        if enough { Ok(found) } else { Err(format!("{found:?}")) }
    });
    for (subject, key, result) in all {
        match result.as_str() {
            "success" => assert_eq!(subject["uid"], both, "{key}"),
            "denied" => assert!(
                subject == json!({ "via": "unknown" })
                    || subject["uid"] == member
                    || subject["uid"] == itself,
                "{key}: {subject}"
            ),
            other => panic!("{other}: {key} {subject}"),
        }
    }
    let log = single.a.node.core().log();
    assert!(log.contains("a secret was asked for without proof of a client"), "{log}");
}

/// What a process tries with the sidecar's user and groups. It prints what came of each.
const TRIES: &str = r#"
import ctypes, errno, os, signal, sys

core, data = int(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)

def tried(name, what):
    try:
        print(name, what())
    except OSError as error:
        print(name, errno.errorcode[error.errno])

def ptrace(request):
    if libc.ptrace(request, core, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return "done"

tried("list", lambda: os.listdir(data))
tried("identity", lambda: open(data + "/identity.json").read())
tried("write", lambda: open(data + "/mine", "w"))
tried("memory", lambda: open(f"/proc/{core}/mem", "rb").read(1))
tried("maps", lambda: open(f"/proc/{core}/maps").read())
tried("environment", lambda: open(f"/proc/{core}/environ").read())
tried("descriptors", lambda: os.listdir(f"/proc/{core}/fd"))
tried("attach", lambda: ptrace(16))
tried("seize", lambda: ptrace(0x4206))
for name in ("SIGTERM", "SIGKILL", "SIGHUP", "SIGSTOP"):
    tried(name, lambda: os.kill(core, getattr(signal, name)))
tried("core.sock", lambda: os.unlink("/run/plexd/core.sock"))
tried("proof.sock", lambda: os.rename("/run/plexd/proof.sock", "/run/plexd/mine.sock"))
tried("api.sock", lambda: os.unlink("/run/plexd/api.sock"))
tried("new", lambda: open("/run/plexd/new", "w"))
tried("root", lambda: os.setuid(0))
tried("user", lambda: os.setuid(os.stat(data).st_uid))
tried("groups", lambda: os.setgroups([0]))
"#;

#[test]
fn with_the_sidecars_user_and_groups_nothing_of_core_is_in_reach() {
    let mut single = Single::new("").with_the_guides_state();
    let core = single.a.node.core().pid().to_string();
    let node = &single.a.node;
    let host = node.host();
    let sidecar = As::user("plexd-api");
    let output = host.run_as(sidecar, &["python3", "-c", TRIES, &core, "/var/lib/plexd"]).succeeded().stdout;
    let mut count = 0;
    for line in output.lines() {
        let (what, came) = line.split_once(' ').expect("two words");
        assert!(matches!(came, "EACCES" | "EPERM"), "{what}: {came}");
        count += 1;
    }
    assert_eq!(count, 20, "{output}");
    // Netlink it can open, and change nothing by it, nor see of WireGuard and nftables.
    for line in [
        &["ip", "link", "set", "plexd0", "down"][..],
        &["ip", "link", "del", "plexd0"],
        &["ip", "addr", "add", "192.0.2.1/32", "dev", "plexd0"],
        &["ip", "route", "add", "192.0.2.0/24", "dev", "plexd0"],
        &["wg", "show", "plexd0", "private-key"],
        &["nft", "list", "table", "inet", "plexd"],
        &["nft", "delete", "table", "inet", "plexd"],
    ] {
        let output = host.run_as(sidecar, line);
        assert!(!output.is_success(), "{line:?}: {output}");
    }
    for command in [&["status"][..], &["deregister", "--force"]] {
        let output = node.ctl_as(sidecar, command);
        assert_eq!(output.code, Some(5), "{output}");
        let program = host.program("plexd-ctl");
        let line = [&[program.as_str(), "--socket", "/run/plexd/core.sock"], command].concat();
        let through_its_own = host.run_as(sidecar, &line);
        assert!(!through_its_own.is_success(), "{through_its_own}");
    }
    assert_eq!(node.status()["identity"]["enrolment"], "enrolled");
    assert!(single.a.node.core().is_running());
}

#[test]
fn a_hostile_sidecar_does_not_exhaust_core() {
    let mut single = Single::new("").with_the_guides_state();
    let before = single.a.node.core().memory().resident;
    let mut hostile = Hostile::replace(&mut single.a.node);
    let check = |single: &mut Single, what: &str| {
        // Core answers, hears of changes, and has descriptors left.
        assert_eq!(single.a.node.status()["identity"]["enrolment"], "enrolled", "{what}");
        let now = single.a.node.core().memory().resident;
        assert!(now < before + 96 * 1024, "{what}: {before} KiB before, {now} KiB now");
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", single.a.node.core().pid()));
        let descriptors = descriptors.expect("core runs").count();
        assert!(descriptors < 300, "{what}: {descriptors} descriptors");
    };
    for (command, expected) in [
        ("connections core.sock 1000", "held"),
        ("connections proof.sock 1000", "held"),
        ("let go", "gone"),
        ("streams 8", "4 opened"),
        ("let go", "gone"),
        ("giant", "ended"),
        ("proofs 30", "sent"),
    ] {
        let came = hostile.does(command);
        assert!(came.starts_with(expected), "{command}: {came}");
        check(&mut single, command);
    }
    drop(hostile);
    single.a.node.start_api();
    single.wait_api("/v1/state", |state| state["data_keys"].as_array().map(Vec::len) == Some(2));
    single.a.node.curl_unix("/v1/state/secrets/db%2Fpassword", &[]).expect_status(200);
}

#[test]
fn clients_see_the_end_of_their_connections_when_the_sidecar_is_killed() {
    let mut single = Single::new("").with_the_guides_state();
    single.control_plane.set_faults(&json!({ "endpoint": "secrets", "latency_ms": 60_000 }));
    let asked = single.control_plane.requests("secrets");
    let url = "http://localhost/v1/state/secrets/db%2Fpassword";
    let line = ["curl", "-sS", "--unix-socket", "/var/run/plexd/api.sock", url];
    let mut curl = single.a.node.host().spawn_as("curl", As::user("plexdt-both"), &line);
    wait_until(SOON, "the request", || single.control_plane.requests("secrets") > asked);
    // Core has a copy of the client's socket now.
    single.a.node.take_api().kill9();
    wait_until(Duration::from_secs(5), "the end of curl", || !curl.is_running());
}
