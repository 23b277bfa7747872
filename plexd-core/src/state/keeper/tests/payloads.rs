//! Payloads that are on disk only: what is told of them, and what is written where they are concerned.

use std::time::Duration;

use super::*;
use crate::state::{DataEntry, payloads};
use crate::storage::faults;

/// An entry whose payload is long enough to be left to the disk.
fn long(key: &str, version: i64) -> DataEntry {
    let payload = Bytes::from(format!("{{\",\\\"payload\\\":\":\"{}{version}\"}}", "x".repeat(1000)));
    DataEntry { payload: payload.into(), ..data(key, version) }
}

fn state(entries: &[DataEntry]) -> FullState {
    FullState { data: entries.to_vec(), ..FullState::default() }
}

fn text(entry: &DataEntry) -> Bytes {
    entry.payload.in_memory().unwrap()
}

impl Rig {
    async fn leave_to_disk(&self) {
        let requests = &self.state.requests;
        requests.send(Request::LeaveToDisk(requests.downgrade())).await.unwrap();
        // Once this is answered, that is done.
        self.state.begin_pull().await.unwrap();
    }

    fn entries(&self, keys: &[&str]) -> Vec<Arc<DataEntry>> {
        keys.iter().map(|key| Arc::clone(self.desired().data.get(key).unwrap())).collect()
    }
}

#[tokio::test]
async fn a_payload_that_is_on_disk_is_read_from_there_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let all = [long("a", 1), data("short", 1), long("\",\"payload\":", 2)];
    rig.pull(state(&all)).await;
    let keys = ["\",\"payload\":", "short", "a"];
    let expected = vec![text(&all[2]), text(&all[1]), text(&all[0])];
    for _ in 0..2 {
        let entries = rig.entries(&keys);
        assert_eq!(payloads(&entries).await.unwrap(), Some(expected.clone()));
        rig.leave_to_disk().await;
        let in_memory = |entry: &Arc<DataEntry>| entry.payload.in_memory().is_some();
        assert_eq!(entries.iter().map(in_memory).collect::<Vec<_>>(), [false, true, false]);
    }
    assert_eq!(rig.pull(state(&all)).await, PullOutcome::Applied(Vec::new()), "no drift");
    let rig = rig.restarted().await;
    assert_eq!(payloads(&rig.entries(&keys)).await.unwrap(), Some(expected));
}

#[tokio::test(start_paused = true)]
async fn what_is_told_is_left_to_the_disk_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    rig.pull(state(&[long("a", 1)])).await;
    let entry = Arc::clone(&rig.entries(&["a"])[0]);
    // The clock stands still while the keeper's thread runs.
    while entry.payload.in_memory().is_some() {
        tokio::time::advance(Duration::from_secs(1)).await;
        rig.state.begin_pull().await.unwrap();
    }
    assert_eq!(payloads(&[entry]).await.unwrap(), Some(vec![text(&long("a", 1))]));
}

#[tokio::test]
async fn of_an_entry_that_moves_or_changes_what_is_on_disk_stays_or_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    rig.pull(state(&[long("a", 1), long("b", 1), long("c", 1)])).await;
    rig.leave_to_disk().await;
    let before = rig.entries(&["a", "b"]);
    rig.pull(state(&[long("b", 1), long("a", 2), long("c", 1)])).await;
    rig.leave_to_disk().await;
    let expected = vec![text(&long("a", 2)), text(&long("b", 1)), text(&long("c", 1))];
    let keys = ["a", "b", "c"];
    assert_eq!(payloads(&rig.entries(&keys)).await.unwrap(), Some(expected.clone()));
    assert_eq!(payloads(&before).await.unwrap(), None, "there is a newer state");
    let rig = rig.restarted().await;
    assert_eq!(payloads(&rig.entries(&keys)).await.unwrap(), Some(expected));
    let desired = rig.desired();
    let mut placed: Vec<_> = desired.data.iter().map(|(key, placed)| (placed.position, key)).collect();
    placed.sort_unstable();
    assert_eq!(placed.into_iter().map(|(_, key)| key).collect::<Vec<_>>(), ["b", "a", "c"]);
}

#[tokio::test]
async fn while_the_disk_takes_no_writes_what_is_on_it_is_read_and_the_rest_stays_in_memory() {
    for error in [nix::libc::EROFS, nix::libc::ENOSPC, nix::libc::EIO] {
        let folder = tempfile::tempdir().unwrap();
        let rig = Rig::new(&folder);
        rig.pull(state(&[long("a", 1), long("b", 1)])).await;
        rig.leave_to_disk().await;
        let faults = faults::at(&rig.path);
        faults.fail_writes_from(0, error);
        rig.pull(state(&[long("a", 1), long("b", 2)])).await;
        assert!(rig.problems().contains("the state cannot be stored"), "{}", rig.problems());
        rig.leave_to_disk().await;
        let expected = vec![text(&long("a", 1)), text(&long("b", 2))];
        assert_eq!(payloads(&rig.entries(&["a", "b"])).await.unwrap(), Some(expected.clone()));
        assert_eq!(text(&rig.entries(&["b"])[0]), expected[1], "in memory");
        faults.heal();
        rig.pull(state(&[long("a", 1), long("b", 2)])).await;
        assert_eq!(rig.problems(), "");
        rig.leave_to_disk().await;
        assert_eq!(payloads(&rig.entries(&["a", "b"])).await.unwrap(), Some(expected.clone()));
        let rig = rig.restarted().await;
        assert_eq!(payloads(&rig.entries(&["a", "b"])).await.unwrap(), Some(expected));
    }
}

#[tokio::test]
async fn a_commit_that_failed_and_is_on_disk_all_the_same_is_undone_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new(&folder);
    let first = state(&[long("a", 1)]);
    rig.pull(first.clone()).await;
    rig.leave_to_disk().await;
    // Every write gets there, and the sync says that it failed.
    let faults = faults::at(&rig.path);
    faults.fail_syncs_from(0, nix::libc::EIO);
    rig.pull(state(&[long("a", 2)])).await;
    assert!(rig.problems().contains("the state cannot be stored"), "{}", rig.problems());
    faults.heal();
    rig.pull(first).await;
    rig.leave_to_disk().await;
    let expected = Some(vec![text(&long("a", 1))]);
    assert_eq!(payloads(&rig.entries(&["a"])).await.unwrap(), expected);
    let rig = rig.restarted().await;
    assert_eq!(payloads(&rig.entries(&["a"])).await.unwrap(), expected);
}
