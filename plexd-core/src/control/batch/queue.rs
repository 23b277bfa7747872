//! A queue of records, bounded in number and bytes. Writers never wait: when it is full the oldest records make room,
//! and are counted. A batch that is taken out and not settled goes back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::control::client::{Observed, Record};
use crate::supervisor::Shutdown;

/// Bounds of a queue and its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most records that wait.
    pub records: usize,
    /// Most bytes of JSON that wait.
    pub bytes: usize,
    /// Most records in a batch.
    pub batch_records: usize,
    /// Most bytes of JSON in a batch, but for one record that is larger by itself.
    pub batch_bytes: usize,
    /// How long a record waits for others to go with.
    pub flush_after: Duration,
}

impl Default for Limits {
    /// 10,000 records and 8 MiB; batches of 1,000 records and 1 MiB; 10 s.
    fn default() -> Self {
        Self {
            records: 10_000,
            bytes: 8 * 1024 * 1024,
            batch_records: 1_000,
            batch_bytes: 1024 * 1024,
            flush_after: Duration::from_secs(10),
        }
    }
}

/// What became of the records of a queue since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Records that wait.
    pub waiting: u64,
    /// Records the control plane accepted.
    pub sent: u64,
    /// Records lost because too many waited.
    pub overflowed: u64,
    /// Records lost because the control plane refused them, or because they are larger than the whole queue.
    pub refused: u64,
}

impl Counts {
    /// Returns how many records were lost.
    pub fn lost(self) -> u64 {
        self.overflowed + self.refused
    }
}

/// The queue. Cheap to clone; its lock is never held across an await.
#[derive(Debug)]
pub struct Queue<T> {
    content: Arc<Mutex<Content<T>>>,
    changed: Arc<Notify>,
    limits: Limits,
}

#[derive(Debug)]
struct Content<T> {
    records: VecDeque<Record<T>>,
    bytes: usize,
    /// When those that wait began to, at the latest.
    since: Option<Instant>,
    counts: Counts,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { content: Arc::clone(&self.content), changed: Arc::clone(&self.changed), limits: self.limits }
    }
}

impl<T: Observed> Queue<T> {
    /// Creates an empty queue.
    pub fn new(limits: Limits) -> Self {
        let content = Content { records: VecDeque::new(), bytes: 0, since: None, counts: Counts::default() };
        Self { content: Arc::new(Mutex::new(content)), changed: Arc::default(), limits }
    }

    /// Returns its bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Adds a record; never waits.
    pub fn push(&self, value: &T) {
        let record = Record::new(value).ok().filter(|record| record.size() <= self.limits.bytes);
        let mut content = self.content();
        let Some(record) = record else {
            content.counts.refused += 1;
            return;
        };
        content.bytes += record.size();
        content.records.push_back(record);
        content.since.get_or_insert_with(Instant::now);
        content.make_room(&self.limits);
        // Those in between change nothing for who waits.
        let is_news = content.records.len() == 1 || content.is_full(&self.limits);
        drop(content);
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Returns what became of its records.
    pub fn counts(&self) -> Counts {
        let content = self.content();
        Counts { waiting: content.records.len() as u64, ..content.counts }
    }

    /// Waits until a batch is full, or its first record has waited long enough; when stopping, that is at once. Returns
    /// false when there is nothing to send and never will be.
    pub(super) async fn due(&self, shutdown: &Shutdown) -> bool {
        loop {
            let (is_empty, flush_at) = {
                let content = self.content();
                if content.is_full(&self.limits) {
                    return true;
                }
                (content.records.is_empty(), content.since.map(|since| since + self.limits.flush_after))
            };
            if shutdown.is_cancelled() {
                return !is_empty;
            }
            // Cancel safe: a notification that is not consumed stays, and nothing else is taken.
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.changed.notified() => {}
                () = until(flush_at) => return true,
            }
        }
    }

    /// Takes the oldest records, at least one if there is one, at most `most`.
    pub(super) fn take(&self, most: usize) -> Batch<'_, T> {
        let mut content = self.content();
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(record) = content.records.front() {
            let fits = records.len() < most && bytes + record.size() <= self.limits.batch_bytes;
            if !fits && !records.is_empty() {
                break;
            }
            bytes += record.size();
            records.extend(content.records.pop_front());
        }
        content.bytes -= bytes;
        if content.records.is_empty() {
            content.since = None;
        }
        drop(content);
        Batch { queue: self, records }
    }

    fn content(&self) -> MutexGuard<'_, Content<T>> {
        // Nothing that can panic is called between the changes of one operation.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Content<T> {
    /// Returns whether there is a whole batch.
    fn is_full(&self, limits: &Limits) -> bool {
        self.records.len() >= limits.batch_records || self.bytes >= limits.batch_bytes
    }

    /// Drops the oldest records until the rest is within bounds.
    fn make_room(&mut self, limits: &Limits) {
        while self.records.len() > limits.records || self.bytes > limits.bytes {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= oldest.size();
            self.counts.overflowed += 1;
        }
        if self.records.is_empty() {
            self.since = None;
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Records that are out of the queue to be sent; back in it when dropped unsettled.
#[derive(Debug)]
pub(super) struct Batch<'a, T: Observed> {
    queue: &'a Queue<T>,
    records: Vec<Record<T>>,
}

impl<T: Observed> Batch<'_, T> {
    pub(super) fn records(&self) -> &[Record<T>] {
        &self.records
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The control plane has them.
    pub(super) fn sent(mut self) {
        let count = std::mem::take(&mut self.records).len();
        self.queue.content().counts.sent += count as u64;
    }

    /// The control plane will never take them.
    pub(super) fn refused(mut self) {
        let count = std::mem::take(&mut self.records).len();
        self.queue.content().counts.refused += count as u64;
    }

    /// They are to be sent again, before all others.
    pub(super) fn put_back(self) {
        drop(self);
    }
}

impl<T: Observed> Drop for Batch<'_, T> {
    fn drop(&mut self) {
        if self.records.is_empty() {
            return;
        }
        let mut content = self.queue.content();
        content.bytes += self.records.iter().map(Record::size).sum::<usize>();
        for record in self.records.drain(..).rev() {
            content.records.push_front(record);
        }
        // They waited already: no need to wait for others again.
        let now = Instant::now();
        content.since = Some(now.checked_sub(self.queue.limits.flush_after).unwrap_or(now));
        content.make_room(&self.queue.limits);
        drop(content);
        self.queue.changed.notify_one();
    }
}
