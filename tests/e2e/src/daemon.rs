//! A program that runs until it is stopped, with what it prints kept in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Attempt, wait_until};

/// How long a program may take to do its work after its start.
const START: Duration = Duration::from_secs(20);

/// How long a program may take to end when asked.
const STOP: Duration = Duration::from_secs(20);

/// Lines of the log that are shown when a test fails.
const TAIL: usize = 80;

/// Memory of a running program, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What is resident now.
    pub resident: u64,
    /// What was resident at most since its start.
    pub peak: u64,
}

/// A running program. Dropping it kills it; if that is because a test failed, the end of its log is shown.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    leave: bool,
}

impl Daemon {
    #[track_caller]
    pub(crate) fn spawn(name: &str, mut command: Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        // Appended to, so that a program that is started again goes on in the same log.
        let file = File::options().create(true).append(true).open(&log);
        let files = file.and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = files.unwrap_or_else(|error| panic!("cannot open {}: {error}", log.display()));
        let spawned = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
        let child = spawned.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { name: name.into(), child, log, leave: false }
    }

    /// Returns the process id: of the program itself, as all that run before it in the host become it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns all that was printed so far, also by earlier runs under the same name.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns what memory it takes.
    #[track_caller]
    pub fn memory(&self) -> Memory {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {path}: {} has ended", self.name))
        };
        Memory { resident: field("VmRSS:"), peak: field("VmHWM:") }
    }

    /// Returns its proportional set size, in KiB: what is shared with other processes counts in parts.
    #[track_caller]
    pub fn pss(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kib.unwrap_or_else(|| panic!("no Pss in {path}: {} has ended", self.name))
    }

    /// Returns whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Attempts until it works, as [`wait_until`] does; panics at once if the program has ended meanwhile.
    #[track_caller]
    pub fn wait_ready<A: Attempt>(&mut self, what: &str, mut attempt: impl FnMut() -> A) -> A::Value {
        wait_until(START, what, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended ({status}) before: {what}", self.name);
            }
            attempt().outcome()
        })
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).map(Pid::from_raw);
        let sent = pid.map(|pid| kill(pid, signal));
        assert!(matches!(sent, Ok(Ok(()))), "cannot send {signal} to {}: {sent:?}", self.name);
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_until(deadline, &what, || {
            self.child.try_wait().map_err(|error| error.to_string())?.ok_or(String::new())
        })
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(STOP)
    }

    /// Kills it (SIGKILL), as a crash would, and waits until it is gone.
    #[track_caller]
    pub fn kill9(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(STOP);
    }

    /// Leaves it running when this process ends.
    pub fn leave(mut self) {
        self.leave = true;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.leave {
            return;
        }
        // It may have ended: then there is nothing to kill, and `wait` returns at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            show(&self.name, &self.log());
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "test runners capture what this macro prints, and show it with the failure"
)]
fn show(name: &str, log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.len().saturating_sub(TAIL);
    eprintln!(
        "--- log of {name}, last {} of {} lines\n{}",
        lines.len() - from,
        lines.len(),
        lines[from..].join("\n")
    );
}
