//! Signed event envelopes: the canonical bytes, the signature over them, and the one-line form of the SSE `data:`
//! field. Pure: no clock, no randomness, no I/O.

use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::value::RawValue;

use crate::encoding;

/// The signed members of an envelope, before the signature exists.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// Event type, such as `peer_added`.
    pub event_type: &'a str,
    /// Identifier of the event, also the SSE `id:`.
    pub event_id: &'a str,
    /// RFC 3339 time, written as given.
    pub issued_at: &'a str,
    /// Replay protection.
    pub nonce: &'a str,
    /// Any JSON value; order of members and spelling of numbers and escapes are kept.
    pub payload: &'a RawValue,
}

/// Returns the bytes that are signed (contract, "Signed envelopes"): the five members in fixed order without white
/// space, strings with the fewest escapes, the payload compact and with `<`, `>`, `&`, U+2028 and U+2029 escaped.
#[must_use]
pub fn canonical(draft: &Draft<'_>) -> String {
    format!("{}}}", open_members(draft))
}

/// Returns the envelope as it goes over the wire: the canonical members, then `signature`, on one line.
#[must_use]
pub fn seal(draft: &Draft<'_>, key: &SigningKey) -> String {
    let mut text = open_members(draft);
    text.push('}');
    let signature = encoding::base64(&key.sign(text.as_bytes()).to_bytes());
    text.pop();
    text.push_str(r#","signature":""#);
    text.push_str(&signature);
    text.push_str("\"}");
    text
}

fn open_members(draft: &Draft<'_>) -> String {
    format!(
        r#"{{"event_type":{},"event_id":{},"issued_at":{},"nonce":{},"payload":{}"#,
        string(draft.event_type),
        string(draft.event_id),
        string(draft.issued_at),
        string(draft.nonce),
        compact(draft.payload.get()),
    )
}

/// `serde_json` writes exactly the short escapes and `\u00xx` for other controls, nothing else.
fn string(text: &str) -> String {
    serde_json::to_string(text).expect("a string always serialises")
}

/// Removes white space outside strings and escapes the five characters; `json` is well-formed by its type.
fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut in_string = false;
    let mut escaped = false;
    for c in json.chars() {
        match c {
            ' ' | '\t' | '\n' | '\r' if !in_string => continue,
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else {
            in_string = c == '"';
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::compact;

    #[test]
    fn payloads_are_compacted_outside_strings_only() {
        let cases = [
            ("null", "null"),
            ("{\n \"a\" : [ 1 , 2 ] }", r#"{"a":[1,2]}"#),
            (r#"{"a b": "c  d"}"#, r#"{"a b":"c  d"}"#),
            (r#"["\" x", "\\" , " "]"#, r#"["\" x","\\"," "]"#),
            ("\"<>&\u{2028}\u{2029}\"", r#""\u003c\u003e\u0026\u2028\u2029""#),
            (r#"[1.0, 1e3, "\u00e9"]"#, r#"[1.0,1e3,"\u00e9"]"#),
        ];
        for (given, wanted) in cases {
            assert_eq!(compact(given), wanted);
        }
    }
}
