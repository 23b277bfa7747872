//! What the machine must offer. A test that lacks it fails and says what is missing; it is never skipped.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Programs and their Debian packages; the one list, also what the Makefile installs from.
const LIST: &str = include_str!("../../../packaging/apt-dependencies");

/// Panics unless this process is root and every program of `packaging/apt-dependencies` is there, naming all that is
/// missing.
#[track_caller]
pub fn require_root_and_tools() {
    let mut missing: Vec<String> = programs(LIST)
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    if !nix::unistd::geteuid().is_root() {
        missing.insert(0, "root: namespaces cannot be made without".into());
    }
    if !PathBuf::from("/dev/net/tun").exists() {
        missing.push("/dev/net/tun (kernel module tun)".into());
    }
    assert!(
        missing.is_empty(),
        "missing: {}; install the programs as root with: packaging/install-dependencies",
        missing.join(", ")
    );
}

/// Directories of programs, whatever the caller's `PATH`.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns a command that finds its program there, too: `su` leaves users of Debian without `/sbin`.
pub(crate) fn tool(program: &str) -> Command {
    let own = env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("{own}:{PATH}"));
    command
}

fn programs(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.trim().split_once(char::is_whitespace))
        .map(|(program, package)| (program, package.trim()))
}

/// Returns where the program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let own = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&own)
        .chain(env::split_paths(PATH))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_programs_and_packages() {
        let text = "# comment\n\nip    iproute2\nwg wireguard-tools\n";
        let parsed: Vec<_> = programs(text).collect();
        assert_eq!(parsed, [("ip", "iproute2"), ("wg", "wireguard-tools")]);
        assert!(programs(LIST).any(|(program, _)| program == "nsenter"));
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(find("sh").is_some());
        assert!(find("plexd-no-such-program").is_none());
    }
}
