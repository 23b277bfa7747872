//! Where the demo is shown: numbered steps, the commands with what came back, and what was checked. A check that fails
//! panics, as the harness does; `main` turns that into the last line.

use std::io::{IsTerminal, Write, stdout};
use std::sync::atomic::{AtomicU32, Ordering};

use plexd_e2e::{As, Host, Output};

/// Most lines shown of what a command printed.
const LINES: usize = 48;

/// Most characters shown of a line.
const WIDTH: usize = 150;

/// The step that is being shown, from 1. Also read after a panic.
static STEP: AtomicU32 = AtomicU32::new(0);

/// Returns the number of the step that is being shown.
pub(crate) fn step() -> u32 {
    STEP.load(Ordering::Relaxed)
}

/// Prints a line; a reader that has gone away is no reason to fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}

/// Begins the next step.
pub(crate) fn begin(title: &str) {
    let number = STEP.fetch_add(1, Ordering::Relaxed) + 1;
    let (bold, plain) = if stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    say(&format!("\n{bold}{number:>2}  {title}{plain}"));
}

/// Shows a remark.
pub(crate) fn remark(text: &str) {
    say(&format!("    {text}"));
}

/// Shows a command as typed by `user` on `host`, without running it.
pub(crate) fn command(host: &Host, user: &str, line: &str) {
    let prompt = format!("    {user}@{} $ ", host.name());
    // The lines after the first as in the guide, moved under it.
    say(&format!("{prompt}{}", line.replace('\n', "\n      ")));
}

/// Runs a line of shell as root on `host` and shows both.
#[track_caller]
pub(crate) fn run(host: &Host, line: &str) -> Output {
    command(host, "root", line);
    shown(host.shell(None, line))
}

/// Runs a line of shell as `user` on `host` and shows both.
#[track_caller]
pub(crate) fn run_as(host: &Host, user: &str, line: &str) -> Output {
    command(host, user, line);
    shown(host.shell(Some(As::user(user)), line))
}

fn shown(output: Output) -> Output {
    let text = format!("{}{}", output.stdout, output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in lines.iter().take(LINES) {
        let cut: String = line.chars().take(WIDTH).collect();
        let more = if cut.len() < line.len() { " …" } else { "" };
        say(&format!("      {cut}{more}"));
    }
    if lines.len() > LINES {
        say(&format!("      … {} more lines", lines.len() - LINES));
    }
    if let Some(code) = output.code.filter(|code| *code != 0) {
        say(&format!("      (exit code {code})"));
    }
    output
}

/// Shows that `claim` holds; panics if it does not.
#[track_caller]
pub(crate) fn check(claim: &str, holds: bool) {
    assert!(holds, "it is not so that {claim}");
    say(&format!("    ok: {claim}"));
}
