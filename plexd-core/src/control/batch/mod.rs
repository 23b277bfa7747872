//! Metrics, logs and audit records on their way to the control plane: a bounded queue that never makes its writers wait
//! ([`queue`]), one sender for all kinds, and what it delivers with ([`uplink`]). The sender alone decides what a
//! failure means: too large, sent in smaller batches; slow down or failing, kept and tried again; refused for good,
//! dropped. What is lost is counted and told. Nothing here is durable.

mod queue;
mod uplink;

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::backoff::Backoff;
use super::client::{ClientError, Observed, Record};
use crate::supervisor::Shutdown;

pub use queue::{Counts, Limits, Queue};
pub use uplink::Uplink;

/// How long the last records may hold up a stop.
const LAST_CALL: Duration = Duration::from_secs(3);

/// Accepted batches in a row after which larger ones are tried again.
const GROW_AFTER: u32 = 16;

/// What a sender delivers with.
pub trait Carrier<T>: Send {
    /// Waits until there is somebody to deliver to; returns whether to go on.
    fn ready(&mut self, shutdown: &Shutdown) -> impl Future<Output = bool> + Send;

    /// Delivers a batch, whole or not at all.
    fn deliver(&mut self, batch: &[Record<T>]) -> impl Future<Output = Result<(), ClientError>> + Send;

    /// Returns how long to wait after a failure that is worth another attempt.
    fn delay(&mut self, error: &ClientError, backoff: &mut Backoff) -> Duration;

    /// Waits that long, or less if the cause of the failure is gone; returns whether to go on.
    fn pause(&mut self, delay: Duration, shutdown: &Shutdown) -> impl Future<Output = bool> + Send {
        // Cancel safe: nothing is lost with a timer.
        async move {
            tokio::select! {
                () = shutdown.cancelled() => false,
                () = tokio::time::sleep(delay) => true,
            }
        }
    }

    /// Takes the reason why a batch is refused for good.
    fn refused(&mut self, error: &ClientError);

    /// Takes the counts, after each attempt.
    fn tell(&mut self, counts: Counts);
}

/// The task that sends what is in a queue.
#[derive(Debug)]
pub struct BatchSender<T, C> {
    queue: Queue<T>,
    carrier: C,
    /// Most records in a batch: those the control plane takes, as far as is known.
    most: usize,
    /// Accepted batches since that was last learned.
    accepted: u32,
    backoff: Backoff,
}

impl<T: Observed, C: Carrier<T>> BatchSender<T, C> {
    /// Creates the task; `queue` is cloned for those who observe.
    pub fn new(queue: Queue<T>, carrier: C) -> Self {
        let most = queue.limits().batch_records;
        Self { queue, carrier, most, accepted: 0, backoff: Backoff::new() }
    }

    /// Sends until asked to stop, and then once more what is left.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let last_call = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST_CALL).await;
        };
        // Cancel safe: what is under way when the last call ends is lost with the process, and said to be.
        tokio::select! {
            () = last_call => {}
            () = self.send_all(&shutdown) => {}
        }
        let counts = self.queue.counts();
        if counts.waiting > 0 {
            tracing::warn!(kind = T::NAME, records = counts.waiting, "stopped with unsent records");
        }
        Ok(())
    }

    async fn send_all(&mut self, shutdown: &Shutdown) {
        while self.queue.due(shutdown).await && self.carrier.ready(shutdown).await {
            let delay = self.send_one().await;
            self.carrier.tell(self.queue.counts());
            if let Some(delay) = delay
                && !self.carrier.pause(delay, shutdown).await
            {
                return;
            }
        }
    }

    /// Sends one batch; returns how long to wait before the next.
    async fn send_one(&mut self) -> Option<Duration> {
        let batch = self.queue.take(self.most);
        match self.carrier.deliver(batch.records()).await {
            Ok(()) => {
                batch.sent();
                self.backoff.reset();
                self.grow();
                None
            }
            // Too much at once: less, down to a single record.
            Err(ClientError::TooLarge { .. }) if batch.len() > 1 => {
                self.most = batch.len().div_ceil(2);
                self.accepted = 0;
                batch.put_back();
                None
            }
            Err(error) if error.is_final() => {
                self.carrier.refused(&error);
                // A single record that is too large says nothing of batches.
                self.most = self.queue.limits().batch_records;
                batch.refused();
                None
            }
            Err(error) => {
                batch.put_back();
                Some(self.carrier.delay(&error, &mut self.backoff))
            }
        }
    }

    /// Tries larger batches again, now and then: what the control plane takes may have changed.
    fn grow(&mut self) {
        let most = self.queue.limits().batch_records;
        self.accepted += 1;
        if self.accepted >= GROW_AFTER {
            self.most = self.most.saturating_mul(2).min(most);
            self.accepted = 0;
        }
    }
}
