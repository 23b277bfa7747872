//! Reads, answered from the mirror.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderName, HeaderValue, StatusCode};

use super::conditional::client_has;
use super::error::ApiError;
use super::message::{self, JSON, Request, Response};
use super::{Api, key};
use crate::mirror::{Kind, Rendered};

/// On reads while core is away: for how many seconds it has been.
pub(super) const STATE_AGE: HeaderName = HeaderName::from_static("plexd-state-age");

pub(super) fn summary(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    aged(api, || Ok(found(request, api.state()?.summary())))
}

pub(super) fn metadata(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    aged(api, || Ok(found(request, &api.state()?.metadata())))
}

pub(super) fn metadata_value(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    aged(api, || {
        let key = key::of(request.path())?;
        let state = api.state()?;
        Ok(found(request, state.metadata_value(&key).ok_or(ApiError::NotFound)?))
    })
}

pub(super) fn data_list(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    list(api, Kind::Data, request)
}

pub(super) fn data_entry(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    entry(api, Kind::Data, request)
}

pub(super) fn secret_list(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    list(api, Kind::Secret, request)
}

pub(super) fn report_list(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    list(api, Kind::Report, request)
}

pub(super) fn report_entry(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    entry(api, Kind::Report, request)
}

/// Says that the process answers.
#[expect(clippy::unnecessary_wraps, reason = "as the other handlers")]
pub(super) fn alive(_: &Arc<Api>, _: &Request) -> Result<Response, ApiError> {
    let mut response = message::answer(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}"));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Says whether there is a state to read.
pub(super) fn has_state(api: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    api.state()?;
    alive(api, request)
}

fn list(api: &Api, kind: Kind, request: &Request) -> Result<Response, ApiError> {
    aged(api, || Ok(found(request, api.state()?.list(kind))))
}

fn entry(api: &Api, kind: Kind, request: &Request) -> Result<Response, ApiError> {
    aged(api, || {
        let key = key::of(request.path())?;
        let state = api.state()?;
        Ok(found(request, &state.entry(kind, &key).ok_or(ApiError::NotFound)?.full))
    })
}

/// Answers from the mirror, and says how old the answer may be, also one that there is nothing.
fn aged(api: &Api, answer: impl FnOnce() -> Result<Response, ApiError>) -> Result<Response, ApiError> {
    match answer() {
        // There is no state to speak of.
        Err(error @ (ApiError::CoreUnavailable | ApiError::NodeNotRegistered)) => Err(error),
        answer => {
            let mut response = answer.unwrap_or_else(ApiError::into_response);
            mark_age(api, &mut response);
            Ok(response)
        }
    }
}

/// Adds the age of the state while core is away.
pub(super) fn mark_age(api: &Api, response: &mut Response) {
    if let Some(age) = api.mirror.age() {
        response.headers_mut().insert(STATE_AGE, HeaderValue::from(age.as_secs()));
    }
}

/// Answers 200 with the text, or 304 to a client that has it.
pub(super) fn found(request: &Request, rendered: &Rendered) -> Response {
    if !client_has(request.headers(), &rendered.etag) {
        return json(rendered);
    }
    let mut response = message::empty(StatusCode::NOT_MODIFIED);
    response.headers_mut().insert(ETAG, rendered.etag.clone());
    response
}

/// Answers 200 with the text.
pub(super) fn json(rendered: &Rendered) -> Response {
    let mut response = message::answer(StatusCode::OK, rendered.body.clone());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(ETAG, rendered.etag.clone());
    response
}
