//! Pieces of the `Watch` stream, set aside until one says that they are complete. Entries are rendered here, as they
//! arrive and out of sight of readers; a new state is then made from an old one by moving references.

use std::collections::HashSet;
use std::sync::Arc;

use plexd_proto::node::v1::change::Change as Wire;
use plexd_proto::node::v1::{Change, TcpAccess, WatchResponse};

use super::entry::Entry;
use super::pace::Pace;
use super::section::Entries;
use super::snapshot::Metadata;

/// Pieces set aside.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    /// Whether what is not named here no longer exists.
    pub(crate) reset: bool,
    pub(super) registered: Option<bool>,
    pub(super) token: Option<Token>,
    pub(super) metadata: Option<Metadata>,
    pub(super) data: Vec<Op>,
    pub(super) secrets: Vec<Op>,
    pub(super) reports: Vec<Op>,
}

/// What core said of the token of TCP callers: its SHA-256, or that there is none.
#[derive(Debug)]
pub(super) struct Token(pub(super) Option<[u8; 32]>);

/// One change of one section.
#[derive(Debug)]
pub(super) enum Op {
    Put(Arc<Entry>),
    /// With the revision, where the kind has one.
    Remove(String, u64),
}

impl Op {
    fn place(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.place,
            Self::Remove(_, revision) => *revision,
        }
    }
}

impl Stage {
    /// Begins a stream, whose first pieces are a snapshot.
    pub(crate) fn snapshot() -> Self {
        Self { reset: true, ..Self::default() }
    }

    /// Sets a piece aside; returns whether everything set aside is to take effect now.
    pub(crate) async fn add(&mut self, piece: WatchResponse, pace: &mut Pace) -> bool {
        if piece.reset {
            *self = Self::snapshot();
        }
        for change in piece.changes {
            self.change(change, pace).await;
        }
        piece.complete
    }

    async fn change(&mut self, change: Change, pace: &mut Pace) {
        match change.change {
            Some(Wire::Node(node)) => self.registered = Some(!node.node_id.is_empty()),
            Some(Wire::Metadata(all)) => self.metadata = Some(Metadata::render(all.values, pace).await),
            Some(Wire::Data(entry)) => {
                self.data.push(Op::Put(Arc::new(Entry::of_data(&entry))));
                pace.step(entry.payload.len()).await;
            }
            Some(Wire::DataDeleted(key)) => self.data.push(Op::Remove(key, 0)),
            Some(Wire::Secret(secret)) => {
                self.secrets.push(Op::Put(Arc::new(Entry::of_secret(&secret))));
                pace.step(0).await;
            }
            Some(Wire::SecretDeleted(key)) => self.secrets.push(Op::Remove(key, 0)),
            Some(Wire::Report(entry)) => {
                self.reports.push(Op::Put(Arc::new(Entry::of_report(&entry))));
                pace.step(entry.payload.len()).await;
            }
            Some(Wire::ReportDeleted(gone)) => self.reports.push(Op::Remove(gone.key, gone.revision)),
            Some(Wire::TcpAccess(access)) => self.token = Some(Token(digest(&access))),
            // From a core newer than this process: nothing that it could show.
            None => tracing::debug!("change of an unknown kind passed over"),
        }
    }

    /// Returns the highest revision among the changes of reports; 0 if there are none.
    pub(super) fn highest_revision(&self) -> u64 {
        self.reports.iter().map(Op::place).max().unwrap_or(0)
    }
}

fn digest(access: &TcpAccess) -> Option<[u8; 32]> {
    let digest = <[u8; 32]>::try_from(access.token_sha256.as_ref()).ok();
    if digest.is_none() && !access.token_sha256.is_empty() {
        tracing::warn!(
            length = access.token_sha256.len(),
            "token digest of core has not 32 bytes; TCP callers are refused"
        );
    }
    digest
}

/// Whether the entries of a section carry revisions, of which the highest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Revisions {
    /// Changes count as they come.
    None,
    /// A change older than what is known is passed over.
    Highest,
}

/// Returns `base` after `ops`; with `reset`, what they do not name is gone.
pub(super) async fn advance(
    base: &Entries,
    ops: Vec<Op>,
    reset: bool,
    revisions: Revisions,
    pace: &mut Pace,
) -> Entries {
    let mut entries = base.clone();
    // Only what is there can be gone.
    let sweep = reset && base.len() > 0;
    let mut named = HashSet::new();
    for op in ops {
        let known = entries.get(match &op {
            Op::Put(entry) => &entry.key,
            Op::Remove(key, _) => key,
        });
        let outdated =
            revisions == Revisions::Highest && !reset && known.is_some_and(|known| known.place > op.place());
        pace.step(0).await;
        match op {
            _ if outdated => {}
            Op::Put(entry) => {
                if sweep {
                    named.insert(Arc::clone(&entry.key));
                }
                entries.put(entry);
            }
            Op::Remove(key, _) => {
                named.remove(key.as_str());
                entries.remove(&key);
            }
        }
    }
    if sweep {
        for key in base.keys() {
            if !named.contains(key) {
                entries.remove(key);
            }
            pace.step(0).await;
        }
    }
    entries
}
