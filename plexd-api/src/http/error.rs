//! Everything the API answers that is not what was asked for: status and text, as the guide's table "Troubleshooting"
//! and section 6 of the contract have them. Each is `{"error": "…"}`.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use plexd_proto::node::v1::{ReportRefusal, SecretRefusal};

use super::message::{self, JSON, Response};
use crate::auth::Refusal;
use crate::core_client::CallError;

/// An answer that is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is its text, below")]
pub enum ApiError {
    InvalidKey,
    InvalidIfMatch,
    InvalidJson,
    ContentTypeRequired,
    PayloadRequired,
    PayloadTooDeep,
    ConflictingLengths,
    HeadTooLarge,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    VersionConflict,
    PayloadTooLarge,
    DecryptionFailed,
    CoreUnavailable,
    NodeNotRegistered,
    ControlPlaneUnavailable,
    StorageFailed,
    TooManyRequests,
    InsufficientStorage,
    TooManyReports,
}

impl ApiError {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: &[Self] = &[
        Self::InvalidKey,
        Self::InvalidIfMatch,
        Self::InvalidJson,
        Self::ContentTypeRequired,
        Self::PayloadRequired,
        Self::PayloadTooDeep,
        Self::ConflictingLengths,
        Self::HeadTooLarge,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::VersionConflict,
        Self::PayloadTooLarge,
        Self::DecryptionFailed,
        Self::CoreUnavailable,
        Self::NodeNotRegistered,
        Self::ControlPlaneUnavailable,
        Self::StorageFailed,
        Self::TooManyRequests,
        Self::InsufficientStorage,
        Self::TooManyReports,
    ];

    /// Returns the status and the text.
    pub fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidKey => (StatusCode::BAD_REQUEST, "invalid key"),
            Self::InvalidIfMatch => (StatusCode::BAD_REQUEST, "If-Match must be an integer"),
            Self::InvalidJson => (StatusCode::BAD_REQUEST, "invalid JSON body"),
            Self::ContentTypeRequired => (StatusCode::BAD_REQUEST, "content_type is required"),
            Self::PayloadRequired => (StatusCode::BAD_REQUEST, "payload must be valid JSON"),
            Self::PayloadTooDeep => (StatusCode::BAD_REQUEST, "payload nested too deeply"),
            Self::ConflictingLengths => {
                (StatusCode::BAD_REQUEST, "Content-Length and Transfer-Encoding exclude each other")
            }
            Self::HeadTooLarge => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "request header fields too large")
            }
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method not allowed"),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request timeout"),
            Self::VersionConflict => (StatusCode::CONFLICT, "version conflict"),
            Self::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "payload too large"),
            Self::DecryptionFailed => (StatusCode::INTERNAL_SERVER_ERROR, "decryption failed"),
            Self::CoreUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "core unavailable"),
            Self::NodeNotRegistered => (StatusCode::SERVICE_UNAVAILABLE, "node not registered"),
            Self::ControlPlaneUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "control plane unavailable"),
            Self::StorageFailed => (StatusCode::INTERNAL_SERVER_ERROR, "storage failure"),
            Self::TooManyRequests => (StatusCode::SERVICE_UNAVAILABLE, "too many requests"),
            Self::InsufficientStorage => (StatusCode::INSUFFICIENT_STORAGE, "insufficient storage"),
            Self::TooManyReports => (StatusCode::INSUFFICIENT_STORAGE, "too many report entries"),
        }
    }
}

impl ApiError {
    /// Returns the answer that says it.
    pub(super) fn into_response(self) -> Response {
        let (status, text) = self.parts();
        // The texts above need no escaping.
        let mut response = message::answer(status, Bytes::from(format!("{{\"error\":\"{text}\"}}")));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        match self {
            Self::Unauthorized => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the request is not read.
            Self::PayloadTooLarge
            | Self::RequestTimeout
            | Self::ConflictingLengths
            | Self::HeadTooLarge
            | Self::TooManyRequests => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unauthorized => Self::Unauthorized,
            Refusal::Forbidden => Self::Forbidden,
        }
    }
}

impl From<CallError<SecretRefusal>> for ApiError {
    fn from(error: CallError<SecretRefusal>) -> Self {
        match error {
            CallError::Unavailable(_) | CallError::Refused(SecretRefusal::Unspecified) => {
                Self::CoreUnavailable
            }
            CallError::Refused(
                SecretRefusal::NotPermitted | SecretRefusal::Forbidden | SecretRefusal::Unproven,
            ) => Self::Forbidden,
            CallError::Refused(SecretRefusal::NotFound) => Self::NotFound,
            CallError::Refused(SecretRefusal::ControlPlaneUnavailable) => Self::ControlPlaneUnavailable,
            CallError::Refused(SecretRefusal::DecryptionFailed) => Self::DecryptionFailed,
            CallError::Refused(SecretRefusal::NotRegistered) => Self::NodeNotRegistered,
            CallError::Refused(SecretRefusal::BadToken) => Self::Unauthorized,
        }
    }
}

impl From<CallError<ReportRefusal>> for ApiError {
    fn from(error: CallError<ReportRefusal>) -> Self {
        match error {
            CallError::Unavailable(_) | CallError::Refused(ReportRefusal::Unspecified) => {
                Self::CoreUnavailable
            }
            CallError::Refused(ReportRefusal::NotFound) => Self::NotFound,
            CallError::Refused(ReportRefusal::VersionConflict) => Self::VersionConflict,
            CallError::Refused(ReportRefusal::TooManyEntries) => Self::TooManyReports,
            CallError::Refused(ReportRefusal::InsufficientStorage) => Self::InsufficientStorage,
            CallError::Refused(ReportRefusal::StorageFailed) => Self::StorageFailed,
            CallError::Refused(ReportRefusal::NotRegistered) => Self::NodeNotRegistered,
            // What is checked here and there differs only if the two processes are of different versions.
            CallError::Refused(ReportRefusal::Invalid) => Self::InvalidJson,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_reference_has_every_error_and_no_other() {
        let reference = include_str!("../../../docs/local-node-api.md");
        let (_, section) = reference.split_once("\n## Errors\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let documented: BTreeSet<(u16, &str)> = section
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| ")?.split(" | ");
                Some((cells.next()?.parse().ok()?, cells.next()?.trim_matches('`')))
            })
            .collect();
        // Told before there is a request (`connection`).
        let early = [(400, "bad request"), (503, "too many connections")];
        let all =
            ApiError::ALL.iter().map(|error| error.parts()).map(|(status, text)| (status.as_u16(), text));
        assert_eq!(documented, all.chain(early).collect());
    }
}
