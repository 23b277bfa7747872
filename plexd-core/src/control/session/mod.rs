//! The conversation of an enrolled node with its control plane: the loops that pull the state ([`pull`]), hold the event
//! stream ([`stream`]), send heartbeats ([`heartbeat`]), report drift ([`drift`]) and announce capabilities
//! ([`capabilities`]). They carry; they decide nothing and never touch the kernel.

pub mod capabilities;
pub mod drift;
pub mod heartbeat;
pub mod pull;
pub mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::backoff::{self, Backoff};
use super::client::{Class, Client, ClientError};
use crate::identity::{CurrentIdentity, Identity};
use crate::status::{Board, Enrolment, Subsystem};
use crate::supervisor::Shutdown;

/// How often a node tries again what is refused: its identity (contract, section 2), or a request.
const REFUSED_PERIOD: Duration = Duration::from_mins(1);

/// What the loops share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Session {
    /// Speaks to the control plane.
    pub client: Client,
    /// Who the node is.
    pub identity: CurrentIdentity,
    /// Takes what was learned about the connection.
    pub board: Board,
    /// Asks for a state pull.
    pub pulls: Arc<Notify>,
    /// Which loop this is: each has problems of its own, and clears no other's.
    pub name: &'static str,
}

impl Session {
    /// Returns the session of another loop.
    #[must_use]
    pub fn named(&self, name: &'static str) -> Self {
        Self { name, ..self.clone() }
    }

    /// Waits until the node has an identity; `None` when it is to stop.
    pub async fn identity(&mut self, shutdown: &Shutdown) -> Option<Arc<Identity>> {
        // Cancel safe: waiting for a value takes nothing.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            found = self.identity.wait_for(Option::is_some) => found.ok()?.clone(),
        }
    }

    /// Waits until the node is another one than `identity` towards the control plane. One that only has another
    /// WireGuard key is the same.
    pub async fn replaced(&self, identity: &Identity) {
        let is_other = |next: &Option<Arc<Identity>>| {
            let same = |next: &Arc<Identity>| {
                next.node_id == identity.node_id && next.secret_key.as_str() == identity.secret_key.as_str()
            };
            !next.as_ref().is_some_and(same)
        };
        if self.identity.clone().wait_for(is_other).await.is_err() {
            // The process is stopping.
            std::future::pending::<()>().await;
        }
    }

    /// Notes that the control plane answered.
    pub fn answered(&self) {
        self.board.control(|control| {
            control.last_answer = Some(Instant::now());
            control.last_error = None;
        });
        self.board.clear(Subsystem::ControlPlane, self.name);
        let enrolment = self.board.enrolment();
        let replaces = enrolment == Enrolment::Registering && self.identity.borrow().is_some();
        if replaces || enrolment == Enrolment::Unauthorized {
            // Whatever was wrong with the identity, or with a token meant to replace it, is over.
            self.board.set_enrolment(Enrolment::Enrolled);
            self.board.clear(Subsystem::Enrolment, "token");
            self.board.clear(Subsystem::Enrolment, "register");
        }
    }

    /// Notes that a request of the node about itself failed, and returns how long to wait before the next.
    pub fn failed(&self, error: &ClientError, backoff: &mut Backoff) -> Duration {
        if self.identity.borrow().is_none() {
            // It was of an identity that is given up meanwhile.
            return Duration::ZERO;
        }
        self.board.control(|control| control.last_error = Some(error.to_string()));
        match error.class() {
            Class::Identity => {
                if self.board.enrolment() == Enrolment::Enrolled {
                    self.board.set_enrolment(Enrolment::Unauthorized);
                }
                let message = "the control plane refuses this node's identity; the last known state stays in force; \
                               enrol again with a new token: plexd-ctl join";
                self.board.raise(Subsystem::ControlPlane, self.name, message);
                REFUSED_PERIOD
            }
            // The same again is no use: not soon, and not more often the longer it lasts.
            Class::Refused => {
                self.board.raise(Subsystem::ControlPlane, self.name, error.to_string());
                REFUSED_PERIOD
            }
            Class::Retry | Class::RetryAfter(_) => {
                self.board.raise(Subsystem::ControlPlane, self.name, error.to_string());
                let own = backoff.next(backoff::random());
                error.retry_after().unwrap_or(own)
            }
        }
    }

    /// Waits, but no longer for what another identity had to wait for; returns whether to go on.
    pub async fn pause(&mut self, delay: Duration, shutdown: &Shutdown) -> bool {
        // Cancel safe: nothing is lost with a timer, and a change that was seen ends the wait.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => false,
            () = tokio::time::sleep(delay) => true,
            Ok(()) = self.identity.changed() => true,
        }
    }
}

#[cfg(test)]
mod tests;
