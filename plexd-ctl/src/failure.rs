//! Why a command did not do what it was asked: one line for a person, with the way out, and an exit code for a script.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::commands::TokenError;
use crate::output::one_line;

/// Exit code for wrong arguments.
pub(crate) const USAGE: u8 = 2;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The arguments make no sense.
    #[error("{0}")]
    Usage(&'static str),
    /// Nobody answers at the socket.
    #[error("cannot reach plexd-core at {socket}: {reason}", socket = .socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What is the matter, and what to do.
        reason: String,
    },
    /// The socket may not be opened.
    #[error("cannot reach plexd-core at {socket}: permission denied. {advice}", socket = .socket.display())]
    Forbidden {
        /// The socket.
        socket: PathBuf,
        /// What to do.
        advice: String,
    },
    /// plexd-core does not let the caller make this call.
    #[error("plexd-core refuses: {message}. {advice}")]
    Refused {
        /// Its words.
        message: String,
        /// What to do.
        advice: String,
    },
    /// The node has no identity, and the command needs one.
    #[error("{0}")]
    NotEnrolled(String),
    /// The node has an identity already.
    #[error("plexd-core: {0}")]
    AlreadyEnrolled(String),
    /// plexd-core failed; its message says what to do.
    #[error("plexd-core: {0}")]
    Core(String),
    /// None of the echoes was answered.
    #[error("{peer} does not answer: {reason}")]
    NoAnswer {
        /// Id of the peer.
        peer: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A file of the caller's makes no sense.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// The policy is not what is expected of it.
    #[error("{failed} of {checked} expectations failed")]
    Expectations {
        /// How many.
        failed: u32,
        /// Of how many.
        checked: u32,
    },
    /// There is no usable token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token did its work, but is still there.
    #[error("the node is enrolled, but cannot delete the token file {path}: {source}; delete it", path = .path.display())]
    TokenFileKept {
        /// The file.
        path: PathBuf,
        /// Why it is still there.
        source: io::Error,
    },
    /// The token did its work and is still there, and telling so failed, too.
    #[error("{kept}; {telling}")]
    TokenFileKeptUntold {
        /// Why the file is still there.
        kept: Box<Failure>,
        /// Why the answer was not printed.
        telling: Box<Failure>,
    },
    /// The identity is given up, and something of it is still there.
    #[error("the identity is given up, but not everything could be removed: {}; run: plexd-ctl deregister --force", .0.join("; "))]
    Remains(Vec<String>),
    /// plexd-ctl itself could not do its work.
    #[error("cannot {operation}: {source}")]
    Local {
        /// What it tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Failure {
    /// Returns the exit code: 1 failed, 2 usage, 3 not enrolled, 4 core not reachable, 5 not permitted.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::AlreadyEnrolled(_)
            | Self::Core(_)
            | Self::NoAnswer { .. }
            | Self::Expectations { .. }
            | Self::Token(_)
            | Self::TokenFileKept { .. }
            | Self::TokenFileKeptUntold { .. }
            | Self::Remains(_)
            | Self::Local { .. } => 1,
            Self::Usage(_) | Self::File { .. } => USAGE,
            Self::NotEnrolled(_) => 3,
            Self::Unreachable { .. } => 4,
            Self::Forbidden { .. } | Self::Refused { .. } => 5,
        }
    }

    /// Tells the caller on standard error, in one line, and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        // Nothing to be done when standard error is closed; the exit code still tells.
        let _ = writeln!(io::stderr(), "plexd-ctl: {}", one_line(&self.to_string()));
        ExitCode::from(self.exit_code())
    }
}
