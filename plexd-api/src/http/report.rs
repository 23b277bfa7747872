//! Writes of reports. plexd-core decides and stores; the mirror shows the result before the client hears of it.

use std::sync::Arc;

use http::StatusCode;

use super::conditional::if_match;
use super::error::ApiError;
use super::message::{self, Request, RequestBody, Response};
use super::{Api, body, key, read};
use crate::core_client::Report;

pub(super) async fn put(api: Arc<Api>, request: Request, body: RequestBody) -> Result<Response, ApiError> {
    let asked = key::of(request.path()).and_then(|key| Ok((key, if_match(request.headers())?)));
    let (key, if_match) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            body::pass_over(body, request.headers()).await;
            return Err(error);
        }
    };
    let room = async |bytes| api.bodies.room(&request.caller, bytes).await;
    // Held until the answer is known.
    let body = body::read(body, request.headers(), api.max_report_bytes, room).await?;
    let body::ReportBody { content_type, payload } = body::parse(&body.bytes)?;
    let entry = api.core.put(Report { key, content_type, payload, if_match }).await?;
    Ok(read::json(&entry.full))
}

pub(super) async fn delete(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let key = key::of(request.path())?;
    let if_match = if_match(request.headers())?;
    api.core.delete(key, if_match).await?;
    Ok(message::empty(StatusCode::NO_CONTENT))
}
