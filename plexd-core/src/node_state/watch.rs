//! The stream of the state: a snapshot in pieces, then what changes. What a slow receiver has not taken yet is not
//! queued: the next piece is made from what differs when it asks for one. Reports, and payloads of data entries that are
//! no news, are read from the disk piece by piece, so that there is never more of them in memory than one piece.

use std::sync::Arc;
use std::time::Duration;
use std::vec;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use plexd_proto::node::v1;
use plexd_proto::node::v1::change::Change as Kind;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::token::ApiToken;
use crate::identity::{CurrentIdentity, Identity};
use crate::reports::{self, Cursor, Position, Reports};
use crate::state::{self, DataEntry, Desired, EntryChange, Placed, SecretRef};

/// Most changes in one piece.
const PIECE_CHANGES: usize = 500;

/// Size past which a piece is closed, in bytes; a single entry may be larger.
const PIECE_BYTES: usize = 1024 * 1024;

/// How long what is written of reports is gathered before it is told. The sidecar knows already: it passed the writes on.
const REPORTS_PACE: Duration = Duration::from_millis(50);

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
    /// Changes whenever there is something new to tell of reports.
    position: watch::Receiver<Position>,
    /// When reports are told again at the earliest.
    reports_at: Instant,
    /// What the receiver has been told.
    told: Told,
    /// What is being told.
    outgoing: Option<Outgoing>,
    /// Pieces were told that take effect with one to come.
    unfinished: bool,
}

/// Changes that are told together, in pieces made when the receiver asks for them.
struct Outgoing {
    reset: Reset,
    changes: vec::IntoIter<Planned>,
    /// Whether the last piece makes them take effect.
    complete: Complete,
}

/// A change to be told.
enum Planned {
    Ready(v1::Change),
    /// A data entry, whose payload may be on disk.
    Data(Placed<DataEntry>),
}

#[derive(Default)]
struct Told {
    desired: Arc<Desired>,
    identity: Option<Arc<Identity>>,
    token: Option<ApiToken>,
    reports: Reported,
}

/// How far the reports have been told.
#[derive(Default)]
enum Reported {
    /// The snapshot has not begun.
    #[default]
    Nothing,
    /// Up to there; what was told since the last complete piece takes effect once all of it is.
    Partly(Cursor),
    /// Up to there, which is all there was.
    Completely(Cursor),
}

/// What woke the watcher.
enum News {
    State,
    Reports,
    End,
}

impl Watcher {
    fn new(sources: Sources) -> Self {
        let position = sources.reports.position();
        let (told, reports_at) = (Told::default(), Instant::now());
        Self { sources, position, reports_at, told, outgoing: None, unfinished: false }
    }

    async fn next(&mut self) -> Option<Result<v1::WatchResponse, Status>> {
        loop {
            if let Some(outgoing) = self.outgoing.take() {
                match self.piece(outgoing).await {
                    Ok(Some(piece)) => return Some(Ok(piece)),
                    // What was told of it is superseded by a snapshot of what there is now.
                    Ok(None) => self.told.reports = Reported::Nothing,
                    Err(status) => return Some(Err(status)),
                }
            }
            match self.told.reports {
                Reported::Nothing => self.begin_snapshot(),
                Reported::Partly(cursor) => {
                    if let Err(status) = self.tell_reports(cursor).await {
                        return Some(Err(status));
                    }
                }
                Reported::Completely(cursor) => match self.news().await {
                    News::State
                        if self.told.identity.is_some() && self.sources.identity.borrow().is_none() =>
                    {
                        // Everything told so far was this identity's.
                        self.told.reports = Reported::Nothing;
                    }
                    News::State => {
                        let mut changes = self.tell_changes();
                        changes.extend(self.tell_token());
                        if !changes.is_empty() {
                            self.tell(changes, Reset::No, Complete::Yes);
                        }
                    }
                    News::Reports => self.told.reports = Reported::Partly(cursor),
                    News::End => return None,
                },
            }
        }
    }

    /// Tells everything but the reports, which follow.
    fn begin_snapshot(&mut self) {
        self.told = Told::default();
        let mut changes = self.tell_changes();
        changes.extend(self.tell_token());
        self.told.reports = Reported::Partly(Cursor::default());
        self.tell(changes, Reset::Yes, Complete::No);
    }

    /// Tells the reports that follow `cursor`, as many as a piece holds.
    async fn tell_reports(&mut self, cursor: Cursor) -> Result<(), Status> {
        // Before they are read: what changes from here on is news.
        self.position.mark_unchanged();
        self.reports_at = Instant::now() + REPORTS_PACE;
        let told =
            self.sources.reports.changes(cursor, PIECE_CHANGES, PIECE_BYTES).await.map_err(|error| {
                tracing::warn!(%error, "reports cannot be read for those who watch");
                Status::unavailable("reports cannot be read")
            })?;
        if told.reset && cursor != Cursor::default() {
            self.told.reports = Reported::Nothing;
            return Ok(());
        }
        self.told.reports =
            if told.complete { Reported::Completely(told.cursor) } else { Reported::Partly(told.cursor) };
        if told.changes.is_empty() && !(self.unfinished && told.complete) {
            return Ok(());
        }
        let complete = if told.complete { Complete::Yes } else { Complete::No };
        let changes = told.changes.into_iter().map(|change| Planned::Ready(report_change(change))).collect();
        self.tell(changes, Reset::No, complete);
        Ok(())
    }

    /// Returns what the receiver does not know yet, and notes that it is told.
    fn tell_changes(&mut self) -> Vec<Planned> {
        let desired = Arc::clone(&self.sources.desired.borrow_and_update());
        let identity = self.sources.identity.borrow_and_update().clone();
        let mut changes = Vec::new();
        if let Some(identity) = &identity
            && self.told.identity.as_ref().is_none_or(|told| told.node_id != identity.node_id)
        {
            changes.push(ready(Kind::Node(v1::Node { node_id: identity.node_id.to_string() })));
        }
        if desired.metadata != self.told.desired.metadata {
            let values = desired.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            changes.push(ready(Kind::Metadata(v1::Metadata { values })));
        }
        changes.extend(desired.data.changes_since(&self.told.desired.data).map(|entry| match entry {
            EntryChange::Set(_, placed) => Planned::Data(placed.clone()),
            EntryChange::Removed(key) => ready(Kind::DataDeleted(key.to_owned())),
        }));
        changes.extend(desired.secret_refs.changes_since(&self.told.desired.secret_refs).map(|entry| {
            ready(match entry {
                EntryChange::Set(_, placed) => Kind::Secret(secret_ref(placed)),
                EntryChange::Removed(key) => Kind::SecretDeleted(key.to_owned()),
            })
        }));
        self.told.desired = desired;
        self.told.identity = identity;
        changes
    }

    /// Returns the digest of the token, if the receiver does not know it yet, and notes that it is told.
    fn tell_token(&mut self) -> Option<Planned> {
        let token = *self.sources.token.borrow_and_update();
        let is_news = std::mem::replace(&mut self.told.token, token) != token;
        let access = |token: ApiToken| v1::TcpAccess { token_sha256: token.sha256().to_vec().into() };
        token.filter(|_| is_news).map(|token| ready(Kind::TcpAccess(access(token))))
    }

    /// Begins to tell changes, which take effect with the last of them if they are complete.
    fn tell(&mut self, changes: Vec<Planned>, reset: Reset, complete: Complete) {
        self.unfinished = complete == Complete::No;
        self.outgoing = Some(Outgoing { reset, changes: changes.into_iter(), complete });
    }

    /// Makes the next piece of what is told; `None` if a payload of it is not to be had any more, as there is a newer one.
    async fn piece(&mut self, mut outgoing: Outgoing) -> Result<Option<v1::WatchResponse>, Status> {
        let (mut planned, mut bytes) = (Vec::new(), 0);
        while planned.len() < PIECE_CHANGES && bytes < PIECE_BYTES {
            let Some(next) = outgoing.changes.next() else { break };
            bytes += next.size();
            planned.push(next);
        }
        let entries: Vec<_> = planned.iter().filter_map(Planned::entry).cloned().collect();
        let Some(payloads) = self.payloads(&entries).await? else { return Ok(None) };
        let mut payloads = payloads.into_iter();
        let changes = planned.into_iter().map(|planned| match planned {
            Planned::Ready(change) => change,
            Planned::Data(placed) => {
                change(Kind::Data(data_entry(&placed, payloads.next().unwrap_or_default())))
            }
        });
        let mut piece = v1::WatchResponse {
            reset: outgoing.reset == Reset::Yes,
            changes: changes.collect(),
            complete: false,
        };
        if outgoing.changes.as_slice().is_empty() {
            piece.complete = outgoing.complete == Complete::Yes;
        } else {
            self.outgoing = Some(Outgoing { reset: Reset::No, ..outgoing });
        }
        Ok(Some(piece))
    }

    /// Returns the payloads of entries of the state that is being told; `None` if there is a newer one.
    async fn payloads(&self, entries: &[Arc<DataEntry>]) -> Result<Option<Vec<Bytes>>, Status> {
        let unreadable = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "data entries cannot be read for those who watch");
            Status::unavailable("data entries cannot be read")
        };
        match state::payloads(entries).await {
            Ok(None) if !self.sources.desired.has_changed().unwrap_or(true) => {
                Err(unreadable(&"they are not what was stored; they are pulled anew after a restart"))
            }
            Ok(payloads) => Ok(payloads),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Waits for something to tell.
    async fn news(&mut self) -> News {
        let reports = async {
            sleep_until(self.reports_at).await;
            self.position.changed().await
        };
        // Cancel safe: an arm that loses has taken nothing.
        tokio::select! {
            changed = self.sources.desired.changed() => if changed.is_ok() { News::State } else { News::End },
            changed = self.sources.identity.changed() => if changed.is_ok() { News::State } else { News::End },
            // Where nobody reads the file again it stays as it is.
            Ok(()) = self.sources.token.changed() => News::State,
            changed = reports => if changed.is_ok() { News::Reports } else { News::End },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reset {
    Yes,
    No,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Complete {
    Yes,
    No,
}

impl Planned {
    /// Returns about how many bytes it takes to tell.
    fn size(&self) -> usize {
        match self {
            Self::Ready(change) => prost::Message::encoded_len(change),
            Self::Data(Placed { entry, .. }) => {
                entry.key.len() + entry.content_type.len() + entry.payload.length() + entry.updated_at.len()
            }
        }
    }

    fn entry(&self) -> Option<&Arc<DataEntry>> {
        match self {
            Self::Ready(_) => None,
            Self::Data(placed) => Some(&placed.entry),
        }
    }
}

fn ready(kind: Kind) -> Planned {
    Planned::Ready(change(kind))
}

fn change(kind: Kind) -> v1::Change {
    v1::Change { change: Some(kind) }
}

fn data_entry(placed: &Placed<DataEntry>, payload: Bytes) -> v1::DataEntry {
    let entry = &placed.entry;
    v1::DataEntry {
        key: entry.key.clone(),
        content_type: entry.content_type.clone(),
        payload,
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
        reports::Change::Put(entry) => Kind::Report(report_entry(entry)),
        reports::Change::Deleted(deleted) => Kind::ReportDeleted(report_deleted(deleted)),
    })
}

fn report_entry(entry: reports::Entry) -> v1::ReportEntry {
    let reports::Entry { key, content_type, payload, version, updated_at, revision } = entry;
    v1::ReportEntry { key, content_type, payload, version, updated_at, revision }
}

/// Renders a deletion.
pub(super) fn report_deleted(deleted: reports::Deleted) -> v1::ReportDeleted {
    v1::ReportDeleted { key: deleted.key, revision: deleted.revision }
}

#[cfg(test)]
mod tests;
