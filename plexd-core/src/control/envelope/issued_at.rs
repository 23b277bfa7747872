//! `issued_at`: an RFC 3339 time, kept as spelled, because its spelling is signed.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// Longest spelling accepted, in bytes.
const MAX_LENGTH: usize = 64;

/// An RFC 3339 time.
pub(super) struct IssuedAt {
    spelled: String,
    /// Without trailing zeros in the fraction, if that is another spelling.
    shortest: Option<String>,
    /// The time; digits past nanoseconds do not count.
    pub(super) time: Timestamp,
}

impl IssuedAt {
    /// Parses RFC 3339, section 5.6, without leap seconds.
    pub(super) fn parse(spelled: String) -> Option<Self> {
        if spelled.len() > MAX_LENGTH || !spelled.is_ascii() {
            return None;
        }
        let (date_time, rest) = spelled.split_at_checked("2006-01-02T15:04:05".len())?;
        let (fraction, zone) = split_fraction(rest)?;
        let time = offset(zone)?.to_timestamp(civil(date_time, fraction)?).ok()?;
        let significant = fraction.trim_end_matches('0');
        let shortest = (significant.len() < fraction.len()).then(|| match significant {
            "" => format!("{date_time}{zone}"),
            _ => format!("{date_time}.{significant}{zone}"),
        });
        Some(Self { spelled, shortest, time })
    }

    /// Returns the spellings that may be signed: the shortest, and the one received.
    pub(super) fn spellings(&self) -> impl Iterator<Item = &str> {
        self.shortest.iter().chain(std::iter::once(&self.spelled)).map(String::as_str)
    }
}

fn split_fraction(rest: &str) -> Option<(&str, &str)> {
    let Some(fraction) = rest.strip_prefix('.') else {
        return Some(("", rest));
    };
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| fraction.split_at(digits))
}

fn civil(text: &str, fraction: &str) -> Option<DateTime> {
    let bytes = text.as_bytes();
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| bytes[*at] != *byte) || !b"Tt".contains(&bytes[10]) {
        return None;
    }
    let nanosecond = format!("{fraction:0<9.9}");
    DateTime::new(
        i16::try_from(number(&text[0..4])?).ok()?,
        two_digits(&text[5..7])?,
        two_digits(&text[8..10])?,
        two_digits(&text[11..13])?,
        two_digits(&text[14..16])?,
        two_digits(&text[17..19])?,
        number(&nanosecond)?,
    )
    .ok()
}

fn offset(zone: &str) -> Option<Offset> {
    if zone == "Z" || zone == "z" {
        return Some(Offset::UTC);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours < 24 && minutes < 60).then(|| Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok())?
}

fn two_digits(text: &str) -> Option<i8> {
    i8::try_from(number(text)?).ok()
}

/// Parses digits and nothing else: no sign, no space.
fn number(text: &str) -> Option<i32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_spelling_drops_trailing_zeros_and_keeps_the_zone() {
        for (spelled, shortest, time) in [
            ("2026-01-15T10:30:00Z", None, "2026-01-15T10:30:00Z"),
            ("2026-01-15T10:30:00.100Z", Some("2026-01-15T10:30:00.1Z"), "2026-01-15T10:30:00.1Z"),
            ("2026-01-15T11:30:00.000+01:00", Some("2026-01-15T11:30:00+01:00"), "2026-01-15T10:30:00Z"),
            ("2026-01-15T10:30:00.0+00:00", Some("2026-01-15T10:30:00+00:00"), "2026-01-15T10:30:00Z"),
            ("2026-01-15t05:00:00.5-05:30", None, "2026-01-15T10:30:00.5Z"),
            ("2026-01-15T10:30:00.1234567890123z", None, "2026-01-15T10:30:00.123456789Z"),
        ] {
            let parsed = IssuedAt::parse(spelled.to_owned()).expect(spelled);
            assert_eq!((parsed.shortest.as_deref(), parsed.time.to_string().as_str()), (shortest, time));
        }
    }

    #[test]
    fn what_is_not_rfc_3339_is_no_time() {
        for bad in [
            "",
            "yesterday",
            "2026-01-15",
            "2026-01-15T10:30:00",
            "2026-01-15 10:30:00Z",
            "2026-01-15T10:30Z",
            "2026-01-15T10:30:00,5Z",
            "2026-01-15T10:30:00.Z",
            "2026-01-15T10:30:00+01",
            "2026-01-15T10:30:00+0100",
            "2026-01-15T10:30:00+24:00",
            "2026-01-15T10:30:00+01:60",
            "2026-01-15T24:00:00Z",
            "2026-01-15T10:30:60Z",
            "2026-02-29T10:30:00Z",
            "2026-13-15T10:30:00Z",
            "+026-01-15T10:30:00Z",
            "2026-01-15T10:30:+1Z",
            "2026-01-15T10:30:00Z ",
            "2026-01-15T10:30:00ZZ",
            "2026-01-15T10:30:00Z[UTC]",
            "2026-01-15T10:30:0\u{0660}Z",
            "1768473000",
        ] {
            assert!(IssuedAt::parse(bad.to_owned()).is_none(), "{bad}");
        }
    }
}
