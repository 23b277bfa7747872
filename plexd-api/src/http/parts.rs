//! The parsers of this API one by one, as functions of what a client sends: for fuzz targets (`tests/fuzz`), which
//! compare them with others. Nothing here is used to answer a request.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use super::error::ApiError;
use super::{body, conditional, connection, key, routes};
use crate::auth::Need;

/// Returns the key that a path, as it was sent, names with its last segment.
///
/// # Errors
/// If that is no key.
pub fn key(path: &str) -> Result<String, ApiError> {
    key::of(path)
}

/// Returns the version that `If-Match` asks for.
///
/// # Errors
/// If it is no version, or there are two.
pub fn if_match(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    conditional::if_match(headers)
}

/// Returns whether `If-None-Match` has the tag.
pub fn client_has(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    conditional::client_has(headers, etag)
}

/// Returns content type and payload of a report's body.
///
/// # Errors
/// What is wrong with it first, in the order of the contract.
pub fn report(body: &Bytes) -> Result<(String, Bytes), ApiError> {
    body::parse(body).map(|report| (report.content_type, report.payload))
}

/// Returns the pattern of the route of a path, as it was sent, and what its callers need; `None` if there is none.
pub fn route(path: &str) -> Option<(&'static str, Need)> {
    routes::of(path).map(|route| (route.path, route.need))
}

/// Returns where in bytes that are about to be sent a refusal of the HTTP parser's own begins, and what takes its place.
pub fn refusal(bytes: &[u8]) -> Option<(usize, Bytes)> {
    connection::refusal(bytes)
}

/// Follows requests through the bytes of a connection; returns the number, from 0, of the first that may not be
/// answered, if there is one, and how many heads there were up to there.
pub fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Option<u64>, u64) {
    connection::follow(pieces)
}
