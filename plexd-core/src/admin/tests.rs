//! What administrators are told, and how a join ends.

use tonic::Code;

use super::*;
use crate::identity::{Enroller, IdentityStore, Loaded, Machine, Start, TokenLookup};
use crate::kernel::fake::FakeKernel;
use crate::policy::Action::Allow;
use crate::reconcile::tests::{config, desired, identity, peer, policies};
use crate::reconcile::{Kernel, Reconciler, Wiring};
use crate::state::State;
use crate::status::Subsystem;
use crate::storage::DataDir;
use crate::supervisor::Shutdown;
use crate::types::SystemClock;

/// The service, and what it asks.
struct Rig {
    service: AdminService,
    reconciler: Reconciler,
    enroller: Enroller,
    board: Board,
    _kept: (watch::Sender<Arc<Desired>>, watch::Sender<Counts>, tempfile::TempDir),
}

fn rig(client: crate::control::client::Client) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::default();
    let clock = Arc::new(SystemClock);
    let path = folder.path().join("state.redb");
    let (state, keeper) = State::open(&path, clock, board.clone(), None).unwrap();
    tokio::spawn(keeper.run(Shutdown::new()));
    let store = IdentityStore::new(DataDir::open(folder.path()).unwrap());
    let loaded =
        Loaded { private_key: Some(identity().private_key), identity: Some(identity()), ..Loaded::default() };
    let machine = Machine::new(Some("web-01")).unwrap();
    let (enroller, identity, join) = Enroller::new(
        Start { store, loaded, token: TokenLookup::Missing, machine },
        client,
        state,
        board.clone(),
        Arc::default(),
    );
    let mut wanted = desired([peer("n_b", 2, Some("192.0.2.2:51820")), peer("n_c", 3, None)]);
    wanted.policies = policies(&[("n_b", "n_a", Allow), ("n_x", "*", crate::policy::Action::Deny)]);
    let (desired_sender, desired) = watch::channel(Arc::new(wanted));
    let kernel = FakeKernel::new();
    let handle = Kernel { wireguard: kernel.clone(), network: kernel.clone(), firewall: kernel };
    let wiring = Wiring {
        desired: desired.clone(),
        identity: identity.clone(),
        kernel_changes: tokio::sync::mpsc::channel(1).1,
        drift: tokio::sync::mpsc::channel(1).0,
        board: board.clone(),
    };
    let config = Arc::new(config(""));
    let (mesh, reconciler) = Reconciler::new(Arc::clone(&config), handle, "asked for".into(), wiring);
    let (counts, reports) = watch::channel(Counts { entries: 5, pending: 2, conflicted: 1 });
    let sources = Sources {
        config,
        hostname: "web-01".to_owned(),
        capabilities: vec!["CAP_NET_ADMIN".to_owned()],
        board: board.clone(),
        identity,
        desired,
        reports,
        mesh,
        join,
    };
    let kept = (desired_sender, counts, folder);
    Rig { service: AdminService::new(sources), reconciler, enroller, board, _kept: kept }
}

fn nobody() -> crate::control::client::Client {
    let base = "https://127.0.0.1:1/".parse().unwrap();
    let config = crate::control::client::ClientConfig { base, ca_file: None, version: "1" };
    crate::control::client::Client::new(config).unwrap()
}

async fn status(service: &AdminService) -> v1::StatusResponse {
    service.status(Request::new(v1::StatusRequest {})).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_healthy_node_says_who_it_is_and_what_it_has() {
    let mut rig = rig(nobody());
    rig.reconciler.start().await;
    tokio::spawn(rig.reconciler.run(Shutdown::new()));
    rig.board.control(|control| {
        control.accepted = 3;
        control.rejected.insert("replay", 2);
        control.last_event_id = Some("evt-3".to_owned());
    });
    let status = status(&rig.service).await;
    assert_eq!((status.health(), status.problems.len()), (v1::Health::Healthy, 0), "{status:?}");
    let who = status.identity.unwrap();
    assert_eq!((who.enrolment(), who.node_id.as_str()), (v1::Enrolment::Enrolled, "n_a"));
    assert_eq!((who.mesh_ip.as_str(), who.hostname.as_str()), ("10.100.0.1", "web-01"));
    assert_eq!(who.public_key, identity().private_key.public().to_string());
    let control = status.control_plane.unwrap();
    assert_eq!((control.url.as_str(), control.last_event_id.as_str()), ("https://cp.example/", "evt-3"));
    assert_eq!((control.events_accepted, control.events_rejected["replay"]), (3, 2));
    let mesh = status.mesh.unwrap();
    assert_eq!((mesh.peers_desired, mesh.peers_configured, mesh.peers_up), (2, 1, 0));
    assert_eq!((mesh.backend.as_str(), mesh.backend_reason.as_str()), ("kernel", "asked for"));
    assert!(mesh.last_reconcile_age_ms.is_some());
    let policy = status.policy.unwrap();
    assert_eq!((policy.policies, policy.rules, policy.default_action.as_str()), (1, 2, "deny"));
    assert_eq!(status.reports.unwrap(), v1::Reports { entries: 5, pending: 2, conflicted: 1 });
    assert_eq!(status.capabilities, ["CAP_NET_ADMIN"]);

    let peers =
        rig.service.list_peers(Request::new(v1::ListPeersRequest {})).await.unwrap().into_inner().peers;
    let shown: Vec<_> =
        peers.iter().map(|peer| (peer.id.as_str(), peer.configured, peer.problem.is_empty())).collect();
    assert_eq!(shown, [("n_b", true, true), ("n_c", false, false)]);
    let policies =
        rig.service.list_policies(Request::new(v1::ListPoliciesRequest {})).await.unwrap().into_inner();
    let rules = &policies.policies[0].rules;
    assert_eq!(
        (rules[0].src.as_str(), rules[0].action.as_str(), rules[0].packets),
        ("n_b", "allow", Some(0))
    );
    assert_eq!((rules[1].src.as_str(), rules[1].action.as_str()), ("n_x", "deny"));
    // No answer holds a secret.
    let secret = identity().private_key.to_base64();
    assert!(!format!("{peers:?}{policies:?}").contains(secret.as_str()));
}

#[tokio::test]
async fn problems_are_told_with_their_part_of_the_node() {
    let mut rig = rig(nobody());
    rig.reconciler.start().await;
    tokio::spawn(rig.reconciler.run(Shutdown::new()));
    rig.board.raise(Subsystem::Storage, "state_write", "disk full");
    let status = status(&rig.service).await;
    assert_eq!(status.health(), v1::Health::Degraded);
    let problem = v1::Problem { subsystem: "storage".to_owned(), message: "disk full".to_owned() };
    assert_eq!(status.problems, [problem]);
}

#[tokio::test(start_paused = true)]
async fn a_mesh_that_hangs_is_a_problem_and_does_not_hang_the_status() {
    let Rig { service, reconciler, .. } = rig(nobody());
    // Nobody runs the reconciler. The clock stands while the state's thread works: it is moved here.
    let (status, ()) = tokio::join!(status(&service), tokio::time::advance(MESH_DEADLINE * 2));
    assert!(status.problems.iter().any(|problem| problem.message.contains("the mesh does not answer")));
    assert_eq!(status.mesh.unwrap().peers_desired, 2);
    drop(reconciler);
    let refused = service.list_peers(Request::new(v1::ListPeersRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_join_ends_with_a_code_for_each_reason() {
    let join = async |service: &AdminService, token: &str| {
        let request = v1::JoinRequest { token: token.to_owned() };
        service.join(Request::new(request)).await.unwrap_err()
    };
    let Rig { service, enroller, board, .. } = rig(nobody());
    let refused = join(&service, "two words").await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(!refused.message().contains("two words"));
    let shutdown = Shutdown::new();
    let task = tokio::spawn(enroller.run(shutdown.clone()));
    assert_eq!(join(&service, "t").await.code(), Code::AlreadyExists);
    board.set_enrolment(Enrolment::Unauthorized);
    assert_eq!(join(&service, "t").await.code(), Code::Unavailable, "nobody listens");
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(join(&service, "t").await.code(), Code::Unavailable, "stopping");
}

#[test]
fn counters_are_told_apart_and_one_that_cannot_be_read_is_not_zero() {
    let count = |packets| crate::kernel::Count { packets, bytes: 0 };
    let named = [("denied".to_owned(), count(7)), ("invalid".to_owned(), count(0))];
    let counters = Counters { named: named.into(), ..Counters::default() };
    assert_eq!(packets_named(Some(&counters), "denied"), Some(7));
    assert_eq!(packets_named(Some(&counters), "invalid"), Some(0));
    assert_eq!(packets_named(Some(&Counters::default()), "denied"), None);
    assert_eq!(packets_named(None, "denied"), None);
}
