//! How long to wait before core is tried again: doubling, bounded, and never two processes in step. The first waits are
//! very short: both processes are started together, and applications wait for the first answer.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(5);

/// The waits of one series of attempts.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    random: RandomState,
    drawn: u64,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST, random: RandomState::new(), drawn: 0 }
    }

    /// Starts over: the last attempt succeeded.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// Returns the next wait: 1 ms doubling to 5 s, of which up to a quarter is taken off at random.
    pub(super) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        self.drawn += 1;
        // Jitter needs no more than that processes differ; `RandomState` is seeded by the system.
        let share = u32::try_from(self.random.hash_one(self.drawn) % 256).unwrap_or(0);
        wait / 1024 * (1024 - share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_bound_with_jitter_and_start_over() {
        let mut backoff = Backoff::new();
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 5000, 5000] {
            let (wait, full) = (backoff.wait(), Duration::from_millis(expected));
            assert!(wait <= full && wait >= full * 3 / 4, "{wait:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }
}
