//! The server's end of a Unix socket: made with owner, group and mode before anybody can reach it, and handing out
//! connections together with the credentials of their peer.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;

use super::{Connection, PeerCredentials};

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
pub struct Incoming {
    listener: UnixListener,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    places: Option<Arc<Semaphore>>,
    /// The next connection's, as far as it is there.
    place: Option<Claim>,
}

/// A place, or the wait for one.
enum Claim {
    Waits(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>),
    Taken(OwnedSemaphorePermit),
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// How long accepting pauses after `accept(2)` failed, so that it does not spin.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Incoming {
    /// Takes over a listening socket, inside a tokio runtime. Its clients cannot pass descriptors from now on, as far as the
    /// kernel knows how to refuse them (Linux 6.16): they are for nobody, and could hold up who reads.
    ///
    /// # Errors
    /// If the runtime cannot register it.
    pub fn new(listener: StdListener) -> io::Result<Self> {
        plexd_sys::refuse_descriptors(&listener);
        Self::with_descriptors(listener)
    }

    /// Takes over a listening socket whose clients may pass descriptors.
    ///
    /// # Errors
    /// If the runtime cannot register it.
    pub fn with_descriptors(listener: StdListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, pause: None, places: None, place: None })
    }

    /// Takes no more than `connections` at a time, as a stream; others wait in the kernel, whose queue is bounded as well.
    #[must_use]
    pub fn at_most(mut self, connections: usize) -> Self {
        self.places = Some(Arc::new(Semaphore::new(connections)));
        self
    }

    /// Accepts the next connection as a bare socket. Safe to cancel.
    pub async fn accept(&mut self) -> (UnixStream, PeerCredentials) {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Is ready once there is a place for the next connection.
    fn poll_place(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(places) = &self.places else { return Poll::Ready(()) };
        let claim =
            self.place.get_or_insert_with(|| Claim::Waits(Box::pin(Arc::clone(places).acquire_owned())));
        if let Claim::Waits(waits) = claim {
            // Places are never taken away: an error cannot be.
            if let Ok(place) = std::task::ready!(waits.as_mut().poll(cx)) {
                *claim = Claim::Taken(place);
            }
        }
        Poll::Ready(())
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<(UnixStream, PeerCredentials)> {
        loop {
            if let Some(pause) = self.pause.as_mut() {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => match PeerCredentials::of(&stream) {
                    Ok(peer) => return Poll::Ready((stream, peer)),
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

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        std::task::ready!(self.poll_place(cx));
        let (stream, peer) = std::task::ready!(self.poll_accept(cx));
        let place = match self.place.take() {
            Some(Claim::Taken(place)) => Some(place),
            Some(Claim::Waits(_)) | None => None,
        };
        Poll::Ready(Some(Ok(Connection::new(stream, peer, place))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

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

    #[tokio::test]
    async fn no_more_connections_are_taken_than_there_are_places() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let mut incoming = Incoming::new(bind(&path, me(0o660)).unwrap()).unwrap().at_most(2);
        let _clients: Vec<_> = (0..4).map(|_| StdStream::connect(&path).unwrap()).collect();
        let mut taken = Vec::new();
        for _ in 0..2 {
            taken.push(incoming.next().await.unwrap().unwrap());
        }
        assert!(incoming.next().now_or_never().is_none());
        taken.pop();
        assert!(incoming.next().await.is_some());
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
