//! What the keeper tells administrators of each event: counts, and what became of it. Never its payload.

use super::Keeper;
use crate::control::envelope::{Claims, Verified};
use crate::control::events::EventKind;
use crate::control::history::{Outcome, Seen};

/// Why an event that could not be read was rejected.
pub(super) const TOO_LARGE: &str = "too_large";

impl Keeper {
    pub(super) fn count_rejected(&self, claims: Option<Claims>, id: Option<&str>, reason: &'static str) {
        let mut count = 0;
        self.board.control(|control| {
            let rejected = control.rejected.entry(reason).or_default();
            *rejected += 1;
            count = *rejected;
        });
        if count == 1 {
            tracing::warn!(reason, event = id.unwrap_or(""), "event rejected; further ones are only counted");
        }
        self.remember(claims, id, Outcome::Rejected(reason));
    }

    /// Remembers an event for administrators; `id` is the stream's, for an event that says nothing of itself.
    fn remember(&self, claims: Option<Claims>, id: Option<&str>, outcome: Outcome) {
        let received = self.clock.now();
        self.board.history().record(match claims {
            Some(Claims { event_type, event_id, issued_at }) => {
                Seen { received, event_type, event_id, issued_at: Some(issued_at), outcome }
            }
            None => Seen {
                received,
                event_type: String::new(),
                event_id: id.unwrap_or_default().to_owned(),
                issued_at: None,
                outcome,
            },
        });
    }

    /// Remembers a verified event; `unsupported` is its type, if this version has no feature for it.
    pub(super) fn remember_verified(&self, claims: Claims, unsupported: Option<&str>) {
        let outcome = match unsupported {
            None => Outcome::Applied,
            Some(name) if EventKind::from_name(name).is_some() => Outcome::Unsupported,
            Some(_) => Outcome::Unknown,
        };
        self.remember(Some(claims), None, outcome);
    }
}

/// Returns what a verified event says of itself.
pub(super) fn claims_of(verified: &Verified) -> Claims {
    Claims {
        event_type: verified.event_type.clone(),
        event_id: verified.event_id.clone(),
        issued_at: verified.issued_at,
    }
}
