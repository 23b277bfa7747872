//! `TUNSETIFF`: makes an open `/dev/net/tun` descriptor a TUN interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

nix::ioctl_readwrite_bad!(
    /// Sends the TUN request.
    tunsetiff,
    libc::TUNSETIFF,
    libc::ifreq
);

/// `IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL` of `linux/if_tun.h`; the last is the sign bit of the field they go to.
const FLAGS: u16 = 0x0001 | 0x1000 | 0x8000;

/// Creates the TUN interface `name` and attaches the open `/dev/net/tun` descriptor `tun` to it: IP packets without a
/// packet-information header (`tuntap.rst`: `IFF_TUN | IFF_NO_PI`). The interface lives as long as the descriptor.
/// Works again on the same descriptor after the interface was deleted. One that is there is never taken over, also if
/// nobody is attached to it (`IFF_TUN_EXCL`).
///
/// `name` has 1 to 15 bytes without NUL. Needs `CAP_NET_ADMIN`, but no permission on the device file.
///
/// # Errors
/// `InvalidInput` for a bad name, else the error of `ioctl(2)`, `EBUSY` when there is an interface of this name.
pub fn attach_tun(tun: &impl AsFd, name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name must have 1 to 15 bytes"));
    }
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = FLAGS.cast_signed();
    // SAFETY: the descriptor is open for the whole call because `tun` is borrowed; `request` is a fully initialised,
    // writable `ifreq` that outlives the call: TUNSETIFF reads it and writes the interface's name back into it.
    unsafe { tunsetiff(tun.as_fd().as_raw_fd(), &raw mut request) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_too_long_or_empty_is_refused_before_the_kernel_sees_it() -> io::Result<()> {
        let file = std::fs::File::open("/dev/null")?;
        for name in ["", "sixteen-bytes-xx", "nul\0"] {
            let error = attach_tun(&file, name).err().map(|error| error.kind());
            assert_eq!(error, Some(io::ErrorKind::InvalidInput), "{name:?}");
        }
        Ok(())
    }

    /// In a network namespace of its own, for which it needs root.
    #[test]
    fn root_a_persistent_interface_of_that_name_is_not_taken_over() -> io::Result<()> {
        // SAFETY: affects the calling thread only, which is this test's.
        nix::errno::Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        let open = || std::fs::File::options().read(true).write(true).open("/dev/net/tun");
        let first = open()?;
        attach_tun(&first, "plexd-test0")?;
        // SAFETY: the descriptor is open; TUNSETPERSIST takes a number and no pointer.
        nix::errno::Errno::result(unsafe { libc::ioctl(first.as_raw_fd(), libc::TUNSETPERSIST, 1) })?;
        drop(first);
        let second = open()?;
        let error = attach_tun(&second, "plexd-test0").err().and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(libc::EBUSY));
        attach_tun(&second, "plexd-test1")
    }

    #[test]
    fn a_descriptor_that_is_not_a_tun_device_is_an_error() -> io::Result<()> {
        let file = std::fs::File::open("/dev/null")?;
        assert!(attach_tun(&file, "plexd-test0").is_err());
        Ok(())
    }
}
