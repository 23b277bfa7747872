//! The stream as a receiver sees it, and the whole service through a real socket.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use plexd_proto::access::Gate;
use plexd_proto::node::v1::node_state_client::NodeStateClient;
use plexd_proto::node::v1::node_state_server::NodeStateServer;
use plexd_proto::transport::{Incoming, PeerCredentials, SocketOwner, bind, connect};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Server};

use super::*;
use crate::control::client::{Client, ClientConfig};
use crate::node_state::{Auditor, NodeStateService, Proofs, RULES, SecretReader, SecretRules, Sidecar};
use crate::reports::Put;
use crate::state::samples::{data, secret};
use crate::state::{FullState, State};
use crate::status::Board;
use crate::supervisor::Shutdown;
use crate::types::SystemClock;

/// The sources and what moves them.
struct Rig {
    desired: watch::Sender<Arc<Desired>>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    token: watch::Sender<Option<ApiToken>>,
    sources: Sources,
    shutdown: Shutdown,
    _writer: JoinHandle<anyhow::Result<()>>,
    folder: tempfile::TempDir,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reports.redb");
    let (reports, writer) = Reports::open(&path, Arc::new(SystemClock), Board::default()).unwrap();
    let shutdown = Shutdown::new();
    let writer = tokio::spawn(writer.run(shutdown.clone()));
    let (desired, desired_seen) = watch::channel(Arc::default());
    let (identity, identity_seen) = watch::channel(Some(Arc::new(crate::reconcile::tests::identity())));
    let (token, token_seen) = watch::channel(Some(ApiToken::of(b"t")));
    let sources = Sources { desired: desired_seen, identity: identity_seen, reports, token: token_seen };
    Rig { desired, identity, token, sources, shutdown, _writer: writer, folder }
}

impl Rig {
    fn pieces(&self) -> Pieces {
        Box::pin(stream(self.sources.clone()))
    }

    fn set(&self, state: FullState) {
        let next = self.desired.borrow().replaced_by(state).0;
        self.desired.send_replace(Arc::new(next));
    }

    async fn put(&self, key: &str) {
        let put =
            Put { key: key.into(), content_type: "text/plain".into(), payload: "1".into(), if_match: None };
        self.sources.reports.put(put).await.unwrap();
    }
}

fn entries(keys: &[(&str, i64)]) -> FullState {
    FullState {
        data: keys.iter().map(|(key, version)| data(key, *version)).collect(),
        ..FullState::default()
    }
}

/// A place as a number of steps.
fn place(position: u64) -> u64 {
    position.wrapping_sub(1 << 62) >> 32
}

/// One change in a word.
fn word(change: &v1::Change) -> String {
    match change.change.as_ref().unwrap() {
        Kind::Node(node) => format!("node {}", node.node_id),
        Kind::Metadata(metadata) => format!("metadata {}", metadata.values.len()),
        Kind::Data(entry) => format!("data {} v{} @{}", entry.key, entry.version, place(entry.position)),
        Kind::DataDeleted(key) => format!("no data {key}"),
        Kind::Secret(secret) => {
            format!("secret {} v{} @{}", secret.key, secret.version, place(secret.position))
        }
        Kind::SecretDeleted(key) => format!("no secret {key}"),
        Kind::Report(entry) => format!("report {} v{}", entry.key, entry.version),
        Kind::ReportDeleted(deleted) => format!("no report {}", deleted.key),
        Kind::TcpAccess(access) => format!("tcp {}", access.token_sha256.len()),
    }
}

/// Takes pieces up to the one that completes them.
async fn whole(pieces: &mut Pieces) -> (bool, Vec<String>, Vec<usize>) {
    let (mut reset, mut words, mut sizes) = (false, Vec::new(), Vec::new());
    loop {
        let piece = tokio::time::timeout(Duration::from_mins(1), pieces.next()).await.unwrap();
        let piece = piece.unwrap().unwrap();
        assert!(!piece.reset || words.is_empty(), "a reset comes first");
        reset |= piece.reset;
        sizes.push(piece.changes.len());
        words.extend(piece.changes.iter().map(word));
        if piece.complete {
            return (reset, words, sizes);
        }
    }
}

async fn changes(pieces: &mut Pieces) -> Vec<String> {
    let (reset, words, _) = whole(pieces).await;
    assert!(!reset);
    words
}

#[tokio::test]
async fn a_snapshot_comes_first_and_then_what_changes() {
    let rig = rig();
    rig.set(FullState {
        metadata: [("region".to_owned(), "eu".to_owned())].into(),
        secret_refs: vec![secret("db", 2)],
        ..entries(&[("z", 1), ("a", 3)])
    });
    rig.put("health").await;
    let mut pieces = rig.pieces();
    let snapshot = [
        "node n_a",
        "metadata 1",
        "data a v3 @1",
        "data z v1 @0",
        "secret db v2 @0",
        "tcp 32",
        "report health v1",
    ];
    assert_eq!(whole(&mut pieces).await, (true, snapshot.map(str::to_owned).into(), vec![6, 1]));
    assert!(pieces.next().now_or_never().is_none(), "nothing to tell");

    rig.set(entries(&[("a", 4), ("b", 1)]));
    let told = changes(&mut pieces).await;
    assert_eq!(told, ["metadata 0", "data a v4 @1", "data b v1 @2", "no data z", "no secret db"]);
    rig.put("health").await;
    assert_eq!(changes(&mut pieces).await, ["report health v2"]);
    rig.sources.reports.delete("health".into(), None).await.unwrap();
    assert_eq!(changes(&mut pieces).await, ["no report health"]);
    // A state that says the same is no news.
    rig.set(entries(&[("a", 4), ("b", 1)]));
    assert!(pieces.next().now_or_never().is_none());
}

#[tokio::test]
async fn of_ten_thousand_entries_only_the_one_that_goes_is_told() {
    let rig = rig();
    let names: Vec<String> = (0..10_000).map(|n| format!("k{n:05}")).collect();
    let all: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    rig.set(entries(&all));
    let mut pieces = rig.pieces();
    whole(&mut pieces).await;
    rig.set(entries(&all[1..]));
    assert_eq!(changes(&mut pieces).await, ["no data k00000"]);
    assert!(pieces.next().now_or_never().is_none());
}

#[tokio::test]
async fn another_token_is_told_at_once_and_the_stream_outlives_who_tells() {
    let rig = rig();
    let mut pieces = rig.pieces();
    whole(&mut pieces).await;
    rig.token.send_replace(Some(ApiToken::of(b"t")));
    assert!(pieces.next().now_or_never().is_none(), "it is the same");
    rig.token.send_replace(Some(ApiToken::of(b"u")));
    assert_eq!(changes(&mut pieces).await, ["tcp 32"]);
    drop(rig.token);
    rig.desired.send_replace(Arc::new(Desired::default().replaced_by(entries(&[("a", 1)])).0));
    assert_eq!(changes(&mut pieces).await, ["data a v1 @0"]);
}

#[tokio::test]
async fn changes_that_came_while_nobody_asked_are_told_once_as_they_are_now() {
    let rig = rig();
    let mut pieces = rig.pieces();
    whole(&mut pieces).await;
    for version in 1..100 {
        rig.set(entries(&[("a", version), ("b", 1)]));
    }
    assert_eq!(changes(&mut pieces).await, ["data a v99 @0", "data b v1 @1"]);
}

#[tokio::test]
async fn a_large_snapshot_is_cut_by_number_and_by_size() {
    let rig = rig();
    let names: Vec<String> = (0..1_234).map(|n| format!("k{n}")).collect();
    let mut state = entries(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
    rig.set(state.clone());
    let (reset, words, sizes) = whole(&mut rig.pieces()).await;
    // The node, the entries, and TCP access.
    assert_eq!((reset, words.len(), sizes), (true, 1_236, vec![500, 500, 236, 0]));

    state.data.truncate(8);
    for entry in &mut state.data {
        entry.payload = Bytes::from(format!("\"{}\"", "x".repeat(700_000))).into();
    }
    rig.set(state);
    let (_, words, sizes) = whole(&mut rig.pieces()).await;
    assert_eq!(words.len(), 10);
    assert!(sizes.len() >= 4 && sizes.iter().all(|size| *size <= 3), "{sizes:?}");
}

#[tokio::test]
async fn a_receiver_that_is_slow_is_told_of_each_report_once_as_it_is_now() {
    let rig = rig();
    let mut pieces = rig.pieces();
    whole(&mut pieces).await;
    let names: Vec<String> = (0..1_500).map(|n| format!("k{n}")).collect();
    for _ in 0..2 {
        futures_util::future::join_all(names.iter().map(|name| rig.put(name))).await;
    }
    let (reset, words, sizes) = whole(&mut pieces).await;
    assert!(!reset && words.iter().all(|word| word.ends_with(" v2")), "{words:?}");
    assert_eq!((words.len(), sizes), (1_500, vec![500, 500, 500]));
    rig.put("k7").await;
    assert_eq!(changes(&mut pieces).await, ["report k7 v3"]);
}

#[tokio::test]
async fn after_a_commit_that_failed_and_is_durable_all_the_same_there_is_a_new_snapshot() {
    let rig = rig();
    rig.put("a").await;
    let mut pieces = rig.pieces();
    whole(&mut pieces).await;
    let faults = crate::storage::faults::at(&rig.folder.path().join("reports.redb"));
    let put = Put { key: "a".into(), content_type: "t".into(), payload: "2".into(), if_match: None };
    faults.fail_syncs_from(0, nix::libc::EIO);
    assert_eq!(rig.sources.reports.put(put).await, Err(reports::Refusal::StorageFailed));
    let (reset, words, _) = whole(&mut pieces).await;
    assert!(reset && words.contains(&"report a v2".to_owned()), "{words:?}");
    faults.heal();
    rig.put("a").await;
    assert_eq!(changes(&mut pieces).await, ["report a v3"]);
}

#[tokio::test]
async fn before_there_is_an_identity_the_snapshot_names_no_node_and_when_it_is_gone_all_starts_over() {
    let rig = rig();
    rig.identity.send_replace(None);
    let mut pieces = rig.pieces();
    assert_eq!(whole(&mut pieces).await.1, ["tcp 32"]);
    let identity = crate::reconcile::tests::identity();
    rig.identity.send_replace(Some(Arc::new(identity.clone())));
    assert_eq!(changes(&mut pieces).await, ["node n_a"]);
    rig.identity.send_replace(Some(Arc::new(Identity { node_id: "n_z".parse().unwrap(), ..identity })));
    assert_eq!(changes(&mut pieces).await, ["node n_z"]);
    rig.set(entries(&[("a", 1)]));
    changes(&mut pieces).await;
    rig.desired.send_replace(Arc::default());
    rig.identity.send_replace(None);
    let (reset, words, _) = whole(&mut pieces).await;
    assert_eq!((reset, words), (true, vec!["tcp 32".to_owned()]));
}

#[tokio::test]
async fn the_stream_ends_with_its_sources() {
    let rig = rig();
    let mut pieces = rig.pieces();
    whole(&mut pieces).await;
    drop(rig.desired);
    assert!(pieces.next().await.is_none());
}

/// RPCs of a service of the proto files, as on the wire.
fn rpcs(file: &str, service: &str) -> BTreeSet<String> {
    let text =
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto").join(file));
    let name = |line: &str| {
        line.trim().strip_prefix("rpc ").and_then(|rest| rest.split('(').next()).map(str::to_owned)
    };
    let rpcs: BTreeSet<_> =
        text.unwrap().lines().filter_map(name).map(|rpc| format!("/{service}/{rpc}")).collect();
    assert!(!rpcs.is_empty());
    rpcs
}

#[test]
fn both_tables_name_exactly_the_rpcs_of_their_service() {
    let node: Vec<&str> = RULES.iter().map(|rule| rule.rpc).collect();
    assert_eq!(node.len(), RULES.len());
    let named = |rules: Vec<&str>| rules.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(named(node), rpcs("plexd/node/v1/node_state.proto", "plexd.node.v1.NodeState"));
    let admin = crate::admin::RULES.iter().map(|rule| rule.rpc).collect();
    assert_eq!(named(admin), rpcs("plexd/admin/v1/admin.proto", "plexd.admin.v1.Admin"));
}

#[test]
fn only_the_sidecar_and_root_and_only_administrators_and_root_are_let_in() {
    let peer = |uid, gid, groups: &[u32]| PeerCredentials { uid, gid, pid: 1, groups: groups.to_vec() };
    let node = Gate::new(RULES, Sidecar { uid: 901 });
    let admin = Gate::new(crate::admin::RULES, crate::admin::Administrators { gid: 902 });
    for (peer, on_core, on_admin) in [
        (peer(0, 0, &[]), true, true),
        (peer(901, 901, &[]), true, false),
        (peer(1000, 902, &[]), false, true),
        (peer(1000, 1000, &[27, 902]), false, true),
        // A user whose id is the group's, and a group whose id is the user's.
        (peer(902, 1000, &[901]), false, false),
        (peer(1000, 1000, &[0]), false, false),
    ] {
        for rule in RULES {
            assert_eq!(node.allows(&peer, rule.rpc), on_core, "{peer:?} {}", rule.rpc);
        }
        for rule in crate::admin::RULES {
            assert_eq!(admin.allows(&peer, rule.rpc), on_admin, "{peer:?} {}", rule.rpc);
        }
        assert!(!node.allows(&peer, crate::admin::RULES[0].rpc) && !admin.allows(&peer, RULES[0].rpc));
    }
}

/// Serves the sources on a socket in their folder, for `sidecar` and root.
fn serve(rig: &Rig, sidecar: u32) -> NodeStateClient<Channel> {
    let config = ClientConfig { base: "https://127.0.0.1:1/".parse().unwrap(), ca_file: None, version: "1" };
    let client = Client::new(config).unwrap();
    let Sources { desired, identity, reports, token } = rig.sources.clone();
    let rules = SecretRules { access_group: 989, secrets_group: 990, over_tcp: true };
    let proofs = Proofs::new(&rig.folder.path().join("api.sock"), 100);
    let secrets = SecretReader::new(client, identity.clone(), rules, token, proofs);
    let auditor = Auditor::new(Arc::new(SystemClock), "a");
    let service = NodeStateServer::new(NodeStateService::new(desired, identity, reports, secrets, auditor));
    let path = rig.folder.path().join("core.sock");
    let owner = SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode: 0o660 };
    let listener = bind(&path, owner).unwrap();
    let server = Server::builder()
        .layer(Gate::new(RULES, Sidecar { uid: sidecar }))
        .add_service(service)
        .serve_with_incoming_shutdown(
            Incoming::new(listener).unwrap(),
            rig.shutdown.clone().cancelled_owned(),
        );
    tokio::spawn(server);
    NodeStateClient::new(connect(&path))
}

fn put_request(key: &str, if_match: Option<i64>) -> v1::ReportPut {
    v1::ReportPut { key: key.into(), content_type: "text/plain".into(), payload: "1".into(), if_match }
}

/// Sends one write, and returns the version it led to; 0 for a deletion.
async fn write_result(
    client: &mut NodeStateClient<Channel>,
    write: v1::report_write::Write,
) -> Result<i64, v1::ReportRefusal> {
    let message = v1::WriteReportsRequest { writes: vec![v1::ReportWrite { write: Some(write) }] };
    let messages = futures_util::stream::iter([message]);
    let mut answers = client.write_reports(messages).await.unwrap().into_inner();
    let mut answer = answers.message().await.unwrap().unwrap();
    assert!(answers.message().await.unwrap().is_none(), "all was asked, and answered");
    match answer.outcomes.pop().unwrap().outcome.unwrap() {
        v1::report_outcome::Outcome::Written(written) => Ok(written.version),
        v1::report_outcome::Outcome::Deleted(_) => Ok(0),
        v1::report_outcome::Outcome::Refusal(refusal) => Err(refusal.try_into().unwrap()),
    }
}

async fn put_result(
    client: &mut NodeStateClient<Channel>,
    request: v1::ReportPut,
) -> Result<i64, v1::ReportRefusal> {
    write_result(client, v1::report_write::Write::Put(request)).await
}

async fn delete_result(
    client: &mut NodeStateClient<Channel>,
    key: &str,
    if_match: Option<i64>,
) -> Result<(), v1::ReportRefusal> {
    let request = v1::ReportDelete { key: key.into(), if_match };
    write_result(client, v1::report_write::Write::Delete(request)).await.map(drop)
}

#[tokio::test]
async fn reports_are_written_and_deleted_over_the_socket_by_their_versions() {
    use v1::ReportRefusal::{Invalid, NotFound, VersionConflict};
    let rig = rig();
    let mut client = serve(&rig, nix::unistd::geteuid().as_raw());
    for (request, result) in [
        (put_request("a", Some(1)), Err(VersionConflict)),
        (put_request("a", Some(0)), Ok(1)),
        (put_request("a", Some(0)), Err(VersionConflict)),
        (put_request("a", Some(1)), Ok(2)),
        (put_request("a", None), Ok(3)),
        (put_request("", None), Err(Invalid)),
        (put_request("a\nb", None), Err(Invalid)),
        (v1::ReportPut { payload: "{".into(), ..put_request("a", None) }, Err(Invalid)),
        (v1::ReportPut { content_type: String::new(), ..put_request("a", None) }, Err(Invalid)),
    ] {
        assert_eq!(put_result(&mut client, request.clone()).await, result, "{request:?}");
    }
    assert_eq!(delete_result(&mut client, "a", Some(2)).await, Err(VersionConflict));
    assert_eq!(delete_result(&mut client, "a", Some(3)).await, Ok(()));
    assert_eq!(delete_result(&mut client, "a", None).await, Err(NotFound));
    assert_eq!(put_result(&mut client, put_request("a", Some(0))).await, Ok(4), "versions go on");
}

#[tokio::test]
async fn a_node_without_identity_refuses_reports_and_secrets_but_streams() {
    let rig = rig();
    rig.identity.send_replace(None);
    let mut client = serve(&rig, nix::unistd::geteuid().as_raw());
    let refused = Err(v1::ReportRefusal::NotRegistered);
    assert_eq!(put_result(&mut client, put_request("a", None)).await, refused);
    assert_eq!(delete_result(&mut client, "a", None).await, Err(v1::ReportRefusal::NotRegistered));
    let caller = Some(v1::secret_read::Caller::Tcp(v1::TcpCaller { token: "t".into() }));
    let read = v1::SecretRead { id: 7, key: "db".into(), caller };
    let message = v1::ReadSecretsRequest { reads: vec![read], ..Default::default() };
    let answers = client.read_secrets(futures_util::stream::iter([message])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap().answers.pop().unwrap();
    let v1::secret_answer::Result::Refusal(refusal) = answer.result.unwrap() else { panic!("a secret") };
    assert_eq!(refusal, i32::from(v1::SecretRefusal::NotRegistered));
    let mut stream = client.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().reset);
}

#[tokio::test]
async fn streams_are_few_and_a_closed_one_makes_room() {
    let rig = rig();
    let mut client = serve(&rig, nix::unistd::geteuid().as_raw());
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = client.watch(v1::WatchRequest {}).await.unwrap().into_inner();
        while !stream.message().await.unwrap().unwrap().complete {}
        streams.push(stream);
    }
    assert_eq!(client.watch(v1::WatchRequest {}).await.unwrap_err().code(), Code::ResourceExhausted);
    streams.pop();
    crate::control::dev::until("room", async || client.watch(v1::WatchRequest {}).await.ok()).await;
}

#[tokio::test]
async fn root_passes_although_the_sidecar_is_somebody_else() {
    assert!(nix::unistd::geteuid().is_root(), "needs root");
    let rig = rig();
    let mut client = serve(&rig, 64_999);
    assert_eq!(put_result(&mut client, put_request("a", None)).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_entries_change_on_disk_meanwhile_begins_anew() {
    let mut rig = rig();
    let path = rig.folder.path().join("state.redb");
    let (state, keeper) = State::open(&path, Arc::new(SystemClock), Board::default(), None).unwrap();
    let keeper = tokio::spawn(keeper.run(rig.shutdown.clone()));
    rig.sources.desired = state.desired();
    let pull = async |version| {
        let long = |n| DataEntry {
            payload: Bytes::from(format!("\"{version}{}\"", "x".repeat(500))).into(),
            ..data(&format!("k{n:04}"), version)
        };
        let full = FullState { data: (0..1_100).map(long).collect(), ..FullState::default() };
        let ticket = state.begin_pull().await.unwrap();
        state.pulled(ticket, full).await.unwrap();
    };
    pull(1).await;
    let first = Arc::clone(state.desired().borrow().data.get("k0000").unwrap());
    // Until only the disk has them; time does not pass by itself while the keeper's thread runs.
    while first.payload.in_memory().is_some() {
        tokio::time::advance(Duration::from_secs(1)).await;
        state.begin_pull().await.unwrap();
    }
    let mut pieces = rig.pieces();
    let piece = pieces.next().await.unwrap().unwrap();
    assert!(piece.reset && piece.changes.len() == 500);
    let Some(Kind::Data(entry)) = &piece.changes[1].change else { panic!("{:?}", piece.changes[1]) };
    assert!(entry.payload.starts_with(b"\"1x") && entry.payload.len() == 503);
    pull(2).await;
    let (reset, words, _) = whole(&mut pieces).await;
    assert!(reset && words.len() == 1_102 && words[1..1_101].iter().all(|word| word.contains(" v2 ")));
    rig.shutdown.cancel();
    keeper.await.unwrap().unwrap();
}
