//! What core sees of a client by itself, from the client's own socket: that it is an accepted connection of `api.sock`, that
//! the client is still there, and who it was when it connected. What the sidecar says of it plays no part.
//!
//! A socket is one of `api.sock` if the file that it is bound to is the file at that path: accepted sockets have their
//! listener's, and nobody else's can have it. The name alone would prove nothing, as everybody can bind a socket to the same
//! name elsewhere. The file is looked at anew each time, as it is another one after the socket was made anew; while a socket
//! is bound to a file, no other file has its number.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use plexd_proto::transport::PeerCredentials;
use socket2::{Domain, SockRef, Type};

/// A client of `api.sock`, and its socket.
#[derive(Debug)]
pub(super) struct Client<S> {
    socket: S,
    /// Who it was when it connected.
    pub(super) peer: PeerCredentials,
    /// The kernel's number of the connection, which no other ever has.
    pub(super) cookie: u64,
}

/// Why a socket proves nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unproven {
    /// It is something else.
    #[error("what plexd-api passed is not a Unix stream socket")]
    NotAStream,
    /// Whoever listens has the credentials of its own maker.
    #[error("the socket that plexd-api passed listens")]
    Listens,
    /// It is the end that connected, one of a pair, or was accepted elsewhere.
    #[error(
        "the socket that plexd-api passed was not accepted at node_api.socket, {path}; if nobody has tampered with plexd-api, \
         it uses another socket than the configuration of plexd-core says",
        path = .0.display()
    )]
    AcceptedElsewhere(Box<Path>),
    /// The client has left.
    #[error("the client has left")]
    Left,
    /// The file of `api.sock` cannot be looked at.
    #[error("cannot look at node_api.socket, {path}: {source}", path = .path.display())]
    ApiSocket {
        /// Its path.
        path: Box<Path>,
        /// Why.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {operation} the socket that plexd-api passed: {source}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl<S: AsFd> Client<S> {
    /// Looks at `socket`, which is to be an accepted connection of the listener bound to the file `api_socket`.
    ///
    /// None of the system calls waits for anybody.
    pub(super) fn see(socket: S, api_socket: &Path) -> Result<Self, Unproven> {
        let system = |operation| move |source| Unproven::System { operation, source };
        if !is_unix_stream(&socket) {
            return Err(Unproven::NotAStream);
        }
        let seen = SockRef::from(&socket);
        if seen.is_listener().map_err(system("examine"))? {
            return Err(Unproven::Listens);
        }
        accepted_at(&socket, api_socket)?;
        let peer = PeerCredentials::of(&socket).map_err(system("read the peer of"))?;
        let cookie = seen.cookie().map_err(system("number"))?;
        let client = Self { socket, peer, cookie };
        if client.is_connected() { Ok(client) } else { Err(Unproven::Left) }
    }

    /// Returns whether the client can still be answered. One that only has no more to say can.
    pub(super) fn is_connected(&self) -> bool {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(_) => polled[0].revents().is_some_and(|events| !events.intersects(gone)),
            Err(_) => false,
        }
    }
}

/// Returns whether it is a Unix stream socket.
pub(super) fn is_unix_stream(socket: &impl AsFd) -> bool {
    let seen = SockRef::from(socket);
    seen.domain().is_ok_and(|domain| domain == Domain::UNIX)
        && seen.r#type().is_ok_and(|of| of == Type::STREAM)
}

fn accepted_at(socket: &impl AsFd, api_socket: &Path) -> Result<(), Unproven> {
    let elsewhere = || Unproven::AcceptedElsewhere(api_socket.into());
    let system = |source| Unproven::System { operation: "find the file of", source };
    let bound = match plexd_sys::bound_file(socket) {
        Ok(file) => File::from(file).metadata().map_err(system)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(elsewhere()),
        Err(error) => return Err(system(error)),
    };
    let ours = std::fs::metadata(api_socket)
        .map_err(|source| Unproven::ApiSocket { path: api_socket.into(), source })?;
    if (bound.dev(), bound.ino()) == (ours.dev(), ours.ino()) { Ok(()) } else { Err(elsewhere()) }
}

#[cfg(test)]
mod tests;
