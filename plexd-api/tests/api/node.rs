//! A node for tests: a core that does as it is told, the mirror, the server on a Unix socket and on TCP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plexd_api::auth::{Caller, LocalClient, Rules};
use plexd_api::core_client::{Core, follow};
use plexd_api::http::{Api, Bodies, Limits, Metrics, Server, Told};
use plexd_api::mirror::Mirror;
use plexd_proto::node::v1::change::Change as Wire;
use plexd_proto::node::v1::{DataEntry, Metadata, Node as NodeIdentity, SecretRef, TcpAccess};
use plexd_proto::transport::{self, ClientSocket, Incoming, PeerCredentials, SocketOwner};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::Client;
use crate::core::FakeCore;

/// The token of TCP callers.
pub(crate) const TOKEN: &str = "dG9rZW4=";
/// Groups that the tests' made-up callers have or lack.
pub(crate) const SOCKET_GID: u32 = 70_001;
pub(crate) const SECRETS_GID: u32 = 70_002;
/// Largest body of a report, in bytes.
pub(crate) const MAX_BODY: usize = 10_000;

pub(crate) struct Node {
    pub(crate) core: FakeCore,
    pub(crate) server: Arc<Server>,
    pub(crate) tcp: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    socket: PathBuf,
    _folder: TempDir,
    _stop: DropGuard,
}

/// What differs from node to node.
pub(crate) struct Setup {
    pub(crate) state: Vec<Wire>,
    pub(crate) limits: Limits,
    pub(crate) tcp_secrets: bool,
    pub(crate) metrics: bool,
    /// Whether there is a core from the beginning.
    pub(crate) core: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { state: registered(), limits: Limits::default(), tcp_secrets: true, metrics: false, core: true }
    }
}

impl Setup {
    pub(crate) async fn start(self) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let mut core = FakeCore::new(folder.path());
        core.store().state = self.state;
        if self.core {
            core.start();
        }
        let mirror = Arc::new(Mirror::new());
        let shutdown = CancellationToken::new();
        let (client, carrier) = Core::new(core.sockets(), Arc::clone(&mirror));
        tokio::spawn(carrier.run(CancellationToken::new()));
        tokio::spawn(follow(client.clone(), Arc::clone(&mirror), shutdown.clone()));
        let rules = Rules {
            // The tests' own connections come with the group of whoever runs them.
            socket_gid: SOCKET_GID,
            secrets_gid: SECRETS_GID,
            tcp_secrets: self.tcp_secrets,
        };
        let metrics = self.metrics.then(Metrics::default);
        let shutdown_too = shutdown.clone();
        let api = Api {
            mirror,
            core: client,
            rules,
            max_report_bytes: MAX_BODY,
            bodies: Bodies::new(MAX_BODY),
            told: Told::default(),
            metrics,
            shutdown: shutdown_too,
        };
        let server = Server::new(&Arc::new(api), self.limits);

        let socket = folder.path().join("api.sock");
        let owner = SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode: 0o660 };
        let unix = Incoming::new(transport::bind(&socket, owner).unwrap()).unwrap();
        tokio::spawn(Arc::clone(&server).serve_unix(unix));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = listener.local_addr().unwrap();
        tokio::spawn(Arc::clone(&server).serve_tcp(listener));
        let stop = shutdown.clone().drop_guard();
        let node = Node { core, server, tcp, shutdown, socket, _folder: folder, _stop: stop };
        if self.core {
            node.until("/readyz", |answer| answer.body != r#"{"error":"core unavailable"}"#).await;
        }
        node
    }
}

impl Node {
    /// Starts a registered node with an empty state.
    pub(crate) async fn start() -> Self {
        Setup::default().start().await
    }

    /// Connects as a member of both groups, whoever runs the tests.
    pub(crate) fn client(&self) -> Client {
        self.client_as(1000, &[SOCKET_GID, SECRETS_GID])
    }

    /// Connects as a process with these credentials.
    pub(crate) fn client_as(&self, uid: u32, groups: &[u32]) -> Client {
        let peer = PeerCredentials { uid, gid: uid, pid: 42, groups: groups.to_vec() };
        let (client, server) = tokio::io::duplex(64 * 1024);
        // Shown to core as the client's, who does not look at it here.
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let caller = LocalClient { peer, socket: ClientSocket::new(socket) };
        self.server.accept(server, Caller::Local(Arc::new(caller)));
        Client::new(client)
    }

    /// Connects to the Unix socket, as whoever runs the tests.
    pub(crate) async fn connect_unix(&self) -> Client {
        Client::new(UnixStream::connect(&self.socket).await.unwrap())
    }

    /// Connects by TCP.
    pub(crate) async fn connect_tcp(&self) -> Client {
        Client::new(TcpStream::connect(self.tcp).await.unwrap())
    }

    /// Reads `path` until the answer is as wanted.
    pub(crate) async fn until(
        &self,
        path: &str,
        wanted: impl Fn(&crate::client::Answer) -> bool,
    ) -> crate::client::Answer {
        let mut client = self.client();
        let attempts = async {
            loop {
                let answer = client.get(path).await;
                if wanted(&answer) {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), attempts).await.expect("the wanted answer")
    }
}

/// The state of a registered node that holds nothing.
pub(crate) fn registered() -> Vec<Wire> {
    let digest: [u8; 32] = Sha256::digest(TOKEN).into();
    vec![
        Wire::Node(NodeIdentity { node_id: "n_1".into() }),
        Wire::TcpAccess(TcpAccess { token_sha256: digest.to_vec().into() }),
    ]
}

pub(crate) fn metadata(values: &[(&str, &str)]) -> Wire {
    let values: BTreeMap<_, _> = values.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    Wire::Metadata(Metadata { values })
}

pub(crate) fn data(key: &str, version: i64, content_type: &str, payload: &str, position: u64) -> Wire {
    Wire::Data(DataEntry {
        key: key.into(),
        content_type: content_type.into(),
        payload: payload.to_owned().into(),
        version,
        updated_at: "2025-06-01T12:34:56Z".into(),
        position,
    })
}

pub(crate) fn secret(key: &str, version: i64, position: u64) -> Wire {
    Wire::Secret(SecretRef { key: key.into(), version, position })
}
