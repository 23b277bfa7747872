//! Descriptors over a Unix socket (`SCM_RIGHTS`, `unix(7)`): received so that every one that arrives has an owner, whatever
//! else is wrong with the message, and the file that a socket is bound to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;

nix::ioctl_none_bad!(
    /// Opens the file that a Unix socket is bound to.
    siocunixfile,
    SIOCUNIXFILE
);

/// `SIOCPROTOPRIVATE + 0` (`linux/un.h`, Linux 4.11).
const SIOCUNIXFILE: libc::c_ulong = 0x89e0;

/// Most descriptors in one message (`SCM_MAX_FD`).
const MOST: usize = 253;

/// Room for control data, in words: a header of two, and the descriptors, two in a word.
const CONTROL_WORDS: usize = 2 + MOST.div_ceil(2);

/// `SO_PASSRIGHTS` of `asm-generic/socket.h` (Linux 6.16).
const SO_PASSRIGHTS: libc::c_int = 83;

/// What one `recvmsg(2)` brought.
#[derive(Debug)]
pub struct Received {
    /// How many bytes; 0 at the end of the stream.
    pub bytes: usize,
    /// The descriptors, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether some descriptors were lost, as this process may not have so many open.
    pub truncated: bool,
}

/// Receives what is there, without waiting, with all descriptors that came with it: those that are not taken the kernel closes,
/// which can take as long as who passed them likes.
///
/// # Errors
/// The error of `recvmsg(2)`, `WouldBlock` if there is nothing.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    // Words, for the alignment of `cmsghdr`.
    let mut control = [0_u64; CONTROL_WORDS];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `msghdr` is plain old data, for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // `as _`: of another type in other C libraries.
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the descriptor is open for the whole call because `socket` is borrowed. `message` points to one `iovec` and
    // to control memory of the lengths it says, all writable, not otherwise borrowed, and alive until after the call.
    let bytes = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let Ok(bytes) = usize::try_from(bytes) else { return Err(io::Error::last_os_error()) };
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has written `msg_controllen` bytes of well-formed headers to `control`, which is alive, aligned for
    // them and no longer written to. CMSG_FIRSTHDR and CMSG_NXTHDR stay within it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
                #[allow(clippy::unnecessary_cast, reason = "of another type in other C libraries")]
                let length = found.cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data: *const RawFd = libc::CMSG_DATA(header).cast();
                for index in 0..length / size_of::<RawFd>() {
                    // SAFETY: one of `length` bytes of numbers, which the kernel has just made for this process: nobody
                    // else knows them, so that each has one owner, this one.
                    descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Received { bytes, descriptors, truncated: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Has the kernel refuse descriptors that are sent to connections of the listening Unix socket `listener`, those included that
/// wait to be accepted (Linux 6.16). Returns whether it does from now on.
///
/// Who reads such a connection has the kernel close what was passed, which can take as long as who passed it likes.
pub fn refuse_descriptors(listener: &impl AsFd) -> bool {
    let off: libc::c_int = 0;
    let Ok(length) = libc::socklen_t::try_from(size_of_val(&off)) else { return false };
    // SAFETY: the descriptor is open for the whole call because `listener` is borrowed. The pointer and `length` describe `off`,
    // which the kernel reads.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            length,
        )
    };
    result == 0
}

/// Opens the file that the Unix socket `socket` is bound to, or that the listener was bound to which it was accepted from, to
/// be looked at and nothing else (`O_PATH`). It is that file itself, whatever its path leads to by now, and whatever the
/// network namespace of the socket. Needs `CAP_NET_ADMIN` over that namespace.
///
/// # Errors
/// `NotFound` if the socket is bound to no file, as the end that connected; `PermissionDenied` without the capability; for what
/// is no Unix socket whatever its `ioctl(2)` has to say.
pub fn bound_file(socket: &impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for the whole call because `socket` is borrowed; the request takes no argument.
    let file = unsafe { siocunixfile(socket.as_fd().as_raw_fd()) }?;
    // SAFETY: the kernel has just made the descriptor for this call; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::RawFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights };
        let pieces = [io::IoSlice::new(bytes)];
        sendmsg::<()>(socket.as_raw_fd(), &pieces, control, MsgFlags::empty(), None)?;
        Ok(())
    }

    /// How many descriptors of this process are open files of `device` and `inode`.
    fn open_copies(device: u64, inode: u64) -> io::Result<usize> {
        let mut copies = 0;
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let found = std::fs::metadata(entry?.path());
            copies += usize::from(found.is_ok_and(|found| (found.dev(), found.ino()) == (device, inode)));
        }
        Ok(copies)
    }

    #[test]
    fn one_descriptor_arrives_with_its_bytes_and_is_closed_on_exec() -> io::Result<()> {
        let (here, there) = UnixStream::pair()?;
        let file = tempfile()?;
        send(&there, b"bytes", &[file.as_raw_fd()])?;
        let mut buffer = [0; 16];
        let received = receive(&here, &mut buffer)?;
        assert_eq!((received.bytes, &buffer[..5], received.truncated), (5, &b"bytes"[..], false));
        let [descriptor] = &received.descriptors[..] else { panic!("{received:?}") };
        let flags = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_GETFD)?;
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        let nothing = receive(&here, &mut buffer).map(drop).map_err(|error| error.kind());
        assert_eq!(nothing, Err(io::ErrorKind::WouldBlock));
        drop(there);
        assert_eq!(receive(&here, &mut buffer)?.bytes, 0);
        Ok(())
    }

    #[test]
    fn of_many_descriptors_none_stays_open() -> io::Result<()> {
        let (here, there) = UnixStream::pair()?;
        let file = tempfile()?;
        let of = file.metadata()?;
        for count in [0, 1, 2, 3, 4, 100, 253] {
            send(&there, b"x", &vec![file.as_raw_fd(); count])?;
            let received = receive(&here, &mut [0; 16])?;
            assert_eq!((received.descriptors.len(), received.truncated), (count, false));
            drop(received);
            assert_eq!(open_copies(of.dev(), of.ino())?, 1, "{count}");
        }
        Ok(())
    }

    #[test]
    fn root_the_file_is_the_listeners_also_when_its_path_leads_elsewhere() -> io::Result<()> {
        let path = std::env::temp_dir().join(format!("plexd-sys-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let file = std::fs::metadata(&path)?;
        let client = UnixStream::connect(&path)?;
        let (accepted, _) = listener.accept()?;
        std::fs::remove_file(&path)?;
        let _other = UnixListener::bind(&path)?;
        std::fs::remove_file(&path)?;
        for socket in [listener.as_fd(), accepted.as_fd()] {
            let found = File::from(bound_file(&socket)?).metadata()?;
            assert_eq!((found.dev(), found.ino()), (file.dev(), file.ino()));
        }
        let none = bound_file(&client).map(drop).map_err(|error| error.kind());
        assert_eq!(none, Err(io::ErrorKind::NotFound));
        Ok(())
    }

    #[test]
    fn descriptors_are_refused_where_the_kernel_can() -> io::Result<()> {
        let path = std::env::temp_dir().join(format!("plexd-sys-refuses-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let refuses = refuse_descriptors(&listener);
        let client = UnixStream::connect(&path)?;
        std::fs::remove_file(&path)?;
        let (accepted, _) = listener.accept()?;
        let file = tempfile()?;
        assert_eq!(send(&client, b"x", &[file.as_raw_fd()]).is_err(), refuses);
        send(&client, b"plain", &[])?;
        assert!(receive(&accepted, &mut [0; 16])?.bytes >= 5);
        // Linux before 6.16 does not know how to.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        assert_eq!((numbers.next(), numbers.next()) >= (Some(6), Some(16)), refuses, "{release}");
        Ok(())
    }

    /// A file without a name.
    fn tempfile() -> io::Result<File> {
        let path = std::env::temp_dir().join(format!("plexd-sys-{:?}", std::thread::current().id()));
        let file = File::create(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}
