//! Taking labs down: the processes in their namespaces, the namespaces, the directories. Only ever by the names a lab
//! has, so that nothing of anybody else is touched.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::requirements::tool;

/// Directory of the labs' directories; on a tmpfs, writable by root alone.
pub(crate) const ROOT: &str = "/run/plexd-e2e";

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// How long killed processes may take to go.
const GONE: Duration = Duration::from_secs(10);

/// Returns the directory of lab `name`.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

/// Returns the name of the lab that process `pid` makes as its `number`-th.
pub(crate) fn name(pid: u32, number: u32) -> String {
    format!("plx{pid:x}-{number}")
}

/// Returns the process that made the lab to which `entry` (a namespace or a directory) belongs, and the lab's name.
fn owner(entry: &str) -> Option<(u32, String)> {
    let (pid, rest) = entry.strip_prefix("plx")?.split_once('-')?;
    let pid = u32::from_str_radix(pid, 16).ok()?;
    let number = rest.split('-').next()?.parse().ok()?;
    Some((pid, name(pid, number)))
}

/// Removes the labs of tests that ended without taking them down (killed, say). Labs that were given a name by hand
/// stay; [`remove`] is for them.
pub fn sweep() {
    let left: BTreeSet<String> = entries(NAMES)
        .chain(entries(ROOT))
        .filter_map(|entry| owner(&entry))
        .filter(|(pid, _)| !is_alive(*pid))
        .map(|(_, lab)| lab)
        .collect();
    for lab in left {
        // Another test may be sweeping the same; what stays is swept the next time.
        let _ = remove(&lab);
    }
}

/// Takes the lab `name` down, whoever made it: ends the processes in its namespaces and removes these and its
/// directory. What is not there is fine. Goes on after an error and returns the first.
///
/// # Errors
/// If something could not be removed.
pub fn remove(name: &str) -> io::Result<()> {
    let prefix = format!("{name}-");
    let namespaces: Vec<String> =
        entries(NAMES).filter(|entry| entry == name || entry.starts_with(&prefix)).collect();
    let mut outcome = Ok(());
    for namespace in &namespaces {
        outcome = outcome.and(end_processes(namespace));
    }
    for namespace in &namespaces {
        outcome = outcome.and(ip(&["netns", "del", namespace]).map(drop));
    }
    let removed = match fs::remove_dir_all(directory(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    outcome.and(removed)
}

fn end_processes(namespace: &str) -> io::Result<()> {
    let end = Instant::now() + GONE;
    loop {
        let pids = ip(&["netns", "pids", namespace])?;
        let pids: Vec<i32> = pids.lines().filter_map(|line| line.trim().parse().ok()).collect();
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(io::Error::other(format!("processes {pids:?} in namespace {namespace} do not end")));
        }
        for pid in pids {
            // Gone already is fine; the next round tells.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn ip(arguments: &[&str]) -> io::Result<String> {
    let output = tool("ip").args(arguments).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {}: {}", arguments.join(" "), why.trim())))
}

fn entries(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_are_understood() {
        assert_eq!(owner("plx1f-3"), Some((0x1f, "plx1f-3".into())));
        assert_eq!(owner("plx1f-3-web"), Some((0x1f, "plx1f-3".into())));
        for foreign in ["plx-demo", "plx-demo-a", "plxzz-1", "plx1f", "plx1f-x", "docker0", "users.lock"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn this_process_is_alive() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
    }
}
