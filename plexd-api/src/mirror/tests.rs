//! The mirror as a whole: what readers see while the stream and the answers to writes change it.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use plexd_proto::node::v1::change::Change as Wire;
use plexd_proto::node::v1::{
    Change as WireChange, DataEntry, Node, ReportDeleted, ReportEntry, TcpAccess, WatchResponse,
};

use super::*;

fn data(key: &str, version: i64, position: u64) -> Wire {
    let payload = b"1".as_slice().into();
    Wire::Data(DataEntry { key: key.into(), version, position, payload, ..DataEntry::default() })
}

fn report(key: &str, version: i64, revision: u64) -> ReportEntry {
    let payload = b"1".as_slice().into();
    ReportEntry { key: key.into(), version, revision, payload, ..ReportEntry::default() }
}

fn written(mirror: &Mirror, entry: &ReportEntry) {
    mirror.acknowledge(vec![Acknowledged::written(Arc::new(Entry::of_report(entry)))]);
}

fn piece(reset: bool, changes: Vec<Wire>, complete: bool) -> WatchResponse {
    let changes = changes.into_iter().map(|change| WireChange { change: Some(change) }).collect();
    WatchResponse { reset, changes, complete }
}

async fn apply(mirror: &Mirror, stage: &mut Stage, piece: WatchResponse) {
    if stage.add(piece, &mut Pace::new()).await {
        mirror.publish(std::mem::take(stage)).await;
    }
}

fn node() -> Wire {
    Wire::Node(Node { node_id: "n_1".into() })
}

fn list(mirror: &Mirror, kind: Kind) -> String {
    String::from_utf8(mirror.snapshot().unwrap().list(kind).body.to_vec()).unwrap()
}

#[tokio::test]
async fn pieces_take_effect_together_when_complete() {
    let (mirror, mut stage) = (Mirror::new(), Stage::snapshot());
    apply(&mirror, &mut stage, piece(true, vec![node(), data("a", 1, 0)], false)).await;
    assert!(mirror.snapshot().is_none());
    apply(&mirror, &mut stage, piece(false, vec![data("b", 1, 1)], true)).await;
    assert_eq!(
        list(&mirror, Kind::Data),
        r#"[{"key":"a","version":1,"content_type":""},{"key":"b","version":1,"content_type":""}]"#
    );
    apply(&mirror, &mut stage, piece(false, vec![data("a", 2, 0)], false)).await;
    assert_eq!(mirror.snapshot().unwrap().entry(Kind::Data, "a").unwrap().version, 1);
    apply(&mirror, &mut stage, piece(false, vec![Wire::DataDeleted("b".into())], true)).await;
    assert_eq!(list(&mirror, Kind::Data), r#"[{"key":"a","version":2,"content_type":""}]"#);
}

#[tokio::test]
async fn a_snapshot_removes_what_it_does_not_name_and_voids_pieces_set_aside() {
    let (mirror, mut stage) = (Mirror::new(), Stage::snapshot());
    let access = Wire::TcpAccess(TcpAccess { token_sha256: vec![7; 32].into() });
    let first = vec![node(), access, data("a", 1, 0), data("b", 1, 1), Wire::Report(report("r", 1, 1))];
    apply(&mirror, &mut stage, piece(true, first, true)).await;
    assert_eq!(mirror.snapshot().unwrap().token_sha256(), Some(&[7; 32]));
    let before = mirror.snapshot().unwrap();
    apply(&mirror, &mut stage, piece(false, vec![data("void", 1, 2)], false)).await;
    apply(&mirror, &mut stage, piece(true, vec![data("b", 1, 1)], true)).await;
    let after = mirror.snapshot().unwrap();
    assert_eq!(list(&mirror, Kind::Data), r#"[{"key":"b","version":1,"content_type":""}]"#);
    assert_eq!(list(&mirror, Kind::Report), "[]");
    assert!(!after.registered() && after.token_sha256().is_none());
    let same = (before.entry(Kind::Data, "b").unwrap(), after.entry(Kind::Data, "b").unwrap());
    assert!(Arc::ptr_eq(same.0, same.1), "what did not change is not held twice");
}

#[tokio::test]
async fn an_answer_shows_at_once_and_the_lagging_stream_does_not_undo_it() {
    let (mirror, mut stage) = (Mirror::new(), Stage::snapshot());
    mirror.stream_opened();
    apply(&mirror, &mut stage, piece(true, vec![node(), Wire::Report(report("r", 1, 1))], true)).await;
    written(&mirror, &report("r", 3, 3));
    let version = || mirror.snapshot().unwrap().entry(Kind::Report, "r").map(|entry| entry.version);
    assert_eq!(version(), Some(3));
    apply(&mirror, &mut stage, piece(false, vec![Wire::Report(report("r", 2, 2))], true)).await;
    assert_eq!(version(), Some(3), "never back");
    mirror.acknowledge(vec![Acknowledged::deleted("r", 4)]);
    assert_eq!(version(), None);
    apply(&mirror, &mut stage, piece(false, vec![Wire::Report(report("r", 3, 3))], true)).await;
    assert_eq!(version(), None, "the deletion is remembered until the stream has told of it");
    let gone = Wire::ReportDeleted(ReportDeleted { key: "r".into(), revision: 4 });
    apply(&mirror, &mut stage, piece(false, vec![gone, Wire::Report(report("r", 4, 5))], true)).await;
    assert_eq!(version(), Some(4));
}

#[tokio::test]
async fn a_write_acknowledged_before_the_first_snapshot_shows_with_it() {
    let (mirror, mut stage) = (Mirror::new(), Stage::snapshot());
    mirror.stream_opened();
    written(&mirror, &report("r", 1, 5));
    assert!(mirror.snapshot().is_none());
    apply(&mirror, &mut stage, piece(true, vec![node()], true)).await;
    assert!(mirror.snapshot().unwrap().entry(Kind::Report, "r").is_some());
}

#[tokio::test]
async fn a_large_update_gives_way_and_shows_whole_and_keeps_writes_made_meanwhile() {
    let (mirror, mut stage) = (Mirror::new(), Stage::snapshot());
    mirror.stream_opened();
    apply(&mirror, &mut stage, piece(true, vec![node()], true)).await;
    let changes = (0..10_000).map(|n| data(&format!("k{n:05}"), 1, n)).collect();
    assert!(stage.add(piece(false, changes, true), &mut Pace::new()).await);

    let mut publish = pin!(mirror.publish(stage));
    let mut turns = 0;
    while publish.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        // A reader's turn: the old state, whole.
        assert_eq!(mirror.snapshot().unwrap().list(Kind::Data).body, "[]");
        turns += 1;
        written(&mirror, &report("r", turns, u64::try_from(turns).unwrap()));
    }
    assert!(turns > 100, "{turns} turns for readers");
    let now = mirror.snapshot().unwrap();
    assert_eq!(now.entry(Kind::Data, "k09999").unwrap().version, 1);
    assert_eq!(now.entry(Kind::Report, "r").unwrap().version, turns);
}

#[tokio::test(start_paused = true)]
async fn age_counts_from_the_loss_of_the_stream_until_the_next_whole_state() {
    let (mirror, mut stage) = (Mirror::new(), Stage::snapshot());
    assert_eq!(mirror.age(), None);
    mirror.stream_lost();
    tokio::time::advance(Duration::from_secs(3)).await;
    mirror.stream_lost();
    mirror.stream_opened();
    assert_eq!(mirror.age(), Some(Duration::from_secs(3)));
    apply(&mirror, &mut stage, piece(true, vec![node()], true)).await;
    assert_eq!(mirror.age(), None);
}

#[tokio::test]
async fn an_empty_state_has_empty_lists_and_empty_metadata() {
    let (mirror, mut stage) = (Mirror::new(), Stage::snapshot());
    apply(&mirror, &mut stage, piece(true, vec![node()], true)).await;
    let snapshot = mirror.snapshot().unwrap();
    assert_eq!(snapshot.metadata().body, "{}");
    assert_eq!(
        snapshot.summary().body,
        r#"{"metadata":{},"data_keys":[],"secret_keys":[],"report_keys":[]}"#
    );
}
