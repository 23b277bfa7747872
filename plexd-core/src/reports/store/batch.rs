//! What is sent to the control plane at once, and what becomes of it in the outbox.

use std::io;

use redb::{ReadableTable, WriteTransaction};

use super::OUTBOX;
use crate::reports::{Deleted, Entry};
use crate::storage::database_error;

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

/// Takes what `batch` has out of the outbox, unless there is something newer of it.
pub(super) fn remove_from_outbox(transaction: &WriteTransaction, batch: &Batch) -> io::Result<()> {
    let mut outbox = transaction.open_table(OUTBOX).map_err(database_error)?;
    for (key, revision) in batch.revisions() {
        let unchanged = outbox.get(key).map_err(database_error)?.is_some_and(|row| row.value() == revision);
        if unchanged {
            outbox.remove(key).map_err(database_error)?;
        }
    }
    Ok(())
}
