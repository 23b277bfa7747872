//! Who read which secret, and what came of it, for the control plane: one record per read, whatever way it ends, also when
//! the caller leaves (contract, section 6). Never a value. Refused reads are easy to make by the thousand: of one caller's
//! a few a second are recorded one by one, and the rest as one record that says how many it stands for. Records wait in
//! memory, bounded; what is lost is counted in status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use plexd_proto::node::v1::{DeniedRead, SecretRefusal};
use plexd_proto::transport::PeerCredentials;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::places::Requester;
use super::secrets::{Asker, MAX_KEY};
use crate::control::batch::{BatchSender, Limits, Queue, Uplink};
use crate::control::session::Session;
use crate::control::wire::AuditEntry;
use crate::supervisor::Shutdown;
use crate::types::Clock;

/// Refused reads of one caller that are recorded one by one, in a [`WINDOW`].
const DENIALS: u32 = 10;

/// How long refused reads of one caller are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// Callers whose refused reads are counted at a time; more than there can be connections.
const MAX_WINDOWS: usize = 8_192;

/// How long a record waits for others to go with.
const FLUSH_AFTER: Duration = Duration::from_secs(2);

/// How long reads that are under way at a stop may take to be recorded.
const LAST_READS: Duration = Duration::from_secs(3);

/// Makes the records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Auditor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Queue<AuditEntry>,
    clock: Arc<dyn Clock>,
    hostname: String,
    windows: Mutex<BTreeMap<Requester, Window>>,
    /// Says that there is a window to be closed.
    opened: Notify,
}

/// Refused reads of one caller.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// Those recorded one by one.
    recorded: u32,
    /// The others, and what the last of them was.
    rest: Option<(u64, About)>,
}

/// Who read what, when.
#[derive(Debug, Clone)]
struct About {
    at: Timestamp,
    subject: Subject,
    key: String,
}

/// Who reads, as the contract spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Subject {
    Local { uid: u32, gid: u32, pid: i32 },
    Via { via: &'static str },
}

/// What a record is of.
#[derive(Debug, Serialize)]
struct Object<'a> {
    secret: &'a str,
}

/// What came of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Success,
    Denied,
    Error,
}

/// A read under way. Dropped before it has ended, it is recorded as an error: whoever asked has left.
#[derive(Debug)]
pub(super) struct Read<'a> {
    auditor: &'a Auditor,
    requester: Requester,
    about: Option<About>,
}

impl Auditor {
    /// Creates it, for a machine of this name.
    pub fn new(clock: Arc<dyn Clock>, hostname: &str) -> Self {
        let queue = Queue::new(Limits { flush_after: FLUSH_AFTER, ..Limits::default() });
        let shared = Shared {
            queue,
            clock,
            hostname: hostname.to_owned(),
            windows: Mutex::default(),
            opened: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Sends the records within `session` until asked to stop, and what is left then, that of reads included which end
    /// until `served`.
    pub async fn run(self, session: Session, shutdown: Shutdown, served: Shutdown) -> anyhow::Result<()> {
        let complete = Shutdown::new();
        let sender = BatchSender::new(self.shared.queue.clone(), Uplink::new(session));
        let sums = async {
            let stopping = async {
                shutdown.cancelled().await;
                // Whether they have ended in time or not: the records there are have to go.
                let _ = timeout(LAST_READS, served.cancelled()).await;
            };
            // Cancel safe: what is counted stays, and is summed up below.
            tokio::select! {
                () = stopping => {}
                () = self.sum_up() => {}
            }
            self.close_all();
            complete.cancel();
            Ok(())
        };
        tokio::try_join!(sender.run(complete.clone()), sums).map(drop)
    }

    /// Notes that `asker` begins to read `key`: who core sees, not who it was told.
    pub(super) fn begin(&self, asker: &Asker, key: &str) -> Read<'_> {
        let subject = match asker {
            Asker::Local(client) => Subject::of(&client.peer),
            Asker::Tcp(_) => Subject::TCP,
            Asker::Unknown(_) => Subject::UNKNOWN,
        };
        self.begin_of(asker.requester(), subject, key)
    }

    fn begin_of(&self, requester: Requester, subject: Subject, key: &str) -> Read<'_> {
        let about = About { at: self.shared.clock.now(), subject, key: recorded_key(key) };
        Read { auditor: self, requester, about: Some(about) }
    }

    /// Notes reads that the sidecar refused.
    pub(super) fn denied(&self, read: &DeniedRead) {
        let (requester, subject) = match &read.local {
            Some(caller) => {
                let (uid, gid, pid) = (caller.uid, caller.gid, caller.pid);
                (Requester::Uid(uid), Subject::Local { uid, gid, pid })
            }
            None => (Requester::Tcp, Subject::TCP),
        };
        let now = self.shared.clock.now();
        let age = SignedDuration::from_millis(i64::try_from(read.age_ms).unwrap_or(i64::MAX));
        let at = now.checked_sub(age).unwrap_or(now);
        self.deny(requester, About { at, subject, key: recorded_key(&read.key) }, read.count.max(1));
    }

    fn deny(&self, requester: Requester, about: About, count: u64) {
        let mut windows = self.windows();
        if windows.len() >= MAX_WINDOWS {
            // Early, but nothing is lost and nothing grows.
            self.close(&mut windows, |_| true);
        }
        if windows.get(&requester).is_some_and(Window::is_over) {
            self.close(&mut windows, Window::is_over);
        }
        let window = windows.entry(requester).or_insert_with(|| {
            self.shared.opened.notify_one();
            Window { since: Instant::now(), recorded: 0, rest: None }
        });
        if count == 1 && window.recorded < DENIALS {
            window.recorded += 1;
            self.record(&about, Outcome::Denied, 1);
        } else {
            let before = window.rest.take().map_or(0, |(count, _)| count);
            window.rest = Some((before.saturating_add(count), about));
        }
    }

    /// Closes windows when they are over, for ever.
    async fn sum_up(&self) {
        loop {
            self.shared.opened.notified().await;
            while !self.windows().is_empty() {
                sleep(WINDOW).await;
                self.close(&mut self.windows(), Window::is_over);
            }
        }
    }

    fn close_all(&self) {
        self.close(&mut self.windows(), |_| true);
    }

    fn close(&self, windows: &mut BTreeMap<Requester, Window>, which: impl Fn(&Window) -> bool) {
        windows.retain(|_, window| {
            let closes = which(window);
            if closes && let Some((count, last)) = &window.rest {
                self.record(last, Outcome::Denied, *count);
            }
            !closes
        });
    }

    /// Writes the record of `count` reads, the last of which was this.
    fn record(&self, about: &About, outcome: Outcome, count: u64) {
        let About { at, subject, key } = about;
        self.shared.queue.push(&AuditEntry {
            timestamp: *at,
            source: "plexd".to_owned(),
            event_type: "SECRET_READ".to_owned(),
            subject: json(subject),
            object: json(&Object { secret: key }),
            action: "read".to_owned(),
            result: outcome.as_str().to_owned(),
            hostname: self.shared.hostname.clone(),
            raw: if count > 1 { format!("{{\"reads\":{count}}}") } else { String::new() },
        });
    }

    fn windows(&self) -> MutexGuard<'_, BTreeMap<Requester, Window>> {
        // Nothing that can panic is called between the changes of one operation.
        self.shared.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read<'_> {
    /// Records what came of it.
    pub(super) fn ended<T>(mut self, result: &Result<T, SecretRefusal>) {
        self.record(match result {
            Ok(_) => Outcome::Success,
            Err(
                SecretRefusal::NotPermitted
                | SecretRefusal::BadToken
                | SecretRefusal::Forbidden
                | SecretRefusal::Unproven,
            ) => Outcome::Denied,
            Err(
                SecretRefusal::Unspecified
                | SecretRefusal::NotFound
                | SecretRefusal::ControlPlaneUnavailable
                | SecretRefusal::DecryptionFailed
                | SecretRefusal::NotRegistered,
            ) => Outcome::Error,
        });
    }

    fn record(&mut self, outcome: Outcome) {
        let Some(about) = self.about.take() else { return };
        match outcome {
            Outcome::Denied => self.auditor.deny(self.requester, about, 1),
            Outcome::Success | Outcome::Error => self.auditor.record(&about, outcome, 1),
        }
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        self.record(Outcome::Error);
    }
}

impl Window {
    fn is_over(&self) -> bool {
        self.since.elapsed() >= WINDOW
    }
}

impl Subject {
    const TCP: Self = Self::Via { via: "tcp" };
    const UNKNOWN: Self = Self::Via { via: "unknown" };

    fn of(peer: &PeerCredentials) -> Self {
        Self::Local { uid: peer.uid, gid: peer.gid, pid: peer.pid }
    }
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Error => "error",
        }
    }
}

/// No secret has a longer key; what the sidecar sends must not fill the queue.
fn recorded_key(key: &str) -> String {
    key[..key.floor_char_boundary(MAX_KEY)].to_owned()
}

fn json(value: &impl Serialize) -> Box<RawValue> {
    // Numbers and text always have a JSON form.
    to_raw_value(value).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests;
