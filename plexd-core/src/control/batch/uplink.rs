//! Delivery of batches within the node's session.

use std::sync::Arc;
use std::time::Duration;

use super::{Carrier, Counts};
use crate::control::backoff::{self, Backoff};
use crate::control::client::{Class, ClientError, Observed, Record};
use crate::control::session::Session;
use crate::identity::Identity;
use crate::status::Subsystem;
use crate::supervisor::Shutdown;

/// The control plane, as the enrolled node reaches it.
#[derive(Debug)]
pub struct Uplink {
    session: Session,
    identity: Option<Arc<Identity>>,
    /// Lost records of which status has been told.
    told: u64,
    /// Why the last batch was refused for good.
    refusal: Option<String>,
}

impl Uplink {
    /// Delivers within `session`, which is named for what is delivered.
    pub fn new(session: Session) -> Self {
        Self { session, identity: None, told: 0, refusal: None }
    }
}

impl<T: Observed> Carrier<T> for Uplink {
    async fn ready(&mut self, shutdown: &Shutdown) -> bool {
        let known = self.session.identity.borrow_and_update().clone();
        self.identity = match known {
            // Also when stopping: what is left is worth an attempt.
            Some(identity) => Some(identity),
            None => self.session.identity(shutdown).await,
        };
        self.identity.is_some()
    }

    async fn deliver(&mut self, batch: &[Record<T>]) -> Result<(), ClientError> {
        let Some(identity) = &self.identity else { return std::future::pending().await };
        self.session.client.upload(&identity.credentials(), batch).await?;
        self.session.answered();
        Ok(())
    }

    fn delay(&mut self, error: &ClientError, backoff: &mut Backoff) -> Duration {
        match error.class() {
            Class::Identity => self.session.failed(error, backoff),
            // Whether the control plane can be reached is told by those who ask it for something.
            Class::Retry | Class::RetryAfter(_) | Class::Refused => {
                tracing::debug!(%error, kind = T::NAME, "batch not sent; it is tried again");
                let own = backoff.next(backoff::random());
                error.retry_after().unwrap_or(own)
            }
        }
    }

    async fn pause(&mut self, delay: Duration, shutdown: &Shutdown) -> bool {
        self.session.pause(delay, shutdown).await
    }

    fn refused(&mut self, error: &ClientError) {
        self.refusal = Some(error.to_string());
    }

    fn tell(&mut self, counts: Counts) {
        self.session.board.control(|control| {
            control.uploads.insert(T::NAME, counts);
        });
        let is_losing = counts.lost() > std::mem::replace(&mut self.told, counts.lost());
        if is_losing {
            let mut message = format!(
                "{} {} lost since the start: {} because too many waited, {} because they were refused",
                counts.lost(),
                T::NAME,
                counts.overflowed,
                counts.refused
            );
            if let Some(refusal) = &self.refusal {
                message = format!("{message} ({refusal})");
            }
            self.session.board.raise(Subsystem::Observability, T::NAME, message);
        } else if counts.waiting == 0 {
            self.session.board.clear(Subsystem::Observability, T::NAME);
        }
    }
}
