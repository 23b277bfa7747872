//! Long work in short pieces: readers and writers have their turn in between (contract, section 6: applying 10,000
//! entries never blocks a read).

/// Steps between two pauses.
const STEPS: usize = 128;
/// Bytes handled between two pauses.
const BYTES: usize = 256 * 1024;

/// Counts work, and pauses when it has been enough for one turn.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    steps: usize,
    bytes: usize,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Says that one step over `bytes` bytes is done.
    pub(crate) async fn step(&mut self, bytes: usize) {
        self.steps += 1;
        self.bytes += bytes;
        if self.steps >= STEPS || self.bytes >= BYTES {
            *self = Self::new();
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    /// Counts how often the work of `steps` steps of `bytes` bytes gives way.
    fn pauses(steps: usize, bytes: usize) -> usize {
        let mut work = pin!(async {
            let mut pace = Pace::new();
            for _ in 0..steps {
                pace.step(bytes).await;
            }
        });
        let mut pauses = 0;
        while work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            pauses += 1;
        }
        pauses
    }

    #[test]
    fn small_work_is_done_at_once_and_large_work_in_pieces() {
        assert_eq!(pauses(127, 1), 0);
        assert_eq!(pauses(10_000, 1), 10_000 / STEPS);
        assert_eq!(pauses(8, BYTES / 2), 4);
    }
}
