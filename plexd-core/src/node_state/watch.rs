//! The stream of the state: a snapshot in pieces, then what changes. What a slow receiver has not taken yet is not
//! queued: the next piece is made from what differs when it asks for one. Reports are read from the disk piece by piece,
//! so that there is never more of them in memory than one piece.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

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
use crate::state::{DataEntry, Desired, EntryChange, Placed, SecretRef};

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
    pieces: VecDeque<v1::WatchResponse>,
    /// Pieces were told that take effect with one to come.
    unfinished: bool,
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
        let (told, pieces, reports_at) = (Told::default(), VecDeque::new(), Instant::now());
        Self { sources, position, reports_at, told, pieces, unfinished: false }
    }

    async fn next(&mut self) -> Option<Result<v1::WatchResponse, Status>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
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
                            self.cut(changes, Reset::No, Complete::Yes);
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
        self.cut(changes, Reset::Yes, Complete::No);
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
        self.unfinished = !told.complete;
        let changes = told.changes.into_iter().map(report_change).collect();
        self.pieces.push_back(v1::WatchResponse { reset: false, changes, complete: told.complete });
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
        self.told.desired = desired;
        self.told.identity = identity;
        changes
    }

    /// Returns the digest of the token, if the receiver does not know it yet, and notes that it is told.
    fn tell_token(&mut self) -> Option<v1::Change> {
        let token = *self.sources.token.borrow_and_update();
        let is_news = std::mem::replace(&mut self.told.token, token) != token;
        let access = |token: ApiToken| v1::TcpAccess { token_sha256: token.sha256().to_vec().into() };
        token.filter(|_| is_news).map(|token| change(Kind::TcpAccess(access(token))))
    }

    /// Cuts changes into bounded pieces, the last of which makes them take effect if they are complete.
    fn cut(&mut self, changes: Vec<v1::Change>, reset: Reset, complete: Complete) {
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
        piece.complete = complete == Complete::Yes;
        self.unfinished = !piece.complete;
        self.pieces.push_back(piece);
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
