//! Keys: WireGuard's three kinds, the control plane's signing key, and the node secret key. Secret ones are zeroized
//! on drop, redact their `Debug` and have no `Display`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of every key, in bytes.
const LENGTH: usize = 32;

/// Why a text is not a key. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not standard base64.
    #[error("is not base64")]
    NotBase64,
    /// Decodes to another number of bytes.
    #[error("has {0} bytes, not 32")]
    Length(usize),
    /// 32 bytes that are no point of the curve.
    #[error("is not an Ed25519 public key")]
    NotAPoint,
}

fn decode(text: &str) -> Result<Zeroizing<[u8; LENGTH]>, KeyError> {
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| KeyError::NotBase64)?);
    let array = <[u8; LENGTH]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Length(bytes.len()))?;
    Ok(Zeroizing::new(array))
}

/// A WireGuard private key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; LENGTH]);

impl PrivateKey {
    /// Generates a key from the system's random source.
    ///
    /// # Errors
    /// If the system has no random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut key = Self([0; LENGTH]);
        getrandom::fill(&mut key.0)?;
        // Clamped as wg(8) does, so that what the kernel reads back is what was set.
        key.0[0] &= 0b1111_1000;
        key.0[31] = (key.0[31] & 0b0111_1111) | 0b0100_0000;
        Ok(key)
    }

    /// Parses standard base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }

    /// Returns the key as base64, for the key file only.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// Returns the public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// Returns the bytes, for the kernel only.
    pub fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A WireGuard public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; LENGTH]);

impl PublicKey {
    /// Parses standard base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }

    /// Takes the bytes as the kernel gives them.
    pub fn from_bytes(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A WireGuard preshared key. Compares in constant time.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; LENGTH]);

impl PresharedKey {
    /// Parses standard base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text)?))
    }

    /// Takes the bytes as the kernel gives them.
    pub fn from_bytes(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    /// Returns the key as base64, for the state on disk only.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// Returns the bytes, for the kernel only.
    pub fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// The control plane's Ed25519 key, with which it signs events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SigningPublicKey(ed25519_dalek::VerifyingKey);

impl SigningPublicKey {
    /// Parses standard base64 of 32 bytes that are a point of the curve, and not a weak one.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(&*decode(text)?).map_err(|_| KeyError::NotAPoint)?;
        if key.is_weak() {
            return Err(KeyError::NotAPoint);
        }
        Ok(Self(key))
    }

    /// Returns whether `signature` is this key's over `message`, by the strict rules (no malleable or weak points).
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for SigningPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for SigningPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningPublicKey({self})")
    }
}

/// The node secret key: as text the credential towards the control plane, as bytes the AES-256-GCM key of the node's
/// secrets (contract, section 2).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NodeSecretKey {
    text: String,
    key: [u8; LENGTH],
    /// Made once, as every request has it; its memory is wiped with the last copy.
    #[zeroize(skip)]
    bearer: HeaderValue,
}

impl NodeSecretKey {
    /// Parses the text as received at registration: standard base64 of 32 bytes.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let key = *decode(text)?;
        let bearer = Bytes::from_owner(Zeroizing::new(format!("Bearer {text}").into_bytes()));
        // Base64 is always a header value.
        let mut bearer = HeaderValue::from_maybe_shared(bearer).map_err(|_| KeyError::NotBase64)?;
        bearer.set_sensitive(true);
        Ok(Self { text: text.to_owned(), key, bearer })
    }

    /// Returns the value of the `Authorization` header, marked as sensitive.
    pub fn bearer(&self) -> HeaderValue {
        self.bearer.clone()
    }

    /// Returns the text exactly as received, for the identity file and to keep it out of messages.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the AES-256-GCM key.
    pub fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.key
    }
}

impl fmt::Debug for NodeSecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSecretKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_survives_its_text_form_and_has_a_public_key() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_base64(&key.to_base64()).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(PublicKey::from_base64(&key.public().to_string()), Ok(key.public()));
    }

    #[test]
    fn the_public_key_is_the_one_of_rfc_7748() {
        // RFC 7748, section 6.1, Alice.
        let key = PrivateKey::from_base64("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        assert_eq!(key.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn keys_of_another_length_are_refused_with_their_length() {
        let short = STANDARD.encode([7; 31]);
        assert_eq!(PublicKey::from_base64(&short), Err(KeyError::Length(31)));
        assert_eq!(PresharedKey::from_base64("!").unwrap_err(), KeyError::NotBase64);
        assert_eq!(NodeSecretKey::parse(&short).unwrap_err(), KeyError::Length(31));
    }

    #[test]
    fn weak_signing_keys_are_refused() {
        let identity = STANDARD.encode([[1].as_slice(), &[0; 31]].concat());
        assert_eq!(SigningPublicKey::from_base64(&identity), Err(KeyError::NotAPoint));
    }

    #[test]
    fn secret_keys_do_not_show_in_debug() {
        let text = STANDARD.encode([7; 32]);
        let shown = format!(
            "{:?} {:?} {:?}",
            PrivateKey::from_base64(&text).unwrap(),
            PresharedKey::from_base64(&text).unwrap(),
            NodeSecretKey::parse(&text).unwrap()
        );
        assert_eq!(shown, "PrivateKey(..) PresharedKey(..) NodeSecretKey(..)");
    }
}
