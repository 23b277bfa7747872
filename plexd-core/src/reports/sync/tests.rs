//! Reports on their way to the control plane: bounded batches, conflicts, outages, restarts.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::control::client::Client;
use crate::control::dev::{DevControlPlane, ScriptedControlPlane, until};
use crate::identity::Identity;
use crate::reports::Put;
use crate::status::{Board, Enrolment};
use crate::types::SystemClock;

/// The writer and the sync of one process.
struct Rig {
    folder: tempfile::TempDir,
    reports: Reports,
    board: Board,
    shutdown: Shutdown,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
    /// Keeps the identity known.
    _identity: watch::Sender<Option<Arc<Identity>>>,
}

const AT_ONCE: Duration = Duration::ZERO;

fn start(folder: tempfile::TempDir, client: Client, identity: Identity, debounce: Duration) -> Rig {
    let board = Board::default();
    board.set_enrolment(Enrolment::Enrolled);
    let path = folder.path().join("reports.redb");
    let (reports, writer) = Reports::open(&path, Arc::new(SystemClock), board.clone()).unwrap();
    let (sender, identity) = watch::channel(Some(Arc::new(identity)));
    let session = Session { client, identity, board: board.clone(), pulls: Arc::default(), name: "reports" };
    let sync = ReportSync::new(session, reports.clone(), debounce);
    let shutdown = Shutdown::new();
    let tasks = vec![tokio::spawn(writer.run(shutdown.clone())), tokio::spawn(sync.run(shutdown.clone()))];
    Rig { folder, reports, board, shutdown, tasks, _identity: sender }
}

fn new(client: Client, identity: Identity, debounce: Duration) -> Rig {
    start(tempfile::tempdir().unwrap(), client, identity, debounce)
}

impl Rig {
    async fn put(&self, key: &str, payload: &str) {
        let payload = payload.to_owned().into();
        let put = Put { key: key.into(), content_type: "application/json".into(), payload, if_match: None };
        self.reports.put(put).await.unwrap();
    }

    async fn settled(&self) -> Counts {
        let mut counts = self.reports.counts();
        let settled = counts.wait_for(|counts| counts.pending == 0);
        *tokio::time::timeout(Duration::from_mins(1), settled).await.expect("settles").unwrap()
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }

    async fn stopped(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
        self.folder
    }
}

/// Keys of the entries of each request.
fn keys(requests: &[Value]) -> Vec<Vec<&str>> {
    let key =
        |entry: &'_ Value| -> &str { Box::leak(entry["key"].as_str().unwrap().to_owned().into_boxed_str()) };
    requests.iter().map(|request| request["entries"].as_array().unwrap().iter().map(key).collect()).collect()
}

#[tokio::test]
async fn many_changes_go_in_bounded_batches_and_each_key_once() {
    let plane = DevControlPlane::start().await;
    let identity = plane.enrol("web-01").await;
    let node = identity.node_id.to_string();
    // Only what there is before the first request counts.
    plane.fault(json!({"endpoint": "report", "status": 503})).await;
    let rig = new(plane.client(), identity, AT_ONCE);
    let names: Vec<String> = (0..2_345).map(|n| format!("key-{n}")).collect();
    futures_util::future::join_all(names.iter().map(|name| rig.put(name, "1"))).await;
    rig.reports.delete("key-7".into(), None).await.unwrap();
    rig.put("key-8", r#"{"b":1.50, "a":2}"#).await;
    plane.no_faults().await;
    let counts = rig.settled().await;
    assert_eq!((counts.entries, counts.conflicted), (2_344, 0));
    let requests = plane.received(&node, "reports").await;
    let sizes: Vec<usize> = requests
        .iter()
        .map(|request| {
            request["entries"].as_array().unwrap().len() + request["deleted"].as_array().unwrap().len()
        })
        .collect();
    assert!(sizes.iter().all(|size| (1..=1_000).contains(size)), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 2_345, "{sizes:?}");
    let current = plane.get(&format!("nodes/{node}/received")).await["reports_current"].clone();
    assert_eq!(current.as_object().unwrap().len(), 2_344);
    assert_eq!(current["key-8"]["version"], 2);
    assert_eq!(current["key-8"]["payload"]["b"].to_string(), "1.5");
    rig.stopped().await;
}

#[tokio::test]
async fn of_a_refused_batch_only_what_is_refused_by_itself_stays_and_is_told_until_it_is_settled() {
    let plane = DevControlPlane::start().await;
    let identity = plane.enrol("web-01").await;
    let node = identity.node_id.to_string();
    let newer = ReportEntry {
        key: "b".into(),
        content_type: "text/plain".into(),
        payload: serde_json::value::to_raw_value("newer").unwrap(),
        version: 9,
        updated_at: Timestamp::UNIX_EPOCH,
    };
    let request = ReportSyncRequest { entries: vec![newer], deleted: Vec::new() };
    plane.client().report(&identity.credentials(), &request).await.unwrap();

    // All three are there before the first request that counts.
    plane.fault(json!({"endpoint": "report", "status": 503})).await;
    let rig = new(plane.client(), identity.clone(), AT_ONCE);
    for key in ["a", "b", "c"] {
        rig.put(key, "1").await;
    }
    plane.no_faults().await;
    assert_eq!(rig.settled().await, Counts { entries: 3, pending: 0, conflicted: 1 });
    let requests = plane.received(&node, "reports").await;
    let keys = keys(&requests);
    assert!(keys.ends_with(&[vec!["a"], vec!["b"], vec!["c"]]), "{keys:?}");
    until("the conflict is told", async || rig.problems().contains("refused 1 report entries").then_some(()))
        .await;

    // Told again by the next process, before anything is sent.
    let folder = rig.stopped().await;
    let rig = start(folder, plane.client(), identity, AT_ONCE);
    until("the conflict is told", async || rig.problems().contains("refused 1 report entries").then_some(()))
        .await;
    rig.reports.delete("b".into(), None).await.unwrap();
    assert_eq!(rig.settled().await, Counts { entries: 2, pending: 0, conflicted: 0 });
    until("the problem is over", async || rig.problems().is_empty().then_some(())).await;
    rig.stopped().await;
}

#[tokio::test]
async fn what_is_written_while_the_control_plane_is_away_is_delivered_when_it_is_back() {
    let plane = DevControlPlane::start().await;
    let identity = plane.enrol("web-01").await;
    let node = identity.node_id.to_string();
    plane.fault(json!({"refuse_connections": true})).await;
    let rig = new(plane.client(), identity, AT_ONCE);
    rig.put("health", "1").await;
    until("the outage is told", async || rig.problems().contains("cannot reach").then_some(())).await;
    rig.put("health", "2").await;
    plane.no_faults().await;
    rig.settled().await;
    let sent = plane.received(&node, "reports").await;
    assert_eq!((sent.len(), &sent[0]["entries"][0]["version"]), (1, &json!(2)), "the newest value only");
    until("the problem is over", async || rig.problems().is_empty().then_some(())).await;
    rig.stopped().await;
}

#[tokio::test]
async fn what_was_acknowledged_just_before_a_stop_is_delivered_by_the_next_process_at_once() {
    let plane = DevControlPlane::start().await;
    let identity = plane.enrol("web-01").await;
    let node = identity.node_id.to_string();
    let hour = Duration::from_hours(1);
    let rig = new(plane.client(), identity.clone(), hour);
    // The first pass of a process gathers nothing: let it find nothing to send.
    plane.fault(json!({"endpoint": "report", "status": 503})).await;
    rig.put("health", "1").await;
    let folder = rig.stopped().await;
    plane.no_faults().await;
    assert_eq!(plane.received(&node, "reports").await, Vec::<Value>::new());
    let rig = start(folder, plane.client(), identity, hour);
    rig.settled().await;
    assert_eq!(keys(&plane.received(&node, "reports").await), [["health"]]);
    rig.stopped().await;
}

#[tokio::test]
async fn a_batch_too_large_is_halved_down_to_the_change_that_is_too_large_by_itself() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let plane = ScriptedControlPlane::start(move |request| {
        let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
        let entries = body["entries"].as_array().unwrap().clone();
        let too_large = entries.len() > 2 || entries.iter().any(|entry| entry["key"] == "huge");
        seen.lock().unwrap().push(entries.len());
        if too_large { ("413 Payload Too Large", String::new()) } else { ("200 OK", "{}".to_owned()) }
    })
    .await;
    let rig = new(plane.client(), crate::reconcile::tests::identity(), Duration::from_millis(300));
    for key in ["a", "b", "c", "d", "huge"] {
        rig.put(key, "1").await;
    }
    assert_eq!(rig.settled().await, Counts { entries: 5, pending: 0, conflicted: 1 });
    let sizes = requests.lock().unwrap().clone();
    assert!(sizes.len() < 20 && sizes.contains(&1), "{sizes:?}");
    rig.stopped().await;
}

#[tokio::test]
async fn a_control_plane_that_fails_within_a_refused_batch_is_given_time() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let plane = ScriptedControlPlane::start(move |request| {
        let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
        let entries = body["entries"].as_array().unwrap().len();
        seen.lock().unwrap().push((Instant::now(), entries));
        if entries > 1 { ("409 Conflict", String::new()) } else { ("503 Service Unavailable", String::new()) }
    })
    .await;
    let rig = new(plane.client(), crate::reconcile::tests::identity(), Duration::from_millis(300));
    rig.put("a", "1").await;
    rig.put("b", "1").await;
    let is_round = |seen: &Vec<(Instant, usize)>| {
        let batches: Vec<usize> = (0..seen.len()).filter(|index| seen[*index].1 > 1).collect();
        let second = *batches.iter().find(|index| **index > 0 && seen[**index - 1].1 == 1)?;
        Some(seen[second].0.duration_since(seen[second - 1].0))
    };
    let pause = until("a second round", async || is_round(&requests.lock().unwrap())).await;
    assert!(pause >= Duration::from_millis(700), "{pause:?}");
    rig.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_writes_is_gathered_again_and_again_and_the_oldest_are_never_passed_over() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let plane = ScriptedControlPlane::start(move |request| {
        let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
        let entries = body["entries"].as_array().unwrap().clone();
        let keys: Vec<String> =
            entries.iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect();
        seen.lock().unwrap().push(keys);
        ("200 OK", "{}".to_owned())
    })
    .await;
    let rig = new(plane.client(), crate::reconcile::tests::identity(), Duration::from_secs(5));
    // All keys of the hot ones come before those that are written once.
    let quiet: Vec<String> = (0..500).map(|n| format!("z{n}")).collect();
    futures_util::future::join_all(quiet.iter().map(|key| rig.put(key, "1"))).await;
    // A thread of the writer keeps time from moving by itself.
    for second in 0..60 {
        let hot: Vec<String> = (0..100).map(|n| format!("a{}", (second * 100 + n) % 1_000)).collect();
        futures_util::future::join_all(hot.iter().map(|key| rig.put(key, "1"))).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        // What is under way gets there: the network has a time of its own.
        for _ in 0..50 {
            rig.reports.outbox(0, 1, 1).await.unwrap();
        }
    }
    let sent = requests.lock().unwrap().clone();
    assert!((5..=13).contains(&sent.len()), "{} requests", sent.len());
    let sent: std::collections::BTreeSet<_> = sent.into_iter().flatten().collect();
    assert!(quiet.iter().all(|key| sent.contains(key)), "{} of all", sent.len());
    rig.stopped().await;
}
