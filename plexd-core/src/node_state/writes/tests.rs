//! The stream of writes beside a model: whatever goes together, outcomes are those of single writes, one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::iter;
use proptest::prelude::*;
use tokio::sync::watch;

use super::*;
use crate::identity::Identity;
use crate::reports::ReportWriter;
use crate::status::Board;
use crate::supervisor::Shutdown;
use crate::types::SystemClock;

struct Rig {
    reports: Reports,
    writer: Option<ReportWriter>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    shutdown: Shutdown,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reports.redb");
        let (reports, writer) = Reports::open(&path, Arc::new(SystemClock), Board::default()).unwrap();
        let identity = watch::Sender::new(Some(Arc::new(crate::reconcile::tests::identity())));
        Self { reports, writer: Some(writer), identity, shutdown: Shutdown::new(), _folder: folder }
    }

    fn started() -> Self {
        let mut rig = Self::new();
        rig.start();
        rig
    }

    fn start(&mut self) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        tokio::spawn(self.writer.take().unwrap().run(self.shutdown.clone()))
    }

    fn answers(
        &self,
        messages: Vec<v1::WriteReportsRequest>,
    ) -> std::pin::Pin<Box<impl Stream<Item = Answer> + use<>>> {
        let messages = iter(messages.into_iter().map(Ok));
        Box::pin(Writing::new(messages, self.reports.clone(), self.identity.subscribe()).answers())
    }
}

fn message(writes: &[(&str, Option<i64>)]) -> v1::WriteReportsRequest {
    v1::WriteReportsRequest { writes: writes.iter().map(|(key, if_match)| put(key, *if_match)).collect() }
}

fn put(key: &str, if_match: Option<i64>) -> v1::ReportWrite {
    let put =
        v1::ReportPut { key: key.into(), content_type: "text/plain".into(), payload: "1".into(), if_match };
    v1::ReportWrite { write: Some(Wire::Put(put)) }
}

fn delete(key: &str, if_match: Option<i64>) -> v1::ReportWrite {
    v1::ReportWrite { write: Some(Wire::Delete(v1::ReportDelete { key: key.into(), if_match })) }
}

/// The version that each write led to, 0 for a deletion.
fn versions(answer: Answer) -> Vec<Result<i64, v1::ReportRefusal>> {
    let versions = answer.unwrap().outcomes.into_iter().map(|outcome| match outcome.outcome.unwrap() {
        Outcome::Written(written) => Ok(written.version),
        Outcome::Deleted(_) => Ok(0),
        Outcome::Refusal(refusal) => Err(refusal.try_into().unwrap()),
    });
    versions.collect()
}

#[tokio::test]
async fn messages_are_answered_in_their_order_and_each_write_has_its_own_outcome() {
    use v1::ReportRefusal::{Invalid, NotFound, VersionConflict};
    let rig = Rig::started();
    let mixed = v1::WriteReportsRequest {
        writes: vec![
            put("a", Some(0)),
            put("a", Some(0)),
            put("", None),
            put("b", None),
            delete("c", None),
            delete("b", Some(1)),
            put("b", Some(0)),
        ],
    };
    // More than are taken at a time.
    let more = (1..=9).map(|version| message(&[("a", Some(version))]));
    let mut answers = rig.answers(std::iter::once(mixed).chain(more).collect());
    let expected = [Ok(1), Err(VersionConflict), Err(Invalid), Ok(1), Err(NotFound), Ok(0), Ok(2)];
    assert_eq!(versions(answers.next().await.unwrap()), expected);
    for version in 2..=10 {
        assert_eq!(versions(answers.next().await.unwrap()), [Ok(version)]);
    }
    assert!(answers.next().await.is_none(), "all is answered, and no more comes");
}

#[tokio::test]
async fn messages_that_come_together_are_under_way_together_and_no_more_than_may_be() {
    let mut rig = Rig::new();
    let mut answers = rig.answers((0..9).map(|n| message(&[("a", Some(n))])).collect());
    assert!(answers.next().now_or_never().is_none(), "nothing is durable");
    rig.start();
    for version in 1..=9 {
        assert_eq!(versions(answers.next().await.unwrap()), [Ok(version)]);
    }
}

#[tokio::test]
async fn a_node_that_is_not_registered_takes_none_and_says_so_of_each() {
    let rig = Rig::started();
    rig.identity.send_replace(None);
    let mut answers = rig.answers(vec![message(&[("a", None), ("b", None)]), message(&[])]);
    let refused = Err(v1::ReportRefusal::NotRegistered);
    assert_eq!(versions(answers.next().await.unwrap()), [refused, refused]);
    assert_eq!(versions(answers.next().await.unwrap()), []);
    assert_eq!(rig.reports.counts().borrow().entries, 0);
}

#[tokio::test]
async fn what_is_no_message_ends_the_stream_once_what_came_before_is_answered() {
    let table = [
        v1::WriteReportsRequest { writes: vec![put("b", None); MAX_WRITES + 1] },
        v1::WriteReportsRequest { writes: vec![put("b", None), v1::ReportWrite { write: None }] },
    ];
    for wrong in table {
        let rig = Rig::started();
        let mut answers = rig.answers(vec![message(&[("a", None)]), wrong, message(&[("b", None)])]);
        assert_eq!(versions(answers.next().await.unwrap()), [Ok(1)]);
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), tonic::Code::InvalidArgument);
        assert!(answers.next().await.is_none());
    }
}

#[tokio::test]
async fn a_stop_answers_what_was_taken_and_ends_streams_on_which_nothing_comes() {
    let mut rig = Rig::new();
    let first = iter([Ok(message(&[("a", None)]))]);
    let messages = first.chain(futures_util::stream::pending());
    let writing = Writing::new(messages, rig.reports.clone(), rig.identity.subscribe());
    let mut answers = Box::pin(writing.answers());
    assert!(answers.next().now_or_never().is_none(), "nothing is durable");
    let task = rig.start();
    rig.shutdown.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(versions(answers.next().await.unwrap()), [Ok(1)]);
    assert!(answers.next().await.is_none());
    let mut late = rig.answers(vec![message(&[("a", None)])]);
    assert_eq!(late.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
}

/// What single writes come to, one after the other.
#[derive(Default)]
struct Model {
    current: BTreeMap<String, i64>,
    last: BTreeMap<String, i64>,
}

impl Model {
    fn apply(&mut self, write: &v1::ReportWrite) -> Result<i64, v1::ReportRefusal> {
        use v1::ReportRefusal::{NotFound, VersionConflict};
        match write.write.as_ref().unwrap() {
            Wire::Put(put) => {
                let current = self.current.get(&put.key).copied();
                if put.if_match.is_some_and(|expected| expected != current.unwrap_or(0)) {
                    return Err(VersionConflict);
                }
                let version = self.last.get(&put.key).copied().unwrap_or(0) + 1;
                self.current.insert(put.key.clone(), version);
                self.last.insert(put.key.clone(), version);
                Ok(version)
            }
            Wire::Delete(delete) => match self.current.get(&delete.key) {
                None if delete.if_match.is_some_and(|expected| expected != 0) => Err(VersionConflict),
                None => Err(NotFound),
                Some(current) if delete.if_match.is_some_and(|expected| expected != *current) => {
                    Err(VersionConflict)
                }
                Some(_) => {
                    self.current.remove(&delete.key);
                    Ok(0)
                }
            },
        }
    }
}

fn writes() -> impl Strategy<Value = Vec<Vec<v1::ReportWrite>>> {
    let if_match = prop_oneof![3 => Just(None), 2 => (0..4i64).prop_map(Some)];
    let write = ("[a-c]", if_match, prop::bool::weighted(0.3));
    let write = write.prop_map(
        |(key, if_match, deletes)| {
            if deletes { delete(&key, if_match) } else { put(&key, if_match) }
        },
    );
    prop::collection::vec(prop::collection::vec(write, 0..12), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn outcomes_are_those_of_single_writes_in_their_order_however_they_go_together(messages in writes()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::started();
            let mut model = Model::default();
            let expected: Vec<Vec<_>> = messages
                .iter()
                .map(|writes| writes.iter().map(|write| model.apply(write)).collect())
                .collect();
            let messages = messages.into_iter().map(|writes| v1::WriteReportsRequest { writes }).collect();
            let outcomes: Vec<Vec<_>> = rig.answers(messages).map(versions).collect().await;
            assert_eq!(outcomes, expected);
            rig.shutdown.cancel();
            rig.reports.stopped().await;
        });
    }
}
