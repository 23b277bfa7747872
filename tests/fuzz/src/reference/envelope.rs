//! Signed envelopes (contract, section 2): what is signed, and for which time.

use super::json;

/// A well-formed envelope.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// Event type, decoded.
    pub event_type: String,
    /// Event id, decoded.
    pub event_id: String,
    /// Nonce, decoded.
    pub nonce: String,
    /// Payload as spelled.
    pub payload: &'a str,
    /// The signature's token.
    pub signature: &'a str,
    /// Nanoseconds since 1970.
    pub issued: i128,
    issued_at: String,
    compact: String,
}

impl<'a> Envelope<'a> {
    /// Reads one; `None` if it is malformed.
    pub fn read(data: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(data).ok()?;
        let tokens = json::tokens(text)?;
        let members = json::members(&tokens)?;
        let mut names: Vec<&String> = members.iter().map(|(name, _)| name).collect();
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        let value = |name: &str| members.iter().find(|(of, _)| of == name).map(|(_, value)| *value);
        let string = |name: &str| match value(name)? {
            [token] => json::decoded(token),
            _ => None,
        };
        let filled = |name: &str| string(name).filter(|text| !text.is_empty());
        let signature = value("signature")?;
        string("signature")?;
        let payload = value("payload")?;
        let issued_at = filled("issued_at")?;
        Some(Self {
            event_type: filled("event_type")?,
            event_id: filled("event_id")?,
            nonce: filled("nonce")?,
            payload: spelled(text, payload),
            signature: signature[0],
            issued: nanoseconds(&issued_at)?,
            issued_at,
            compact: payload.concat(),
        })
    }

    /// Returns the two forms of the bytes that may be signed: with the shortest time, and with the one received.
    pub fn canonical(&self) -> [String; 2] {
        [shortest(&self.issued_at), self.issued_at.clone()].map(|issued_at| {
            // serde_json writes the shortest escapes.
            let strings = [&self.event_type, &self.event_id, &issued_at, &self.nonce]
                .map(|text| serde_json::Value::from(text.as_str()).to_string());
            let [event_type, event_id, issued_at, nonce] = strings;
            let payload = self
                .compact
                .replace('<', "\\u003c")
                .replace('>', "\\u003e")
                .replace('&', "\\u0026")
                .replace('\u{2028}', "\\u2028")
                .replace('\u{2029}', "\\u2029");
            format!(
                r#"{{"event_type":{event_type},"event_id":{event_id},"issued_at":{issued_at},"nonce":{nonce},"payload":{payload}}}"#
            )
        })
    }
}

/// The part of `text` from the first to the last of `tokens`, which are parts of it.
fn spelled<'a>(text: &'a str, tokens: &[&'a str]) -> &'a str {
    let offset = |token: &str| token.as_ptr().addr() - text.as_ptr().addr();
    match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => &text[offset(first)..offset(last) + last.len()],
        _ => "",
    }
}

/// Drops trailing zeros of the fraction.
fn shortest(time: &str) -> String {
    let Some((before, after)) = time.split_once('.') else { return time.to_owned() };
    let zone = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
    let digits = after[..after.len() - zone.len()].trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    format!("{before}{point}{digits}{zone}")
}

/// Reads an RFC 3339 time of at most 64 bytes: nanoseconds since 1970, the rest cut off.
fn nanoseconds(text: &str) -> Option<i128> {
    let pattern = "dddd-dd-ddTdd:dd:dd";
    let (head, tail) = text.split_at_checked(pattern.len())?;
    let fits = |(byte, wanted): (u8, u8)| match wanted {
        b'd' => byte.is_ascii_digit(),
        b'T' => byte == b'T' || byte == b't',
        other => byte == other,
    };
    if text.len() > 64 || !head.bytes().zip(pattern.bytes()).all(fits) {
        return None;
    }
    let field = |from: usize, to: usize| head[from..to].parse::<i128>().ok();
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let february = if leap { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::try_from(month).ok().filter(|month| (1..=12).contains(month))?;
    if !(1..=lengths[month - 1]).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years before this one have 365 days, and one more for each leap year from year 0 on.
    let before = year - 1;
    let leaps = if year > 0 { before / 4 - before / 100 + before / 400 + 1 } else { 0 };
    let days = year * 365 + leaps + lengths[..month - 1].iter().sum::<i128>() + day - 1;
    let days_to_1970 = 719_528;
    let (fraction, zone) = match tail.strip_prefix('.') {
        Some(rest) => {
            let zone = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
            let digits = &rest[..rest.len() - zone.len()];
            if digits.is_empty() {
                return None;
            }
            (format!("{digits}000000000")[..9].parse::<i128>().ok()?, zone)
        }
        None => (0, tail),
    };
    let seconds = (days - days_to_1970) * 86_400 + hour * 3600 + minute * 60 + second - offset(zone)?;
    Some(seconds * 1_000_000_000 + fraction)
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Option<i128> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let bytes = zone.as_bytes();
    let digits = [1, 2, 4, 5];
    let is_zone = bytes.len() == 6
        && (bytes[0] == b'+' || bytes[0] == b'-')
        && bytes[3] == b':'
        && digits.iter().all(|at| bytes[*at].is_ascii_digit());
    if !is_zone {
        return None;
    }
    let (hours, minutes) = (zone[1..3].parse::<i128>().ok()?, zone[4..6].parse::<i128>().ok()?);
    let seconds = hours * 3600 + minutes * 60;
    (hours < 24 && minutes < 60).then_some(if bytes[0] == b'-' { -seconds } else { seconds })
}
