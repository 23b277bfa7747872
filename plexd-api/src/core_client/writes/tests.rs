//! The way of writes to a core that does as the test says: what goes together, what becomes of each, and what a stream that
//! breaks comes to.

use std::path::PathBuf;
use std::pin::Pin;

use futures_util::FutureExt;
use plexd_proto::node::v1::{self, ReportDeleted};
use plexd_proto::settings::CoreSockets;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::Core;
use super::super::puppet::{self, Streams};
use super::*;
use crate::mirror::{Kind, Pace, Stage};

type Stream = puppet::Stream<WriteReportsRequest, WriteReportsResponse>;

/// Where core puts its answers.
type Answers = mpsc::UnboundedSender<Result<WriteReportsResponse, Status>>;

/// How a stream ends.
type End = fn(&Answers);

/// The sidecar's side, and the streams as core gets them.
struct Rig {
    core: Core,
    mirror: Arc<Mirror>,
    streams: Streams,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    _stop: DropGuard,
}

impl Rig {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sockets = CoreSockets::within(folder.path());
        let streams = puppet::serve(&sockets);
        let mirror = Arc::new(Mirror::new());
        let mut stage = Stage::snapshot();
        let all = v1::WatchResponse { reset: true, changes: Vec::new(), complete: true };
        assert!(stage.add(all, &mut Pace::new()).await);
        mirror.publish(stage).await;
        let (core, carrier) = Core::new(&sockets, Arc::clone(&mirror));
        let ended = CancellationToken::new();
        tokio::spawn(carrier.run(ended.clone()));
        Self { core, mirror, streams, socket: sockets.socket, _folder: folder, _stop: ended.drop_guard() }
    }

    async fn stream(&mut self) -> Stream {
        self.streams.writes.recv().await.unwrap()
    }

    /// Begins to write `key`: it waits in the queue when this returns.
    fn put(&self, key: &str) -> Pending {
        self.put_payload(key, 1)
    }

    fn put_payload(&self, key: &str, bytes: usize) -> Pending {
        let payload = vec![b'1'; bytes].into();
        let report = Report { key: key.into(), content_type: "t".into(), payload, if_match: None };
        let core = self.core.clone();
        Pending::begun(async move { core.put(report).await.map(|entry| entry.version) })
    }

    fn delete(&self, key: &str) -> Pending {
        let (core, key) = (self.core.clone(), key.to_owned());
        Pending::begun(async move { core.delete(key, None).await.map(|()| 0) })
    }

    fn shown(&self, key: &str) -> Option<i64> {
        self.mirror.snapshot().unwrap().entry(Kind::Report, key).map(|entry| entry.version)
    }
}

/// A write that waits.
struct Pending(Pin<Box<dyn Future<Output = Result<i64, CallError<ReportRefusal>>>>>);

impl Pending {
    fn begun(write: impl Future<Output = Result<i64, CallError<ReportRefusal>>> + 'static) -> Self {
        // Hundreds begin without giving way.
        let mut write = Box::pin(tokio::task::unconstrained(write));
        assert!(write.as_mut().now_or_never().is_none());
        Self(write)
    }

    async fn version(self) -> i64 {
        self.0.await.unwrap()
    }

    async fn failed(self) -> String {
        match self.0.await {
            Err(CallError::Unavailable(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// Takes a message: the keys, those to be deleted with a minus.
async fn keys(stream: &mut Stream) -> Vec<String> {
    let key = |write: ReportWrite| match write.write.unwrap() {
        Wire::Put(put) => put.key,
        Wire::Delete(delete) => format!("-{}", delete.key),
    };
    stream.message().await.writes.into_iter().map(key).collect()
}

fn answer(stream: &Stream, outcomes: Vec<Outcome>) {
    let outcome = |outcome| ReportOutcome { outcome: Some(outcome) };
    let outcomes = outcomes.into_iter().map(outcome).collect();
    stream.answers.send(Ok(WriteReportsResponse { outcomes })).unwrap();
}

fn written(version: i64, revision: u64) -> Outcome {
    Outcome::Written(ReportWritten { version, updated_at: String::new(), revision })
}

#[tokio::test]
async fn what_finds_nothing_under_way_is_sent_at_once_and_what_waits_goes_together_in_its_order() {
    let mut rig = Rig::start().await;
    let first = rig.put("first");
    let mut stream = rig.stream().await;
    assert_eq!(keys(&mut stream).await, ["first"]);
    let second = rig.put("second");
    assert_eq!(keys(&mut stream).await, ["second"], "one more may be under way");
    let waiting: Vec<_> = ["c", "a", "b", "a"].into_iter().map(|key| rig.put(key)).collect();
    answer(&stream, vec![written(1, 1)]);
    assert_eq!(first.version().await, 1);
    assert_eq!(keys(&mut stream).await, ["c", "a", "b", "a"]);
    answer(&stream, vec![written(1, 2)]);
    assert_eq!(second.version().await, 1);
    answer(&stream, (1..=4).map(|n| written(n, 9 + n.unsigned_abs())).collect());
    for (version, write) in (1..).zip(waiting) {
        assert_eq!(write.version().await, version);
    }
    assert_eq!([rig.shown("a"), rig.shown("b"), rig.shown("c")], [Some(4), Some(3), Some(1)]);
}

#[tokio::test]
async fn each_write_has_its_own_outcome_and_shows_before_anybody_hears_of_it() {
    let mut rig = Rig::start().await;
    let (first, second) = (rig.put("first"), rig.put("second"));
    let (refused, deleted, put) = (rig.put("refused"), rig.delete("first"), rig.put("put"));
    let mut stream = rig.stream().await;
    let mut all = Vec::new();
    while all.len() < 5 {
        let message = keys(&mut stream).await;
        answer(&stream, message.iter().map(|key| outcome_for(key)).collect());
        all.extend(message);
    }
    assert_eq!(all, ["first", "second", "refused", "-first", "put"]);
    assert_eq!([first.version().await, second.version().await, deleted.version().await], [1, 1, 0]);
    assert_eq!([rig.shown("first"), rig.shown("refused"), rig.shown("put")], [None, None, Some(1)]);
    assert!(matches!(refused.0.await, Err(CallError::Refused(ReportRefusal::VersionConflict))));
    assert_eq!(put.version().await, 1);
}

fn outcome_for(key: &str) -> Outcome {
    match key {
        "first" => written(1, 1),
        "second" => written(1, 2),
        "refused" => Outcome::Refusal(ReportRefusal::VersionConflict.into()),
        "-first" => Outcome::Deleted(ReportDeleted { key: "first".into(), revision: 3 }),
        _ => written(1, 4),
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_no_other_with_it_and_what_is_not_sent_yet_never_is() {
    let mut rig = Rig::start().await;
    let first = rig.put("first");
    let mut stream = rig.stream().await;
    assert_eq!(keys(&mut stream).await, ["first"]);
    let second = rig.put("second");
    assert_eq!(keys(&mut stream).await, ["second"]);
    let (a, b, c) = (rig.put("a"), rig.put("b"), rig.put("c"));
    drop((first, b));
    answer(&stream, vec![written(1, 1)]);
    assert_eq!(keys(&mut stream).await, ["a", "c"]);
    drop(a);
    answer(&stream, vec![written(1, 2)]);
    answer(&stream, vec![written(1, 3), written(1, 4)]);
    assert_eq!([second.version().await, c.version().await], [1, 1]);
    assert_eq!([rig.shown("first"), rig.shown("a")], [Some(1), Some(1)], "done is done, whoever hears of it");
}

#[tokio::test]
async fn a_stream_that_breaks_fails_what_is_under_way_and_the_next_write_asks_for_another() {
    let mut rig = Rig::start().await;
    let ends: [(End, &str); 4] = [
        (|answers| answers.send(Err(Status::unavailable("stopping"))).unwrap(), "Unavailable"),
        (|answers| answers.send(Err(Status::invalid_argument("no"))).unwrap(), "InvalidArgument"),
        (|answers| answers.send(Ok(WriteReportsResponse { outcomes: Vec::new() })).unwrap(), "Internal"),
        (|_| {}, "Unavailable"),
    ];
    for (end, reason) in ends {
        let (first, second, third) = (rig.put("first"), rig.put("second"), rig.put("third"));
        let mut stream = rig.stream().await;
        let mut sent = keys(&mut stream).await.len();
        if sent < 3 {
            sent += keys(&mut stream).await.len();
        }
        assert_eq!(sent, 3);
        end(&stream.answers);
        drop(stream);
        for write in [first, second, third] {
            assert_eq!(write.failed().await, reason);
        }
        assert_eq!(rig.shown("first"), None);
    }
    let write = rig.put("first");
    let mut stream = rig.stream().await;
    assert_eq!(keys(&mut stream).await, ["first"]);
    answer(&stream, vec![written(1, 1)]);
    assert_eq!(write.version().await, 1);
}

#[tokio::test]
async fn without_a_core_or_without_who_carries_a_write_fails_at_once() {
    let rig = Rig::start().await;
    let nowhere = CoreSockets::within(&rig.socket.with_file_name("nowhere"));
    let report = || Report { key: "k".into(), content_type: "t".into(), payload: "1".into(), if_match: None };
    let (core, carrier) = Core::new(&nowhere, Arc::clone(&rig.mirror));
    tokio::spawn(carrier.run(CancellationToken::new()));
    for _ in 0..3 {
        assert!(matches!(core.put(report()).await, Err(CallError::Unavailable(_))));
    }
    let (core, _) = Core::new(&nowhere, Arc::clone(&rig.mirror));
    assert!(matches!(core.put(report()).await, Err(CallError::Unavailable(_))));
}

#[tokio::test]
async fn a_core_that_says_nothing_fails_writes_in_time_whether_they_wait_or_are_under_way() {
    let mut rig = Rig::start().await;
    let first = rig.put("first");
    let mut stream = rig.stream().await;
    assert_eq!(keys(&mut stream).await, ["first"]);
    let second = rig.put("second");
    assert_eq!(keys(&mut stream).await, ["second"]);
    let third = rig.put("third");
    tokio::time::pause();
    let begun = Instant::now();
    for write in [first, second, third] {
        write.failed().await;
    }
    assert!(begun.elapsed() <= REPORT_DEADLINE * 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn messages_are_bounded_in_writes_and_in_bytes_but_for_one_that_is_larger_by_itself() {
    let mut rig = Rig::start().await;
    let mut writes = vec![rig.put("first")];
    let mut stream = rig.stream().await;
    assert_eq!(keys(&mut stream).await.len(), 1);
    writes.push(rig.put("second"));
    assert_eq!(keys(&mut stream).await.len(), 1);
    writes.extend((0..MAX_WRITES + 10).map(|n| rig.put(&format!("k{n}"))));
    for bytes in [600_000, 400_000, 400_000, 3_000_000, 10, 20] {
        writes.push(rig.put_payload("large", bytes));
    }
    answer(&stream, vec![written(1, 1)]);
    answer(&stream, vec![written(1, 1)]);
    for expected in [MAX_WRITES, 12, 1, 1, 2] {
        let message = keys(&mut stream).await;
        assert_eq!(message.len(), expected, "{message:?}");
        answer(&stream, vec![written(1, 1); message.len()]);
    }
    for write in writes {
        assert_eq!(write.version().await, 1);
    }
}
