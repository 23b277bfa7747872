//! The loops of an enrolled node against the development control plane.

use std::time::Duration;

use futures_util::FutureExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::drift::DriftReporter;
use super::heartbeat::Heart;
use super::pull::Puller;
use super::stream::StreamReader;
use super::*;
use crate::control::client::Detail;
use crate::control::dev::{DevControlPlane, ScriptedControlPlane, until};
use crate::identity::Machine;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::drift::{Correction, Kind};
use crate::reconcile::{Kernel, Reconciler, Wiring};
use crate::state::{Desired, State};
use crate::status::Stream;
use crate::types::SystemClock;

/// Longer than any test takes: what happens sooner was asked for.
const NEVER: Duration = Duration::from_hours(1);

/// An enrolled node with all its loops.
struct Rig {
    plane: DevControlPlane,
    node: String,
    board: Board,
    state: State,
    identity: watch::Sender<Option<Arc<Identity>>>,
    drift: mpsc::Sender<Vec<Correction>>,
    shutdown: Shutdown,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let plane = DevControlPlane::start().await;
        let identity = plane.enrol("web-01").await;
        let (node, key) = (identity.node_id.to_string(), identity.signing_key);
        let folder = tempfile::tempdir().unwrap();
        let board = Board::default();
        board.set_enrolment(Enrolment::Enrolled);
        let (sender, identity) = watch::channel(Some(Arc::new(identity)));
        let clock = Arc::new(SystemClock);
        let path = folder.path().join("state.redb");
        let (state, keeper) = State::open(&path, clock.clone(), board.clone(), Some(key)).unwrap();
        let (drift, corrections) = mpsc::channel(8);
        let session = Session {
            client: plane.client(),
            identity,
            board: board.clone(),
            pulls: Arc::default(),
            name: "test",
        };
        let kernel = FakeKernel::new();
        let handle = Kernel { wireguard: kernel.clone(), network: kernel.clone(), firewall: kernel };
        let wiring = Wiring {
            desired: state.desired(),
            identity: session.identity.clone(),
            kernel_changes: mpsc::channel(1).1,
            drift: drift.clone(),
            board: board.clone(),
        };
        let config = Arc::new(crate::reconcile::tests::config(""));
        let (mesh, mut reconciler) = Reconciler::new(config, handle, "asked for".into(), wiring);
        reconciler.start().await;
        let heart = Heart {
            session: session.clone(),
            mesh,
            state: state.clone(),
            machine: Machine::new(Some("web-01")).unwrap(),
            clock: clock.clone(),
            interface: ("plexd0".to_owned(), 51820),
            interval: Duration::from_millis(200),
            first_contact: Duration::ZERO,
        };
        let puller =
            Puller { session: session.clone(), state: state.clone(), drift: drift.clone(), interval: NEVER };
        let stream = StreamReader {
            session: session.clone(),
            state: state.clone(),
            drift: drift.clone(),
            first_contact: Duration::ZERO,
        };
        let reporter = DriftReporter { session, corrections, clock };
        let shutdown = Shutdown::new();
        let tasks = vec![
            tokio::spawn(keeper.run(shutdown.clone())),
            tokio::spawn(reconciler.run(shutdown.clone())),
            tokio::spawn(heart.run(shutdown.clone())),
            tokio::spawn(puller.run(shutdown.clone())),
            tokio::spawn(stream.run(shutdown.clone())),
            tokio::spawn(reporter.run(shutdown.clone())),
        ];
        Self { plane, node, board, state, identity: sender, drift, shutdown, tasks, _folder: folder }
    }

    async fn desired(&self, what: &str, check: impl Fn(&Desired) -> bool) {
        let mut desired = self.state.desired();
        let reached = desired.wait_for(|desired| check(desired));
        tokio::time::timeout(Duration::from_mins(1), reached).await.expect(what).unwrap();
    }

    async fn connected(&self) {
        until("connected", async || (self.board.control_status().stream == Stream::Connected).then_some(()))
            .await;
    }

    async fn set_state(&self, state: Value) {
        self.plane.manage(Method::PUT, &format!("nodes/{}/state", self.node), state).await;
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }

    async fn stopped(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
    }
}

fn data(version: i64) -> Value {
    json!({"data": [{"key": "a", "content_type": "text/plain", "payload": "x", "version": version,
        "updated_at": "2025-06-01T12:34:56Z"}]})
}

fn version(desired: &Desired) -> Option<i64> {
    desired.data.get("a").map(|entry| entry.version)
}

#[tokio::test]
async fn state_comes_by_events_and_by_the_pull_after_every_connect() {
    let rig = Rig::start().await;
    rig.connected().await;
    rig.set_state(data(1)).await;
    rig.desired("version 1", |desired| version(desired) == Some(1)).await;
    until("an event", async || (rig.board.control_status().accepted > 0).then_some(())).await;
    assert_eq!(rig.board.control_status().rejected.len(), 0);

    // Events of an outage come after it, or with the state.
    rig.plane.fault(json!({"refuse_connections": true})).await;
    until("told", async || rig.problems().contains("control plane").then_some(())).await;
    rig.set_state(data(2)).await;
    rig.plane.no_faults().await;
    rig.desired("version 2", |desired| version(desired) == Some(2)).await;
    rig.connected().await;
    until("over", async || rig.problems().is_empty().then_some(())).await;
    rig.stopped().await;
}

#[tokio::test]
async fn a_heartbeat_says_everything_and_its_answer_is_obeyed() {
    let rig = Rig::start().await;
    let path = format!("nodes/{}/heartbeat", rig.node);
    let body = until("a heartbeat", async || rig.plane.received(&rig.node, "heartbeats").await.pop()).await;
    assert_eq!(body["node_id"], rig.node);
    assert_eq!(body["status"], "healthy");
    let stated: jiff::Timestamp = body["timestamp"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(stated).abs() < jiff::SignedDuration::from_mins(5));
    let uptime = body["uptime"].as_str().unwrap();
    let (hours, minutes) = uptime.strip_suffix('m').and_then(|text| text.split_once('h')).unwrap();
    assert!(hours.parse::<u64>().is_ok() && minutes.parse::<u64>().unwrap() < 60, "{uptime}");
    let checksum = body["binary_checksum"].as_str().unwrap();
    assert_eq!((checksum.len(), &checksum[..7]), (71, "sha256:"));
    assert_eq!(body["mesh"], json!({"interface": "plexd0", "peer_count": 0, "listen_port": 51820}));
    let members: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(members.len(), 6, "{members:?}");

    rig.board.raise(crate::status::Subsystem::Policy, "rejected", "rule 2");
    until("degraded", async || {
        let last = rig.plane.received(&rig.node, "heartbeats").await.pop()?;
        (last["status"] == "degraded").then_some(())
    })
    .await;
    rig.plane.manage(Method::PUT, &path, json!({"reconcile": true, "rotate_keys": true})).await;
    until("obeyed", async || rig.state.desired().borrow().own_key.rotation_wanted.then_some(())).await;
    rig.stopped().await;
}

#[tokio::test]
async fn drift_is_reported_in_order_and_after_an_outage() {
    let rig = Rig::start().await;
    rig.plane.fault(json!({"endpoint": "drift", "status": 503})).await;
    rig.drift
        .send(vec![Correction::new(Kind::PolicyRestored, "one"), Correction::new(Kind::PeerAdded, "two")])
        .await
        .unwrap();
    until("told", async || rig.problems().contains("status 503").then_some(())).await;
    rig.drift.send(vec![Correction::new(Kind::RouteAdded, "three")]).await.unwrap();
    rig.plane.no_faults().await;
    let reports = until("both reports", async || {
        let reports = rig.plane.received(&rig.node, "drift").await;
        (reports.len() >= 2).then_some(reports)
    })
    .await;
    assert_eq!(
        reports.iter().map(|report| report["corrections"].clone()).collect::<Vec<_>>(),
        [
            json!([{"type": "policy_restored", "detail": "one"}, {"type": "peer_added", "detail": "two"}]),
            json!([{"type": "route_added", "detail": "three"}])
        ]
    );
    rig.stopped().await;
}

#[tokio::test]
async fn a_refused_identity_is_told_changes_nothing_and_a_new_one_counts_at_once() {
    let rig = Rig::start().await;
    rig.set_state(data(1)).await;
    rig.desired("version 1", |desired| version(desired) == Some(1)).await;
    let credentials = rig.identity.borrow().as_ref().unwrap().credentials();
    rig.plane.client().deregister(&credentials).await.unwrap();
    // The control plane may leave the stream open.
    rig.plane.fault(json!({"endpoint": "events", "drop_streams": true})).await;
    rig.plane.no_faults().await;
    until("unauthorized", async || (rig.board.enrolment() == Enrolment::Unauthorized).then_some(())).await;
    assert!(rig.problems().contains("enrol again with a new token: plexd-ctl join"), "{}", rig.problems());
    assert_eq!(version(&rig.state.desired().borrow()), Some(1), "the last known state stays");

    // As the enroller does; the loops wait a minute before they try the old identity again.
    let identity = rig.plane.enrol("web-01").await;
    rig.state.enrolled(identity.signing_key, Vec::new(), Vec::new()).await.unwrap();
    rig.board.set_enrolment(Enrolment::Enrolled);
    let node = identity.node_id.to_string();
    let waited = tokio::time::Instant::now();
    rig.identity.send_replace(Some(Arc::new(identity)));
    until("a heartbeat", async || rig.plane.received(&node, "heartbeats").await.pop()).await;
    rig.desired("its own, empty state", |desired| version(desired).is_none()).await;
    rig.connected().await;
    until("over", async || rig.problems().is_empty().then_some(())).await;
    assert_eq!(rig.board.enrolment(), Enrolment::Enrolled);
    assert!(waited.elapsed() < Duration::from_secs(45), "{:?}", waited.elapsed());
    rig.stopped().await;
}

/// A session towards nobody.
fn session(identity: Option<Arc<Identity>>) -> (Session, watch::Sender<Option<Arc<Identity>>>) {
    let (sender, identity) = watch::channel(identity);
    let config = crate::control::client::ClientConfig {
        base: "https://127.0.0.1:1/".parse().unwrap(),
        ca_file: None,
        version: "1",
    };
    let client = Client::new(config).unwrap();
    (Session { client, identity, board: Board::default(), pulls: Arc::default(), name: "test" }, sender)
}

#[tokio::test]
async fn an_answer_clears_what_failures_said() {
    let (session, identity) = session(Some(Arc::new(crate::reconcile::tests::identity())));
    let board = &session.board;
    board.set_enrolment(Enrolment::Enrolled);
    let mut backoff = Backoff::new();
    let nobody = crate::reconcile::tests::identity().credentials();
    let ClientError::Network { call, .. } = session.client.deregister(&nobody).await.unwrap_err() else {
        panic!("somebody answers")
    };
    let refused = ClientError::Unauthorized { call, detail: Detail::default() };
    let delay = session.failed(&refused, &mut backoff);
    assert!(delay >= REFUSED_PERIOD * 3 / 4 && delay <= REFUSED_PERIOD * 5 / 4, "{delay:?}");
    let busy = ClientError::RateLimited { call, retry_after: Some(Duration::from_secs(7)) };
    let delay = session.failed(&busy, &mut backoff);
    assert!(delay >= Duration::from_secs(7) && delay <= Duration::from_secs(9), "{delay:?}");
    assert_eq!((board.enrolment(), board.problems().len()), (Enrolment::Unauthorized, 1));
    assert!(board.control_status().last_error.unwrap().contains("slow down"));
    session.answered();
    assert_eq!((board.enrolment(), board.problems().len()), (Enrolment::Enrolled, 0));
    let control = board.control_status();
    assert!(control.last_error.is_none() && control.last_answer.is_some());
    // Another loop's trouble is not over with it.
    session.named("other").failed(&busy, &mut backoff);
    session.answered();
    assert_eq!(board.problems().len(), 1);
    // What was said of an identity that is given up concerns nobody, and an answer is no enrolment.
    board.clear_all(Subsystem::ControlPlane);
    identity.send_replace(None);
    for enrolment in [Enrolment::WaitingForToken, Enrolment::Registering] {
        board.set_enrolment(enrolment);
        assert_eq!(session.failed(&refused, &mut backoff), Duration::ZERO);
        session.answered();
        assert_eq!((board.enrolment(), board.problems().len()), (enrolment, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_in_time_with_a_new_identity_or_with_the_process() {
    let (mut session, identity) = session(None);
    let shutdown = Shutdown::new();
    let before = Instant::now();
    assert!(session.pause(Duration::from_mins(1), &shutdown).await);
    assert!(before.elapsed() >= Duration::from_mins(1));
    let before = Instant::now();
    identity.send_replace(Some(Arc::new(crate::reconcile::tests::identity())));
    assert!(session.pause(Duration::from_mins(1), &shutdown).await && before.elapsed().is_zero());
    drop(identity);
    assert!(session.pause(Duration::from_mins(1), &shutdown).await && before.elapsed().as_secs() >= 60);
    shutdown.cancel();
    assert!(!session.pause(Duration::from_mins(1), &shutdown).await);
    assert!(session.identity(&shutdown).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn only_an_identity_that_was_there_from_the_start_waits_before_the_first_contact() {
    let (mut session, identity) = session(None);
    let shutdown = Shutdown::new();
    let node = Arc::new(crate::reconcile::tests::identity());
    let most = Duration::from_hours(1);
    let begin = Instant::now();
    let enrol = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        identity.send_replace(Some(node));
    };
    let (goes_on, ()) = tokio::join!(session.first_contact(most, &shutdown), enrol);
    assert!(goes_on && begin.elapsed() == Duration::from_secs(1), "{:?}", begin.elapsed());

    let mut waits = Vec::new();
    for _ in 0..100 {
        let begin = Instant::now();
        assert!(session.first_contact(most, &shutdown).await);
        waits.push(begin.elapsed());
    }
    waits.sort();
    assert!(waits[0] < most / 4 && waits[99] > most * 3 / 4 && waits[99] <= most + Duration::from_millis(1));
    shutdown.cancel();
    assert!(!session.first_contact(most, &shutdown).await);
}

#[tokio::test]
async fn another_wireguard_key_is_no_other_node() {
    let identity = Arc::new(crate::reconcile::tests::identity());
    let (session, sender) = session(Some(Arc::clone(&identity)));
    let is_replaced = || session.replaced(&identity).now_or_never().is_some();
    let private_key = crate::types::PrivateKey::generate().unwrap();
    sender.send_replace(Some(Arc::new(Identity { private_key, ..Identity::clone(&identity) })));
    assert!(!is_replaced());
    let node_id = "n_other".parse().unwrap();
    sender.send_replace(Some(Arc::new(Identity { node_id, ..Identity::clone(&identity) })));
    assert!(is_replaced());
}

#[tokio::test]
async fn drift_of_an_identity_that_is_given_up_is_told_under_no_other() {
    let (session, identity) = session(None);
    let (drift, corrections) = mpsc::channel(1);
    let reporter = DriftReporter { session, corrections, clock: Arc::new(SystemClock) };
    let shutdown = Shutdown::new();
    let task = tokio::spawn(reporter.run(shutdown.clone()));
    for _ in 0..3 {
        drift.send(vec![Correction::new(Kind::RouteAdded, "x")]).await.unwrap();
    }
    identity.send_replace(Some(Arc::new(crate::reconcile::tests::identity())));
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_events_overtake_again_and_again_is_made_again_soon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let (state, keeper) = State::open(&path, Arc::new(SystemClock), Board::default(), None).unwrap();
    let identity = Arc::new(crate::reconcile::tests::identity());
    let signing_key = identity.signing_key;
    let (events, mut to_come) = (state.clone(), 7);
    let plane = ScriptedControlPlane::start(move |_| {
        if to_come > 0 {
            to_come -= 1;
            let event = events.enrolled(signing_key, Vec::new(), Vec::new());
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(event)).unwrap();
        }
        ("200 OK", r#"{"metadata":{"region":"eu"}}"#.to_owned())
    })
    .await;
    let (session, _identity) = session(Some(identity));
    let session = Session { client: plane.client(), ..session };
    session.pulls.notify_one();
    let (drift, _corrections) = mpsc::channel(8);
    let shutdown = Shutdown::new();
    let keeper = tokio::spawn(keeper.run(shutdown.clone()));
    let puller = Puller { session, state: state.clone(), drift, interval: NEVER };
    let puller = tokio::spawn(puller.run(shutdown.clone()));
    let mut desired = state.desired();
    let there = desired.wait_for(|desired| desired.metadata.contains_key("region"));
    tokio::time::timeout(Duration::from_mins(1), there).await.expect("not only after an hour").unwrap();
    shutdown.cancel();
    keeper.await.unwrap().unwrap();
    puller.await.unwrap().unwrap();
}
