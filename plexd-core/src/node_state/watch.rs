//! The stream of the state: a snapshot in pieces, then what changes. What a slow receiver has not taken yet is not
//! queued: the next piece is made from what differs when it asks for one.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::unfold;
use plexd_proto::node::v1;
use plexd_proto::node::v1::change::Change as Kind;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tonic::Status;

use super::token::ApiToken;
use crate::identity::{CurrentIdentity, Identity};
use crate::reports::{self, Reports};
use crate::state::{DataEntry, Desired, EntryChange, Placed, SecretRef};

/// Most changes in one piece.
const PIECE_CHANGES: usize = 500;

/// Size past which a piece is closed, in bytes; a single entry may be larger.
const PIECE_BYTES: usize = 1024 * 1024;

/// Where the state comes from.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) desired: watch::Receiver<Arc<Desired>>,
    pub(super) identity: CurrentIdentity,
    pub(super) reports: Reports,
    /// The bearer token of TCP callers.
    pub(super) token: watch::Receiver<Option<ApiToken>>,
}

/// Streams the state until the receiver goes away.
pub(super) fn stream(sources: Sources) -> impl Stream<Item = Result<v1::WatchResponse, Status>> + Send {
    unfold(
        Watcher::new(sources),
        |mut watcher| async move { watcher.next().await.map(|item| (item, watcher)) },
    )
}

struct Watcher {
    sources: Sources,
    /// What the receiver has been told.
    told: Told,
    /// `None` until a snapshot was taken, and after the receiver fell too far behind.
    reports: Option<broadcast::Receiver<reports::Change>>,
    pieces: VecDeque<v1::WatchResponse>,
}

#[derive(Default)]
struct Told {
    desired: Arc<Desired>,
    identity: Option<Arc<Identity>>,
    token: Option<ApiToken>,
}

/// What woke the watcher.
enum News {
    State,
    Report(reports::Change),
    Lagged,
    End,
}

impl Watcher {
    fn new(sources: Sources) -> Self {
        Self { sources, told: Told::default(), reports: None, pieces: VecDeque::new() }
    }

    async fn next(&mut self) -> Option<Result<v1::WatchResponse, Status>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
            }
            let Some(reports) = &mut self.reports else {
                if let Err(status) = self.take_snapshot().await {
                    return Some(Err(status));
                }
                continue;
            };
            match news(&mut self.sources, reports).await {
                News::State if self.told.identity.is_some() && self.sources.identity.borrow().is_none() => {
                    // Everything told so far was this identity's.
                    self.reports = None;
                }
                News::State => {
                    let mut changes = self.tell_changes();
                    changes.extend(self.tell_token());
                    if !changes.is_empty() {
                        self.cut(changes, Reset::No);
                    }
                }
                News::Report(first) => match gather(first, reports) {
                    Some(changes) => self.cut(changes, Reset::No),
                    None => self.reports = None,
                },
                News::Lagged => self.reports = None,
                News::End => return None,
            }
        }
    }

    async fn take_snapshot(&mut self) -> Result<(), Status> {
        let subscription = self.sources.reports.subscribe().await.map_err(|error| {
            tracing::warn!(%error, "reports cannot be read for a snapshot");
            Status::unavailable("reports cannot be read")
        })?;
        self.told = Told::default();
        let mut changes = self.tell_changes();
        changes.extend(subscription.entries.iter().map(|entry| change(Kind::Report(report_entry(entry)))));
        changes.extend(self.tell_token());
        self.reports = Some(subscription.changes);
        self.cut(changes, Reset::Yes);
        Ok(())
    }

    /// Returns what the receiver does not know yet, and notes that it is told.
    fn tell_changes(&mut self) -> Vec<v1::Change> {
        let desired = Arc::clone(&self.sources.desired.borrow_and_update());
        let identity = self.sources.identity.borrow_and_update().clone();
        let mut changes = Vec::new();
        if let Some(identity) = &identity
            && self.told.identity.as_ref().is_none_or(|told| told.node_id != identity.node_id)
        {
            changes.push(change(Kind::Node(v1::Node { node_id: identity.node_id.to_string() })));
        }
        if desired.metadata != self.told.desired.metadata {
            let values = desired.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            changes.push(change(Kind::Metadata(v1::Metadata { values })));
        }
        changes.extend(desired.data.changes_since(&self.told.desired.data).map(|entry| {
            change(match entry {
                EntryChange::Set(_, placed) => Kind::Data(data_entry(placed)),
                EntryChange::Removed(key) => Kind::DataDeleted(key.to_owned()),
            })
        }));
        changes.extend(desired.secret_refs.changes_since(&self.told.desired.secret_refs).map(|entry| {
            change(match entry {
                EntryChange::Set(_, placed) => Kind::Secret(secret_ref(placed)),
                EntryChange::Removed(key) => Kind::SecretDeleted(key.to_owned()),
            })
        }));
        self.told = Told { desired, identity, ..self.told };
        changes
    }

    /// Returns the digest of the token, if the receiver does not know it yet, and notes that it is told.
    fn tell_token(&mut self) -> Option<v1::Change> {
        let token = *self.sources.token.borrow_and_update();
        let is_news = std::mem::replace(&mut self.told.token, token) != token;
        let access = |token: ApiToken| v1::TcpAccess { token_sha256: token.sha256().to_vec().into() };
        token.filter(|_| is_news).map(|token| change(Kind::TcpAccess(access(token))))
    }

    /// Cuts changes into bounded pieces, the last of which makes them take effect.
    fn cut(&mut self, changes: Vec<v1::Change>, reset: Reset) {
        let mut piece = v1::WatchResponse { reset: reset == Reset::Yes, ..Default::default() };
        let mut bytes = 0;
        for change in changes {
            if piece.changes.len() >= PIECE_CHANGES || bytes >= PIECE_BYTES {
                self.pieces.push_back(std::mem::take(&mut piece));
                bytes = 0;
            }
            bytes += prost::Message::encoded_len(&change);
            piece.changes.push(change);
        }
        piece.complete = true;
        self.pieces.push_back(piece);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reset {
    Yes,
    No,
}

/// Waits for something to tell.
async fn news(sources: &mut Sources, reports: &mut broadcast::Receiver<reports::Change>) -> News {
    // Cancel safe: an arm that loses has taken nothing.
    tokio::select! {
        changed = sources.desired.changed() => if changed.is_ok() { News::State } else { News::End },
        changed = sources.identity.changed() => if changed.is_ok() { News::State } else { News::End },
        // Where nobody reads the file again it stays as it is.
        Ok(()) = sources.token.changed() => News::State,
        change = reports.recv() => match change {
            Ok(change) => News::Report(change),
            Err(RecvError::Lagged(_)) => News::Lagged,
            Err(RecvError::Closed) => News::End,
        },
    }
}

/// Returns the first change and those that wait behind it, as many as a piece holds; `None` if the receiver fell too far
/// behind meanwhile, which it is told only once.
fn gather(
    first: reports::Change,
    reports: &mut broadcast::Receiver<reports::Change>,
) -> Option<Vec<v1::Change>> {
    let mut changes = vec![report_change(first)];
    while changes.len() < PIECE_CHANGES {
        match reports.try_recv() {
            Ok(next) => changes.push(report_change(next)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            Err(TryRecvError::Lagged(_)) => return None,
        }
    }
    Some(changes)
}

fn change(kind: Kind) -> v1::Change {
    v1::Change { change: Some(kind) }
}

fn data_entry(placed: &Placed<DataEntry>) -> v1::DataEntry {
    let entry = &placed.entry;
    v1::DataEntry {
        key: entry.key.clone(),
        content_type: entry.content_type.clone(),
        payload: entry.payload.clone(),
        version: entry.version,
        updated_at: entry.updated_at.clone(),
        position: placed.position,
    }
}

fn secret_ref(placed: &Placed<SecretRef>) -> v1::SecretRef {
    v1::SecretRef { key: placed.entry.key.clone(), version: placed.entry.version, position: placed.position }
}

fn report_change(changed: reports::Change) -> v1::Change {
    change(match changed {
        reports::Change::Put(entry) => Kind::Report(report_entry(&entry)),
        reports::Change::Deleted(deleted) => Kind::ReportDeleted(report_deleted(deleted)),
    })
}

/// Renders a report entry.
pub(super) fn report_entry(entry: &reports::Entry) -> v1::ReportEntry {
    v1::ReportEntry {
        key: entry.key.clone(),
        content_type: entry.content_type.clone(),
        payload: entry.payload.clone(),
        version: entry.version,
        updated_at: entry.updated_at.clone(),
        revision: entry.revision,
    }
}

/// Renders a deletion.
pub(super) fn report_deleted(deleted: reports::Deleted) -> v1::ReportDeleted {
    v1::ReportDeleted { key: deleted.key, revision: deleted.revision }
}

#[cfg(test)]
mod tests;
