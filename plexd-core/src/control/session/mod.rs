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

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::backoff::{self, Backoff};
use super::client::{Class, Client, ClientError};
use crate::identity::{Announced, CurrentIdentity, Identity, Machine};
use crate::reconcile::Mesh;
use crate::reconcile::drift::Correction;
use crate::state::State;
use crate::status::{Board, Enrolment, Subsystem};
use crate::supervisor::{Shutdown, Supervisor};
use crate::types::Clock;

use capabilities::Announcer;
use drift::DriftReporter;
use heartbeat::Heart;
use pull::Puller;
use stream::StreamReader;

/// How often a node tries again what is refused: its identity (contract, section 2), or a request.
const REFUSED_PERIOD: Duration = Duration::from_mins(1);

/// Longest wait of a node that finds its identity on disk before it speaks to the control plane: a thousand that start at
/// the same moment do not come at the same moment.
pub const FIRST_CONTACT: Duration = Duration::from_secs(5);

/// Drift reports that may wait.
const DRIFT_QUEUE: usize = 64;

/// Everything that the loops need.
#[derive(Debug)]
pub struct Conversation {
    /// What they share.
    pub session: Session,
    /// Takes what comes.
    pub state: State,
    /// Tells how the mesh is, and takes requests to reconcile.
    pub mesh: Mesh,
    /// What the node tells of its machine and binary.
    pub machine: Machine,
    /// What it told before.
    pub announced: Announced,
    /// The time to state.
    pub clock: Arc<dyn Clock>,
    /// Drift to be reported, as [`drift_queue`] gives it.
    pub drift: (mpsc::Sender<Vec<Correction>>, mpsc::Receiver<Vec<Correction>>),
    /// Name and port of the mesh interface.
    pub interface: (String, u16),
    /// Period of state pulls.
    pub reconcile_interval: Duration,
    /// Period of heartbeats.
    pub heartbeat_interval: Duration,
}

/// Makes the queue in which drift waits to be reported.
pub fn drift_queue() -> (mpsc::Sender<Vec<Correction>>, mpsc::Receiver<Vec<Correction>>) {
    mpsc::channel(DRIFT_QUEUE)
}

impl Conversation {
    /// Starts the loops.
    pub fn spawn(self, supervisor: &mut Supervisor) {
        let Self { session, state, mesh, machine, announced, clock, drift: (drift, corrections), .. } = self;
        let shutdown = supervisor.shutdown();
        let puller = Puller {
            session: session.named("pull"),
            state: state.clone(),
            drift: drift.clone(),
            interval: self.reconcile_interval,
        };
        supervisor.spawn("pull", puller.run(shutdown.clone()));
        let stream = StreamReader {
            session: session.named("stream"),
            state: state.clone(),
            drift,
            first_contact: FIRST_CONTACT,
        };
        supervisor.spawn("stream", stream.run(shutdown.clone()));
        let announcer = Announcer {
            session: session.named("capabilities"),
            machine: machine.clone(),
            announced,
            first_contact: FIRST_CONTACT,
        };
        supervisor.spawn("capabilities", announcer.run(shutdown.clone()));
        let heart = Heart {
            session: session.named("heartbeat"),
            mesh,
            state,
            machine,
            clock: Arc::clone(&clock),
            interface: self.interface,
            interval: self.heartbeat_interval,
            first_contact: FIRST_CONTACT,
        };
        supervisor.spawn("heartbeat", heart.run(shutdown.clone()));
        let reporter = DriftReporter { session: session.named("drift"), corrections, clock };
        supervisor.spawn("drift", reporter.run(shutdown));
    }
}

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

    /// Waits until the node has an identity; one that it has from the start is used only after a part of `most`. Returns
    /// whether to go on.
    pub async fn first_contact(&mut self, most: Duration, shutdown: &Shutdown) -> bool {
        let delay = if self.identity.borrow().is_some() { most } else { Duration::ZERO };
        self.identity(shutdown).await.is_some()
            && self.pause(backoff::part_of(delay, backoff::random()), shutdown).await
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
                backoff::jittered(REFUSED_PERIOD, backoff::random())
            }
            // The same again is no use: not soon, and not more often the longer it lasts.
            Class::Refused => {
                self.board.raise(Subsystem::ControlPlane, self.name, error.to_string());
                backoff::jittered(REFUSED_PERIOD, backoff::random())
            }
            Class::Retry | Class::RetryAfter(_) => {
                self.board.raise(Subsystem::ControlPlane, self.name, error.to_string());
                let own = backoff.next(backoff::random());
                error.retry_after().map_or(own, |asked| backoff::extended(asked, backoff::random()))
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

/// Waits until then, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
