//! The one writer of the reports: gathers whatever concurrent writers ask for into one commit, answers them once it
//! is durable, and lets those who watch know that there is something new.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::store::{Batch, OpenError, Store};
use super::{Changes, Counts, Cursor, Position, Refusal, Write, Written};
use crate::status::{Board, Subsystem};
use crate::storage::StorageError;
use crate::supervisor::Shutdown;
use crate::types::Clock;

/// Requests that may wait; past this a caller waits to hand its request over.
const QUEUE: usize = 1024;

/// Bytes of the writes that may wait; past this a caller waits, too.
const QUEUE_BYTES: u32 = 16 * 1024 * 1024;

/// Writes from which on a commit takes no more.
const MAX_COMMIT: usize = 512;

/// Bytes past which a commit takes no more writes.
const MAX_COMMIT_BYTES: usize = 8 * 1024 * 1024;

/// How often a disk that refused a write is tried.
const PROBE_PERIOD: Duration = Duration::from_secs(5);

/// Room that a full disk has to have before it counts as writable again, besides what did not fit, in bytes.
const ROOM: u64 = 1024 * 1024;

/// Asks the writer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reports {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    counts: watch::Receiver<Counts>,
    position: watch::Receiver<Position>,
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
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    board: Board,
    requests: mpsc::Receiver<Request>,
    counts: watch::Sender<Counts>,
    position: watch::Sender<Position>,
    trouble: watch::Sender<Option<Trouble>>,
}

/// Why nothing can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// There is no room for so many bytes.
    Full(u64),
    /// The disk refuses for another reason.
    Refused,
}

/// Writes that were handed over together, and the room they take while they wait.
#[derive(Debug)]
struct Waiting {
    writes: Vec<Write>,
    reply: oneshot::Sender<Outcomes>,
    room: OwnedSemaphorePermit,
}

/// What became of writes, one by one.
type Outcomes = Vec<Result<Written, Refusal>>;

/// Writes that are on their way.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Outcomes>);

impl Pending {
    /// Returns what became of each, once what was done is durable.
    ///
    /// # Errors
    /// If the writer has stopped; some may have been done.
    pub async fn outcomes(self) -> Result<Outcomes, Stopped> {
        self.0.await.map_err(|_| Stopped)
    }
}

/// The writer has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the report writer has stopped")]
pub struct Stopped;

#[derive(Debug)]
enum Request {
    Write(Waiting),
    Changes { cursor: Cursor, most: usize, bytes: usize, reply: oneshot::Sender<io::Result<Changes>> },
    Outbox { newest: u64, most: usize, bytes: usize, reply: oneshot::Sender<io::Result<Batch>> },
    Confirm(Batch, oneshot::Sender<io::Result<()>>),
    MarkConflicted(Batch, oneshot::Sender<io::Result<()>>),
    OfferAgain(oneshot::Sender<io::Result<()>>),
    Clear(oneshot::Sender<Result<(), StorageError>>),
    Probe,
    Stop,
}

impl Reports {
    /// Opens the database at `path` and returns the handle and the task to be run. One that cannot be written is served
    /// as it is, refuses writes, and is tried again from time to time.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, board: Board) -> Result<(Self, ReportWriter), OpenError> {
        let (mut store, aside) = Store::open(path, clock.now())?;
        let problem = aside.map(|aside| {
            format!(
                "the stored reports were damaged and are now {}; write them again: their versions go on far above the old ones",
                aside.display()
            )
        });
        board.set(Subsystem::Storage, "reports", problem);
        let counts = store.counts().map_err(|source| OpenError::new("read", path, source))?;
        let (stop, requests) = mpsc::channel(QUEUE);
        let (counts, counts_seen) = watch::channel(counts);
        let (position, position_seen) = watch::channel(store.position());
        let room = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
        let handle = Self { requests: stop.clone(), room, counts: counts_seen, position: position_seen };
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let trouble = watch::Sender::new(None);
        let writer = Writer { store, folder, clock, board, requests, counts, position, trouble };
        if let Some(error) = writer.store.read_only() {
            writer.tell(error, 0);
        }
        Ok((handle, ReportWriter { writer, stop }))
    }

    /// Hands `writes` over, to be done in this order and in one commit, after those of all who returned from here before;
    /// waits while there is no room for them.
    ///
    /// # Errors
    /// If the writer has stopped; nothing was done.
    pub async fn submit(&self, writes: Vec<Write>) -> Result<Pending, Stopped> {
        let room = Arc::clone(&self.room).acquire_many_owned(room_for(size(&writes))).await;
        let room = room.map_err(|_| Stopped)?;
        let (reply, outcomes) = oneshot::channel();
        let waiting = Waiting { writes, reply, room };
        self.requests.send(Request::Write(waiting)).await.map_err(|_| Stopped)?;
        Ok(Pending(outcomes))
    }

    /// Returns once nothing can be written any more.
    pub async fn stopped(&self) {
        self.requests.closed().await;
    }

    /// Returns what follows `cursor`: at most `most` changes, up to the one that reaches `bytes`.
    pub async fn changes(&self, cursor: Cursor, most: usize, bytes: usize) -> io::Result<Changes> {
        self.ask(|reply| Request::Changes { cursor, most, bytes, reply }).await?
    }

    /// Returns where the writes have got to: whenever that changes, there may be changes.
    pub fn position(&self) -> watch::Receiver<Position> {
        self.position.clone()
    }

    /// Returns the highest revision given so far.
    pub fn newest(&self) -> u64 {
        self.position.borrow().revision
    }

    /// Returns the oldest unsent changes up to revision `newest`, at most `most` and `bytes` of them, but at least one if
    /// there are any.
    pub async fn outbox(&self, newest: u64, most: usize, bytes: usize) -> io::Result<Batch> {
        self.ask(|reply| Request::Outbox { newest, most, bytes, reply }).await?
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
        let mut trouble = writer.trouble.subscribe();
        let thread = tokio::task::spawn_blocking(move || writer.serve());
        loop {
            // Cancel safe: neither takes anything.
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = time_to_probe(&mut trouble) => {
                    // Full: whatever waits there tries the disk.
                    let _ = stop.try_send(Request::Probe);
                }
            }
        }
        // The only failure is that the writer has ended already.
        let _ = stop.send(Request::Stop).await;
        Ok(thread.await?)
    }
}

/// Returns a while after the disk has refused something, if it still does.
async fn time_to_probe(trouble: &mut watch::Receiver<Option<Trouble>>) {
    if trouble.wait_for(Option::is_some).await.is_err() {
        // The writer has ended.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(PROBE_PERIOD).await;
}

impl Writer {
    fn serve(mut self) {
        while let Some(first) = self.requests.blocking_recv() {
            let mut writes = Vec::new();
            let (mut count, mut bytes) = (0, 0);
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Write(waiting) => {
                        count += waiting.writes.len();
                        bytes += size(&waiting.writes);
                        writes.push(waiting);
                    }
                    other => {
                        self.commit(std::mem::take(&mut writes));
                        (count, bytes) = (0, 0);
                        if !self.answer(other) {
                            return;
                        }
                    }
                }
                let more = count < MAX_COMMIT && bytes < MAX_COMMIT_BYTES;
                next = if more { self.requests.try_recv().ok() } else { None };
            }
            self.commit(writes);
        }
    }

    /// Answers anything but a write; returns whether to go on.
    fn answer(&mut self, request: Request) -> bool {
        // A caller that no longer waits for its answer is no error.
        match request {
            Request::Write(waiting) => self.commit(vec![waiting]),
            Request::Changes { cursor, most, bytes, reply } => {
                let _ = reply.send(self.store.changes(cursor, most, bytes));
            }
            Request::Outbox { newest, most, bytes, reply } => {
                let _ = reply.send(self.store.outbox(newest, most, bytes));
            }
            Request::Confirm(batch, reply) => {
                let confirmed = self.store.confirm(&batch);
                let _ = reply.send(self.settled(confirmed, 0));
            }
            Request::MarkConflicted(batch, reply) => {
                let marked = self.store.mark_conflicted(&batch);
                let _ = reply.send(self.settled(marked, 0));
            }
            Request::OfferAgain(reply) => {
                let offered = self.store.offer_again();
                let _ = reply.send(self.settled(offered, 0));
            }
            Request::Clear(reply) => {
                let cleared = self.clear();
                self.publish();
                let _ = reply.send(cleared);
            }
            Request::Probe => self.probe(),
            Request::Stop => return false,
        }
        true
    }

    fn clear(&mut self) -> Result<(), StorageError> {
        self.store.start_over()?;
        self.trouble.send_replace(None);
        self.board.clear_all(Subsystem::Reports);
        self.board.clear(Subsystem::Storage, "reports");
        Ok(())
    }

    fn commit(&mut self, waiting: Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        let now = whole_seconds(self.clock.now());
        // The room is free again once they are answered.
        let (mut writes, mut replies) = (Vec::new(), Vec::new());
        for Waiting { writes: together, reply, room } in waiting {
            replies.push((together.len(), reply, room));
            writes.extend(together);
        }
        let (count, bytes) = (writes.len(), size(&writes) as u64);
        let outcomes = self.store.commit(writes, &now);
        let outcomes =
            self.settled(outcomes, bytes).unwrap_or_else(|error| vec![Err(refusal(&error)); count]);
        let mut outcomes = outcomes.into_iter();
        for (count, reply, _) in replies {
            let _ = reply.send(outcomes.by_ref().take(count).collect());
        }
    }

    /// Tells what came of a write of `bytes`, before it is answered: who asked may look next.
    fn settled<T>(&mut self, result: io::Result<T>, bytes: u64) -> io::Result<T> {
        match &result {
            Ok(_) if self.is_over(bytes) => {
                if self.trouble.send_replace(None).is_some() {
                    self.board.clear(Subsystem::Reports, "storage");
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.tell(error, bytes);
                if let Err(error) = self.store.recover() {
                    tracing::warn!(%error, "reports can be neither written nor read");
                }
            }
        }
        self.publish();
        result
    }

    /// Returns whether there is no trouble any more once `bytes` were written: something smaller than what did not fit may
    /// find room on a disk that is as full as before.
    fn is_over(&self, bytes: u64) -> bool {
        match *self.trouble.borrow() {
            Some(Trouble::Full(lacking)) => bytes >= lacking || self.has_room(lacking),
            Some(Trouble::Refused) | None => true,
        }
    }

    /// Returns whether the disk has room for `bytes`, or does not say.
    fn has_room(&self, bytes: u64) -> bool {
        let disk = statvfs(&self.folder);
        disk.map_or(true, |disk| {
            disk.blocks_available().saturating_mul(disk.fragment_size()) >= bytes.saturating_add(ROOM)
        })
    }

    fn tell(&self, error: &io::Error, bytes: u64) {
        let (trouble, way_out) = if is_full(error) {
            (Trouble::Full(bytes), "free space in the data directory")
        } else {
            (Trouble::Refused, "they are served as they are; make the data directory writable")
        };
        self.trouble.send_replace(Some(trouble));
        let message = format!("reports cannot be stored: {error}; {way_out}");
        self.board.raise(Subsystem::Reports, "storage", message);
    }

    /// Tries whether the disk takes writes again, if it did not.
    fn probe(&mut self) {
        let Some(trouble) = *self.trouble.borrow() else { return };
        let bytes = match trouble {
            Trouble::Full(bytes) if !self.has_room(bytes) => return,
            Trouble::Full(bytes) => bytes,
            Trouble::Refused => 0,
        };
        let probed = self.store.probe();
        // Told already.
        let _ = self.settled(probed, bytes);
    }

    fn publish(&mut self) {
        if let Ok(counts) = self.store.counts() {
            self.counts.send_replace(counts);
        }
        let position = self.store.position();
        self.position.send_if_modified(|before| std::mem::replace(before, position) != position);
    }
}

fn size(writes: &[Write]) -> usize {
    writes.iter().map(Write::size).sum()
}

/// Returns how much of the room a write takes while it waits. One that is larger than all of it has it for itself.
fn room_for(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).min(QUEUE_BYTES)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn refusal(error: &io::Error) -> Refusal {
    if is_full(error) { Refusal::InsufficientStorage } else { Refusal::StorageFailed }
}

/// RFC 3339 in whole seconds, as the guide shows it.
fn whole_seconds(now: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

#[cfg(test)]
impl Reports {
    /// Creates or replaces an entry; returns once it is durable.
    pub(crate) async fn put(&self, put: super::Put) -> Result<super::Entry, Refusal> {
        match self.write(Write::Put(put)).await? {
            Written::Put(entry) => Ok(entry),
            Written::Deleted(_) => Err(Refusal::Invalid),
        }
    }

    /// Deletes an entry; returns once that is durable.
    pub(crate) async fn delete(&self, key: String, if_match: Option<i64>) -> Result<super::Deleted, Refusal> {
        match self.write(Write::Delete { key, if_match }).await? {
            Written::Deleted(deleted) => Ok(deleted),
            Written::Put(_) => Err(Refusal::Invalid),
        }
    }

    async fn write(&self, write: Write) -> Result<Written, Refusal> {
        let pending = self.submit(vec![write]).await.expect("a writer");
        pending.outcomes().await.expect("a writer").remove(0)
    }
}

#[cfg(test)]
mod tests;
