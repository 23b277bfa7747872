//! The listening sockets: those that systemd passes, or those made here while this process is still root.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::unistd::Gid;
use plexd_proto::privilege::ServiceUser;
use plexd_proto::transport::{self, AcquireError, SocketOwner};

/// Name of the API's socket among those that systemd passes (`FileDescriptorName=` of its unit).
const NAME: &str = "api";
/// Permission bits of the API's socket.
const MODE: u32 = 0o660;

/// The TCP address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (node_api.http_listen): {source}")]
pub(crate) struct TcpError {
    address: SocketAddr,
    source: io::Error,
}

/// Returns the API's Unix socket: systemd's if it passed one, else a new one at `path` that belongs to `user` and may
/// be used by `group`.
pub(crate) fn unix(path: &Path, user: &ServiceUser, group: Gid) -> Result<UnixListener, AcquireError> {
    transport::acquire(NAME, path, SocketOwner { uid: user.uid, gid: group, mode: MODE })
}

/// Returns the TCP listener.
pub(crate) fn tcp(address: SocketAddr) -> Result<TcpListener, TcpError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source| TcpError { address, source })
}
