//! The body of a `PUT`: read within bounds of size and time, then taken apart without touching the payload's bytes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::EXPECT;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::bodies::Room;
use super::error::ApiError;
use super::message::RequestBody;

/// Longest time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Deepest nesting of a payload.
const MAX_DEPTH: usize = 64;
/// What each request holds of its body without asking for room, in bytes: there are only so many connections, and a small
/// write never waits for large ones, nor for those that trickle.
const SMALL: usize = 16 * 1024;
/// How much of a body that nobody wants is still read, and for how long, so that a client in the midst of sending it
/// sees the answer and not a broken connection.
const DISCARD: (usize, Duration) = (16 * 1024 * 1024, Duration::from_secs(2));

/// A body, and the room that it holds if it is not small.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _room: Option<Room>,
}

/// Reads a body of at most `limit` bytes; what comes after the first 16 KiB, once there is room for all of it. The time that
/// it has includes the wait.
pub(super) async fn read(
    mut body: RequestBody,
    headers: &HeaderMap,
    limit: usize,
    room: impl AsyncFnOnce(usize) -> Room,
) -> Result<Held, ApiError> {
    let deadline = Instant::now() + BODY_TIMEOUT;
    if body.size_hint().lower() > limit as u64 {
        pass_over(body, headers).await;
        return Err(ApiError::PayloadTooLarge);
    }
    let told = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let (mut room, mut ask) = (None, Some(room));
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| ApiError::RequestTimeout)?;
        let Some(frame) = frame else { break };
        // The client left, or its chunks are not what they say.
        let frame = frame.map_err(|_| ApiError::InvalidJson)?;
        let Ok(data) = frame.into_data() else { continue };
        let length = first.len() + whole.len() + data.len();
        if length > limit {
            discard(body).await;
            return Err(ApiError::PayloadTooLarge);
        }
        if let Some(ask) = ask.take_if(|_| length > SMALL) {
            // Who does not tell gets room for the largest.
            let found = timeout_at(deadline, ask(told.unwrap_or(limit))).await;
            room = Some(found.map_err(|_| ApiError::TooManyRequests)?);
        }
        if whole.is_empty() && first.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            // Never grown beyond what there is room for.
            whole.reserve(told.filter(|_| room.is_some()).unwrap_or(length));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    let bytes = if whole.is_empty() { first } else { whole.freeze() };
    Ok(Held { bytes, _room: room })
}

/// Takes the body of a request that is refused for its head: once it is there, the connection goes on.
pub(super) async fn pass_over(body: RequestBody, headers: &HeaderMap) {
    // Who waits for "100 Continue" has sent nothing yet.
    if !headers.contains_key(EXPECT) {
        discard(body).await;
    }
}

async fn discard(mut body: RequestBody) {
    let (mut left, time) = DISCARD;
    let deadline = Instant::now() + time;
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

/// What a `PUT` of a report says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReportBody {
    pub(super) content_type: String,
    /// The payload, byte for byte.
    pub(super) payload: Bytes,
}

#[derive(Deserialize)]
struct Wire<'a> {
    content_type: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
}

/// `null` is a payload, and not the absence of one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Takes the body of a `PUT` apart, in the order of the contract: JSON, `content_type`, `payload`.
pub(super) fn parse(body: &Bytes) -> Result<ReportBody, ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::InvalidJson)?;
    // serde would also take an array of the values in order for the object.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(ApiError::InvalidJson);
    }
    let wire: Wire<'_> = serde_json::from_str(text).map_err(|_| ApiError::InvalidJson)?;
    let content_type =
        wire.content_type.filter(|text| !text.is_empty()).ok_or(ApiError::ContentTypeRequired)?;
    let payload = wire.payload.ok_or(ApiError::PayloadRequired)?;
    // The object around the payload is one level more.
    if depth(text) > MAX_DEPTH + 1 {
        return Err(ApiError::PayloadTooDeep);
    }
    Ok(ReportBody { content_type, payload: body.slice_ref(payload.get().as_bytes()) })
}

/// Returns how deep arrays and objects are nested in valid JSON.
fn depth(json: &str) -> usize {
    let (mut now, mut deepest) = (0usize, 0);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                now += 1;
                deepest = deepest.max(now);
            }
            b'}' | b']' => now = now.saturating_sub(1),
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            bytes.next();
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    fn payload(body: &str) -> Result<String, ApiError> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        parse(&body).map(|report| String::from_utf8_lossy(&report.payload).into_owned())
    }

    #[test]
    fn the_payload_is_taken_byte_for_byte() {
        for value in [
            "null",
            "1e400",
            "\"\\u0041\"",
            "{ \"b\" : 1,\n\"a\":[ ] }",
            "[1,2]",
            "false",
            "{\"b\":1,\"b\":2}",
        ] {
            let body = format!(" {{\"content_type\":\"t\", \"payload\" :\t{value} , \"more\": {{}}}}\n");
            assert_eq!(payload(&body).as_deref(), Ok(value), "{body}");
        }
    }

    /// A body that comes in pieces of a KiB.
    fn body_of(kib: usize) -> RequestBody {
        let piece = || Ok(Frame::data(Bytes::from(vec![b' '; 1024])));
        StreamBody::new(stream::iter(std::iter::repeat_with(piece).take(kib))).boxed_unsync()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_more_than_16_kib_waits_for_room_for_all_of_it_and_what_is_less_does_not() {
        const LIMIT: usize = 64 * 1024;
        for (kib, waits) in [(0, false), (16, false), (17, true), (64, true)] {
            let (mut asked, headers) = (None, HeaderMap::new());
            let read = read(body_of(kib), &headers, LIMIT, async |bytes| {
                asked = Some(bytes);
                std::future::pending::<Room>().await
            });
            match read.await {
                Ok(held) => assert!(!waits && held.bytes.len() == kib * 1024, "{kib} KiB"),
                Err(error) => {
                    assert_eq!((error, asked), (ApiError::TooManyRequests, Some(LIMIT)), "{kib} KiB");
                }
            }
            assert_eq!(asked.is_some(), waits, "{kib} KiB");
        }
    }

    #[test]
    fn bodies_are_refused_in_the_order_of_the_contract() {
        let table = [
            ("", ApiError::InvalidJson),
            ("{", ApiError::InvalidJson),
            ("null", ApiError::InvalidJson),
            ("[\"t\", 1]", ApiError::InvalidJson),
            ("\"x\"", ApiError::InvalidJson),
            ("{\"content_type\":\"t\",\"payload\":}", ApiError::InvalidJson),
            ("{\"content_type\":\"t\",\"payload\":1} {}", ApiError::InvalidJson),
            ("{\"content_type\":\"t\",\"payload\":1}x", ApiError::InvalidJson),
            ("{\"content_type\":\"t\",\"payload\":01}", ApiError::InvalidJson),
            ("{\"content_type\":\"t\",\"payload\":1,\"payload\":2}", ApiError::InvalidJson),
            ("{\"content_type\":\"t\",\"payload\":1,\"p\\u0061yload\":2}", ApiError::InvalidJson),
            ("{\"content_type\":\"t\",\"content_type\":\"t\",\"payload\":1}", ApiError::InvalidJson),
            ("{\"content_type\":1,\"payload\":1}", ApiError::InvalidJson),
            ("{\"payload\":1}", ApiError::ContentTypeRequired),
            ("{}", ApiError::ContentTypeRequired),
            ("{\"content_type\":\"\",\"payload\":1}", ApiError::ContentTypeRequired),
            ("{\"content_type\":null,\"payload\":1}", ApiError::ContentTypeRequired),
            ("{\"content_type\":\"t\"}", ApiError::PayloadRequired),
        ];
        for (body, error) in table {
            assert_eq!(payload(body), Err(error), "{body}");
        }
        assert_eq!(parse(&Bytes::from_static(b"{\"content_type\":\"\xff\"}")), Err(ApiError::InvalidJson));
    }

    #[test]
    fn payloads_nest_64_deep_and_no_deeper() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let body = |payload: &str| format!("{{\"content_type\":\"t\",\"payload\":{payload}}}");
        assert_eq!(payload(&body(&nested(64))), Ok(nested(64)));
        assert_eq!(payload(&body(&nested(65))), Err(ApiError::PayloadTooDeep));
        assert_eq!(payload(&body(&nested(9_000))), Err(ApiError::PayloadTooDeep));
        assert_eq!(payload(&body(&"[".repeat(9_000))), Err(ApiError::InvalidJson));
        let aside = format!("{{\"content_type\":\"t\",\"payload\":1,\"x\":{}}}", nested(65));
        assert_eq!(payload(&aside), Err(ApiError::PayloadTooDeep));
    }

    #[test]
    fn brackets_in_strings_do_not_nest() {
        let string = format!("\"{}\\\"{}\\\\\"", "[".repeat(100), "{".repeat(100));
        let body = format!("{{\"content_type\":\"t\",\"payload\":{string}}}");
        assert_eq!(payload(&body), Ok(string));
    }
}
