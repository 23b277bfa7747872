//! Starting the steps and taking everything down after them, also when they are interrupted or die.

use std::env;
use std::fs::{self, File};
use std::io;
use std::process::{Child, Command, ExitCode};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};

use crate::LAB;
use crate::stage::say;

/// Where the lock is that lets one demo run at a time, beside the labs.
const LOCK: &str = "/run/plexd-e2e/demo.lock";

/// Exit code after SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// What to do with the lab after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Leave it running.
    Yes,
    /// Take it down.
    No,
}

/// Shows the demo; takes it down unless it passed and is to be kept.
pub(crate) fn up(keep: Keep) -> ExitCode {
    match try_up(keep) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("demo: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Takes down what was kept.
pub(crate) fn down() -> ExitCode {
    let removed = lock().and_then(|_lock| plexd_e2e::remove(LAB));
    match removed {
        Ok(()) => {
            say("demo: removed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("demo: cannot be removed: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn try_up(keep: Keep) -> io::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("needs root, to make network namespaces; run: sudo make demo"));
    }
    let _lock = lock()?;
    // What an earlier demo left, kept or killed.
    plexd_e2e::remove(LAB)?;

    // Blocked before the child exists, so that none is missed.
    let signals: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
    signals.thread_block()?;
    let mut steps = Command::new(env::current_exe()?);
    steps.arg("steps").args((keep == Keep::Yes).then_some("--keep"));
    let mut steps = steps.spawn()?;
    let code = wait(&mut steps, &signals)?;
    if keep == Keep::No || code != ExitCode::SUCCESS {
        plexd_e2e::remove(LAB)?;
    }
    Ok(code)
}

/// Waits until the steps have ended, by themselves or because of a signal.
fn wait(steps: &mut Child, signals: &SigSet) -> io::Result<ExitCode> {
    loop {
        let signal = signals.wait()?;
        if signal != Signal::SIGCHLD {
            // It may have ended by the same signal.
            let _ = steps.kill();
            steps.wait()?;
            say(&format!("\ndemo: {signal}: taken down"));
            return Ok(ExitCode::from(INTERRUPTED));
        }
        if let Some(status) = steps.try_wait()? {
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
}

fn lock() -> io::Result<Flock<File>> {
    fs::create_dir_all("/run/plexd-e2e")?;
    Flock::lock(File::create(LOCK)?, FlockArg::LockExclusiveNonblock)
        .map_err(|_| io::Error::other("another demo is under way; wait for it"))
}
