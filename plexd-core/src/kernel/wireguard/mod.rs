//! The two WireGuard backends and the choice between them. The choice has two steps because of privilege: [`prepare`] acquires
//! what needs root, [`Prepared::start`] begins after root is gone.

pub mod kernel;
pub mod uapi;
pub mod userspace;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nix::libc::O_NONBLOCK;
use serde::Deserialize;

use self::kernel::KernelWireGuard;
use self::userspace::{UserspaceService, UserspaceWireGuard};
use super::{Backend, KernelError, WireGuard};

/// Device file of TUN interfaces.
const TUN_DEVICE: &str = "/dev/net/tun";

/// `mesh.backend` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// The kernel's where the kernel has it, else the embedded one.
    #[default]
    Auto,
    /// The kernel's.
    Kernel,
    /// The embedded one.
    Userspace,
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// Why no WireGuard can be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The kernel's was asked for and is not there.
    #[error(
        "mesh.backend is kernel, but this kernel has no WireGuard; load it (modprobe wireguard), or set mesh.backend: \
         userspace"
    )]
    NoKernelWireGuard,
    /// The kernel's was asked for and it cannot be told whether it is there.
    #[error(
        "mesh.backend is kernel, but the kernel cannot be asked whether it has WireGuard: {0}; start as root or with \
         CAP_NET_ADMIN, or set mesh.backend: userspace"
    )]
    Probe(#[source] io::Error),
    /// The device file for the embedded one cannot be opened.
    #[error(
        "cannot open {TUN_DEVICE} for the embedded WireGuard ({reason}): {source}; load it (modprobe tun), in a \
         container pass the device (--device {TUN_DEVICE}), under systemd allow it (DeviceAllow={TUN_DEVICE} rw)"
    )]
    OpenTun {
        /// Why the embedded one was chosen.
        reason: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The MTU is too large for the embedded one.
    #[error(
        "mesh.mtu {mtu} is too large for the embedded WireGuard ({reason}): {max} at most",
        max = userspace::MAX_MTU
    )]
    Mtu {
        /// The MTU, in bytes.
        mtu: u32,
        /// Why the embedded one was chosen.
        reason: String,
    },
}

/// What was acquired before privileges are dropped.
#[derive(Debug)]
pub struct Prepared {
    interface: String,
    reason: String,
    acquired: Acquired,
}

#[derive(Debug)]
enum Acquired {
    Kernel,
    Userspace { tun: OwnedFd, mtu: u16, uapi: Option<UnixListener> },
}

/// The WireGuard that is used.
pub struct Chosen {
    /// It.
    pub wireguard: Arc<dyn WireGuard>,
    /// Which one it is.
    pub backend: Backend,
    /// Why, for the status and the log.
    pub reason: String,
    /// What has to run beside it, under the supervisor.
    pub service: Option<UserspaceService>,
}

/// Chooses the WireGuard for `interface` and acquires what needs privilege: the kernel's is probed for, or
/// `/dev/net/tun` opened and the socket for `wg show` bound. `mtu` is `mesh.mtu`, in bytes.
///
/// Call it before privileges are dropped and before any thread is started.
pub fn prepare(choice: BackendChoice, interface: &str, mtu: u32) -> Result<Prepared, PrepareError> {
    let (backend, reason) = choose(choice, kernel::available)?;
    let acquired = match backend {
        Backend::Kernel => Acquired::Kernel,
        Backend::Userspace => acquire_userspace(interface, mtu, &reason)?,
    };
    Ok(Prepared { interface: interface.to_owned(), reason, acquired })
}

/// Decides by the answer of `available`, which is asked only if it matters.
fn choose(
    choice: BackendChoice,
    available: impl FnOnce() -> io::Result<bool>,
) -> Result<(Backend, String), PrepareError> {
    match choice {
        BackendChoice::Userspace => Ok((Backend::Userspace, "mesh.backend is userspace".to_owned())),
        BackendChoice::Kernel => match available() {
            Ok(true) => Ok((Backend::Kernel, "mesh.backend is kernel".to_owned())),
            Ok(false) => Err(PrepareError::NoKernelWireGuard),
            Err(error) => Err(PrepareError::Probe(error)),
        },
        BackendChoice::Auto => Ok(match available() {
            Ok(true) => (Backend::Kernel, "the kernel has WireGuard".to_owned()),
            Ok(false) => (Backend::Userspace, "the kernel has no WireGuard".to_owned()),
            Err(error) => (Backend::Userspace, format!("the kernel cannot be asked for WireGuard: {error}")),
        }),
    }
}

fn acquire_userspace(interface: &str, mtu: u32, reason: &str) -> Result<Acquired, PrepareError> {
    let small = u16::try_from(mtu).ok().filter(|mtu| *mtu <= userspace::MAX_MTU);
    let mtu = small.ok_or_else(|| PrepareError::Mtu { mtu, reason: reason.to_owned() })?;
    let tun = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(|source| PrepareError::OpenTun { reason: reason.to_owned(), source })?;
    // Without it the mesh works all the same, only `wg show` does not.
    let uapi = uapi::bind_uapi(interface).unwrap_or_else(|error| {
        tracing::warn!(%error, iface = interface, "wg show will not show the mesh");
        None
    });
    Ok(Acquired::Userspace { tun: tun.into(), mtu, uapi })
}

impl Prepared {
    /// Returns which WireGuard was chosen.
    pub fn backend(&self) -> Backend {
        match self.acquired {
            Acquired::Kernel => Backend::Kernel,
            Acquired::Userspace { .. } => Backend::Userspace,
        }
    }

    /// Starts the chosen WireGuard, inside the tokio runtime. Needs `CAP_NET_ADMIN`; makes no interface yet.
    ///
    /// # Errors
    /// If the kernel refuses a netlink socket.
    pub fn start(self) -> Result<Chosen, KernelError> {
        let Self { interface, reason, acquired } = self;
        match acquired {
            Acquired::Kernel => {
                let wireguard = Arc::new(KernelWireGuard::new(&interface)?);
                Ok(Chosen { wireguard, backend: Backend::Kernel, reason, service: None })
            }
            Acquired::Userspace { tun, mtu, uapi } => {
                let wireguard = Arc::new(UserspaceWireGuard::new(&interface, tun, mtu)?);
                let service = Some(UserspaceService::new(&wireguard, uapi)?);
                Ok(Chosen { wireguard, backend: Backend::Userspace, reason, service })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_kernel_where_it_can_and_says_why() {
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        for (choice, available, backend, reason) in [
            (BackendChoice::Auto, Ok(true), Backend::Kernel, "has WireGuard"),
            (BackendChoice::Auto, Ok(false), Backend::Userspace, "no WireGuard"),
            (BackendChoice::Auto, refused(), Backend::Userspace, "permission denied"),
            (BackendChoice::Kernel, Ok(true), Backend::Kernel, "mesh.backend is kernel"),
        ] {
            let chosen = choose(choice, || available).unwrap();
            assert_eq!(chosen.0, backend);
            assert!(chosen.1.contains(reason), "{}", chosen.1);
        }
    }

    #[test]
    fn userspace_does_not_ask_the_kernel() {
        let chosen = choose(BackendChoice::Userspace, || unreachable!("not asked")).unwrap();
        assert_eq!(chosen.0, Backend::Userspace);
    }

    #[test]
    fn a_kernel_without_wireguard_is_refused_with_the_way_out() {
        let error = choose(BackendChoice::Kernel, || Ok(false)).unwrap_err().to_string();
        assert!(error.contains("modprobe wireguard") && error.contains("mesh.backend: userspace"), "{error}");
    }

    #[test]
    fn an_mtu_that_does_not_fit_is_refused_before_anything_is_opened() {
        let error = acquire_userspace("plexd0", 9_000, "because").unwrap_err().to_string();
        assert!(error.contains("9000") && error.contains("4000 at most"), "{error}");
    }

    #[test]
    fn choices_are_spelled_as_in_the_configuration() {
        for choice in [BackendChoice::Auto, BackendChoice::Kernel, BackendChoice::Userspace] {
            let text = format!("\"{choice}\"");
            assert_eq!(serde_json::from_str::<BackendChoice>(&text).unwrap(), choice);
        }
    }
}
