//! The control plane's endpoints as a table: method, path, and how large an answer may be.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a path segment keeps unencoded: RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Largest answer of the endpoints that answer with many peers or entries, in bytes (contract, section 2).
const LARGE: usize = 64 * 1024 * 1024;
/// Largest binary.
const BINARY: usize = 256 * 1024 * 1024;
/// Largest answer of the others.
const SMALL: usize = 1024 * 1024;

/// An endpoint of the control plane.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// HTTP method.
    pub(super) method: &'static str,
    /// Path with names in braces.
    path: &'static str,
    /// Largest answer, in bytes.
    pub(super) max_answer: usize,
}

const fn call(method: &'static str, path: &'static str, max_answer: usize) -> Call {
    Call { method, path, max_answer }
}

pub(super) const REGISTER: Call = call("POST", "/v1/register", LARGE);
pub(super) const EVENTS: Call = call("GET", "/v1/nodes/{node_id}/events", SMALL);
pub(super) const HEARTBEAT: Call = call("POST", "/v1/nodes/{node_id}/heartbeat", SMALL);
pub(super) const DEREGISTER: Call = call("POST", "/v1/nodes/{node_id}/deregister", SMALL);
pub(super) const ROTATE: Call = call("POST", "/v1/keys/rotate", LARGE);
pub(super) const CAPABILITIES: Call = call("PUT", "/v1/nodes/{node_id}/capabilities", SMALL);
pub(super) const ENDPOINT: Call = call("PUT", "/v1/nodes/{node_id}/endpoint", SMALL);
pub(super) const STATE: Call = call("GET", "/v1/nodes/{node_id}/state", LARGE);
pub(super) const DRIFT: Call = call("POST", "/v1/nodes/{node_id}/drift", SMALL);
pub(super) const SECRET: Call = call("GET", "/v1/nodes/{node_id}/secrets/{key}", SMALL);
pub(super) const REPORT: Call = call("POST", "/v1/nodes/{node_id}/report", SMALL);
pub(super) const ACK: Call = call("POST", "/v1/nodes/{node_id}/executions/{execution_id}/ack", SMALL);
pub(super) const RESULT: Call = call("POST", "/v1/nodes/{node_id}/executions/{execution_id}/result", SMALL);
pub(super) const METRICS: Call = call("POST", "/v1/nodes/{node_id}/metrics", SMALL);
pub(super) const LOGS: Call = call("POST", "/v1/nodes/{node_id}/logs", SMALL);
pub(super) const AUDIT: Call = call("POST", "/v1/nodes/{node_id}/audit", SMALL);
pub(super) const ARTIFACT: Call = call("GET", "/v1/artifacts/plexd/{version}/{os}/{arch}", BINARY);

impl Call {
    /// Returns the path with `values` in place of the names, in order, each as one encoded segment. `None` if one of
    /// them is `.` or `..`, which no URL can hold as a segment.
    pub(super) fn path(self, values: &[&str]) -> Option<String> {
        if values.iter().any(|value| matches!(*value, "." | ".." | "")) {
            return None;
        }
        let mut values = values.iter();
        let segments = self.path.split('/').map(|segment| match values.as_slice() {
            [value, rest @ ..] if segment.starts_with('{') => {
                values = rest.iter();
                utf8_percent_encode(value, SEGMENT).to_string()
            }
            _ => segment.to_owned(),
        });
        Some(segments.collect::<Vec<_>>().join("/"))
    }

    /// Returns whether a 404 says that the node is unknown (contract, section 2), and not only a thing of its own.
    pub(super) fn not_found_means_identity(self) -> bool {
        let is_of_node = self.path.starts_with("/v1/nodes/") || self == ROTATE;
        is_of_node && !matches!(self, SECRET | ACK | RESULT)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_encoded_segment() {
        for (key, segment) in [
            ("tls-cert", "tls-cert"),
            ("a/b", "a%2Fb"),
            ("../../etc", "..%2F..%2Fetc"),
            ("a?b#c%d é", "a%3Fb%23c%25d%20%C3%A9"),
            ("{key}", "%7Bkey%7D"),
        ] {
            let path = SECRET.path(&["n_1", key]);
            assert_eq!(path, Some(format!("/v1/nodes/n_1/secrets/{segment}")));
            let url = reqwest::Url::parse(&format!("https://h{}", path.unwrap_or_default())).unwrap();
            assert_eq!(url.path(), format!("/v1/nodes/n_1/secrets/{segment}"));
        }
        for key in [".", "..", ""] {
            assert_eq!(SECRET.path(&["n_1", key]), None);
        }
    }

    #[test]
    fn calls_are_named_without_what_they_are_about() {
        assert_eq!(SECRET.to_string(), "GET /v1/nodes/{node_id}/secrets/{key}");
        assert_eq!(ROTATE.path(&[]).as_deref(), Some("/v1/keys/rotate"));
    }
}
