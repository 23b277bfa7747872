//! The reports on disk: one embedded database, every change one transaction. Owns the outbox, and what becomes of a
//! database that cannot be written ([`apply`] has the rules of versions); knows nothing of tasks or the network.

mod apply;
mod batch;
mod index;
mod renewal;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};

pub use self::batch::Batch;

use self::apply::{Done, Draft};
use self::batch::remove_from_outbox;
use self::index::{Index, News};
use super::{Change, Changes, Counts, Cursor, Deleted, Entry, Position, Refusal, Write, Written};
use crate::storage::{self, Opened, StorageError, database_error};

/// Version, revision, content type, time, payload.
type Row = (i64, u64, &'static str, &'static str, &'static [u8]);

/// The entries, by key.
const ENTRIES: TableDefinition<&str, Row> = TableDefinition::new("entries");
/// Key of a deleted entry to its last version, so that a re-created one continues above it.
const TOMBSTONES: TableDefinition<&str, i64> = TableDefinition::new("tombstones");
/// Key of an unsent change to the revision of its newest.
const OUTBOX: TableDefinition<&str, u64> = TableDefinition::new("outbox");
/// Key the control plane refused to the version it refused.
const CONFLICTED: TableDefinition<&str, i64> = TableDefinition::new("conflicted");
/// Counters.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The highest revision given so far.
const REVISION: &str = "revision";
/// No deleted key had a version above this, of those whose tombstones were folded, or of the database that was here
/// before and is damaged.
const FLOOR: &str = "floor";

/// Where the versions of a database that replaces a damaged one begin to be counted: microseconds since 2020. No node
/// writes a million times a second, so that they are above those that were.
const EPOCH: i64 = 1_577_836_800_000_000;

/// The database cannot be used.
pub type OpenError = StorageError;

/// The reports on disk.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// `None` after a failed write: redb refuses everything after its first I/O error until reopened.
    disk: Option<Disk>,
    index: Index,
    /// Counts how often what watchers were told may be wrong.
    generation: u64,
}

/// The open database.
#[derive(Debug)]
struct Disk {
    database: Database,
    /// Why it can only be read.
    read_only: Option<io::Error>,
}

impl Store {
    /// Opens the database; one that is damaged is set aside. Returns also what was set aside. One that cannot be written
    /// is served as it is.
    pub(super) fn open(path: &Path, now: jiff::Timestamp) -> Result<(Self, Option<PathBuf>), OpenError> {
        let Opened { database, content: index, aside, read_only } =
            storage::open_for_reading_at_least(path, now, |database| prepare(database, path, now))?;
        let disk = Some(Disk { database, read_only });
        Ok((Self { path: path.into(), disk, index, generation: 1 }, aside))
    }

    /// Returns why nothing can be written, if that is known.
    pub(super) fn read_only(&self) -> Option<&io::Error> {
        self.disk.as_ref().and_then(|disk| disk.read_only.as_ref())
    }

    /// Applies `writes` in one durable transaction. Each is judged as if those before it were done.
    ///
    /// # Errors
    /// If the transaction fails. None of them happened, or all of them did: [`Self::recover`] finds out.
    pub(super) fn commit(
        &mut self,
        writes: Vec<Write>,
        now: &str,
    ) -> io::Result<Vec<Result<Written, Refusal>>> {
        let (outcomes, done) = self.durably(|transaction, index| {
            let mut draft = Draft::new(transaction, index)?;
            let outcomes =
                writes.into_iter().map(|write| draft.apply(write, now)).collect::<io::Result<Vec<_>>>()?;
            Ok((outcomes, draft.finish()?))
        })?;
        let Done { steps, revision, bytes } = done;
        self.index.follow(steps, revision, bytes);
        Ok(outcomes)
    }

    /// Opens the database again after a failure. A transaction that failed may be durable nevertheless: then all who
    /// watch have to be told everything anew.
    pub(super) fn recover(&mut self) -> io::Result<()> {
        self.readable().map(drop)
    }

    /// Tries whether the disk takes writes again.
    pub(super) fn probe(&mut self) -> io::Result<()> {
        self.durably(|transaction, index| {
            let mut meta = transaction.open_table(META).map_err(database_error)?;
            meta.insert(REVISION, index.revision).map_err(database_error)?;
            Ok(())
        })
    }

    /// Forgets the sent changes that nothing newer replaced.
    pub(super) fn confirm(&mut self, batch: &Batch) -> io::Result<()> {
        self.durably(|transaction, _| remove_from_outbox(transaction, batch))
    }

    /// Marks the changes as refused by the control plane for their version; they are not sent again.
    pub(super) fn mark_conflicted(&mut self, batch: &Batch) -> io::Result<()> {
        self.durably(|transaction, _| {
            remove_from_outbox(transaction, batch)?;
            let mut conflicted = transaction.open_table(CONFLICTED).map_err(database_error)?;
            for entry in &batch.entries {
                conflicted.insert(entry.key.as_str(), entry.version).map_err(database_error)?;
            }
            Ok(())
        })
    }

    /// Returns the oldest unsent changes up to revision `newest`, at most `most` of them and `bytes` of payload, but at
    /// least one.
    pub(super) fn outbox(&mut self, newest: u64, most: usize, bytes: usize) -> io::Result<Batch> {
        let read = self.readable()?;
        let outbox = read.open_table(OUTBOX).map_err(database_error)?;
        let entries = read.open_table(ENTRIES).map_err(database_error)?;
        let mut unsent = Vec::new();
        for row in outbox.iter().map_err(database_error)? {
            let (key, revision) = row.map_err(database_error)?;
            if revision.value() <= newest {
                unsent.push((revision.value(), key.value().to_owned()));
            }
        }
        unsent.sort_unstable();
        let mut batch = Batch::default();
        let mut taken = 0;
        for (revision, key) in unsent.into_iter().take(most) {
            let Some(row) = entries.get(key.as_str()).map_err(database_error)? else {
                batch.deleted.push(Deleted { key, revision });
                continue;
            };
            let entry = to_entry(&key, row.value());
            taken += entry.size();
            if taken > bytes && !batch.is_empty() {
                break;
            }
            batch.entries.push(entry);
        }
        Ok(batch)
    }

    /// Returns what follows `cursor`: at most `most` changes, up to the one that reaches `bytes`. One that
    /// cannot be continued is begun anew.
    pub(super) fn changes(&mut self, cursor: Cursor, most: usize, bytes: usize) -> io::Result<Changes> {
        let read = self.readable()?;
        let entries = read.open_table(ENTRIES).map_err(database_error)?;
        let reset = cursor.generation != self.generation || !self.index.knows_since(cursor);
        let revision = self.index.revision;
        let mut cursor = if reset {
            Cursor { generation: self.generation, entries: 0, deletions: revision }
        } else {
            cursor
        };
        let (mut changes, mut taken) = (Vec::new(), 0);
        let mut news = self.index.since(cursor).peekable();
        while let Some(next) = news.next_if(|_| changes.len() < most && taken < bytes) {
            cursor.entries = next.revision();
            cursor.deletions = cursor.deletions.max(next.revision());
            match next {
                News::Put(revision, key) => {
                    let row = entries.get(key).map_err(database_error)?;
                    let row = row.filter(|row| row.value().1 == revision);
                    let row = row.ok_or_else(|| io::Error::other("a report is not what was committed"))?;
                    let entry = to_entry(key, row.value());
                    taken += entry.size();
                    changes.push(Change::Put(entry));
                }
                // Written again since: that comes, too.
                News::Deleted(_, key) if entries.get(key).map_err(database_error)?.is_some() => {}
                News::Deleted(revision, key) => {
                    changes.push(Change::Deleted(Deleted { key: key.to_owned(), revision }));
                }
            }
        }
        let complete = news.peek().is_none();
        if complete {
            (cursor.entries, cursor.deletions) = (revision, revision);
        }
        Ok(Changes { reset, changes, complete, cursor })
    }

    pub(super) fn counts(&mut self) -> io::Result<Counts> {
        let read = self.readable()?;
        let length = |result: Result<u64, redb::StorageError>| result.map_err(database_error);
        Ok(Counts {
            entries: length(read.open_table(ENTRIES).map_err(database_error)?.len())?,
            pending: length(read.open_table(OUTBOX).map_err(database_error)?.len())?,
            conflicted: length(read.open_table(CONFLICTED).map_err(database_error)?.len())?,
        })
    }

    /// Returns where the writes have got to.
    pub(super) fn position(&self) -> Position {
        Position { generation: self.generation, revision: self.index.revision }
    }

    /// Begins to read; a database that was closed after a failure is opened, for reading at least.
    fn readable(&mut self) -> io::Result<ReadTransaction> {
        let disk = match self.disk.take() {
            Some(disk) => disk,
            None => self.reopened()?,
        };
        let read = self.disk.insert(disk).database.begin_read();
        read.map_err(database_error)
    }

    fn reopened(&mut self) -> io::Result<Disk> {
        // What failed a moment ago is not taken for damage, which a start would set aside.
        let (database, read_only) = storage::reopen(&self.path)?;
        let read = database.begin_read().map_err(database_error)?;
        if revision(&read)? != self.index.revision {
            self.index = load(&read, self.index.revision)?;
            self.generation += 1;
        }
        Ok(Disk { database, read_only })
    }

    /// Opens the database for writing, if it is not.
    fn make_writable(&mut self) -> io::Result<()> {
        match &self.disk {
            Some(Disk { read_only: None, .. }) => return Ok(()),
            // Cheap, and nothing is closed as long as there is no hope.
            Some(_) => storage::is_writable(&self.path)?,
            None => {}
        }
        self.disk = None;
        let disk = self.reopened()?;
        let refused = disk.read_only.as_ref().map(same_error);
        self.disk = Some(disk);
        refused.map_or(Ok(()), Err)
    }

    fn durably<T>(
        &mut self,
        change: impl FnOnce(&WriteTransaction, &Index) -> io::Result<T>,
    ) -> io::Result<T> {
        self.make_writable()?;
        let Some(disk) = &self.disk else { return Err(io::Error::other("the database is closed")) };
        let result = (|| {
            let transaction = disk.database.begin_write().map_err(database_error)?;
            let result = change(&transaction, &self.index)?;
            transaction.commit().map_err(database_error)?;
            Ok(result)
        })();
        if result.is_err() {
            self.disk = None;
        }
        result
    }
}

fn same_error(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

/// Makes a new database ready, and reads all of it, so that damage shows now and not when somebody needs it.
fn prepare(database: &Database, path: &Path, now: jiff::Timestamp) -> io::Result<Index> {
    let read = database.begin_read().map_err(database_error)?;
    let is_new = match read.open_table(META) {
        Ok(_) => false,
        Err(redb::TableError::TableDoesNotExist(_)) => true,
        Err(error) => return Err(database_error(error)),
    };
    drop(read);
    if is_new {
        let floor = now.as_microsecond().saturating_sub(EPOCH).max(0).unsigned_abs();
        let floor = if storage::has_set_aside(path) { floor } else { 0 };
        create_tables(database, floor, floor)?;
    }
    load(&database.begin_read().map_err(database_error)?, 0)
}

/// Makes the tables; versions begin above `floor`, and revisions above `revision`.
fn create_tables(database: &Database, floor: u64, revision: u64) -> io::Result<()> {
    let transaction = database.begin_write().map_err(database_error)?;
    transaction.open_table(ENTRIES).map_err(database_error)?;
    transaction.open_table(TOMBSTONES).map_err(database_error)?;
    transaction.open_table(OUTBOX).map_err(database_error)?;
    transaction.open_table(CONFLICTED).map_err(database_error)?;
    let mut meta = transaction.open_table(META).map_err(database_error)?;
    meta.insert(FLOOR, floor).map_err(database_error)?;
    meta.insert(REVISION, revision).map_err(database_error)?;
    drop(meta);
    transaction.commit().map_err(database_error)
}

/// Reads what the index holds; revisions do not go back below `reached`.
fn load(read: &ReadTransaction, reached: u64) -> io::Result<Index> {
    let entries = read.open_table(ENTRIES).map_err(database_error)?;
    let rows = entries.iter().map_err(database_error)?.map(|row| {
        let (key, value) = row.map_err(database_error)?;
        let (_, revision, content_type, _, payload) = value.value();
        Ok((key.value().to_owned(), revision, size(key.value(), content_type, payload)))
    });
    Ok(Index::new(revision(read)?.max(reached), rows.collect::<io::Result<Vec<_>>>()?))
}

fn revision(read: &ReadTransaction) -> io::Result<u64> {
    let meta = read.open_table(META).map_err(database_error)?;
    Ok(meta.get(REVISION).map_err(database_error)?.map_or(0, |row| row.value()))
}

/// Returns what an entry counts, in bytes.
fn size(key: &str, content_type: &str, payload: &[u8]) -> u64 {
    (key.len() + content_type.len() + payload.len()) as u64
}

fn to_entry(key: &str, row: (i64, u64, &str, &str, &[u8])) -> Entry {
    let (version, revision, content_type, updated_at, payload) = row;
    Entry {
        key: key.to_owned(),
        content_type: content_type.to_owned(),
        payload: Bytes::copy_from_slice(payload),
        version,
        updated_at: updated_at.to_owned(),
        revision,
    }
}

#[cfg(test)]
mod tests;
