//! The users and groups: plexd's own, made from the file a package would install, and a few who are in some of the
//! groups or in none. They stay: making them anew for each test would race with the others.

use std::fs::{self, File};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Group, User};

use crate::output::Output;
use crate::requirements::tool;
use crate::sweep;

/// What plexd installs.
const SYSUSERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/sysusers.d/plexd.conf");

/// Users that must come of it.
const USERS: [&str; 2] = ["plexd-core", "plexd-api"];

/// Groups that must come of it.
const GROUPS: [&str; 5] = ["plexd-core", "plexd-api", "plexd", "plexd-secrets", "plexd-admin"];

/// Users of the tests, with their primary group and their supplementary ones.
const TEST_USERS: [(&str, &str, &str); 8] = [
    ("plexdt-none", "nogroup", ""),
    ("plexdt-api", "nogroup", "plexd"),
    ("plexdt-secrets", "nogroup", "plexd-secrets"),
    ("plexdt-both", "nogroup", "plexd,plexd-secrets"),
    ("plexdt-gid-api", "plexd", ""),
    ("plexdt-gid-secrets", "plexd-secrets", ""),
    ("plexdt-gid-both", "plexd", "plexd-secrets"),
    ("plexdt-both-gid", "plexd-secrets", "plexd"),
];

/// Makes plexd's users and groups as the package would, and the users `plexdt-none` (in no group of plexd's),
/// `plexdt-api` (in `plexd`), `plexdt-secrets` (in `plexd-secrets`) and `plexdt-both`, and the same with a primary group of
/// plexd's (`plexdt-gid-api` and so on). Does nothing where they are.
#[track_caller]
pub fn ensure_users() {
    let _lock = lock();
    if USERS.iter().any(|name| !user_exists(name)) || GROUPS.iter().any(|name| !group_exists(name)) {
        run(&["systemd-sysusers", SYSUSERS]);
    }
    for (name, group, groups) in TEST_USERS {
        if !user_exists(name) {
            let mut line = vec!["useradd", "--system", "--no-create-home", "--home-dir", "/", "--gid", group];
            line.extend(["--shell", "/usr/sbin/nologin"]);
            if !groups.is_empty() {
                line.extend(["--groups", groups]);
            }
            line.push(name);
            run(&line);
        }
    }
}

/// Returns the ids of user `name`.
#[track_caller]
pub(crate) fn user(name: &str) -> User {
    User::from_name(name).ok().flatten().unwrap_or_else(|| panic!("user {name} does not exist"))
}

/// Returns the id of group `name`.
#[track_caller]
pub(crate) fn group(name: &str) -> Gid {
    let group = Group::from_name(name).ok().flatten();
    group.unwrap_or_else(|| panic!("group {name} does not exist")).gid
}

fn user_exists(name: &str) -> bool {
    matches!(User::from_name(name), Ok(Some(_)))
}

fn group_exists(name: &str) -> bool {
    matches!(Group::from_name(name), Ok(Some(_)))
}

/// Waits for the lock that keeps test processes from making the same users at once.
#[track_caller]
fn lock() -> Flock<File> {
    let path = Path::new(sweep::ROOT).join("users.lock");
    let lock =
        fs::create_dir_all(sweep::ROOT).and_then(|()| File::create(&path)).map_err(|error| error.to_string());
    let lock = lock
        .and_then(|file| Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.to_string()));
    lock.unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()))
}

#[track_caller]
fn run(line: &[&str]) {
    Output::of(tool(line[0]).args(&line[1..]), line).expect_success();
}
