//! One entry of the state as readers get it. Its texts are rendered when it arrives, never when it is asked for; a
//! payload is copied byte for byte.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use plexd_proto::node::v1::{DataEntry, ReportEntry, SecretRef};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A text and the entity tag it goes out with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The JSON text.
    pub body: Bytes,
    /// Value of the `ETag` header.
    pub etag: HeaderValue,
}

impl Rendered {
    /// Tags `body` by its content.
    pub(crate) fn by_content(body: Bytes) -> Self {
        let etag = tag(Sha256::digest(&body).as_ref());
        Self { body, etag }
    }
}

/// A data entry, a secret's name or a report entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The version, as the entry's owner counts.
    pub version: i64,
    /// Data and secrets: the place in the control plane's order. Reports: the revision of the write.
    pub place: u64,
    /// What a list says of it.
    pub summary: Bytes,
    /// What a read of it answers; nothing for secrets, whose values are not here.
    pub full: Rendered,
}

impl Entry {
    pub(crate) fn of_data(entry: &DataEntry) -> Self {
        Self {
            key: entry.key.as_str().into(),
            version: entry.version,
            place: entry.position,
            summary: summary(&entry.key, entry.version, Some(&entry.content_type)),
            full: full(&entry.key, &entry.content_type, &entry.payload, entry.version, &entry.updated_at),
        }
    }

    pub(crate) fn of_secret(secret: &SecretRef) -> Self {
        Self {
            key: secret.key.as_str().into(),
            version: secret.version,
            place: secret.position,
            summary: summary(&secret.key, secret.version, None),
            full: Rendered { body: Bytes::new(), etag: version_tag(secret.version) },
        }
    }

    pub(crate) fn of_report(entry: &ReportEntry) -> Self {
        Self {
            key: entry.key.as_str().into(),
            version: entry.version,
            place: entry.revision,
            summary: summary(&entry.key, entry.version, None),
            full: full(&entry.key, &entry.content_type, &entry.payload, entry.version, &entry.updated_at),
        }
    }
}

/// Renders one metadata value.
pub(crate) fn metadata_value(key: &str, value: &str) -> Rendered {
    let mut out = Vec::with_capacity(key.len() + value.len() + 24);
    out.extend_from_slice(b"{\"key\":");
    json(&mut out, key);
    out.extend_from_slice(b",\"value\":");
    json(&mut out, value);
    out.push(b'}');
    Rendered::by_content(exact(out))
}

/// Returns the entity tag of an entry's version.
pub(crate) fn version_tag(version: i64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).expect("a quoted number is a header value")
}

/// Returns the entity tag of a digest: its first 128 bits.
pub(crate) fn tag(digest: &[u8]) -> HeaderValue {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(34);
    text.push('"');
    for byte in digest.iter().take(16) {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text.push('"');
    HeaderValue::from_str(&text).expect("quoted hexadecimal digits are a header value")
}

/// Appends `value` as compact JSON.
pub(crate) fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("strings and numbers always serialise, and memory takes them");
}

fn summary(key: &str, version: i64, content_type: Option<&str>) -> Bytes {
    let mut out = Vec::with_capacity(key.len() + content_type.map_or(0, str::len) + 64);
    out.extend_from_slice(b"{\"key\":");
    json(&mut out, key);
    out.extend_from_slice(b",\"version\":");
    json(&mut out, &version);
    if let Some(content_type) = content_type {
        out.extend_from_slice(b",\"content_type\":");
        json(&mut out, content_type);
    }
    out.push(b'}');
    exact(out)
}

fn full(key: &str, content_type: &str, payload: &[u8], version: i64, updated_at: &str) -> Rendered {
    let fixed = key.len() + content_type.len() + updated_at.len() + 96;
    let mut out = Vec::with_capacity(fixed + payload.len());
    out.extend_from_slice(b"{\"key\":");
    json(&mut out, key);
    out.extend_from_slice(b",\"content_type\":");
    json(&mut out, content_type);
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(if payload.is_empty() { b"null" } else { payload });
    out.extend_from_slice(b",\"version\":");
    json(&mut out, &version);
    out.extend_from_slice(b",\"updated_at\":");
    json(&mut out, updated_at);
    out.push(b'}');
    Rendered { body: exact(out), etag: version_tag(version) }
}

/// Gives back the room that was reserved and not needed: thousands of these stay in memory.
pub(super) fn exact(text: Vec<u8>) -> Bytes {
    Bytes::from(text.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_entry_reads_as_the_guide_shows_it() {
        let entry = Entry::of_data(&DataEntry {
            key: "routes.json".into(),
            content_type: "application/json".into(),
            payload: Bytes::from_static(b"{ \"default_backend\": \"10.0.0.5:8080\" }"),
            version: 1,
            updated_at: "2025-06-01T12:34:56Z".into(),
            position: 7,
        });
        assert_eq!(
            entry.full.body,
            r#"{"key":"routes.json","content_type":"application/json","payload":{ "default_backend": "10.0.0.5:8080" },"version":1,"updated_at":"2025-06-01T12:34:56Z"}"#
        );
        assert_eq!(entry.summary, r#"{"key":"routes.json","version":1,"content_type":"application/json"}"#);
        assert_eq!(entry.full.etag, "\"1\"");
        assert_eq!(entry.place, 7);
    }

    #[test]
    fn payloads_keep_every_byte() {
        for payload in
            ["1e400", "1.0", "\"\\u0041\"", "{\"b\":1,\"a\":2,\"b\":3}", "[ 1,\n\t2 ]", "-0", "null"]
        {
            let entry = Entry::of_report(&ReportEntry { payload: payload.into(), ..ReportEntry::default() });
            let expected = format!(
                "{{\"key\":\"\",\"content_type\":\"\",\"payload\":{payload},\"version\":0,\"updated_at\":\"\"}}"
            );
            assert_eq!(entry.full.body, expected);
        }
    }

    #[test]
    fn keys_are_escaped_as_json() {
        let entry = Entry::of_secret(&SecretRef { key: "a\"b\\ü/\u{1}".into(), version: 2, position: 0 });
        assert_eq!(entry.summary, r#"{"key":"a\"b\\ü/\u0001","version":2}"#);
        assert_eq!(metadata_value("k", "v\n").body, r#"{"key":"k","value":"v\n"}"#);
    }

    #[test]
    fn tags_by_content_differ_when_the_content_does() {
        let one = metadata_value("k", "1");
        assert_eq!(one, metadata_value("k", "1"));
        assert_ne!(one.etag, metadata_value("k", "2").etag);
        assert_eq!(one.etag.len(), 34);
    }
}
