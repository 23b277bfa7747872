//! The rows: bytes, the answers to them, and what becomes of the connection.

/// Where further header lines may stand.
const MARK: &str = "<more>";

/// A report as a client would write it.
const BODY: &str = r#"{"content_type":"t","payload":1}"#;

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The next request is answered.
    GoesOn,
    /// The server ends it.
    Closed,
    /// What is missing may still come; the server ends it once the client says that nothing will.
    ClosedOnceAllIsSaid,
}

/// Bytes, and what comes of them.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    text: Vec<u8>,
    /// Status and error; below 400 there is none.
    pub(super) answers: Vec<(u16, &'static str)>,
    pub(super) then: Then,
}

impl Row {
    fn new(
        name: &'static str,
        text: impl Into<Vec<u8>>,
        answers: &[(u16, &'static str)],
        then: Then,
    ) -> Self {
        Self { name, text: text.into(), answers: answers.to_vec(), then }
    }

    /// Returns whether there is an end of a head in it.
    pub(super) fn ends_a_head(&self) -> bool {
        self.text.windows(4).any(|window| window == b"\r\n\r\n")
    }

    /// Returns the bytes, with a header line (or nothing) where there is room for one.
    pub(super) fn bytes(&self, line: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.text.len());
        let mut rest = self.text.as_slice();
        while let Some(at) = rest.windows(MARK.len()).position(|window| window == MARK.as_bytes()) {
            bytes.extend_from_slice(&rest[..at]);
            bytes.extend_from_slice(line.as_bytes());
            rest = &rest[at + MARK.len()..];
            // Of a large body nothing is looked through.
            if rest.len() > 1_000_000 {
                break;
            }
        }
        bytes.extend_from_slice(rest);
        bytes
    }
}

fn head(line: &str, headers: &str) -> String {
    format!("{line}\r\nHost: x\r\n{MARK}{headers}\r\n")
}

/// A `PUT` with these header lines and what follows.
fn put(headers: &str, rest: &str) -> String {
    head("PUT /v1/state/report/k HTTP/1.1", headers) + rest
}

fn chunked(rest: &str) -> String {
    put("Transfer-Encoding: chunked\r\n", rest)
}

fn get(path: &str) -> String {
    head(&format!("GET {path} HTTP/1.1"), "")
}

/// A whole `PUT` of `body`.
fn report(body: &str) -> String {
    put(&format!("Content-Length: {}\r\n", body.len()), body)
}

/// All of them.
pub(super) fn all() -> Vec<Row> {
    [keys(), conditions(), lengths(), chunks(), bodies(), heads(), targets(), strangers()]
        .into_iter()
        .flatten()
        .collect()
}

fn keys() -> Vec<Row> {
    let invalid = &[(400, "invalid key")][..];
    let of = |name, path: &str| Row::new(name, get(path), invalid, Then::GoesOn);
    let long = format!("/v1/state/data/{}", "k".repeat(257));
    vec![
        of("an empty key", "/v1/state/report/"),
        of("a percent sign alone", "/v1/state/data/%"),
        of("half a percent-encoding", "/v1/state/data/a%2"),
        of("a percent-encoding of no digits", "/v1/state/report/%zz"),
        of("an encoded NUL", "/v1/state/data/a%00b"),
        of("an encoded line end", "/v1/state/metadata/a%0d%0ab"),
        of("a C1 control character", "/v1/state/data/%C2%85"),
        of("a key that is no UTF-8", "/v1/state/secrets/%ff%fe"),
        of("an overlong slash", "/v1/state/data/%c0%af"),
        of("half a surrogate pair", "/v1/state/data/%ed%a0%80"),
        of("a key of 257 bytes", &long),
        Row::new("a percent sign in a path", get("/v1/%zz"), &[(404, "not found")], Then::GoesOn),
        Row::new(
            "dots are a name like any other",
            get("/v1/state/data/.."),
            &[(404, "not found")],
            Then::GoesOn,
        ),
    ]
}

fn conditions() -> Vec<Row> {
    let bad = &[(400, "If-Match must be an integer")][..];
    let of = |name, headers: &str| {
        let lines = format!("{headers}Content-Length: {}\r\n", BODY.len());
        Row::new(name, put(&lines, BODY), bad, Then::GoesOn)
    };
    vec![
        of("two If-Match", "If-Match: 1\r\nIf-Match: 1\r\n"),
        of("an If-Match of two versions", "If-Match: 1, 2\r\n"),
        of("an If-Match of words", "If-Match: three\r\n"),
        of("an If-Match with a plus", "If-Match: +3\r\n"),
        of("an If-Match beyond 64 bits", "If-Match: 99999999999999999999\r\n"),
        of("an If-Match that is no text", "If-Match: \u{fc}\r\n"),
        of("an If-Match of half a quote", "If-Match: \"3\r\n"),
    ]
}

fn lengths() -> Vec<Row> {
    let bad = &[(400, "bad request")][..];
    let both = &[(400, "Content-Length and Transfer-Encoding exclude each other")][..];
    let of = |name, headers: &str, answers| Row::new(name, put(headers, BODY), answers, Then::Closed);
    vec![
        of("two lengths", "Content-Length: 32\r\nContent-Length: 5\r\n", bad),
        of("a list of lengths", "Content-Length: 32, 32\r\n", bad),
        of("a negative length", "Content-Length: -1\r\n", bad),
        of("a length with a plus", "Content-Length: +32\r\n", bad),
        of("a length in hexadecimal digits", "Content-Length: 0x20\r\n", bad),
        of("a length beyond 64 bits", "Content-Length: 18446744073709551616\r\n", bad),
        of("an empty length", "Content-Length:\r\n", bad),
        of("a length and chunks", "Content-Length: 32\r\nTransfer-Encoding: chunked\r\n", both),
        of("chunks and a length", "Transfer-Encoding: chunked\r\nContent-Length: 32\r\n", both),
        of("chunks and a length of nothing", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", both),
        of("an unknown transfer encoding", "Transfer-Encoding: gzip\r\n", bad),
        of("chunks that are not the last encoding", "Transfer-Encoding: chunked, gzip\r\n", bad),
        of(
            "a body larger than anything",
            "Content-Length: 9223372036854775807\r\n",
            &[(413, "payload too large")],
        ),
        Row::new(
            "chunks in HTTP/1.0",
            head("PUT /v1/state/report/k HTTP/1.0", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n",
            bad,
            Then::Closed,
        ),
        Row::new(
            "a body that ends early",
            put("Content-Length: 32\r\n", &BODY[..20]),
            &[(400, "invalid JSON body")],
            Then::ClosedOnceAllIsSaid,
        ),
        Row::new("a PUT without a length", put("", ""), &[(400, "invalid JSON body")], Then::GoesOn),
    ]
}

fn chunks() -> Vec<Row> {
    let bad = &[(400, "invalid JSON body")][..];
    let lie = |name, rest: &str| Row::new(name, chunked(rest), bad, Then::Closed);
    let cut = |name, rest: &str| Row::new(name, chunked(rest), bad, Then::ClosedOnceAllIsSaid);
    let long = format!("1;{}\r\n1\r\n0\r\n\r\n", "x".repeat(20_000));
    vec![
        lie("a size that is no number", "zz\r\n{}\r\n0\r\n\r\n"),
        lie("a negative size", "-1\r\n{}\r\n0\r\n\r\n"),
        lie("a size beyond 64 bits", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        lie("an empty size", "\r\n{}\r\n0\r\n\r\n"),
        lie("a chunk that is longer than it says", "2\r\n{}{}{}\r\n0\r\n\r\n"),
        lie("a chunk without its end", "2\r\n{}0\r\n\r\n"),
        lie("a chunk extension of 20 KB", &long),
        cut("a chunk that is shorter than it says", "ff\r\n{}"),
        cut("a size as large as there is", "ffffffffffffffff\r\n{}"),
        cut("chunks without an end", "2\r\n{}\r\n"),
        cut("a size without an end", "2"),
        cut("trailers without an end", "2\r\n{}\r\n0\r\nA: b\r\n"),
    ]
}

fn bodies() -> Vec<Row> {
    let json = &[(400, "invalid JSON body")][..];
    let large = &[(413, "payload too large")][..];
    let of = |name, body: &str| Row::new(name, report(body), json, Then::GoesOn);
    let deep = "[".repeat(100_000);
    let nested = format!(r#"{{"content_type":"t","payload":{}1{}}}"#, "[".repeat(65), "]".repeat(65));
    let mut latin = put("Content-Length: 34\r\n", "").into_bytes();
    latin.extend_from_slice(b"{\"content_type\":\"\xfc\",\"payload\":\"x\"}");
    let size = 50_000_000;
    let mut whole = put(&format!("Content-Length: {size}\r\n"), "").into_bytes();
    whole.resize(whole.len() + size, b' ');
    let mut pieces = chunked("").into_bytes();
    for _ in 0..size / 0x10000 {
        pieces.extend_from_slice(b"10000\r\n");
        pieces.resize(pieces.len() + 0x10000, b' ');
        pieces.extend_from_slice(b"\r\n");
    }
    pieces.extend_from_slice(b"0\r\n\r\n");
    let mut unread = head("GET /v1/state HTTP/1.1", &format!("Content-Length: {size}\r\n")).into_bytes();
    unread.resize(unread.len() + size, b' ');
    vec![
        of("a body of nothing", ""),
        of("two values", &format!("{BODY} {BODY}")),
        of("a NUL in a body", "{\"content_type\":\"\0\",\"payload\":1}"),
        of("a NUL behind a body", &format!("{BODY}\0")),
        of("a member that is there twice", r#"{"content_type":"t","payload":1,"payload":2}"#),
        of("a number that is none", r#"{"content_type":"t","payload":NaN}"#),
        of("100,000 brackets", &format!(r#"{{"content_type":"t","payload":{deep}"#)),
        Row::new("a body that is no UTF-8", latin, json, Then::GoesOn),
        Row::new("65 brackets", report(&nested), &[(400, "payload nested too deeply")], Then::GoesOn),
        Row::new("50 MB", whole, large, Then::Closed),
        Row::new("50 MB in chunks", pieces, large, Then::Closed),
        Row::new("50 MB that nobody reads", unread, &[(200, "")], Then::Closed),
        Row::new(
            "50 MB that wait for leave",
            put("Expect: 100-continue\r\nContent-Length: 50000000\r\n", ""),
            large,
            Then::Closed,
        ),
    ]
}

fn heads() -> Vec<Row> {
    let bad = &[(400, "bad request")][..];
    let large = &[(431, "request header fields too large")][..];
    let of = |name, headers: &str, answers| {
        Row::new(name, head("GET /v1/state HTTP/1.1", headers), answers, Then::Closed)
    };
    let line = |name, text: &str| Row::new(name, format!("{text}\r\nHost: x\r\n\r\n"), bad, Then::Closed);
    vec![
        of("a NUL in a header", "X: a\0b\r\n", bad),
        of("a folded header", "X: a\r\n b\r\n", bad),
        of("a carriage return in a header", "X: a\rb\r\n", bad),
        of("a header without a colon", "no colon here\r\n", bad),
        of("a header without a name", ": x\r\n", bad),
        of("a blank in a name", "a b: c\r\n", bad),
        of("a name that is no ASCII", "\u{fc}: c\r\n", bad),
        of("a header of 40 KiB", &format!("X: {}\r\n", "x".repeat(40 * 1024)), large),
        of("a header of 1 MB", &format!("X: {}\r\n", "x".repeat(1_000_000)), large),
        of("200 headers", &"X-Flood: aaaa\r\n".repeat(200), large),
        of("100,000 headers", &"X: y\r\n".repeat(100_000), large),
        line("no version", "GET /v1/state"),
        line("a version that is none", "GET /v1/state HTTP/9.9"),
        line("no method", " /v1/state HTTP/1.1"),
        line("a method that is no token", "G(E)T /v1/state HTTP/1.1"),
        line("blanks in a path", "GET /v1/ state HTTP/1.1"),
        line("a NUL in a path", "GET /v1/st\0ate HTTP/1.1"),
        line("a path that is no ASCII", "GET /v1/state/data/\u{1} HTTP/1.1"),
        Row::new("a path of 100 KiB", get(&format!("/{}", "x".repeat(100 * 1024))), large, Then::Closed),
        Row::new(
            "an address of 30 KiB",
            get(&format!("/{}", "x".repeat(30 * 1024))),
            &[(404, "not found")],
            Then::GoesOn,
        ),
        Row::new(
            "line feeds alone, which HTTP lets pass",
            get("/v1/state").replace("\r\n", "\n"),
            &[(200, "")],
            Then::GoesOn,
        ),
        Row::new(
            "an expectation that nobody knows, which HTTP lets pass",
            head("GET /v1/state HTTP/1.1", "Expect: the-unexpected\r\n"),
            &[(200, "")],
            Then::GoesOn,
        ),
        Row::new("a head that ends early", "GET /v1/state HTTP/1.1\r\nHost", &[], Then::ClosedOnceAllIsSaid),
        Row::new(
            "garbage after a good request",
            get("/v1/state") + "garbage\r\n\r\n",
            &[(200, ""), (400, "bad request")],
            Then::Closed,
        ),
        Row::new(
            "garbage after a good request in HTTP/1.0",
            head("GET /v1/state HTTP/1.0", "Connection: keep-alive\r\n") + "garbage\r\n\r\n",
            &[(200, ""), (400, "bad request")],
            Then::Closed,
        ),
        Row::new(
            "garbage after ten good requests",
            get("/v1/state").repeat(10) + "\u{7f}\u{80}\r\n\r\n",
            &[[(200, ""); 10].as_slice(), bad].concat(),
            Then::Closed,
        ),
    ]
}

fn targets() -> Vec<Row> {
    let not_found = &[(404, "not found")][..];
    let of = |name, line: &str, answers| Row::new(name, head(line, ""), answers, Then::GoesOn);
    vec![
        of("CONNECT", "CONNECT example.org:443 HTTP/1.1", not_found),
        of(
            "the absolute form, which HTTP demands",
            "GET http://other.example/v1/state HTTP/1.1",
            &[(200, "")],
        ),
        of("the absolute form of another", "GET http://other.example/ HTTP/1.1", not_found),
        of("the asterisk", "OPTIONS * HTTP/1.1", not_found),
        of("the asterisk and GET", "GET * HTTP/1.1", not_found),
        of("TRACE", "TRACE /v1/state HTTP/1.1", &[(405, "method not allowed")]),
        of("a method in small letters", "get /v1/state HTTP/1.1", &[(405, "method not allowed")]),
        of("a path with dots", "GET /v1/../v1/state HTTP/1.1", not_found),
        of("two slashes", "GET //v1/state HTTP/1.1", not_found),
        of("a question", "GET /v1/state?x=%zz HTTP/1.1", &[(200, "")]),
    ]
}

fn strangers() -> Vec<Row> {
    let bad = &[(400, "bad request")][..];
    // A TLS 1.2 record with the beginning of a ClientHello.
    let mut hello = vec![0x16, 3, 1, 0, 0xba, 1, 0, 0, 0xb6, 3, 3];
    hello.extend(std::iter::repeat_n(0x5a, 0xb3));
    let flood: Vec<u8> = (0_u32..1 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    vec![
        // hyper tells it apart, and says nothing to it.
        Row::new("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[], Then::Closed),
        Row::new("TLS", hello, bad, Then::Closed),
        Row::new("SSH", "SSH-2.0-OpenSSH_9.9\r\n", bad, Then::Closed),
        Row::new("a megabyte of anything", flood, bad, Then::Closed),
        Row::new("NULs", vec![0; 10_000], bad, Then::Closed),
        Row::new("line ends only", "\r\n".repeat(1000), &[], Then::ClosedOnceAllIsSaid),
        Row::new("nothing", "", &[], Then::ClosedOnceAllIsSaid),
    ]
}
