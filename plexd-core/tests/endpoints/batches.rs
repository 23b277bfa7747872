//! What is observed reaches the control plane through the sender, whatever the control plane answers meanwhile.

use std::sync::Arc;
use std::time::Duration;

use plexd_core::control::batch::{BatchSender, Counts, Limits, Queue, Uplink};
use plexd_core::control::client::{Credentials, Observed};
use plexd_core::control::session::Session;
use plexd_core::control::wire::{AuditEntry, LogEntry, MetricPoint};
use plexd_core::identity::{CurrentIdentity, Identity};
use plexd_core::status::{Board, Enrolment, Subsystem};
use plexd_core::supervisor::Shutdown;
use plexd_core::types::{PrivateKey, SigningPublicKey};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::devcp::{Devcp, example, example_lines, until};

/// Of someone enrolled, without what only a mesh needs.
pub(crate) fn identity(who: &Credentials) -> Identity {
    Identity {
        node_id: who.node_id.clone(),
        mesh_ip: [10, 100, 0, 1].into(),
        secret_key: who.secret.clone(),
        signing_key: SigningPublicKey::from_base64("lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=").unwrap(),
        private_key: PrivateKey::generate().unwrap(),
    }
}

pub(crate) fn session(devcp: &Devcp, identity: CurrentIdentity) -> Session {
    let board = Board::default();
    board.set_enrolment(Enrolment::Enrolled);
    Session { client: devcp.client.clone(), identity, board, pulls: Arc::default(), name: "test" }
}

/// A sender that runs for an enrolled node.
struct Running<T> {
    queue: Queue<T>,
    board: Board,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
    _identity: watch::Sender<Option<Arc<Identity>>>,
}

impl<T: Observed> Running<T> {
    fn start(devcp: &Devcp, who: &Credentials, limits: Limits) -> Self {
        let (sender, current) = watch::channel(Some(Arc::new(identity(who))));
        let session = session(devcp, current);
        let board = session.board.clone();
        let queue = Queue::new(limits);
        let shutdown = Shutdown::new();
        let task = tokio::spawn(BatchSender::new(queue.clone(), Uplink::new(session)).run(shutdown.clone()));
        Self { queue, board, shutdown, task, _identity: sender }
    }

    async fn stop(self) -> Counts {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.queue.counts()
    }
}

/// Batches of 3, at once.
fn limits() -> Limits {
    Limits { batch_records: 3, flush_after: Duration::ZERO, ..Limits::default() }
}

fn json(values: &[impl Serialize]) -> Vec<Value> {
    values.iter().map(|value| serde_json::to_value(value).unwrap()).collect()
}

/// The records of all batches, in order.
async fn received(devcp: &Devcp, who: &Credentials, kind: &str) -> Vec<Value> {
    let batches = devcp.received(who, kind).await;
    batches.iter().flat_map(|batch| batch.as_array().unwrap().clone()).collect()
}

/// Sends records while the endpoint fails with each status in turn.
async fn arrives<T: Observed>(devcp: &Devcp, kind: &str, records: Vec<T>) {
    let who = devcp.enrol(kind).await;
    let running = Running::start(devcp, &who, limits());
    for (place, record) in records.iter().enumerate() {
        devcp.break_with(kind, [429, 500, 503][place % 3]).await;
        running.queue.push(record);
    }
    until("an attempt", async || running.board.control_status().uploads.contains_key(T::NAME)).await;
    assert_eq!(received(devcp, &who, kind).await, Vec::<Value>::new());
    devcp.heal().await;
    until("all sent", async || running.queue.counts().waiting == 0).await;
    let counts = running.stop().await;
    assert_eq!((counts.sent, counts.lost()), (records.len() as u64, 0));
    assert_eq!(received(devcp, &who, kind).await, json(&records));
}

#[tokio::test]
async fn metrics_logs_and_audit_records_arrive_as_they_were_after_the_control_plane_failed() {
    let devcp = Devcp::start().await;
    arrives::<MetricPoint>(&devcp, "metrics", example("metrics_request.json")).await;
    arrives::<LogEntry>(&devcp, "logs", example_lines("logs_request.ndjson")).await;
    let record: AuditEntry = example_lines("audit_request.ndjson").remove(0);
    let pretty = AuditEntry {
        subject: serde_json::from_str("{\n  \"uid\": 1000,\r\n  \"gid\": 1e3\n}").unwrap(),
        raw: "two\nlines".to_owned(),
        ..record.clone()
    };
    arrives(&devcp, "audit", vec![record.clone(), pretty, record.clone(), record]).await;
}

#[tokio::test]
async fn what_is_too_large_together_arrives_apart_and_what_is_too_large_by_itself_is_lost_and_told() {
    let devcp = Devcp::start().await;
    let who = devcp.enrol("one").await;
    let limits = Limits {
        bytes: 64 << 20,
        batch_bytes: 64 << 20,
        flush_after: Duration::from_millis(200),
        ..Limits::default()
    };
    let running = Running::start(&devcp, &who, limits);
    let example: LogEntry = example_lines("logs_request.ndjson").remove(0);
    let entry = |size: usize, letter: &str| LogEntry { message: letter.repeat(size), ..example.clone() };
    let small: Vec<LogEntry> = ["a", "b", "c", "d", "e", "f"].map(|letter| entry(1 << 20, letter)).into();
    small[..4].iter().for_each(|entry| running.queue.push(entry));
    running.queue.push(&entry(5 << 20, "x"));
    small[4..].iter().for_each(|entry| running.queue.push(entry));
    until("all sent or lost", async || running.queue.counts().sent + running.queue.counts().lost() == 7)
        .await;
    let board = running.board.clone();
    let counts = running.stop().await;
    assert_eq!(counts, Counts { waiting: 0, sent: 6, overflowed: 0, refused: 1 });
    assert!(received(&devcp, &who, "logs").await == json(&small));
    assert_eq!(board.control_status().uploads["log entries"], counts);
}

#[tokio::test]
async fn what_is_refused_for_good_is_told_in_status_until_something_is_accepted() {
    let devcp = Devcp::start().await;
    let who = devcp.enrol("one").await;
    let running = Running::start(&devcp, &who, limits());
    let entries: Vec<LogEntry> = example_lines("logs_request.ndjson");
    devcp.break_with("logs", 403).await;
    running.queue.push(&entries[0]);
    until("the loss told", async || running.board.has(Subsystem::Observability)).await;
    let problem = &running.board.problems()[0].message;
    assert_eq!(
        problem,
        "1 log entries lost since the start: 0 because too many waited, 1 because they were refused (POST \
         /v1/nodes/{node_id}/logs: the control plane forbids it (it says: injected fault))"
    );
    devcp.heal().await;
    running.queue.push(&entries[1]);
    until("the problem over", async || !running.board.is_degraded()).await;
    assert_eq!(running.stop().await, Counts { waiting: 0, sent: 1, overflowed: 0, refused: 1 });
}

#[tokio::test]
async fn a_refused_identity_is_told_and_loses_no_record() {
    let devcp = Devcp::start().await;
    let who = devcp.enrol("one").await;
    for status in [401, 404] {
        let running = Running::start(&devcp, &who, limits());
        devcp.break_with("logs", status).await;
        running.queue.push(&example_lines::<LogEntry>("logs_request.ndjson")[0]);
        until("the refusal told", async || running.board.enrolment() == Enrolment::Unauthorized).await;
        assert_eq!(running.queue.counts().lost(), 0);
        assert_eq!(running.stop().await, Counts { waiting: 1, ..Counts::default() });
    }
}
