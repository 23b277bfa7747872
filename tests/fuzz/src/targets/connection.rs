//! A connection to the Local Node API, through hyper and all that is around it: whatever a client sends and however it is
//! cut, what comes back is whole answers, each error of which is JSON; who may nothing gets nothing; and requests that
//! can be read in one way only are told apart in that way.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use plexd_api::auth::{Caller, LocalClient, Rules};
use plexd_api::core_client::Core;
use plexd_api::http::{Api, Bodies, Limits, Server, Told, parts};
use plexd_api::mirror::Mirror;
use plexd_proto::settings::CoreSockets;
use plexd_proto::transport::{ClientSocket, PeerCredentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::sse::pieces;
use crate::reference::http::{Answer, Request, answers, requests};

/// Groups that may use the API, and read secrets.
const GROUPS: [u32; 2] = [901, 902];

/// The largest body, in bytes.
const MAX_BODY: usize = 2000;

/// What a client may be told that is no answer of a route's, and the rest, as the reference has them.
const REFUSALS: [(u16, &str); 3] = [
    (400, "bad request"),
    (400, "Content-Length and Transfer-Encoding exclude each other"),
    (431, "request header fields too large"),
];
const ERRORS: [(u16, &str); 13] = [
    (400, "invalid key"),
    (400, "If-Match must be an integer"),
    (400, "invalid JSON body"),
    (400, "content_type is required"),
    (400, "payload must be valid JSON"),
    (400, "payload nested too deeply"),
    (401, "unauthorized"),
    (403, "forbidden"),
    (404, "not found"),
    (405, "method not allowed"),
    (413, "payload too large"),
    (503, "core unavailable"),
    (503, "control plane unavailable"),
];

/// How long a connection may last that has been told all.
const PATIENCE: Duration = Duration::from_secs(20);

/// An API without a core, so that all reads of state are refused, and where its connections run.
struct Node {
    runtime: Runtime,
    server: Arc<Server>,
}

impl Node {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let server = runtime.block_on(async {
            let mirror = Arc::new(Mirror::new());
            // Nothing is carried to a core that is not there.
            let (core, _) = Core::new(&CoreSockets::within(Path::new("/nonexistent")), Arc::clone(&mirror));
            let api = Api {
                core,
                mirror,
                rules: Rules { socket_gid: GROUPS[0], secrets_gid: GROUPS[1], tcp_secrets: true },
                max_report_bytes: MAX_BODY,
                bodies: Bodies::new(MAX_BODY),
                told: Told::default(),
                metrics: None,
                shutdown: CancellationToken::new(),
            };
            Server::new(&Arc::new(api), Limits::default())
        });
        Self { runtime, server }
    }

    /// Returns what the API says to who sends `pieces` and then ends its half of the connection.
    fn hear(&self, caller: Caller, pieces: &[&[u8]]) -> Vec<u8> {
        self.runtime.block_on(async {
            let (client, served) = tokio::io::duplex(16 * 1024);
            self.server.accept(served, caller);
            let (mut listening, mut speaking) = tokio::io::split(client);
            let speak = async {
                for piece in pieces {
                    // The server may have closed.
                    if speaking.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let _ = speaking.shutdown().await;
            };
            let mut heard = Vec::new();
            let listen = async {
                let _ = listening.read_to_end(&mut heard).await;
            };
            let both = async { tokio::join!(speak, listen) };
            tokio::time::timeout(PATIENCE, both).await.expect("the connection ends");
            heard
        })
    }
}

thread_local! {
    static NODE: Node = Node::new();
}

/// The first byte chooses the caller, the second how the rest is cut.
pub fn connection(data: &[u8]) {
    let [who, seed, bytes @ ..] = data else { return };
    let groups = [&GROUPS[..], &GROUPS[..1], &[]][usize::from(*who % 3)].to_vec();
    let may = !groups.is_empty();
    let peer = PeerCredentials { uid: 1000, gid: 1000, pid: 1, groups };
    let (socket, _) = UnixStream::pair().expect("a pair");
    let caller = Caller::Local(Arc::new(LocalClient { peer, socket: ClientSocket::new(socket) }));
    let heard = NODE.with(|node| node.hear(caller, &pieces(bytes, *seed)));
    let answers = answers(&heard);
    for answer in &answers {
        assert_sound(answer, may);
    }
    let (requests, rest) = requests(bytes);
    assert_told_apart(&requests, &answers, rest.is_empty());
    assert_followed(bytes, &requests, *seed);
}

/// Panics unless it is an answer that the reference has.
fn assert_sound(answer: &Answer, may: bool) {
    let about = format!("{answer:?}");
    if answer.status < 400 {
        assert!(may && matches!(answer.status, 200 | 204 | 304), "{about}");
        return;
    }
    assert_eq!(answer.header("content-type"), Some("application/json"), "{about}");
    assert!(answer.header("content-length").is_some_and(|length| length != "0"), "{about}");
    assert_eq!(answer.header("allow").is_some(), answer.status == 405, "{about}");
    let forbidden = (403, "forbidden");
    let is_known = |(status, text): &(u16, &str)| {
        // An answer to HEAD has no body.
        answer.status == *status
            && (answer.body.is_empty() || answer.body == format!(r#"{{"error":"{text}"}}"#))
    };
    let known = REFUSALS.iter().chain(&ERRORS).find(|known| is_known(known));
    assert!(known.is_some(), "{about}");
    assert!(may || REFUSALS.iter().any(is_known) || is_known(&forbidden), "{about}");
}

/// Panics if one of the requests was not answered as itself: the one of two lengths, and it alone, is refused for them, and
/// ends the connection.
fn assert_told_apart(requests: &[Request], answers: &[Answer], is_all: bool) {
    let mut may_be_closed = false;
    for (index, request) in requests.iter().enumerate() {
        let Some(answer) = answers.get(index) else {
            assert!(may_be_closed, "request {index} is not answered: {requests:?} {answers:?}");
            return;
        };
        let about = || format!("request {index} of {requests:?}: {answers:?}");
        // The document at /v1/openapi.json has these words, too.
        let says = |text: &str| answer.status == 400 && answer.body.contains(text);
        let of_lengths = says("exclude each other");
        if request.body.is_none() {
            assert!(answer.status == 400 && (of_lengths || request.method == "HEAD"), "{}", about());
            assert_eq!(answers.len(), index + 1, "{}", about());
        } else {
            assert!(!of_lengths && answer.status != 431, "{}", about());
            assert!(!says("bad request") || may_be_closed, "{}", about());
        }
        // A body that nobody reads ends the connection.
        may_be_closed |= request.has_body;
    }
    assert!(!is_all || answers.len() <= requests.len(), "{requests:?}: {answers:?}");
}

/// Panics if where requests begin and end depends on how the bytes are cut, or is not what the reference reads.
fn assert_followed(bytes: &[u8], requests: &[Request], seed: u8) {
    let whole = parts::follow([bytes]);
    assert_eq!(parts::follow(bytes.chunks(1)), whole, "byte by byte");
    assert_eq!(parts::follow(pieces(bytes, seed)), whole, "in pieces");
    let count = requests.len() as u64;
    assert!(whole.1 >= count, "{whole:?}, not {count}");
    if requests.last().is_some_and(|request| request.body.is_none()) {
        assert_eq!(whole, (Some(count - 1), count));
    } else {
        assert!(whole.0.is_none_or(|refused| refused >= count), "{whole:?}, not {count}");
    }
}
