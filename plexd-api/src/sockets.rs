//! The listening sockets: those that systemd passes, or those made here while this process is still root.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use nix::unistd::Gid;
use plexd_proto::privilege::ServiceUser;
use plexd_proto::transport::{self, BindError, SocketOwner};

/// Name of the API's socket among those that systemd passes (`FileDescriptorName=` of its unit).
const NAME: &str = "api";
/// Permission bits of the API's socket.
const MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// It could not be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The folder it belongs in could not be made.
    #[error("cannot create the folder {folder}: {source}; create it, owned by root, mode 0755", folder = .0.display(), source = .1)]
    Folder(PathBuf, #[source] io::Error),
    /// systemd passed something else.
    #[error("the socket `{NAME}` that systemd passed cannot be used: {0}; check ListenStream= in its unit")]
    Passed(#[source] io::Error),
    /// The TCP address could not be bound.
    #[error("cannot listen on {0} (node_api.http_listen): {1}")]
    Tcp(SocketAddr, #[source] io::Error),
}

/// Returns the API's Unix socket: systemd's if it passed one, else a new one at `path` that belongs to `user` and may
/// be used by `group`.
pub(crate) fn unix(path: &Path, user: &ServiceUser, group: Gid) -> Result<UnixListener, SocketError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    if let Some(index) = position(&names)
        && let Some(listener) = ListenFd::from_env().take_unix_listener(index).map_err(SocketError::Passed)?
    {
        return Ok(listener);
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        create(folder).map_err(|error| SocketError::Folder(folder.into(), error))?;
    }
    Ok(transport::bind(path, SocketOwner { uid: user.uid, gid: group, mode: MODE })?)
}

/// Returns the TCP listener.
pub(crate) fn tcp(address: SocketAddr) -> Result<TcpListener, SocketError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|error| SocketError::Tcp(address, error))
}

/// Makes a folder that only its owner, root, can add to and remove from.
fn create(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    // Whatever the umask says.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

fn position(names: &str) -> Option<usize> {
    names.split(':').position(|name| name == NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_socket_is_known_by_its_name() {
        assert_eq!(position("core:api:proof"), Some(1));
        assert_eq!(position("api"), Some(0));
        for names in ["", "apix", "core:admin"] {
            assert_eq!(position(names), None, "{names}");
        }
    }
}
