//! Signed envelopes: accepted exactly if the reference reads the same canonical bytes and one of the keys signed them.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::{SignedDuration, Timestamp};
use plexd_core::control::envelope::{NonceSet, Rejection, Verified, verify};
use plexd_core::state::SigningKeys;

use super::{now, public, signing_key};
use crate::parts;
use crate::reference::envelope::Envelope;

const CURRENT: u8 = 7;
const PREVIOUS: u8 = 6;
const WINDOW: i128 = 300_000_000_000;

struct Keys {
    current: SigningKey,
    previous: SigningKey,
    stranger: SigningKey,
    accepted: SigningKeys,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let (current, previous) = (signing_key(CURRENT), signing_key(PREVIOUS));
    let accepted = SigningKeys {
        current: public(&current),
        previous: Some(public(&previous)),
        transition_expires: Some(now()),
    };
    Keys { current, previous, stranger: signing_key(1), accepted }
});

/// Nonces seen: this one, if any.
struct Seen(Option<String>);

impl NonceSet for Seen {
    fn contains(&self, nonce: &str) -> bool {
        self.0.as_deref() == Some(nonce)
    }
}

/// What is done to an envelope before it is shown to plexd-core, by the bits of the first byte.
#[derive(Debug, Clone, Copy)]
struct Plan(u8);

impl Plan {
    fn signer(self) -> &'static SigningKey {
        match self.0 & 3 {
            0 | 1 => &KEYS.current,
            2 => &KEYS.previous,
            _ => &KEYS.stranger,
        }
    }

    /// Which of the two spellings is signed.
    fn spelling(self) -> usize {
        usize::from(self.0 >> 2 & 1)
    }

    /// The time of verification, in nanoseconds after the envelope's.
    fn delay(self) -> i128 {
        match self.0 >> 3 & 7 {
            0..=2 => 0,
            3 => WINDOW,
            4 => -WINDOW,
            5 => WINDOW + 1,
            6 => -WINDOW - 1,
            _ => 86_400_000_000_000,
        }
    }

    fn is_replayed(self) -> bool {
        self.0 >> 6 == 3
    }
}

/// The first byte says how the envelope is signed and when it is verified; if there is a second envelope behind a byte
/// 0xff, it gets the signature of the first.
pub fn envelope(data: &[u8]) {
    let [plan, rest @ ..] = data else { return };
    let plan = Plan(*plan);
    let mut texts = parts(rest);
    let signed = texts.next().unwrap_or_default();
    let shown = texts.next().unwrap_or(signed);
    // As it came: nobody but the control plane could have signed it.
    check(shown, now(), &Seen(None));

    let Some(original) = Envelope::read(signed) else { return };
    let Some(other) = Envelope::read(shown) else { return };
    let message = &original.canonical()[plan.spelling()];
    let signature = STANDARD.encode(plan.signer().sign(message.as_bytes()).to_bytes());
    let sealed = with_signature(shown, other.signature, &signature);
    let Ok(now) = Timestamp::from_nanosecond(other.issued + plan.delay()) else { return };
    let seen = Seen(plan.is_replayed().then(|| other.nonce.clone()));
    check(&sealed, now, &seen);
}

/// Puts a signature into the place of the one that is there.
fn with_signature(text: &[u8], token: &str, signature: &str) -> Vec<u8> {
    let at = token.as_ptr().addr() - text.as_ptr().addr();
    [&text[..at], b"\"", signature.as_bytes(), b"\"", &text[at + token.len()..]].concat()
}

fn check(data: &[u8], now: Timestamp, seen: &Seen) {
    let (got, wanted) = (verify(data, &KEYS.accepted, now, seen), expected(data, now, seen));
    match (&got, &wanted) {
        (Ok(verified), Ok(envelope)) => assert_same(verified, envelope),
        (Err(got), Err(wanted)) if got == wanted => {
            assert!(got.to_string().contains(got.as_str()));
        }
        // Times that one of the two cannot tell.
        (Err(Rejection::Malformed), Err(Rejection::Stale | Rejection::Future | Rejection::Signature))
            if is_far(data) => {}
        _ => panic!("{got:?}, but by the reference {wanted:?}: {}", String::from_utf8_lossy(data)),
    }
}

fn assert_same(verified: &Verified, envelope: &Envelope<'_>) {
    let texts = [&verified.event_type, &verified.event_id, &verified.nonce];
    assert_eq!(texts, [&envelope.event_type, &envelope.event_id, &envelope.nonce]);
    assert_eq!(verified.payload.get(), envelope.payload);
    assert_eq!(verified.issued_at.as_nanosecond(), envelope.issued);
    assert!(verified.issued_at.duration_since(Timestamp::UNIX_EPOCH) < SignedDuration::MAX);
}

/// Whether the envelope is of a time close to the first or last that a `Timestamp` has.
fn is_far(data: &[u8]) -> bool {
    let second = 1_000_000_000;
    let day = 86_400 * second;
    let (first, last) = (Timestamp::MIN.as_nanosecond() + day, Timestamp::MAX.as_nanosecond() - day);
    Envelope::read(data).is_some_and(|envelope| !(first..last).contains(&envelope.issued))
}

fn expected<'a>(data: &'a [u8], now: Timestamp, seen: &Seen) -> Result<Envelope<'a>, Rejection> {
    let envelope = Envelope::read(data).ok_or(Rejection::Malformed)?;
    if !is_signed(&envelope, now) {
        return Err(Rejection::Signature);
    }
    let age = now.as_nanosecond() - envelope.issued;
    match age {
        _ if age > WINDOW => Err(Rejection::Stale),
        _ if age < -WINDOW => Err(Rejection::Future),
        _ if seen.contains(&envelope.nonce) => Err(Rejection::Replay),
        _ => Ok(envelope),
    }
}

fn is_signed(envelope: &Envelope<'_>, now_: Timestamp) -> bool {
    let text: String = serde_json::from_str(envelope.signature).expect("a string");
    let Some(signature) = STANDARD.decode(text).ok().and_then(|bytes| Signature::from_slice(&bytes).ok())
    else {
        return false;
    };
    let mut keys: Vec<VerifyingKey> = vec![KEYS.current.verifying_key()];
    if now_ < now() {
        keys.push(KEYS.previous.verifying_key());
    }
    let messages = envelope.canonical();
    let holds =
        |key: &VerifyingKey, message: &String| key.verify_strict(message.as_bytes(), &signature).is_ok();
    keys.iter().any(|key| messages.iter().any(|message| holds(key, message)))
}
