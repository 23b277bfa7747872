//! Answers of the other endpoints: registration, key rotation, heartbeat, endpoints of peers, secrets, refusals.

use aes_gcm::aead::Aead as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use plexd_core::control::client::Detail;
use plexd_core::control::convert::{self, Registration};
use plexd_core::control::secret::decrypt;
use plexd_core::control::wire::{
    self, EndpointResponse, HeartbeatResponse, KeyRotateResponse, PeerEndpoint, RegisterResponse,
    SecretResponse,
};
use plexd_core::state::Desired;
use plexd_core::types::{Endpoint, NodeId, PublicKey};

use super::{
    BASE, IDENTITY, assert_bounded, assert_message, assert_peers_stored, assert_secrets_hidden, assert_sound,
    shown_registration, wanted,
};

fn registration(text: &[u8]) -> Result<Registration, String> {
    let response: RegisterResponse<'_> = wire::parse_object(text)?;
    convert::registration(&response)
}

/// The answer to a registration.
pub fn register(data: &[u8]) {
    match registration(data) {
        Ok(registration) => {
            assert_bounded(&registration.rejected_peers);
            assert_peers_stored(&registration.peers);
            assert_eq!(registration.node_secret_key.as_str().len(), 44);
        }
        Err(reason) => assert_message(&reason),
    }
    assert_secrets_hidden(data, |planted| match registration(planted) {
        Ok(registration) => shown_registration(&registration),
        Err(reason) => reason,
    });
}

fn rotated(text: &[u8]) -> Result<(Desired, String), String> {
    let response: KeyRotateResponse<'_> = wire::parse_object(text)?;
    let peers = convert::peers(&response.updated_peers);
    assert_bounded(&peers.rejected);
    let shown = format!("{peers:?}");
    Ok((BASE.rotated_to(PublicKey::from_bytes([5; 32]), peers.accepted), shown))
}

/// The answer to a rotation of the node's own key.
pub fn rotate(data: &[u8]) {
    match rotated(data) {
        Ok((desired, _)) => {
            assert_sound(&desired);
            let again = rotated(data).expect("as before").0;
            assert!(again.is_same_as(&desired));
            wanted(&desired);
        }
        Err(reason) => assert_message(&reason),
    }
    assert_secrets_hidden(data, |planted| match rotated(planted) {
        Ok((desired, shown)) => format!("{desired:?} {shown} {:?}", wanted(&desired)),
        Err(reason) => reason,
    });
}

/// The answer to a heartbeat.
pub fn heartbeat(data: &[u8]) {
    match wire::parse_object::<HeartbeatResponse>(data) {
        Ok(answer) => assert_eq!(wire::parse_object(data), Ok(answer)),
        Err(reason) => assert_message(&reason),
    }
}

/// The answer to a report of the node's endpoint.
pub fn endpoint(data: &[u8]) {
    match wire::parse_object::<EndpointResponse<'_>>(data) {
        Ok(answer) => {
            let endpoints = convert::peer_endpoints(&answer.peer_endpoints);
            assert_bounded(&endpoints.rejected);
            let mut accepted = endpoints.accepted.iter();
            for element in &answer.peer_endpoints {
                let Ok(told) = wire::parse_object::<PeerEndpoint>(element.text().as_bytes()) else {
                    continue;
                };
                let endpoint = told.endpoint.map(|text| text.parse::<Endpoint>()).transpose();
                let id = told.peer_id.or(told.id).and_then(|id| id.parse::<NodeId>().ok());
                if let (Some(id), Ok(endpoint)) = (id, endpoint) {
                    let moved = accepted.next().expect("what is valid is accepted");
                    assert_eq!((&moved.id, &moved.endpoint), (&id, &endpoint));
                }
            }
            assert_eq!(accepted.next(), None);
        }
        Err(reason) => assert_message(&reason),
    }
}

/// The answer to a request for a secret. What decrypts is encrypted again: to the same bytes, or it was not what the
/// control plane encrypted.
pub fn secret(data: &[u8]) {
    let secret = match wire::parse_object::<SecretResponse>(data) {
        Ok(secret) => secret,
        Err(reason) => return assert_message(&reason),
    };
    // As it came, and encrypted by who has the key.
    let key = &IDENTITY.secret_key;
    let cipher = Aes256Gcm::new(key.as_bytes().into());
    let encrypt = |nonce: [u8; 12], text: &[u8]| {
        STANDARD.encode(cipher.encrypt(&Nonce::from(nonce), text).expect("a short text"))
    };
    match decrypt(key, &secret) {
        Ok(text) => {
            let nonce = STANDARD.decode(&secret.nonce).expect("base64").try_into().expect("12 bytes");
            assert_eq!(encrypt(nonce, text.as_bytes()), secret.ciphertext);
        }
        Err(error) => assert_message(&error.to_string()),
    }
    let nonce = [3; 12];
    let ciphertext = encrypt(nonce, secret.ciphertext.as_bytes());
    let sealed = SecretResponse { nonce: STANDARD.encode(nonce), ciphertext, ..secret.clone() };
    let text = decrypt(key, &sealed).expect("what the key encrypted");
    assert_eq!(*text, secret.ciphertext);
}

/// The body of a refusal: what is told of it is one short line, without the credential that was sent.
pub fn refusal(data: &[u8]) {
    let credential = "hunter2hunter2";
    assert_message(&Detail::of(data, credential).to_string());
    let with_credential = String::from_utf8_lossy(data).replace("CREDENTIAL", credential);
    let told = Detail::of(with_credential.as_bytes(), credential).to_string();
    assert!(!told.contains(credential), "{told}");
    assert_message(&told);
}
