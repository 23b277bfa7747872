//! Carries reports to the control plane: gathered for a moment, sent in bounded batches, at start too; conflicts are told
//! apart entry by entry (contract, section 6).

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::{Batch, Counts, Entry, Reports};
use crate::control::backoff::{self, Backoff};
use crate::control::client::ClientError;
use crate::control::session::Session;
use crate::control::wire::{ReportEntry, ReportSyncRequest};
use crate::status::Subsystem;
use crate::supervisor::Shutdown;

/// Most changes in one request.
const MAX_CHANGES: usize = 1_000;

/// Most payload in one request, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Why sending stopped for now.
#[derive(Debug)]
enum Trouble {
    /// The control plane cannot take anything at the moment.
    ControlPlane(ClientError),
    /// What it said cannot be noted; sent again at once, it would be said again.
    Storage(io::Error),
}

/// The task.
#[derive(Debug)]
pub struct ReportSync {
    session: Session,
    reports: Reports,
    counts: watch::Receiver<Counts>,
    debounce: Duration,
}

impl ReportSync {
    /// Creates the task; changes are gathered for `debounce` after the first.
    pub fn new(session: Session, reports: Reports, debounce: Duration) -> Self {
        let counts = reports.counts();
        Self { session, reports, counts, debounce }
    }

    /// Sends until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.tell_conflicts();
        // What an earlier process acknowledged goes at once.
        let mut debounce = Duration::ZERO;
        loop {
            // Cancel safe: waiting for a value takes nothing.
            tokio::select! {
                // First: once asked to stop, the writer may be gone before this task, and that is no error.
                biased;
                () = shutdown.cancelled() => return Ok(()),
                changed = self.counts.wait_for(|counts| counts.pending > 0) => { changed?; }
            }
            let gathering = std::mem::replace(&mut debounce, self.debounce);
            if !self.session.pause(gathering, &shutdown).await {
                return Ok(());
            }
            // Cancel safe: what was not confirmed is sent again by the next process.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.drain(&shutdown) => {}
            }
        }
    }

    /// Sends what there is now. What is written meanwhile is gathered again, so that no stream of writes becomes a stream of
    /// requests.
    async fn drain(&mut self, shutdown: &Shutdown) {
        let mut backoff = Backoff::new();
        let mut most = MAX_CHANGES;
        let mut newest = self.reports.newest();
        loop {
            let batch = match self.reports.outbox(newest, most, MAX_BYTES).await {
                Ok(batch) if batch.is_empty() => return,
                Ok(batch) => batch,
                Err(error) => {
                    tracing::warn!(%error, "unsent reports cannot be read");
                    if !self.session.pause(backoff.next(backoff::random()), shutdown).await {
                        return;
                    }
                    continue;
                }
            };
            let result = match self.send(&batch, shutdown).await {
                Ok(()) => self.confirm(batch).await,
                // Too much at once: less, down to a single change.
                Err(ClientError::TooLarge { .. }) if batch.len() > 1 => {
                    most = (batch.len() / 2).max(1);
                    Ok(())
                }
                Err(error) if concerns_content(&error) => self.send_one_by_one(batch, shutdown).await,
                Err(error) => Err(Trouble::ControlPlane(error)),
            };
            let delay = match result {
                Ok(()) => {
                    backoff.reset();
                    continue;
                }
                Err(Trouble::ControlPlane(error)) => self.session.failed(&error, &mut backoff),
                Err(Trouble::Storage(error)) => {
                    tracing::warn!(%error, "what became of reports cannot be noted; they are sent again");
                    backoff.next(backoff::random())
                }
            };
            if !self.session.pause(delay, shutdown).await {
                return;
            }
            // That was long enough to gather.
            newest = self.reports.newest();
        }
    }

    /// Finds out which changes of a refused batch are refused by themselves. Those stay here, marked.
    async fn send_one_by_one(&mut self, batch: Batch, shutdown: &Shutdown) -> Result<(), Trouble> {
        for single in batch.split() {
            match self.send(&single, shutdown).await {
                Ok(()) => self.confirm(single).await?,
                Err(error) if concerns_content(&error) => {
                    tracing::warn!(%error, "the control plane refuses a report; it stays on this node");
                    self.reports.mark_conflicted(single).await.map_err(Trouble::Storage)?;
                    self.tell_conflicts();
                }
                Err(error) => return Err(Trouble::ControlPlane(error)),
            }
        }
        Ok(())
    }

    async fn send(&mut self, batch: &Batch, shutdown: &Shutdown) -> Result<(), ClientError> {
        let Some(identity) = self.session.identity(shutdown).await else {
            return std::future::pending().await;
        };
        let request = ReportSyncRequest {
            entries: batch.entries.iter().filter_map(wire).collect(),
            deleted: batch.deleted.iter().map(|deleted| deleted.key.clone()).collect(),
        };
        self.session.client.report(&identity.credentials(), &request).await?;
        self.session.answered();
        Ok(())
    }

    async fn confirm(&self, batch: Batch) -> Result<(), Trouble> {
        self.reports.confirm(batch).await.map_err(Trouble::Storage)?;
        self.tell_conflicts();
        Ok(())
    }

    fn tell_conflicts(&self) {
        let conflicted = self.counts.borrow().conflicted;
        let problem = (conflicted > 0).then(|| {
            format!("the control plane refused {conflicted} report entries; write them again or delete them")
        });
        self.session.board.set(Subsystem::Reports, "conflicted", problem);
    }
}

/// Returns whether a refusal is about what was sent, so that other reports may fare better; anything else is about the node
/// and concerns them all.
fn concerns_content(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Conflict { .. } | ClientError::TooLarge { .. } | ClientError::BadRequest { .. }
    )
}

/// Renders an entry; `None` for one whose payload or time is not what the store lets in.
fn wire(entry: &Entry) -> Option<ReportEntry> {
    Some(ReportEntry {
        key: entry.key.clone(),
        content_type: entry.content_type.clone(),
        payload: serde_json::from_slice(&entry.payload).ok()?,
        version: entry.version,
        updated_at: entry.updated_at.parse::<Timestamp>().ok()?,
    })
}

#[cfg(test)]
mod tests;
