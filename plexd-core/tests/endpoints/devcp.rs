//! A development control plane within the test's own process, and its admin API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use plexd_core::clock::NodeClock;
use plexd_core::control::client::{Client, ClientConfig, Credentials};
use plexd_core::control::convert::Registration;
use plexd_core::control::wire::{self, RegisterRequest, SecretText};
use plexd_core::types::PrivateKey;
use plexd_devcp::server::{Options, Server};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Nothing here takes that long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A control plane; ends with the test.
pub(crate) struct Devcp {
    server: JoinHandle<()>,
    admin: String,
    http: reqwest::Client,
    pub(crate) client: Client,
    config: ClientConfig,
    pub(crate) dir: TempDir,
}

impl Drop for Devcp {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Devcp {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = "127.0.0.1:0".parse().unwrap();
        let options = Options { listen: free, admin: free, state: dir.path().to_owned(), names: vec![] };
        let server = Server::bind(options).await.unwrap();
        let config = ClientConfig {
            base: format!("https://{}", server.wire_addr()).parse().unwrap(),
            ca_file: Some(server.ca_path().to_owned()),
            version: "1.2.3",
        };
        Self {
            admin: format!("http://{}/admin", server.admin_addr()),
            client: Client::new(config.clone()).unwrap(),
            config,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            server: tokio::spawn(server.run()),
            dir,
        }
    }

    pub(crate) fn client_by(&self, clock: &Arc<NodeClock>) -> Client {
        Client::with_clock(self.config.clone(), Arc::clone(clock)).unwrap()
    }

    /// An admin request, which has to succeed.
    pub(crate) async fn manage(&self, method: Method, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = self.http.request(method, format!("{}/{path}", self.admin)).body(body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let body = response.bytes().await.unwrap();
        assert!(status.is_success(), "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) async fn token(&self) -> String {
        self.manage(Method::POST, "tokens", &json!({})).await["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn enrol(&self, hostname: &str) -> Credentials {
        let request = registration(&self.token().await, hostname);
        let Registration { node_id, node_secret_key: secret, .. } =
            self.client.register(&request).await.unwrap();
        Credentials { node_id, secret }
    }

    /// Makes `endpoint` answer with `status`.
    pub(crate) async fn break_with(&self, endpoint: &str, status: u16) {
        self.manage(Method::PUT, "faults", &json!({"endpoint": endpoint, "status": status})).await;
    }

    pub(crate) async fn heal(&self) {
        self.manage(Method::DELETE, "faults", &Value::Null).await;
    }

    /// The bodies of one kind that came from a node, in order.
    pub(crate) async fn received(&self, who: &Credentials, kind: &str) -> Vec<Value> {
        let path = format!("nodes/{}/received", who.node_id);
        let received = self.manage(Method::GET, &path, &Value::Null).await;
        received[kind].as_array().unwrap().iter().map(|item| item["body"].clone()).collect()
    }
}

pub(crate) fn registration(token: &str, hostname: &str) -> RegisterRequest {
    RegisterRequest {
        token: SecretText::from(token),
        public_key: PrivateKey::generate().unwrap().public().to_string(),
        hostname: hostname.to_owned(),
        ..example("register_request.json")
    }
}

/// An example of the documents.
pub(crate) fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// An example of the documents, read.
pub(crate) fn example<T: DeserializeOwned>(name: &str) -> T {
    wire::parse(fixture(name).as_bytes()).unwrap()
}

/// The lines of an example of the documents, read.
pub(crate) fn example_lines<T: DeserializeOwned>(name: &str) -> Vec<T> {
    fixture(name).lines().map(|line| wire::parse(line.as_bytes()).unwrap()).collect()
}

/// Waits until something that happens elsewhere has happened.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
