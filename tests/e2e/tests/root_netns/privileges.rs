//! What each process may, and who may talk to it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::unistd::{Group, User};
use plexd_e2e::As;

use crate::support::Single;

/// `CAP_NET_ADMIN` is bit 12.
const NET_ADMIN: &str = "0000000000001000";

const NOTHING: &str = "0000000000000000";

fn uid(name: &str) -> u32 {
    User::from_name(name).unwrap().unwrap().uid.as_raw()
}

fn gid(name: &str) -> u32 {
    Group::from_name(name).unwrap().unwrap().gid.as_raw()
}

/// Returns a field of `/proc/PID/status`, its values with single spaces.
fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn each_process_has_its_user_and_only_the_capabilities_it_needs() {
    let mut single = Single::new("");
    let node = &mut single.a.node;
    let table = [("plexd-core", node.core().pid(), NET_ADMIN), ("plexd-api", node.api().pid(), NOTHING)];
    for (name, pid, capabilities) in table {
        let four = |id: u32| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join(" ");
        assert_eq!(field(pid, "Uid"), four(uid(name)), "{name}");
        assert_eq!(field(pid, "Gid"), four(gid(name)), "{name}");
        assert_eq!(field(pid, "Groups"), "", "{name} has supplementary groups");
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(field(pid, set), capabilities, "{name}: {set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(pid, set), NOTHING, "{name}: {set}");
        }
        assert_eq!(field(pid, "NoNewPrivs"), "1", "{name}");
        // Every thread, not only the first.
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let tid: u32 = task.unwrap().file_name().to_str().unwrap().parse().unwrap();
            assert_eq!(field(tid, "CapPrm"), capabilities, "{name}: thread {tid}");
            assert_eq!(field(tid, "Uid"), four(uid(name)), "{name}: thread {tid}");
        }
        // A process that may not be dumped belongs to root in /proc.
        let owner = fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
        assert_eq!(owner, 0, "{name} can be dumped or traced by its own user");
    }
    let status = node.status();
    assert_eq!(status["capabilities"], serde_json::json!(["CAP_NET_ADMIN"]));
}

#[test]
fn every_socket_has_its_owner_and_mode() {
    let single = Single::new("");
    let host = single.a.node.host();
    let table = [
        ("/run/plexd/core.sock", "plexd-core", "plexd-api"),
        ("/run/plexd/proof.sock", "plexd-core", "plexd-api"),
        ("/run/plexd/admin.sock", "plexd-core", "plexd-admin"),
        ("/run/plexd/api.sock", "plexd-api", "plexd"),
    ];
    for (socket, user, group) in table {
        let metadata = fs::metadata(host.path(socket)).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o7777, 0o660, "{socket}");
        assert_eq!((metadata.uid(), metadata.gid()), (uid(user), gid(group)), "{socket}");
    }
    let folder = fs::metadata(host.path("/run/plexd")).unwrap();
    assert_eq!((folder.uid(), folder.mode() & 0o7777), (0, 0o755), "nobody else may replace a socket");

    let data = fs::metadata(host.path("/var/lib/plexd")).unwrap();
    assert_eq!((data.uid(), data.mode() & 0o7777), (uid("plexd-core"), 0o700));
    for entry in fs::read_dir(host.path("/var/lib/plexd")).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        assert_eq!(metadata.uid(), uid("plexd-core"), "{:?}", entry.path());
        if metadata.is_file() {
            assert_eq!(metadata.mode() & 0o7777, 0o600, "{:?}", entry.path());
        }
    }
}

#[test]
fn only_administrators_administer() {
    let single = Single::new("");
    let node = &single.a.node;
    let nobody = As::user("plexdt-none");
    let refused = [
        nobody,
        As::user("plexdt-api"),
        As::user("plexdt-both"),
        As::user("plexd-api"),
        nobody.with_groups(&["plexd-api"]),
    ];
    for who in refused {
        let output = node.ctl_as(who, &["status"]);
        assert_eq!(output.code, Some(5), "{who:?}: {output}");
        assert_eq!(output.stderr.lines().count(), 1, "one line: {output}");
        assert!(output.stderr.contains("plexd-admin"), "it says who may: {output}");
    }
    node.ctl_as(nobody.with_groups(&["plexd-admin"]), &["status"]).expect_success();
    node.ctl(&["status"]).expect_success();
}

#[test]
fn nobody_but_the_sidecar_talks_to_core() {
    let single = Single::new("");
    let host = single.a.node.host();
    // The file's mode is the first gate. plexd-ctl speaks gRPC to whatever socket it is given: the second gate, the
    // server's, shows by whom it refuses.
    let call = |who: As<'_>| {
        let program = host.program("plexd-ctl");
        host.run_as(who, &[&program, "--socket", "/run/plexd/core.sock", "status"])
    };
    for who in [As::user("plexdt-both"), As::user("plexdt-none").with_groups(&["plexd", "plexd-admin"])] {
        let output = call(who);
        assert_eq!(output.code, Some(5), "{who:?}: {output}");
    }
    // In the group by which the sidecar may open the file, but with another uid.
    let output = call(As::user("plexdt-none").with_groups(&["plexd-api"]));
    assert!(!output.is_success(), "{output}");
}
