//! One request at a time, for what is not measured by a load.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the other end may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Status line and header fields.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: String,
}

impl Answer {
    /// Whether the request succeeded.
    pub(crate) fn is_success(&self) -> bool {
        self.head.starts_with("HTTP/1.1 200")
    }

    /// The header field `name` (lower case).
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The lines of the head, without what differs from one moment to the next; their order means nothing.
    pub(crate) fn lasting_head(&self) -> BTreeSet<&str> {
        self.head.lines().filter(|line| !line.starts_with("date: ")).collect()
    }
}

/// Asks for `path` on a connection of its own.
pub(crate) fn fetch(socket: &Path, path: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let cut = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Answer { head: cut.0.to_owned(), body: cut.1.to_owned() })
}
