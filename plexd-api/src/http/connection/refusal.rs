//! What hyper answers by itself to bytes that are no request (400, 431) has no body, and hyper can not be told to
//! give it one. It is recognised among the bytes that go out, and replaced by the same in JSON, as the contract has it
//! of every error.

use bytes::Bytes;

/// No such head is longer. (414 is not among them: a head has no room for an address that is too long.)
const LONGEST: usize = 256;

/// Returns where in `bytes` hyper's own refusal begins, if they end with one, and what to send in its place.
///
/// Nothing else looks like it: no answer of this API to an error is empty, and no JSON text has a line end followed by
/// such a head.
pub(in crate::http) fn find(bytes: &[u8]) -> Option<(usize, Bytes)> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = bytes.len().saturating_sub(LONGEST);
    // In the version that the client spoke before.
    let is_start = |window: &[u8]| window.starts_with(b"HTTP/1.") && window.ends_with(b" 4");
    let at = tail + bytes[tail..].windows(10).rposition(is_start)?;
    let head = std::str::from_utf8(&bytes[at..]).ok()?;
    if !head.lines().any(|line| line.eq_ignore_ascii_case("content-length: 0")) {
        return None;
    }
    let (status, text) = match head.get(9..12)? {
        "400" => ("400 Bad Request", "bad request"),
        "431" => ("431 Request Header Fields Too Large", "request header fields too large"),
        _ => return None,
    };
    let body = format!("{{\"error\":\"{text}\"}}");
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    Some((at, answer.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str =
        "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

    #[test]
    fn hypers_own_refusal_is_found_behind_whatever_went_before() {
        for before in ["", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"] {
            let (at, answer) = find(format!("{before}{OWN}").as_bytes()).unwrap();
            assert_eq!(at, before.len());
            assert!(
                answer.ends_with(b"\r\n\r\n{\"error\":\"request header fields too large\"}"),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn it_is_found_also_after_a_request_in_version_1_0() {
        let own = OWN.replace("HTTP/1.1", "HTTP/1.0").replace("connection: close\r\n", "");
        assert!(find(own.as_bytes()).is_some_and(|(at, _)| at == 0));
    }

    #[test]
    fn other_answers_are_left_alone() {
        for answer in [
            "",
            "\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 21\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 21\r\n\r\n{\"error\":\"not found\"}",
            "HTTP/1.1 4a\u{20ac}\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(find(answer.as_bytes()), None, "{answer}");
        }
    }
}
