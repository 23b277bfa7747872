//! How often one connection of a client serves as proof: for one read at a time, as HTTP has it, and for a bounded number a
//! second. Whoever takes plexd-api over can show a client's socket again and again while the client is connected.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Reads a second of one connection, on the average; far more than control planes answer one after the other.
const RATE: u32 = 5_000;

/// For how long it may read faster.
const BURST: Duration = Duration::from_secs(1);

/// Connections beyond which those that have not read for a while are forgotten.
const MANY: usize = 1_024;

/// The connections that read.
#[derive(Debug, Default)]
pub(super) struct Turns {
    connections: Mutex<BTreeMap<u64, Connection>>,
}

#[derive(Debug)]
struct Connection {
    reads: bool,
    /// When its reads so far would have ended at the average rate.
    due: Instant,
}

/// A turn; over when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    cookie: u64,
}

impl Turns {
    /// Waits until the connection may read; `None` if a read of it is under way.
    pub(super) async fn take(self: &Arc<Self>, cookie: u64) -> Option<Turn> {
        let (turn, at) = self.begin(cookie, Instant::now())?;
        if let Some(at) = at {
            sleep_until(at).await;
        }
        Some(turn)
    }

    /// Returns the turn, and when it is, if that is later than `now`.
    fn begin(self: &Arc<Self>, cookie: u64, now: Instant) -> Option<(Turn, Option<Instant>)> {
        let mut connections = self.connections();
        if connections.len() >= MANY {
            connections.retain(|_, connection| connection.reads || connection.due > now);
        }
        let connection = connections.entry(cookie).or_insert(Connection { reads: false, due: now });
        if connection.reads {
            return None;
        }
        connection.reads = true;
        connection.due = connection.due.max(now) + Duration::from_secs(1) / RATE;
        let at = connection.due.checked_sub(BURST).filter(|at| *at > now);
        Some((Turn { turns: Arc::clone(self), cookie }, at))
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        // Nothing that can panic is called while it is held.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut connections = self.turns.connections();
        if let Some(connection) = connections.get_mut(&self.cookie) {
            connection.reads = false;
            if connection.due <= Instant::now() {
                connections.remove(&self.cookie);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_serves_for_one_read_at_a_time() {
        let turns = Arc::<Turns>::default();
        let turn = turns.take(1).await.unwrap();
        assert!(turns.take(1).await.is_none());
        assert!(turns.take(2).await.is_some(), "another connection");
        drop(turn);
        assert!(turns.take(1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_serves_for_a_bounded_number_a_second_and_then_waits() {
        let turns = Arc::<Turns>::default();
        let started = Instant::now();
        for _ in 0..10 * RATE {
            drop(turns.take(1).await.unwrap());
        }
        let taken = started.elapsed();
        let with_burst = (taken + BURST).as_secs_f64();
        assert!((10.0..10.1).contains(&with_burst), "{taken:?}");
        let before = Instant::now();
        drop(turns.take(2).await);
        assert_eq!(before.elapsed(), Duration::ZERO, "others do not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_connections_is_forgotten() {
        let turns = Arc::<Turns>::default();
        for cookie in 0..100_000 {
            drop(turns.take(cookie).await);
            assert!(turns.connections().len() <= MANY);
            tokio::time::advance(Duration::from_secs(1) / RATE).await;
        }
    }
}
