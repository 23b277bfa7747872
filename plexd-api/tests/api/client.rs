//! A small HTTP/1.1 client that sends exactly the bytes it is given.

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// An open connection.
pub(crate) struct Client {
    io: Box<dyn Io>,
    received: Vec<u8>,
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// Checks that this is the error `text` with `status`, as JSON.
    #[track_caller]
    pub(crate) fn is_error(&self, status: u16, text: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, format!("{{\"error\":\"{text}\"}}").as_str()));
        assert_eq!(self.header("content-type"), Some("application/json"));
    }
}

impl Client {
    pub(crate) fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), received: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends what fits; the server may close before it has all.
    pub(crate) async fn send_what_it_takes(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(64 * 1024) {
            if self.io.write_all(piece).await.is_err() {
                return;
            }
        }
    }

    /// Says that no more will be sent.
    pub(crate) async fn finish(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, &[], None).await
    }

    pub(crate) async fn get_with(&mut self, path: &str, headers: &[&str]) -> Answer {
        self.request("GET", path, headers, None).await
    }

    pub(crate) async fn put(&mut self, path: &str, headers: &[&str], body: &str) -> Answer {
        self.request("PUT", path, headers, Some(body)).await
    }

    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: Option<&str>,
    ) -> Answer {
        let mut lines = vec![format!("{method} {path} HTTP/1.1"), "Host: localhost".into()];
        lines.extend(headers.iter().map(|header| (*header).to_owned()));
        if let Some(body) = body {
            lines.push("Content-Type: application/json".into());
            lines.push(format!("Content-Length: {}", body.len()));
        }
        self.send(format!("{}\r\n\r\n{}", lines.join("\r\n"), body.unwrap_or_default())).await;
        self.answer_to(method).await
    }

    /// Reads the next answer, whose request had a method with a body in its answer.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    /// Reads the next answer; `None` if the connection ended.
    pub(crate) async fn try_answer(&mut self) -> Option<Answer> {
        let head = self.head().await?;
        Some(self.rest_of(head, "GET").await)
    }

    async fn answer_to(&mut self, method: &str) -> Answer {
        let head = self.head().await.expect("an answer");
        self.rest_of(head, method).await
    }

    async fn rest_of(&mut self, head: String, method: &str) -> Answer {
        let mut answer = Answer { status: head[9..12].parse().unwrap(), head, body: String::new() };
        let length = answer.header("content-length").map(|length| length.parse().unwrap());
        let empty = method == "HEAD" || matches!(answer.status, 204 | 304);
        if let Some(length) = length.filter(|_| !empty) {
            while self.received.len() < length {
                assert!(self.receive().await, "the body ended early");
            }
            answer.body = String::from_utf8(self.received.drain(..length).collect()).unwrap();
        }
        answer
    }

    /// Reads a head; `None` if the connection ended.
    pub(crate) async fn head(&mut self) -> Option<String> {
        self.until("\r\n\r\n").await
    }

    /// Reads up to and including `end`.
    pub(crate) async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            let found = self.received.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                return Some(String::from_utf8(self.received.drain(..at + end.len()).collect()).unwrap());
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Returns whether the server has closed the connection, after whatever it still sent.
    pub(crate) async fn closed(&mut self) -> bool {
        while self.receive().await {}
        true
    }

    async fn receive(&mut self) -> bool {
        self.received.reserve(16 * 1024);
        matches!(self.io.read_buf(&mut self.received).await, Ok(1..))
    }
}
