//! Departures against the development control plane: what is left of a node, on disk, in memory and in the kernel.

use std::sync::Arc;

use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::control::client::Client;
use crate::control::dev::{DevControlPlane, until};
use crate::identity::{
    CurrentIdentity, IdentityStore, JoinRequests, Machine, Start, Token, TokenLookup, resume_departure,
};
use crate::kernel::fake::FakeKernel;
use crate::reconcile::{Kernel, Reconciler, Wiring};
use crate::reports::Put;
use crate::state::State;
use crate::status::Board;
use crate::storage::DataDir;
use crate::supervisor::Shutdown;
use crate::types::SystemClock;

/// One process as far as enrolment and the mesh go.
struct Rig {
    folder: tempfile::TempDir,
    board: Board,
    state: State,
    reports: Reports,
    identity: CurrentIdentity,
    join: JoinRequests,
    leave: LeaveRequests,
    kernel: Arc<FakeKernel>,
    shutdown: Shutdown,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

async fn start(
    folder: tempfile::TempDir,
    kernel: Arc<FakeKernel>,
    client: Client,
    token: TokenLookup,
) -> Rig {
    let board = Board::default();
    let directory = DataDir::open(folder.path()).unwrap();
    let unfinished = resume_departure(&directory).unwrap();
    let clock = Arc::new(SystemClock);
    let (reports, writer) =
        Reports::open(&directory.file("reports.redb"), clock.clone(), board.clone()).unwrap();
    let path = directory.file("state.redb");
    let (state, keeper) = State::open(&path, clock.clone(), board.clone(), None).unwrap();
    let store = IdentityStore::new(directory);
    let loaded = store.load(&*clock).unwrap();
    let start = Start { store, loaded, token, machine: Machine::new(Some("web-01")).unwrap() };
    let (enroller, identity, join) =
        Enroller::new(start, client, state.clone(), board.clone(), Arc::default());
    let wiring = Wiring {
        desired: state.desired(),
        identity: identity.clone(),
        kernel_changes: mpsc::channel(1).1,
        drift: mpsc::channel(64).0,
        board: board.clone(),
    };
    let handle = Kernel { wireguard: kernel.clone(), network: kernel.clone(), firewall: kernel.clone() };
    let config = Arc::new(crate::reconcile::tests::config(""));
    let (mesh, mut reconciler) = Reconciler::new(config, handle, "asked for".into(), wiring);
    if let Some(unfinished) = unfinished {
        reconciler.take_down().await.unwrap();
        unfinished.finish().unwrap();
    }
    reconciler.start().await;
    let (enroller, leave) = enroller.leaving(mesh, reports.clone());
    let shutdown = Shutdown::new();
    let tasks = vec![
        tokio::spawn(keeper.run(shutdown.clone())),
        tokio::spawn(writer.run(shutdown.clone())),
        tokio::spawn(reconciler.run(shutdown.clone())),
        tokio::spawn(enroller.run(shutdown.clone())),
    ];
    Rig { folder, board, state, reports, identity, join, leave, kernel, shutdown, tasks }
}

fn leave(extent: Extent, consent: Consent) -> Leave {
    Leave { extent, consent }
}

const ORDERLY: Leave = Leave { extent: Extent::Identity, consent: Consent::Required };

impl Rig {
    /// A node that is enrolled with `plane`, in its mesh, and holds a report.
    async fn enrolled(plane: &DevControlPlane) -> Self {
        let token = TokenLookup::Found(Token::parse(&plane.token().await).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let mut rig = start(folder, FakeKernel::new(), plane.client(), token).await;
        rig.identity.wait_for(Option::is_some).await.unwrap();
        until("the mesh", async || rig.kernel.state().device.is_some().then_some(())).await;
        rig.put_report().await;
        // What may lie around of earlier troubles.
        for name in ["wireguard.key.damaged-1", ".identity.json.a1B2c3", "state.redb.damaged-1"] {
            std::fs::write(rig.folder.path().join(name), "key material").unwrap();
        }
        rig
    }

    async fn put_report(&self) -> i64 {
        let put = Put { key: "a".into(), content_type: "t".into(), payload: "1".into(), if_match: None };
        self.reports.put(put).await.unwrap().version
    }

    fn node_id(&self) -> NodeId {
        self.identity.borrow().as_ref().unwrap().node_id.clone()
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }

    fn assert_gone(&self) {
        assert!(self.identity.borrow().is_none());
        assert_eq!(self.files(), ["format", "reports.redb", "state.redb"]);
        let desired = Arc::clone(&self.state.desired().borrow());
        assert!(desired.peers.is_empty() && desired.signing_keys.is_none(), "{desired:?}");
        let kernel = self.kernel.state();
        assert!(kernel.device.is_none() && kernel.link.is_none() && kernel.table.is_none());
        assert_eq!(self.board.enrolment(), Enrolment::WaitingForToken);
        assert!(self.problems().ends_with("run: plexd-ctl join"), "{}", self.problems());
    }

    async fn stopped(self) -> (tempfile::TempDir, Arc<FakeKernel>) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
        (self.folder, self.kernel)
    }
}

async fn nodes(plane: &DevControlPlane) -> usize {
    plane.get("nodes").await["nodes"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_node_that_deregisters_is_gone_everywhere_keeps_its_reports_and_can_join_again() {
    let plane = DevControlPlane::start().await;
    let other = plane.enrol("web-00").await;
    let mut rig = Rig::enrolled(&plane).await;
    assert!(rig.state.desired().borrow().peers.contains_key(&other.node_id));
    let node_id = rig.node_id();
    let key = rig.identity.borrow().as_ref().unwrap().private_key.public();
    let left = rig.leave.leave(ORDERLY).await.unwrap();
    let expected =
        Left { node_id: Some(node_id.clone()), farewell: Farewell::Confirmed, remains: Vec::new() };
    assert_eq!(left, expected);
    assert_eq!(nodes(&plane).await, 1);
    rig.assert_gone();
    assert_eq!(rig.leave.leave(ORDERLY).await.unwrap_err(), LeaveError::NotEnrolled);

    let token = Token::parse(&plane.token().await).unwrap();
    let joined = rig.join.join(token).await.unwrap();
    let identity = rig.identity.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(joined.node_id != node_id && identity.private_key.public() != key);
    until("the mesh", async || rig.kernel.state().device.is_some().then_some(())).await;
    assert_eq!(rig.problems(), "");
    assert_eq!(rig.put_report().await, 2, "versions go on");
    rig.stopped().await;
}

#[tokio::test]
async fn a_purge_leaves_nothing_but_empty_stores_also_of_a_node_that_is_not_enrolled() {
    let plane = DevControlPlane::start().await;
    let rig = Rig::enrolled(&plane).await;
    let purge = leave(Extent::Everything, Consent::Required);
    for farewell in [Farewell::Confirmed, Farewell::NotAsked] {
        std::fs::create_dir(rig.folder.path().join("something")).unwrap();
        let left = rig.leave.leave(purge).await.unwrap();
        assert_eq!((left.farewell, left.remains), (farewell, Vec::new()));
        rig.assert_gone();
        assert_eq!(rig.reports.counts().borrow().entries, 0);
        assert_eq!(rig.put_report().await, 1, "versions begin anew");
    }
    rig.stopped().await;
}

#[tokio::test]
async fn without_the_control_plane_nothing_changes_unless_it_is_forced() {
    let plane = DevControlPlane::start().await;
    let rig = Rig::enrolled(&plane).await;
    let (files, node_id) = (rig.files(), rig.node_id());
    for status in [503, 403, 429] {
        plane.fault(json!({"endpoint": "deregister", "status": status})).await;
        let error = rig.leave.leave(ORDERLY).await.unwrap_err();
        assert!(matches!(error, LeaveError::NotConfirmed { .. }), "{error}");
        assert!(error.to_string().contains("plexd-ctl deregister --force"), "{error}");
    }
    assert_eq!((rig.files(), rig.node_id()), (files, node_id.clone()));
    assert!(rig.kernel.state().device.is_some() && rig.board.enrolment() == Enrolment::Enrolled);
    let left = rig.leave.leave(leave(Extent::Identity, Consent::Waived)).await.unwrap();
    assert_eq!((left.node_id, left.farewell), (Some(node_id), Farewell::NotAsked));
    rig.assert_gone();
    assert_eq!(nodes(&plane).await, 1, "it still lists the node");
    rig.stopped().await;
}

#[tokio::test]
async fn a_node_that_the_control_plane_does_not_know_any_more_is_given_up() {
    for status in [401, 404] {
        let plane = DevControlPlane::start().await;
        let rig = Rig::enrolled(&plane).await;
        plane.fault(json!({"endpoint": "deregister", "status": status})).await;
        assert_eq!(rig.leave.leave(ORDERLY).await.unwrap().farewell, Farewell::Unknown);
        rig.assert_gone();
        rig.stopped().await;
    }
}

#[tokio::test]
async fn a_crash_after_the_mark_is_gone_on_with_at_the_next_start() {
    for extent in [Extent::Identity, Extent::Everything] {
        let plane = DevControlPlane::start().await;
        let rig = Rig::enrolled(&plane).await;
        let (folder, kernel) = rig.stopped().await;
        assert!(kernel.state().device.is_some(), "a stop keeps the mesh");
        let store = IdentityStore::new(DataDir::open(folder.path()).unwrap());
        store.departure().begin(extent).unwrap();
        let rig = start(folder, kernel, plane.client(), TokenLookup::Missing).await;
        until("a problem", async || rig.board.is_degraded().then_some(())).await;
        rig.assert_gone();
        let version = if extent == Extent::Everything { 1 } else { 2 };
        assert_eq!(rig.put_report().await, version);
        rig.stopped().await;
    }
}

#[tokio::test]
async fn what_cannot_be_removed_is_named_and_a_later_join_ends_the_departure() {
    let plane = DevControlPlane::start().await;
    let mut rig = Rig::enrolled(&plane).await;
    rig.kernel.state().failing.insert("remove interface");
    let left = rig.leave.leave(ORDERLY).await.unwrap();
    assert!(left.remains[0].contains("remove interface"), "{left:?}");
    assert!(rig.problems().contains("not everything could be removed"), "{}", rig.problems());
    assert!(rig.files().contains(&"deregistering".to_owned()), "the next start tries again");
    rig.kernel.state().failing.clear();
    rig.join.join(Token::parse(&plane.token().await).unwrap()).await.unwrap();
    let joined = rig.identity.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(rig.problems(), "");
    let (folder, kernel) = rig.stopped().await;
    let rig = start(folder, kernel, plane.client(), TokenLookup::Missing).await;
    assert_eq!(rig.node_id(), joined.node_id, "the next start does not take the new identity away");
    rig.stopped().await;
}
