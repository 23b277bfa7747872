//! One event stream as a response body: `retry:` once, the replay, then events as they come and a comment every
//! 15 seconds. It ends when streams are cut or torn, the node is gone, or its reader is too far behind.

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
    interruptions: Interruptions,
    torn: bool,
    keep_alive: Interval,
}

/// What ends a stream before its time.
#[derive(Debug, Clone)]
pub(crate) struct Interruptions {
    /// Changes when the open streams are to end.
    pub(crate) cut: watch::Receiver<u64>,
    /// Whether a stream ends within the first character that takes several bytes.
    pub(crate) tearing: watch::Receiver<bool>,
}

/// Answers with the stream of `subscription`, until it is interrupted.
pub(crate) fn reply(subscription: Subscription, interruptions: Interruptions) -> Reply {
    let mut ready = subscription.replay;
    ready.push_front(Bytes::from_static(RETRY));
    let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = EventStream { ready, live: subscription.live, interruptions, torn: false, keep_alive };
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
        if self.torn {
            return None;
        }
        if let Some(bytes) = self.ready.pop_front() {
            return Some(self.torn_or_whole(bytes));
        }
        tokio::select! {
            biased;
            _ = self.interruptions.cut.changed() => None,
            event = self.live.recv() => {
                self.keep_alive.reset();
                event.map(|bytes| self.torn_or_whole(bytes))
            }
            _ = self.keep_alive.tick() => Some((Bytes::from_static(COMMENT), self)),
        }
    }

    /// Tears an event apart within its first character of several bytes, if streams are torn; nothing follows then.
    fn torn_or_whole(mut self, bytes: Bytes) -> (Bytes, Self) {
        let wide = bytes.iter().position(|byte| !byte.is_ascii());
        match wide {
            Some(position) if *self.interruptions.tearing.borrow() => {
                self.torn = true;
                (bytes.slice(..=position), self)
            }
            _ => (bytes, self),
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

    use super::{COMMENT, Interruptions, KEEP_ALIVE, RETRY, reply};
    use crate::store::events::Subscription;

    /// What interrupts a stream, and what to interrupt it with.
    fn interruptions() -> (Interruptions, watch::Sender<u64>, watch::Sender<bool>) {
        let (cut, tearing) = (watch::Sender::new(0), watch::Sender::new(false));
        (Interruptions { cut: cut.subscribe(), tearing: tearing.subscribe() }, cut, tearing)
    }

    #[tokio::test]
    async fn a_torn_stream_ends_within_a_character() {
        let (sender, live) = mpsc::channel(4);
        let (interruptions, _cut, tearing) = interruptions();
        let mut body = reply(Subscription { replay: VecDeque::new(), live }, interruptions).into_body();
        let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
        assert_eq!(next().await.unwrap(), RETRY);
        let event = "data: Grüße\n\n";
        sender.send(Bytes::from_static(event.as_bytes())).await.unwrap();
        assert_eq!(next().await.unwrap(), event, "whole while nothing is set");
        tearing.send_replace(true);
        sender.send(Bytes::from_static(b"data: plain\n\n")).await.unwrap();
        assert_eq!(next().await.unwrap(), "data: plain\n\n");
        sender.send(Bytes::from_static(event.as_bytes())).await.unwrap();
        assert_eq!(next().await.unwrap(), &b"data: Gr\xc3"[..]);
        assert!(next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_starts_with_retry_replays_lives_and_keeps_itself_alive() {
        let (sender, live) = mpsc::channel(4);
        let (interruptions, cut, _tearing) = interruptions();
        let replay = VecDeque::from([Bytes::from_static(b"replayed")]);
        let mut body = reply(Subscription { replay, live }, interruptions).into_body();
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
        let (interruptions, _cut, _tearing) = interruptions();
        let mut body = reply(Subscription { replay: VecDeque::new(), live }, interruptions).into_body();
        assert!(body.frame().await.is_some());
        drop(sender);
        assert!(body.frame().await.is_none());
    }
}
