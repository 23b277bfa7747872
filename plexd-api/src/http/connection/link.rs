//! One connection's bytes, with the time they may take: a head 10 s, silence between requests 75 s (contract, section
//! 6), an answer that the client does not take as fast as it comes 30 s and a second more for each 16 KiB it takes.
//! hyper has one timeout for the first two. After a refusal of hyper's own the rest of what the client sends is taken and
//! dropped for a moment: closing a connection with bytes unread would take the answer away from it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::super::ApiError;
use super::framing::{Expected, Framing};
use super::refusal;

const HEAD: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(75);
const WRITE: Duration = Duration::from_secs(30);
/// Bytes a second that a client has to take on the average, once it has kept an answer waiting.
const WRITE_RATE: u64 = 16 * 1024;
/// For how long, and of how many bytes, the rest is taken from a client that was refused.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 4 * 1024 * 1024);

/// What the bytes and the requests of a connection know of each other.
#[derive(Debug)]
pub(super) struct Shared {
    /// Requests being answered.
    answering: AtomicUsize,
    /// Requests begun so far.
    begun: AtomicU64,
    /// Number of the request from which on none may be answered, if there is one: its head gave both lengths or was too
    /// large, or it is not certain where it begins or ends.
    refused: AtomicU64,
    /// That was for the size of its head.
    too_large: AtomicBool,
    /// Heads that are complete in what was read so far.
    heads: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        let refused = AtomicU64::new(u64::MAX);
        let (answering, begun, heads) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { answering, begun, refused, too_large: AtomicBool::new(false), heads })
    }

    /// Notes that the next request is being answered; returns why it is not to be, if it is refused for its head. One
    /// that begins where none was seen to begin is, too: it is what somebody hid in the one before.
    pub(super) fn begin(self: &Arc<Self>) -> (Answering, Option<ApiError>) {
        self.answering.fetch_add(1, Ordering::Relaxed);
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let certain = self.refused.load(Ordering::Relaxed).min(self.heads.load(Ordering::Relaxed));
        let is_too_large = self.too_large.load(Ordering::Relaxed);
        let error = if is_too_large { ApiError::HeadTooLarge } else { ApiError::ConflictingLengths };
        let refusal = (number >= certain).then_some(error);
        (Answering(Arc::clone(self)), refusal)
    }
}

/// A request being answered, until dropped.
#[derive(Debug)]
pub(super) struct Answering(Arc<Shared>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection with timeouts.
#[derive(Debug)]
pub(super) struct Link<I> {
    inner: I,
    shared: Arc<Shared>,
    framing: Framing,
    reading: Timer<Expected>,
    writing: Timer<()>,
    /// Bytes that the client has taken since it began to keep an answer waiting.
    taken: u64,
    /// What is to be sent in the place of a refusal of hyper's own.
    instead: Bytes,
    end: End,
}

/// How the connection ends.
#[derive(Debug)]
enum End {
    /// At once.
    Plain,
    /// Once the client has been refused, and its rest taken.
    Lingering,
    /// The client has been told that nothing follows. So many bytes are still taken, until the time is up.
    Taking(Pin<Box<Sleep>>, usize),
}

impl<I> Link<I> {
    pub(super) fn new(inner: I, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            shared,
            framing: Framing::new(),
            reading: Timer::new(),
            writing: Timer::new(),
            taken: 0,
            instead: Bytes::new(),
            end: End::Plain,
        }
    }

    /// Returns what the client owes, and the time it has for it.
    fn owed(&self) -> Option<(Expected, Duration)> {
        let expected = self.framing.expected();
        match expected {
            Expected::Head(_) => Some((expected, HEAD)),
            _ if self.shared.answering.load(Ordering::Relaxed) > 0 => None,
            // A body that nobody waits for is as good as silence.
            Expected::Request(_) | Expected::Body(_) => Some((expected, IDLE)),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Link<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.inner).poll_read(cx, buffer) {
            result?;
            if let Some(number) = this.framing.feed(&buffer.filled()[before..]) {
                this.shared.too_large.store(this.framing.is_too_large(), Ordering::Relaxed);
                this.shared.refused.store(number, Ordering::Relaxed);
            }
            this.shared.heads.store(this.framing.heads(), Ordering::Relaxed);
            return Poll::Ready(Ok(()));
        }
        let owed = this.owed();
        ready!(this.reading.poll(cx, owed));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sent nothing in time")))
    }
}

impl<I: AsyncWrite + Unpin> Link<I> {
    /// Bounds the time that the client may take to take what there is.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            return result;
        }
        let time = WRITE + Duration::from_secs(self.taken / WRITE_RATE);
        ready!(self.writing.poll(cx, Some(((), time))));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client took too little in time")))
    }

    /// Notes what the client took; the time it has begins anew once it has all there is.
    fn took(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.taken = self.taken.saturating_add(*bytes as u64);
        }
        result
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, data);
        let result = self.took(result);
        self.bounded(cx, result)
    }

    /// Sends what takes the place of a refusal of hyper's own.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let text = self.instead.clone();
            let sent = ready!(self.poll_inner(cx, &text))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> Link<I> {
    /// Takes what the client still sends, within bounds.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let End::Lingering = self.end {
            self.end = End::Taking(Box::pin(tokio::time::sleep(LINGER.0)), LINGER.1);
        }
        let End::Taking(time, left) = &mut self.end else { return Poll::Ready(()) };
        let mut space = [0; 4096];
        while *left > 0 && time.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 {
                break;
            }
            *left = left.saturating_sub(count);
        }
        Poll::Ready(())
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Link<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(cx))?;
        match refusal::find(data) {
            None => self.poll_inner(cx, data),
            Some((0, answer)) => {
                self.instead = answer;
                self.end = End::Lingering;
                Poll::Ready(Ok(data.len()))
            }
            Some((before, _)) => self.poll_inner(cx, &data[..before]),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal ends the piece it is in: what is before goes first, and then it is at a beginning.
        match data.iter().position(|piece| refusal::find(piece).is_some()) {
            Some(0) => return self.poll_write(cx, &data[0]),
            Some(before) => return self.poll_write_vectored(cx, &data[..before]),
            None => {}
        }
        ready!(self.poll_instead(cx))?;
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, data);
        let result = self.took(result);
        self.bounded(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        if result.is_ready() {
            self.writing.stop();
            self.taken = 0;
        }
        self.bounded(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        if !matches!(self.end, End::Taking(..)) {
            let result = Pin::new(&mut self.inner).poll_shutdown(cx);
            ready!(self.bounded(cx, result))?;
        }
        self.poll_linger(cx).map(Ok)
    }
}

/// Time that something has. The timer behind it is moved only when it fires too early: once per timeout and not
/// once per request.
#[derive(Debug)]
struct Timer<T> {
    since: Option<(T, Instant)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<T: PartialEq + Copy> Timer<T> {
    fn new() -> Self {
        Self { since: None, sleep: None }
    }

    fn stop(&mut self) {
        self.since = None;
    }

    /// Is ready once the same thing has been owed for as long as it may take.
    fn poll(&mut self, cx: &mut Context<'_>, owed: Option<(T, Duration)>) -> Poll<()> {
        let Some((what, time)) = owed else {
            self.stop();
            return Poll::Pending;
        };
        let since = match self.since {
            Some((known, since)) if known == what => since,
            _ => {
                let now = Instant::now();
                self.since = Some((what, now));
                now
            }
        };
        let deadline = since + time;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    fn link(buffer: usize) -> (DuplexStream, Link<DuplexStream>, Arc<Shared>) {
        let (client, server) = tokio::io::duplex(buffer);
        let shared = Shared::new();
        (client, Link::new(server, Arc::clone(&shared)), shared)
    }

    /// Reads until the link gives up; returns after how long.
    async fn patience(link: &mut Link<DuplexStream>) -> Duration {
        let start = Instant::now();
        let mut buffer = [0; 100];
        loop {
            if let Err(error) = link.read(&mut buffer).await {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                return start.elapsed().round();
            }
        }
    }

    trait Round {
        fn round(&self) -> Duration;
    }

    impl Round for Duration {
        /// Timers of tokio have a resolution of a millisecond.
        fn round(&self) -> Duration {
            Duration::from_secs((*self + Duration::from_millis(500)).as_secs())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_has_75_seconds() {
        let (_client, mut link, _) = link(1000);
        assert_eq!(patience(&mut link).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_10_seconds_however_it_trickles() {
        let (mut client, mut link, _) = link(1000);
        let trickle = tokio::spawn(async move {
            loop {
                client.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert_eq!(patience(&mut link).await, HEAD);
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_end_of_the_last_answer() {
        let (mut client, mut link, shared) = link(1000);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (answering, _) = shared.begin();
        let mut buffer = [0; 100];
        assert_eq!(link.read(&mut buffer).await.unwrap(), 18);
        let long = tokio::time::timeout(Duration::from_secs(1000), link.read(&mut buffer));
        assert!(long.await.is_err(), "while it is answered, the client owes nothing");
        drop(answering);
        assert_eq!(patience(&mut link).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_has_30_seconds() {
        let (_client, mut link, _) = link(10);
        link.write_all(b"0123456789").await.unwrap();
        let start = Instant::now();
        let error = link.write_all(b"0").await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().round()), (io::ErrorKind::TimedOut, WRITE));
    }

    /// Returns after how long the link gives up on a client that takes `bytes` each second.
    async fn given_up_after(bytes: usize) -> Option<Duration> {
        let (mut client, mut link, _) = link(bytes);
        let reader = tokio::spawn(async move {
            let mut taken = vec![0; bytes];
            while client.read_exact(&mut taken).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let start = Instant::now();
        let answer = vec![0; bytes * 1000];
        let written = tokio::time::timeout(Duration::from_mins(15), link.write_all(&answer)).await;
        reader.abort();
        written.ok().map(|result| {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
            start.elapsed().round()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_an_answer_drop_by_drop_is_given_up() {
        assert_eq!(given_up_after(1).await, Some(WRITE));
        let half = usize::try_from(WRITE_RATE / 2).unwrap();
        let after = given_up_after(half).await.unwrap().as_secs();
        assert!((58..=62).contains(&after), "{after} s at half the rate");
        assert_eq!(given_up_after(2 * half).await, None, "at the rate");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_begins_anew_with_each_answer_that_was_taken() {
        let (mut client, mut link, _) = link(10);
        for _ in 0..3 {
            let reader = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(29)).await;
                client.read_exact(&mut [0; 20]).await.unwrap();
                client
            });
            link.write_all(&[0; 20]).await.unwrap();
            link.flush().await.unwrap();
            client = reader.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_request_that_was_not_seen_to_begin_is_refused() {
        let (mut client, mut link, shared) = link(1000);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(link.read(&mut [0; 100]).await.unwrap(), 18);
        assert_eq!(shared.begin().1, None);
        assert_eq!(
            shared.begin().1,
            Some(ApiError::ConflictingLengths),
            "a second one, of which nobody knows"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_refused_client_still_sends_is_taken_for_a_moment() {
        let own = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let (mut client, mut link, _) = link(1000);
        let speaker = tokio::spawn(async move {
            // More than there is room for, all at once.
            client.write_all(&[0; 10_000]).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            (client, answer)
        });
        let start = Instant::now();
        link.write_all(own).await.unwrap();
        link.shutdown().await.unwrap();
        assert_eq!(start.elapsed().round(), LINGER.0, "a client that stays is left");
        drop(link);
        let (_client, answer) = speaker.await.unwrap();
        assert!(answer.ends_with("{\"error\":\"bad request\"}"), "{answer}");

        let (client, mut link, _) = super::tests::link(1000);
        link.write_all(own).await.unwrap();
        drop(client);
        let start = Instant::now();
        // A client that has left is not waited for, and may be one that nothing can be told.
        let _ = link.shutdown().await;
        assert_eq!(start.elapsed().round(), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_request_with_both_lengths_and_all_after_it_are_told() {
        let (mut client, mut link, shared) = link(1000);
        let both = b"GET / HTTP/1.1\r\n\r\nPUT / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(both).await.unwrap();
        assert_eq!(link.read(&mut [0; 1000]).await.unwrap(), both.len());
        assert_eq!(shared.begin().1, None);
        assert_eq!(shared.begin().1, Some(ApiError::ConflictingLengths));
        assert_eq!(shared.begin().1, Some(ApiError::ConflictingLengths));
    }
}
