//! Drift reports: what was put right, told in the order in which it was. Nothing to correct, nothing sent.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Session;
use crate::control::backoff::Backoff;
use crate::control::wire::{DriftCorrection, DriftReport};
use crate::reconcile::drift::Correction;
use crate::supervisor::Shutdown;
use crate::types::Clock;

/// The task.
#[derive(Debug)]
pub struct DriftReporter {
    /// Shared with the other loops.
    pub session: Session,
    /// What was put right, pass by pass.
    pub corrections: mpsc::Receiver<Vec<Correction>>,
    /// The time to state.
    pub clock: Arc<dyn Clock>,
}

impl DriftReporter {
    /// Reports until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        loop {
            // Cancel safe: what is received is sent below.
            let corrections = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(corrections) = self.corrections.recv() => corrections,
            };
            let report = DriftReport {
                timestamp: self.clock.now(),
                corrections: corrections.into_iter().map(wire).collect(),
            };
            if !self.send(&report, &shutdown).await {
                return Ok(());
            }
        }
    }

    /// Sends until it is accepted, or refused for good; returns whether to go on.
    async fn send(&mut self, report: &DriftReport, shutdown: &Shutdown) -> bool {
        let mut backoff = Backoff::new();
        loop {
            // What was put right for an identity that is given up concerns no other one.
            let Some(identity) = self.session.identity.borrow_and_update().clone() else { return true };
            let credentials = identity.credentials();
            // Cancel safe: an unsent report is of a node that stops.
            let result = tokio::select! {
                () = shutdown.cancelled() => return false,
                result = self.session.client.drift(&credentials, report) => result,
            };
            match result {
                Ok(()) => {
                    self.session.answered();
                    return true;
                }
                Err(error) if error.is_final() => {
                    tracing::warn!(%error, "drift report refused");
                    return true;
                }
                Err(error) => {
                    let delay = self.session.failed(&error, &mut backoff);
                    if !self.session.pause(delay, shutdown).await {
                        return false;
                    }
                }
            }
        }
    }
}

fn wire(correction: Correction) -> DriftCorrection {
    DriftCorrection { kind: correction.kind.as_str().to_owned(), detail: correction.detail }
}
