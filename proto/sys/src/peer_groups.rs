//! `SO_PEERGROUPS`: the supplementary groups a Unix-socket peer had when it connected.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// Most groups a process can have (`NGROUPS_MAX` of Linux).
const MAX_GROUPS: usize = 65_536;

/// Returns the supplementary groups that the process at the other end of a Unix stream socket had when it connected
/// (`unix(7)`, Linux 4.13). The primary group is not among them unless it is also a supplementary one.
///
/// # Errors
/// The error of `getsockopt(2)`, as for a socket that is not a connected Unix socket.
pub fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = byte_length(&groups)?;
        // SAFETY: the descriptor is open for the whole call because `socket` is borrowed. The pointer and `length`
        // describe exactly the memory of `groups`, which is writable, aligned for `gid_t` and not otherwise
        // borrowed; the kernel writes at most `length` bytes there and the number of bytes into `length`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let entries = length as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(entries);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: the buffer was too small and `length` says what is needed.
        if error.raw_os_error() != Some(libc::ERANGE) || entries <= groups.len() || entries > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(entries, 0);
    }
}

fn byte_length(groups: &[libc::gid_t]) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of_val(groups)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn groups_of_a_peer_are_those_of_this_process() -> io::Result<()> {
        let (socket, _peer) = UnixStream::pair()?;
        let expected: Vec<u32> = nix::unistd::getgroups()?.iter().map(|group| group.as_raw()).collect();
        assert_eq!(peer_groups(&socket)?, expected);
        Ok(())
    }

    #[test]
    fn a_socket_that_is_not_a_unix_socket_is_an_error() -> io::Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        assert!(peer_groups(&listener).is_err());
        Ok(())
    }
}
