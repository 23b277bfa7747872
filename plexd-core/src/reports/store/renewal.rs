//! What becomes of the reports when the node becomes another one: offered once more to a control plane that knows none
//! of them, or removed.

use std::io;

use redb::{ReadableDatabase, ReadableTable};

use super::{CONFLICTED, ENTRIES, META, OUTBOX, REVISION, Store, create_tables};
use crate::reports::Deleted;
use crate::storage::{self, StorageError};

impl Store {
    /// Removes the file and makes a new, empty one; returns the entries that are gone, as deletions. Revisions go on, as
    /// they order all writes for those who watch; versions begin anew.
    pub(in crate::reports) fn start_over(&mut self) -> Result<Vec<Deleted>, StorageError> {
        // What cannot be read is removed all the same.
        let keys = self.keys().unwrap_or_default();
        let revision = self.revision().unwrap_or(0);
        self.database = None;
        storage::remove(&self.path)?;
        let database = storage::open_database(&self.path)?;
        create_tables(&database).map_err(|source| StorageError::new("write", &self.path, source))?;
        self.database = Some(database);
        let deleted: Vec<Deleted> =
            (revision + 1..).zip(keys).map(|(revision, key)| Deleted { key, revision }).collect();
        let last = deleted.last().map_or(revision, |last| last.revision);
        self.durably(|transaction| {
            let mut meta = transaction.open_table(META).map_err(storage::database_error)?;
            meta.insert(REVISION, last).map_err(storage::database_error)?;
            Ok(())
        })
        .map_err(|source| StorageError::new("write", &self.path, source))?;
        Ok(deleted)
    }

    /// Puts every entry into the outbox, and takes all else out of it: a control plane that never had a report of this
    /// node is to have those that there are.
    pub(in crate::reports) fn offer_again(&mut self) -> io::Result<()> {
        self.durably(|transaction| {
            let entries = transaction.open_table(ENTRIES).map_err(storage::database_error)?;
            let mut outbox = transaction.open_table(OUTBOX).map_err(storage::database_error)?;
            outbox.retain(|_, _| false).map_err(storage::database_error)?;
            for row in entries.iter().map_err(storage::database_error)? {
                let (key, value) = row.map_err(storage::database_error)?;
                outbox.insert(key.value(), value.value().1).map_err(storage::database_error)?;
            }
            let mut conflicted = transaction.open_table(CONFLICTED).map_err(storage::database_error)?;
            conflicted.retain(|_, _| false).map_err(storage::database_error)
        })
    }

    fn keys(&mut self) -> io::Result<Vec<String>> {
        let read = self.database()?.begin_read().map_err(storage::database_error)?;
        let entries = read.open_table(ENTRIES).map_err(storage::database_error)?;
        let rows = entries.iter().map_err(storage::database_error)?;
        rows.map(|row| row.map(|(key, _)| key.value().to_owned()).map_err(storage::database_error)).collect()
    }

    fn revision(&mut self) -> io::Result<u64> {
        let read = self.database()?.begin_read().map_err(storage::database_error)?;
        let meta = read.open_table(META).map_err(storage::database_error)?;
        Ok(meta.get(REVISION).map_err(storage::database_error)?.map_or(0, |row| row.value()))
    }
}
