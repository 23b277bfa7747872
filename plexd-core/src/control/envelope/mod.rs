//! Verification of signed event envelopes, to the letter of contract, section 2, "Signed envelopes". Pure: remembers
//! nothing, applies nothing, and parses no more of the payload than its grammar.

mod issued_at;
mod scan;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;

use crate::state::SigningKeys;

use issued_at::IssuedAt;

/// How far `issued_at` may be from now, either way, inclusive. Nonces are kept this long past `issued_at`.
pub const WINDOW: SignedDuration = SignedDuration::from_mins(5);

/// The nonces seen within the window.
pub trait NonceSet {
    /// Returns whether `nonce` was seen.
    fn contains(&self, nonce: &str) -> bool;
}

/// The content of an envelope whose signature, time and nonce hold.
pub struct Verified {
    /// Event type; any text but the empty one.
    pub event_type: String,
    /// Event id.
    pub event_id: String,
    /// When it was issued, within [`WINDOW`] of now.
    pub issued_at: Timestamp,
    /// Nonce, to be recorded until `issued_at` + [`WINDOW`].
    pub nonce: String,
    /// Payload, byte for byte as received. May hold key material.
    pub payload: Box<RawValue>,
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("event_type", &self.event_type)
            .field("event_id", &self.event_id)
            .field("issued_at", &self.issued_at)
            .finish_non_exhaustive()
    }
}

/// Why an envelope was rejected; the first of these that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("the event is rejected: {}", self.as_str())]
pub enum Rejection {
    /// Not an envelope: not JSON, a member missing, empty or twice, no valid `issued_at`.
    Malformed,
    /// Signed by none of the keys accepted now.
    Signature,
    /// Issued more than five minutes ago.
    Stale,
    /// Issued more than five minutes in the future.
    Future,
    /// Its nonce was seen before.
    Replay,
}

impl Rejection {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Malformed, Self::Signature, Self::Stale, Self::Future, Self::Replay];

    /// Returns the reason's name, for counters and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Stale => "stale",
            Self::Future => "future",
            Self::Replay => "replay",
        }
    }
}

/// Verifies the envelope in `data`, the text of an event, at the time `now`.
///
/// # Errors
/// The first check that fails: well-formed, signature, time, nonce.
pub fn verify(
    data: &[u8],
    keys: &SigningKeys,
    now: Timestamp,
    seen: &impl NonceSet,
) -> Result<Verified, Rejection> {
    let envelope = Envelope::parse(data).ok_or(Rejection::Malformed)?;
    if !envelope.is_signed_by(keys, now) {
        return Err(Rejection::Signature);
    }
    let issued_at = envelope.issued_at.time;
    if now.duration_since(issued_at) > WINDOW {
        return Err(Rejection::Stale);
    }
    if issued_at.duration_since(now) > WINDOW {
        return Err(Rejection::Future);
    }
    if seen.contains(&envelope.nonce) {
        return Err(Rejection::Replay);
    }
    Ok(Verified {
        payload: RawValue::from_string(envelope.payload.to_owned()).map_err(|_| Rejection::Malformed)?,
        event_type: envelope.event_type,
        event_id: envelope.event_id,
        issued_at,
        nonce: envelope.nonce,
    })
}

/// What a well-formed envelope says of itself. Nothing of it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Event type.
    pub event_type: String,
    /// Event id.
    pub event_id: String,
    /// When it was issued.
    pub issued_at: Timestamp,
}

/// Returns what the envelope in `data` says of itself, for people to look at; `None` if it is malformed.
pub fn claims(data: &[u8]) -> Option<Claims> {
    let Envelope { event_type, event_id, issued_at, .. } = Envelope::parse(data)?;
    Some(Claims { event_type, event_id, issued_at: issued_at.time })
}

/// A well-formed envelope of which nothing is proven.
struct Envelope<'a> {
    event_type: String,
    event_id: String,
    issued_at: IssuedAt,
    nonce: String,
    /// As received.
    payload: &'a str,
    /// As received, perhaps empty or no base64.
    signature: String,
}

impl<'a> Envelope<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let members = scan::members(std::str::from_utf8(data).ok()?)?;
        let raw = |name: &str| members.get(name).copied();
        let text = |name: &str| scan::decode(raw(name)?);
        let filled = |name: &str| text(name).filter(|text| !text.is_empty());
        Some(Self {
            event_type: filled("event_type")?,
            event_id: filled("event_id")?,
            issued_at: IssuedAt::parse(filled("issued_at")?)?,
            nonce: filled("nonce")?,
            payload: raw("payload")?,
            signature: text("signature")?,
        })
    }

    /// Returns whether one of the keys accepted at `now` signed either spelling of the canonical bytes.
    fn is_signed_by(&self, keys: &SigningKeys, now: Timestamp) -> bool {
        let Some(signature) = STANDARD.decode(&self.signature).ok().and_then(|bytes| bytes.try_into().ok())
        else {
            return false;
        };
        self.issued_at.spellings().any(|issued_at| {
            let message = self.canonical(issued_at);
            keys.accepted(now).any(|key| key.verifies(&message, &signature))
        })
    }

    /// Returns the bytes that are signed.
    fn canonical(&self, issued_at: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + 256);
        let strings = [
            ("event_type", self.event_type.as_str()),
            ("event_id", &self.event_id),
            ("issued_at", issued_at),
            ("nonce", &self.nonce),
        ];
        out.push(b'{');
        for (name, value) in strings {
            scan::write_string(name, &mut out);
            out.push(b':');
            scan::write_string(value, &mut out);
            out.push(b',');
        }
        out.extend_from_slice(b"\"payload\":");
        scan::write_compact(self.payload, &mut out);
        out.push(b'}');
        out
    }
}

#[cfg(test)]
mod tests;
