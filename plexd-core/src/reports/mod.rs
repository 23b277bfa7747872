//! Reports of local applications: durable before they are acknowledged ([`store`]), written by one thread that gathers
//! concurrent writers into one commit ([`writer`]), and carried to the control plane from an outbox ([`sync`]).

mod store;
mod sync;
mod writer;

use bytes::Bytes;

pub use store::{Batch, OpenError};
pub use sync::ReportSync;
pub use writer::{Pending, ReportWriter, Reports, Stopped};

/// Most entries the node holds (contract, section 6).
pub const MAX_ENTRIES: u64 = 10_000;

/// Most bytes that all entries may have together: keys, content types and payloads.
pub const MAX_TOTAL_BYTES: u64 = 64 * 1024 * 1024;

/// Changes that may wait for the control plane; past this no entry is created. It takes many deletions to get there.
const MAX_UNSENT: u64 = 20_000;

/// Longest key, in bytes.
const MAX_KEY: usize = 256;

/// A report entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// 1 to 256 bytes, no control characters.
    pub key: String,
    /// MIME type as the writer gave it, not empty.
    pub content_type: String,
    /// One JSON value, byte for byte as the writer sent it.
    pub payload: Bytes,
    /// From 1; never goes back, not even over a deletion.
    pub version: i64,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// Place among all writes of the node.
    pub revision: u64,
}

impl Entry {
    /// Returns what it takes, in bytes.
    fn size(&self) -> usize {
        self.key.len() + self.content_type.len() + self.payload.len()
    }
}

/// A deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The key that is gone.
    pub key: String,
    /// Place among all writes of the node.
    pub revision: u64,
}

/// A durable change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Created or replaced.
    Put(Entry),
    /// Deleted.
    Deleted(Deleted),
}

/// Where the writes have got to. It differs from before whenever there is something new to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Rises when what was told may be wrong.
    generation: u64,
    /// The highest revision so far.
    revision: u64,
}

/// How much somebody who watches has been told; one by default knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    generation: u64,
    /// Entries up to this revision.
    entries: u64,
    /// Deletions up to this revision.
    deletions: u64,
}

/// What somebody who watches does not know yet, or the next part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// What was told before does not count any more; it begins anew with these.
    pub reset: bool,
    /// By rising revision, each key as it is now.
    pub changes: Vec<Change>,
    /// There is no more: all that was told is what there is. Before, it is a part of it.
    pub complete: bool,
    /// What is known with these.
    pub cursor: Cursor,
}

/// A write that is asked for.
#[derive(Debug, Clone)]
pub struct Put {
    /// See [`Entry::key`].
    pub key: String,
    /// See [`Entry::content_type`].
    pub content_type: String,
    /// See [`Entry::payload`].
    pub payload: Bytes,
    /// The version the writer believes current; 0: only if absent.
    pub if_match: Option<i64>,
}

/// One write of several.
#[derive(Debug, Clone)]
pub enum Write {
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

impl Write {
    /// Returns what it takes in memory, in bytes.
    fn size(&self) -> usize {
        match self {
            Self::Put(put) => put.key.len() + put.content_type.len() + put.payload.len(),
            Self::Delete { key, .. } => key.len(),
        }
    }
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The entry as it is now.
    Put(Entry),
    /// The deletion.
    Deleted(Deleted),
}

/// Why a write was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such entry.
    #[error("not found")]
    NotFound,
    /// `if_match` is not the current version.
    #[error("version conflict")]
    VersionConflict,
    /// There are [`MAX_ENTRIES`] already.
    #[error("too many report entries")]
    TooManyEntries,
    /// The disk is full, or the entries have [`MAX_TOTAL_BYTES`] already.
    #[error("insufficient storage")]
    InsufficientStorage,
    /// The disk refuses the write, but not because it is full.
    #[error("storage failure")]
    StorageFailed,
    /// Key, content type or payload is not what it must be.
    #[error("invalid report")]
    Invalid,
}

/// How many entries there are, and how they stand with the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Entries held.
    pub entries: u64,
    /// Changes the control plane has not confirmed.
    pub pending: u64,
    /// Entries the control plane refused for their version.
    pub conflicted: u64,
}

fn is_valid(put: &Put) -> bool {
    let key = &put.key;
    (1..=MAX_KEY).contains(&key.len())
        && !key.chars().any(char::is_control)
        && !put.content_type.is_empty()
        && serde_json::from_slice::<&serde_json::value::RawValue>(&put.payload).is_ok()
}
