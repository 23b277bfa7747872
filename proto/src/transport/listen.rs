//! The server's end of a Unix socket: made with owner, group and mode before anybody can reach it, and handing out
//! connections together with the credentials of their peer.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::PeerCredentials;

/// Connections the kernel holds for us before they are accepted.
const BACKLOG: i32 = 1024;

/// Who owns a socket, and its permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOwner {
    /// Owning user.
    pub uid: Uid,
    /// Owning group.
    pub gid: Gid,
    /// Permission bits, such as `0o660`.
    pub mode: u32,
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Something answers at the path.
    #[error("{path} is in use: another process listens there; stop it first", path = .0.display())]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{path} exists and is not a socket; remove it or choose another path", path = .0.display())]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("cannot {operation} the socket {path}: {source}", path = .path.display())]
    System {
        /// What was being done.
        operation: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Makes a listening Unix socket at `path`. It cannot be connected to before it has its owner, group and mode: they
/// are set between `bind(2)` and `listen(2)`, and until the latter a connection is refused. A socket file that
/// nobody listens on any more is replaced.
///
/// Changes the process's umask for a moment: call it before any thread is started.
pub fn bind(path: &Path, owner: SocketOwner) -> Result<StdListener, BindError> {
    remove_stale(path)?;
    let system =
        |operation| move |source: io::Error| BindError::System { operation, path: path.into(), source };
    let errno = |operation| move |error: nix::Error| system(operation)(error.into());

    let socket: OwnedFd = nix::sys::socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
    .map_err(errno("create"))?;
    let address = UnixAddr::new(path).map_err(errno("name"))?;
    let umask = nix::sys::stat::umask(Mode::from_bits_truncate(0o777));
    let bound = nix::sys::socket::bind(socket.as_raw_fd(), &address);
    nix::sys::stat::umask(umask);
    bound.map_err(errno("bind"))?;
    nix::unistd::chown(path, Some(owner.uid), Some(owner.gid)).map_err(errno("change the owner of"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(owner.mode)).map_err(system("set the mode of"))?;
    let backlog = Backlog::new(BACKLOG).map_err(errno("listen on"))?;
    nix::sys::socket::listen(&socket, backlog).map_err(errno("listen on"))?;
    Ok(StdListener::from(socket))
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let system = |operation| move |source| BindError::System { operation, path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("examine")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NotASocket(path.into())),
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system("replace"))
        }
        Err(error) => Err(system("probe")(error)),
        Ok(_) => Err(BindError::InUse(path.into())),
    }
}

/// Accepted connections of a Unix socket, for a tonic server. A connection whose peer's credentials cannot be read is
/// closed; an error of `accept(2)` that passes (no descriptors left, say) ends nothing.
#[derive(Debug)]
pub struct Incoming {
    listener: UnixListener,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// How long accepting pauses after `accept(2)` failed, so that it does not spin.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Incoming {
    /// Takes over a listening socket, inside a tokio runtime.
    ///
    /// # Errors
    /// If the runtime cannot register it.
    pub fn new(listener: StdListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, pause: None })
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = self.pause.as_mut() {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => match PeerCredentials::of(&stream) {
                    Ok(peer) => return Poll::Ready(Some(Ok(Connection { stream, peer }))),
                    Err(error) => tracing::debug!(%error, "connection without credentials closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// An accepted connection and who is at its other end. Requests that arrive on it carry the [`PeerCredentials`] as
/// an extension.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    peer: PeerCredentials,
}

impl Connected for Connection {
    type ConnectInfo = PeerCredentials;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(mode: u32) -> SocketOwner {
        SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode }
    }

    #[test]
    fn a_socket_has_its_mode_and_a_stale_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = bind(&path, me(0o660)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(bind(&path, me(0o660)), Err(BindError::InUse(_))));
        drop(listener);
        assert!(bind(&path, me(0o600)).is_ok());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_in_the_way_is_kept_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path, me(0o660)).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
