//! The one writer of the reports: gathers whatever concurrent writers ask for into one commit, answers them once it
//! is durable, and tells those who watch.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::store::{Batch, OpenError, Store, Write, Written};
use super::{Change, Counts, Deleted, Entry, Put, Refusal};
use crate::status::{Board, Subsystem};
use crate::storage::StorageError;
use crate::supervisor::Shutdown;
use crate::types::Clock;

/// Requests that may wait; past this a caller waits to hand its request over.
const QUEUE: usize = 1024;

/// Most writes in one commit.
const MAX_COMMIT: usize = 512;

/// Changes a watcher may lag behind before it has to take a new snapshot.
const MAX_LAG: usize = 1024;

/// Asks the writer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reports {
    requests: mpsc::Sender<Request>,
    counts: watch::Receiver<Counts>,
}

/// The task that owns the database.
#[derive(Debug)]
pub struct ReportWriter {
    writer: Writer,
    /// Not within the writer: a thread that holds a sender of its own would wait for ever once the task is gone.
    stop: mpsc::Sender<Request>,
}

/// What works on a thread of its own.
#[derive(Debug)]
struct Writer {
    store: Store,
    clock: Arc<dyn Clock>,
    board: Board,
    requests: mpsc::Receiver<Request>,
    changes: broadcast::Sender<Change>,
    counts: watch::Sender<Counts>,
}

#[derive(Debug)]
enum Request {
    Write(Write, oneshot::Sender<Result<Written, Refusal>>),
    Subscribe(oneshot::Sender<io::Result<Subscription>>),
    Outbox { most: usize, bytes: usize, reply: oneshot::Sender<io::Result<Batch>> },
    Confirm(Batch, oneshot::Sender<io::Result<()>>),
    MarkConflicted(Batch, oneshot::Sender<io::Result<()>>),
    OfferAgain(oneshot::Sender<io::Result<()>>),
    Clear(oneshot::Sender<Result<(), StorageError>>),
    Stop,
}

/// All entries, and every change after them.
#[derive(Debug)]
pub struct Subscription {
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
    /// What changes from here on; a receiver that lags must subscribe anew.
    pub changes: broadcast::Receiver<Change>,
}

impl Reports {
    /// Opens the database at `path` and returns the handle and the task to be run.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, board: Board) -> Result<(Self, ReportWriter), OpenError> {
        let (mut store, aside) = Store::open(path, clock.now())?;
        let problem = aside.map(|aside| {
            format!("the stored reports were damaged and are now {}; write them again", aside.display())
        });
        board.set(Subsystem::Storage, "reports", problem);
        let counts = store.counts().map_err(|source| OpenError::new("read", path, source))?;
        let (stop, requests) = mpsc::channel(QUEUE);
        let (counts, counts_seen) = watch::channel(counts);
        let (changes, _) = broadcast::channel(MAX_LAG);
        let handle = Self { requests: stop.clone(), counts: counts_seen };
        let writer = Writer { store, clock, board, requests, changes, counts };
        Ok((handle, ReportWriter { writer, stop }))
    }

    /// Creates or replaces an entry; returns once it is durable.
    pub async fn put(&self, put: Put) -> Result<Entry, Refusal> {
        match self.write(Write::Put(put)).await? {
            Written::Put(entry) => Ok(entry),
            Written::Deleted(_) => Err(Refusal::Invalid),
        }
    }

    /// Deletes an entry; returns once that is durable.
    pub async fn delete(&self, key: String, if_match: Option<i64>) -> Result<Deleted, Refusal> {
        match self.write(Write::Delete { key, if_match }).await? {
            Written::Deleted(deleted) => Ok(deleted),
            Written::Put(_) => Err(Refusal::Invalid),
        }
    }

    /// Returns all entries and every change after them, without a gap.
    pub async fn subscribe(&self) -> io::Result<Subscription> {
        self.ask(Request::Subscribe).await?
    }

    /// Returns unsent changes, at most `most` and `bytes` of them, but at least one if there are any.
    pub async fn outbox(&self, most: usize, bytes: usize) -> io::Result<Batch> {
        self.ask(|reply| Request::Outbox { most, bytes, reply }).await?
    }

    /// States that the control plane has the changes.
    pub async fn confirm(&self, batch: Batch) -> io::Result<()> {
        self.ask(|reply| Request::Confirm(batch, reply)).await?
    }

    /// States that the control plane refused the changes for their versions.
    pub async fn mark_conflicted(&self, batch: Batch) -> io::Result<()> {
        self.ask(|reply| Request::MarkConflicted(batch, reply)).await?
    }

    /// Has every entry sent to a control plane that knows none of them: it has given the node a new identity.
    pub async fn offer_again(&self) -> io::Result<()> {
        self.ask(Request::OfferAgain).await?
    }

    /// Removes everything, versions of deleted keys and unsent changes included.
    ///
    /// # Errors
    /// The inner error: the file is still there, or no new one can be made.
    pub async fn clear(&self) -> io::Result<Result<(), StorageError>> {
        self.ask(Request::Clear).await
    }

    /// Returns how many entries there are.
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.clone()
    }

    async fn write(&self, write: Write) -> Result<Written, Refusal> {
        self.ask(|reply| Request::Write(write, reply)).await.map_err(|_| Refusal::Stopping)?
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> io::Result<T> {
        let stopped = || io::Error::other("the report writer has stopped");
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

impl ReportWriter {
    /// Serves requests until asked to stop; what was accepted before is done first.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { writer, stop } = self;
        let thread = tokio::task::spawn_blocking(move || writer.serve());
        shutdown.cancelled().await;
        // The only failure is that the writer has ended already.
        let _ = stop.send(Request::Stop).await;
        Ok(thread.await?)
    }
}

impl Writer {
    fn serve(mut self) {
        while let Some(first) = self.requests.blocking_recv() {
            let mut writes = Vec::new();
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Write(write, reply) => writes.push((write, reply)),
                    other => {
                        self.commit(std::mem::take(&mut writes));
                        if !self.answer(other) {
                            return;
                        }
                    }
                }
                next = if writes.len() < MAX_COMMIT { self.requests.try_recv().ok() } else { None };
            }
            self.commit(writes);
        }
    }

    /// Answers anything but a write; returns whether to go on.
    fn answer(&mut self, request: Request) -> bool {
        // A caller that no longer waits for its answer is no error.
        match request {
            Request::Write(write, reply) => self.commit(vec![(write, reply)]),
            Request::Subscribe(reply) => {
                let changes = self.changes.subscribe();
                let _ = reply.send(self.store.entries().map(|entries| Subscription { entries, changes }));
            }
            Request::Outbox { most, bytes, reply } => {
                let _ = reply.send(self.store.outbox(most, bytes));
            }
            // Counted before the answer: who asked may look at the counts next.
            Request::Confirm(batch, reply) => {
                let confirmed = self.store.confirm(&batch);
                self.count();
                let _ = reply.send(confirmed);
            }
            Request::MarkConflicted(batch, reply) => {
                let marked = self.store.mark_conflicted(&batch);
                self.count();
                let _ = reply.send(marked);
            }
            Request::OfferAgain(reply) => {
                let offered = self.store.offer_again();
                self.count();
                let _ = reply.send(offered);
            }
            Request::Clear(reply) => {
                let cleared = self.clear();
                self.count();
                let _ = reply.send(cleared);
            }
            Request::Stop => return false,
        }
        true
    }

    fn clear(&mut self) -> Result<(), StorageError> {
        for deleted in self.store.start_over()? {
            // Nobody watching is no error.
            let _ = self.changes.send(Change::Deleted(deleted));
        }
        self.board.clear_all(Subsystem::Reports);
        self.board.clear(Subsystem::Storage, "reports");
        Ok(())
    }

    fn commit(&mut self, requests: Vec<(Write, oneshot::Sender<Result<Written, Refusal>>)>) {
        if requests.is_empty() {
            return;
        }
        let (writes, replies): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let now = whole_seconds(self.clock.now());
        let outcomes = match self.store.commit(writes, &now) {
            Ok(outcomes) => {
                self.board.clear(Subsystem::Reports, "storage");
                outcomes
            }
            Err(error) => {
                let message = format!("reports cannot be stored: {error}; free space in the data directory");
                self.board.raise(Subsystem::Reports, "storage", message);
                replies.iter().map(|_| Err(Refusal::InsufficientStorage)).collect()
            }
        };
        self.count();
        for (outcome, reply) in outcomes.into_iter().zip(replies) {
            if let Ok(written) = &outcome {
                // Nobody watching is no error.
                let _ = self.changes.send(match written {
                    Written::Put(entry) => Change::Put(Arc::new(entry.clone())),
                    Written::Deleted(deleted) => Change::Deleted(deleted.clone()),
                });
            }
            let _ = reply.send(outcome);
        }
    }

    fn count(&mut self) {
        if let Ok(counts) = self.store.counts() {
            self.counts.send_replace(counts);
        }
    }
}

/// RFC 3339 in whole seconds, as the guide shows it.
fn whole_seconds(now: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SystemClock;

    fn put(key: &str, if_match: Option<i64>) -> Put {
        Put { key: key.into(), content_type: "text/plain".into(), payload: "1".into(), if_match }
    }

    fn open(folder: &tempfile::TempDir) -> (Reports, ReportWriter) {
        let path = folder.path().join("reports.redb");
        Reports::open(&path, Arc::new(SystemClock), Board::default()).unwrap()
    }

    #[tokio::test]
    async fn a_subscriber_sees_what_is_there_and_every_change_after() {
        let folder = tempfile::tempdir().unwrap();
        let (reports, writer) = open(&folder);
        let shutdown = Shutdown::new();
        let task = tokio::spawn(writer.run(shutdown.clone()));
        reports.put(put("a", None)).await.unwrap();
        let mut subscription = reports.subscribe().await.unwrap();
        assert_eq!(subscription.entries.len(), 1);
        let entry = reports.put(put("b", None)).await.unwrap();
        assert_eq!(subscription.changes.recv().await.unwrap(), Change::Put(Arc::new(entry)));
        let deleted = reports.delete("a".into(), Some(1)).await.unwrap();
        assert_eq!(subscription.changes.recv().await.unwrap(), Change::Deleted(deleted));
        assert_eq!(*reports.counts().borrow(), Counts { entries: 1, pending: 2, conflicted: 0 });
        shutdown.cancel();
        task.await.unwrap().unwrap();
        assert_eq!(reports.put(put("c", None)).await, Err(Refusal::Stopping));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_concurrent_writers_with_one_version_exactly_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let (reports, writer) = open(&folder);
        let shutdown = Shutdown::new();
        let task = tokio::spawn(writer.run(shutdown.clone()));
        let writers: Vec<_> = (0..32)
            .map(|_| {
                let reports = reports.clone();
                tokio::spawn(async move { reports.put(put("a", Some(0))).await })
            })
            .collect();
        let mut won = 0;
        for writer in writers {
            match writer.await.unwrap() {
                Ok(_) => won += 1,
                Err(refusal) => assert_eq!(refusal, Refusal::VersionConflict),
            }
        }
        assert_eq!(won, 1);
        shutdown.cancel();
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn reports_that_were_sent_or_refused_are_offered_again_and_deletions_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (reports, writer) = open(&folder);
        let shutdown = Shutdown::new();
        let task = tokio::spawn(writer.run(shutdown.clone()));
        for key in ["sent", "refused", "gone"] {
            reports.put(put(key, None)).await.unwrap();
        }
        let mut batches = reports.outbox(9, 9999).await.unwrap().split();
        batches.next();
        reports.mark_conflicted(batches.next().unwrap()).await.unwrap();
        reports.confirm(batches.next().unwrap()).await.unwrap();
        reports.delete("gone".into(), None).await.unwrap();
        reports.offer_again().await.unwrap();
        assert_eq!(*reports.counts().borrow(), Counts { entries: 2, pending: 2, conflicted: 0 });
        let batch = reports.outbox(9, 9999).await.unwrap();
        let keys: Vec<_> = batch.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!((keys, batch.deleted.len()), (vec!["refused", "sent"], 0));
        shutdown.cancel();
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_cleared_is_told_as_deleted_and_versions_begin_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (reports, writer) = open(&folder);
        let shutdown = Shutdown::new();
        let task = tokio::spawn(writer.run(shutdown.clone()));
        let report = |payload: &str| Put { payload: payload.to_owned().into(), ..put("a", None) };
        reports.put(report(r#""hunter2""#)).await.unwrap();
        let last = reports.put(report(r#""hunter2""#)).await.unwrap();
        reports.put(put("b", None)).await.unwrap();
        reports.delete("b".into(), None).await.unwrap();
        let mut subscription = reports.subscribe().await.unwrap();
        reports.clear().await.unwrap().unwrap();
        let Change::Deleted(deleted) = subscription.changes.recv().await.unwrap() else {
            panic!("a deletion")
        };
        assert!(deleted.key == "a" && deleted.revision > last.revision, "{deleted:?}");
        assert_eq!(*reports.counts().borrow(), Counts::default());
        let bytes = std::fs::read(folder.path().join("reports.redb")).unwrap();
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"));
        for key in ["a", "b"] {
            let entry = reports.put(put(key, Some(0))).await.unwrap();
            assert!(entry.version == 1 && entry.revision > deleted.revision, "{entry:?}");
        }
        shutdown.cancel();
        task.await.unwrap().unwrap();
    }
}
