//! Another client: whatever a test does to the Local Node API meanwhile, its requests get the right answers. What is
//! asserted is answers, not times.

use std::time::Duration;

use plexd_e2e::{HttpAnswer, Node, Wire};

use crate::background::Background;

/// Of the node's configuration: what lets it come by TCP, too.
pub(crate) const TCP: &str = "node_api:\n  http_enabled: true\n  http_token_file: /etc/plexd/api-token\n";

/// The header line that TCP takes.
pub(crate) const TOKEN: &str = "Authorization: Bearer tcp-token";

/// How long it pauses between rounds: it is a client, and not a load.
const BEAT: Duration = Duration::from_millis(10);

/// What it reads: of the guide's state what no test here changes.
const READS: [&str; 4] =
    ["/v1/state/metadata", "/v1/state/metadata/region", "/v1/state/secrets", "/v1/openapi.json"];

/// A client with one keep-alive connection to each listener, opened before anything else happens. Reads come over both,
/// writes over TCP: the test itself is the same user on the Unix socket.
#[derive(Debug)]
pub(crate) struct Bystander(Background<u64>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Reads,
    ReadsAndWrites,
}

impl Bystander {
    /// Begins to read from `node`, which has the guide's state and [`TCP`].
    #[track_caller]
    pub(crate) fn reading(node: &Node) -> Self {
        Self::of(node, Does::Reads)
    }

    /// Begins to read from `node`, which has the guide's state and [`TCP`], and to write to it a report `bystander`.
    #[track_caller]
    pub(crate) fn reading_and_writing(node: &Node) -> Self {
        Self::of(node, Does::ReadsAndWrites)
    }

    #[track_caller]
    fn of(node: &Node, does: Does) -> Self {
        let unix = node.connect_unix().expect("plexd-api listens");
        let tcp = node.connect_tcp().expect("plexd-api listens on TCP");
        let mut client = Client { unix, tcp, expected: Vec::new(), version: 0 };
        client.expected = READS.map(|path| client.read(path)).into();
        Self(Background::start(move |over| {
            let mut rounds = 0;
            loop {
                client.round(does);
                rounds += 1;
                if over.after(BEAT) {
                    return rounds;
                }
            }
        }))
    }

    /// Ends it, and panics if one of its answers was missing or wrong.
    #[track_caller]
    pub(crate) fn finish(self) {
        assert!(self.0.finish() > 0);
    }
}

#[derive(Debug)]
struct Client {
    unix: Wire,
    tcp: Wire,
    /// The answers to [`READS`], as they were before.
    expected: Vec<String>,
    version: u64,
}

impl Client {
    /// Reads `path` by both ways, and returns the one body.
    fn read(&mut self, path: &str) -> String {
        let unix = right(path, self.unix.ask("GET", path, &[], None));
        let tcp = right(path, self.tcp.ask("GET", path, &[TOKEN], None));
        assert_eq!(unix.body, tcp.body, "{path}");
        unix.body
    }

    fn round(&mut self, does: Does) {
        for (index, path) in READS.into_iter().enumerate() {
            assert_eq!(self.read(path), self.expected[index], "{path}");
        }
        if does == Does::ReadsAndWrites {
            let path = "/v1/state/report/bystander";
            let next = self.version + 1;
            let body = format!(r#"{{"content_type":"t","payload":{next}}}"#);
            let if_match = format!("If-Match: {}", self.version);
            let put = right("a write", self.tcp.ask("PUT", path, &[TOKEN, &if_match], Some(&body)));
            assert_eq!((put.json()["version"].as_u64(), &put.json()["payload"]), (Some(next), &next.into()));
            assert_eq!(self.read(path), put.body);
            self.version = next;
        }
    }
}

/// Returns the answer if there is one, and it is 200.
fn right(what: &str, answer: std::io::Result<HttpAnswer>) -> HttpAnswer {
    let answer = answer.unwrap_or_else(|error| panic!("another client is disturbed: {what}: {error}"));
    assert_eq!(answer.status, 200, "another client is disturbed: {what}: {answer}");
    answer
}
