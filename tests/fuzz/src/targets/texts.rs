//! Single values: what is read is written as it is read again, and what is refused does not show in the error where it
//! may be a key. And the configuration.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue};
use plexd_core::config::Config;
use plexd_core::control::backoff::retry_after;
use plexd_core::identity::Token;
use plexd_core::types::{
    Checksum, Endpoint, NodeId, NodeSecretKey, PresharedKey, PrivateKey, PublicKey, SigningPublicKey,
};

use super::{assert_message, now};

/// One text, read as every kind of value.
pub fn texts(data: &[u8]) {
    header(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    round_trip::<NodeId>(text);
    round_trip::<Endpoint>(text);
    round_trip::<Checksum>(text);
    keys(text);
    match Token::parse(text) {
        Ok(token) => {
            assert_eq!(Token::parse(token.as_str()), Ok(token.clone()));
            assert!((1..=512).contains(&token.as_str().len()));
            assert_eq!(format!("{token:?}"), "Token(..)");
        }
        Err(error) => assert_message(&error.to_string()),
    }
}

fn round_trip<T: FromStr<Err: Debug + Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => assert_eq!(value.to_string().parse::<T>().ok(), Some(value)),
        Err(error) => assert_message(&error.to_string()),
    }
}

fn keys(text: &str) {
    let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() == 32);
    let is_key = bytes.is_some();
    let public = PublicKey::from_base64(text);
    assert_eq!(public.is_ok(), is_key);
    assert_eq!(public.ok().map(|key| key.to_string()), bytes.map(|bytes| STANDARD.encode(bytes)));
    assert_eq!(PrivateKey::from_base64(text).is_ok(), is_key);
    assert_eq!(NodeSecretKey::parse(text).ok().map(|key| key.as_str() == text), is_key.then_some(true));
    let shared = PresharedKey::from_base64(text);
    assert_eq!(shared.as_ref().ok().map(|key| key.to_base64().to_string()), public_text(text));
    match SigningPublicKey::from_base64(text) {
        Ok(key) => assert_eq!(SigningPublicKey::from_base64(&key.to_string()), Ok(key)),
        Err(error) => assert_message(&error.to_string()),
    }
}

fn public_text(text: &str) -> Option<String> {
    PublicKey::from_base64(text).ok().map(|key| key.to_string())
}

fn header(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let headers = HeaderMap::from_iter([(RETRY_AFTER, value)]);
    if let Some(delay) = retry_after(&headers, now()) {
        assert!((1..=3600).contains(&delay.as_secs()), "{delay:?}");
    }
}

/// A configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::from_text(text) {
        Ok(config) => {
            assert_eq!(config.api.scheme(), "https");
            assert!((1..=15).contains(&config.mesh.interface.len()) && config.data_dir.is_absolute());
            assert!((1280..=9000).contains(&config.mesh.mtu));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
