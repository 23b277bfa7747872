//! How long to wait before core is tried again: an eighth of the time that went by so far, bounded, and never two processes
//! in step. Both processes are started together, and applications wait for the first answer: it is late by as little of what
//! core takes to start.

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

    /// Returns the next wait: 1 ms rising by an eighth each time, to 5 s, of which up to a quarter is taken off at random.
    pub(super) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait + wait / 8).min(LONGEST);
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
    fn waits_rise_with_the_time_to_the_bound_with_jitter_and_start_over() {
        let mut backoff = Backoff::new();
        let mut full = FIRST;
        let mut so_far = Duration::ZERO;
        for _ in 0..100 {
            let wait = backoff.wait();
            assert!(wait <= full && wait >= full * 3 / 4, "{wait:?} of {full:?}");
            assert!(wait <= FIRST + so_far / 4, "{wait:?} after {so_far:?}");
            so_far += wait;
            full = (full + full / 8).min(LONGEST);
        }
        assert_eq!(full, LONGEST);
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }
}
