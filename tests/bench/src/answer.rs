//! Answers as they come in, for a client that has no time: the status and the length are looked at, nothing is kept.

/// What a request asks for and what is to come of it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The bytes of the request.
    pub(crate) bytes: Vec<u8>,
    /// The length of the answer's body, if it is known beforehand.
    pub(crate) length: Option<usize>,
}

impl Request {
    /// A request without a body for `path`, whose answer's body has `length` bytes.
    pub(crate) fn get(path: &str, length: Option<usize>) -> Self {
        Self { bytes: format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(), length }
    }

    /// A request that writes `body`.
    pub(crate) fn put(path: &str, body: &str) -> Self {
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Self { bytes: [head.as_bytes(), body.as_bytes()].concat(), length: None }
    }
}

/// The answer under way.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Its head, as far as it is there.
    Head(Vec<u8>),
    /// So many bytes of its body are to come.
    Body(usize),
}

/// What begins every answer that counts.
const SUCCESS: &[u8] = b"HTTP/1.1 200";

impl Incoming {
    pub(crate) fn new() -> Self {
        Self::Head(Vec::new())
    }

    /// Takes the next bytes; returns whether the answer is complete. Panics if it is not what was expected: figures
    /// about errors are worth nothing.
    pub(crate) fn feed(&mut self, bytes: &[u8], expected: Option<usize>) -> bool {
        let left = match self {
            Self::Body(left) => left.checked_sub(bytes.len()),
            Self::Head(known) => {
                let joined = (!known.is_empty()).then(|| [known.as_slice(), bytes].concat());
                let text = joined.as_deref().unwrap_or(bytes);
                let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") else {
                    *known = text.to_vec();
                    return false;
                };
                let (head, rest) = text.split_at(end + 4);
                length(head, expected).checked_sub(rest.len())
            }
        };
        let left = left.expect("no more than the answer, as there was one request");
        *self = if left == 0 { Self::new() } else { Self::Body(left) };
        left == 0
    }
}

/// The length of the body that the head tells.
fn length(head: &[u8], expected: Option<usize>) -> usize {
    let text = || String::from_utf8_lossy(head).into_owned();
    assert!(head.starts_with(SUCCESS), "no success: {}", text());
    let field = b"content-length: ";
    let line = head.split(|byte| *byte == b'\n').find(|line| line.starts_with(field));
    let digits = line.map(|line| line[field.len()..].trim_ascii_end());
    let told = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    let told: usize = told.unwrap_or_else(|| panic!("no length: {}", text()));
    assert!(expected.is_none_or(|expected| expected == told), "not {expected:?} bytes: {}", text());
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nabcde";

    #[test]
    fn an_answer_is_complete_with_its_last_byte_however_it_is_cut() {
        for cut in 1..ANSWER.len() {
            let mut incoming = Incoming::new();
            assert!(!incoming.feed(&ANSWER[..cut], Some(5)), "{cut}");
            assert!(incoming.feed(&ANSWER[cut..], Some(5)), "{cut}");
            assert!(incoming.feed(ANSWER, Some(5)), "the next one after {cut}");
        }
    }

    #[test]
    #[should_panic(expected = "no success: HTTP/1.1 503")]
    fn an_error_is_not_counted() {
        Incoming::new().feed(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", None);
    }

    #[test]
    #[should_panic(expected = "not Some(6) bytes")]
    fn another_answer_is_not_counted() {
        Incoming::new().feed(ANSWER, Some(6));
    }
}
