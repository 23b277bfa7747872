//! The client's end of a Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a server whose stream is silent is asked whether it is still there. One that ends is seen at once; this is for
/// one that hangs, and wakes both.
const KEEP_ALIVE: Duration = Duration::from_mins(1);

/// Returns a channel to the gRPC server at `path`. It connects with the first call and again whenever the connection
/// was lost; a call made while nobody listens fails at once with `Unavailable`.
pub fn connect(path: &Path) -> Channel {
    let path = PathBuf::from(path);
    // The URI is never resolved: HTTP/2 wants an authority, and the connector below ignores it.
    let endpoint = Endpoint::from_static("http://plexd.local")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(CONNECT_TIMEOUT);
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}
