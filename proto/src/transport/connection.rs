//! An accepted connection of a Unix socket: its bytes, who is at its other end, and its socket for those who have to show it
//! to somebody else. It ends when it is dropped, whoever still holds the socket.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::Connected;

use super::PeerCredentials;

/// An accepted connection and who is at its other end. Requests that arrive on it carry the [`PeerCredentials`] as
/// an extension.
#[derive(Debug)]
pub struct Connection {
    reading: OwnedReadHalf,
    writing: Arc<Writing>,
    peer: PeerCredentials,
    _place: Option<OwnedSemaphorePermit>,
}

/// The half that is written to, which is shared with who has the [`ClientSocket`].
#[derive(Debug)]
struct Writing(OwnedWriteHalf);

impl AsFd for Writing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let stream: &UnixStream = self.0.as_ref();
        stream.as_fd()
    }
}

/// The socket of a client's connection, to be shown to plexd-core ([`crate::proof`]). It stays the same one as long as this
/// lives; the connection ends without it.
#[derive(Clone)]
pub struct ClientSocket(Arc<dyn AsFd + Send + Sync>);

impl ClientSocket {
    /// Wraps a socket.
    pub fn new(socket: impl AsFd + Send + Sync + 'static) -> Self {
        Self(Arc::new(socket))
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for ClientSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientSocket").field(&self.0.as_fd()).finish()
    }
}

impl Connection {
    pub(super) fn new(
        stream: UnixStream,
        peer: PeerCredentials,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let (reading, writing) = stream.into_split();
        Self { reading, writing: Arc::new(Writing(writing)), peer, _place: place }
    }

    /// Returns its socket.
    pub fn socket(&self) -> ClientSocket {
        ClientSocket(Arc::clone(&self.writing) as _)
    }

    fn stream(&self) -> &UnixStream {
        self.reading.as_ref()
    }

    /// Does `write` as soon as there is room.
    fn write<T>(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(self.stream().poll_write_ready(cx))?;
            match write(self.stream()) {
                // It is not ready any more, and will say when it is.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        Ok(shutdown(self.stream().as_raw_fd(), how)?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The client sees the end at once, also while its socket is shown to somebody. It may have left already.
        let _ = self.shut_down(Shutdown::Both);
    }
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
        Pin::new(&mut self.reading).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| stream.try_write(data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| stream.try_write_vectored(data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shut_down(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (here, there) = UnixStream::pair().expect("a pair");
        let peer = PeerCredentials::of(&here).expect("credentials");
        (Connection::new(here, peer, None), there)
    }

    #[tokio::test]
    async fn a_connection_carries_more_than_fits_and_half_of_it_can_end() -> io::Result<()> {
        let (mut connection, mut client) = pair();
        let much = vec![7; 3_000_000];
        let (sent, received) = tokio::join!(
            async {
                connection.write_all(&much).await?;
                connection.shutdown().await
            },
            async {
                let mut received = Vec::new();
                client.read_to_end(&mut received).await.map(|_| received)
            }
        );
        sent?;
        assert!(received? == much);
        client.write_all(b"later").await?;
        let mut later = [0; 5];
        connection.read_exact(&mut later).await?;
        assert_eq!(&later, b"later");
        Ok(())
    }

    #[tokio::test]
    async fn a_client_sees_the_end_though_its_socket_is_still_held() -> io::Result<()> {
        let (connection, mut client) = pair();
        let held = connection.socket();
        drop(connection);
        assert_eq!(client.read(&mut [0; 1]).await?, 0);
        drop(held);
        Ok(())
    }
}
