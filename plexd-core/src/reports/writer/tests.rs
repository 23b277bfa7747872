//! The writer as its callers see it: what is told to those who watch, disks that fail, and what may wait.

use super::*;
use crate::reports::{Change, Put};
use crate::storage::faults;
use crate::types::SystemClock;

fn put(key: &str, if_match: Option<i64>) -> Put {
    Put { key: key.into(), content_type: "text/plain".into(), payload: "1".into(), if_match }
}

fn open(folder: &tempfile::TempDir) -> (Reports, ReportWriter) {
    let path = folder.path().join("reports.redb");
    Reports::open(&path, Arc::new(SystemClock), Board::default()).unwrap()
}

#[tokio::test]
async fn a_subscriber_sees_what_is_there_and_every_change_after() {
    let folder = tempfile::tempdir().unwrap();
    let (reports, writer) = open(&folder);
    let shutdown = Shutdown::new();
    let task = tokio::spawn(writer.run(shutdown.clone()));
    reports.put(put("a", None)).await.unwrap();
    let mut position = reports.position();
    position.mark_unchanged();
    let snapshot = reports.changes(Cursor::default(), 9, 999).await.unwrap();
    assert!(snapshot.reset && snapshot.complete && snapshot.changes.len() == 1, "{snapshot:?}");
    let entry = reports.put(put("b", None)).await.unwrap();
    let deleted = reports.delete("a".into(), Some(1)).await.unwrap();
    assert!(position.has_changed().unwrap());
    let changes = reports.changes(snapshot.cursor, 9, 999).await.unwrap();
    assert!(!changes.reset && changes.complete, "{changes:?}");
    assert_eq!(changes.changes, [Change::Put(entry), Change::Deleted(deleted)]);
    let nothing = reports.changes(changes.cursor, 9, 999).await.unwrap();
    assert!(!nothing.reset && nothing.complete && nothing.changes.is_empty(), "{nothing:?}");
    assert_eq!(*reports.counts().borrow(), Counts { entries: 1, pending: 2, conflicted: 0 });
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(reports.submit(vec![Write::Put(put("c", None))]).await.unwrap_err(), Stopped);
    reports.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_concurrent_writers_with_one_version_exactly_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let (reports, writer) = open(&folder);
    let shutdown = Shutdown::new();
    let task = tokio::spawn(writer.run(shutdown.clone()));
    let writers: Vec<_> = (0..32)
        .map(|_| {
            let reports = reports.clone();
            tokio::spawn(async move { reports.put(put("a", Some(0))).await })
        })
        .collect();
    let mut won = 0;
    for writer in writers {
        match writer.await.unwrap() {
            Ok(_) => won += 1,
            Err(refusal) => assert_eq!(refusal, Refusal::VersionConflict),
        }
    }
    assert_eq!(won, 1);
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn reports_that_were_sent_or_refused_are_offered_again_and_deletions_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (reports, writer) = open(&folder);
    let shutdown = Shutdown::new();
    let task = tokio::spawn(writer.run(shutdown.clone()));
    for key in ["sent", "refused", "gone"] {
        reports.put(put(key, None)).await.unwrap();
    }
    let mut batches = reports.outbox(u64::MAX, 9, 9999).await.unwrap().split();
    batches.next();
    reports.mark_conflicted(batches.next().unwrap()).await.unwrap();
    reports.confirm(batches.next().unwrap()).await.unwrap();
    reports.delete("gone".into(), None).await.unwrap();
    reports.offer_again().await.unwrap();
    assert_eq!(*reports.counts().borrow(), Counts { entries: 2, pending: 2, conflicted: 0 });
    let batch = reports.outbox(u64::MAX, 9, 9999).await.unwrap();
    let keys: Vec<_> = batch.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!((keys, batch.deleted.len()), (vec!["sent", "refused"], 0));
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_cleared_is_told_as_deleted_and_versions_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (reports, writer) = open(&folder);
    let shutdown = Shutdown::new();
    let task = tokio::spawn(writer.run(shutdown.clone()));
    let report = |payload: &str| Put { payload: payload.to_owned().into(), ..put("a", None) };
    reports.put(report(r#""hunter2""#)).await.unwrap();
    let last = reports.put(report(r#""hunter2""#)).await.unwrap();
    reports.put(put("b", None)).await.unwrap();
    reports.delete("b".into(), None).await.unwrap();
    let cursor = reports.changes(Cursor::default(), 9, 999).await.unwrap().cursor;
    reports.clear().await.unwrap().unwrap();
    let changes = reports.changes(cursor, 9, 999).await.unwrap();
    let [Change::Deleted(deleted)] = changes.changes.as_slice() else { panic!("{changes:?}") };
    assert!(deleted.key == "a" && deleted.revision > last.revision, "{deleted:?}");
    assert_eq!(*reports.counts().borrow(), Counts::default());
    let bytes = std::fs::read(folder.path().join("reports.redb")).unwrap();
    assert!(!bytes.windows(7).any(|window| window == b"hunter2"));
    for key in ["a", "b"] {
        let entry = reports.put(put(key, Some(0))).await.unwrap();
        assert!(entry.version == 1 && entry.revision > deleted.revision, "{entry:?}");
    }
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

/// A writer of `folder`, its tasks, and the board.
struct Rig {
    reports: Reports,
    board: Board,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    path: PathBuf,
}

impl Rig {
    fn start(folder: &Path) -> Self {
        let (board, shutdown) = (Board::default(), Shutdown::new());
        let path = folder.join("reports.redb");
        let (reports, writer) = Reports::open(&path, Arc::new(SystemClock), board.clone()).unwrap();
        let task = tokio::spawn(writer.run(shutdown.clone()));
        Self { reports, board, shutdown, task, path }
    }

    async fn stopped(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }

    /// What is under each key for somebody who watches from the start.
    async fn all(&self) -> Vec<(String, i64)> {
        let all = self.reports.changes(Cursor::default(), 99_999, usize::MAX).await.unwrap();
        assert!(all.reset && all.complete);
        let known = all.changes.into_iter().map(|change| match change {
            Change::Put(entry) => (entry.key, entry.version),
            Change::Deleted(deleted) => panic!("{deleted:?} in a snapshot"),
        });
        known.collect()
    }
}

#[tokio::test]
async fn a_disk_that_fails_at_any_write_or_sync_loses_nothing_and_those_who_watch_see_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let (mut effective, mut fruitless) = (0, 0);
    let kinds = [(nix::libc::EIO, Refusal::StorageFailed), (nix::libc::ENOSPC, Refusal::InsufficientStorage)];
    for (error, refusal) in kinds {
        for (at, sync) in (0..12).map(|at| (at, false)).chain((0..3).map(|at| (at, true))) {
            let rig = Rig::start(folder.path());
            let faults = faults::at(&rig.path);
            let acknowledged = rig.reports.put(put("a", None)).await.unwrap();
            let told = rig.reports.changes(Cursor::default(), 9, 999).await.unwrap();
            if sync {
                faults.fail_syncs_from(at, error);
            } else {
                faults.fail_writes_from(at, error);
            }
            let outcome = rig.reports.put(put("a", None)).await;
            if outcome.is_err() {
                assert_eq!(outcome, Err(refusal), "at {at}");
                assert!(rig.problems().contains("reports cannot be stored"), "{}", rig.problems());
                assert_eq!(rig.reports.put(put("b", None)).await, Err(refusal), "at {at}");
                assert_eq!(rig.reports.delete("a".into(), None).await, Err(refusal), "at {at}");
            }
            let there = rig.all().await;
            assert!(there.iter().all(|(key, _)| key == "a"), "{there:?}");
            let version = there[0].1;
            assert!(version == acknowledged.version || version == acknowledged.version + 1, "{there:?}");
            // Whoever was told before hears of all that is new, and of nothing that is not.
            let news = rig.reports.changes(told.cursor, 9, 999).await.unwrap();
            let is_new = version > acknowledged.version;
            assert_eq!(!news.changes.is_empty(), is_new, "at {at}, sync {sync}: {news:?}");
            assert_eq!(news.reset, is_new && outcome.is_err(), "at {at}, sync {sync}: {news:?}");
            *(if news.reset { &mut effective } else { &mut fruitless }) += 1;
            faults.heal();
            let next = rig.reports.put(put("a", Some(version))).await.unwrap();
            assert_eq!((next.version, rig.problems().as_str()), (version + 1, ""));
            rig.stopped().await;
            let rig = Rig::start(folder.path());
            assert_eq!(rig.all().await, [("a".to_owned(), version + 1)], "at {at}, sync {sync}");
            rig.stopped().await;
        }
    }
    assert!(effective > 0 && fruitless > 0, "{effective} failed commits were durable, {fruitless} were not");
}

#[tokio::test]
async fn reports_on_a_disk_that_takes_no_writes_are_served_and_refused_and_stored_once_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(folder.path());
    rig.reports.put(put("a", None)).await.unwrap();
    let path = rig.path.clone();
    rig.stopped().await;
    for error in [nix::libc::EROFS, nix::libc::ENOSPC] {
        let faults = faults::at(&path);
        faults.fail_writes_from(0, error);
        let rig = Rig::start(folder.path());
        assert!(rig.problems().contains("reports cannot be stored"), "{}", rig.problems());
        let there = rig.all().await;
        assert_eq!(there.len(), 1);
        for _ in 0..2 {
            rig.reports.put(put("b", None)).await.unwrap_err();
            rig.reports.confirm(Batch::default()).await.unwrap_err();
            assert_eq!(rig.all().await, there);
        }
        faults.heal();
        // Nobody writes anything.
        crate::control::dev::until("the problem is over", async || rig.problems().is_empty().then_some(()))
            .await;
        let entry = rig.reports.put(put("a", Some(there[0].1))).await.unwrap();
        assert_eq!(entry.version, there[0].1 + 1);
        rig.stopped().await;
    }
}

#[tokio::test]
async fn what_may_wait_is_bounded_in_bytes_and_nothing_waits_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(folder.path());
    // As if writes of that size waited.
    let waiting = rig.reports.room.acquire_many(QUEUE_BYTES - 1_000).await.unwrap();
    let large = Put { payload: format!("\"{}\"", "x".repeat(2_000)).into(), ..put("large", None) };
    let mut late = Box::pin(rig.reports.put(large));
    assert!(futures_util::FutureExt::now_or_never(late.as_mut()).is_none());
    drop(waiting);
    late.await.unwrap();
    let mut position = rig.reports.position();
    rig.reports.put(put("small", None)).await.unwrap();
    assert!(position.has_changed().unwrap() && position.borrow_and_update().revision == 2);
    assert_eq!([room_for(7), room_for(17_000_000), room_for(usize::MAX)], [7, QUEUE_BYTES, QUEUE_BYTES]);
    rig.stopped().await;
}
