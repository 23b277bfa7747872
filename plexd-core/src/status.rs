//! What the node knows of its own health: problems by subsystem, each with the way out, and what the control-plane
//! connection last did. Subsystems write, the admin service and the heartbeat read. Decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::SignedDuration;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::batch::Counts;
use crate::control::history::History;

/// The shared board. Cheap to clone; its lock guards leaf data only and is never held across an await.
#[derive(Debug, Clone, Default)]
pub struct Board {
    content: Arc<Mutex<Content>>,
    enrolment: Arc<watch::Sender<Enrolment>>,
    history: History,
}

#[derive(Debug, Default)]
struct Content {
    problems: BTreeMap<(Subsystem, &'static str), String>,
    control: ControlStatus,
}

/// A part of the node that can have a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subsystem {
    /// Token and registration.
    Enrolment,
    /// Requests and stream.
    ControlPlane,
    /// The node's own files.
    Storage,
    /// WireGuard, addresses, routes.
    Mesh,
    /// The firewall.
    Policy,
    /// Reports of applications.
    Reports,
    /// Metrics, logs and audit records.
    Observability,
    /// The machine's clock.
    Clock,
    /// The Local Node API's token.
    NodeApi,
}

impl Subsystem {
    /// Returns the name that people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolment => "enrolment",
            Self::ControlPlane => "control_plane",
            Self::Storage => "storage",
            Self::Mesh => "mesh",
            Self::Policy => "policy",
            Self::Reports => "reports",
            Self::Observability => "observability",
            Self::Clock => "clock",
            Self::NodeApi => "node_api",
        }
    }
}

/// Where the node stands with its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enrolment {
    /// No identity, no token.
    #[default]
    WaitingForToken,
    /// Registration under way.
    Registering,
    /// It has an identity.
    Enrolled,
    /// The control plane refuses the identity.
    Unauthorized,
}

/// What the connection to the control plane last did.
#[derive(Debug, Clone, Default)]
pub struct ControlStatus {
    /// State of the event stream.
    pub stream: Stream,
    /// When the stream's last byte came.
    pub last_byte: Option<Instant>,
    /// When a request was last answered well.
    pub last_answer: Option<Instant>,
    /// Why the last request or stream failed.
    pub last_error: Option<String>,
    /// Id of the last event handled.
    pub last_event_id: Option<String>,
    /// Events accepted since start.
    pub accepted: u64,
    /// Events refused since start, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Verified events this version has no feature for, by type.
    pub unsupported: BTreeMap<String, u64>,
    /// How far the machine's clock is ahead of the control plane's; zero where that cannot be told from none.
    pub clock_skew: Option<SignedDuration>,
    /// What became of metrics, logs and audit records, by kind.
    pub uploads: BTreeMap<&'static str, Counts>,
}

/// Most types of unsupported events that are counted apart, and most characters of their names.
const MAX_UNSUPPORTED: usize = 64;

impl ControlStatus {
    /// Counts an event this version has no feature for.
    pub fn count_unsupported(&mut self, kind: &str) {
        let name: String = kind.chars().take(MAX_UNSUPPORTED).collect();
        let is_known = self.unsupported.contains_key(&name);
        let name =
            if is_known || self.unsupported.len() < MAX_UNSUPPORTED { name } else { "other".to_owned() };
        *self.unsupported.entry(name).or_default() += 1;
    }
}

/// State of the event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stream {
    /// Waiting for the next attempt.
    #[default]
    Disconnected,
    /// Connecting.
    Connecting,
    /// Bytes came within the idle timeout.
    Connected,
}

/// A problem as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The part of the node.
    pub subsystem: Subsystem,
    /// What is wrong and what to do.
    pub message: String,
}

impl Board {
    /// States a problem; `what` names it within the subsystem, so that it can be replaced and cleared.
    pub fn raise(&self, subsystem: Subsystem, what: &'static str, message: impl Into<String>) {
        let message = message.into();
        let previous = self.content().problems.insert((subsystem, what), message.clone());
        match previous {
            None => tracing::warn!(subsystem = subsystem.as_str(), "{message}"),
            Some(previous) if previous != message => {
                tracing::debug!(subsystem = subsystem.as_str(), "{message}");
            }
            Some(_) => {}
        }
    }

    /// States that the problem is over.
    pub fn clear(&self, subsystem: Subsystem, what: &'static str) {
        if self.content().problems.remove(&(subsystem, what)).is_some() {
            tracing::info!(subsystem = subsystem.as_str(), what, "problem is over");
        }
    }

    /// States the problem if there is one, and else that it is over.
    pub fn set(&self, subsystem: Subsystem, what: &'static str, problem: Option<String>) {
        match problem {
            Some(message) => self.raise(subsystem, what, message),
            None => self.clear(subsystem, what),
        }
    }

    /// States that all problems of the subsystem are over.
    pub fn clear_all(&self, subsystem: Subsystem) {
        self.content().problems.retain(|(of, _), _| *of != subsystem);
    }

    /// Returns all problems, by subsystem.
    pub fn problems(&self) -> Vec<Problem> {
        let content = self.content();
        let problem = |((subsystem, _), message): (&(Subsystem, _), &String)| Problem {
            subsystem: *subsystem,
            message: message.clone(),
        };
        let mut problems: Vec<Problem> = content.problems.iter().map(problem).collect();
        // Several loops may tell of the same trouble.
        problems.dedup();
        problems
    }

    /// Returns whether the subsystem has a problem.
    pub fn has(&self, subsystem: Subsystem) -> bool {
        self.content().problems.keys().any(|(of, _)| *of == subsystem)
    }

    /// Returns whether anything is wrong.
    pub fn is_degraded(&self) -> bool {
        !self.content().problems.is_empty()
    }

    /// States where the node stands with its identity.
    pub fn set_enrolment(&self, enrolment: Enrolment) {
        self.enrolment.send_if_modified(|current| std::mem::replace(current, enrolment) != enrolment);
    }

    /// Returns where the node stands with its identity.
    pub fn enrolment(&self) -> Enrolment {
        *self.enrolment.borrow()
    }

    /// Returns where the node stands with its identity, to be watched.
    pub fn enrolment_changes(&self) -> watch::Receiver<Enrolment> {
        self.enrolment.subscribe()
    }

    /// Changes what is known of the control-plane connection.
    pub fn control(&self, change: impl FnOnce(&mut ControlStatus)) {
        change(&mut self.content().control);
    }

    /// Returns what is known of the control-plane connection.
    pub fn control_status(&self) -> ControlStatus {
        self.content().control.clone()
    }

    /// Returns what became of the newest events.
    pub fn history(&self) -> &History {
        &self.history
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Each change is a single assignment, so a panic elsewhere leaves nothing half done.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_stays_until_it_is_cleared() {
        let board = Board::default();
        board.raise(Subsystem::Policy, "rejected", "policy pol_1 rule 2: unknown action");
        board.raise(Subsystem::Policy, "rejected", "policy pol_1 rule 3: unknown action");
        assert!(board.is_degraded());
        assert_eq!(board.problems().len(), 1);
        board.clear(Subsystem::Policy, "rejected");
        assert!(!board.is_degraded());
    }
}
