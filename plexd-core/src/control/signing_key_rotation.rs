//! The announcement of a new signing key, in both of its forms (contract, section 2), and the keys that follow from it.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::state::SigningKeys;
use crate::types::SigningPublicKey;

use super::convert::{signing_key, time};
use super::wire::{self, Raw};

/// How long the old key is accepted if the event does not say.
const TRANSITION: SignedDuration = SignedDuration::from_hours(24);

/// The control plane signs with another key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKeyRotation {
    /// The new key.
    current: SigningPublicKey,
    /// The old one, if the event names it; else it is the one that was current.
    previous: Option<SigningPublicKey>,
    transition: Transition,
}

/// How long the old key is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Transition {
    Until(Timestamp),
    /// From the given time, or else from when the event is applied.
    For(Option<Timestamp>, SignedDuration),
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(default)]
    current: Option<String>,
    #[serde(default)]
    previous: Option<String>,
    #[serde(default)]
    transition_expires: Option<String>,
    #[serde(default)]
    new_signing_public_key: Option<String>,
    #[serde(default)]
    valid_from: Option<String>,
    #[serde(borrow, default)]
    transition_period: Option<Raw<'a>>,
}

impl SigningKeyRotation {
    /// Parses `{current, previous?, transition_expires?}` or
    /// `{new_signing_public_key, valid_from?, transition_period?}`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let payload: Payload<'_> = wire::parse_object(text.as_bytes())?;
        match given(payload.current) {
            Some(current) => Ok(Self {
                current: signing_key("current", &current)?,
                previous: given(payload.previous).map(|key| signing_key("previous", &key)).transpose()?,
                transition: match given(payload.transition_expires) {
                    Some(text) => Transition::Until(time("transition_expires", &text)?),
                    None => Transition::For(None, TRANSITION),
                },
            }),
            None => Ok(Self {
                current: signing_key(
                    "new_signing_public_key",
                    &given(payload.new_signing_public_key)
                        .ok_or("has neither current nor new_signing_public_key")?,
                )?,
                previous: None,
                transition: Transition::For(
                    given(payload.valid_from).map(|text| time("valid_from", &text)).transpose()?,
                    payload.transition_period.map_or(Ok(TRANSITION), period)?,
                ),
            }),
        }
    }

    /// Returns the key that is current from now on.
    pub fn current(&self) -> SigningPublicKey {
        self.current
    }

    /// Returns the keys to accept when the rotation is applied to `keys` at `now`. Applied again, it changes nothing.
    #[must_use]
    pub fn apply(&self, keys: &SigningKeys, now: Timestamp) -> SigningKeys {
        let applied = keys.current == self.current;
        let replaced = if applied { keys.previous } else { Some(keys.current) };
        let previous = self.previous.or(replaced).filter(|key| *key != self.current);
        let transition_expires = match self.transition {
            Transition::Until(expires) => Some(expires),
            Transition::For(..) if applied && keys.transition_expires.is_some() => keys.transition_expires,
            Transition::For(from, period) => {
                Some(from.unwrap_or(now).checked_add(period).unwrap_or(Timestamp::MAX))
            }
        };
        SigningKeys { current: self.current, previous, transition_expires: previous.and(transition_expires) }
    }
}

/// Reads the empty text as absent.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Reads a period: a text as `24h` or `1h30m`, or a number of seconds; null and `""` are the default.
fn period(value: Raw<'_>) -> Result<SignedDuration, String> {
    let error = || "transition_period is neither a duration as \"24h\" nor a number of seconds".to_owned();
    if let Ok(seconds) = value.text().parse::<u32>() {
        return Ok(SignedDuration::from_secs(seconds.into()));
    }
    let text: String = wire::parse(value.text().as_bytes()).map_err(|_| error())?;
    if text.is_empty() {
        return Ok(TRANSITION);
    }
    let period = humantime::parse_duration(&text).map_err(|_| error())?;
    SignedDuration::try_from(period).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "GUnpgjkh9DVLngRw/Xgbqy4CM9RZM6bQ38chRh0yMlQ=";
    const NEW: &str = "lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=";
    const NOW: &str = "2026-01-15T10:00:00Z";

    fn applied(payload: &str) -> SigningKeys {
        let rotation = SigningKeyRotation::parse(&payload.replace("NEW", NEW).replace("OLD", OLD)).unwrap();
        let current = SigningPublicKey::from_base64(OLD).unwrap();
        let before = SigningKeys { current, previous: None, transition_expires: None };
        let after = rotation.apply(&before, NOW.parse().unwrap());
        let later = "2026-01-15T11:00:00Z".parse().unwrap();
        assert_eq!(rotation.apply(&after, later), after, "applied twice: {payload}");
        assert_eq!(after.current.to_string(), NEW);
        assert_eq!(after.previous, Some(current));
        after
    }

    #[test]
    fn the_old_key_is_accepted_for_the_transition_or_24_hours() {
        for (payload, expires) in [
            (r#"{"current":"NEW"}"#, "2026-01-16T10:00:00Z"),
            (r#"{"current":"NEW","previous":null,"transition_expires":""}"#, "2026-01-16T10:00:00Z"),
            (
                r#"{"current":"NEW","previous":"OLD","transition_expires":"2026-01-15T12:00:00Z"}"#,
                "2026-01-15T12:00:00Z",
            ),
            (r#"{"new_signing_public_key":"NEW"}"#, "2026-01-16T10:00:00Z"),
            (r#"{"new_signing_public_key":"NEW","transition_period":"1h30m0s"}"#, "2026-01-15T11:30:00Z"),
            (r#"{"new_signing_public_key":"NEW","transition_period":60}"#, "2026-01-15T10:01:00Z"),
            (
                r#"{"new_signing_public_key":"NEW","valid_from":"2026-01-15T09:00:00Z","transition_period":"2h"}"#,
                "2026-01-15T11:00:00Z",
            ),
        ] {
            assert_eq!(applied(payload).transition_expires, Some(expires.parse().unwrap()), "{payload}");
        }
    }

    #[test]
    fn a_payload_without_a_valid_key_or_time_is_refused() {
        for (payload, reason) in [
            ("null", "expected an object"),
            ("{}", "neither current nor new_signing_public_key"),
            (r#"{"current":"AAAA"}"#, "current has 3 bytes, not 32"),
            (r#"{"current":"NEW","previous":"x"}"#, "previous is not base64"),
            (r#"{"current":"NEW","transition_expires":"soon"}"#, "transition_expires \"soon\" is not"),
            (
                r#"{"new_signing_public_key":"NEW","transition_period":"long"}"#,
                "transition_period is neither",
            ),
            (r#"{"new_signing_public_key":"NEW","transition_period":-1}"#, "transition_period is neither"),
        ] {
            let error = SigningKeyRotation::parse(&payload.replace("NEW", NEW)).unwrap_err();
            assert!(error.contains(reason), "{payload}: {error}");
        }
    }
}
