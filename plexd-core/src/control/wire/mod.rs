//! The JSON of the control plane's endpoints: member names, order and what is left out exactly as the types document
//! has them. What is received is read leniently as contract, section 2 says (unknown members ignored, absent or null
//! lists and maps empty) and element by element where one bad element must not spoil the rest. Nothing is validated
//! here; [`super::convert`] does that.

mod executions;
mod list;
mod node;
mod observe;
#[cfg(test)]
mod properties;
mod register;
mod state;

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use list::{list, map};

pub use executions::{ExecutionAck, ExecutionResult, TriggeredBy};
pub use list::MAX_ELEMENTS;
pub use node::{
    BridgeInfo, DriftCorrection, DriftReport, EndpointReport, EndpointResponse, HeartbeatRequest,
    HeartbeatResponse, IngressInfo, KeyRotateRequest, KeyRotateResponse, MeshInfo, NatInfo, PeerEndpoint,
    ReportEntry, ReportSyncRequest, SiteToSiteInfo, UserAccessInfo,
};
pub use observe::{AuditEntry, LogEntry, MetricPoint};
pub use register::{
    ActionInfo, ActionParam, BinaryInfo, CapabilitiesPayload, HookInfo, NodeMetadata, Peer, RegisterRequest,
    RegisterResponse,
};
pub use state::{DataEntry, Policy, PolicyRule, SecretRef, SecretResponse, SigningKeys, StateResponse};

/// A secret as text: a token, a node secret key, a preshared key. Zeroized on drop, not shown by `Debug`.
#[derive(Clone, Default)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Returns the secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// A JSON value as received, borrowed from the body. Not shown by `Debug`: it may hold key material.
#[derive(Clone, Copy, Deserialize)]
#[serde(transparent)]
pub struct Raw<'a>(#[serde(borrow)] &'a RawValue);

impl<'a> Raw<'a> {
    /// Returns the value's text, byte for byte.
    pub fn text(self) -> &'a str {
        self.0.get()
    }

    /// Returns a copy of the value.
    pub fn to_owned(self) -> Box<RawValue> {
        self.0.to_owned()
    }

    /// Returns whether the value is `null`.
    pub fn is_null(self) -> bool {
        self.text() == "null"
    }
}

impl fmt::Debug for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raw({} bytes)", self.0.get().len())
    }
}

/// Parses JSON text. The error is [described](reason) without anything that was read.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(text).map_err(|error| reason(&error))
}

/// Parses JSON text that has to be an object: what is derived for a struct takes an array of its members as well.
pub fn parse_object<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    match text.iter().find(|byte| !b" \t\r\n".contains(byte)) {
        Some(b'{') | None => parse(text),
        Some(_) => Err("expected an object".to_owned()),
    }
}

/// Says why a text is not the JSON expected, without quoting it: what was read may be key material.
pub fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&position).unwrap_or(&text);
    let names_only = text.starts_with("missing field") || text.starts_with("duplicate field");
    match text.rsplit_once(", expected ") {
        _ if names_only => text.to_owned(),
        Some((_, expected)) if expected.starts_with("struct ") => format!("expected an object{position}"),
        Some((_, expected)) => format!("expected {expected}{position}"),
        None if error.is_data() => format!("unexpected value{position}"),
        None => format!("{text}{position}"),
    }
}

/// Reads null like an absent member.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads null and the empty text as absent.
fn or_absent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
}

/// Reads null and the empty secret as absent.
fn or_no_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretText>, D::Error> {
    Ok(Option::<SecretText>::deserialize(deserializer)?.filter(|secret| !secret.0.is_empty()))
}

/// A time as RFC 3339, in UTC, with no more of a fraction than it has.
mod time {
    use super::{Deserialize, Deserializer, Serializer, Timestamp};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|_| serde::de::Error::custom("not a time, expected an RFC 3339 time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_quote_what_was_read() {
        let error = parse::<Vec<u8>>(br#""hunter2, expected x""#).expect_err("a text is no list");
        assert_eq!(error, "expected a sequence at line 1 column 21");
        let error = parse::<Peer>(br#"{"psk":{"hunter2":1}}"#).expect_err("an object is no key");
        assert!(error.starts_with("expected a string") && !error.contains("hunter2"), "{error}");
        let error = parse::<Peer>(b"{").expect_err("truncated");
        assert_eq!(error, "EOF while parsing an object at line 1 column 1");
    }

    #[test]
    fn secrets_and_raw_values_do_not_show_in_debug() {
        let raw: Raw<'_> = serde_json::from_str(r#"{"psk":"hunter2"}"#).expect("valid");
        assert_eq!(format!("{:?} {raw:?}", SecretText::from("hunter2")), "SecretText(..) Raw(17 bytes)");
    }
}
