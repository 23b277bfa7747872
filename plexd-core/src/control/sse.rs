//! Server-sent events as they arrive: a push parser of the WHATWG event stream format, fed with chunks split anywhere.
//! Linear in time and bounded in memory: an event over the limit is dropped and said to be, and parsing goes on.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

/// Largest event: the text of its `data` lines, or any one of its lines, in bytes (contract, section 2).
pub const MAX_EVENT: usize = 8 * 1024 * 1024;

/// Longest event id, in bytes; longer ones are ignored. They come back in a request header.
const MAX_ID: usize = 1024;

/// Buffers above this are given back after use.
const KEPT_CAPACITY: usize = 64 * 1024;

/// What the stream said. An event's data may hold key material and does not show in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event {
        /// The last id that the stream set, in this event or before; empty if it was reset, `None` if there was none.
        id: Option<String>,
        /// The type; `message` if it had none.
        event: String,
        /// The `data` lines, joined by line feeds. Not necessarily UTF-8.
        data: Bytes,
    },
    /// How long to wait before connecting again.
    Retry(Duration),
    /// An event that was over [`MAX_EVENT`] and is lost.
    TooLarge {
        /// As in [`Item::Event`].
        id: Option<String>,
    },
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { id, event, data } => f
                .debug_struct("Event")
                .field("id", id)
                .field("event", event)
                .field("data", &format_args!("{} bytes", data.len()))
                .finish(),
            Self::Retry(delay) => f.debug_tuple("Retry").field(delay).finish(),
            Self::TooLarge { id } => f.debug_struct("TooLarge").field("id", id).finish(),
        }
    }
}

/// The parser of one connection.
pub struct Parser {
    max_event: usize,
    /// The line being received.
    line: Vec<u8>,
    state: LineState,
    is_first_line: bool,
    /// The last byte was a CR that ended a line: an LF right after it ends none.
    after_cr: bool,
    id: Option<String>,
    event: String,
    /// The event's `data` lines, each ended by a line feed.
    data: Vec<u8>,
    is_too_large: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineState {
    /// Kept for what it may mean.
    Kept,
    /// A comment, or too long: nothing of it is kept.
    Skipped,
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parser").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Creates the parser of a new connection.
    pub fn new() -> Self {
        Self::with_limit(MAX_EVENT)
    }

    /// Creates one that drops events over `max_event` bytes instead of [`MAX_EVENT`].
    pub fn with_limit(max_event: usize) -> Self {
        Self {
            max_event,
            line: Vec::new(),
            state: LineState::Kept,
            is_first_line: true,
            after_cr: false,
            id: None,
            event: String::new(),
            data: Vec::new(),
            is_too_large: false,
        }
    }

    /// Returns how many bytes are held of what is not complete: at most the limit twice, and a few more.
    pub fn buffered(&self) -> usize {
        self.line.len() + self.data.len()
    }

    /// Takes the next bytes and hands what they complete to `out`.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut impl FnMut(Item)) {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.extend_line(bytes);
                return;
            };
            self.extend_line(&bytes[..end]);
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line(out);
        }
    }

    fn extend_line(&mut self, part: &[u8]) {
        if self.state == LineState::Skipped {
            return;
        }
        if self.is_comment(part) {
            self.state = LineState::Skipped;
            self.line.clear();
            return;
        }
        // The longest line that can be within the limit, with a byte order mark before it.
        if self.line.len() + part.len() > self.max_event + "\u{feff}data: ".len() {
            self.is_too_large = true;
            self.state = LineState::Skipped;
            self.line = Vec::new();
            return;
        }
        self.line.extend_from_slice(part);
    }

    /// Returns whether the line is a comment, if `part` is what makes that clear.
    fn is_comment(&self, part: &[u8]) -> bool {
        if !self.is_first_line {
            return self.line.is_empty() && part.first() == Some(&b':');
        }
        let mark = "\u{feff}:".as_bytes();
        let mut start = self.line.iter().chain(part).take(mark.len()).peekable();
        start.peek() == Some(&&b':') || start.eq(mark)
    }

    fn end_line(&mut self, out: &mut impl FnMut(Item)) {
        let is_first = std::mem::take(&mut self.is_first_line);
        if std::mem::replace(&mut self.state, LineState::Kept) == LineState::Skipped {
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        let text = match line.strip_prefix("\u{feff}".as_bytes()) {
            Some(rest) if is_first => rest,
            _ => &line,
        };
        if text.is_empty() {
            self.dispatch(out);
        } else {
            self.field(text, out);
        }
        if line.capacity() <= KEPT_CAPACITY {
            line.clear();
            self.line = line;
        }
    }

    fn field(&mut self, line: &[u8], out: &mut impl FnMut(Item)) {
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => self.extend_data(value),
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"id" if !value.contains(&0) && value.len() <= MAX_ID => {
                self.id = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let digits = String::from_utf8_lossy(value);
                out(Item::Retry(Duration::from_millis(digits.parse().unwrap_or(u64::MAX))));
            }
            _ => {}
        }
    }

    fn extend_data(&mut self, value: &[u8]) {
        if self.is_too_large {
            return;
        }
        if self.data.len() + value.len() > self.max_event {
            self.is_too_large = true;
            self.data = Vec::new();
            return;
        }
        self.data.extend_from_slice(value);
        self.data.push(b'\n');
    }

    fn dispatch(&mut self, out: &mut impl FnMut(Item)) {
        let mut data = std::mem::take(&mut self.data);
        let event = std::mem::take(&mut self.event);
        if std::mem::take(&mut self.is_too_large) {
            out(Item::TooLarge { id: self.id.clone() });
        } else if data.pop().is_some() {
            let event = if event.is_empty() { "message".to_owned() } else { event };
            out(Item::Event { id: self.id.clone(), event, data: data.into() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn parse_with(parser: &mut Parser, chunks: &[&[u8]]) -> Vec<Item> {
        let mut items = Vec::new();
        for chunk in chunks {
            parser.feed(chunk, &mut |item| items.push(item));
        }
        items
    }

    fn parse(text: &str) -> Vec<Item> {
        parse_with(&mut Parser::new(), &[text.as_bytes()])
    }

    fn event(id: Option<&str>, event: &str, data: &str) -> Item {
        let data = Bytes::copy_from_slice(data.as_bytes());
        Item::Event { id: id.map(str::to_owned), event: event.to_owned(), data }
    }

    #[test]
    fn fields_are_read_as_the_standard_has_them() {
        for (text, items) in [
            ("data: a\n\n", vec![event(None, "message", "a")]),
            ("data:a\r\rdata:  b\r\n\r\n", vec![event(None, "message", "a"), event(None, "message", " b")]),
            ("id: 1\nevent: peer_added\ndata: {\ndata: }\n\n", vec![event(Some("1"), "peer_added", "{\n}")]),
            ("\u{feff}data: a\n\n", vec![event(None, "message", "a")]),
            ("data: a\n\u{feff}data: b\n\n", vec![event(None, "message", "a")]),
            (
                ": comment\n\n:\n\ndata\n\ndata:\ndata:\n\n",
                vec![event(None, "message", ""), event(None, "message", "\n")],
            ),
            ("event: x\n\ndata: a\n\n", vec![event(None, "message", "a")]),
            (
                "id: 7\n\ndata: a\n\nid\ndata: b\n\n",
                vec![event(Some("7"), "message", "a"), event(Some(""), "message", "b")],
            ),
            ("id: 7\nid: a\0b\ndata: a\n\n", vec![event(Some("7"), "message", "a")]),
            ("retry: 1500\nretry: 1x\nretry: -1\nretry:\n", vec![Item::Retry(Duration::from_millis(1500))]),
            ("data: unfinished\n", vec![]),
            ("Data: a\nfoo: bar\ndata : x\n\n", vec![]),
        ] {
            assert_eq!(parse(text), items, "{text:?}");
        }
    }

    #[test]
    fn data_does_not_show_in_debug() {
        let mut parser = Parser::new();
        let items = parse_with(&mut parser, &[b"data: hunter2\n\n", b"data: hunter2\ndata: hunter2"]);
        assert_eq!(
            format!("{items:?} {parser:?}"),
            "[Event { id: None, event: \"message\", data: 7 bytes }] Parser { id: None, .. }"
        );
    }

    #[test]
    fn an_event_over_the_limit_is_dropped_and_the_next_one_is_read() {
        let limit = 32;
        for big in [
            format!("data: {}\n", "x".repeat(limit + 1)),
            format!("data: {}\n", "x".repeat(limit * 10)),
            format!("data: {}\ndata: {}\n", "x".repeat(limit / 2), "x".repeat(limit / 2)),
            format!("event: {}\ndata: x\n", "x".repeat(limit * 10)),
        ] {
            let text = format!("id: 1\n{big}id: 2\ndata: y\n\ndata: {}\n\n", "z".repeat(limit));
            let items = parse_with(&mut Parser::with_limit(limit), &[text.as_bytes()]);
            let expected =
                [Item::TooLarge { id: Some("2".into()) }, event(Some("2"), "message", &"z".repeat(limit))];
            assert_eq!(items, expected, "{text}");
        }
    }

    #[test]
    fn a_comment_of_any_length_is_no_event() {
        let comment = format!(":{}\n", "x".repeat(1000));
        for text in [
            format!("data: a\n{comment}\n"),
            format!("{comment}data: a\n\n"),
            // A byte order mark goes before the first line only.
            format!("\u{feff}{comment}data: a\n\n"),
        ] {
            for size in [1, 2, 3, 4, 5, 2000] {
                let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
                let items = parse_with(&mut Parser::with_limit(32), &chunks);
                assert_eq!(items, [event(None, "message", "a")], "{text}");
            }
        }
        let text = format!("data: a\n\u{feff}{comment}\n");
        let items = parse_with(&mut Parser::with_limit(32), &[text.as_bytes()]);
        assert_eq!(items, [Item::TooLarge { id: None }]);
    }

    #[test]
    fn a_long_line_in_small_chunks_takes_linear_time_and_bounded_memory() {
        let mut parser = Parser::new();
        let started = Instant::now();
        let mut items = Vec::new();
        parser.feed(b"data: ", &mut |item| items.push(item));
        for _ in 0..(16 * 1024 * 1024 / 16) {
            parser.feed(&[b'x'; 16], &mut |item| items.push(item));
            assert!(parser.line.capacity() <= 2 * MAX_EVENT);
        }
        parser.feed(b"\n\ndata: y\n\n", &mut |item| items.push(item));
        assert_eq!(items, [Item::TooLarge { id: None }, event(None, "message", "y")]);
        // Quadratic parsers take minutes for this.
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        assert!(parser.line.capacity() <= KEPT_CAPACITY);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_items(
            text in "(\u{feff})?((data|id|event|retry|:|foo)?:? ?[a-z0-9]{0,40}(\r|\n|\r\n){1,3}){0,12}",
            splits in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = text.as_bytes();
            let whole = parse_with(&mut Parser::with_limit(32), &[bytes]);
            let mut at: Vec<_> = splits.iter().map(|split| split.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let chunks: Vec<_> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&parse_with(&mut Parser::with_limit(32), &chunks), &whole);
            let single: Vec<_> = bytes.chunks(1).collect();
            prop_assert_eq!(parse_with(&mut Parser::with_limit(32), &single), whole);
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(chunks in prop::collection::vec(
            prop::collection::vec(prop::sample::select(b"data:i \r\n\0\xef\xbb\xbf7".to_vec()), 0..200), 0..20)) {
            let mut parser = Parser::with_limit(64);
            for chunk in &chunks {
                parser.feed(chunk, &mut |item| {
                    if let Item::Event { data, .. } = item {
                        assert!(data.len() <= 64);
                    }
                });
                prop_assert!(parser.line.len() + parser.data.len() <= 64 + 1 + 64 + 9);
            }
        }
    }
}
