//! Threads that go on beside a test until it is done, also where it fails.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A thread. Dropping it has it end by itself.
#[derive(Debug)]
pub(crate) struct Background<T> {
    end: Sender<()>,
    thread: JoinHandle<T>,
}

/// What tells a thread that it is to end.
#[derive(Debug)]
pub(crate) struct Over(Receiver<()>);

impl Over {
    /// Returns whether it is to end, after a pause of `beat` if it is not.
    pub(crate) fn after(&self, beat: Duration) -> bool {
        self.0.recv_timeout(beat) != Err(RecvTimeoutError::Timeout)
    }

    /// Returns whether it is to end.
    pub(crate) fn now(&self) -> bool {
        self.after(Duration::ZERO)
    }
}

impl<T: Send + 'static> Background<T> {
    /// Starts it.
    pub(crate) fn start(work: impl FnOnce(&Over) -> T + Send + 'static) -> Self {
        let (end, over) = mpsc::channel();
        Self { end, thread: thread::spawn(move || work(&Over(over))) }
    }

    /// Ends it, and returns what came of it; panics if it did.
    #[track_caller]
    pub(crate) fn finish(self) -> T {
        drop(self.end);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
