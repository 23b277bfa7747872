//! Reads of secrets that the gate refused, on their way to core, which keeps the audit records. A caller is answered
//! without waiting for this, and whoever is refused by the thousand costs core one message a second: of each caller a few
//! reads are told one by one, and the rest as a number.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plexd_proto::node::v1::{DeniedRead, LocalCaller, NoteDenialsRequest};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Core;

/// Reads of one caller that are told one by one, per message.
const EACH: usize = 10;
/// Callers in one message. With more, others wait to be refused again.
const MAX_CALLERS: usize = 256;
/// How long reads are gathered after a message.
const PACE: Duration = Duration::from_secs(1);
/// Longest wait for core to take a message.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for core to take the last one, at a stop.
const LAST_DEADLINE: Duration = Duration::from_secs(1);

/// What core is not told yet.
#[derive(Debug, Default)]
pub(super) struct Denials {
    /// By user; `None` is TCP.
    callers: Mutex<HashMap<Option<u32>, Refused>>,
    news: Notify,
}

/// Refused reads of one caller.
#[derive(Debug, Default)]
struct Refused {
    single: Vec<Read>,
    /// The last of those beyond, and how many they are.
    rest: Option<(Read, u64)>,
}

#[derive(Debug, Clone)]
struct Read {
    key: String,
    local: Option<LocalCaller>,
    at: Instant,
}

impl Denials {
    /// Notes that a read of `key` was refused, of a process on the Unix socket or of a TCP client.
    pub(super) fn note(&self, key: String, local: Option<LocalCaller>) {
        let mut callers = self.callers();
        let uid = local.as_ref().map(|caller| caller.uid);
        if callers.len() >= MAX_CALLERS && !callers.contains_key(&uid) {
            return;
        }
        let refused = callers.entry(uid).or_default();
        let read = Read { key, local, at: Instant::now() };
        if refused.single.len() < EACH {
            refused.single.push(read);
        } else {
            let before = refused.rest.take().map_or(0, |(_, count)| count);
            refused.rest = Some((read, before + 1));
        }
        drop(callers);
        self.news.notify_one();
    }

    fn take(&self) -> Vec<(Read, u64)> {
        let refused = std::mem::take(&mut *self.callers());
        let reads = |refused: Refused| refused.single.into_iter().map(|read| (read, 1)).chain(refused.rest);
        refused.into_values().flat_map(reads).collect()
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<Option<u32>, Refused>> {
        // Nothing that can panic is called between the changes of one operation.
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells core of refused reads until `shutdown`, and then of what is left, once.
pub(super) async fn tell(core: &Core, shutdown: &CancellationToken) {
    let mut untold = Vec::new();
    loop {
        // Cancel safe: nothing is taken in any of them but a notification, which says nothing at a stop.
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = core.denials.news.notified(), if untold.is_empty() => untold = core.denials.take(),
            () = sleep(PACE), if !untold.is_empty() => {}
        }
        if note(core, &untold, DEADLINE).await {
            untold.clear();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep(PACE) => {}
            }
        }
    }
    untold.extend(core.denials.take());
    note(core, &untold, LAST_DEADLINE).await;
}

/// Sends one message; returns whether core took it.
async fn note(core: &Core, reads: &[(Read, u64)], deadline: Duration) -> bool {
    if reads.is_empty() {
        return true;
    }
    let denied = |(read, count): &(Read, u64)| DeniedRead {
        key: read.key.clone(),
        local: read.local.clone(),
        count: *count,
        age_ms: u64::try_from(read.at.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    let request = NoteDenialsRequest { reads: reads.iter().map(denied).collect() };
    let mut client = core.client.clone();
    matches!(timeout(deadline, client.note_denials(request)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32) -> LocalCaller {
        LocalCaller { uid, gid: 1, pid: 1, groups: Vec::new() }
    }

    #[test]
    fn what_waits_is_bounded_by_caller_and_in_callers_and_the_count_is_whole() {
        let denials = Denials::default();
        for n in 0..1_000 {
            denials.note(format!("k{n}"), Some(caller(1)));
        }
        denials.note("k".into(), None);
        let taken = denials.take();
        assert_eq!(taken.len(), EACH + 1 + 1);
        assert_eq!(taken.iter().map(|(_, count)| count).sum::<u64>(), 1_001);
        assert!(taken.iter().any(|(read, count)| (read.key.as_str(), *count) == ("k999", 990)));
        for uid in 0..1_000 {
            denials.note("k".into(), Some(caller(uid)));
        }
        denials.note("k".into(), Some(caller(0)));
        assert_eq!(denials.take().len(), MAX_CALLERS + 1);
        assert!(denials.take().is_empty());
    }
}
