//! The rules of one write: versions, conditions, limits, and what it leaves in the outbox.

use std::io;

use redb::{ReadableTable, ReadableTableMetadata, Table, WriteTransaction};

use super::index::{Index, Step};
use super::{CONFLICTED, ENTRIES, FLOOR, META, OUTBOX, REVISION, Row, TOMBSTONES, size};
use crate::reports::{
    Deleted, Entry, MAX_ENTRIES, MAX_TOTAL_BYTES, MAX_UNSENT, Put, Refusal, Write, Written, is_valid,
};
use crate::storage::database_error;

/// Tombstones kept one by one; past this they fold into the floor.
const MAX_TOMBSTONES: u64 = 10_000;

/// A transaction under way, and what the index is to follow once it is durable.
pub(super) struct Draft<'t> {
    entries: Table<'t, &'static str, Row>,
    tombstones: Table<'t, &'static str, i64>,
    outbox: Table<'t, &'static str, u64>,
    conflicted: Table<'t, &'static str, i64>,
    meta: Table<'t, &'static str, u64>,
    revision: u64,
    bytes: u64,
    steps: Vec<Step>,
}

/// What a transaction did.
pub(super) struct Done {
    pub(super) steps: Vec<Step>,
    pub(super) revision: u64,
    pub(super) bytes: u64,
}

/// What there is under a key.
struct Current {
    version: i64,
    revision: u64,
    bytes: u64,
}

impl<'t> Draft<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction, index: &Index) -> io::Result<Self> {
        Ok(Self {
            entries: transaction.open_table(ENTRIES).map_err(database_error)?,
            tombstones: transaction.open_table(TOMBSTONES).map_err(database_error)?,
            outbox: transaction.open_table(OUTBOX).map_err(database_error)?,
            conflicted: transaction.open_table(CONFLICTED).map_err(database_error)?,
            meta: transaction.open_table(META).map_err(database_error)?,
            revision: index.revision,
            bytes: index.bytes,
            steps: Vec::new(),
        })
    }

    pub(super) fn apply(&mut self, write: Write, now: &str) -> io::Result<Result<Written, Refusal>> {
        Ok(match write {
            Write::Put(put) => self.put(put, now)?.map(Written::Put),
            Write::Delete { key, if_match } => self.delete(key, if_match)?.map(Written::Deleted),
        })
    }

    /// Notes what revision was reached.
    pub(super) fn finish(mut self) -> io::Result<Done> {
        if !self.steps.is_empty() {
            self.meta.insert(REVISION, self.revision).map_err(database_error)?;
        }
        Ok(Done { steps: self.steps, revision: self.revision, bytes: self.bytes })
    }

    fn put(&mut self, put: Put, now: &str) -> io::Result<Result<Entry, Refusal>> {
        if !is_valid(&put) {
            return Ok(Err(Refusal::Invalid));
        }
        let current = self.current(&put.key)?;
        let version = current.as_ref().map(|current| current.version);
        if put.if_match.is_some_and(|expected| expected != version.unwrap_or(0)) {
            return Ok(Err(Refusal::VersionConflict));
        }
        let is_new = current.is_none();
        if is_new && self.is_crowded()? {
            return Ok(Err(Refusal::TooManyEntries));
        }
        let (before, freed) = current.map_or((None, 0), |current| (Some(current.revision), current.bytes));
        let taken = size(&put.key, &put.content_type, &put.payload);
        let bytes = self.bytes - freed + taken;
        if bytes > MAX_TOTAL_BYTES && taken > freed {
            return Ok(Err(Refusal::InsufficientStorage));
        }
        let base = match version {
            Some(version) => version,
            None => self.take_tombstone(&put.key)?,
        };
        self.bytes = bytes;
        let revision = self.next_revision(&put.key)?;
        let Put { key, content_type, payload, .. } = put;
        let entry =
            Entry { key, content_type, payload, version: base + 1, updated_at: now.to_owned(), revision };
        let row = (entry.version, revision, entry.content_type.as_str(), now, entry.payload.as_ref());
        self.entries.insert(entry.key.as_str(), row).map_err(database_error)?;
        self.steps.push(Step::Put { key: entry.key.as_str().into(), revision, before });
        Ok(Ok(entry))
    }

    fn delete(&mut self, key: String, if_match: Option<i64>) -> io::Result<Result<Deleted, Refusal>> {
        let Some(current) = self.current(&key)? else {
            return Ok(Err(if if_match.is_some_and(|expected| expected != 0) {
                Refusal::VersionConflict
            } else {
                Refusal::NotFound
            }));
        };
        if if_match.is_some_and(|expected| expected != current.version) {
            return Ok(Err(Refusal::VersionConflict));
        }
        self.entries.remove(key.as_str()).map_err(database_error)?;
        self.put_tombstone(&key, current.version)?;
        self.bytes -= current.bytes;
        let revision = self.next_revision(&key)?;
        self.steps.push(Step::Deleted { key: key.as_str().into(), revision, before: current.revision });
        Ok(Ok(Deleted { key, revision }))
    }

    fn current(&self, key: &str) -> io::Result<Option<Current>> {
        let row = self.entries.get(key).map_err(database_error)?;
        Ok(row.map(|row| {
            let (version, revision, content_type, _, payload) = row.value();
            Current { version, revision, bytes: size(key, content_type, payload) }
        }))
    }

    fn is_crowded(&self) -> io::Result<bool> {
        Ok(self.entries.len().map_err(database_error)? >= MAX_ENTRIES
            || self.outbox.len().map_err(database_error)? >= MAX_UNSENT)
    }

    /// Gives the next revision to a change of `key`, and puts it into the outbox. What was refused before gets a new
    /// chance with its new version.
    fn next_revision(&mut self, key: &str) -> io::Result<u64> {
        self.revision += 1;
        self.outbox.insert(key, self.revision).map_err(database_error)?;
        self.conflicted.remove(key).map_err(database_error)?;
        Ok(self.revision)
    }

    /// Takes the last version of a deleted key, or the floor if nothing is known of it.
    fn take_tombstone(&mut self, key: &str) -> io::Result<i64> {
        let known = self.tombstones.remove(key).map_err(database_error)?.map(|row| row.value());
        match known {
            Some(version) => Ok(version),
            None => Ok(i64::try_from(self.floor()?).unwrap_or(i64::MAX - 1)),
        }
    }

    fn floor(&self) -> io::Result<u64> {
        Ok(self.meta.get(FLOOR).map_err(database_error)?.map_or(0, |row| row.value()))
    }

    fn put_tombstone(&mut self, key: &str, version: i64) -> io::Result<()> {
        self.tombstones.insert(key, version).map_err(database_error)?;
        if self.tombstones.len().map_err(database_error)? <= MAX_TOMBSTONES {
            return Ok(());
        }
        let mut highest = 0;
        self.tombstones
            .retain(|_, version| {
                highest = highest.max(version);
                false
            })
            .map_err(database_error)?;
        let floor = self.floor()?.max(highest.unsigned_abs());
        self.meta.insert(FLOOR, floor).map_err(database_error)?;
        Ok(())
    }
}
