//! `If-Match` and `If-None-Match`.

use http::header::{IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue};

use super::error::ApiError;

/// Returns the version that `If-Match` asks for, written `3` or `"3"`: digits, after a `-` if need be.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let mut values = headers.get_all(IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::InvalidIfMatch);
    }
    let text = value.to_str().map_err(|_| ApiError::InvalidIfMatch)?.trim();
    let number = match text.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"').ok_or(ApiError::InvalidIfMatch)?,
        None => text,
    };
    // Rust would take a `+`.
    if number.starts_with('+') {
        return Err(ApiError::InvalidIfMatch);
    }
    number.parse().map(Some).map_err(|_| ApiError::InvalidIfMatch)
}

/// Returns whether the client says, by `If-None-Match`, that it has what `etag` stands for (RFC 9110, 13.1.2: weak
/// comparison, `*` is anything).
pub(super) fn client_has(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let etag = etag.as_bytes();
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .any(|value| tags(value.as_bytes()).any(|tag| tag == b"*" || tag == etag))
}

/// Splits a list of entity tags, without their `W/`. Commas within quotes do not divide; ours have none, so that a
/// tag cut there never equals one.
fn tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(|tag| {
        let tag = tag.trim_ascii();
        tag.strip_prefix(b"W/").unwrap_or(tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &http::HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn if_match_is_one_integer_quoted_or_not() {
        for (value, version) in [("3", 3), ("\"3\"", 3), ("0", 0), (" 7 ", 7), ("-1", -1)] {
            assert_eq!(if_match(&with(&IF_MATCH, &[value])), Ok(Some(version)), "{value}");
        }
        assert_eq!(if_match(&HeaderMap::new()), Ok(None));
        let bad = [
            "",
            "x",
            "1.0",
            "+3",
            "\"3",
            "3\"",
            "\"\"",
            "W/\"3\"",
            "*",
            "1, 2",
            "99999999999999999999",
            "\"3\",\"4\"",
        ];
        for value in bad {
            assert_eq!(if_match(&with(&IF_MATCH, &[value])), Err(ApiError::InvalidIfMatch), "{value}");
        }
        assert_eq!(if_match(&with(&IF_MATCH, &["1", "1"])), Err(ApiError::InvalidIfMatch));
    }

    #[test]
    fn if_none_match_takes_lists_weak_tags_and_the_asterisk() {
        let etag = HeaderValue::from_static("\"5\"");
        for values in [&["\"5\""][..], &["W/\"5\""], &["*"], &["\"1\", \"5\""], &["\"1\"", "\"5\""]] {
            assert!(client_has(&with(&IF_NONE_MATCH, values), &etag), "{values:?}");
        }
        for values in [&["\"6\""][..], &["5"], &[""], &[]] {
            assert!(!client_has(&with(&IF_NONE_MATCH, values), &etag), "{values:?}");
        }
    }
}
