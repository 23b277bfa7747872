//! Where requests begin and end in the bytes of a connection, followed beside the HTTP parser for the three things it
//! does not tell: whether a head is under way (for the timeouts), how long a head was (hyper looks at that only where one
//! is not whole), and whether a head gave both `Content-Length` and `Transfer-Encoding` (which hyper settles by dropping
//! the former, and the contract refuses). Nothing is parsed here
//! to be acted on otherwise, so that a difference from hyper can refuse a request or close a connection, no more. Where
//! a length or an end might be read differently by hyper, nothing after it is taken for granted: see [`At::Lost`].

/// Largest head of a request, in bytes.
pub(super) const MAX_HEAD: usize = 32 * 1024;

/// How much of a line is kept: enough for the names and lengths that matter.
const KEPT: usize = 64;

/// Follows the bytes of one connection.
#[derive(Debug)]
pub(super) struct Framing {
    at: At,
    /// The line under way, up to [`KEPT`] bytes of it.
    line: Vec<u8>,
    /// The line under way is longer than that.
    cut: bool,
    /// The last byte of the line under way.
    last: u8,
    /// Heads completed so far.
    heads: u64,
    /// Bytes of the head under way, and of the last one if that was too large.
    size: usize,
    head: Head,
}

/// What the head under way said so far.
#[derive(Debug, Default, Clone, Copy)]
struct Head {
    /// The request line has been read.
    begun: bool,
    content_length: Option<Length>,
    chunked: bool,
}

/// What `Content-Length` says.
#[derive(Debug, Clone, Copy)]
enum Length {
    Bytes(u64),
    /// No number, or one that is not all there.
    Unclear,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// So many bytes of body are still to come.
    Body(u64),
    ChunkSize,
    /// So many bytes of chunk and line end are still to come.
    Chunk(u64),
    Trailer,
    /// No longer followed, as it is not certain where the next request begins.
    Lost,
}

/// What the next bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// A new request with this number, of which nothing is there.
    Request(u64),
    /// The rest of the head with this number.
    Head(u64),
    /// The rest of a body, after so many heads.
    Body(u64),
}

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            at: At::Head,
            line: Vec::with_capacity(KEPT),
            cut: false,
            last: 0,
            heads: 0,
            size: 0,
            head: Head::default(),
        }
    }

    /// Returns what the next bytes belong to.
    pub(super) fn expected(&self) -> Expected {
        match self.at {
            At::Head if self.head.begun || !self.line.is_empty() => Expected::Head(self.heads),
            At::Head | At::Lost => Expected::Request(self.heads),
            At::Body(_) | At::ChunkSize | At::Chunk(_) | At::Trailer => Expected::Body(self.heads),
        }
    }

    /// Returns how many heads have ended so far.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Returns whether the request that may not be answered is that for the size of its head.
    pub(super) fn is_too_large(&self) -> bool {
        self.at == At::Lost && self.size > MAX_HEAD
    }

    /// Takes the next bytes; returns the number, from 0, of the request from which on none may be answered: its head
    /// gave both lengths or was too large, or it is not certain where it begins or ends. Returns one such number, once.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            match self.at {
                At::Lost => return None,
                At::Body(left) => {
                    bytes = self.skip(bytes, left, At::Body, At::Head);
                }
                At::Chunk(left) => {
                    bytes = self.skip(bytes, left, At::Chunk, At::ChunkSize);
                }
                At::Head | At::ChunkSize | At::Trailer => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (piece, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                    bytes = rest;
                    if self.at == At::Head {
                        self.size = self.size.saturating_add(piece.len());
                    }
                    let room = KEPT - self.line.len();
                    self.line.extend_from_slice(&piece[..piece.len().min(room)]);
                    self.cut |= piece.len() > room;
                    if end.is_some() {
                        let before = piece.len().checked_sub(2).map_or(self.last, |index| piece[index]);
                        if let Some(refused) = self.line_ended(before == b'\r') {
                            self.at = At::Lost;
                            return Some(refused);
                        }
                    } else if let Some(last) = piece.last() {
                        self.last = *last;
                    }
                }
            }
        }
        None
    }

    fn skip<'b>(&mut self, bytes: &'b [u8], left: u64, more: fn(u64) -> At, then: At) -> &'b [u8] {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - now as u64;
        self.at = if left == 0 { then } else { more(left) };
        &bytes[now..]
    }

    /// Takes the line in, which ended in CR LF if `proper`, else in LF alone; returns the request from which on none
    /// may be answered, if it told one.
    fn line_ended(&mut self, proper: bool) -> Option<u64> {
        let line = std::mem::take(&mut self.line);
        let text = line.trim_ascii();
        let cut = std::mem::take(&mut self.cut);
        let mut refused = None;
        match self.at {
            At::Head if !self.head.begun && text.is_empty() && !cut => self.size = 0,
            At::Head if !self.head.begun => self.head.begun = true,
            At::Head if text.is_empty() && !cut => refused = self.head_ended(),
            At::Head => self.head.header(text, cut),
            At::ChunkSize => match chunk_size(text, cut) {
                Some(0) => self.at = At::Trailer,
                Some(size) => self.at = At::Chunk(size.saturating_add(2)),
                None => refused = Some(self.heads),
            },
            // To hyper, such a line goes on.
            At::Trailer if !proper => refused = Some(self.heads),
            At::Trailer if line == b"\r\n" => self.at = At::Head,
            At::Trailer | At::Body(_) | At::Chunk(_) | At::Lost => {}
        }
        self.line = line;
        self.line.clear();
        self.last = 0;
        refused
    }

    fn head_ended(&mut self) -> Option<u64> {
        let Head { content_length, chunked, .. } = std::mem::take(&mut self.head);
        let number = self.heads;
        self.heads += 1;
        if self.size > MAX_HEAD {
            return Some(number);
        }
        self.size = 0;
        self.at = match (content_length, chunked) {
            (Some(_), true) | (Some(Length::Unclear), false) => return Some(number),
            (None | Some(Length::Bytes(0)), false) => At::Head,
            (Some(Length::Bytes(length)), false) => At::Body(length),
            (None, true) => At::ChunkSize,
        };
        None
    }
}

impl Head {
    /// Takes the header in, of which the end is missing if `cut`.
    fn header(&mut self, line: &[u8], cut: bool) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let number = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            self.content_length = Some(match (number, self.content_length) {
                (Some(number), None | Some(Length::Bytes(_))) if !cut => Length::Bytes(number),
                _ => Length::Unclear,
            });
        }
    }
}

/// Returns the size on the line, whose end is missing if `cut`; `None` if it is not certain.
fn chunk_size(line: &[u8], cut: bool) -> Option<u64> {
    let extension = line.iter().position(|byte| *byte == b';');
    if cut && extension.is_none() {
        return None;
    }
    let digits = line[..extension.unwrap_or(line.len())].trim_ascii();
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const PUT: &str = "PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /";
    const CHUNKED: &str = "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nab\r\nc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n";
    const BOTH: &str = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";

    /// Feeds `text` in pieces of `size` bytes.
    fn feed(text: &str, size: usize) -> (Option<u64>, Framing) {
        let mut framing = Framing::new();
        let found = text.as_bytes().chunks(size).find_map(|piece| framing.feed(piece));
        (found, framing)
    }

    #[test]
    fn requests_are_told_apart_however_they_are_cut() {
        let text = [GET, PUT, CHUNKED, "\r\n", PUT, GET].concat();
        for size in 1..text.len() {
            let (found, framing) = feed(&text, size);
            assert_eq!((found, framing.heads, framing.expected()), (None, 5, Expected::Request(5)), "{size}");
        }
    }

    #[test]
    fn a_request_with_both_lengths_is_found_by_its_number() {
        let other_order = "PUT / HTTP/1.1\ncontent-length:0\nX: y\nTRANSFER-ENCODING : chunked\n\n";
        for bad in [BOTH, other_order] {
            let text = [GET, CHUNKED, PUT, bad, GET].concat();
            for size in 1..text.len() {
                assert_eq!(feed(&text, size).0, Some(3), "{bad:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn nothing_is_taken_for_granted_after_a_length_that_is_not_all_kept() {
        let spaces = " ".repeat(60);
        let zeros = "0".repeat(70);
        let put = "PUT / HTTP/1.1\r\n";
        // With the request that cannot be trusted any more.
        let table = [
            (format!("{put}Content-Length:{spaces}5\r\n\r\nGET /"), 1),
            (format!("{put}Content-Length: x\r\n\r\n"), 1),
            (format!("{put}Content-Length: x\r\nContent-Length: 5\r\n\r\nGET /"), 1),
            (format!("{put}Transfer-Encoding: chunked\r\n\r\n{zeros}5\r\nGET /\r\n0\r\n\r\n"), 2),
            // Trailers whose end is another one to hyper.
            (format!("{put}Transfer-Encoding: chunked\r\n\r\n0\r\nT: 1\n\r\n\r\n"), 2),
            (format!("{put}Transfer-Encoding: chunked\r\n\r\n0\r\n\n\r\n"), 2),
        ];
        for (bad, refused) in table {
            let text = [GET, &bad, GET].concat();
            for size in 1..text.len() {
                assert_eq!(feed(&text, size).0, Some(refused), "{bad:?} in pieces of {size}");
            }
        }
        let extension = format!("{put}Transfer-Encoding: chunked\r\n\r\n5;{spaces}\r\nGET /\r\n0\r\n\r\n");
        assert_eq!((feed(&extension, 3).0, feed(&extension, 3).1.heads), (None, 1));
    }

    #[test]
    fn a_head_that_is_too_large_is_found_and_told_from_one_of_two_lengths() {
        let head = |size: usize| {
            let rest = "GET / HTTP/1.1\r\nX: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(size - rest))
        };
        for size in [1000, 40_000] {
            let (found, framing) = feed(&[PUT, &head(MAX_HEAD), GET].concat(), size);
            assert_eq!((found, framing.heads, framing.is_too_large()), (None, 3, false));
            let (found, framing) = feed(&[PUT, "\r\n", &head(MAX_HEAD + 1), GET].concat(), size);
            assert_eq!((found, framing.is_too_large()), (Some(1), true));
        }
        assert!(!feed(BOTH, 10).1.is_too_large());
    }

    #[test]
    fn names_within_bodies_and_values_do_not_count() {
        let body = "Transfer-Encoding: chunked\r\n\r\n";
        let text = format!(
            "PUT / HTTP/1.1\r\nX: Transfer-Encoding: chunked\r\nContent-Length: {}\r\n\r\n{body}{GET}",
            body.len()
        );
        let (found, framing) = feed(&text, 7);
        assert_eq!((found, framing.heads), (None, 2));
    }

    #[test]
    fn it_knows_what_comes_next() {
        assert_eq!(Framing::new().expected(), Expected::Request(0));
        let table = [
            ("\r\n", Expected::Request(0)),
            ("G", Expected::Head(0)),
            ("GET / HTTP/1.1\r\n", Expected::Head(0)),
            (GET, Expected::Request(1)),
            ("PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET ", Expected::Body(1)),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Expected::Body(1)),
        ];
        for (text, expected) in table {
            assert_eq!(feed(text, 1000).1.expected(), expected, "{text:?}");
        }
    }
}
