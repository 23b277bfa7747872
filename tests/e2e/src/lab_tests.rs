//! The harness itself, in real namespaces: needs root.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::{As, wait_until};

/// Returns whether anything of the lab `name` is left.
fn is_left(name: &str) -> bool {
    let namespaces =
        Output::of(Command::new("ip").args(["netns", "list"]), &["ip", "netns", "list"]).succeeded();
    namespaces.stdout.contains(name) || sweep::directory(name).exists()
}

#[test]
fn two_hosts_reach_each_other_and_nothing_else() {
    let lab = Lab::new(&["a", "b"]);
    let (a, b) = (lab.host("a"), lab.host("b"));
    a.run(&["ping", "-c1", "-W5", &b.ipv4().to_string()]).expect_success();
    b.run(&["ping", "-c1", "-W5", &a.ipv6().to_string()]).expect_success();
    assert_eq!(a.run(&["ip", "route", "get", "198.51.100.1"]).code, Some(2), "no way out of the lab");

    lab.unplug(b);
    assert!(!a.run(&["ping", "-c1", "-W1", &b.ipv4().to_string()]).is_success());
    lab.plug(b);
    // The bridge takes a moment to forward again.
    wait_until(Duration::from_secs(10), "a ping after the cable is plugged in again", || {
        a.run(&["ping", "-c1", "-W1", &b.ipv4().to_string()]).is_success()
    });
}

#[test]
fn hosts_have_directories_of_their_own() {
    let lab = Lab::new(&["a", "b"]);
    let (a, b) = (lab.host("a"), lab.host("b"));
    for directory in ["/etc/plexd", "/run/plexd", "/run/wireguard", "/var/lib/plexd"] {
        let file = format!("{directory}/of-{}", lab.name());
        a.run(&["touch", &file]).expect_success();
        a.run(&["test", "-f", &file]).expect_success();
        assert!(a.path(&file).is_file());
        assert!(!b.run(&["test", "-e", &file]).is_success(), "{file} is seen by the other host");
        assert!(!Path::new(&file).exists(), "{file} is seen by the machine");
    }
    let modes =
        a.run(&["stat", "-c", "%a %U", "/etc/plexd", "/run/plexd", "/var/run/plexd", "/var/lib/plexd"]);
    assert_eq!(modes.stdout, "755 root\n755 root\n755 root\n700 plexd-core\n");
}

#[test]
fn programs_run_as_whom_they_should() {
    let lab = Lab::new(&["a"]);
    let a = lab.host("a");
    let groups = |who| a.run_as(who, &["id", "-Gn"]).succeeded().stdout;
    assert_eq!(groups(As::user("plexdt-none")), "nogroup\n");
    assert_eq!(groups(As::user("plexdt-api")), "nogroup plexd\n");
    assert_eq!(groups(As::user("plexdt-secrets")), "nogroup plexd-secrets\n");
    assert_eq!(groups(As::user("plexdt-none").with_groups(&["plexd-admin"])), "nogroup plexd-admin\n");
    assert_eq!(groups(As::user("plexdt-both").with_groups(&[])), "nogroup\n");
    let capabilities = a.run_as(As::user("plexdt-none"), &["grep", "CapEff", "/proc/self/status"]);
    assert_eq!(capabilities.stdout, "CapEff:\t0000000000000000\n");
}

#[test]
fn daemons_are_logged_and_stopped() {
    let lab = Lab::new(&["a"]);
    let shell = "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.01; done";
    let daemon = lab.host("a").spawn("shell", &["sh", "-c", shell]);
    wait_until(Duration::from_secs(10), "the shell", || daemon.log() == "up\n");
    let log = lab.host("a").directory().join("shell.log");
    assert_eq!(daemon.terminate().code(), Some(3));
    assert_eq!(fs::read_to_string(log).unwrap(), "up\nasked\n");

    let mut daemon = lab.host("a").spawn("sleep", &["sleep", "infinity"]);
    let process = format!("/proc/{}", daemon.pid());
    assert!(daemon.is_running());
    daemon.kill9();
    assert!(!Path::new(&process).exists());
}

#[test]
fn teardown_leaves_nothing_even_after_a_panic() {
    let (name, pid) = {
        let lab = Lab::new(&["a", "b"]);
        let stray = lab.host("a").spawn("stray", &["sleep", "infinity"]);
        let pid = stray.pid();
        stray.leave();
        assert!(is_left(lab.name()), "the check sees a lab");
        (lab.name().to_owned(), pid)
    };
    assert!(!is_left(&name));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(status.is_empty() || status.contains("State:\tZ"), "the stray process lives: {status}");

    let mut name = String::new();
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new(&["a"]);
        name = lab.name().to_owned();
        panic!("as a failed test does");
    }));
    assert!(failed.is_err() && !name.is_empty() && !is_left(&name));
}

#[test]
fn what_a_killed_test_left_is_swept_and_what_lives_is_not() {
    let mut dead = Command::new("true").spawn().unwrap();
    let name = sweep::name(dead.id(), 0);
    // While it lives, a zombie counts as alive: the lab is not swept by tests that run now.
    let lab = Lab::named(&name, &["a"]);
    lab.leave();
    let alive = Lab::new(&["a"]);
    sweep::sweep();
    assert!(is_left(&name) && is_left(alive.name()));
    dead.wait().unwrap();
    sweep::sweep();
    assert!(!is_left(&name), "the lab of the dead is gone");
    assert!(is_left(alive.name()));
    alive.host("a").run(&["true"]).expect_success();
}
