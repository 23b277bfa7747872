//! How a daemon gets its socket: systemd's if one of that name was passed, else one made here while the process is still
//! root.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;

use super::listen::{BindError, SocketOwner, bind};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// It could not be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The folder it belongs in could not be made.
    #[error("cannot create the folder {folder}: {source}; create it, owned by root, mode 0755", folder = .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// systemd passed something else.
    #[error(
        "the socket `{name}` that systemd passed cannot be used: {source}; check ListenStream= in its unit"
    )]
    Passed {
        /// The socket's name.
        name: &'static str,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// Returns the Unix socket that systemd passed under `name` (`FileDescriptorName=` of its unit), or else a new one at
/// `path`, made as [`bind`] does. A missing folder is made so that only root can add to and remove from it.
pub fn acquire(name: &'static str, path: &Path, owner: SocketOwner) -> Result<UnixListener, AcquireError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    if let Some(index) = position(&names, name) {
        let passed = ListenFd::from_env().take_unix_listener(index);
        if let Some(listener) = passed.map_err(|source| AcquireError::Passed { name, source })? {
            return Ok(listener);
        }
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        create(folder).map_err(|source| AcquireError::Folder { folder: folder.into(), source })?;
    }
    Ok(bind(path, owner)?)
}

fn create(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    // Whatever the umask says.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

fn position(names: &str, name: &str) -> Option<usize> {
    names.split(':').position(|passed| passed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_socket_is_known_by_its_whole_name() {
        assert_eq!(position("core:api:proof", "api"), Some(1));
        assert_eq!(position("api", "api"), Some(0));
        for names in ["", "apix", "core:admin"] {
            assert_eq!(position(names, "api"), None, "{names}");
        }
    }
}
