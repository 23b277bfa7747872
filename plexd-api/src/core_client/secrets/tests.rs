//! The way of reads to a core that does as the test says.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::pin::Pin;

use futures_util::FutureExt;
use plexd_proto::proof::{self, ReceiveError};
use plexd_proto::settings::CoreSockets;
use plexd_proto::transport::ClientSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::puppet::{self, Streams};
use super::super::{Carrier, Core};
use super::*;
use crate::mirror::Mirror;

type Stream = puppet::Stream<ReadSecretsRequest, ReadSecretsResponse>;

struct Rig {
    core: Core,
    streams: Streams,
    _folder: tempfile::TempDir,
    _stop: DropGuard,
}

fn started(carrier: Carrier) -> DropGuard {
    let ended = CancellationToken::new();
    tokio::spawn(carrier.run(ended.clone()));
    ended.drop_guard()
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sockets = CoreSockets::within(folder.path());
        let streams = puppet::serve(&sockets);
        let (core, carrier) = Core::new(&sockets, Arc::new(Mirror::new()));
        Self { core, streams, _folder: folder, _stop: started(carrier) }
    }

    async fn stream(&mut self) -> Stream {
        self.streams.reads.recv().await.unwrap()
    }

    /// Begins to read `key`: it waits in the queue when this returns.
    fn read(&self, key: &str) -> Pending {
        self.read_for(key, caller())
    }

    fn read_for(&self, key: &str, proof: Proof) -> Pending {
        let (core, key) = (self.core.clone(), key.to_owned());
        let mut read = Box::pin(async move { core.secret(key, proof).await });
        assert!(read.as_mut().now_or_never().is_none());
        read
    }
}

type Pending = Pin<Box<dyn Future<Output = Answer>>>;

fn caller() -> Proof {
    Proof::Token("t".into())
}

/// Takes a message: ids by key, and those given up.
async fn message(stream: &mut Stream) -> (BTreeMap<String, u64>, Vec<u64>) {
    let ReadSecretsRequest { reads, given_up, .. } = stream.message().await;
    (reads.into_iter().map(|read| (read.key, read.id)).collect(), given_up)
}

fn secret(id: u64, value: &str) -> SecretAnswer {
    let secret = Secret { key: "k".into(), value: value.to_owned().into(), version: 1 };
    SecretAnswer { id, result: Some(Answered::Secret(secret)) }
}

fn answer(stream: &Stream, answers: Vec<SecretAnswer>) {
    stream.answers.send(Ok(ReadSecretsResponse { answers })).unwrap();
}

#[tokio::test]
async fn reads_go_as_they_come_and_each_gets_its_own_answer_in_whatever_order() {
    let mut rig = Rig::start();
    let (a, b) = (rig.read("a"), rig.read("b"));
    let mut stream = rig.stream().await;
    let (mut ids, _) = message(&mut stream).await;
    let c = rig.read("c");
    ids.extend(message(&mut stream).await.0);
    assert_eq!(ids.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    answer(&stream, vec![secret(ids["c"], "3"), secret(ids["a"], "1")]);
    assert_eq!(c.await.unwrap().value, "3");
    assert_eq!(a.await.unwrap().value, "1");
    let refused = Some(Answered::Refusal(SecretRefusal::NotFound.into()));
    answer(&stream, vec![SecretAnswer { id: ids["b"], result: refused }]);
    assert!(matches!(b.await, Err(CallError::Refused(SecretRefusal::NotFound))));
    let empty = rig.read("d");
    let (ids, _) = message(&mut stream).await;
    answer(&stream, vec![SecretAnswer { id: ids["d"], result: None }]);
    assert!(matches!(empty.await, Err(CallError::Unavailable(_))));
}

#[tokio::test]
async fn a_stream_on_which_nothing_is_read_is_ended_and_the_next_read_has_another() {
    let mut rig = Rig::start();
    for _ in 0..2 {
        let read = rig.read("k");
        let mut stream = rig.stream().await;
        let (ids, _) = message(&mut stream).await;
        answer(&stream, vec![secret(ids["k"], "1")]);
        assert_eq!(read.await.unwrap().value, "1");
        let end = stream.messages.message().await;
        assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    }
}

#[tokio::test]
async fn core_is_told_who_has_left_and_of_who_left_before_it_never_hears() {
    let mut rig = Rig::start();
    let (never, a, b) = (rig.read("never"), rig.read("a"), rig.read("b"));
    drop(never);
    let mut stream = rig.stream().await;
    let (ids, given_up) = message(&mut stream).await;
    assert!(ids.keys().eq(["a", "b"]) && given_up.is_empty(), "{ids:?} {given_up:?}");
    drop(a);
    assert_eq!(message(&mut stream).await, (BTreeMap::new(), vec![ids["a"]]));
    // It may have been answered already.
    answer(&stream, vec![secret(ids["a"], "1"), secret(ids["b"], "2")]);
    assert_eq!(b.await.unwrap().value, "2");
    let c = rig.read("c");
    let (ids, given_up) = message(&mut stream).await;
    assert!(given_up.is_empty(), "who got an answer has not left: {given_up:?}");
    answer(&stream, vec![secret(ids["c"], "3")]);
    assert_eq!(c.await.unwrap().value, "3");
}

#[tokio::test]
async fn no_more_are_under_way_than_core_takes_and_others_wait() {
    let mut rig = Rig::start();
    // Hundreds begin without giving way.
    let begin = || {
        tokio::task::unconstrained(futures_util::future::join_all(
            (0..1_100).map(|_| rig.core.secret("k".into(), caller())),
        ))
    };
    let mut reads = Box::pin(begin());
    assert!(reads.as_mut().now_or_never().is_none());
    let mut stream = rig.streams.reads.recv().await.unwrap();
    let mut ids = Vec::new();
    while ids.len() < MAX_READS_UNDER_WAY {
        let message = stream.message().await;
        assert!(message.reads.len() <= MAX_READS);
        ids.extend(message.reads.into_iter().map(|read| read.id));
    }
    assert_eq!(ids.len(), MAX_READS_UNDER_WAY);
    let serve = async {
        let mut answered = 0;
        loop {
            answered += ids.len();
            answer(&stream, ids.drain(..).map(|id| secret(id, "1")).collect());
            if answered == 1_100 {
                return;
            }
            ids.extend(stream.message().await.reads.into_iter().map(|read| read.id));
        }
    };
    let (all, ()) = tokio::join!(reads, serve);
    assert!(all.into_iter().all(|answer| answer.is_ok()));
}

#[tokio::test]
async fn a_stream_that_breaks_fails_what_is_under_way_and_the_next_read_asks_for_another() {
    let mut rig = Rig::start();
    for end in [Some(Status::unavailable("stopping")), None] {
        let (a, b) = (rig.read("a"), rig.read("b"));
        let mut stream = rig.stream().await;
        assert_eq!(message(&mut stream).await.0.len(), 2);
        if let Some(status) = end {
            stream.answers.send(Err(status)).unwrap();
        }
        drop(stream);
        assert!(matches!(
            (a.await, b.await),
            (Err(CallError::Unavailable(_)), Err(CallError::Unavailable(_)))
        ));
    }
    let a = rig.read("a");
    let mut stream = rig.stream().await;
    let (ids, _) = message(&mut stream).await;
    answer(&stream, vec![secret(ids["a"], "1")]);
    assert_eq!(a.await.unwrap().value, "1");
}

#[tokio::test]
async fn without_a_core_or_without_who_carries_a_read_fails_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = CoreSockets::within(&folder.path().join("nowhere"));
    let (core, carrier) = Core::new(&nowhere, Arc::new(Mirror::new()));
    let stop = started(carrier);
    for _ in 0..3 {
        assert!(matches!(core.secret("k".into(), caller()).await, Err(CallError::Unavailable(_))));
    }
    drop(stop);
    let (core, _) = Core::new(&nowhere, Arc::new(Mirror::new()));
    assert!(matches!(core.secret("k".into(), caller()).await, Err(CallError::Unavailable(_))));
}

/// A client, and what shows it.
fn client() -> (UnixStream, Proof) {
    let (here, client) = UnixStream::pair().unwrap();
    (client, Proof::Socket(ClientSocket::new(here)))
}

#[tokio::test]
async fn each_client_is_shown_before_its_read_and_nobody_else_is() {
    let mut rig = Rig::start();
    let clients: Vec<_> = (0..5).map(|_| client()).collect();
    let mut reads = Vec::new();
    let mut ends = Vec::new();
    for (n, (end, proof)) in clients.into_iter().enumerate() {
        reads.push(rig.read_for(&format!("local{n}"), proof));
        reads.push(rig.read(&format!("tcp{n}")));
        ends.push(end);
    }
    // One that left before it was its turn.
    drop(reads.remove(2));
    let mut stream = rig.stream().await;
    let connection = rig.streams.proofs.recv().await.unwrap();
    let message = stream.message().await;
    assert_eq!(message.ticket, puppet::TICKET.as_slice());
    let mut shown = 0;
    for read in &message.reads {
        if !matches!(read.caller, Some(Caller::Shown(_))) {
            continue;
        }
        // It is there already, and it is the one: what is written to it arrives at the client.
        let (id, socket) = proof::receive(&connection).unwrap();
        assert_eq!(id, read.id);
        UnixStream::from(socket).write_all(read.key.as_bytes()).unwrap();
        let n: usize = read.key.strip_prefix("local").unwrap().parse().unwrap();
        let mut heard = vec![0; read.key.len()];
        ends[n].read_exact(&mut heard).unwrap();
        assert_eq!(heard, read.key.as_bytes());
        shown += 1;
    }
    assert_eq!((shown, message.reads.len()), (4, 9));
    assert!(matches!(proof::receive(&connection), Err(ReceiveError::Nothing)));
    let later = rig.read("later");
    assert!(stream.message().await.ticket.is_empty(), "once is enough");
    drop((reads, later));
}

#[tokio::test]
async fn more_proofs_than_there_is_room_for_wait_and_go_on_in_order() {
    let mut rig = Rig::start();
    let clients: Vec<_> = (0..600).map(|_| client()).collect();
    let begin = clients.into_iter().map(|(end, proof)| {
        let core = rig.core.clone();
        async move {
            let answer = core.secret("k".into(), proof).await;
            drop(end);
            answer
        }
    });
    let mut reads = Box::pin(tokio::task::unconstrained(futures_util::future::join_all(begin)));
    assert!(reads.as_mut().now_or_never().is_none());
    let serve = async {
        let mut stream = rig.streams.reads.recv().await.unwrap();
        let connection = rig.streams.proofs.recv().await.unwrap();
        let mut answered = 0;
        while answered < 600 {
            let ids: Vec<_> = stream.message().await.reads.into_iter().map(|read| read.id).collect();
            for id in &ids {
                assert_eq!(proof::receive(&connection).unwrap().0, *id);
            }
            answered += ids.len();
            answer(&stream, ids.into_iter().map(|id| secret(id, "1")).collect());
        }
    };
    let (all, ()) = tokio::join!(reads, serve);
    assert!(all.into_iter().all(|answer| answer.is_ok()));
}

#[tokio::test]
async fn a_core_that_takes_no_proofs_fails_what_is_under_way_and_the_next_read_begins_anew() {
    let mut rig = Rig::start();
    let (_end, proof) = client();
    let read = rig.read_for("k", proof);
    let stream = rig.stream().await;
    drop(rig.streams.proofs.recv().await);
    let (_end, proof) = client();
    let other = rig.read_for("k", proof);
    assert!(matches!((read.await, other.await), (Err(_), Err(_))));
    drop(stream);
    let (_end, proof) = client();
    let read = rig.read_for("k", proof);
    let mut stream = rig.stream().await;
    let (ids, _) = message(&mut stream).await;
    answer(&stream, vec![secret(ids["k"], "1")]);
    assert_eq!(read.await.unwrap().value, "1");
}
