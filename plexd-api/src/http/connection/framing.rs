//! Where requests begin and end in the bytes of a connection, followed beside the HTTP parser for the two things it
//! does not tell: whether a head is under way (for the timeouts), and whether a head gave both `Content-Length` and
//! `Transfer-Encoding` (which hyper settles by dropping the former, and the contract refuses). Nothing is parsed here
//! to be acted on otherwise, so that a difference from hyper can refuse a request or close a connection, no more.

/// How much of a line is kept: enough for the names and lengths that matter.
const KEPT: usize = 64;

/// Follows the bytes of one connection.
#[derive(Debug)]
pub(super) struct Framing {
    at: At,
    /// The line under way, up to [`KEPT`] bytes of it.
    line: Vec<u8>,
    /// Heads completed so far.
    heads: u64,
    head: Head,
}

/// What the head under way said so far.
#[derive(Debug, Default, Clone, Copy)]
struct Head {
    /// The request line has been read.
    begun: bool,
    content_length: Option<u64>,
    chunked: bool,
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
    /// No longer followed: the parser will end the connection.
    Lost,
}

/// What the next bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// A new request, of which nothing is there.
    Request,
    /// The rest of the head with this number.
    Head(u64),
    /// The rest of a body.
    Body,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { at: At::Head, line: Vec::with_capacity(KEPT), heads: 0, head: Head::default() }
    }

    /// Returns what the next bytes belong to.
    pub(super) fn expected(&self) -> Expected {
        match self.at {
            At::Head if self.head.begun || !self.line.is_empty() => Expected::Head(self.heads),
            At::Head | At::Lost => Expected::Request,
            At::Body(_) | At::ChunkSize | At::Chunk(_) | At::Trailer => Expected::Body,
        }
    }

    /// Takes the next bytes; returns the number, from 0, of a request whose head gave both lengths.
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
                    let room = KEPT - self.line.len();
                    self.line.extend_from_slice(&piece[..piece.len().min(room)]);
                    if end.is_some() && self.line_ended() {
                        return Some(self.heads - 1);
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

    /// Takes the line in; returns whether it ended a head with both lengths.
    fn line_ended(&mut self) -> bool {
        let line = std::mem::take(&mut self.line);
        let text = line.trim_ascii();
        let mut both = false;
        match self.at {
            At::Head if !self.head.begun => self.head.begun = !text.is_empty(),
            At::Head if text.is_empty() => both = self.head_ended(),
            At::Head => self.head.header(text),
            At::ChunkSize => {
                self.at = match chunk_size(text) {
                    Some(0) => At::Trailer,
                    Some(size) => At::Chunk(size.saturating_add(2)),
                    None => At::Lost,
                };
            }
            At::Trailer if text.is_empty() => self.at = At::Head,
            At::Trailer | At::Body(_) | At::Chunk(_) | At::Lost => {}
        }
        self.line = line;
        self.line.clear();
        both
    }

    fn head_ended(&mut self) -> bool {
        let Head { content_length, chunked, .. } = std::mem::take(&mut self.head);
        self.heads += 1;
        self.at = match (content_length, chunked) {
            (Some(_), true) => At::Lost,
            (None | Some(0), false) => At::Head,
            (Some(length), false) => At::Body(length),
            (None, true) => At::ChunkSize,
        };
        content_length.is_some() && chunked
    }
}

impl Head {
    fn header(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // What is no number is refused by the parser.
            let number = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            self.content_length = Some(number.unwrap_or(0));
        }
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
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
            assert_eq!((found, framing.heads, framing.expected()), (None, 5, Expected::Request), "{size}");
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
        assert_eq!(Framing::new().expected(), Expected::Request);
        let table = [
            ("\r\n", Expected::Request),
            ("G", Expected::Head(0)),
            ("GET / HTTP/1.1\r\n", Expected::Head(0)),
            (GET, Expected::Request),
            ("PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET ", Expected::Body),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Expected::Body),
        ];
        for (text, expected) in table {
            assert_eq!(feed(text, 1000).1.expected(), expected, "{text:?}");
        }
    }
}
