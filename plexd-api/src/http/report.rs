//! Writes of reports. plexd-core decides and stores; the mirror shows the result before the client hears of it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::StatusCode;

use super::conditional::if_match;
use super::error::ApiError;
use super::{Api, body, key, read};
use crate::auth::Caller;
use crate::core_client::Report;

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, stream) = request.into_parts();
    let key = key::of(parts.uri.path())?;
    let if_match = if_match(&parts.headers)?;
    let room = async |bytes| api.bodies.room(&caller, bytes).await;
    // Held until the answer is known.
    let body = body::read(stream, &parts.headers, api.max_report_bytes, room).await?;
    let body::ReportBody { content_type, payload } = body::parse(&body.bytes)?;
    let entry = api.core.put(Report { key, content_type, payload, if_match }).await?;
    Ok(read::json(&entry.full))
}

pub(super) async fn delete(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let key = key::of(request.uri().path())?;
    let if_match = if_match(request.headers())?;
    api.core.delete(key, if_match).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
