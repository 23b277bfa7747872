//! What a fault makes of an answer: cut off, padded, called something else, or replaced by one that no client can use.
//! Knows nothing of the rules, nor of what the answers say.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::iter;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::reply::{self, Body, Reply};

const GARBAGE: &[u8] = b"\x00\xff<html>{\"garbage\": [not JSON";
/// Size of each of a bomb's members when unpacked: by itself beyond what any client takes of a state.
const BOMB_MEMBER: usize = 65 << 20;
const BOMB_MEMBERS: usize = 16;
const CHUNK: usize = 64 << 10;
/// How long it may take to write what there is of an answer.
const FLUSH: Duration = Duration::from_millis(50);
static BLANKS: [u8; CHUNK] = [b' '; CHUNK];

/// When to come again, in the two forms that HTTP has; seconds from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RetryAfter {
    Seconds(u32),
    Date(u32),
}

/// How an answer comes to its end half way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Truncation {
    /// As if half were all there is.
    Clean,
    /// With the whole announced and the connection closed.
    Broken,
}

/// Adds the header.
pub(super) fn with_retry_after(mut reply: Reply, retry_after: Option<RetryAfter>) -> Reply {
    let value = match retry_after {
        None => return reply,
        Some(RetryAfter::Seconds(seconds)) => Some(seconds.to_string()),
        Some(RetryAfter::Date(seconds)) => {
            let then = Timestamp::now().saturating_add(SignedDuration::from_secs(seconds.into()));
            then.ok().and_then(|then| DateTimePrinter::new().timestamp_to_rfc9110_string(&then).ok())
        }
    };
    if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
        reply.headers_mut().insert(header::RETRY_AFTER, value);
    }
    reply
}

/// 200 with bytes that are not JSON.
pub(super) fn garbage(endpoint: &'static str) -> Reply {
    reply::with_type(StatusCode::OK, content_type(endpoint), Bytes::from_static(GARBAGE))
}

/// 200 with a megabyte that says of itself that it is compressed, and is a gigabyte of white space.
pub(super) fn gzip_bomb(endpoint: &'static str) -> Reply {
    static MEMBER: OnceLock<Bytes> = OnceLock::new();
    let member = MEMBER.get_or_init(|| compressed_blanks().map_or_else(|_| Bytes::new(), Bytes::from));
    let body = member.repeat(BOMB_MEMBERS);
    let mut reply = reply::with_type(StatusCode::OK, content_type(endpoint), Bytes::from(body));
    reply.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    reply
}

fn compressed_blanks() -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..BOMB_MEMBER / CHUNK {
        encoder.write_all(&BLANKS)?;
    }
    encoder.finish()
}

fn content_type(endpoint: &str) -> &'static str {
    if endpoint == "events" { "text/event-stream" } else { "application/json" }
}

/// The answer with another content type.
pub(super) fn as_web_page(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    reply
}

/// The answer with white space up to `length` bytes, which a client learns by reading them.
pub(super) async fn padded(reply: Reply, length: usize) -> Reply {
    let (parts, body) = reply.into_parts();
    let body = whole(body).await;
    if !parts.status.is_success() || body.is_empty() {
        return Reply::from_parts(parts, Full::new(body).boxed_unsync());
    }
    let missing = length.saturating_sub(body.len());
    let blanks = Bytes::from_static(&BLANKS);
    let full = iter::repeat_n(blanks.clone(), missing / CHUNK);
    let chunks = iter::once(body).chain(full).chain(iter::once(blanks.slice(..missing % CHUNK)));
    Reply::from_parts(parts, streamed(chunks))
}

/// The first half of the answer.
pub(super) async fn truncated(reply: Reply, how: Truncation) -> Reply {
    let (mut parts, body) = reply.into_parts();
    let body = whole(body).await;
    let half = body.slice(..body.len() / 2);
    match how {
        Truncation::Clean => Reply::from_parts(parts, Full::new(half).boxed_unsync()),
        Truncation::Broken => {
            announce(&mut parts.headers, header::CONTENT_LENGTH, body.len());
            // The server closes the connection of a body that ends before its announced length; not before that half
            // is on its way.
            let end = stream::once(async {
                tokio::time::sleep(FLUSH).await;
                Bytes::new()
            });
            let frames = stream::iter([half]).chain(end).map(|chunk| Ok(Frame::data(chunk)));
            Reply::from_parts(parts, StreamBody::new(frames).boxed_unsync())
        }
    }
}

fn announce(headers: &mut HeaderMap, name: HeaderName, number: usize) {
    headers.insert(name, HeaderValue::from(number));
}

async fn whole(body: Body) -> Bytes {
    let Ok(collected) = body.collect().await;
    collected.to_bytes()
}

/// A body without a known length.
fn streamed(chunks: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
    let frames =
        chunks.filter(|chunk| !chunk.is_empty()).map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use bytes::Bytes;
    use flate2::read::MultiGzDecoder;
    use http::{StatusCode, header};

    use super::{
        BOMB_MEMBER, BOMB_MEMBERS, RetryAfter, Truncation, gzip_bomb, padded, truncated, whole,
        with_retry_after,
    };
    use crate::reply::{self, Reply};

    fn answer() -> Reply {
        reply::with_type(StatusCode::OK, "application/json", Bytes::from_static(br#"{"a":[1,2]}"#))
    }

    #[tokio::test]
    async fn padding_is_white_space_to_the_byte() {
        for length in [100, 1 << 16, (1 << 17) + 1] {
            let body = whole(padded(answer(), length).await.into_body()).await;
            assert_eq!(body.len(), length);
            assert_eq!(body.trim_ascii_end(), br#"{"a":[1,2]}"#);
        }
    }

    #[tokio::test]
    async fn half_of_an_answer_comes_with_its_own_length_or_with_that_of_the_whole() {
        for (how, length) in [(Truncation::Clean, None), (Truncation::Broken, Some("11"))] {
            let half = truncated(answer(), how).await;
            let announced = half.headers().get(header::CONTENT_LENGTH).map(|value| value.to_str().unwrap());
            assert_eq!(announced, length);
            assert_eq!(whole(half.into_body()).await, r#"{"a":"#);
        }
    }

    #[test]
    fn retry_after_has_two_forms() {
        let value = |form| {
            let reply = with_retry_after(answer(), form);
            reply.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(value(None), None);
        assert_eq!(value(Some(RetryAfter::Seconds(7))).as_deref(), Some("7"));
        let date = value(Some(RetryAfter::Date(7))).unwrap();
        assert!(date.ends_with(" GMT") && date.len() == "Wed, 21 Oct 2015 07:28:00 GMT".len(), "{date}");
    }

    #[tokio::test]
    async fn a_bomb_is_small_until_it_is_unpacked() {
        let body = whole(gzip_bomb("state").into_body()).await;
        assert!(body.len() < 8 << 20, "{}", body.len());
        let mut decoder = MultiGzDecoder::new(&body[..body.len() / BOMB_MEMBERS]);
        let mut chunk = vec![0; 1 << 20];
        let mut unpacked = 0;
        while let read @ 1.. = decoder.read(&mut chunk).unwrap() {
            unpacked += read;
        }
        assert_eq!(unpacked, BOMB_MEMBER);
    }
}
