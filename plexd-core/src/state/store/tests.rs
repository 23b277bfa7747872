//! What is on disk after a reopening, and what damage does.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::control::envelope::NonceSet;
use crate::state::FullState;
use crate::state::samples::{any_full_state, data, peer};

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    (folder, path)
}

fn reopened(path: &Path) -> Stored {
    StateStore::open(path, now()).unwrap().1
}

/// What is not stored is left out: peers that were refused come again with the next pull.
fn assert_same(read: &Desired, written: &Desired) {
    let sections = |desired: &Desired| {
        desired.sections.iter().map(|(name, text)| (*name, text.get().to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(sections(read), sections(written));
    let expected =
        Desired { rejected_peers: Arc::default(), sections: Arc::clone(&read.sections), ..written.clone() };
    assert!(read.is_same_as(&expected), "{read:?}\n{written:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_states_is_read_back_as_the_last_of_them(
        states in proptest::collection::vec(any_full_state(), 1..4)
    ) {
        let (_folder, path) = folder();
        let (mut store, Stored { mut desired, .. }) = StateStore::open(&path, now()).unwrap();
        for state in states {
            let next = desired.replaced_by(state).0;
            store.commit(&desired, &next, None).unwrap();
            desired = next;
        }
        drop(store);
        let stored = reopened(&path);
        prop_assert_eq!(stored.problem, None);
        assert_same(&stored.desired, &desired);
    }
}

#[test]
fn change_nonce_and_event_id_are_there_together_after_a_reopening() {
    let (_folder, path) = folder();
    let (mut store, Stored { desired, .. }) = StateStore::open(&path, now()).unwrap();
    let mut next = desired.clone();
    next.peers.insert("n_b".parse().unwrap(), Arc::new(peer("n_b", 2)));
    let mark = EventMark { event_id: Some("evt-7".into()), nonce: Some(("n-7".into(), now())) };
    store.commit(&desired, &next, Some(&mark)).unwrap();
    drop(store);
    let stored = reopened(&path);
    assert_same(&stored.desired, &next);
    assert_eq!(stored.last_event_id.as_deref(), Some("evt-7"));
    assert!(stored.nonces.contains("n-7"));
}

#[test]
fn nonces_are_kept_on_disk_to_the_end_of_their_last_millisecond() {
    let (_folder, path) = folder();
    let (mut store, Stored { desired, .. }) = StateStore::open(&path, now()).unwrap();
    let expires: Timestamp = "2026-01-15T10:30:00.0009Z".parse().unwrap();
    let mark = EventMark { event_id: None, nonce: Some(("n".into(), expires)) };
    store.commit(&desired, &desired, Some(&mark)).unwrap();
    store.forget_nonces(expires).unwrap();
    drop(store);
    let (mut store, mut stored) = StateStore::open(&path, now()).unwrap();
    assert!(!stored.nonces.forget_expired(expires) && stored.nonces.contains("n"));
    store.forget_nonces("2026-01-15T10:30:01Z".parse().unwrap()).unwrap();
    drop(store);
    assert!(!reopened(&path).nonces.contains("n"));
}

#[test]
fn an_empty_event_id_is_none() {
    let (_folder, path) = folder();
    let (mut store, Stored { desired, .. }) = StateStore::open(&path, now()).unwrap();
    for id in ["evt-1", ""] {
        let mark = EventMark { event_id: Some(id.to_owned()), nonce: None };
        store.commit(&desired, &desired, Some(&mark)).unwrap();
    }
    drop(store);
    assert_eq!(reopened(&path).last_event_id, None);
}

#[test]
fn keys_that_look_like_paths_stay_in_the_database() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("a/b/c");
    std::fs::create_dir_all(&inner).unwrap();
    let path = inner.join("state.redb");
    let (mut store, Stored { desired, .. }) = StateStore::open(&path, now()).unwrap();
    let keys = ["../../../pwned", "/tmp/pwned", "pwned/../../x", "."];
    let state = FullState {
        data: keys.map(|key| data(key, 1)).into(),
        metadata: keys.map(|key| (key.to_owned(), "x".to_owned())).into(),
        ..FullState::default()
    };
    let next = desired.replaced_by(state).0;
    store.commit(&desired, &next, None).unwrap();
    drop(store);
    assert_same(&reopened(&path).desired, &next);
    let mut files = Vec::new();
    let mut folders = vec![outer.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    assert_eq!(files, [path]);
}

#[test]
fn a_file_that_is_no_database_is_set_aside_and_told() {
    let (_folder, path) = folder();
    std::fs::write(&path, "x".repeat(10_000)).unwrap();
    let stored = reopened(&path);
    assert!(stored.desired.peers.is_empty());
    let problem = stored.problem.unwrap();
    assert!(problem.contains("damaged-") && problem.contains("pulled anew"), "{problem}");
    assert_eq!(reopened(&path).problem, None);
}

/// A database with a few hundred entries.
fn filled(path: &Path) -> Desired {
    let (mut store, Stored { desired, .. }) = StateStore::open(path, now()).unwrap();
    let state = FullState {
        data: (0..300).map(|n| data(&format!("key-{n}"), n)).collect(),
        peers: (1..200).map(|seed| peer(&format!("n_{seed}"), seed)).collect(),
        ..FullState::default()
    };
    let next = desired.replaced_by(state).0;
    store.commit(&desired, &next, None).unwrap();
    next
}

#[test]
fn a_database_cut_short_is_set_aside_and_never_half_read() {
    let (_folder, path) = folder();
    let whole = filled(&path);
    let bytes = std::fs::read(&path).unwrap();
    for length in [bytes.len() - 4096, bytes.len() / 2, 4096, 100, 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let stored = reopened(&path);
        match stored.problem {
            Some(problem) => assert!(stored.desired.data.is_empty(), "{length}: {problem}"),
            // What was cut off held nothing.
            None => assert_same(&stored.desired, &whole),
        }
    }
}

#[test]
fn an_empty_file_is_a_new_database() {
    let (_folder, path) = folder();
    std::fs::write(&path, "").unwrap();
    assert_eq!(reopened(&path).problem, None);
}

#[test]
fn an_entry_that_cannot_be_read_is_named_and_the_others_are_kept() {
    let (_folder, path) = folder();
    filled(&path);
    let database = storage::open_database(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(DATA).unwrap().insert("key-5", (5, b"{".as_slice())).unwrap();
    transaction.open_table(VALUES).unwrap().insert(SIGNING_KEYS, b"{}".as_slice()).unwrap();
    transaction.open_table(VALUES).unwrap().insert(POLICIES, b"[1]".as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let stored = reopened(&path);
    assert_eq!((stored.desired.data.len(), stored.desired.peers.len()), (299, 199));
    assert!(stored.desired.policies.policies.is_empty(), "denies");
    let problem = stored.problem.unwrap();
    for name in ["key-5", "signing keys", "policies"] {
        assert!(problem.contains(name), "{problem}");
    }
}

#[test]
fn other_files_in_the_folder_do_not_matter() {
    let (folder, path) = folder();
    let whole = filled(&path);
    for name in ["state.redb.tmp", ".state.redb.x7Kd2a", ".identity.json.000000", "state.redb.damaged-1"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    assert_same(&reopened(&path).desired, &whole);
}
