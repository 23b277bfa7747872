//! What a program that ended left: its exit code and what it printed.

use std::fmt;
use std::process::{Command, Stdio};

/// The end of a program.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output; invalid UTF-8 replaced.
    pub stdout: String,
    /// What it wrote to standard error; invalid UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// Runs `command` to its end, with nothing on standard input unless it says otherwise.
    #[track_caller]
    pub(crate) fn of(command: &mut Command, line: &[&str]) -> Self {
        let line = line.join(" ");
        match command.stdin(Stdio::null()).output() {
            Ok(output) => Self {
                command: line,
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(error) => panic!("cannot run {line}: {error}"),
        }
    }

    /// Returns whether the program ended with code 0.
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Returns itself if the program ended with code 0; panics with all it printed otherwise.
    #[must_use = "the output is returned for further checks; call expect_success as a statement otherwise"]
    #[track_caller]
    pub fn succeeded(self) -> Self {
        self.expect_success();
        self
    }

    /// Panics with all the program printed unless it ended with code 0.
    #[track_caller]
    pub fn expect_success(&self) {
        assert!(self.is_success(), "{self}");
    }

    /// Parses standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => writeln!(f, "`{}` ended with code {code}", self.command)?,
            None => writeln!(f, "`{}` was ended by a signal", self.command)?,
        }
        writeln!(f, "--- stdout\n{}--- stderr\n{}---", self.stdout, self.stderr)
    }
}
