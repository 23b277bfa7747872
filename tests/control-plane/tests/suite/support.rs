//! A running `plexd-devcp`, a client that pins its CA, enrolled nodes and a reader of event streams.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing here takes that long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process and how to talk to it; killed when dropped.
pub(crate) struct Devcp {
    child: Child,
    pub(crate) wire: String,
    pub(crate) admin: String,
    pub(crate) ca: PathBuf,
    pub(crate) client: Client,
}

/// What came back, read whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) etag: Option<String>,
    pub(crate) allow: Option<String>,
    pub(crate) body: Bytes,
}

/// An enrolled node as its registration answered.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) answer: Value,
}

pub(crate) fn state_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_plexd-devcp"))
}

/// A public key is any 32 bytes.
pub(crate) fn key(seed: u8) -> String {
    STANDARD.encode([seed; 32])
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Devcp {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    pub(crate) fn start_with(dir: &Path, extra: &[&str]) -> Self {
        let mut child = command()
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--state"])
            .arg(dir)
            .args(extra)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["listening", wire, "admin", admin, "ca", ca] = words.as_slice() else {
            panic!("not ready: {line:?}");
        };
        let ca = PathBuf::from(ca);
        let client = client(&ca);
        Self { child, wire: (*wire).to_owned(), admin: (*admin).to_owned(), ca, client }
    }

    pub(crate) async fn admin(&self, method: Method, path: &str, body: Option<&str>) -> Answer {
        let request = self.client.request(method, format!("{}/admin/{path}", self.admin));
        answer(match body {
            Some(body) => request.body(body.to_owned()),
            None => request,
        })
        .await
    }

    /// An admin request that has to succeed.
    pub(crate) async fn manage(&self, method: Method, path: &str, body: &Value) -> Value {
        let answer = self.admin(method, path, Some(&body.to_string())).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        answer.json()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/v1/{path}", self.wire))
    }

    pub(crate) async fn token(&self, body: &Value) -> String {
        self.manage(Method::POST, "tokens", body).await["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn register(&self, body: &Value) -> Answer {
        let request = self.request(Method::POST, "register").header("content-type", "application/json");
        answer(request.body(body.to_string())).await
    }

    pub(crate) async fn enrol(&self, hostname: &str, seed: u8) -> Node {
        let token = self.token(&json!({})).await;
        let body = json!({"token": token, "public_key": key(seed), "hostname": hostname});
        let answer = self.register(&body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let answer = answer.json();
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        Node { id: text("node_id"), secret: text("node_secret_key"), answer }
    }

    /// A node's request with its credential; the path is below its own.
    pub(crate) fn as_node(&self, node: &Node, method: Method, path: &str) -> RequestBuilder {
        self.request(method, &format!("nodes/{}/{path}", node.id)).bearer_auth(&node.secret)
    }

    pub(crate) async fn send(&self, node: &Node, method: Method, path: &str, body: &str) -> Answer {
        let request = self.as_node(node, method, path).header("content-type", "application/json");
        answer(request.body(body.to_owned())).await
    }

    pub(crate) async fn get(&self, node: &Node, path: &str) -> Answer {
        answer(self.as_node(node, Method::GET, path)).await
    }

    pub(crate) async fn state(&self, node: &Node) -> Value {
        self.get(node, "state").await.json()
    }

    pub(crate) async fn received(&self, node: &Node) -> Value {
        self.admin(Method::GET, &format!("nodes/{}/received", node.id), None).await.json()
    }

    pub(crate) async fn events(&self, node: &Node, last: Option<&str>) -> Events {
        let mut request = self.as_node(node, Method::GET, "events");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = Events { response, buffer: String::new() };
        assert_eq!(events.block().await.unwrap(), "retry: 1000");
        events
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Devcp {
    fn drop(&mut self) {
        // Already dead after `kill`; there is nothing else to do about a failure here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (etag, allow) = (header("etag"), header("allow"));
    Answer { status: response.status(), etag, allow, body: response.bytes().await.unwrap() }
}

/// A client that trusts this CA and no other.
pub(crate) fn client(ca: &Path) -> Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().unwrap();
    });
    let pem = std::fs::read(ca).unwrap();
    Client::builder().tls_certs_only([Certificate::from_pem(&pem).unwrap()]).no_proxy().build().unwrap()
}

/// An open event stream.
pub(crate) struct Events {
    response: Response,
    buffer: String,
}

/// One event as the stream gave it.
#[derive(Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn payload(&self) -> Value {
        serde_json::from_str::<Value>(&self.data).unwrap()["payload"].clone()
    }
}

impl Events {
    /// The next event; `None` when the stream ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let block = self.block().await?;
        let mut lines = block.lines();
        let mut field = |name: &str| {
            let line = lines.next().unwrap();
            line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap().to_owned()
        };
        let event = Event { id: field("id"), kind: field("event"), data: field("data") };
        assert_eq!(lines.next(), None, "data is one line");
        Some(event)
    }

    /// The next event, which has to be of this type.
    pub(crate) async fn expect(&mut self, event_type: &str) -> Event {
        let event = self.next().await.unwrap();
        assert_eq!(event.kind, event_type);
        event
    }

    /// The next block that is no comment.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                if block.starts_with(':') {
                    continue;
                }
                return Some(block);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.unwrap();
            self.buffer.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }
}
