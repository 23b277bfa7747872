//! State pulls: each replaces the one before, twice is as once, and what is kept can be restored.

use plexd_core::control::convert;
use plexd_core::control::wire::{self, StateResponse};
use plexd_core::state::{Desired, FullState};

use super::{
    BASE, assert_bounded, assert_message, assert_peers_stored, assert_secrets_hidden, assert_sound, wanted,
};
use crate::parts;

/// Parses an answer as the client does.
pub(super) fn parse(text: &[u8]) -> Result<FullState, String> {
    wire::parse_object::<StateResponse<'_>>(text).map(|response| convert::state(&response))
}

/// Answers to pulls, apart by bytes 0xff, come one after the other.
pub fn states(data: &[u8]) {
    let mut desired = Desired::clone(&BASE);
    let mut is_changed = false;
    for part in parts(data) {
        match parse(part) {
            Ok(full) => {
                desired = replace(&desired, &full);
                is_changed = true;
            }
            Err(reason) => assert_message(&reason),
        }
        assert_secrets_hidden(part, show);
    }
    if is_changed {
        wanted(&desired);
    }
}

fn replace(before: &Desired, full: &FullState) -> Desired {
    assert_bounded(&full.rejected_peers);
    assert_bounded(&full.rejected_data);
    if let Some(reason) = &full.rejected_signing_keys {
        assert_message(reason);
    }
    assert_peers_stored(&full.peers);
    let (desired, corrections) = before.replaced_by(full.clone());
    for correction in &corrections {
        assert_message(&correction.detail);
    }
    assert_sound(&desired);
    assert_eq!(desired.peers.len(), full.peers.len());
    let (again, none) = desired.replaced_by(full.clone());
    assert!(again.is_same_as(&desired), "pulled twice: {full:?}");
    assert_eq!(none, [], "told twice");
    desired
}

/// Whatever a person may see of a state.
fn show(text: &[u8]) -> String {
    let full = match parse(text) {
        Ok(full) => full,
        Err(reason) => return reason,
    };
    let (desired, corrections) = BASE.replaced_by(full.clone());
    let rejected: Vec<String> =
        full.rejected_peers.iter().chain(&full.rejected_data).map(ToString::to_string).collect();
    format!(
        "{full:?} {:?} {rejected:?} {desired:?} {corrections:?} {:?}",
        full.rejected_signing_keys,
        wanted(&desired)
    )
}
