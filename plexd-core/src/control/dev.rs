//! Control planes for tests: the development control plane within this process, and one that answers from a script.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use plexd_devcp::server::{Options, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::client::{Client, ClientConfig};
use super::wire::{RegisterRequest, SecretText};
use crate::identity::Identity;
use crate::types::PrivateKey;

/// Nothing here takes that long, not even on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `check` gives something.
pub(crate) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn client(address: SocketAddr, ca: &Path) -> Client {
    let base = format!("https://{address}/").parse().unwrap();
    Client::new(ClientConfig { base, ca_file: Some(ca.into()), version: "1.2.3" }).unwrap()
}

/// The development control plane; gone when dropped.
pub(crate) struct DevControlPlane {
    address: SocketAddr,
    admin: SocketAddr,
    ca: PathBuf,
    http: reqwest::Client,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl Drop for DevControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DevControlPlane {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options { listen: any, admin: any, state: folder.path().into(), names: Vec::new() };
        let server = Server::bind(options).await.unwrap();
        let (address, admin, ca) = (server.wire_addr(), server.admin_addr(), server.ca_path().to_owned());
        let task = tokio::spawn(server.run());
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, admin, ca, http, task, _folder: folder }
    }

    pub(crate) fn client(&self) -> Client {
        client(self.address, &self.ca)
    }

    /// An admin request that has to succeed.
    pub(crate) async fn manage(&self, method: Method, path: &str, body: Value) -> Value {
        let request = self.http.request(method, format!("http://{}/admin/{path}", self.admin));
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("http://{}/admin/{path}", self.admin)).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    pub(crate) async fn fault(&self, rule: Value) {
        self.manage(Method::PUT, "faults", rule).await;
    }

    pub(crate) async fn no_faults(&self) {
        self.manage(Method::DELETE, "faults", json!({})).await;
    }

    pub(crate) async fn token(&self) -> String {
        self.manage(Method::POST, "tokens", json!({})).await["token"].as_str().unwrap().to_owned()
    }

    /// What the node sent, of one kind, oldest first.
    pub(crate) async fn received(&self, node: &str, kind: &str) -> Vec<Value> {
        let received = self.get(&format!("nodes/{node}/received")).await;
        received[kind].as_array().unwrap().iter().map(|sent| sent["body"].clone()).collect()
    }

    /// Makes a node without a process.
    pub(crate) async fn enrol(&self, hostname: &str) -> Identity {
        let private_key = PrivateKey::generate().unwrap();
        let token = self.token().await;
        register(&self.client(), &token, hostname, private_key).await
    }
}

/// Registers as a process would that then is lost.
pub(crate) async fn register(
    client: &Client,
    token: &str,
    hostname: &str,
    private_key: PrivateKey,
) -> Identity {
    let request = RegisterRequest {
        token: SecretText::from(token),
        public_key: private_key.public().to_string(),
        hostname: hostname.to_owned(),
        metadata: None,
        capabilities: None,
    };
    let registration = client.register(&request).await.unwrap();
    Identity {
        node_id: registration.node_id,
        mesh_ip: registration.mesh_ip,
        secret_key: registration.node_secret_key,
        signing_key: registration.signing_key,
        private_key,
    }
}

/// A control plane that answers every request by a function of its head and body, one per connection.
pub(crate) struct ScriptedControlPlane {
    address: SocketAddr,
    folder: TempDir,
    task: JoinHandle<()>,
}

impl Drop for ScriptedControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ScriptedControlPlane {
    /// `answer` gives status line and body.
    pub(crate) async fn start(
        mut answer: impl FnMut(&str) -> (&'static str, String) + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let acceptor = acceptor(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let request = read_request(&mut stream).await;
                let (status, body) = answer(&request);
                let text = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                // A client that went away is no error.
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { address, folder, task }
    }

    pub(crate) fn client(&self) -> Client {
        client(self.address, &self.folder.path().join("ca.pem"))
    }
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = names.signed_by(&key, &authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return String::from_utf8_lossy(&request).into_owned();
        }
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return text.into_owned();
        }
    }
}
