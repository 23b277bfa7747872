//! The canonical bytes against vectors made by another implementation.

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use plexd_devcp::envelope::{Draft, canonical, seal};
use serde::Deserialize;
use serde_json::value::RawValue;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

#[derive(Deserialize)]
struct Case {
    name: String,
    current_key: String,
    previous_key: Option<String>,
    envelope: String,
    canonical: Option<String>,
    expect: String,
}

#[derive(Deserialize)]
struct Envelope {
    event_type: String,
    event_id: String,
    issued_at: String,
    nonce: String,
    payload: Box<RawValue>,
    signature: String,
}

impl Envelope {
    fn draft(&self) -> Draft<'_> {
        Draft {
            event_type: &self.event_type,
            event_id: &self.event_id,
            issued_at: &self.issued_at,
            nonce: &self.nonce,
            payload: &self.payload,
        }
    }
}

fn verifies(key: &str, text: &str, signature: &str) -> bool {
    let key = VerifyingKey::from_bytes(&STANDARD.decode(key).unwrap().try_into().unwrap()).unwrap();
    let signature = Signature::from_slice(&STANDARD.decode(signature).unwrap()).unwrap();
    key.verify_strict(text.as_bytes(), &signature).is_ok()
}

fn accepted() -> Vec<Case> {
    let dir = std::env::var("PLEXD_VECTORS")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors").to_owned());
    let text = std::fs::read_to_string(format!("{dir}/envelopes.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    let accepted: Vec<Case> = cases.into_iter().filter(|case| case.expect == "accept").collect();
    assert!(!accepted.is_empty(), "the vectors hold no case to accept");
    accepted
}

#[test]
fn canonical_bytes_are_those_of_the_vectors() {
    for case in accepted() {
        let envelope: Envelope = serde_json::from_str(&case.envelope).unwrap();
        let text = canonical(&envelope.draft());
        if let Some(wanted) = &case.canonical {
            assert_eq!(&text, wanted, "{}", case.name);
        }
        let keys = [Some(case.current_key), case.previous_key];
        let signed = keys.into_iter().flatten().any(|key| verifies(&key, &text, &envelope.signature));
        assert!(signed, "{}: the vector's signature is not over these bytes", case.name);
    }
}

#[test]
fn a_sealed_envelope_is_one_line_and_verifies_over_its_canonical_bytes() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let public = STANDARD.encode(key.verifying_key().as_bytes());
    for case in accepted() {
        let given: Envelope = serde_json::from_str(&case.envelope).unwrap();
        let text = seal(&given.draft(), &key);
        assert!(!text.contains(['\n', '\r']), "{}", case.name);
        let sealed: Envelope = serde_json::from_str(&text).unwrap();
        assert!(verifies(&public, &canonical(&sealed.draft()), &sealed.signature), "{}", case.name);
        assert_eq!(canonical(&sealed.draft()), canonical(&given.draft()), "{}", case.name);
    }
}
