//! Giving the identity up, asked for by an administrator or by a stop that deregisters. The control plane is told first;
//! once it has confirmed, or does not know the node any more, nothing keeps the node from being gone: a durable mark, then
//! identity and keys, the state, the mesh in the kernel, and if so asked all the rest. A crash before the mark leaves an
//! enrolled node, one after it a node whose next start goes on.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Enroller;
use crate::control::client::{Class, ClientError};
use crate::identity::departure::Extent;
use crate::reconcile::Mesh;
use crate::reports::Reports;
use crate::state::PublishIdentity;
use crate::status::{Enrolment, Subsystem};
use crate::storage::StorageError;
use crate::types::NodeId;

/// How long the kernel may take to remove the mesh.
const MESH_DEADLINE: Duration = Duration::from_secs(10);

/// Name of the problem on the board.
const PROBLEM: &str = "deregistration";

/// Asks for the identity to be given up. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LeaveRequests(mpsc::Sender<Request>);

/// How the identity is to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    /// How much with it.
    pub extent: Extent,
    /// Whether the control plane has a say.
    pub consent: Consent,
}

/// Whether the control plane has a say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// It is told, and without its answer nothing is done.
    Required,
    /// It is not asked, and goes on listing the node.
    Waived,
}

/// The identity is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Whom the node was, if it was somebody.
    pub node_id: Option<NodeId>,
    /// What the control plane had to do with it.
    pub farewell: Farewell,
    /// What could not be removed, each with the reason.
    pub remains: Vec<String>,
}

/// What the control plane had to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// It confirmed.
    Confirmed,
    /// It did not know the node any more.
    Unknown,
    /// It was not asked.
    NotAsked,
}

/// Why the identity was not given up; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaveError {
    /// There is none.
    #[error("this node is not enrolled: there is nothing to deregister")]
    NotEnrolled,
    /// Somebody else is at it.
    #[error("another deregistration is under way; wait for it, then look at: plexd-ctl status")]
    Busy,
    /// The control plane did not confirm.
    #[error(
        "{node_id} is not deregistered, nothing has changed: {error}; try again, or give the identity up on this node alone, \
         which the control plane then goes on listing: plexd-ctl deregister --force"
    )]
    NotConfirmed {
        /// The node.
        node_id: NodeId,
        /// What came in place of the confirmation.
        error: ClientError,
    },
    /// The process is stopping.
    #[error("plexd-core is stopping")]
    Stopping,
}

#[derive(Debug)]
pub(super) struct Request {
    leave: Leave,
    reply: oneshot::Sender<Result<Left, LeaveError>>,
}

/// What else is to be cleared of an identity that is given up.
#[derive(Debug)]
pub(super) struct Surroundings {
    mesh: Mesh,
    reports: Reports,
    requests: mpsc::Receiver<Request>,
}

impl LeaveRequests {
    /// Gives the identity up; returns once that is done, or with the reason why nothing was.
    pub async fn leave(&self, leave: Leave) -> Result<Left, LeaveError> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Request { leave, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LeaveError::Busy,
            mpsc::error::TrySendError::Closed(_) => LeaveError::Stopping,
        })?;
        answer.await.map_err(|_| LeaveError::Stopping)?
    }
}

/// Waits for a request. Cancel safe: one that is received is returned.
pub(super) async fn next(surroundings: &mut Option<Surroundings>) -> Option<Request> {
    match surroundings {
        Some(surroundings) => surroundings.requests.recv().await,
        None => None,
    }
}

impl Enroller {
    /// Lets the identity be given up, which also clears what it had of `mesh` and `reports`.
    #[must_use]
    pub fn leaving(mut self, mesh: Mesh, reports: Reports) -> (Self, LeaveRequests) {
        let (sender, requests) = mpsc::channel(1);
        self.surroundings = Some(Surroundings { mesh, reports, requests });
        (self, LeaveRequests(sender))
    }

    /// Has the reports sent that an identity before this one left: the control plane has none of `node`.
    pub(super) async fn offer_reports_to(&self, node: &NodeId) {
        let is_known = self.publish.borrow().as_ref().is_some_and(|identity| identity.node_id == *node);
        if is_known {
            return;
        }
        if let Some(surroundings) = &self.surroundings
            && let Err(error) = surroundings.reports.offer_again().await
        {
            tracing::warn!(%error, "the reports are sent only once they change");
        }
    }

    pub(super) async fn on_leave(&mut self, request: Request) {
        let result = self.leave(request.leave).await;
        // An administrator who no longer waits is no error.
        let _ = request.reply.send(result);
    }

    async fn leave(&mut self, leave: Leave) -> Result<Left, LeaveError> {
        let identity = self.publish.borrow().clone();
        let farewell = match (&identity, leave.consent) {
            (None, Consent::Required) if leave.extent == Extent::Identity => {
                return Err(LeaveError::NotEnrolled);
            }
            (None, _) | (_, Consent::Waived) => Farewell::NotAsked,
            (Some(identity), Consent::Required) => {
                match self.client.deregister(&identity.credentials()).await {
                    Ok(()) => Farewell::Confirmed,
                    Err(error) if error.class() == Class::Identity => Farewell::Unknown,
                    Err(error) => {
                        return Err(LeaveError::NotConfirmed { node_id: identity.node_id.clone(), error });
                    }
                }
            }
        };
        let node_id = identity.map(|identity| identity.node_id.clone());
        tracing::info!(node = node_id.as_ref().map_or("", NodeId::as_str), ?farewell, "deregistering");
        let remains = self.give_up(leave.extent).await;
        tracing::info!(remains = remains.len(), "deregistered");
        Ok(Left { node_id, farewell, remains })
    }

    /// Gives the identity up, come what may; returns what could not be removed.
    async fn give_up(&mut self, extent: Extent) -> Vec<String> {
        let departure = self.store.departure();
        if let Err(error) = departure.begin(extent) {
            // What follows needs no space: better gone without the mark than kept because of it.
            tracing::warn!(%error, "a crash within the next moments would leave files of the identity behind");
        }
        self.token = None;
        self.private_key = None;
        self.rotation.forget();
        let mut remains = told(&departure.remove_identity());
        remains.extend(self.forget_state().await);
        self.tell_departure();
        remains.extend(self.take_mesh_down().await);
        // What is left so far is for the next start to remove, which the mark tells it.
        let is_gone = remains.is_empty();
        if extent == Extent::Everything {
            remains.extend(self.clear_reports().await);
            remains.extend(told(&departure.remove_everything_else()));
        }
        if is_gone && let Err(error) = departure.finish() {
            remains.push(error.to_string());
        }
        let problem = (!remains.is_empty())
            .then(|| format!("deregistered, but not everything could be removed: {}", remains.join("; ")));
        self.board.set(Subsystem::Storage, PROBLEM, problem);
        remains
    }

    async fn forget_state(&self) -> Option<String> {
        let sender = self.publish.clone();
        let publish = PublishIdentity::new(move |publish_state| {
            sender.send_modify(|current| {
                *current = None;
                publish_state();
            });
        });
        match self.state.forget(publish).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => {
                self.publish.send_replace(None);
                Some(error.to_string())
            }
        }
    }

    /// Tells where the node stands now, and forgets what troubled an identity that is no more.
    fn tell_departure(&self) {
        for subsystem in [Subsystem::Enrolment, Subsystem::ControlPlane, Subsystem::Observability] {
            self.board.clear_all(subsystem);
        }
        self.board.clear(Subsystem::Storage, "identity");
        self.board.control(|control| control.last_error = None);
        self.board.set_enrolment(Enrolment::WaitingForToken);
        let message =
            "deregistered; to enrol again get a token from the control plane and run: plexd-ctl join";
        self.board.raise(Subsystem::Enrolment, "token", message);
    }

    async fn take_mesh_down(&self) -> Option<String> {
        let surroundings = self.surroundings.as_ref()?;
        match tokio::time::timeout(MESH_DEADLINE, surroundings.mesh.take_down()).await {
            Ok(Some(Ok(()))) => None,
            Ok(Some(Err(error))) => Some(error.to_string()),
            Ok(None) => Some("the mesh: plexd-core is stopping".to_owned()),
            Err(_) => Some("the mesh: a kernel operation hangs; see the log of plexd-core".to_owned()),
        }
    }

    async fn clear_reports(&self) -> Option<String> {
        match self.surroundings.as_ref()?.reports.clear().await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }
}

fn told(errors: &[StorageError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
