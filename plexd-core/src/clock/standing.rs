//! A machine whose clocks stand until they are moved, for tests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Source;

/// The machine.
#[derive(Debug)]
pub(crate) struct Standing(Mutex<(Timestamp, Duration)>);

impl Standing {
    /// Starts with its clock at `wall`.
    pub(crate) fn at(wall: Timestamp) -> Arc<Self> {
        Arc::new(Self(Mutex::new((wall, Duration::from_secs(100)))))
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, seconds: u64) {
        let mut clocks = self.clocks();
        clocks.0 += Duration::from_secs(seconds);
        clocks.1 += Duration::from_secs(seconds);
    }

    /// Sets the clock.
    pub(crate) fn set(&self, seconds: i64) {
        self.clocks().0 += SignedDuration::from_secs(seconds);
    }

    fn clocks(&self) -> MutexGuard<'_, (Timestamp, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Standing {
    fn wall(&self) -> Timestamp {
        self.clocks().0
    }

    fn uptime(&self) -> Duration {
        self.clocks().1
    }
}
