//! A server of a few lines: real TLS by an authority of its own, canned answers, one per connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use plexd_core::clock::NodeClock;
use plexd_core::control::client::{Client, ClientConfig, Credentials, SetupError};
use plexd_core::types::NodeSecretKey;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

pub(crate) const NSK: &str = "FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlGo=";

/// What the server does with a connection.
pub(crate) enum Answer {
    /// Writes it and closes.
    Text(String),
    /// Writes it and leaves the connection open, while time runs as fast as it can.
    Hang(String),
    /// Writes the head of a stream, a comment for each message, and an event when there are no more.
    Comments(mpsc::UnboundedReceiver<()>),
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    dir: TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves the answers, one per connection, with a certificate for `name` of an authority of its own.
    pub(crate) async fn start(name: &str, answers: Vec<Answer>) -> Self {
        Self::certified(CertificateParams::new(vec![name.to_owned()]).unwrap(), answers).await
    }

    /// Serves the answers, one per connection, with a certificate of an authority of its own.
    pub(crate) async fn certified(certificate: CertificateParams, answers: Vec<Answer>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(vec![]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = certificate.signed_by(&key, &authority).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), dir, requests: Arc::default() };
        tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            answers.into(),
            server.requests.clone(),
        ));
        server
    }

    pub(crate) async fn answering(answer: impl Into<String>) -> Self {
        Self::start("127.0.0.1", vec![Answer::Text(answer.into())]).await
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn client(&self) -> Client {
        client(self.address, Some(self.ca())).unwrap()
    }

    pub(crate) fn client_by(&self, clock: &Arc<NodeClock>) -> Client {
        Client::with_clock(config(self.address, Some(self.ca())), Arc::clone(clock)).unwrap()
    }

    pub(crate) fn request(&self) -> String {
        self.requests.lock().unwrap().pop().expect("a request")
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    mut answers: VecDeque<Answer>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    while let Some(answer) = answers.pop_front() {
        let (stream, _) = listener.accept().await.unwrap();
        // Clients that do not trust the certificate end here.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let request = read_request(&mut stream).await;
        requests.lock().unwrap().push(request);
        match answer {
            Answer::Text(text) => {
                stream.write_all(text.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            Answer::Hang(text) => {
                stream.write_all(text.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                if text.is_empty() {
                    tokio::time::pause();
                }
                std::future::pending::<()>().await;
            }
            Answer::Comments(mut wanted) => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                while wanted.recv().await.is_some() {
                    stream.write_all(b": still here\n\n").await.unwrap();
                    stream.flush().await.unwrap();
                }
                stream.write_all(b"id: 8\ndata: {}\n\n").await.unwrap();
                stream.flush().await.unwrap();
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn read_request(stream: &mut TlsStream<TcpStream>) -> String {
    let mut request = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return request;
        }
    }
}

pub(crate) fn client(address: SocketAddr, ca_file: Option<PathBuf>) -> Result<Client, SetupError> {
    Client::new(config(address, ca_file))
}

fn config(address: SocketAddr, ca_file: Option<PathBuf>) -> ClientConfig {
    ClientConfig { base: format!("https://{address}/").parse().unwrap(), ca_file, version: "1.2.3" }
}

pub(crate) fn who() -> Credentials {
    Credentials { node_id: "n_abc123".parse().unwrap(), secret: NodeSecretKey::parse(NSK).unwrap() }
}

pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}
