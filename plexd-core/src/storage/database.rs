//! Embedded databases: opened with a bounded cache, damaged ones set aside, and those that cannot be written read all
//! the same. Knows nothing of what is in them.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::Database;
use redb::backends::FileBackend;

use super::backend::Backend;
use super::{StorageError, set_aside};

/// Cache of each database, in bytes; redb's own default is 1 GiB. Pages that are not in it are in the system's, as a rule:
/// more of it costs memory for the whole life of the process, and saves little more than a copy.
const CACHE: usize = 1024 * 1024;

/// An open database and what was read from it.
#[derive(Debug)]
pub struct Opened<T> {
    /// The database.
    pub database: Database,
    /// What was read.
    pub content: T,
    /// The damaged file that was in its place, under its new name.
    pub aside: Option<PathBuf>,
    /// Why it can only be read; every write is refused with the same error until it is opened anew.
    pub read_only: Option<io::Error>,
}

/// Opens or creates an embedded database with a bounded cache, mode 0600.
pub fn open_database(path: &Path) -> Result<Database, StorageError> {
    let file = writable(path).map_err(|source| StorageError::new("open", path, source))?;
    build(path, Backend::new(file_backend(path, file)?, path))
}

/// Tells whether the file could be opened for writing, which says nothing of what there is room for.
///
/// # Errors
/// Why not.
pub fn is_writable(path: &Path) -> io::Result<()> {
    writable(path).map(drop)
}

/// Opens a database and reads it with `read`; one that is damaged is set aside and a new one made. Returns also what was
/// set aside. One that cannot be written is opened as it is: every write fails until it is opened anew.
pub fn open_or_set_aside<T>(
    path: &Path,
    now: jiff::Timestamp,
    read: impl Fn(&Database) -> io::Result<T>,
) -> Result<(Database, T, Option<PathBuf>), StorageError> {
    let Opened { database, content, aside, read_only } = open_for_reading_at_least(path, now, read)?;
    if let Some(error) = read_only {
        tracing::warn!(path = %path.display(), %error, "opened for reading only");
    }
    Ok((database, content, aside))
}

/// As [`open_or_set_aside`]; tells also why the database can only be read, if so.
///
/// # Errors
/// If it cannot even be read, or another process uses it.
pub fn open_for_reading_at_least<T>(
    path: &Path,
    now: jiff::Timestamp,
    read: impl Fn(&Database) -> io::Result<T>,
) -> Result<Opened<T>, StorageError> {
    let read = |database| -> Result<(Database, T), StorageError> {
        let content = read(&database).map_err(|source| StorageError::new("read", path, source))?;
        Ok((database, content))
    };
    let opened = |(database, content), aside| Opened { database, content, aside, read_only: None };
    match open_database(path).and_then(read) {
        Ok(both) => Ok(opened(both, None)),
        Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
            let aside = set_aside(path, now)?;
            Ok(opened(open_database(path).and_then(read)?, Some(aside)))
        }
        Err(error) if error.source.kind() == io::ErrorKind::ResourceBusy => Err(error),
        Err(error) => {
            let Ok((backend, seal)) = read_only(path) else { return Err(error) };
            let (database, content) = build(path, backend).and_then(read)?;
            seal.set(&error.source);
            Ok(Opened { database, content, aside: None, read_only: Some(error.source) })
        }
    }
}

/// Opens a database again that was open a moment ago: for reading only, if it cannot be written. Returns also why.
///
/// # Errors
/// If it cannot even be read.
pub fn reopen(path: &Path) -> io::Result<(Database, Option<io::Error>)> {
    let error = match open_database(path) {
        Ok(database) => return Ok((database, None)),
        Err(error) => error.source,
    };
    let opened = read_only(path).and_then(|(backend, seal)| Ok((build(path, backend)?, seal)));
    let Ok((database, seal)) = opened else { return Err(error) };
    seal.set(&error);
    Ok((database, Some(error)))
}

/// Tells damage (`InvalidData`) from failures that say nothing of what is on the disk, a full one say.
pub fn database_error(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        // A file that was cut short.
        redb::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::InvalidData, error)
        }
        redb::Error::Io(error) => error,
        redb::Error::Corrupted(what) => io::Error::new(io::ErrorKind::InvalidData, what),
        other => io::Error::other(other),
    }
}

fn writable(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Returns what reads the file and keeps in memory what opening it wants to write: a repair after a crash, say. A file
/// that could not even be made is an empty one.
fn read_only(path: &Path) -> Result<(Backend, super::backend::Seal), StorageError> {
    let file = match fs::File::open(path) {
        Ok(file) => Some(file_backend(path, file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StorageError::new("open", path, error)),
    };
    Backend::over(file, path).map_err(|source| StorageError::new("open", path, source))
}

fn file_backend(path: &Path, file: fs::File) -> Result<FileBackend, StorageError> {
    FileBackend::new(file).map_err(|source| failure(path, source))
}

fn build(path: &Path, backend: Backend) -> Result<Database, StorageError> {
    // Without the check an open may panic on a damaged file instead of telling.
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder.create_with_backend(backend).map_err(|source| failure(path, source))
}

fn failure(path: &Path, source: redb::DatabaseError) -> StorageError {
    let error = |source| StorageError::new("open", path, source);
    match source {
        redb::DatabaseError::DatabaseAlreadyOpen => error(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another plexd-core uses it; stop that one first",
        )),
        redb::DatabaseError::Storage(source) => error(database_error(source)),
        damaged => error(io::Error::new(io::ErrorKind::InvalidData, damaged)),
    }
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase, TableDefinition};

    use super::*;
    use crate::storage::faults;

    const TABLE: TableDefinition<&str, u64> = TableDefinition::new("table");

    #[test]
    fn a_damaged_database_is_set_aside_and_a_locked_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        fs::write(&path, "not a database, but somebody's bytes").unwrap();
        let open = || open_or_set_aside(&path, jiff::Timestamp::UNIX_EPOCH, |_| Ok(()));
        let (database, (), aside) = open().unwrap();
        assert_eq!(fs::read(aside.unwrap()).unwrap(), b"not a database, but somebody's bytes");
        let error = open().unwrap_err().to_string();
        assert!(error.contains("another plexd-core uses it"), "{error}");
        drop(database);
    }

    /// Makes the table if need be, and reads what is under `a`.
    fn read(database: &Database) -> io::Result<Option<u64>> {
        let transaction = database.begin_write().map_err(database_error)?;
        transaction.open_table(TABLE).map_err(database_error)?;
        transaction.commit().map_err(database_error)?;
        let read = database.begin_read().map_err(database_error)?;
        let table = read.open_table(TABLE).map_err(database_error)?;
        let value = table.get("a").map_err(database_error)?.map(|value| value.value());
        Ok(value)
    }

    fn write(database: &Database, value: u64) -> io::Result<()> {
        let transaction = database.begin_write().map_err(database_error)?;
        transaction.open_table(TABLE).map_err(database_error)?.insert("a", value).map_err(database_error)?;
        transaction.commit().map_err(database_error)
    }

    #[test]
    fn a_database_that_cannot_be_written_is_read_and_refuses_writes_until_opened_anew() {
        for error in [nix::libc::EROFS, nix::libc::ENOSPC, nix::libc::EIO] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("reports.redb");
            let open = || open_for_reading_at_least(&path, jiff::Timestamp::UNIX_EPOCH, read).unwrap();
            let opened = open();
            write(&opened.database, 7).unwrap();
            drop(opened);
            let before = fs::read(&path).unwrap();
            let faults = faults::at(&path);
            faults.fail_writes_from(0, error);
            let opened = open();
            assert_eq!(opened.content, Some(7));
            assert_eq!(opened.read_only.unwrap().raw_os_error(), Some(error));
            let refused = write(&opened.database, 8).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(error), "{refused}");
            drop(opened.database);
            assert_eq!(fs::read(&path).unwrap(), before, "untouched");
            faults.heal();
            let opened = open();
            assert!(opened.read_only.is_none() && opened.content == Some(7));
            write(&opened.database, 9).unwrap();
        }
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_empty_database() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reports.redb");
        let faults = faults::at(&path);
        faults.fail_writes_from(0, nix::libc::ENOSPC);
        let opened = open_for_reading_at_least(&path, jiff::Timestamp::UNIX_EPOCH, read).unwrap();
        assert_eq!((opened.content, opened.read_only.unwrap().kind()), (None, io::ErrorKind::StorageFull));
        drop(opened.database);
        faults.heal();
        write(&open_database(&path).unwrap(), 1).unwrap();
    }
}
