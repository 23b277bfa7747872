//! What plexd-api's parsers make of the parts of a request, compared with other ways to read the same.

use bytes::Bytes;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue};
use plexd_api::auth::Need;
use plexd_api::http::{ApiError, parts};

use crate::reference::json;

/// Deepest nesting of a report's body: the payload's, and the object around it.
const MAX_DEPTH: usize = 65;

/// A path: its route, and the key that it names.
pub fn path(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    let segments: Vec<&str> = path.split('/').collect();
    let expected = match segments[..] {
        ["", "v1", "state", "secrets", _] => Some(("/v1/state/secrets/{key}", Need::Secrets)),
        ["", "v1", "state", "metadata", _] => Some(("/v1/state/metadata/{key}", Need::Access)),
        ["", "v1", "state", "data", _] => Some(("/v1/state/data/{key}", Need::Access)),
        ["", "v1", "state", "report", _] => Some(("/v1/state/report/{key}", Need::Access)),
        _ => None,
    };
    match parts::route(path) {
        Some(route) if route.0.ends_with("{key}") => assert_eq!(Some(route), expected, "{path:?}"),
        Some(route) => assert!(route == (path, Need::Access) && expected.is_none(), "{path:?}: {route:?}"),
        None => assert_eq!(expected, None, "{path:?}"),
    }
    assert_eq!(
        parts::key(path),
        decoded(segments[segments.len() - 1]).ok_or(ApiError::InvalidKey),
        "{path:?}"
    );
}

/// Decodes a segment of a path by what is between its percent signs.
fn decoded(segment: &str) -> Option<String> {
    let mut between = segment.split('%');
    let mut bytes = between.next()?.as_bytes().to_vec();
    for piece in between {
        let (digits, rest) = piece.split_at_checked(2)?;
        if !digits.chars().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    let key = String::from_utf8(bytes).ok()?;
    let is_key = (1..=256).contains(&key.len()) && !key.chars().any(char::is_control);
    is_key.then_some(key)
}

/// Values of `If-Match`, and of `If-None-Match`.
pub fn conditions(data: &[u8]) {
    let values: Vec<HeaderValue> =
        crate::parts(data).filter_map(|part| HeaderValue::from_bytes(part).ok()).collect();
    let of = |name: &HeaderName| -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.clone())).collect()
    };
    let expected = match &values[..] {
        [] => Ok(None),
        [value] => version(value.as_bytes()).map(Some).ok_or(ApiError::InvalidIfMatch),
        _ => Err(ApiError::InvalidIfMatch),
    };
    assert_eq!(parts::if_match(&of(&IF_MATCH)), expected, "{values:?}");

    let etag = HeaderValue::from_static("\"5\"");
    let has = parts::client_has(&of(&IF_NONE_MATCH), &etag);
    let expected = values.iter().any(|value| names(value.as_bytes()));
    assert_eq!(has, expected, "{values:?}");
}

/// Reads `3` or `"3"`.
fn version(value: &[u8]) -> Option<i64> {
    let text: String = value.iter().copied().map(char::from).collect();
    let text = text.trim_matches([' ', '\t']);
    let quotes = text.matches('"').count();
    let is_quoted = quotes == 2 && text.starts_with('"') && text.ends_with('"') && text.len() > 1;
    let number = if is_quoted { text.trim_matches('"') } else { text };
    let digits = number.strip_prefix('-').unwrap_or(number);
    let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_ascii_digit());
    // Whatever does not fit is none.
    is_number.then(|| number.parse().ok())?
}

/// Whether a list of tags has `"5"`, or is `*`. Tags with commas within are cut there, and equal nothing.
fn names(list: &[u8]) -> bool {
    let text: String = list.iter().copied().map(char::from).collect();
    text.split(',').any(|tag| {
        let tag = tag.trim_matches(|character: char| character.is_ascii_whitespace());
        matches!(tag, "*" | "W/*" | "\"5\"" | "W/\"5\"")
    })
}

/// The body of a `PUT`.
pub fn report(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    let parsed = parts::report(&body);
    if let Ok((content_type, payload)) = &parsed {
        assert!(!content_type.is_empty());
        let (whole, part) = (body.as_ptr_range(), payload.as_ptr_range());
        assert!(whole.start <= part.start && part.end <= whole.end, "a payload of other bytes");
    }
    let deepest = std::str::from_utf8(data).ok().and_then(json::tokens).map_or(0, |tokens| depth(&tokens));
    if deepest > 100 {
        // More than the reference reads.
        assert!(parsed.is_err());
        return;
    }
    // Half a surrogate pair is JSON by its grammar, and stays as it is within a payload; the reference decodes it.
    if data.to_ascii_lowercase().windows(3).any(|window| window == b"\\ud") {
        return;
    }
    assert_eq!(parsed.map(|(content_type, payload)| (content_type, payload.to_vec())), read(data, deepest));
}

fn depth(tokens: &[&str]) -> usize {
    let (mut now, mut deepest) = (0_usize, 0);
    for token in tokens {
        match *token {
            "{" | "[" => now += 1,
            "}" | "]" => now = now.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(now);
    }
    deepest
}

/// Reads a report's body by its tokens.
fn read(data: &[u8], deepest: usize) -> Result<(String, Vec<u8>), ApiError> {
    let text = std::str::from_utf8(data).map_err(|_| ApiError::InvalidJson)?;
    let tokens = json::tokens(text).ok_or(ApiError::InvalidJson)?;
    let members = json::members(&tokens).ok_or(ApiError::InvalidJson)?;
    let of = |name: &str| -> Result<Option<&[&str]>, ApiError> {
        let mut values = members.iter().filter(|(known, _)| known == name).map(|(_, value)| *value);
        let first = values.next();
        if values.next().is_some() { Err(ApiError::InvalidJson) } else { Ok(first) }
    };
    let (content_type, payload) = (of("content_type")?, of("payload")?);
    let content_type = match content_type {
        None | Some(["null"]) => None,
        Some([token]) => Some(json::decoded(token).ok_or(ApiError::InvalidJson)?),
        Some(_) => return Err(ApiError::InvalidJson),
    };
    let content_type = content_type.filter(|text| !text.is_empty()).ok_or(ApiError::ContentTypeRequired)?;
    let payload = payload.ok_or(ApiError::PayloadRequired)?;
    if deepest > MAX_DEPTH {
        return Err(ApiError::PayloadTooDeep);
    }
    // From where its first token begins to where its last one ends.
    let [first, .., last] = payload else {
        return Ok((content_type, payload[0].as_bytes().to_vec()));
    };
    let begin = first.as_ptr().addr() - text.as_ptr().addr();
    let end = last.as_ptr().addr() + last.len() - text.as_ptr().addr();
    Ok((content_type, data[begin..end].to_vec()))
}

/// Bytes that are about to be sent: only a refusal of the HTTP parser's own is replaced, by one in JSON.
pub fn rewriting(data: &[u8]) {
    if let Some((at, answer)) = parts::refusal(data) {
        let head = std::str::from_utf8(&data[at..]).expect("a head is text");
        assert!(
            head.starts_with("HTTP/1.") && head[8..].starts_with(" 4") && head.ends_with("\r\n\r\n"),
            "{head:?}"
        );
        assert!(head.lines().any(|line| line.eq_ignore_ascii_case("content-length: 0")), "{head:?}");
        let answers = crate::reference::http::answers(&answer);
        let [answer] = &answers[..] else { panic!("{answers:?}") };
        assert!(matches!(answer.status, 400 | 431) && head[9..12] == answer.status.to_string(), "{head:?}");
        assert!(answer.body.starts_with(r#"{"error":""#), "{answer:?}");
        let length = answer.header("content-length").expect("a length");
        assert_eq!(length, answer.body.len().to_string());
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    // What applications and the control plane write is JSON, or within it, wherever an answer with it is cut.
    if serde_json::from_slice::<serde_json::Value>(data).is_ok() {
        for status in ["200 OK", "404 Not Found"] {
            let length = data.len();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            assert_eq!(parts::refusal(&[head.as_bytes(), data].concat()), None);
        }
        assert_eq!(parts::refusal(data), None);
    }
}
