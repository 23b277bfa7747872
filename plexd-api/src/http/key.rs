//! Keys in paths: one percent-encoded segment, the last.

use super::error::ApiError;

/// Longest key, in bytes after decoding.
const MAX_KEY: usize = 256;

/// Returns the key that the last segment of `path`, as it was sent, stands for.
pub(super) fn of(path: &str) -> Result<String, ApiError> {
    let segment = path.rsplit('/').next().unwrap_or_default();
    let decoded = decode(segment.as_bytes()).ok_or(ApiError::InvalidKey)?;
    let key = String::from_utf8(decoded).map_err(|_| ApiError::InvalidKey)?;
    if key.is_empty() || key.len() > MAX_KEY || key.chars().any(char::is_control) {
        return Err(ApiError::InvalidKey);
    }
    Ok(key)
}

/// Decodes percent-encoding, strictly: a `%` that two hexadecimal digits do not follow is an error.
fn decode(segment: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = segment.iter().copied();
    let mut out = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' { hex(bytes.next()?)? << 4 | hex(bytes.next()?)? } else { byte });
    }
    Some(out)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_segment_is_the_key_decoded_once() {
        let long = "k".repeat(256);
        let table = [
            ("/v1/state/data/routes.json", "routes.json"),
            ("/v1/state/data/db%2Fpassword", "db/password"),
            ("/v1/state/data/db%2fpassword", "db/password"),
            ("/v1/state/data/a%252Fb", "a%2Fb"),
            ("/v1/state/data/a+b%20c", "a+b c"),
            ("/v1/state/data/%C3%BC", "ü"),
            ("/v1/state/data/..", ".."),
            ("/v1/state/data/..%2F..%2Fpwned", "../../pwned"),
            (&format!("/v1/state/data/{long}"), &long),
        ];
        for (path, key) in table {
            assert_eq!(of(path).as_deref(), Ok(key), "{path}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = "k".repeat(257);
        for segment in
            ["", "%", "%2", "%zz", "%2g", "a%", "%00", "a%0Ab", "%7f", "%C2%85", "%ff", "%C3", &long]
        {
            assert_eq!(of(&format!("/v1/state/data/{segment}")), Err(ApiError::InvalidKey), "{segment}");
        }
    }
}
