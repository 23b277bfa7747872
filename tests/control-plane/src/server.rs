//! Listeners and connections: the control-plane API over TLS, the admin API over loopback. What a request means is
//! not known here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::ca::{self, Authority, CaError};
use crate::certificates::Certificates;
use crate::faults::Faults;
use crate::rates::Rates;
use crate::reply::Reply;
use crate::store::{Store, StoreError};
use crate::{admin, wire};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// What to serve, and from where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the control-plane API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of the admin API, on loopback; port 0 takes a free one.
    pub admin: SocketAddr,
    /// Directory of everything that outlives a restart.
    pub state: PathBuf,
    /// Further names and addresses of the server certificate.
    pub names: Vec<String>,
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The admin API has no authentication, so nobody else may reach it.
    #[error(
        "--admin {0} is not a loopback address: the admin API has no authentication; use 127.0.0.1 or [::1]"
    )]
    AdminNotLoopback(SocketAddr),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificates cannot be loaded or made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The state cannot be loaded.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What every request handler reaches.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) certificates: Certificates,
    pub(crate) rates: Rates,
}

/// A control plane that listens and has not begun to answer.
pub struct Server {
    app: Arc<App>,
    wire: TcpListener,
    wire_addr: SocketAddr,
    admin: TcpListener,
    admin_addr: SocketAddr,
    ca_path: PathBuf,
}

impl Server {
    /// Loads the state, makes the certificate and opens both listeners.
    ///
    /// # Errors
    /// An admin address off loopback, an address in use, state that cannot be read or written.
    pub async fn bind(options: Options) -> Result<Self, ServerError> {
        if !options.admin.ip().is_loopback() {
            return Err(ServerError::AdminNotLoopback(options.admin));
        }
        let store = Store::open(&options.state)?;
        let authority = Authority::open(&options.state)?;
        let names = ca::server_names(options.listen.ip(), &options.names);
        let certificates = Certificates::new(authority, names)?;
        let (wire, wire_addr) = listen(options.listen).await?;
        let (admin, admin_addr) = listen(options.admin).await?;
        let ca_path = certificates.authority().pem_path().to_owned();
        let app = Arc::new(App { store, faults: Faults::new(), certificates, rates: Rates::default() });
        Ok(Self { app, wire, wire_addr, admin, admin_addr, ca_path })
    }

    /// Where the control-plane API listens.
    #[must_use]
    pub fn wire_addr(&self) -> SocketAddr {
        self.wire_addr
    }

    /// Where the admin API listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// The certificate to pin.
    #[must_use]
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// Serves until dropped; every connection ends with it.
    pub async fn run(self) {
        let refusing = self.app.faults.refusing();
        let mut connections = JoinSet::new();
        loop {
            // Accepting and joining lose nothing when another branch is taken.
            tokio::select! {
                accepted = self.wire.accept() => {
                    let Some((stream, peer)) = usable(accepted).await else { continue };
                    self.app.rates.connection();
                    if !*refusing.borrow() {
                        connections.spawn(serve_wire(Arc::clone(&self.app), stream, peer));
                    }
                }
                accepted = self.admin.accept() => {
                    let Some((stream, _)) = usable(accepted).await else { continue };
                    connections.spawn(serve_admin(Arc::clone(&self.app), stream));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    let failed = |source| ServerError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Waits a moment after a failure: out of descriptors, accepting fails at once and again.
async fn usable(accepted: io::Result<(TcpStream, SocketAddr)>) -> Option<(TcpStream, SocketAddr)> {
    match accepted {
        Ok((stream, peer)) => {
            // Without it a small answer may wait for an acknowledgement; not worth losing the connection over.
            let _ = stream.set_nodelay(true);
            Some((stream, peer))
        }
        Err(error) => {
            tracing::warn!(%error, "connection not accepted");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn serve_wire(app: Arc<App>, stream: TcpStream, peer: SocketAddr) {
    let mut refusing = app.faults.refusing();
    let mut certificate = app.certificates.current();
    let tls = TlsAcceptor::from(Arc::clone(&certificate.borrow_and_update()));
    let served = async {
        match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let handler = move |request| {
                    let app = Arc::clone(&app);
                    async move { wire::handle(&app, peer.ip(), request).await }
                };
                serve_http(stream, handler).await;
            }
            Ok(Err(error)) => tracing::info!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::info!(%peer, "TLS handshake took too long"),
        }
    };
    // Dropping the connection in the middle of anything is what refusing and another certificate mean.
    tokio::select! {
        () = served => {}
        _ = refusing.wait_for(|refused| *refused) => {}
        _ = certificate.changed() => {}
    }
}

async fn serve_admin(app: Arc<App>, stream: TcpStream) {
    let handler = move |request| {
        let app = Arc::clone(&app);
        async move { admin::handle(&app, request).await }
    };
    serve_http(stream, handler).await;
}

async fn serve_http<S, H, F>(stream: S, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Reply>,
{
    let service = service_fn(|request| {
        let reply = handler(request);
        async move { Ok::<_, Infallible>(reply.await) }
    });
    // No limit on reading a head: it would also end idle connections that a client keeps for its next heartbeat.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended");
    }
}
