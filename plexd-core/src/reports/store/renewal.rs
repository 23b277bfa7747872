//! What becomes of the reports when the node becomes another one: offered once more to a control plane that knows none
//! of them, or removed.

use std::io;

use redb::ReadableTable;

use super::{CONFLICTED, Disk, ENTRIES, OUTBOX, Store, create_tables};
use crate::storage::{self, StorageError, database_error};

impl Store {
    /// Removes the file and makes a new, empty one; those who watch are told of what is gone as deletions. Revisions go
    /// on, as they order all writes for those who watch; versions begin anew.
    pub(in crate::reports) fn start_over(&mut self) -> Result<(), StorageError> {
        // What cannot be read is removed all the same.
        let keys = self.keys().unwrap_or_default();
        let revision = self.index.revision + keys.len() as u64;
        self.disk = None;
        storage::remove(&self.path)?;
        let database = storage::open_database(&self.path)?;
        let created = create_tables(&database, 0, revision);
        created.map_err(|source| StorageError::new("write", &self.path, source))?;
        self.disk = Some(Disk { database, read_only: None });
        self.index.clear(keys);
        Ok(())
    }

    /// Puts every entry into the outbox, and takes all else out of it: a control plane that never had a report of this
    /// node is to have those that there are.
    pub(in crate::reports) fn offer_again(&mut self) -> io::Result<()> {
        self.durably(|transaction, _| {
            let entries = transaction.open_table(ENTRIES).map_err(database_error)?;
            let mut outbox = transaction.open_table(OUTBOX).map_err(database_error)?;
            outbox.retain(|_, _| false).map_err(database_error)?;
            for row in entries.iter().map_err(database_error)? {
                let (key, value) = row.map_err(database_error)?;
                outbox.insert(key.value(), value.value().1).map_err(database_error)?;
            }
            let mut conflicted = transaction.open_table(CONFLICTED).map_err(database_error)?;
            conflicted.retain(|_, _| false).map_err(database_error)
        })
    }

    fn keys(&mut self) -> io::Result<Vec<String>> {
        let read = self.readable()?;
        let entries = read.open_table(ENTRIES).map_err(database_error)?;
        let rows = entries.iter().map_err(database_error)?;
        rows.map(|row| row.map(|(key, _)| key.value().to_owned()).map_err(database_error)).collect()
    }
}
