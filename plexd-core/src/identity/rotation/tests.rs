//! Rotations against a development control plane, broken off at every point and gone on with from disk.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::control::client::{Client, StateAnswer};
use crate::control::dev::DevControlPlane;
use crate::identity::CurrentIdentity;
use crate::state::{FullState, PullOutcome};
use crate::status::{Board, Enrolment};
use crate::storage::DataDir;
use crate::supervisor::Shutdown;
use crate::types::SystemClock;

/// A control plane with two nodes, of which `identity` is one and has its data in `data`.
struct Plane {
    control: DevControlPlane,
    client: Client,
    identity: Identity,
    data: TempDir,
}

impl Plane {
    async fn start() -> Self {
        let control = DevControlPlane::start().await;
        let identity = control.enrol("a").await;
        control.enrol("b").await;
        let data = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(DataDir::open(data.path()).unwrap());
        store.save_key(&identity.private_key).unwrap();
        store.save_identity(&identity).unwrap();
        Self { client: control.client(), control, identity, data }
    }

    async fn set_fault(&self, fault: Value) {
        self.control.fault(fault).await;
    }

    async fn clear_faults(&self) {
        self.control.no_faults().await;
    }

    /// Returns the node's key as the control plane has it.
    async fn key(&self) -> PublicKey {
        let node = self.control.get(&format!("nodes/{}", self.identity.node_id)).await;
        PublicKey::from_base64(node["public_key"].as_str().unwrap()).unwrap()
    }

    async fn state(&self) -> FullState {
        match self.client.state(&self.identity.credentials(), None).await.unwrap() {
            StateAnswer::State { state, .. } => *state,
            StateAnswer::NotModified => unreachable!("nothing was known"),
        }
    }

    fn pending_file(&self) -> PathBuf {
        self.data.path().join("wireguard.key.pending")
    }
}

/// A process of the node, as far as rotations are concerned.
struct Process {
    rotation: Rotation,
    state: State,
    board: Board,
    identity: CurrentIdentity,
    shutdown: Shutdown,
    keeper: JoinHandle<anyhow::Result<()>>,
}

impl Process {
    fn start(plane: &Plane) -> Self {
        Self::start_in(plane.data.path(), plane.client.clone())
    }

    fn start_in(data: &Path, client: Client) -> Self {
        let (board, shutdown) = (Board::default(), Shutdown::default());
        let directory = DataDir::open(data).unwrap();
        let path = directory.file("state.redb");
        let (state, keeper) = State::open(&path, Arc::new(SystemClock), board.clone(), None).unwrap();
        let store = IdentityStore::new(directory);
        let confirmed = state.desired().borrow().own_key.confirmed;
        let mut loaded = store.load(&SystemClock).unwrap();
        store.complete_rotation(&mut loaded, confirmed).unwrap();
        board.set_enrolment(Enrolment::Enrolled);
        let (publish, identity) = watch::channel(loaded.identity.map(Arc::new));
        let session = Session {
            client,
            identity: identity.clone(),
            board: board.clone(),
            pulls: Arc::default(),
            name: "rotation",
        };
        let rotation = Rotation::new(store, session, state.clone(), publish, loaded.pending_key);
        let keeper = tokio::spawn(keeper.run(shutdown.clone()));
        Self { rotation, state, board, identity, shutdown, keeper }
    }

    /// Ends it without another step; what it had not stored is lost.
    async fn crash(self) {
        drop(self.rotation);
        self.shutdown.cancel();
        self.keeper.await.unwrap().unwrap();
    }

    fn key(&self) -> PublicKey {
        self.identity.borrow().as_ref().unwrap().private_key.public()
    }

    fn is_wanted(&self) -> bool {
        self.state.desired().borrow().own_key.rotation_wanted
    }

    fn has_something_to_do(&mut self) -> bool {
        self.rotation.not_before = Instant::now();
        !matches!(self.rotation.stage, Stage::Idle) || self.is_wanted()
    }

    /// Goes on until there is nothing more to do.
    async fn finish(&mut self) {
        while self.has_something_to_do() {
            self.rotation.due().await;
            self.rotation.advance().await;
        }
        assert!(self.rotation.due().now_or_never().is_none());
    }
}

/// Checks that node, disk and control plane agree on the key and on what belongs to it.
async fn assert_rotated(plane: &Plane, process: Process) {
    let key = plane.key().await;
    assert_ne!(key, plane.identity.private_key.public());
    assert_eq!(process.key(), key);
    let psks = |peers: Vec<Peer>| peers.into_iter().map(|peer| (peer.id, peer.psk)).collect::<Vec<_>>();
    let wanted = psks(plane.state().await.peers);
    let desired = Arc::clone(&process.state.desired().borrow());
    assert_eq!(psks(desired.peers.values().map(|peer| Peer::clone(peer)).collect()), wanted);
    assert!(!plane.pending_file().exists() && !process.is_wanted());
    assert_eq!(process.board.problems(), []);
    process.crash().await;

    let process = Process::start(plane);
    assert_eq!(process.key(), key);
    let desired = Arc::clone(&process.state.desired().borrow());
    assert_eq!(psks(desired.peers.values().map(|peer| Peer::clone(peer)).collect()), wanted);
    process.crash().await;
}

#[tokio::test]
async fn a_rotation_gives_node_and_control_plane_another_key_once() {
    let plane = Plane::start().await;
    let mut process = Process::start(&plane);
    assert!(process.rotation.due().now_or_never().is_none());
    process.state.want_rotation().await.unwrap();
    // Requests that come while it is under way are answered by it.
    process.rotation.due().await;
    process.rotation.advance().await;
    process.state.want_rotation().await.unwrap();
    process.finish().await;
    let first = plane.key().await;
    assert_eq!(process.key(), first);
    // One that comes afterwards is another one.
    process.state.want_rotation().await.unwrap();
    process.finish().await;
    assert_ne!(plane.key().await, first);
    assert_rotated(&plane, process).await;
}

#[tokio::test]
async fn a_crash_after_the_request_loses_neither_it_nor_the_old_key() {
    let plane = Plane::start().await;
    let process = Process::start(&plane);
    process.state.want_rotation().await.unwrap();
    process.crash().await;
    let mut process = Process::start(&plane);
    assert!(process.is_wanted());
    assert_eq!(process.key(), plane.identity.private_key.public());
    process.finish().await;
    assert_rotated(&plane, process).await;
}

#[tokio::test]
async fn a_crash_before_the_answer_sends_the_same_key_again() {
    for is_sent in [false, true] {
        let plane = Plane::start().await;
        let mut process = Process::start(&plane);
        process.state.want_rotation().await.unwrap();
        process.rotation.advance().await;
        let Stage::Pending(pending) = process.rotation.stage.clone() else { panic!("no pending key") };
        if is_sent {
            plane.client.rotate_keys(&plane.identity.credentials(), &pending.public()).await.unwrap();
        }
        process.crash().await;
        let mut process = Process::start(&plane);
        assert_eq!(process.key(), plane.identity.private_key.public(), "the old key, until it is confirmed");
        process.finish().await;
        assert_eq!(process.key(), pending.public());
        assert_rotated(&plane, process).await;
    }
}

#[tokio::test]
async fn a_crash_between_the_peers_and_the_key_is_made_up_for_at_the_start() {
    let plane = Plane::start().await;
    let mut process = Process::start(&plane);
    process.state.want_rotation().await.unwrap();
    process.rotation.advance().await;
    let Stage::Pending(pending) = process.rotation.stage.clone() else { panic!("no pending key") };
    let credentials = plane.identity.credentials();
    let peers = plane.client.rotate_keys(&credentials, &pending.public()).await.unwrap();
    let publish = PublishIdentity::new(|publish_state| publish_state());
    process.state.rotated(pending.public(), peers.accepted, publish).await.unwrap();
    process.crash().await;
    assert!(plane.pending_file().exists());
    // Nobody is asked.
    plane.set_fault(json!({ "endpoint": "rotate", "status": 503 })).await;
    let process = Process::start(&plane);
    assert_eq!(process.key(), pending.public());
    assert_rotated(&plane, process).await;
}

/// Drops a rotation wherever it waits: the first time it does, the second time, and so on.
#[tokio::test]
async fn a_rotation_broken_off_anywhere_is_finished_after_a_restart() {
    let plane = Plane::start().await;
    for polls in 1.. {
        let old = plane.key().await;
        let mut process = Process::start(&plane);
        process.state.want_rotation().await.unwrap();
        let is_finished = {
            let mut finish = pin!(process.finish());
            let mut left = polls;
            std::future::poll_fn(|context| {
                left -= 1;
                match finish.as_mut().poll(context) {
                    Poll::Ready(()) => Poll::Ready(true),
                    Poll::Pending if left == 0 => Poll::Ready(false),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        process.crash().await;
        let mut process = Process::start(&plane);
        process.finish().await;
        assert_ne!(process.key(), old, "after {polls} polls");
        assert_rotated(&plane, process).await;
        if is_finished {
            assert!(polls > 3, "it waits for its request, at least");
            return;
        }
    }
}

#[tokio::test]
async fn failures_are_tried_again_with_the_same_key_also_after_a_restart() {
    let plane = Plane::start().await;
    let mut process = Process::start(&plane);
    process.state.want_rotation().await.unwrap();
    process.rotation.advance().await;
    let pending = std::fs::read(plane.pending_file()).unwrap();
    for fault in [json!({ "status": 503 }), json!({ "garbage": true }), json!({ "status": 429 })] {
        plane.set_fault(fault).await;
        process.rotation.advance().await;
        assert!(process.rotation.not_before > Instant::now() + Duration::from_millis(500), "it waits");
        let shown =
            process.board.problems().iter().map(|problem| problem.message.clone()).collect::<String>();
        assert!(
            shown.contains("has not confirmed") && shown.contains("the old key stays in force"),
            "{shown}"
        );
        process.crash().await;
        process = Process::start(&plane);
        assert_eq!(process.key(), plane.identity.private_key.public());
        assert_eq!(std::fs::read(plane.pending_file()).unwrap(), pending);
    }
    plane.clear_faults().await;
    process.finish().await;
    assert_rotated(&plane, process).await;
}

#[tokio::test]
async fn a_refused_key_is_given_up_and_the_old_one_stays() {
    let plane = Plane::start().await;
    for status in [400, 409] {
        let mut process = Process::start(&plane);
        process.state.want_rotation().await.unwrap();
        plane.set_fault(json!({ "endpoint": "rotate", "status": status })).await;
        process.finish().await;
        assert_eq!(process.key(), plane.identity.private_key.public());
        assert!(!plane.pending_file().exists() && !process.is_wanted());
        let problems = process.board.problems();
        assert!(problems[0].message.contains("refuses this node's new WireGuard key"), "{problems:?}");
        process.crash().await;
    }
    plane.clear_faults().await;
    let mut process = Process::start(&plane);
    assert!(process.rotation.due().now_or_never().is_none());
    process.state.want_rotation().await.unwrap();
    process.finish().await;
    assert_rotated(&plane, process).await;
}

#[tokio::test]
async fn a_refused_identity_keeps_both_keys_until_it_is_accepted_again() {
    let plane = Plane::start().await;
    let mut process = Process::start(&plane);
    process.state.want_rotation().await.unwrap();
    process.rotation.advance().await;
    for status in [401, 404] {
        process.board.set_enrolment(Enrolment::Enrolled);
        plane.set_fault(json!({ "endpoint": "rotate", "status": status })).await;
        process.rotation.advance().await;
        assert_eq!(process.board.enrolment(), Enrolment::Unauthorized);
        assert_eq!(process.key(), plane.identity.private_key.public());
        assert!(plane.pending_file().exists() && process.is_wanted());
    }
    plane.clear_faults().await;
    process.finish().await;
    assert_eq!(process.board.enrolment(), Enrolment::Enrolled);
    assert_rotated(&plane, process).await;
}

#[tokio::test]
async fn a_pull_sent_before_the_confirmation_does_not_bring_the_old_preshared_keys_back() {
    let plane = Plane::start().await;
    let mut process = Process::start(&plane);
    let ticket = process.state.begin_pull().await.unwrap();
    let old = plane.state().await;
    process.state.want_rotation().await.unwrap();
    process.finish().await;
    assert_eq!(process.state.pulled(ticket, old).await.unwrap(), PullOutcome::Overtaken);
    assert_rotated(&plane, process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_and_peers_are_seen_together() {
    let plane = Plane::start().await;
    let mut process = Process::start(&plane);
    let (mut identity, mut desired) = (process.identity.clone(), process.state.desired());
    let stop = Shutdown::default();
    let stopped = stop.clone();
    let reader = tokio::task::spawn_blocking(move || {
        let mut seen = 0_u32;
        while !stopped.is_cancelled() {
            // As the reconciler does.
            let identity = identity.borrow_and_update();
            let confirmed = desired.borrow_and_update().own_key.confirmed;
            if let Some(confirmed) = confirmed {
                assert_eq!(identity.as_ref().unwrap().private_key.public(), confirmed);
                seen += 1;
            }
        }
        seen
    });
    for _ in 0..20 {
        process.state.want_rotation().await.unwrap();
        process.finish().await;
    }
    stop.cancel();
    assert!(reader.await.unwrap() > 0);
    assert_rotated(&plane, process).await;
}
