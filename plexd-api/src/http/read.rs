//! Reads, answered from the mirror.
#![expect(clippy::needless_pass_by_value, reason = "axum hands requests over by value")]

use std::future::{Ready, ready};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderName, HeaderValue, StatusCode};

use super::conditional::client_has;
use super::error::ApiError;
use super::{Api, key};
use crate::mirror::{Kind, Rendered};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// On reads while core is away: for how many seconds it has been.
pub(super) const STATE_AGE: HeaderName = HeaderName::from_static("plexd-state-age");

pub(super) fn summary(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    read(&api, |api| Ok(found(&request, api.state()?.summary())))
}

pub(super) fn metadata(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    read(&api, |api| Ok(found(&request, &api.state()?.metadata())))
}

pub(super) fn metadata_value(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    read(&api, |api| {
        let key = key::of(request.uri().path())?;
        let state = api.state()?;
        Ok(found(&request, state.metadata_value(&key).ok_or(ApiError::NotFound)?))
    })
}

pub(super) fn data_list(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    list(&api, Kind::Data, &request)
}

pub(super) fn data_entry(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    entry(&api, Kind::Data, &request)
}

pub(super) fn secret_list(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    list(&api, Kind::Secret, &request)
}

pub(super) fn report_list(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    list(&api, Kind::Report, &request)
}

pub(super) fn report_entry(State(api): State<Arc<Api>>, request: Request) -> Ready<Response> {
    entry(&api, Kind::Report, &request)
}

/// Says that the process answers.
pub(super) fn alive() -> Ready<Response> {
    let mut response = Response::new(Body::from("{\"status\":\"ok\"}"));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    ready(response)
}

/// Says whether there is a state to read.
pub(super) fn has_state(State(api): State<Arc<Api>>) -> Ready<Response> {
    match api.state() {
        Ok(_) => alive(),
        Err(error) => ready(error.into_response()),
    }
}

fn list(api: &Api, kind: Kind, request: &Request) -> Ready<Response> {
    read(api, |api| Ok(found(request, api.state()?.list(kind))))
}

fn entry(api: &Api, kind: Kind, request: &Request) -> Ready<Response> {
    read(api, |api| {
        let key = key::of(request.uri().path())?;
        let state = api.state()?;
        Ok(found(request, &state.entry(kind, &key).ok_or(ApiError::NotFound)?.full))
    })
}

/// Answers from the mirror, and says how old the answer may be.
fn read(api: &Api, answer: impl FnOnce(&Api) -> Result<Response, ApiError>) -> Ready<Response> {
    let mut response = answer(api).unwrap_or_else(IntoResponse::into_response);
    mark_age(api, &mut response);
    ready(response)
}

/// Adds the age of the state while core is away, unless there is no state to speak of.
pub(super) fn mark_age(api: &Api, response: &mut Response) {
    if let Some(age) = api.mirror.age()
        && response.status() != StatusCode::SERVICE_UNAVAILABLE
    {
        response.headers_mut().insert(STATE_AGE, HeaderValue::from(age.as_secs()));
    }
}

/// Answers 200 with the text, or 304 to a client that has it.
pub(super) fn found(request: &Request, rendered: &Rendered) -> Response {
    if !client_has(request.headers(), &rendered.etag) {
        return json(rendered);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(ETAG, rendered.etag.clone());
    response
}

/// Answers 200 with the text.
pub(super) fn json(rendered: &Rendered) -> Response {
    let mut response = Response::new(Body::from(rendered.body.clone()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(ETAG, rendered.etag.clone());
    response
}
