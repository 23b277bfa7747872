//! The event stream as a whole text (WHATWG HTML, "Interpreting an event stream"), with plexd-core's limits.

use std::time::Duration;

use plexd_core::control::sse::Item;

/// Longest id that is taken, in bytes.
const MAX_ID: usize = 1024;

/// What a line may have over the limit: a byte order mark and the name of a field.
const SLACK: usize = 9;

/// Returns what the stream says.
pub fn items(stream: &[u8], limit: usize) -> Vec<Item> {
    let mut items = Vec::new();
    let (mut id, mut event, mut data, mut is_too_large) = (None, String::new(), Vec::<u8>::new(), false);
    for (number, raw) in lines(stream).into_iter().enumerate() {
        let line = raw.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 0).unwrap_or(raw);
        if line.is_empty() {
            let text = std::mem::take(&mut data);
            let name = Some(std::mem::take(&mut event)).filter(|name| !name.is_empty());
            if std::mem::take(&mut is_too_large) {
                items.push(Item::TooLarge { id: id.clone() });
            } else if let Some((_, text)) = text.split_last() {
                items.push(Item::Event {
                    id: id.clone(),
                    event: name.unwrap_or_else(|| "message".to_owned()),
                    data: text.to_vec().into(),
                });
            }
            continue;
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let value = value.strip_prefix(b" ").unwrap_or(value);
        // A comment.
        if line[0] == b':' {
            continue;
        }
        if raw.len() > limit + SLACK {
            is_too_large = true;
            data.clear();
            continue;
        }
        let text = String::from_utf8_lossy(value).into_owned();
        match name {
            b"data" if is_too_large || data.len() + value.len() > limit => {
                is_too_large = true;
                data.clear();
            }
            b"data" => {
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            b"event" => event = text,
            b"id" if value.len() <= MAX_ID && !value.contains(&0) => id = Some(text),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                items.push(Item::Retry(Duration::from_millis(text.parse().unwrap_or(u64::MAX))));
            }
            _ => {}
        }
    }
    items
}

/// The lines that have ended.
fn lines(stream: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = stream;
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        lines.push(&rest[..end]);
        rest = rest[end..].strip_prefix(b"\r\n").unwrap_or(&rest[end + 1..]);
    }
    lines
}
