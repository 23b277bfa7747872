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
    shutdown: Shutdown,
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
    let (reports, _writer) = crate::reports::Reports::open(
        &folder.path().join("reports.redb"),
        Arc::new(SystemClock),
        board.clone(),
    )
    .unwrap();
    let (mesh, reconciler) = Reconciler::new(Arc::clone(&config), handle, "asked for".into(), wiring);
    let (enroller, leave) = enroller.leaving(mesh.clone(), reports);
    let (counts, reports) = watch::channel(Counts { entries: 5, pending: 2, conflicted: 1 });
    let shutdown = Shutdown::new();
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
        leave,
        shutdown: shutdown.clone(),
    };
    let kept = (desired_sender, counts, folder);
    Rig { service: AdminService::new(sources), reconciler, enroller, board, shutdown, _kept: kept }
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

    let listed = rig.service.list_peers(Request::new(v1::ListPeersRequest {})).await.unwrap().into_inner();
    assert_eq!(listed.backend, "kernel");
    let peers = listed.peers;
    let shown: Vec<_> = peers
        .iter()
        .map(|peer| (peer.id.as_str(), peer.configured, peer.problem.is_empty(), peer.route_state()))
        .collect();
    let (routed, hidden) = (v1::RouteState::Routed, v1::RouteState::Hidden);
    assert_eq!(shown, [("n_b", true, true, routed), ("n_c", false, false, hidden)]);
    let policies =
        rig.service.list_policies(Request::new(v1::ListPoliciesRequest {})).await.unwrap().into_inner();
    let rules = &policies.policies[0].rules;
    assert_eq!(
        (rules[0].src.as_str(), rules[0].action.as_str(), rules[0].packets),
        ("n_b", "allow", Some(0))
    );
    assert_eq!((rules[1].src.as_str(), rules[1].action.as_str()), ("n_x", "deny"));
    let shadows: Vec<_> = rules.iter().map(|rule| (rule.number, rule.matches_nobody.as_str())).collect();
    assert_eq!(shadows, [(1, ""), (2, "there is no node n_x")]);
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

#[tokio::test]
async fn a_deregistration_that_is_not_confirmed_changes_nothing_and_names_the_way_out() {
    let Rig { service, enroller, board, .. } = rig(nobody());
    let shutdown = Shutdown::new();
    let task = tokio::spawn(enroller.run(shutdown.clone()));
    let deregister = async |purge, force| {
        service
            .deregister(Request::new(v1::DeregisterRequest { purge, force }))
            .await
            .map(Response::into_inner)
    };
    let refused = deregister(true, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let message = refused.message();
    assert!(message.contains("n_a") && message.contains("nothing has changed"), "{message}");
    assert!(message.contains("plexd-ctl deregister --force"), "{message}");
    assert_eq!(status(&service).await.identity.unwrap().node_id, "n_a");
    assert_eq!(board.enrolment(), Enrolment::Enrolled);
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(deregister(false, true).await.unwrap_err().code(), Code::Unavailable, "stopping");
}

#[tokio::test]
async fn a_deregistered_node_says_so_and_asks_for_a_token() {
    let mut rig = rig(nobody());
    rig.reconciler.start().await;
    tokio::spawn(rig.reconciler.run(Shutdown::new()));
    tokio::spawn(rig.enroller.run(Shutdown::new()));
    let deregister = async |purge, force| {
        let request = Request::new(v1::DeregisterRequest { purge, force });
        rig.service.deregister(request).await.map(Response::into_inner)
    };
    let done = deregister(false, true).await.unwrap();
    assert_eq!((done.node_id.as_str(), done.farewell()), ("n_a", v1::Farewell::NotAsked));
    assert_eq!(done.remains, [""; 0]);
    let status = status(&rig.service).await;
    let who = status.identity.unwrap();
    assert_eq!((who.enrolment(), who.node_id.as_str()), (v1::Enrolment::WaitingForToken, ""));
    assert_eq!((who.mesh_ip.as_str(), who.public_key.as_str()), ("", ""));
    let problems = &status.problems;
    assert!(problems.len() == 1 && problems[0].message.contains("plexd-ctl join"), "{problems:?}");
    let refused = deregister(false, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("not enrolled"));
}

#[tokio::test]
async fn events_are_streamed_from_the_last_ones_on_until_core_stops() {
    use futures_util::StreamExt;

    use crate::control::history::{Outcome, Seen};

    let Rig { service, board, shutdown, .. } = rig(nobody());
    let record = |id: &str, outcome| {
        let (received, event_type) = (jiff::Timestamp::UNIX_EPOCH, "peer_added".to_owned());
        let event_id = id.to_owned();
        board.history().record(Seen { received, event_type, event_id, issued_at: None, outcome });
    };
    let watch = async |recent, follow| {
        let request = Request::new(v1::WatchEventsRequest { recent, follow });
        service.watch_events(request).await.map(Response::into_inner)
    };
    record("e-1", Outcome::Applied);
    record("e-2", Outcome::Rejected("stale"));
    let all: Vec<_> = watch(u32::MAX, false).await.unwrap().collect().await;
    assert_eq!(all.len(), 2);
    let mut following = watch(1, true).await.unwrap();
    let event = following.next().await.unwrap().unwrap().event.unwrap();
    assert_eq!((event.event_id.as_str(), event.reason.as_str()), ("e-2", "stale"));
    record("e-3", Outcome::Unsupported);
    let event = following.next().await.unwrap().unwrap().event.unwrap();
    assert_eq!((event.event_id.as_str(), event.outcome()), ("e-3", v1::EventOutcome::Unsupported));
    for id in 0..crate::control::history::MAX + 5 {
        record(&id.to_string(), Outcome::Unknown);
    }
    assert_eq!(following.next().await.unwrap().unwrap().missed, 5);
    let mut streams = vec![following];
    while let Ok(stream) = watch(0, true).await {
        streams.push(stream);
    }
    assert_eq!(streams.len(), MAX_STREAMS);
    assert_eq!(watch(0, true).await.err().unwrap().code(), Code::ResourceExhausted);
    shutdown.cancel();
    let mut last = streams.pop().unwrap();
    assert_eq!(last.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert!(last.next().await.is_none());
    drop(streams);
    assert!(watch(0, false).await.is_ok(), "a stream that ends gives its place back");
}

#[tokio::test]
async fn a_ping_that_cannot_be_is_refused_with_the_reason_before_anything_is_sent() {
    let mut rig = rig(nobody());
    rig.reconciler.start().await;
    tokio::spawn(rig.reconciler.run(Shutdown::new()));
    let service = &rig.service;
    let ping = async |peer: &str, count, interval_ms| {
        let request = v1::PingRequest { peer: peer.to_owned(), count, interval_ms };
        let Err(refused) = service.ping(Request::new(request)).await else { panic!("{peer} is pinged") };
        (refused.code(), refused.message().to_owned())
    };
    let (denied, hidden) = ("policy denies icmp to n_b (10.100.0.2): no rule allows it", "policy hides n_c");
    for (peer, count, interval, code, words) in [
        ("n_b", 1, 1000, Code::Unavailable, denied),
        ("10.100.0.2", 100, 60_000, Code::Unavailable, denied),
        ("n_c", 1, 1000, Code::Unavailable, hidden),
        (
            "n_d",
            1,
            1000,
            Code::NotFound,
            "there is no peer n_d; for their ids and addresses: plexd-ctl peers",
        ),
        ("10.100.0.9", 1, 1000, Code::NotFound, "there is no peer 10.100.0.9"),
        ("n_a", 1, 1000, Code::InvalidArgument, "n_a is this node itself"),
        ("10.100.0.1", 1, 1000, Code::InvalidArgument, "10.100.0.1 is this node itself"),
        ("n_b", 0, 1000, Code::InvalidArgument, "1 to 100"),
        ("n_b", 101, 1000, Code::InvalidArgument, "1 to 100"),
        ("n_b", 1, 99, Code::InvalidArgument, "100 to 60000 ms"),
        ("n_b", 1, 60_001, Code::InvalidArgument, "100 to 60000 ms"),
    ] {
        let (refused, message) = ping(peer, count, interval).await;
        assert_eq!(refused, code, "{message}");
        assert!(message.contains(words), "{message}");
    }
    let _all = Arc::clone(&service.pings).try_acquire_many_owned(8).unwrap();
    assert_eq!(ping("n_b", 1, 1000).await.0, Code::ResourceExhausted);
}

#[tokio::test]
async fn what_a_queue_loses_is_in_the_status() {
    use crate::control::batch::{Carrier, Limits, Queue, Uplink};
    use crate::control::session::Session;
    use crate::control::wire::LogEntry;

    let Rig { service, reconciler, board, .. } = rig(nobody());
    tokio::spawn(reconciler.run(Shutdown::new()));
    assert_eq!(status(&service).await.uploads, []);
    let queue: Queue<LogEntry> = Queue::new(Limits { records: 2, ..Limits::default() });
    let entry = LogEntry {
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        source: "journald".to_owned(),
        unit: "plexd".to_owned(),
        message: "one".to_owned(),
        severity: "info".to_owned(),
        hostname: "web-01".to_owned(),
    };
    (0..5).for_each(|_| queue.push(&entry));
    let session = Session {
        client: nobody(),
        identity: service.sources.identity.clone(),
        board: board.clone(),
        pulls: Arc::default(),
        name: "logs",
    };
    Carrier::<LogEntry>::tell(&mut Uplink::new(session), queue.counts());
    let status = status(&service).await;
    let lost = v1::Upload { kind: "log entries".to_owned(), waiting: 2, sent: 0, overflowed: 3, refused: 0 };
    assert_eq!(status.uploads, [lost]);
    assert!(status.problems[0].message.contains("3 log entries lost"), "{:?}", status.problems);
}

#[test]
fn whatever_changes_something_or_tells_something_is_for_administrators_alone() {
    let gate = plexd_proto::access::Gate::new(RULES, Administrators { gid: 990 });
    let root = PeerCredentials { uid: 0, gid: 0, pid: 1, groups: Vec::new() };
    let member = PeerCredentials { uid: 1000, gid: 1000, pid: 1, groups: vec![989, 990] };
    let user = PeerCredentials { uid: 1000, gid: 1000, pid: 1, groups: vec![989] };
    for rpc in [
        "Status",
        "ListPeers",
        "ListPolicies",
        "ExplainPolicy",
        "TestPolicy",
        "ExportPolicy",
        "Join",
        "Deregister",
        "WatchEvents",
        "Ping",
    ] {
        let path = format!("/plexd.admin.v1.Admin/{rpc}");
        assert!(gate.allows(&root, &path) && gate.allows(&member, &path), "{rpc}");
        assert!(!gate.allows(&user, &path), "{rpc}");
    }
    assert_eq!(RULES.len(), 10, "the list above has every row");
}

#[tokio::test]
async fn what_policy_says_is_asked_of_the_one_in_force() {
    use futures_util::StreamExt;

    let mut rig = rig(nobody());
    rig.reconciler.start().await;
    tokio::spawn(rig.reconciler.run(Shutdown::new()));
    let service = &rig.service;
    let flow = |source: &str, destination: &str| {
        let (source, destination) = (source.to_owned(), destination.to_owned());
        Some(v1::Flow { source, destination, protocol: "tcp".to_owned(), port: 443 })
    };
    let explain = async |source, destination| {
        let request = v1::ExplainPolicyRequest { flow: flow(source, destination) };
        service.explain_policy(Request::new(request)).await.map(Response::into_inner)
    };
    let answer = explain("n_b", "n_a").await.unwrap();
    assert_eq!((answer.verdict(), answer.direction()), (v1::Verdict::Allow, v1::Direction::In));
    assert_eq!((answer.crosses_mesh, answer.remarks.as_slice()), (true, &[][..]));
    assert_eq!(answer.decided_by.unwrap().text, "allow n_b -> n_a");
    assert_eq!(explain("n_b", "n_d").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(explain("n_b", "fd00::1").await.unwrap_err().code(), Code::InvalidArgument);

    let expectation =
        |source, verdict: v1::Verdict| v1::Expectation { flow: flow(source, "n_a"), verdict: verdict.into() };
    let expectations = vec![
        expectation("n_b", v1::Verdict::Allow),
        expectation("n_b", v1::Verdict::Deny),
        expectation("n_d", v1::Verdict::Deny),
    ];
    let request = v1::TestPolicyRequest { expectations };
    let tested = service.test_policy(Request::new(request)).await.unwrap().into_inner();
    let failed: Vec<_> = tested.failed.iter().map(|failed| (failed.index, failed.verdict())).collect();
    assert_eq!(failed, [(1, v1::Verdict::Allow), (2, v1::Verdict::Unspecified)]);
    assert_eq!(tested.checked, 3);
    let request = v1::TestPolicyRequest { expectations: vec![v1::Expectation::default(); 10_001] };
    let refused = service.test_policy(Request::new(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let export = async || service.export_policy(Request::new(v1::ExportPolicyRequest {})).await;
    let pieces: Vec<_> = export().await.unwrap().into_inner().collect().await;
    let text: String = pieces.into_iter().map(|piece| piece.unwrap().text).collect();
    assert!(text.starts_with("# The policy of node n_a for plexd0") && text.ends_with("}\n"), "{text}");
    let _all = Arc::clone(&service.exports).try_acquire_many_owned(4).unwrap();
    assert_eq!(export().await.err().unwrap().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_node_that_is_not_enrolled_has_no_policy_to_ask_about() {
    let rig = rig(nobody());
    let shutdown = Shutdown::new();
    tokio::spawn(rig.reconciler.run(shutdown.clone()));
    tokio::spawn(rig.enroller.run(shutdown));
    let request = Request::new(v1::DeregisterRequest { purge: false, force: true });
    rig.service.deregister(request).await.unwrap();
    let refused = rig.service.explain_policy(Request::new(v1::ExplainPolicyRequest::default())).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    let listed = rig.service.list_policies(Request::new(v1::ListPoliciesRequest {})).await.unwrap();
    assert!(listed.into_inner().policies.is_empty());
}
