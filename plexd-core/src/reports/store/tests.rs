//! The rules of versions, tombstones and the outbox.

use super::*;
use crate::reports::{MAX_ENTRIES, MAX_TOTAL_BYTES, MAX_UNSENT, Put};

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("reports.redb"), jiff::Timestamp::UNIX_EPOCH).unwrap().0;
    (folder, store)
}

fn put(key: &str, payload: &'static str, if_match: Option<i64>) -> Write {
    Write::Put(Put {
        key: key.into(),
        content_type: "application/json".into(),
        payload: Bytes::from_static(payload.as_bytes()),
        if_match,
    })
}

fn delete(key: &str, if_match: Option<i64>) -> Write {
    Write::Delete { key: key.into(), if_match }
}

/// Commits one write and returns the version it led to; 0 for a deletion.
fn one(store: &mut Store, write: Write) -> Result<i64, Refusal> {
    let mut outcomes = store.commit(vec![write], "2026-01-15T10:30:00Z").unwrap();
    outcomes.remove(0).map(|written| match written {
        Written::Put(entry) => entry.version,
        Written::Deleted(_) => 0,
    })
}

#[test]
fn versions_rise_by_one_and_survive_deletion() {
    let (_folder, mut store) = store();
    assert_eq!(one(&mut store, put("a", "1", None)), Ok(1));
    assert_eq!(one(&mut store, put("a", "2", None)), Ok(2));
    assert_eq!(one(&mut store, delete("a", None)), Ok(0));
    assert_eq!(one(&mut store, put("a", "3", None)), Ok(3));
    assert_eq!(one(&mut store, put("b", "1", None)), Ok(1));
}

#[test]
fn if_match_decides() {
    let (_folder, mut store) = store();
    assert_eq!(one(&mut store, put("a", "1", Some(1))), Err(Refusal::VersionConflict));
    assert_eq!(one(&mut store, put("a", "1", Some(0))), Ok(1));
    assert_eq!(one(&mut store, put("a", "1", Some(0))), Err(Refusal::VersionConflict));
    assert_eq!(one(&mut store, put("a", "2", Some(1))), Ok(2));
    assert_eq!(one(&mut store, delete("a", Some(1))), Err(Refusal::VersionConflict));
    assert_eq!(one(&mut store, delete("a", Some(2))), Ok(0));
    assert_eq!(one(&mut store, delete("a", None)), Err(Refusal::NotFound));
}

#[test]
fn of_writers_with_the_same_version_in_one_commit_exactly_one_wins() {
    let (_folder, mut store) = store();
    let writes = (0..5).map(|_| put("a", "1", Some(0))).collect();
    let outcomes = store.commit(writes, "2026-01-15T10:30:00Z").unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[test]
fn folded_tombstones_leave_a_floor_below_no_deleted_version() {
    let (_folder, mut store) = store();
    for version in 1..=3 {
        assert_eq!(one(&mut store, put("deep", "1", None)), Ok(version));
    }
    one(&mut store, delete("deep", None)).unwrap();
    for chunk in 0..4 {
        let keys = || (0..2_500).map(move |n| format!("k{chunk}-{n}"));
        store.commit(keys().map(|key| put(&key, "1", None)).collect(), "t").unwrap();
        store.commit(keys().map(|key| delete(&key, None)).collect(), "t").unwrap();
    }
    assert_eq!(one(&mut store, put("deep", "1", None)), Ok(4));
    assert_eq!(one(&mut store, put("new", "1", None)), Ok(4), "unknown keys start above the floor");
}

#[test]
fn more_entries_than_allowed_are_refused_but_updates_go_on() {
    let (_folder, mut store) = store();
    let writes = (0..MAX_ENTRIES).map(|n| put(&format!("k{n}"), "1", None)).collect();
    assert!(store.commit(writes, "t").unwrap().iter().all(Result::is_ok));
    assert_eq!(one(&mut store, put("one-more", "1", None)), Err(Refusal::TooManyEntries));
    assert_eq!(one(&mut store, put("k0", "2", None)), Ok(2));
}

#[test]
fn the_outbox_holds_the_newest_change_per_key_until_that_one_is_confirmed() {
    let (_folder, mut store) = store();
    one(&mut store, put("a", "1", None)).unwrap();
    one(&mut store, put("b", "1", None)).unwrap();
    one(&mut store, delete("b", None)).unwrap();
    let batch = store.outbox(u64::MAX, 10, 1024).unwrap();
    assert_eq!((batch.entries.len(), batch.deleted.len()), (1, 1));
    one(&mut store, put("a", "2", None)).unwrap();
    store.confirm(&batch).unwrap();
    let rest = store.outbox(u64::MAX, 10, 1024).unwrap();
    assert_eq!(rest.entries.iter().map(|entry| entry.version).collect::<Vec<_>>(), [2]);
    assert!(rest.deleted.is_empty());
}

#[test]
fn batches_are_bounded_in_number_and_bytes() {
    let (_folder, mut store) = store();
    for n in 0..5 {
        one(&mut store, put(&format!("k{n}"), r#""0123456789""#, None)).unwrap();
    }
    assert_eq!(store.outbox(u64::MAX, 3, 1024).unwrap().len(), 3);
    assert_eq!(store.outbox(u64::MAX, 10, 70).unwrap().len(), 2);
    assert_eq!(
        store.outbox(u64::MAX, 10, 1).unwrap().len(),
        1,
        "one goes even when it is larger than the bound"
    );
}

#[test]
fn a_conflicted_entry_stays_and_is_sent_again_only_after_a_new_write() {
    let (_folder, mut store) = store();
    one(&mut store, put("a", "1", None)).unwrap();
    let batch = store.outbox(u64::MAX, 10, 1024).unwrap();
    store.mark_conflicted(&batch).unwrap();
    assert_eq!(store.counts().unwrap(), Counts { entries: 1, pending: 0, conflicted: 1 });
    one(&mut store, put("a", "2", None)).unwrap();
    assert_eq!(store.counts().unwrap(), Counts { entries: 1, pending: 1, conflicted: 0 });
}

#[test]
fn everything_is_there_after_reopening_and_payloads_are_kept_byte_for_byte() {
    let (folder, mut store) = store();
    let payload = r#"{ "b":1.0,  "a":9007199254740993 }"#;
    one(&mut store, put("a/b", payload, None)).unwrap();
    drop(store);
    let mut store = Store::open(&folder.path().join("reports.redb"), jiff::Timestamp::UNIX_EPOCH).unwrap().0;
    let told = store.changes(Cursor::default(), 10, 1024).unwrap();
    let [Change::Put(entry)] = told.changes.as_slice() else { panic!("{told:?}") };
    assert_eq!(entry.payload, payload);
    assert_eq!((entry.version, entry.revision), (1, 1));
    assert_eq!(store.counts().unwrap().pending, 1);
}

#[test]
fn what_is_not_a_report_is_refused() {
    let (_folder, mut store) = store();
    let long = "k".repeat(257);
    for (key, payload) in [("", "1"), ("a\n", "1"), (long.as_str(), "1"), ("a", ""), ("a", "1 2"), ("a", "{")]
    {
        assert_eq!(one(&mut store, put(key, payload, None)), Err(Refusal::Invalid), "{key:?} {payload:?}");
    }
}

#[test]
fn a_damaged_database_is_set_aside_and_a_new_one_serves_with_versions_above_what_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reports.redb");
    let open = |now| Store::open(&path, now);
    let mut now: jiff::Timestamp = "2026-01-15T10:30:00Z".parse().unwrap();
    let (mut store, _) = open(now).unwrap();
    let writes = (0..200).map(|n| put(&format!("key-{n}"), "1", None)).collect();
    store.commit(writes, "2026-01-15T10:30:00Z").unwrap();
    drop(store);
    let bytes = std::fs::read(&path).unwrap();
    let mut last = 1;
    for damaged in [&bytes[..bytes.len() / 2], b"not a database"] {
        std::fs::write(&path, damaged).unwrap();
        let (mut store, aside) = open(now).unwrap();
        assert_eq!(std::fs::read(aside.unwrap()).unwrap(), damaged);
        assert_eq!(store.counts().unwrap(), Counts::default());
        let version = one(&mut store, put("key-1", "1", None)).unwrap();
        assert!(version > last, "{version} comes after {last}");
        last = version;
        drop(store);
        let (mut store, _) = open(now).unwrap();
        assert_eq!(one(&mut store, put("key-1", "1", None)), Ok(version + 1));
        last += 1;
        now += jiff::SignedDuration::from_secs(1);
    }
}

#[test]
fn the_outbox_is_by_age_and_ends_where_it_is_asked_to() {
    let (_folder, mut store) = store();
    for key in ["z", "y", "a", "b"] {
        one(&mut store, put(key, "1", None)).unwrap();
    }
    let newest = store.position().revision;
    one(&mut store, put("a", "2", None)).unwrap();
    one(&mut store, put("c", "1", None)).unwrap();
    let keys = |batch: Batch| batch.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(keys(store.outbox(newest, 10, 1024).unwrap()), ["z", "y", "b"]);
    assert_eq!(keys(store.outbox(newest, 2, 1024).unwrap()), ["z", "y"]);
    assert_eq!(keys(store.outbox(u64::MAX, 10, 1024).unwrap()), ["z", "y", "b", "a", "c"]);
}

#[test]
fn all_entries_together_are_bounded_and_what_is_deleted_or_shrinks_makes_room() {
    let (folder, mut store) = store();
    // With a key of two bytes and a content type of one.
    let sized = |key: &str, bytes: usize| {
        let payload = format!("\"{}\"", "x".repeat(bytes - 5));
        Write::Put(Put { key: key.into(), content_type: "t".into(), payload: payload.into(), if_match: None })
    };
    for key in ["k0", "k1", "k2"] {
        assert_eq!(one(&mut store, sized(key, 1000)), Ok(1));
    }
    assert_eq!(store.index.bytes, 3000);
    // As if there were many more.
    store.index.bytes = MAX_TOTAL_BYTES - 100;
    assert_eq!(one(&mut store, sized("k3", 101)), Err(Refusal::InsufficientStorage));
    assert_eq!(one(&mut store, sized("k0", 1101)), Err(Refusal::InsufficientStorage));
    assert_eq!(one(&mut store, sized("k3", 100)), Ok(1));
    assert_eq!(one(&mut store, sized("k0", 1001)), Err(Refusal::InsufficientStorage));
    assert_eq!(one(&mut store, sized("k0", 1000)), Ok(2));
    assert_eq!(one(&mut store, sized("k0", 900)), Ok(3));
    assert_eq!(one(&mut store, sized("k4", 100)), Ok(1));
    // Within one commit, too.
    let writes = vec![delete("k1", None), sized("k5", 600), sized("k6", 600), sized("k7", 400)];
    let outcomes = store.commit(writes, "t").unwrap();
    assert!(matches!(outcomes[2], Err(Refusal::InsufficientStorage)), "{outcomes:?}");
    assert!(outcomes[1].is_ok() && outcomes[3].is_ok(), "{outcomes:?}");
    assert_eq!(store.index.bytes, MAX_TOTAL_BYTES);
    // Smaller than before is smaller, however much there is.
    store.index.bytes = 2 * MAX_TOTAL_BYTES;
    assert_eq!(one(&mut store, sized("k0", 899)), Ok(4));
    drop(store);
    let store = Store::open(&folder.path().join("reports.redb"), jiff::Timestamp::UNIX_EPOCH).unwrap().0;
    assert_eq!(store.index.bytes, 899 + 1000 + 100 + 100 + 600 + 400);
}

#[test]
fn what_watchers_do_not_know_comes_in_parts_and_is_whole_at_the_end_whatever_is_written_meanwhile() {
    let (_folder, mut store) = store();
    for n in 0..10 {
        one(&mut store, put(&format!("k{n}"), "1", None)).unwrap();
    }
    let mut known = std::collections::BTreeMap::new();
    let (mut cursor, mut parts) = (Cursor::default(), 0);
    loop {
        let told = store.changes(cursor, 3, usize::MAX).unwrap();
        assert_eq!(told.reset, parts == 0);
        for change in told.changes {
            match change {
                Change::Put(entry) => known.insert(entry.key, entry.version),
                Change::Deleted(deleted) => known.remove(&deleted.key),
            };
        }
        cursor = told.cursor;
        parts += 1;
        if told.complete {
            break;
        }
        if parts == 2 {
            one(&mut store, put("k0", "2", None)).unwrap();
            one(&mut store, delete("k1", None)).unwrap();
            one(&mut store, delete("k9", None)).unwrap();
            one(&mut store, put("k9", "2", None)).unwrap();
        }
    }
    let there: Vec<_> = known.iter().map(|(key, version)| (key.as_str(), *version)).collect();
    let expected =
        [("k0", 2), ("k2", 1), ("k3", 1), ("k4", 1), ("k5", 1), ("k6", 1), ("k7", 1), ("k8", 1), ("k9", 2)];
    assert_eq!((there, parts), (expected.to_vec(), 4));
    let rest = store.changes(cursor, 3, usize::MAX).unwrap();
    assert!(rest.complete && rest.changes.is_empty() && !rest.reset);
    // By size, too.
    assert_eq!(store.changes(Cursor::default(), 99, 1).unwrap().changes.len(), 1);
}

#[test]
fn whoever_missed_deletions_that_are_not_remembered_is_told_everything_anew() {
    let (folder, mut store) = store();
    one(&mut store, put("a", "1", None)).unwrap();
    one(&mut store, put("b", "1", None)).unwrap();
    let cursor = store.changes(Cursor::default(), 9, 999).unwrap().cursor;
    one(&mut store, delete("b", None)).unwrap();
    drop(store);
    let mut store = Store::open(&folder.path().join("reports.redb"), jiff::Timestamp::UNIX_EPOCH).unwrap().0;
    let told = store.changes(cursor, 9, 999).unwrap();
    assert!(told.reset && told.complete && told.changes.len() == 1, "{told:?}");
    assert!(!store.changes(told.cursor, 9, 999).unwrap().reset);
}

#[test]
fn no_entry_is_created_while_too_many_changes_are_unsent() {
    let (_folder, mut store) = store();
    one(&mut store, put("old", "1", None)).unwrap();
    let unsent = store.durably(|transaction, _| {
        let mut outbox = transaction.open_table(OUTBOX).map_err(database_error)?;
        for n in 1..MAX_UNSENT {
            outbox.insert(format!("k{n}").as_str(), 1).map_err(database_error)?;
        }
        Ok(())
    });
    unsent.unwrap();
    assert_eq!(one(&mut store, put("new", "1", None)), Err(Refusal::TooManyEntries));
    assert_eq!(one(&mut store, put("old", "2", None)), Ok(2));
    let sent = store.outbox(u64::MAX, 1, 1024).unwrap();
    store.confirm(&sent).unwrap();
    assert_eq!(one(&mut store, put("new", "1", None)), Ok(1));
}
