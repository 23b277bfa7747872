//! The SHA-256 digest of a file, as the documents write it: `sha256:` and 64 hexadecimal digits.

use std::fmt;
use std::str::FromStr;

const LENGTH: usize = 32;

/// The SHA-256 digest of a file. Public, so compared without care for time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksum([u8; LENGTH]);

/// A text is no SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 checksum: expected 'sha256:' and 64 hexadecimal digits")]
pub struct ChecksumError;

impl From<[u8; LENGTH]> for Checksum {
    fn from(digest: [u8; LENGTH]) -> Self {
        Self(digest)
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    /// Parses `sha256:` and hexadecimal digits of either case; the digits alone are taken too, as `sha256sum` prints
    /// them.
    fn from_str(text: &str) -> Result<Self, ChecksumError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        let mut digest = [0; LENGTH];
        if digits.len() != 2 * LENGTH {
            return Err(ChecksumError);
        }
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
        }
        Ok(Self(digest))
    }
}

fn digit(byte: u8) -> Result<u8, ChecksumError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(ChecksumError),
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_64_digits_with_or_without_its_name() {
        let digits = "0123456789abcdef".repeat(4);
        for text in [format!("sha256:{digits}"), digits.clone(), digits.to_uppercase()] {
            assert_eq!(text.parse::<Checksum>().unwrap().to_string(), format!("sha256:{digits}"));
        }
        for bad in ["", "sha256:", "sha512:00", &digits[1..], &format!("{digits}0"), &"g".repeat(64)] {
            assert_eq!(bad.parse::<Checksum>(), Err(ChecksumError), "{bad}");
        }
    }
}
