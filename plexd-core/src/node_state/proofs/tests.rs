//! What is shown on `proof.sock`, and how it goes with the reads on the stream.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::{FutureExt, Stream, StreamExt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use plexd_proto::node::v1;
use plexd_proto::proof::Prover;
use plexd_proto::transport::{SocketOwner, bind};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use v1::SecretRefusal;
use v1::secret_answer::Result as Answered;
use v1::secret_read::Caller;

use super::super::audit::{Auditor, tests::taken};
use super::super::reads::Reading;
use super::super::secrets::{SecretReader, SecretRules};
use super::*;
use crate::control::client::{Client as ControlPlane, ClientConfig};
use crate::control::dev::DevControlPlane;
use crate::identity::Identity;
use crate::types::SystemClock;

/// Room for sockets of clients.
const ROOM: usize = 20;

/// The tests run as root, who may read.
const RULES: SecretRules = SecretRules { access_group: 989, secrets_group: 990, over_tcp: true };

struct Rig {
    proofs: Proofs,
    api: UnixListener,
    folder: tempfile::TempDir,
    shutdown: Shutdown,
    secrets: SecretReader,
    auditor: Auditor,
    identity: watch::Sender<Option<Arc<Identity>>>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::ReadSecretsResponse, tonic::Status>>>>;

/// A stream of reads, and the sidecar's end of it.
struct Conversation {
    prover: Prover,
    messages: mpsc::UnboundedSender<v1::ReadSecretsRequest>,
    answers: Answers,
}

impl Rig {
    /// Whose control plane says nothing.
    fn silent() -> Self {
        // Connections wait to be accepted for ever.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
        std::mem::forget(listener);
        let client = ControlPlane::new(ClientConfig { base, ca_file: None, version: "1" }).unwrap();
        Self::new(client, crate::reconcile::tests::identity())
    }

    fn new(client: ControlPlane, identity: Identity) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let owner = SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode: 0o660 };
        let path = |name: &str| folder.path().join(name);
        let api = UnixListener::bind(path("api.sock")).unwrap();
        let proofs = Proofs::new(&path("api.sock"), ROOM);
        let shutdown = Shutdown::new();
        let listener = bind(&path("proof.sock"), owner).unwrap();
        tokio::spawn(proofs.clone().serve(listener, owner.uid.as_raw(), shutdown.clone()));
        let identity = watch::Sender::new(Some(Arc::new(identity)));
        let token = watch::channel(None).1;
        let secrets = SecretReader::new(client, identity.subscribe(), RULES, token, proofs.clone());
        let auditor = Auditor::new(Arc::new(SystemClock), "a");
        Self { proofs, api, folder, shutdown, secrets, auditor, identity }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Connects to `api.sock`: the client's end, and the accepted one.
    fn client(&self) -> (UnixStream, UnixStream) {
        let client = UnixStream::connect(self.path("api.sock")).unwrap();
        (client, self.api.accept().unwrap().0)
    }

    async fn until_nothing_is_kept(&self) {
        self.until_places(ROOM).await;
    }

    async fn until_places(&self, places: usize) {
        let waited = async {
            while self.proofs.shared.custody.places() != places {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waited).await.expect("so many places");
    }

    async fn prover(&self) -> Prover {
        Prover::connect(&self.path("proof.sock")).await.unwrap()
    }

    async fn converse(&self) -> Conversation {
        let prover = self.prover().await;
        let (messages, incoming) = mpsc::unbounded_channel();
        let incoming = UnboundedReceiverStream::new(incoming).map(Ok);
        let (secrets, auditor) = (self.secrets.clone(), self.auditor.clone());
        let reading = Reading::new(incoming, secrets, auditor, self.identity.subscribe());
        let conversation = Conversation { prover, messages, answers: Box::pin(reading.answers()) };
        let ticket = conversation.prover.ticket().as_bytes().to_vec().into();
        conversation.messages.send(v1::ReadSecretsRequest { ticket, ..Default::default() }).unwrap();
        conversation
    }
}

fn shown(id: u64, key: &str) -> v1::SecretRead {
    v1::SecretRead { id, key: key.into(), caller: Some(Caller::Shown(v1::ShownCaller {})) }
}

impl Conversation {
    fn prove(&self, id: u64, socket: &impl AsFd) {
        assert!(self.prover.send(id, socket).unwrap());
    }

    fn ask(&self, reads: Vec<v1::SecretRead>) {
        self.messages.send(v1::ReadSecretsRequest { reads, ..Default::default() }).unwrap();
    }

    /// The next answers, by their ids, or how the stream ends.
    async fn answers(&mut self) -> Result<BTreeMap<u64, Result<String, SecretRefusal>>, Code> {
        let result = |answer: v1::SecretAnswer| match answer.result.unwrap() {
            Answered::Secret(secret) => (answer.id, Ok(String::from_utf8(secret.value.to_vec()).unwrap())),
            Answered::Refusal(refusal) => (answer.id, Err(refusal.try_into().unwrap())),
        };
        let answers = self.answers.next().await.unwrap().map_err(|status| status.code())?;
        Ok(answers.answers.into_iter().map(result).collect())
    }

    async fn answer(&mut self, id: u64) -> Result<String, SecretRefusal> {
        let answers = self.answers().await.unwrap();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers[&id].clone()
    }
}

#[tokio::test]
async fn root_a_client_that_is_shown_gets_its_secret_and_the_record_says_who_core_saw() {
    let control_plane = DevControlPlane::start().await;
    let identity = control_plane.enrol("a").await;
    let path = format!("nodes/{}/secrets/k", identity.node_id);
    control_plane.manage(reqwest::Method::PUT, &path, json!({ "value": "s3cret" })).await;
    let rig = Rig::new(control_plane.client(), identity);
    let mut conversation = rig.converse().await;
    let (_client, accepted) = rig.client();
    for id in [7, 3] {
        conversation.prove(id, &accepted);
        conversation.ask(vec![shown(id, "k")]);
        assert_eq!(conversation.answer(id).await.unwrap(), "s3cret");
    }
    let records = taken(&rig.auditor).await;
    let subject = json!({ "uid": 0, "gid": nix::unistd::getegid().as_raw(), "pid": std::process::id() });
    assert_eq!(
        (records.len(), &records[0]["subject"], &records[0]["result"]),
        (2, &subject, &json!("success"))
    );
    rig.until_nothing_is_kept().await;
}

#[tokio::test]
async fn root_without_proof_there_is_no_secret_and_the_record_names_nobody() {
    let rig = Rig::silent();
    let mut conversation = rig.converse().await;
    let (client, _accepted) = rig.client();
    let (_end, pair) = UnixStream::pair().unwrap();
    // The client's end, a pair, nobody, one who is gone.
    conversation.prove(1, &client);
    conversation.prove(2, &pair);
    conversation.ask(vec![shown(1, "k"), shown(2, "k"), v1::SecretRead { id: 3, ..Default::default() }]);
    // Core may still have the end that it was shown.
    let (gone, accepted) = rig.client();
    drop(gone);
    conversation.prove(4, &accepted);
    conversation.ask(vec![shown(4, "k")]);
    let mut answers = BTreeMap::new();
    while answers.len() < 4 {
        answers.extend(conversation.answers().await.unwrap());
    }
    assert!(answers.values().all(|answer| *answer == Err(SecretRefusal::Unproven)), "{answers:?}");
    // Nor without a connection to proof.sock.
    let (messages, incoming) = mpsc::unbounded_channel();
    let incoming = UnboundedReceiverStream::new(incoming).map(Ok);
    let identity = rig.identity.subscribe();
    let reading = Reading::new(incoming, rig.secrets.clone(), rig.auditor.clone(), identity);
    let mut unshown =
        Conversation { prover: rig.prover().await, messages, answers: Box::pin(reading.answers()) };
    unshown.ask(vec![shown(1, "k")]);
    assert_eq!(unshown.answer(1).await, Err(SecretRefusal::Unproven));
    for record in taken(&rig.auditor).await {
        assert_eq!((&record["subject"], &record["result"]), (&json!({ "via": "unknown" }), &json!("denied")));
    }
}

#[tokio::test]
async fn root_proofs_that_do_not_go_with_the_reads_end_the_stream() {
    let rig = Rig::silent();
    let (_client, accepted) = rig.client();
    let (_other, other) = rig.client();
    // What is sent, and the reads that are asked for.
    let table: [(&str, &[u64], &[u64]); 5] = [
        ("in another order", &[2, 1], &[1, 2]),
        ("of another read", &[5], &[1]),
        ("too late", &[], &[1]),
        ("one too few", &[1], &[1, 2]),
        ("one skipped", &[1, 2, 3], &[1, 3]),
    ];
    for (what, proofs, reads) in table {
        let mut conversation = rig.converse().await;
        for (id, socket) in proofs.iter().zip([&accepted, &other].into_iter().cycle()) {
            conversation.prove(*id, socket);
        }
        conversation.ask(reads.iter().map(|id| shown(*id, "k")).collect());
        assert_eq!(conversation.answers().await, Err(Code::FailedPrecondition), "{what}");
        assert!(conversation.answers.next().await.is_none());
        drop(conversation.answers);
        let ended = async {
            while conversation.prover.send(9, &accepted).is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("both end together");
    }
    rig.until_nothing_is_kept().await;
}

#[tokio::test]
async fn root_what_is_no_message_or_no_unix_socket_ends_the_stream() {
    let rig = Rig::silent();
    let (_client, accepted) = rig.client();
    let file = std::fs::File::open("/dev/null").unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (fd, good) = (accepted.as_raw_fd(), proof::message(1));
    let table: [(&[u8], &[i32]); 6] = [
        (&good, &[]),
        (&good, &[fd, fd]),
        (&good[1..], &[fd]),
        (&[0; 16], &[fd]),
        (&good, &[file.as_raw_fd()]),
        (&good, &[tcp.as_raw_fd()]),
    ];
    for (bytes, descriptors) in table {
        let mut stream = tokio::net::UnixStream::connect(rig.path("proof.sock")).await.unwrap();
        let mut greeting = [0; proof::GREETING];
        stream.read_exact(&mut greeting).await.unwrap();
        let mut conversation = rig.converse().await;
        // A second ticket on one stream is none; this one goes to a stream of its own.
        drop(std::mem::replace(&mut conversation.messages, mpsc::unbounded_channel().0));
        let shown = rig.proofs.claim(proof::parse_greeting(&greeting).unwrap().as_bytes()).unwrap();
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights };
        let pieces = [IoSlice::new(bytes)];
        sendmsg::<()>(stream.as_raw_fd(), &pieces, control, MsgFlags::empty(), None).unwrap();
        assert!(shown.take(1).is_err(), "{bytes:?}");
    }
}

#[tokio::test]
async fn root_one_connection_serves_for_one_read_at_a_time() {
    let rig = Rig::silent();
    let mut conversation = rig.converse().await;
    let (_client, accepted) = rig.client();
    let (_other, other) = rig.client();
    for (id, socket) in [(1, &accepted), (2, &accepted), (3, &other)] {
        conversation.prove(id, socket);
    }
    conversation.ask(vec![shown(1, "k"), shown(2, "k"), shown(3, "k")]);
    assert_eq!(conversation.answer(2).await, Err(SecretRefusal::Unproven));
    assert!(conversation.answers.next().now_or_never().is_none(), "the others are under way");
    // The next, once the first is given up.
    let given_up = vec![1];
    conversation.prove(4, &accepted);
    let message = v1::ReadSecretsRequest { reads: vec![shown(4, "k")], given_up, ..Default::default() };
    conversation.messages.send(message).unwrap();
    assert!(conversation.answers.next().now_or_never().is_none());
    rig.until_places(ROOM - 2).await;
}

#[tokio::test]
async fn root_more_sockets_than_there_is_room_for_are_closed_and_their_reads_refused() {
    let rig = Rig::silent();
    let mut conversation = rig.converse().await;
    let ids = 0..u64::try_from(ROOM).unwrap() + 5;
    let clients: Vec<_> = ids.clone().map(|_| rig.client()).collect();
    for (id, (_, accepted)) in ids.clone().zip(&clients) {
        conversation.prove(id, accepted);
    }
    conversation.ask(ids.map(|id| shown(id, "k")).collect());
    let answers = conversation.answers().await.unwrap();
    assert!(answers.len() == 5 && answers.values().all(|answer| *answer == Err(SecretRefusal::Unspecified)));
    drop(conversation);
    rig.until_nothing_is_kept().await;
}

#[tokio::test]
async fn root_a_client_whose_sidecar_dies_sees_the_end_also_while_its_read_is_under_way() {
    let rig = Rig::silent();
    let mut conversation = rig.converse().await;
    let (client, accepted) = rig.client();
    conversation.prove(1, &accepted);
    // Dead processes shut nothing down.
    drop(accepted);
    conversation.ask(vec![shown(1, "k")]);
    assert!(conversation.answers.next().now_or_never().is_none());
    drop(conversation);
    client.set_nonblocking(true).unwrap();
    let mut client = tokio::net::UnixStream::from_std(client).unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_ticket_is_for_one_stream_and_those_nobody_names_are_few() {
    let rig = Rig::silent();
    let mut conversation = rig.converse().await;
    assert!(conversation.answers.next().now_or_never().is_none());
    let ticket = conversation.prover.ticket();
    assert!(rig.proofs.claim(ticket.as_bytes()).is_none(), "it has a stream");
    for wrong in [&[0; 16][..], b"short", &[]] {
        assert!(rig.proofs.claim(wrong).is_none());
    }
    let other = rig.prover().await.ticket().as_bytes().to_vec();
    let second = v1::ReadSecretsRequest { ticket: other.into(), ..Default::default() };
    conversation.messages.send(second).unwrap();
    assert_eq!(conversation.answers().await, Err(Code::FailedPrecondition), "one stream, one ticket");

    let mut provers = Vec::new();
    for _ in 0..WAITING + 3 {
        provers.push(rig.prover().await);
    }
    assert_eq!(rig.proofs.waiting().len(), WAITING);
    let known = provers.iter().map(|prover| rig.proofs.claim(prover.ticket().as_bytes()).is_some());
    assert!(known.eq((0..WAITING + 3).map(|n| n >= 3)), "the oldest go");
    rig.shutdown.cancel();
}

#[tokio::test]
async fn nobody_but_the_sidecars_user_is_greeted() {
    let rig = Rig::silent();
    let owner = SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode: 0o660 };
    let listener = bind(&rig.path("other.sock"), owner).unwrap();
    tokio::spawn(rig.proofs.clone().serve(listener, 64_999, rig.shutdown.clone()));
    let error = Prover::connect(&rig.path("other.sock")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}
