//! Files that are replaced whole: temporary file, fsync, rename, fsync of the directory. Private by default.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// Makes `dir` and its parents, mode 0700; a directory that exists keeps its mode.
pub(crate) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| StoreError::write(dir, source))
}

/// Replaces `path` by `bytes`, mode 0600.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, bytes, 0o600).map_err(|source| StoreError::write(path, source))
}

/// Replaces `path` by `bytes`, readable by everybody: for the certificate that clients pin.
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, bytes, 0o644).map_err(|source| StoreError::write(path, source))
}

/// Replaces `path` by `value` as JSON.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StoreError::write(path, error.into()))?;
    write(path, &bytes)
}

/// Reads `path` as JSON; `None` when it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::read(path, source)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(StoreError::damaged(path, &error)),
    }
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
