//! This process's copy of the node's state. Readers take a [`Snapshot`] and never wait; what changes it is the
//! stream of plexd-core, and the answers to writes, which show at once. Knows neither HTTP nor gRPC calls.

mod entry;
mod pace;
mod section;
mod snapshot;
mod stage;
mod writes;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tokio::time::Instant;

pub use entry::{Entry, Rendered};
pub(crate) use entry::{json, version_tag};
pub(crate) use pace::Pace;
pub(crate) use section::Change;
use section::{Entries, Section};
use snapshot::Parts;
pub use snapshot::{Kind, Snapshot};
pub(crate) use stage::Stage;
use stage::{Revisions, advance};
use writes::Writes;

/// From so many changes on, lists are rendered before the change shows, so that no reader pays for it.
const MANY: usize = 256;

/// What plexd-core answered to a write.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    pub(crate) key: Arc<str>,
    /// Its place among all writes.
    pub(crate) revision: u64,
    /// What is there now; `None` after a deletion.
    pub(crate) entry: Option<Arc<Entry>>,
}

impl Acknowledged {
    pub(crate) fn written(entry: Arc<Entry>) -> Self {
        Self { key: Arc::clone(&entry.key), revision: entry.place, entry: Some(entry) }
    }

    pub(crate) fn deleted(key: &str, revision: u64) -> Self {
        Self { key: key.into(), revision, entry: None }
    }
}

/// The copy of the state.
#[derive(Debug)]
pub struct Mirror {
    current: ArcSwapOption<Snapshot>,
    writes: Mutex<Writes>,
    changed: watch::Sender<()>,
    created: Instant,
    /// Milliseconds from `created` to when the stream was lost, plus one; 0 while it is not.
    lost: AtomicU64,
}

impl Mirror {
    /// Creates a copy that knows nothing yet.
    #[expect(clippy::new_without_default, reason = "it takes the time, which is no default")]
    pub fn new() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            writes: Mutex::default(),
            changed: watch::Sender::new(()),
            created: Instant::now(),
            lost: AtomicU64::new(0),
        }
    }

    /// Returns the state as it is now; `None` before the first complete snapshot.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// Returns for how long plexd-core has not been heard; `None` while its stream is open.
    pub fn age(&self) -> Option<Duration> {
        let lost = self.lost.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.created.elapsed().saturating_sub(Duration::from_millis(lost)))
    }

    /// Returns a receiver that is notified when the state changes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Notes that the stream is about to be asked for.
    pub(crate) fn stream_opened(&self) {
        self.writes().stream_opened();
    }

    /// Notes that there is no stream.
    pub(crate) fn stream_lost(&self) {
        let now = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        // Lost once, and not again with each attempt that fails.
        let _ = self.lost.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Lets everything set aside take effect together.
    pub(crate) async fn publish(&self, stage: Stage) {
        let mut pace = Pace::new();
        let base = self.snapshot().map(|snapshot| snapshot.parts()).unwrap_or_default();
        let highest = stage.highest_revision();
        let Stage { reset, registered, token, metadata, data, secrets, reports } = stage;
        let many = data.len() + secrets.len() + reports.len() > MANY;
        let start = if reset { Parts::default() } else { base.clone() };
        let pace = &mut pace;
        let data = advance(&base.data.entries, data, reset, Revisions::None, pace).await;
        let secrets = advance(&base.secrets.entries, secrets, reset, Revisions::None, pace).await;
        let reports = advance(&base.reports.entries, reports, reset, Revisions::Highest, pace).await;
        let next = Parts {
            registered: registered.unwrap_or(start.registered),
            token_sha256: token.map_or(start.token_sha256, |token| token.0),
            metadata: metadata.map_or(start.metadata, Arc::new),
            data: section(&base.data, data),
            secrets: section(&base.secrets, secrets),
            reports: section(&base.reports, reports),
        };
        if many {
            for section in [&next.data, &next.secrets, &next.reports] {
                section.prepare(pace).await;
            }
        }
        self.show(next, reset, highest);
    }

    /// Shows what plexd-core says is written, and hides what it says is deleted, all at once.
    pub(crate) fn acknowledge(&self, answers: Vec<Acknowledged>) {
        let mut writes = self.writes();
        // Before the first snapshot there is nothing to show it in; it is remembered for then.
        let mut parts = self.snapshot().map(|snapshot| snapshot.parts()).unwrap_or_default();
        let mut reports = parts.reports.entries.clone();
        for Acknowledged { key, revision, entry } in answers {
            writes.acknowledged(key, revision, entry, &mut reports);
        }
        if reports.same(&parts.reports.entries) || self.current.load().is_none() {
            return;
        }
        parts.reports = Arc::new(Section::new(reports));
        self.current.store(Some(Arc::new(Snapshot::new(parts))));
        drop(writes);
        self.changed.send_replace(());
    }

    /// Replaces the state without giving way, so that no write is acknowledged in between.
    fn show(&self, mut next: Parts, reset: bool, highest: u64) {
        let mut writes = self.writes();
        let mut reports = next.reports.entries.clone();
        writes.told(reset, highest, &mut reports);
        next.reports = section(&next.reports, reports);
        self.current.store(Some(Arc::new(Snapshot::new(next))));
        drop(writes);
        self.lost.store(0, Ordering::Relaxed);
        self.changed.send_replace(());
    }

    fn writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns `old` if nothing changed, with the list that it may have rendered.
fn section(old: &Arc<Section>, entries: Entries) -> Arc<Section> {
    if entries.same(&old.entries) { Arc::clone(old) } else { Arc::new(Section::new(entries)) }
}

#[cfg(test)]
mod tests;
