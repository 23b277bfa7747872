//! HTTP as a person would speak it, by `curl` within a host: what the tests know of HTTP is not what plexd knows. And
//! HTTP without a program, for what tests ask all the time of what is not under test.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::host::{As, Host};
use crate::output::Output;

/// How long `curl` may take, in seconds.
const PATIENCE: &str = "30";

/// How long the other end may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// Header fields in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl HttpAnswer {
    /// Parses the body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// Returns the first header field `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Returns itself if the status is `status`; panics with the whole answer otherwise.
    #[must_use = "the answer is returned for further checks; call expect_status as a statement otherwise"]
    #[track_caller]
    pub fn with_status(self, status: u16) -> Self {
        self.expect_status(status);
        self
    }

    /// Panics with the whole answer unless the status is `status`.
    #[track_caller]
    pub fn expect_status(&self, status: u16) {
        assert_eq!(self.status, status, "{self}");
    }

    /// Parses an answer as it came, or what `curl --include` printed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        // An interim answer (100 Continue) precedes the answer.
        if (100..200).contains(&status) {
            return Self::parse(body);
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some(Self { status, headers, body: body.into() })
    }
}

impl fmt::Display for HttpAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {} {:?}\n{}", self.status, self.headers, self.body)
    }
}

/// Runs `curl` with `arguments` within `host`, as `who` (root if `None`). Returns the answer, or what `curl` said when
/// there was none.
#[track_caller]
pub(crate) fn curl(host: &Host, who: Option<As<'_>>, arguments: &[&str]) -> Result<HttpAnswer, Output> {
    let line =
        [&["curl", "--silent", "--show-error", "--include", "--max-time", PATIENCE], arguments].concat();
    let output = match who {
        Some(who) => host.run_as(who, &line),
        None => host.run(&line),
    };
    if !output.is_success() {
        return Err(output);
    }
    HttpAnswer::parse(&output.stdout).ok_or(output)
}

/// Makes a request to `address` from within the network namespace of `host`, with a body of JSON perhaps.
///
/// # Errors
/// If there is no answer, or none that can be read.
pub(crate) fn request(
    host: &Host,
    address: &str,
    (method, path): (&str, &str),
    body: Option<&str>,
) -> io::Result<HttpAnswer> {
    let length = body.map_or(0, str::len);
    // In version 1.0 an answer ends with its connection.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    let exchange = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.write_all(&[head.as_bytes(), body.unwrap_or_default().as_bytes()].concat())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer: io::Result<String> = host.within(exchange);
    let answer = answer?;
    HttpAnswer::parse(&answer).ok_or_else(|| io::Error::other(format!("no answer: {answer}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nETag: \"3\"\r\nX: a: b\r\n\r\n{\"a\":\"\\r\\n\\r\\n\"}";
        let answer = HttpAnswer::parse(text).unwrap();
        assert_eq!((answer.status, answer.header("etag")), (200, Some("\"3\"")));
        assert_eq!(answer.header("x"), Some("a: b"));
        assert_eq!(answer.json()["a"], "\r\n\r\n");
        let answer = HttpAnswer::parse("HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
        assert!(HttpAnswer::parse("curl: nothing").is_none());
    }
}
