//! One event stream as a response body: `retry:` once, the replay, then events as they come and a comment every
//! 15 seconds. It ends when streams are cut, the node is gone, or its reader is too far behind.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::reply::Reply;
use crate::store::events::Subscription;

const KEEP_ALIVE: Duration = Duration::from_secs(15);
const RETRY: &[u8] = b"retry: 1000\n\n";
const COMMENT: &[u8] = b":\n\n";

struct EventStream {
    ready: VecDeque<Bytes>,
    live: mpsc::Receiver<Bytes>,
    cut: watch::Receiver<u64>,
    keep_alive: Interval,
}

/// Answers with the stream of `subscription`, until `cut` changes.
pub(crate) fn reply(subscription: Subscription, cut: watch::Receiver<u64>) -> Reply {
    let mut ready = subscription.replay;
    ready.push_front(Bytes::from_static(RETRY));
    let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = EventStream { ready, live: subscription.live, cut, keep_alive };
    let frames = stream::unfold(events, EventStream::next).map(|bytes| Ok(Frame::data(bytes)));
    with_body(StreamBody::new(frames).boxed_unsync())
}

/// Answers with a stream that ends right after its beginning.
pub(crate) fn cut_reply() -> Reply {
    let frames = stream::iter([Ok(Frame::data(Bytes::from_static(RETRY)))]);
    with_body(StreamBody::new(frames).boxed_unsync())
}

fn with_body(body: crate::reply::Body) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    reply
}

impl EventStream {
    /// Dropping this future loses nothing: what it waits on is a channel, a watch and a timer.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        if let Some(bytes) = self.ready.pop_front() {
            return Some((bytes, self));
        }
        tokio::select! {
            biased;
            _ = self.cut.changed() => None,
            event = self.live.recv() => {
                self.keep_alive.reset();
                event.map(|bytes| (bytes, self))
            }
            _ = self.keep_alive.tick() => Some((Bytes::from_static(COMMENT), self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use tokio::sync::{mpsc, watch};
    use tokio::time::Instant;

    use super::{COMMENT, KEEP_ALIVE, RETRY, reply};
    use crate::store::events::Subscription;

    #[tokio::test(start_paused = true)]
    async fn a_stream_starts_with_retry_replays_lives_and_keeps_itself_alive() {
        let (sender, live) = mpsc::channel(4);
        let (cut, cut_receiver) = watch::channel(0);
        let replay = VecDeque::from([Bytes::from_static(b"replayed")]);
        let mut body = reply(Subscription { replay, live }, cut_receiver).into_body();
        let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
        assert_eq!(next().await.unwrap(), RETRY);
        assert_eq!(next().await.unwrap(), "replayed");
        sender.send(Bytes::from_static(b"live")).await.unwrap();
        assert_eq!(next().await.unwrap(), "live");
        let quiet_since = Instant::now();
        assert_eq!(next().await.unwrap(), COMMENT);
        assert_eq!(quiet_since.elapsed(), KEEP_ALIVE);
        cut.send_replace(1);
        assert!(next().await.is_none(), "cut");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_node_is_gone() {
        let (sender, live) = mpsc::channel(4);
        let (_cut, cut_receiver) = watch::channel(0);
        let mut body = reply(Subscription { replay: VecDeque::new(), live }, cut_receiver).into_body();
        assert!(body.frame().await.is_some());
        drop(sender);
        assert!(body.frame().await.is_none());
    }
}
