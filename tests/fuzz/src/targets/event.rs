//! Verified events of every type: decoded, applied, applied again; a refused one changes nothing.

use jiff::{SignedDuration, Timestamp};
use plexd_core::control::events::{Event, EventKind, PayloadError, decode};
use plexd_core::state::{Applied, Desired};
use serde_json::value::RawValue;

use super::{BASE, assert_bounded, assert_message, assert_secrets_hidden, assert_sound, now, wanted};
use crate::parts;

/// Events, apart by bytes 0xff: each its type, a line feed, its payload. They come one after the other.
pub fn events(data: &[u8]) {
    let mut desired = Desired::clone(&BASE);
    let mut is_changed = false;
    for part in parts(data) {
        let Some((event_type, payload)) = split(part) else { continue };
        match decode(event_type, payload) {
            Ok(event) => {
                desired = apply(&desired, &event);
                is_changed = true;
            }
            Err(error) => {
                assert_message(&error.to_string());
                assert_eq!(EventKind::from_name(event_type), Some(error.kind));
            }
        }
        assert_secrets_hidden(payload.get().as_bytes(), |planted| show(event_type, planted));
    }
    if is_changed {
        assert_sound(&desired);
        wanted(&desired);
    }
}

fn split(part: &[u8]) -> Option<(&str, &RawValue)> {
    let (event_type, payload) = std::str::from_utf8(part).ok()?.split_once('\n')?;
    Some((event_type, serde_json::from_str(payload).ok()?))
}

fn apply(before: &Desired, event: &Event) -> Desired {
    if let Event::NodeStateUpdated(delta) = event {
        assert_bounded(&delta.rejected);
    }
    let Applied { desired, corrections, unsupported, .. } = before.apply(event.clone(), now());
    for correction in &corrections {
        assert_message(&correction.detail);
    }
    assert!(corrections.len() <= 1);
    if unsupported.is_some() || matches!(event, Event::Reconcile) {
        assert!(desired.is_same_as(before), "{event:?} changes the state");
    }
    let later = now().checked_add(SignedDuration::from_mins(1)).unwrap_or(Timestamp::MAX);
    let again = desired.apply(event.clone(), later);
    assert!(again.desired.is_same_as(&desired), "applied twice: {event:?}");
    assert_eq!(again.corrections, [], "told twice: {event:?}");
    desired
}

/// Whatever a person may see of an event.
fn show(event_type: &str, payload: &[u8]) -> String {
    let payload = RawValue::from_string(String::from_utf8_lossy(payload).into_owned()).expect("still JSON");
    match decode(event_type, &payload) {
        Ok(event) => {
            let applied = BASE.apply(event.clone(), now());
            format!("{event:?} {applied:?} {:?}", wanted(&applied.desired))
        }
        Err(error @ PayloadError { .. }) => format!("{error} {error:?}"),
    }
}
