//! Who is at the other end of a Unix socket, as the kernel recorded it when the connection was made.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};

/// Credentials of a connected peer: those of the process that called `connect(2)`, at that moment (`unix(7)`).
/// What the user database says now plays no part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id, in this process's PID namespace; 0 if it has none there.
    pub pid: i32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

impl PeerCredentials {
    /// Reads the credentials of the peer of a connected Unix stream socket.
    ///
    /// # Errors
    /// The error of `getsockopt(2)`.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid(),
            groups: plexd_sys::peer_groups(socket)?,
        })
    }

    /// Returns whether the peer had `gid` as its effective or as a supplementary group.
    pub fn has_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn credentials_are_those_of_the_connecting_process() -> io::Result<()> {
        let (socket, _peer) = UnixStream::pair()?;
        let credentials = PeerCredentials::of(&socket)?;
        assert_eq!(credentials.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(u32::try_from(credentials.pid).ok(), Some(std::process::id()));
        assert!(credentials.has_group(nix::unistd::getegid().as_raw()));
        Ok(())
    }
}
