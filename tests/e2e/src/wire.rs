//! HTTP over a connection that a test keeps: it says exactly the bytes that it is given, and tells what comes of them,
//! also where that is no answer.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::http::HttpAnswer;
use crate::{Host, patient};

/// How long the other end may be silent, or take nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much is sent at a time where the other end may close meanwhile, in bytes.
const PIECE: usize = 64 * 1024;

/// An open connection to the Local Node API.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    received: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// What an answer is to, as that tells whether it has a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Head,
    Other,
}

impl Wire {
    /// Connects to the socket at `path` on this machine ([`Host::path`]), as this process.
    ///
    /// # Errors
    /// If it cannot.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patient(PATIENCE)))?;
        stream.set_write_timeout(Some(patient(PATIENCE)))?;
        Ok(Self { stream: Stream::Unix(stream), received: Vec::new() })
    }

    /// Connects to the API's TCP listener at its default address within `host`.
    ///
    /// # Errors
    /// If it cannot.
    #[track_caller]
    pub fn tcp(host: &Host) -> io::Result<Self> {
        let stream = host.within(|| TcpStream::connect(("127.0.0.1", 9100)))?;
        stream.set_read_timeout(Some(patient(PATIENCE)))?;
        stream.set_write_timeout(Some(patient(PATIENCE)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: Stream::Tcp(stream), received: Vec::new() })
    }

    /// Sets how long the other end may be silent.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        match &self.stream {
            Stream::Unix(stream) => stream.set_read_timeout(Some(patience)),
            Stream::Tcp(stream) => stream.set_read_timeout(Some(patience)),
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// If the other end does not take them.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Unix(stream) => stream.write_all(bytes),
            Stream::Tcp(stream) => stream.write_all(bytes),
        }
    }

    /// Sends of `bytes` what is taken before the other end closes; returns whether that was all.
    pub fn send_what_it_takes(&mut self, bytes: &[u8]) -> bool {
        bytes.chunks(PIECE).all(|piece| self.send(piece).is_ok())
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        // One that is closed already needs no telling.
        let _ = match &self.stream {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Makes a request and returns the answer. `headers` are lines; a body comes with its length.
    ///
    /// # Errors
    /// If the connection ends before the answer does, or it is no HTTP.
    pub fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: Option<&str>,
    ) -> io::Result<HttpAnswer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        let length = body.map(|body| format!("Content-Length: {}\r\n", body.len())).unwrap_or_default();
        let body = body.unwrap_or_default();
        self.send(&[head.as_bytes(), length.as_bytes(), b"\r\n", body.as_bytes()].concat())?;
        self.answer_to(if method == "HEAD" { To::Head } else { To::Other })
    }

    /// Reads the next answer; interim ones (100 Continue) are passed over.
    ///
    /// # Errors
    /// As [`Wire::ask`]; [`io::ErrorKind::UnexpectedEof`] if the connection ended.
    pub fn answer(&mut self) -> io::Result<HttpAnswer> {
        self.answer_to(To::Other)
    }

    fn answer_to(&mut self, to: To) -> io::Result<HttpAnswer> {
        loop {
            let head = self.until(b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&head).into_owned();
            let broken = || io::Error::other(format!("no HTTP: {head}"));
            let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse::<u16>().ok());
            if (100..200).contains(&status.ok_or_else(broken)?) {
                continue;
            }
            let mut answer = HttpAnswer::parse(&head).ok_or_else(broken)?;
            if to == To::Head || matches!(answer.status, 204 | 304) {
                return Ok(answer);
            }
            let length = answer.header("content-length").and_then(|length| length.parse().ok());
            let length: usize = length.ok_or_else(broken)?;
            while self.received.len() < length {
                self.receive()?;
            }
            let body = self.received.drain(..length).collect();
            answer.body = String::from_utf8(body).map_err(|_| broken())?;
            return Ok(answer);
        }
    }

    /// Reads up to and including `end`.
    ///
    /// # Errors
    /// If the connection ends before, or is silent for too long.
    pub fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut from = 0;
        loop {
            let found = self.received[from..].windows(end.len()).position(|window| window == end);
            if let Some(at) = found {
                return Ok(self.received.drain(..from + at + end.len()).collect());
            }
            from = self.received.len().saturating_sub(end.len());
            self.receive()?;
        }
    }

    /// Reads at most `count` bytes, for one who is slow.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; count];
        let taken = self.read(&mut buffer)?;
        buffer.truncate(taken);
        Ok(buffer)
    }

    /// Reads what still comes until the connection ends. A connection that is cut with bytes on their way has ended, too.
    ///
    /// # Errors
    /// If it stays open.
    pub fn rest(mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.receive() {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(error);
                }
                Err(_) => return Ok(self.received),
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let count = self.read(&mut buffer)?;
        self.received.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.stream {
            Stream::Unix(stream) => stream.read(buffer)?,
            Stream::Tcp(stream) => stream.read(buffer)?,
        };
        if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(count) }
    }
}
