//! The reports on disk: one embedded database, every change one transaction. Owns the rules of versions and of the
//! outbox; knows nothing of tasks or the network.

mod renewal;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use super::{Counts, Deleted, Entry, MAX_ENTRIES, Put, Refusal, is_valid};
use crate::storage::{self, StorageError};

/// Key to (version, revision, content type, time, payload).
const ENTRIES: TableDefinition<&str, (i64, u64, &str, &str, &[u8])> = TableDefinition::new("entries");
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
/// No deleted key had a version above this, of those whose tombstones were folded.
const FLOOR: &str = "floor";

/// Tombstones kept one by one; past this they fold into the floor.
const MAX_TOMBSTONES: u64 = 10_000;

/// The database cannot be used.
pub type OpenError = StorageError;

/// The reports on disk.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// `None` after a failed write: redb refuses everything after its first I/O error until reopened.
    database: Option<Database>,
}

/// One change within a commit.
#[derive(Debug)]
pub(super) enum Write {
    /// Create or replace.
    Put(Put),
    /// Delete, under a condition on the version.
    Delete {
        /// The key.
        key: String,
        /// The version believed current.
        if_match: Option<i64>,
    },
}

/// What a change did.
#[derive(Debug)]
pub(super) enum Written {
    Put(Entry),
    Deleted(Deleted),
}

/// Unsent changes, to be confirmed as a whole or in part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Entries as they are now.
    pub entries: Vec<Entry>,
    /// Deleted keys, with the revision of the deletion.
    pub deleted: Vec<Deleted>,
}

impl Batch {
    /// Returns whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.deleted.is_empty()
    }

    /// Returns the number of changes.
    pub fn len(&self) -> usize {
        self.entries.len() + self.deleted.len()
    }

    /// Returns each change as a batch of its own.
    pub fn split(self) -> impl Iterator<Item = Self> {
        let entries =
            self.entries.into_iter().map(|entry| Self { entries: vec![entry], deleted: Vec::new() });
        let deleted =
            self.deleted.into_iter().map(|deleted| Self { entries: Vec::new(), deleted: vec![deleted] });
        entries.chain(deleted)
    }

    fn revisions(&self) -> impl Iterator<Item = (&str, u64)> {
        let entries = self.entries.iter().map(|entry| (entry.key.as_str(), entry.revision));
        entries.chain(self.deleted.iter().map(|deleted| (deleted.key.as_str(), deleted.revision)))
    }
}

impl Store {
    /// Opens the database; one that is damaged is set aside. Returns also what was set aside.
    pub(super) fn open(path: &Path, now: jiff::Timestamp) -> Result<(Self, Option<PathBuf>), OpenError> {
        let (database, (), aside) = storage::open_or_set_aside(path, now, |database| {
            create_tables(database)?;
            read_through(database)
        })?;
        Ok((Self { path: path.into(), database: Some(database) }, aside))
    }

    /// Applies `writes` in one durable transaction. Each is judged as if those before it were done. If the
    /// transaction fails none of them happened.
    pub(super) fn commit(
        &mut self,
        writes: Vec<Write>,
        now: &str,
    ) -> io::Result<Vec<Result<Written, Refusal>>> {
        self.durably(|transaction| {
            let mut outcomes = Vec::with_capacity(writes.len());
            for write in writes {
                outcomes.push(match write {
                    Write::Put(put) => apply_put(transaction, put, now)?.map(Written::Put),
                    Write::Delete { key, if_match } => {
                        apply_delete(transaction, &key, if_match)?.map(Written::Deleted)
                    }
                });
            }
            Ok(outcomes)
        })
    }

    /// Forgets the sent changes that nothing newer replaced.
    pub(super) fn confirm(&mut self, batch: &Batch) -> io::Result<()> {
        self.durably(|transaction| remove_from_outbox(transaction, batch))
    }

    /// Marks the changes as refused by the control plane for their version; they are not sent again.
    pub(super) fn mark_conflicted(&mut self, batch: &Batch) -> io::Result<()> {
        self.durably(|transaction| {
            remove_from_outbox(transaction, batch)?;
            let mut conflicted = transaction.open_table(CONFLICTED).map_err(storage::database_error)?;
            for entry in &batch.entries {
                conflicted.insert(entry.key.as_str(), entry.version).map_err(storage::database_error)?;
            }
            Ok(())
        })
    }

    /// Returns the oldest unsent changes, at most `most` of them and `bytes` of payload, but at least one.
    pub(super) fn outbox(&mut self, most: usize, bytes: usize) -> io::Result<Batch> {
        let read = self.database()?.begin_read().map_err(storage::database_error)?;
        let outbox = read.open_table(OUTBOX).map_err(storage::database_error)?;
        let entries = read.open_table(ENTRIES).map_err(storage::database_error)?;
        let mut batch = Batch::default();
        let mut size = 0;
        for row in outbox.iter().map_err(storage::database_error)? {
            let (key, revision) = row.map_err(storage::database_error)?;
            let key = key.value();
            match entries.get(key).map_err(storage::database_error)? {
                Some(row) => {
                    let entry = to_entry(key, row.value());
                    size += entry.payload.len() + entry.key.len() + entry.content_type.len();
                    if size > bytes && !batch.is_empty() {
                        break;
                    }
                    batch.entries.push(entry);
                }
                None => batch.deleted.push(Deleted { key: key.to_owned(), revision: revision.value() }),
            }
            if batch.len() >= most {
                break;
            }
        }
        Ok(batch)
    }

    /// Returns all entries, sorted by key.
    pub(super) fn entries(&mut self) -> io::Result<Vec<Entry>> {
        let read = self.database()?.begin_read().map_err(storage::database_error)?;
        let entries = read.open_table(ENTRIES).map_err(storage::database_error)?;
        let rows = entries.iter().map_err(storage::database_error)?;
        rows.map(|row| {
            row.map(|(key, value)| to_entry(key.value(), value.value())).map_err(storage::database_error)
        })
        .collect()
    }

    pub(super) fn counts(&mut self) -> io::Result<Counts> {
        let read = self.database()?.begin_read().map_err(storage::database_error)?;
        let length = |result: Result<u64, redb::StorageError>| result.map_err(storage::database_error);
        Ok(Counts {
            entries: length(read.open_table(ENTRIES).map_err(storage::database_error)?.len())?,
            pending: length(read.open_table(OUTBOX).map_err(storage::database_error)?.len())?,
            conflicted: length(read.open_table(CONFLICTED).map_err(storage::database_error)?.len())?,
        })
    }

    fn database(&mut self) -> io::Result<&Database> {
        if self.database.is_none() {
            self.database = Some(storage::open_database(&self.path).map_err(io::Error::other)?);
        }
        self.database.as_ref().ok_or_else(|| io::Error::other("the database is closed"))
    }

    fn durably<T>(&mut self, change: impl FnOnce(&WriteTransaction) -> io::Result<T>) -> io::Result<T> {
        let database = self.database()?;
        let result = (|| {
            let transaction = database.begin_write().map_err(storage::database_error)?;
            let result = change(&transaction)?;
            transaction.commit().map_err(storage::database_error)?;
            Ok(result)
        })();
        if result.is_err() {
            self.database = None;
        }
        result
    }
}

fn create_tables(database: &Database) -> io::Result<()> {
    let transaction = database.begin_write().map_err(storage::database_error)?;
    transaction.open_table(ENTRIES).map_err(storage::database_error)?;
    transaction.open_table(TOMBSTONES).map_err(storage::database_error)?;
    transaction.open_table(OUTBOX).map_err(storage::database_error)?;
    transaction.open_table(CONFLICTED).map_err(storage::database_error)?;
    transaction.open_table(META).map_err(storage::database_error)?;
    transaction.commit().map_err(storage::database_error)
}

/// Reads the entries, so that damage shows now and not when somebody needs them.
fn read_through(database: &Database) -> io::Result<()> {
    let read = database.begin_read().map_err(storage::database_error)?;
    let entries = read.open_table(ENTRIES).map_err(storage::database_error)?;
    let mut rows = entries.iter().map_err(storage::database_error)?;
    rows.try_for_each(|row| row.map(drop).map_err(storage::database_error))
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

fn apply_put(transaction: &WriteTransaction, put: Put, now: &str) -> io::Result<Result<Entry, Refusal>> {
    if !is_valid(&put) {
        return Ok(Err(Refusal::Invalid));
    }
    let mut entries = transaction.open_table(ENTRIES).map_err(storage::database_error)?;
    let current = entries.get(put.key.as_str()).map_err(storage::database_error)?.map(|row| row.value().0);
    if put.if_match.is_some_and(|expected| expected != current.unwrap_or(0)) {
        return Ok(Err(Refusal::VersionConflict));
    }
    if current.is_none() && entries.len().map_err(storage::database_error)? >= MAX_ENTRIES {
        return Ok(Err(Refusal::TooManyEntries));
    }
    let base = match current {
        Some(version) => version,
        None => take_tombstone(transaction, &put.key)?,
    };
    let revision = next_revision(transaction)?;
    let entry = Entry {
        key: put.key,
        content_type: put.content_type,
        payload: put.payload,
        version: base + 1,
        updated_at: now.to_owned(),
        revision,
    };
    let row = (entry.version, revision, entry.content_type.as_str(), now, entry.payload.as_ref());
    entries.insert(entry.key.as_str(), row).map_err(storage::database_error)?;
    drop(entries);
    enqueue(transaction, &entry.key, revision)?;
    Ok(Ok(entry))
}

fn apply_delete(
    transaction: &WriteTransaction,
    key: &str,
    if_match: Option<i64>,
) -> io::Result<Result<Deleted, Refusal>> {
    let mut entries = transaction.open_table(ENTRIES).map_err(storage::database_error)?;
    let Some(current) = entries.get(key).map_err(storage::database_error)?.map(|row| row.value().0) else {
        return Ok(Err(if if_match.is_some_and(|expected| expected != 0) {
            Refusal::VersionConflict
        } else {
            Refusal::NotFound
        }));
    };
    if if_match.is_some_and(|expected| expected != current) {
        return Ok(Err(Refusal::VersionConflict));
    }
    entries.remove(key).map_err(storage::database_error)?;
    drop(entries);
    put_tombstone(transaction, key, current)?;
    let revision = next_revision(transaction)?;
    enqueue(transaction, key, revision)?;
    Ok(Ok(Deleted { key: key.to_owned(), revision }))
}

fn next_revision(transaction: &WriteTransaction) -> io::Result<u64> {
    let mut meta = transaction.open_table(META).map_err(storage::database_error)?;
    let revision = meta.get(REVISION).map_err(storage::database_error)?.map_or(0, |row| row.value()) + 1;
    meta.insert(REVISION, revision).map_err(storage::database_error)?;
    Ok(revision)
}

/// Puts the change into the outbox. What was refused before gets a new chance with its new version.
fn enqueue(transaction: &WriteTransaction, key: &str, revision: u64) -> io::Result<()> {
    transaction
        .open_table(OUTBOX)
        .map_err(storage::database_error)?
        .insert(key, revision)
        .map_err(storage::database_error)?;
    transaction
        .open_table(CONFLICTED)
        .map_err(storage::database_error)?
        .remove(key)
        .map_err(storage::database_error)?;
    Ok(())
}

/// Takes the last version of a deleted key, or the floor if nothing is known of it.
fn take_tombstone(transaction: &WriteTransaction, key: &str) -> io::Result<i64> {
    let mut tombstones = transaction.open_table(TOMBSTONES).map_err(storage::database_error)?;
    let known = tombstones.remove(key).map_err(storage::database_error)?.map(|row| row.value());
    let meta = transaction.open_table(META).map_err(storage::database_error)?;
    let floor = meta.get(FLOOR).map_err(storage::database_error)?.map_or(0, |row| row.value());
    Ok(known.unwrap_or_else(|| i64::try_from(floor).unwrap_or(i64::MAX - 1)))
}

fn put_tombstone(transaction: &WriteTransaction, key: &str, version: i64) -> io::Result<()> {
    let mut tombstones = transaction.open_table(TOMBSTONES).map_err(storage::database_error)?;
    tombstones.insert(key, version).map_err(storage::database_error)?;
    if tombstones.len().map_err(storage::database_error)? <= MAX_TOMBSTONES {
        return Ok(());
    }
    let mut highest = 0;
    tombstones
        .retain(|_, version| {
            highest = highest.max(version);
            false
        })
        .map_err(storage::database_error)?;
    let mut meta = transaction.open_table(META).map_err(storage::database_error)?;
    let floor = meta.get(FLOOR).map_err(storage::database_error)?.map_or(0, |row| row.value());
    meta.insert(FLOOR, floor.max(highest.unsigned_abs())).map_err(storage::database_error)?;
    Ok(())
}

fn remove_from_outbox(transaction: &WriteTransaction, batch: &Batch) -> io::Result<()> {
    let mut outbox = transaction.open_table(OUTBOX).map_err(storage::database_error)?;
    for (key, revision) in batch.revisions() {
        let unchanged =
            outbox.get(key).map_err(storage::database_error)?.is_some_and(|row| row.value() == revision);
        if unchanged {
            outbox.remove(key).map_err(storage::database_error)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
