//! HTTP/1.1 as the strictest reader takes it: what it reads can be read in one way only. What it does not read may still be
//! HTTP.

/// Longest head that is read, in bytes, and the most headers.
const MAX_HEAD: (usize, usize) = (8192, 32);

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// One of five.
    pub method: String,
    /// A path of plain characters.
    pub target: String,
    /// The body; `None` if its length is given in two ways, and nobody is to say where it ends.
    pub body: Option<Vec<u8>>,
    /// There is a line for the body, be it empty.
    pub has_body: bool,
}

/// Returns the requests that `bytes` begin with, up to the first of two lengths, and what is left.
pub fn requests(mut bytes: &[u8]) -> (Vec<Request>, &[u8]) {
    let mut requests = Vec::new();
    while let Some((request, rest)) = request(bytes) {
        bytes = rest;
        let is_last = request.body.is_none();
        requests.push(request);
        if is_last {
            break;
        }
    }
    (requests, bytes)
}

fn request(bytes: &[u8]) -> Option<(Request, &[u8])> {
    let end = bytes.windows(4).take(MAX_HEAD.0).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let rest = &bytes[end + 4..];
    if !head.replace("\r\n", "").chars().all(|character| matches!(character, ' '..='~')) {
        return None;
    }
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next()?.split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else { return None };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/%._-".contains(&byte);
    if !["GET", "HEAD", "PUT", "DELETE", "POST"].contains(&method) || !target.starts_with('/') {
        return None;
    }
    if !target.bytes().all(is_plain) {
        return None;
    }
    let headers: Vec<(String, &str)> = lines.map(header).collect::<Option<_>>()?;
    if headers.len() > MAX_HEAD.1 {
        return None;
    }
    let of = |name: &str| -> Vec<&str> {
        headers.iter().filter(|(known, _)| known == name).map(|(_, value)| *value).collect()
    };
    // What ends a connection, makes another protocol of it, or is answered before the body is there.
    if ["connection", "upgrade", "expect"].iter().any(|name| !of(name).is_empty()) {
        return None;
    }
    let (body, rest) = match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => (Some(Vec::new()), rest),
        ([length], []) => {
            let (body, rest) = rest.split_at_checked(number(length, 10)?)?;
            (Some(body.to_vec()), rest)
        }
        ([], ["chunked"]) => {
            let (body, rest) = chunks(rest)?;
            (Some(body), rest)
        }
        ([length], ["chunked"]) => {
            number(length, 10)?;
            (None, rest)
        }
        _ => return None,
    };
    let has_body = body.as_ref().is_none_or(|body| !body.is_empty()) || !of("transfer-encoding").is_empty();
    Some((Request { method: method.into(), target: target.into(), body, has_body }, rest))
}

fn header(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once(": ")?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (is_name && value.trim() == value).then(|| (name.to_ascii_lowercase(), value))
}

/// A number of at most six digits.
fn number(text: &str, radix: u32) -> Option<usize> {
    let is_number = (1..=6).contains(&text.len()) && text.chars().all(|digit| digit.is_digit(radix));
    is_number.then(|| usize::from_str_radix(text, radix).ok())?
}

fn chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).take(8).position(|window| window == b"\r\n")?;
        let size = number(std::str::from_utf8(&bytes[..end]).ok()?, 16)?;
        let (chunk, rest) = bytes[end + 2..].split_at_checked(size)?;
        bytes = rest.strip_prefix(b"\r\n")?;
        body.extend_from_slice(chunk);
        if size == 0 {
            return Some((body, bytes));
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status, none of the interim ones.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Empty if it is an answer to `HEAD`.
    pub body: String,
}

impl Answer {
    /// Returns the header `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Takes what a connection said apart. Panics if it is anything but whole answers. Which of them are to `HEAD`, and have
/// no body, shows by what follows.
pub fn answers(bytes: &[u8]) -> Vec<Answer> {
    let text = std::str::from_utf8(bytes).expect("answers are text");
    let mut rest = text;
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_once("\r\n\r\n").unwrap_or_else(|| panic!("half a head: {rest:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1."));
        let status = status.and_then(|line| line.get(2..5)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status: {rest:?}"));
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        rest = after;
        if status == 100 {
            assert!(headers.is_empty());
            continue;
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let length: usize =
            answer.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        if !(rest.is_empty() || rest.starts_with("HTTP/1.")) {
            let (body, after) =
                rest.split_at_checked(length).unwrap_or_else(|| panic!("half a body: {rest:?}"));
            body.clone_into(&mut answer.body);
            rest = after;
        }
        answers.push(answer);
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_up_to_the_first_that_is_unclear() {
        let text = b"PUT /a HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi\
            PUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n\
            GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nrest";
        let (requests, rest) = requests(text);
        let bodies: Vec<_> = requests.iter().map(|request| request.body.as_deref()).collect();
        assert_eq!(bodies, [Some(&b"hi"[..]), Some(b"hi"), None]);
        assert_eq!(rest, b"rest");
        for unclear in [
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nX:y\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: x\r\n\r\n",
        ] {
            assert_eq!(super::requests(unclear.as_bytes()).0, [], "{unclear}");
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}\
            HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        let answers = answers(text);
        let found: Vec<_> = answers.iter().map(|answer| (answer.status, answer.body.as_str())).collect();
        assert_eq!(found, [(404, "{}"), (200, ""), (204, "")]);
    }
}
