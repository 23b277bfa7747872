//! Capabilities: told at registration, and again when they are no longer those that were last told; after an upgrade that
//! is at the first start of the new binary.

use std::time::Duration;

use tokio::time::Instant;

use super::{Session, at};
use crate::control::backoff::Backoff;
use crate::control::client::ClientError;
use crate::identity::{Announced, Identity, Machine};
use crate::status::Subsystem;
use crate::supervisor::Shutdown;

/// The task.
#[derive(Debug)]
pub struct Announcer {
    /// Shared with the other loops.
    pub session: Session,
    /// Knows what the node can do.
    pub machine: Machine,
    /// What was told before.
    pub announced: Announced,
    /// Longest wait of a node that finds its identity on disk: the binary is read for this, which is no work for the
    /// moment in which everything starts.
    pub first_contact: Duration,
}

impl Announcer {
    /// Announces until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new();
        if !self.session.first_contact(self.first_contact, &shutdown).await {
            return Ok(());
        }
        while let Some(identity) = self.session.identity(&shutdown).await {
            // Cancel safe: what was told and is not remembered is told again.
            let result = tokio::select! {
                () = shutdown.cancelled() => break,
                result = self.announce(&identity) => result,
            };
            let again = match result {
                Ok(()) => None,
                Err(error) if error.is_final() => {
                    let message = format!("the control plane does not take the node's capabilities: {error}");
                    self.session.board.raise(Subsystem::ControlPlane, self.session.name, message);
                    None
                }
                Err(error) => Some(Instant::now() + self.session.failed(&error, &mut backoff)),
            };
            // Cancel safe: nothing is taken; an identity that has changed is read above.
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = at(again) => {}
                changed = self.session.identity.changed() => {
                    // The task that gives identities has ended: the process is stopping.
                    if changed.is_err() {
                        break;
                    }
                    backoff.reset();
                }
            }
        }
        Ok(())
    }

    /// Tells what the node can do, unless that is known.
    async fn announce(&self, identity: &Identity) -> Result<(), ClientError> {
        let capabilities = self.machine.capabilities().await;
        match self.announced.is(&identity.node_id, &capabilities) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the capabilities are told again"),
        }
        self.session.client.capabilities(&identity.credentials(), &capabilities).await?;
        self.session.answered();
        if self.session.identity.borrow().is_none() {
            // Given up meanwhile, and the file with it.
            return Ok(());
        }
        if let Err(error) = self.announced.remember(&identity.node_id, &capabilities) {
            tracing::warn!(%error, "the capabilities will be told again at the next start");
        }
        Ok(())
    }
}
