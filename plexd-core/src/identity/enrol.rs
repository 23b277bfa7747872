//! Enrolment: from a one-time token to a durable identity (contract, section 4). The key is on disk before it is sent,
//! and the answer before anything acts on it, so a crash at any instruction loses neither; if the answer was lost the same
//! token and key are sent again.

mod leave;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::machine::Machine;
use super::rotation::Rotation;
use super::store::{IdentityStore, Loaded};
use super::token::{Token, TokenLookup};
use super::{CurrentIdentity, Identity};
use crate::control::backoff::{self, Backoff};
use crate::control::client::{Client, ClientError};
use crate::control::convert::Registration;
use crate::control::session::Session;
use crate::control::wire::{CapabilitiesPayload, RegisterRequest, SecretText};
use crate::state::State;
use crate::status::{Board, Enrolment, Subsystem};
use crate::storage::StorageError;
use crate::supervisor::Shutdown;
use crate::types::{NodeId, PrivateKey};

pub use leave::{Consent, Farewell, Leave, LeaveError, LeaveRequests, Left};

/// Takes tokens from administrators. Cheap to clone.
#[derive(Debug, Clone)]
pub struct JoinRequests(mpsc::Sender<Join>);

#[derive(Debug)]
struct Join {
    token: Token,
    reply: oneshot::Sender<Result<Joined, JoinError>>,
}

/// The node is enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its id.
    pub node_id: NodeId,
    /// Its address in the mesh.
    pub mesh_ip: IpAddr,
}

/// Why a token did not enrol the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It has an identity already.
    #[error("this node is already enrolled as {0}; to enrol it anew, run first: plexd-ctl deregister")]
    AlreadyEnrolled(NodeId),
    /// Somebody else is at it.
    #[error("another join is under way; wait for it, then look at: plexd-ctl status")]
    Busy,
    /// The control plane said no.
    #[error("{0}")]
    Refused(String),
    /// The control plane did not answer.
    #[error("{0}; plexd-core keeps trying with this token")]
    Unreachable(String),
    /// The process is stopping.
    #[error("plexd-core is stopping")]
    Stopping,
}

impl JoinRequests {
    /// Enrols the node; returns once the identity is durable, or with the reason why not.
    pub async fn join(&self, token: Token) -> Result<Joined, JoinError> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Join { token, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => JoinError::Busy,
            mpsc::error::TrySendError::Closed(_) => JoinError::Stopping,
        })?;
        answer.await.map_err(|_| JoinError::Stopping)?
    }
}

/// The task that gets, publishes and renews the identity: nobody else changes it, in memory or on disk.
#[derive(Debug)]
pub struct Enroller {
    store: IdentityStore,
    client: Client,
    machine: Machine,
    state: State,
    board: Board,
    private_key: Option<PrivateKey>,
    token: Option<Token>,
    publish: watch::Sender<Option<Arc<Identity>>>,
    joins: mpsc::Receiver<Join>,
    rotation: Rotation,
    /// `None`: nobody can ask for the identity to be given up.
    surroundings: Option<leave::Surroundings>,
}

/// What the task starts from: what is on disk, and where tokens may be.
#[derive(Debug)]
pub struct Start {
    /// Keeps the identity.
    pub store: IdentityStore,
    /// What it keeps.
    pub loaded: Loaded,
    /// A token, if there is one.
    pub token: TokenLookup,
    /// What the node tells of itself when it registers.
    pub machine: Machine,
}

/// What an attempt to register led to.
enum Attempt {
    Enrolled(Joined),
    /// The token or the node is refused: trying again the same way is pointless.
    Refused(String),
    /// Worth trying again with the same token.
    Failed {
        problem: String,
        /// How long the control plane asks to wait, if it does.
        retry_after: Option<Duration>,
    },
}

impl Attempt {
    /// The control plane is not to blame, and a full disk may be emptied.
    fn not_stored(what: &str, error: &StorageError) -> Self {
        Self::Failed {
            problem: format!("{what}: {error}; free space in the data directory"),
            retry_after: None,
        }
    }
}

impl From<ClientError> for Attempt {
    fn from(error: ClientError) -> Self {
        if error.is_final() {
            return Self::Refused(error.to_string());
        }
        Self::Failed { problem: error.to_string(), retry_after: error.retry_after() }
    }
}

impl Enroller {
    /// Creates the task, and publishes the identity if there is one. `pulls` asks for a state pull.
    pub fn new(
        start: Start,
        client: Client,
        state: State,
        board: Board,
        pulls: Arc<Notify>,
    ) -> (Self, CurrentIdentity, JoinRequests) {
        let Start { store, loaded, token, machine } = start;
        let Loaded { identity, private_key, pending_key, problem } = loaded;
        let enrolled = identity.is_some();
        board.set_enrolment(if enrolled { Enrolment::Enrolled } else { Enrolment::WaitingForToken });
        board.set(Subsystem::Storage, "identity", problem);
        let token = match token {
            TokenLookup::Found(token) => Some(token),
            TokenLookup::Missing => None,
            TokenLookup::Unusable(problem) => {
                // A node that has its identity needs no token.
                board.set(Subsystem::Enrolment, "token", (!enrolled).then_some(problem));
                None
            }
        };
        let (publish, current) = watch::channel(identity.map(Arc::new));
        let (sender, joins) = mpsc::channel(1);
        let session = Session {
            client: client.clone(),
            identity: current.clone(),
            board: board.clone(),
            pulls,
            name: "rotation",
        };
        let rotation = Rotation::new(store.clone(), session, state.clone(), publish.clone(), pending_key);
        let surroundings = None;
        let task = Self {
            store,
            client,
            machine,
            state,
            board,
            private_key,
            token,
            publish,
            joins,
            rotation,
            surroundings,
        };
        (task, current, JoinRequests(sender))
    }

    /// Enrols the node as soon as there is a token, and answers those who bring one.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new();
        let mut enrolment = self.board.enrolment_changes();
        loop {
            // Before the look at it: what changes from here on ends the wait below.
            enrolment.mark_unchanged();
            let pending = if self.needs_identity() { self.token.clone() } else { None };
            let wait = match pending {
                None => {
                    self.tell_what_is_missing();
                    None
                }
                // Cancel safe: whatever was done before the cancellation is on disk.
                Some(token) => tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    attempt = self.register(&token) => match attempt {
                        Attempt::Enrolled(_) => continue,
                        Attempt::Refused(problem) => {
                            self.refuse(problem);
                            continue;
                        }
                        Attempt::Failed { problem, retry_after } => {
                            self.board.raise(Subsystem::Enrolment, "register", problem);
                            enrolment.mark_unchanged();
                            let own = backoff.next(backoff::random());
                            Some(retry_after.unwrap_or(own))
                        }
                    },
                },
            };
            // Cancel safe: whatever was done before the cancellation is on disk.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.serve_until(wait, &mut enrolment, &mut backoff) => {}
            }
        }
    }

    /// Serves joins, departures and rotations until registering may be tried again: after `wait`, when it is known whether
    /// the identity is accepted, or when a join or departure was tried.
    async fn serve_until(
        &mut self,
        wait: Option<Duration>,
        enrolment: &mut watch::Receiver<Enrolment>,
        backoff: &mut Backoff,
    ) {
        let wait = sleep_or_forever(wait);
        tokio::pin!(wait);
        loop {
            let is_enrolled = self.publish.borrow().is_some();
            // Cancel safe: a join that was received is answered before the next round, and the others take nothing.
            tokio::select! {
                () = &mut wait => return,
                Ok(()) = enrolment.changed() => return,
                Some(join) = self.joins.recv() => {
                    backoff.reset();
                    self.on_join(join).await;
                    return;
                }
                Some(request) = leave::next(&mut self.surroundings) => {
                    backoff.reset();
                    self.on_leave(request).await;
                    return;
                }
                () = self.rotation.due(), if is_enrolled => self.rotation.advance().await,
            }
        }
    }

    fn needs_identity(&self) -> bool {
        self.publish.borrow().is_none() || self.board.enrolment() != Enrolment::Enrolled
    }

    fn tell_what_is_missing(&self) {
        if self.publish.borrow().is_none() {
            self.board.set_enrolment(Enrolment::WaitingForToken);
            if !self.board.has(Subsystem::Enrolment) {
                let message = "not enrolled: no bootstrap token; get one from the control plane and run: plexd-ctl join";
                self.board.raise(Subsystem::Enrolment, "token", message);
            }
        }
    }

    async fn on_join(&mut self, join: Join) {
        let result = self.join(join.token).await;
        // An administrator who no longer waits is no error.
        let _ = join.reply.send(result);
    }

    async fn join(&mut self, token: Token) -> Result<Joined, JoinError> {
        if !self.needs_identity()
            && let Some(identity) = self.publish.borrow().as_ref()
        {
            return Err(JoinError::AlreadyEnrolled(identity.node_id.clone()));
        }
        self.token = Some(token.clone());
        match self.register(&token).await {
            Attempt::Enrolled(joined) => Ok(joined),
            Attempt::Refused(problem) => {
                self.refuse(problem.clone());
                Err(JoinError::Refused(problem))
            }
            Attempt::Failed { problem, .. } => {
                self.board.raise(Subsystem::Enrolment, "register", problem.clone());
                Err(JoinError::Unreachable(problem))
            }
        }
    }

    /// Gives the token up: it will not be accepted, now or later.
    fn refuse(&mut self, problem: String) {
        self.token = None;
        let is_known = self.publish.borrow().is_some();
        self.board.set_enrolment(if is_known { Enrolment::Unauthorized } else { Enrolment::WaitingForToken });
        self.board.clear(Subsystem::Enrolment, "register");
        self.board.raise(Subsystem::Enrolment, "token", problem);
    }

    async fn register(&mut self, token: &Token) -> Attempt {
        self.board.set_enrolment(Enrolment::Registering);
        let key = match self.key() {
            Ok(key) => key,
            Err(attempt) => return attempt,
        };
        let request = RegisterRequest {
            token: SecretText::from(token.as_str()),
            public_key: key.public().to_string(),
            hostname: self.machine.hostname().to_owned(),
            metadata: Some(Machine::metadata()),
            capabilities: Some(self.machine.capabilities().await),
        };
        match self.client.register(&request).await {
            Ok(registration) => self.take_over(registration, key, request.capabilities).await,
            Err(error) => error.into(),
        }
    }

    /// Returns the key to register with, making and storing one if there is none.
    fn key(&mut self) -> Result<PrivateKey, Attempt> {
        if let Some(identity) = self.publish.borrow().as_ref() {
            return Ok(identity.private_key.clone());
        }
        if let Some(key) = &self.private_key {
            return Ok(key.clone());
        }
        // From here on there is something again that a start must not remove.
        self.store
            .departure()
            .finish()
            .map_err(|error| Attempt::not_stored("the last deregistration is not finished", &error))?;
        self.board.clear(Subsystem::Storage, "deregistration");
        let key = PrivateKey::generate()
            .map_err(|error| Attempt::Refused(format!("no key can be generated: {error}")))?;
        self.store
            .save_key(&key)
            .map_err(|error| Attempt::not_stored("the new key cannot be stored", &error))?;
        self.private_key = Some(key.clone());
        Ok(key)
    }

    /// Makes the registration durable, then known.
    async fn take_over(
        &mut self,
        registration: Registration,
        private_key: PrivateKey,
        told: Option<CapabilitiesPayload>,
    ) -> Attempt {
        let Registration { node_id, mesh_ip, signing_key, node_secret_key, peers, rejected_peers } =
            registration;
        let identity = Identity { node_id, mesh_ip, secret_key: node_secret_key, signing_key, private_key };
        // A rotation may have left another key on disk than the one in force.
        let stored =
            self.store.save_key(&identity.private_key).and_then(|()| self.store.save_identity(&identity));
        if let Err(error) = stored {
            // The token and key can be sent again and are answered the same (contract, section 4).
            return Attempt::not_stored("registered, but the identity cannot be stored", &error);
        }
        if let Some(Err(error)) = told.map(|told| self.store.announced().remember(&identity.node_id, &told)) {
            tracing::warn!(%error, "the capabilities will be told again");
        }
        if let Err(error) = self.state.enrolled(signing_key, peers, rejected_peers).await {
            tracing::warn!(%error, "first peers not taken over; the next pull brings them");
        }
        self.offer_reports_to(&identity.node_id).await;
        self.token = None;
        self.board.clear(Subsystem::Enrolment, "token");
        self.board.clear(Subsystem::Enrolment, "register");
        self.board.clear(Subsystem::Storage, "identity");
        self.board.set_enrolment(Enrolment::Enrolled);
        tracing::info!(node = %identity.node_id, mesh_ip = %identity.mesh_ip, "enrolled");
        let joined = Joined { node_id: identity.node_id.clone(), mesh_ip };
        self.publish.send_replace(Some(Arc::new(identity)));
        Attempt::Enrolled(joined)
    }
}

async fn sleep_or_forever(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
