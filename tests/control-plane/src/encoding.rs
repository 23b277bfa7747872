//! Small encodings used everywhere: base64, hex, random bytes, times as text. Knows nothing of the protocol.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, Unit};

/// Encodes standard base64 with padding, the only alphabet of the documents.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes standard base64 of exactly 32 bytes, or says nothing about what it was.
pub(crate) fn key32(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Returns `N` bytes of the system's random source.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source works once the machine is up");
    bytes
}

/// Returns `N` random bytes as lower-case hex.
pub(crate) fn random_hex<const N: usize>() -> String {
    use std::fmt::Write as _;
    random::<N>().iter().fold(String::with_capacity(2 * N), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

/// The present, to the millisecond, in the shortest RFC 3339 form.
pub(crate) fn now_text() -> String {
    time_text(Timestamp::now())
}

/// Writes `time`, rounded to the millisecond, in the shortest RFC 3339 form (no trailing zeros in the fraction).
pub(crate) fn time_text(time: Timestamp) -> String {
    time.round(Unit::Millisecond).unwrap_or(time).to_string()
}

/// Reads an RFC 3339 time; narrower than jiff's parser, which also takes ISO 8601 variants and zone annotations.
pub(crate) fn parse_time(text: &str) -> Option<Timestamp> {
    let shape = text.len() >= 20 && text.as_bytes()[10] == b'T' && !text.contains('[');
    if !shape {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{key32, parse_time, random_hex, time_text};

    #[test]
    fn times_are_written_in_the_shortest_form() {
        let cases = [
            (1_768_473_000_000, "2026-01-15T10:30:00Z"),
            (1_768_473_000_100, "2026-01-15T10:30:00.1Z"),
            (1_768_473_000_123, "2026-01-15T10:30:00.123Z"),
        ];
        for (millis, text) in cases {
            let time = jiff::Timestamp::from_millisecond(millis).expect("in range");
            assert_eq!(time_text(time), text);
        }
    }

    #[test]
    fn only_rfc3339_is_a_time() {
        for good in ["2026-01-15T10:30:00Z", "2026-01-15T11:30:00.5+01:00"] {
            assert!(parse_time(good).is_some(), "{good}");
        }
        for bad in ["", "yesterday", "2026-01-15", "2026-01-15 10:30:00Z", "2026-01-15T10:30:00"] {
            assert!(parse_time(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn keys_are_32_bytes_of_standard_base64() {
        assert!(key32("FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlGo=").is_some());
        for bad in [
            "",
            "AAAA",
            "FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlGo",
            "...",
            "FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGw",
        ] {
            assert!(key32(bad).is_none(), "{bad}");
        }
        assert_eq!(random_hex::<4>().len(), 8);
    }
}
