//! Secret values as `GET /v1/nodes/{node_id}/secrets/{key}` returns them: AES-256-GCM under the node secret key,
//! a fresh 12-byte nonce each time, the 16-byte tag at the end of the ciphertext, no associated data.

use aes_gcm::aead::Aead as _;
use aes_gcm::{Aes256Gcm, Key, KeyInit as _, Nonce};

use crate::encoding;

/// A secret value encrypted for one node; both parts are standard base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Ciphertext with the tag at its end.
    pub ciphertext: String,
    /// The 12 bytes of the nonce.
    pub nonce: String,
}

/// Encrypts `value` under `key` with a fresh nonce.
#[must_use]
pub fn seal(key: &[u8; 32], value: &str) -> Sealed {
    seal_with_nonce(key, &encoding::random::<12>(), value)
}

fn seal_with_nonce(key: &[u8; 32], nonce: &[u8; 12], value: &str) -> Sealed {
    let ciphertext = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key))
        .encrypt(&Nonce::from(*nonce), value.as_bytes())
        .expect("AES-GCM fails only beyond 64 GiB, and a value is bounded by the admin API's body limit");
    Sealed { ciphertext: encoding::base64(&ciphertext), nonce: encoding::base64(nonce) }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::Deserialize;

    use super::{seal, seal_with_nonce};
    use crate::encoding::key32;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        node_secret_key: String,
        ciphertext: String,
        nonce: String,
        plaintext: Option<String>,
        expect: String,
    }

    #[test]
    fn sealing_gives_the_bytes_of_the_vectors() {
        let dir = std::env::var("PLEXD_VECTORS")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors").to_owned());
        let text = std::fs::read_to_string(format!("{dir}/secrets.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        let mut sealed = 0;
        for case in cases.iter().filter(|case| case.expect == "plaintext") {
            let key = key32(&case.node_secret_key).unwrap();
            let nonce: [u8; 12] = STANDARD.decode(&case.nonce).unwrap().try_into().unwrap();
            let made = seal_with_nonce(&key, &nonce, case.plaintext.as_deref().unwrap());
            assert_eq!(made.ciphertext, case.ciphertext, "{}", case.name);
            assert_eq!(made.nonce, case.nonce, "{}", case.name);
            sealed += 1;
        }
        assert!(sealed > 0, "the vectors hold no case to seal");
    }

    #[test]
    fn every_sealing_takes_a_fresh_nonce() {
        let key = [7; 32];
        assert_ne!(seal(&key, "value").nonce, seal(&key, "value").nonce);
    }
}
