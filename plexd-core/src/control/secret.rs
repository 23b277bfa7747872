//! Decryption of secret values: AES-256-GCM under the node secret key, nonce of 12 bytes, tag of 16 at the end of the
//! ciphertext, no associated data.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::types::NodeSecretKey;

use super::wire::SecretResponse;

/// Length of the nonce, in bytes.
const NONCE: usize = 12;

/// Why a secret cannot be read. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The nonce is not base64 of 12 bytes.
    #[error("cannot decrypt the secret: its nonce is not base64 of {NONCE} bytes")]
    Nonce,
    /// The ciphertext is not base64.
    #[error("cannot decrypt the secret: its ciphertext is not base64")]
    Ciphertext,
    /// Encrypted with another key or nonce, or changed.
    #[error("cannot decrypt the secret: it was encrypted for another key, or changed")]
    Authentication,
    /// The plaintext is not text.
    #[error("cannot use the secret: its plaintext is not UTF-8")]
    NotUtf8,
}

/// Decrypts a secret as the control plane answers it.
pub fn decrypt(key: &NodeSecretKey, secret: &SecretResponse) -> Result<Zeroizing<String>, SecretError> {
    let nonce: [u8; NONCE] = STANDARD
        .decode(&secret.nonce)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(SecretError::Nonce)?;
    let mut buffer = STANDARD.decode(&secret.ciphertext).map_err(|_| SecretError::Ciphertext)?;
    let decrypted =
        Aes256Gcm::new(key.as_bytes().into()).decrypt_in_place(&Nonce::from(nonce), b"", &mut buffer);
    let plaintext = Zeroizing::new(buffer);
    decrypted.map_err(|_| SecretError::Authentication)?;
    let text = std::str::from_utf8(&plaintext).map_err(|_| SecretError::NotUtf8)?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::control::test_vectors;

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
    fn every_vector_decrypts_or_fails_as_it_says() {
        let cases: Vec<Case> = test_vectors::read("secrets.json");
        assert!(!cases.is_empty());
        for case in cases {
            let secret = SecretResponse {
                key: "k".into(),
                ciphertext: case.ciphertext,
                nonce: case.nonce,
                version: 1,
            };
            let plaintext = NodeSecretKey::parse(&case.node_secret_key)
                .ok()
                .and_then(|key| decrypt(&key, &secret).ok())
                .map(|text| text.as_str().to_owned());
            match case.expect.as_str() {
                "plaintext" => assert_eq!(plaintext, case.plaintext, "{}", case.name),
                "error" => assert_eq!(plaintext, None, "{}", case.name),
                other => panic!("{}: unknown expectation {other}", case.name),
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let key = NodeSecretKey::parse(&STANDARD.encode([7; 32])).unwrap();
        let error = |nonce: &str, ciphertext: &str| {
            let secret = SecretResponse {
                key: "k".into(),
                ciphertext: ciphertext.into(),
                nonce: nonce.into(),
                version: 1,
            };
            decrypt(&key, &secret).unwrap_err()
        };
        assert_eq!(error("AAAA", ""), SecretError::Nonce);
        assert_eq!(error("AAAAAAAAAAAAAAAA", "*"), SecretError::Ciphertext);
        assert_eq!(error("AAAAAAAAAAAAAAAA", ""), SecretError::Authentication);
    }
}
