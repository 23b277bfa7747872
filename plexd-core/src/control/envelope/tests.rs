//! The vectors, and what no change of a signed envelope may do.

use std::collections::BTreeSet;

use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::control::test_vectors;
use crate::types::SigningPublicKey;

impl NonceSet for BTreeSet<String> {
    fn contains(&self, nonce: &str) -> bool {
        BTreeSet::contains(self, nonce)
    }
}

#[derive(Deserialize)]
struct Case {
    name: String,
    now: Time,
    current_key: String,
    previous_key: Option<String>,
    transition_expires: Option<Time>,
    #[serde(default)]
    seen_nonces: BTreeSet<String>,
    envelope: String,
    canonical: Option<String>,
    expect: String,
    reason: Option<String>,
}

/// A time in a vector.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Time(Timestamp);

impl TryFrom<String> for Time {
    type Error = jiff::Error;

    fn try_from(text: String) -> Result<Self, jiff::Error> {
        text.parse().map(Self)
    }
}

impl Case {
    fn keys(&self) -> SigningKeys {
        let key = |text: &String| SigningPublicKey::from_base64(text).unwrap();
        SigningKeys {
            current: key(&self.current_key),
            previous: self.previous_key.as_ref().map(key),
            transition_expires: self.transition_expires.as_ref().map(|expires| expires.0),
        }
    }
}

#[test]
fn every_vector_is_accepted_or_rejected_for_its_reason() {
    let cases: Vec<Case> = test_vectors::read("envelopes.json");
    assert!(!cases.is_empty());
    for case in &cases {
        let verified = verify(case.envelope.as_bytes(), &case.keys(), case.now.0, &case.seen_nonces);
        let outcome = match &verified {
            Ok(_) => ("accept", None),
            Err(rejection) => ("reject", Some(rejection.as_str())),
        };
        assert_eq!(outcome, (case.expect.as_str(), case.reason.as_deref()), "{}", case.name);
    }
}

#[test]
fn every_vector_has_the_canonical_bytes_it_says() {
    for case in test_vectors::read::<Case>("envelopes.json") {
        let (Some(canonical), Some(envelope)) = (&case.canonical, Envelope::parse(case.envelope.as_bytes()))
        else {
            continue;
        };
        let spellings: Vec<_> = envelope
            .issued_at
            .spellings()
            .map(|issued_at| String::from_utf8(envelope.canonical(issued_at)).unwrap())
            .collect();
        assert!(spellings.contains(canonical), "{}: {spellings:?}", case.name);
    }
}

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn keys() -> SigningKeys {
    let current = SigningPublicKey::from_base64(&STANDARD.encode(signing_key().verifying_key())).unwrap();
    SigningKeys { current, previous: None, transition_expires: None }
}

/// Returns an envelope with the given spellings of its members, signed over `canonical`.
fn signed(members: &str, canonical: &str) -> String {
    let signature = STANDARD.encode(signing_key().sign(canonical.as_bytes()).to_bytes());
    format!(r#"{{{members},"signature":"{signature}"}}"#)
}

fn check(envelope: &str) -> Result<Verified, Rejection> {
    verify(envelope.as_bytes(), &keys(), "2026-01-15T10:30:05Z".parse().unwrap(), &BTreeSet::new())
}

const MEMBERS: &str = r#""event_type":"peer_added","event_id":"e","issued_at":"2026-01-15T10:30:00Z","nonce":"n","payload":{"a":[1.0,"<x>"]}"#;
const CANONICAL: &str = r#"{"event_type":"peer_added","event_id":"e","issued_at":"2026-01-15T10:30:00Z","nonce":"n","payload":{"a":[1.0,"\u003cx\u003e"]}}"#;

#[test]
fn strings_are_signed_decoded_and_the_payload_as_spelled() {
    let members = r#""event_type":"a\/\u0062\u0009\u2028<>&","event_id":"\u00e9\u001F","issued_at":"2026-01-15T10:30:00.50Z","nonce":"\ud83d\udd11","payload": "\u0062\/&" "#;
    let canonical = "{\"event_type\":\"a/b\\t\u{2028}<>&\",\"event_id\":\"é\\u001f\",\"issued_at\":\"2026-01-15T10:30:00.5Z\",\"nonce\":\"🔑\",\"payload\":\"\\u0062\\/\\u0026\"}";
    let verified = check(&signed(members, canonical)).unwrap();
    assert_eq!(verified.payload.get(), r#""\u0062\/&""#);
    assert_eq!((verified.event_type.as_str(), verified.nonce.as_str()), ("a/b\t\u{2028}<>&", "🔑"));
}

#[test]
fn members_of_the_wrong_type_or_twice_under_any_spelling_are_malformed() {
    assert!(check(&signed(MEMBERS, CANONICAL)).is_ok());
    for (from, to) in [
        ("\"e\"", "7"),
        ("\"e\"", "null"),
        ("\"e\"", "\"\""),
        ("\"e\"", "\"\\ud800\""),
        ("\"n\"", "[\"n\"]"),
        ("\"event_id\"", "\"Event_id\""),
        ("\"event_id\"", "\"event\\u005fid\":\"e\",\"event_id\""),
        ("\"event_id\"", "\"x\":1,\"x\":2,\"event_id\""),
        ("\"payload\":", "\"load\":"),
        ("\"<x>\"", "\"\\udc00\""),
        ("1.0", "01"),
    ] {
        let envelope = signed(&MEMBERS.replacen(from, to, 1), CANONICAL);
        assert_eq!(check(&envelope).unwrap_err(), Rejection::Malformed, "{to}");
    }
    let good = signed(MEMBERS, CANONICAL);
    for bad in [format!("{good}x"), format!("\u{feff}{good}"), format!("[{good}]")] {
        assert_eq!(check(&bad).unwrap_err(), Rejection::Malformed, "{bad}");
    }
    let mut invalid_utf8 = good.into_bytes();
    let at = invalid_utf8.iter().position(|byte| *byte == b'<').unwrap();
    invalid_utf8[at] = 0xff;
    let now = "2026-01-15T10:30:05Z".parse().unwrap();
    assert_eq!(verify(&invalid_utf8, &keys(), now, &BTreeSet::new()).unwrap_err(), Rejection::Malformed);
}

#[test]
fn signatures_are_standard_base64_of_64_bytes() {
    let good = signed(MEMBERS, CANONICAL);
    let signature = good.rsplit('"').nth(1).unwrap().to_owned();
    let url_safe = signature.replace('+', "-").replace('/', "_");
    for bad in [
        signature.trim_end_matches('=').to_owned(),
        format!("{signature}\\n"),
        format!(" {signature}"),
        STANDARD.encode([STANDARD.decode(&signature).unwrap(), vec![0]].concat()),
        STANDARD.encode([0; 64]),
        if url_safe == signature { "-".to_owned() } else { url_safe },
    ] {
        let envelope = good.replace(&signature, &bad);
        assert_eq!(check(&envelope).unwrap_err(), Rejection::Signature, "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let now = Timestamp::UNIX_EPOCH;
        prop_assert!(verify(&bytes, &keys(), now, &BTreeSet::new()).is_err());
    }

    #[test]
    fn no_text_like_an_envelope_makes_it_panic(text in r#"[{}\[\]",:\\u0-9a-e \u{e9}\u{2028}]{0,200}"#) {
        prop_assert!(check(&text).is_err());
        let with_member = format!("{{{MEMBERS},\"x\":{text}}}");
        prop_assert!(check(&with_member).is_err());
    }

    #[test]
    fn a_changed_byte_never_verifies_to_another_content(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let good = signed(MEMBERS, CANONICAL);
        let mut changed = good.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        let now = "2026-01-15T10:30:05Z".parse().unwrap();
        if let Ok(verified) = verify(&changed, &keys(), now, &BTreeSet::new()) {
            prop_assert_eq!(changed, good.as_bytes());
            prop_assert_eq!(verified.payload.get(), r#"{"a":[1.0,"<x>"]}"#);
        }
    }
}
