//! How plexd keeps files: the data directory, whole files replaced atomically, embedded databases with a bounded
//! cache, and damaged files set aside instead of overwritten. Knows nothing of what is in them.

mod backend;
mod database;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use atomic_write_file::unix::OpenOptionsExt as _;
use plexd_proto::privilege::ServiceUser;
use zeroize::Zeroizing;

#[cfg(test)]
pub use backend::faults;
pub use database::{
    Opened, database_error, is_writable, open_database, open_for_reading_at_least, open_or_set_aside, reopen,
};

/// Format of the data directory that this version writes and reads.
const FORMAT: u32 = 1;

/// Largest whole file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// What is between the name of a damaged file and the time when it was set aside.
const DAMAGED: &str = ".damaged-";

/// A file of the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}: {source}", path = path.display())]
pub struct StorageError {
    /// What was tried.
    pub operation: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl StorageError {
    /// Creates the error of `operation` on `path`.
    pub fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self { operation, path: path.into(), source }
    }
}

/// The data directory: 0700, owned by the service user, of a format this version knows.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// Makes the directory if it is missing and hands it to `owner`. To be called as root, or as `owner`.
    pub fn prepare(path: &Path, owner: &ServiceUser) -> Result<(), StorageError> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StorageError::new("create the data directory", path, error)),
        }
        let metadata = fs::symlink_metadata(path).map_err(|e| StorageError::new("examine", path, e))?;
        if !metadata.is_dir() {
            let error = io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory");
            return Err(StorageError::new("use the data directory", path, error));
        }
        if metadata.uid() != owner.uid.as_raw() {
            nix::unistd::chown(path, Some(owner.uid), Some(owner.gid)).map_err(|error| {
                StorageError::new("hand the data directory to user plexd-core:", path, error.into())
            })?;
        }
        if metadata.permissions().mode() & 0o7777 == 0o700 {
            // Not even tried: a read-only file system refuses it.
            return Ok(());
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(|error| StorageError::new("set the mode of", path, error))
    }

    /// Opens the directory as the service user: checks its format, or notes it in a new one.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let directory = Self { path: path.into() };
        let format = directory.file("format");
        match read(&format)? {
            None => replace(&format, format!("{FORMAT}\n").as_bytes())?,
            Some(text) => {
                let found = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse::<u32>().ok());
                if found != Some(FORMAT) {
                    let found = found.map_or_else(|| "unreadable".to_owned(), |format| format.to_string());
                    let message = format!(
                        "its format is {found} and this version of plexd knows {FORMAT}; install the version that wrote it"
                    );
                    return Err(StorageError::new("use the data directory", path, io::Error::other(message)));
                }
            }
        }
        Ok(directory)
    }

    /// Returns the path of a file in it. `name` is a constant of plexd, never input.
    pub fn file(&self, name: &'static str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes, durably, whatever in it has a name that is `doomed`, directories with all they hold. What cannot be
    /// removed is told, and the rest is removed all the same.
    pub fn remove_all(&self, doomed: impl Fn(&str) -> bool) -> Vec<StorageError> {
        let listed = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = match listed {
            Ok(entries) => entries,
            Err(error) => return vec![StorageError::new("list", &self.path, error)],
        };
        let mut errors = Vec::new();
        for entry in entries.iter().filter(|entry| doomed(&entry.file_name().to_string_lossy())) {
            // Of a link, the link itself.
            let removed = entry.file_type().and_then(|kind| {
                if kind.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
            });
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    errors.push(StorageError::new("remove", &entry.path(), error));
                }
                _ => {}
            }
        }
        if let Err(error) = fs::File::open(&self.path).and_then(|directory| directory.sync_all()) {
            errors.push(StorageError::new("write", &self.path, error));
        }
        errors
    }
}

/// Reads a whole file; `None` if it does not exist.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StorageError> {
    let error = |error| StorageError::new("read", path, error);
    match fs::metadata(path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(other) => return Err(error(other)),
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 MiB")));
        }
        Ok(_) => {}
    }
    fs::read(path).map(|bytes| Some(Zeroizing::new(bytes))).map_err(error)
}

/// Replaces a whole file so that a crash at any moment leaves the old or the new content, never a mixture. Mode 0600.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let error = |error| StorageError::new("write", path, error);
    let mut file = AtomicWriteFile::options().mode(0o600).preserve_mode(false).open(path).map_err(error)?;
    file.write_all(content).map_err(error)?;
    file.commit().map_err(error)?;
    sync_directory_of(path).map_err(error)
}

/// Renames `from` over `to`, in the same directory, so that a crash at any moment leaves the old or the new content of
/// `to`.
pub fn rename_over(from: &Path, to: &Path) -> Result<(), StorageError> {
    let renamed = fs::rename(from, to).and_then(|()| sync_directory_of(to));
    renamed.map_err(|error| StorageError::new("rename", from, error))
}

/// Removes a file; one that is not there is no error.
pub fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed
            .and_then(|()| sync_directory_of(path))
            .map_err(|error| StorageError::new("remove", path, error)),
    }
}

/// A new, changed or missing name is durable only once its directory is.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(directory).and_then(|directory| directory.sync_all())
}

/// Renames a damaged file out of the way and returns its new name.
pub fn set_aside(path: &Path, now: jiff::Timestamp) -> Result<PathBuf, StorageError> {
    let mut name = OsString::from(path);
    name.push(format!("{DAMAGED}{}", now.as_second()));
    let aside = PathBuf::from(name);
    fs::rename(path, &aside).map_err(|error| StorageError::new("set aside", path, error))?;
    Ok(aside)
}

/// Returns whether a damaged file of this name was set aside once and is still there.
pub fn has_set_aside(path: &Path) -> bool {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return false };
    let aside = format!("{}{DAMAGED}", name.to_string_lossy());
    let mut names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with(&aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_its_new_content_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.json");
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_doomed_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let directory = DataDir::open(folder.path()).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        fs::create_dir_all(folder.path().join("folder/within")).unwrap();
        fs::write(folder.path().join("folder/within/file"), "").unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(directory.remove_all(|name| name != "format").is_empty());
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["format"]);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn a_directory_of_a_newer_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        DataDir::open(folder.path()).unwrap();
        DataDir::open(folder.path()).unwrap();
        fs::write(folder.path().join("format"), "2\n").unwrap();
        let error = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("its format is 2") && error.contains("install the version"), "{error}");
    }
}
