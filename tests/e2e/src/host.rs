//! A host of a lab: a network namespace and a mount namespace in which plexd's directories are its own. A process that
//! does nothing holds the mount namespace; programs enter both by `nsenter`.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, chown};

use crate::binaries;
use crate::daemon::Daemon;
use crate::output::Output;
use crate::requirements::{PATH, find, tool};
use crate::users;

/// Directories that every host has for itself: mode, and the user and group that owns it (as in `packaging/tmpfiles.d`).
const DIRECTORIES: [(&str, u32, &str); 4] = [
    ("/etc/plexd", 0o755, "root"),
    ("/run/plexd", 0o755, "root"),
    ("/run/wireguard", 0o700, "root"),
    ("/var/lib/plexd", 0o700, "plexd-core"),
];

/// How long a program that is waited for may run, in seconds.
const PATIENCE: &str = "60";

/// Addresses of a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// A host of a [`Lab`](crate::Lab). Clones are the same host.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    netns: String,
    address: Address,
    directory: PathBuf,
    holder: Mutex<Child>,
    holder_pid: u32,
}

/// Whom a program runs as.
#[derive(Debug, Clone, Copy)]
pub struct As<'a> {
    user: &'a str,
    groups: Option<&'a [&'a str]>,
}

impl<'a> As<'a> {
    /// As `user`, with the groups that the user database has.
    pub fn user(user: &'a str) -> Self {
        Self { user, groups: None }
    }

    /// As the same user with exactly these supplementary groups.
    #[must_use]
    pub fn with_groups(self, groups: &'a [&'a str]) -> Self {
        Self { groups: Some(groups), ..self }
    }

    /// Returns the `setpriv` command line that becomes the user.
    #[track_caller]
    fn setpriv(self) -> Vec<String> {
        let user = users::user(self.user);
        let mut line = vec![
            "setpriv".into(),
            format!("--reuid={}", user.uid),
            format!("--regid={}", user.gid),
            "--inh-caps=-all".into(),
        ];
        line.push(match self.groups {
            None => "--init-groups".into(),
            Some([]) => "--clear-groups".into(),
            Some(groups) => {
                let ids: Vec<String> = groups.iter().map(|name| users::group(name).to_string()).collect();
                format!("--groups={}", ids.join(","))
            }
        });
        line.push("--".into());
        line
    }
}

impl Host {
    #[track_caller]
    pub(crate) fn new(name: &str, netns: String, address: Address, directory: &Path) -> Self {
        let make = |path: &Path, mode| {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
            // The umask is the caller's.
            let made = made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
            made.unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        };
        make(directory, 0o755);
        make(&directory.join("bin"), 0o755);
        let mut mounts = vec![(binaries::directory(), directory.join("bin"))];
        for (path, mode, owner) in DIRECTORIES {
            // The place to mount on stays on the machine, empty: another lab may be using it.
            if !Path::new(path).is_dir() {
                make(Path::new(path), 0o755);
            }
            let own = private(directory, path);
            make(&own, mode);
            give(&own, users::user(owner).uid, users::group(owner));
            mounts.push((own, path.into()));
        }
        let holder = hold(&netns, &mounts);
        Self(Arc::new(Inner {
            name: name.into(),
            netns,
            address,
            directory: directory.into(),
            holder_pid: holder.id(),
            holder: Mutex::new(holder),
        }))
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the name of the network namespace, for `ip netns exec`.
    pub fn netns(&self) -> &str {
        &self.0.netns
    }

    /// Returns the IPv4 address on the bridge.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.0.address.v4
    }

    /// Returns the IPv6 address on the bridge.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.0.address.v6
    }

    /// Returns where one of plexd's programs is within the host. Everybody may run it there, also where the build
    /// directory is closed to others.
    #[track_caller]
    pub fn program(&self, name: &str) -> String {
        binaries::require(name);
        self.0.directory.join("bin").join(name).display().to_string()
    }

    /// Returns where a file of the host's own directories is on this machine, for tests to look at and to change.
    #[track_caller]
    pub fn path(&self, inside: &str) -> PathBuf {
        let (directory, ..) = DIRECTORIES
            .into_iter()
            .find(|(directory, ..)| Path::new(inside).starts_with(directory))
            .unwrap_or_else(|| panic!("{inside} is not in a directory of the host's own"));
        let rest = Path::new(inside).strip_prefix(directory).unwrap_or(Path::new(""));
        private(&self.0.directory, directory).join(rest)
    }

    /// Returns a directory of the host for what a test keeps beside it, such as logs.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Writes a file of root's with permission bits `mode` into one of the host's own directories.
    #[track_caller]
    pub fn write(&self, inside: &str, mode: u32, contents: impl AsRef<[u8]>) {
        let path = self.path(inside);
        let written = fs::write(&path, contents)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    /// Returns a command that runs `program` within the host, as root, with a clean environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = tool("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.0.netns))
            .arg(format!("--mount=/proc/{}/ns/mnt", self.0.holder_pid))
            .args(["--", &located(program)])
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .env("RUST_BACKTRACE", "1");
        // Where a coverage build writes its figures.
        if let Some(profile) = std::env::var_os("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", profile);
        }
        command
    }

    /// Runs `work` on a thread in the host's network namespace; a socket that it opens stays there.
    #[track_caller]
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.0.netns);
        let worked = thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(fs::File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, io::Error>(work())
            });
            entered.join()
        });
        match worked {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("cannot enter {}: {error}", path.display()),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a program to its end as root; one that takes longer than a minute is killed.
    #[track_caller]
    pub fn run(&self, line: &[&str]) -> Output {
        let mut command = self.command("timeout");
        command.args(["-k", "5", PATIENCE, &located(line[0])]).args(&line[1..]);
        Output::of(&mut command, line)
    }

    /// Runs a program to its end as somebody else; one that takes longer than a minute is killed.
    #[track_caller]
    pub fn run_as(&self, who: As<'_>, line: &[&str]) -> Output {
        let mut command = self.command("timeout");
        let setpriv = who.setpriv();
        command.args(["-k", "5", PATIENCE, &located(&setpriv[0])]).args(&setpriv[1..]).args(line);
        Output::of(&mut command, line)
    }

    /// Runs a line of shell to its end, as somebody else or as root, with plexd's programs in its `PATH`; it is what a
    /// person would type.
    #[track_caller]
    pub fn shell(&self, who: Option<As<'_>>, line: &str) -> Output {
        let script = format!("PATH={}:$PATH\n{line}", self.0.directory.join("bin").display());
        let mut output = match who {
            Some(who) => self.run_as(who, &["sh", "-c", &script]),
            None => self.run(&["sh", "-c", &script]),
        };
        line.clone_into(&mut output.command);
        output
    }

    /// Returns what a person types on the machine to be in this host, with plexd's programs in the `PATH`.
    pub fn enter(&self) -> String {
        format!(
            "nsenter --net=/run/netns/{} --mount=/proc/{}/ns/mnt -- env PATH={}:{PATH} sh",
            self.0.netns,
            self.0.holder_pid,
            self.0.directory.join("bin").display()
        )
    }

    /// Starts a web server for the mesh's traffic: it listens on `port` at all addresses and answers every request with
    /// `text`; at `/stream` it goes on answering, line by line, until the connection ends.
    #[track_caller]
    pub fn serve(&self, port: u16, text: &str) -> Daemon {
        let address = format!("0.0.0.0:{port}");
        let name = format!("http-{port}");
        let mut server = self.spawn(&name, &[&self.program("plexd-demo"), "serve", &address, text]);
        server.wait_ready("its listening", || self.run(&["sh", "-c", &listens_on(port)]).is_success());
        server
    }

    /// Starts a program as root that goes on until it is stopped. `name` is for its log and for messages.
    #[track_caller]
    pub fn spawn(&self, name: &str, line: &[&str]) -> Daemon {
        let mut command = self.command(line[0]);
        command.args(&line[1..]);
        Daemon::spawn(name, command, &self.0.directory)
    }

    /// Starts a program as somebody else that goes on until it is stopped.
    #[track_caller]
    pub fn spawn_as(&self, name: &str, who: As<'_>, line: &[&str]) -> Daemon {
        let setpriv = who.setpriv();
        let mut command = self.command(&setpriv[0]);
        command.args(&setpriv[1..]).args(line);
        Daemon::spawn(name, command, &self.0.directory)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let holder = self.holder.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The lab killed it with everything else in the namespace, or leaves it; here it is only reaped.
        let _ = holder.try_wait();
    }
}

/// Returns the path of a program that is given by its name: busybox, which the virtual machine has for what starts others,
/// would take an applet of its own for it.
fn located(program: &str) -> String {
    let path = (!program.contains('/')).then(|| find(program)).flatten();
    path.map_or_else(|| program.to_owned(), |path| path.display().to_string())
}

/// Returns a shell line that succeeds if something listens on TCP port `port` (column `local_address`, state 0A).
fn listens_on(port: u16) -> String {
    format!("grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp")
}

fn private(directory: &Path, path: &str) -> PathBuf {
    directory.join(path.trim_start_matches('/').replace('/', "-"))
}

#[track_caller]
fn give(path: &Path, uid: Uid, gid: Gid) {
    chown(path, Some(uid), Some(gid))
        .unwrap_or_else(|error| panic!("cannot change the owner of {}: {error}", path.display()));
}

/// Starts the process that holds the mount namespace, and waits until `mounts` (what, where) are made in there. `ip
/// netns exec` makes the namespace, with a `/sys` that shows the network namespace.
#[track_caller]
fn hold(netns: &str, mounts: &[(PathBuf, PathBuf)]) -> Child {
    let binds =
        mounts.iter().map(|(from, to)| format!("mount --bind '{}' '{}'", from.display(), to.display()));
    let steps: Vec<String> = ["set -e".into(), "mount --make-rprivate /".into()]
        .into_iter()
        .chain(binds)
        .chain(["echo ready".into(), "exec sleep infinity >/dev/null 2>&1".into()])
        .collect();
    let script = steps.join("\n");
    let mut holder = tool("setsid")
        .args(["ip", "netns", "exec", netns, "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start the holder of {netns}: {error}"));
    let mut line = String::new();
    if let Some(stdout) = holder.stdout.take() {
        // An error reads as a holder that failed, below.
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    if line != "ready\n" {
        let output = holder.wait_with_output();
        let why = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        panic!("cannot mount the directories of {netns}: {}", why.unwrap_or_default());
    }
    holder
}
