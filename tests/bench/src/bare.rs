//! The measure for reads: an axum handler that has the answers in memory and does nothing but give them out. Nobody is
//! asked who they are, nothing is bounded, nothing is conditional, nothing changes. A process of its own, on one thread
//! as plexd-api.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};

/// The argument that makes the program this.
pub(crate) const WORD: &str = "bare";

/// Answers by path: the `ETag` and the body.
type Answers = HashMap<String, (HeaderValue, Bytes)>;

/// Adds the answer to `path` to those that are written to the file of answers.
pub(crate) fn remember(answers: &mut Map<String, Value>, path: &str, etag: &str, body: &str) {
    answers.insert(path.to_owned(), json!([etag, body]));
}

/// Serves the answers that are in the file, on a Unix socket, for as long as the process lives.
pub(crate) fn serve(socket: &str, file: &str) {
    let answers = Arc::new(read(file));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket).expect("a socket");
        let router = Router::new()
            .route("/v1/state", get(answer))
            .route("/v1/state/data/{key}", get(answer))
            .with_state(answers);
        axum::serve(listener, router).await.expect("it does not end");
    });
}

fn read(file: &str) -> Answers {
    let text = std::fs::read(file).unwrap_or_else(|error| panic!("cannot read {file}: {error}"));
    let answers: Map<String, Value> = serde_json::from_slice(&text).expect("an object");
    let parsed = answers.into_iter().map(|(path, answer)| {
        let part = |index| answer[index].as_str().expect("text").to_owned();
        (path, (HeaderValue::from_str(&part(0)).expect("an ETag"), Bytes::from(part(1))))
    });
    parsed.collect()
}

async fn answer(State(answers): State<Arc<Answers>>, request: Request) -> Response {
    let Some((etag, body)) = answers.get(request.uri().path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut response = Response::new(Body::from(body.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(ETAG, etag.clone());
    response
}
