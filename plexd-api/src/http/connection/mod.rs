//! Connections: accepted within bounds, served with the identity of who made them, ended in order.

mod framing;
mod link;
mod refusal;
mod slots;

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use hyper::body::{Frame, Incoming as RequestBody, SizeHint};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use plexd_proto::transport::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use super::message::{Body, Response};
use super::routes::{self, Outcome};
use super::{Api, Metrics};
use crate::auth::{Caller, LocalClient};
use framing::Framing;
use link::{Answering, Link, Shared};
pub(super) use refusal::find as refusal;
pub use slots::Limits;
use slots::{Slot, Slots};

/// What is buffered of a connection, in bytes: a whole head.
const BUFFER: usize = framing::MAX_HEAD;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// How long accepting pauses after it failed, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client that is turned away may take to hear so.
const TURN_AWAY: Duration = Duration::from_secs(1);

/// How many clients are turned away in words at a time; the connections of more are closed at once.
const TURNED_AWAY: usize = 64;
/// How much a client that is turned away may say, in bytes.
const DISCARDED: u64 = 64 * 1024;

/// The answer when there is no place left.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 32\r\nconnection: close\r\n\r\n{\"error\":\"too many connections\"}";

/// What answers the requests of a caller.
#[derive(Clone)]
struct Handler(Arc<Answerer>);

/// Gives the body back if nobody reads it.
type Answerer = dyn Fn(&Caller, Request<RequestBody>) -> (Outcome, Option<RequestBody>) + Send + Sync;

impl std::fmt::Debug for Handler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Handler")
    }
}

/// Serves the API on any number of listeners.
#[derive(Debug)]
pub struct Server {
    answer: Handler,
    slots: Arc<Slots>,
    metrics: Option<Metrics>,
    turning_away: Arc<Semaphore>,
    connections: TaskTracker,
    shutdown: CancellationToken,
}

impl Server {
    /// Creates a server of `api`, which ends with its `shutdown`.
    pub fn new(api: &Arc<Api>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            answer: Handler(Arc::new({
                let api = Arc::clone(api);
                move |caller, request| routes::answer(&api, caller, request)
            })),
            slots: Slots::new(limits),
            metrics: api.metrics.clone(),
            turning_away: Arc::new(Semaphore::new(TURNED_AWAY)),
            connections: TaskTracker::new(),
            shutdown: api.shutdown.clone(),
        })
    }

    /// Accepts connections of a Unix socket until the server is to stop.
    pub async fn serve_unix(self: Arc<Self>, mut listener: Incoming) {
        // Safe to cancel: a connection is either still the kernel's or already a task.
        while let Some(Some(accepted)) = self.shutdown.run_until_cancelled(listener.next()).await {
            let Ok(connection) = accepted else { continue };
            let client = LocalClient { peer: connection.connect_info(), socket: connection.socket() };
            self.accept(connection, Caller::Local(Arc::new(client)));
        }
    }

    /// Accepts TCP connections until the server is to stop.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        // Safe to cancel: as above.
        while let Some(accepted) = self.shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    // Answers are small, and written whole: waiting for more to send only delays them.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY not set");
                    }
                    self.accept(stream, Caller::Tcp);
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Waits until every connection has ended.
    pub async fn finished(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    /// Serves the accepted connection `io` of `caller` in a task of its own, if there is a place for it.
    pub fn accept<I>(&self, io: I, caller: Caller)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let uid = match &caller {
            Caller::Local(client) => Some(client.peer.uid),
            Caller::Tcp => None,
        };
        let Some(slot) = self.slots.take(uid) else {
            tracing::debug!(?uid, "connection turned away: too many");
            self.metrics.iter().for_each(Metrics::turned_away);
            if let Ok(place) = Arc::clone(&self.turning_away).try_acquire_owned() {
                self.connections.spawn(async move {
                    turn_away(io).await;
                    drop(place);
                });
            }
            return;
        };
        self.connections.spawn(self.connection(io, caller, slot));
    }

    /// Serves one connection of `caller`.
    fn connection<I>(&self, io: I, caller: Caller, slot: Slot) -> impl Future<Output = ()> + Send + 'static
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Shared::new();
        let requests = Requests { answer: self.answer.clone(), caller, shared: Arc::clone(&shared) };
        let shutdown = self.shutdown.clone();
        let open = self.metrics.as_ref().map(Metrics::opened);
        async move {
            let _held = (slot, open);
            let mut http = hyper::server::conn::http1::Builder::new();
            http.max_buf_size(BUFFER).max_headers(MAX_HEADERS).header_read_timeout(None);
            // A client that has said all it wants to (`nc -N`) still gets its answer.
            http.half_close(true);
            let mut connection = pin!(http.serve_connection(TokioIo::new(Link::new(io, shared)), requests));
            // Safe to cancel: the connection lives on outside the arm.
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = plexd_proto::explain(&error), "connection ended");
            }
        }
    }
}

/// Follows requests through the bytes of a connection (see [`super::parts::follow`]).
pub(super) fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Option<u64>, u64) {
    let mut framing = Framing::new();
    let refused = pieces.into_iter().fold(None, |refused, piece| framing.feed(piece).or(refused));
    (refused, framing.heads())
}

/// Tells a client that there is no place, and takes what it sends meanwhile: closing a TCP connection with bytes unread
/// would take the answer away from it.
async fn turn_away<I: AsyncRead + AsyncWrite + Unpin>(mut io: I) {
    let answer = async {
        io.write_all(TOO_MANY).await?;
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(DISCARDED), &mut tokio::io::sink()).await
    };
    if !matches!(tokio::time::timeout(TURN_AWAY, answer).await, Ok(Ok(_))) {
        tracing::debug!("connection turned away without a word");
    }
}

/// The requests of one connection.
#[derive(Debug, Clone)]
struct Requests {
    answer: Handler,
    caller: Caller,
    shared: Arc<Shared>,
}

impl Service<Request<RequestBody>> for Requests {
    type Response = http::Response<Answer>;
    type Error = Infallible;
    type Future = Answered;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        let (answering, refusal) = self.shared.begin();
        let (outcome, unread) = match refusal {
            Some(error) => (Outcome::Now(error.into_response()), Some(request.into_body())),
            None => (self.answer.0)(&self.caller, request),
        };
        Answered { outcome, _unread: unread, answering: Some(answering) }
    }
}

/// An answer that is there, or is waited for.
struct Answered {
    outcome: Outcome,
    /// As long as it is there hyper goes on reading, and may find the next request.
    _unread: Option<RequestBody>,
    /// Until it is part of the answer.
    answering: Option<Answering>,
}

impl Future for Answered {
    type Output = Result<http::Response<Answer>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let response = match &mut this.outcome {
            Outcome::Now(response) => std::mem::replace(response, Response::new(Body::Whole(Bytes::new()))),
            Outcome::Later(response) => std::task::ready!(response.as_mut().poll(cx)),
        };
        let answering = this.answering.take();
        Poll::Ready(Ok(response.map(|body| Answer { body, _answering: answering })))
    }
}

/// The body of a response; the request counts as being answered for as long as there is one.
#[derive(Debug)]
struct Answer {
    body: Body,
    _answering: Option<Answering>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
