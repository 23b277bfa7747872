//! Requests as handlers get them, and the answers they give.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::body::{Frame, SizeHint};

use super::error::ApiError;
use crate::auth::Caller;

/// Media type of every answer but a few.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer.
pub(super) type Response = http::Response<Body>;

/// The body of a request, whoever sends it.
pub(super) type RequestBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BodyError>;

/// The body of a request ended early, or its chunks are not what they say.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What comes of a handler that has to wait for something.
pub(super) type Later = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;

/// A request without its body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) parts: Parts,
    pub(super) caller: Caller,
}

impl Request {
    pub(super) fn method(&self) -> &Method {
        &self.parts.method
    }

    /// Returns the path as it was sent.
    pub(super) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }
}

/// The body of an answer.
pub(super) enum Body {
    /// All of it, or what is left: nothing, once it has been sent.
    Whole(Bytes),
    /// Pieces, until there are no more.
    Pieces(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(formatter, "{} bytes", bytes.len()),
            Self::Pieces(_) => formatter.write_str("pieces"),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Pieces(pieces) => {
                pieces.as_mut().poll_next(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// Answers `status` with all of `body`.
pub(super) fn answer(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::Whole(body));
    *response.status_mut() = status;
    response
}

/// Answers `status` without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    answer(status, Bytes::new())
}
