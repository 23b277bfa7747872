//! The real plexd-ctl against a plexd-core that is only a gRPC service: arguments, exit codes, what is printed where,
//! and what becomes of the token.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use plexd_proto::admin::v1::admin_server::{Admin, AdminServer};
use plexd_proto::admin::v1::{
    DeregisterRequest, DeregisterResponse, Enrolment, Event, EventOutcome, ExplainPolicyRequest,
    ExplainPolicyResponse, ExportPolicyRequest, ExportPolicyResponse, FailedExpectation, Farewell, FlowEnd,
    Health, Identity, JoinRequest, JoinResponse, ListPeersRequest, ListPeersResponse, ListPoliciesRequest,
    ListPoliciesResponse, Peer, PingEcho, PingEnd, PingRequest, PingResponse, PingStart, Policy, PolicyRule,
    PolicyState, StatusRequest, StatusResponse, TestPolicyRequest, TestPolicyResponse, Verdict,
    WatchEventsRequest, WatchEventsResponse,
};
use plexd_proto::admin::v1::{EchoOutcome, ping_response::Part};
use plexd_proto::transport::{Incoming, SocketOwner, bind};
use tempfile::TempDir;
use tonic::codegen::tokio_stream::{self, Stream, StreamExt};
use tonic::{Request, Response, Status};

/// A plexd-core that answers, or refuses everything, or only to enrol.
#[derive(Clone)]
struct FakeCore {
    refusal: Option<Status>,
    enrolled: bool,
    tokens: mpsc::Sender<String>,
}

impl FakeCore {
    fn answer<T>(&self, response: T) -> Result<Response<T>, Status> {
        self.refusal.clone().map_or_else(|| Ok(Response::new(response)), Err)
    }
}

#[tonic::async_trait]
impl Admin for FakeCore {
    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let mut identity =
            Identity { node_id: "n-a1".into(), mesh_ip: "10.100.0.1".into(), ..Identity::default() };
        identity.set_enrolment(Enrolment::Enrolled);
        let mut status = StatusResponse { version: "9.9.9".into(), ..StatusResponse::default() };
        status.set_health(Health::Healthy);
        status.identity = Some(identity);
        self.answer(status)
    }

    async fn list_peers(
        &self,
        _request: Request<ListPeersRequest>,
    ) -> Result<Response<ListPeersResponse>, Status> {
        // More than the 4 MiB that a gRPC client takes unless told otherwise.
        let peers = (0..20_000).map(|n| Peer {
            id: format!("n-{n:05}"),
            public_key: "x".repeat(220),
            ..Peer::default()
        });
        self.answer(ListPeersResponse { peers: peers.collect(), backend: "kernel".into() })
    }

    async fn list_policies(
        &self,
        _request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let rule = PolicyRule { src: "*".into(), action: "allow".into(), ..PolicyRule::default() };
        let policies = vec![Policy { id: "web".into(), rules: vec![rule] }];
        let state = PolicyState { enabled: true, ..PolicyState::default() };
        let (denied_packets, invalid_packets) = (Some(7), Some(0));
        self.answer(ListPoliciesResponse { state: Some(state), policies, denied_packets, invalid_packets })
    }

    /// Denies everything by default, and shows what was asked in the addresses.
    async fn explain_policy(
        &self,
        request: Request<ExplainPolicyRequest>,
    ) -> Result<Response<ExplainPolicyResponse>, Status> {
        let flow = request.into_inner().flow.unwrap();
        let end = |address| Some(FlowEnd { address, node: String::new() });
        let mut response = ExplainPolicyResponse {
            source: end(flow.source),
            destination: end(format!("{} {} {}", flow.destination, flow.protocol, flow.port)),
            ..ExplainPolicyResponse::default()
        };
        response.set_verdict(Verdict::Deny);
        self.answer(response)
    }

    /// Denies everything.
    async fn test_policy(
        &self,
        request: Request<TestPolicyRequest>,
    ) -> Result<Response<TestPolicyResponse>, Status> {
        let expectations = request.into_inner().expectations;
        let failed = (0..).zip(&expectations).filter(|(_, expected)| expected.verdict() != Verdict::Deny);
        let failed = failed.map(|(index, _)| FailedExpectation {
            index,
            verdict: Verdict::Deny.into(),
            ..FailedExpectation::default()
        });
        let checked = u32::try_from(expectations.len()).unwrap();
        self.answer(TestPolicyResponse { checked, failed: failed.collect(), state: None })
    }

    type ExportPolicyStream = Pin<Box<dyn Stream<Item = Result<ExportPolicyResponse, Status>> + Send>>;

    /// Two pieces; of the node that is enrolled already the text breaks off.
    async fn export_policy(
        &self,
        _request: Request<ExportPolicyRequest>,
    ) -> Result<Response<Self::ExportPolicyStream>, Status> {
        let piece = |text: String| Ok(ExportPolicyResponse { text });
        let mut pieces = vec![piece("# a table\n".to_owned()), piece("# more\n".repeat(10))];
        if self.enrolled {
            pieces.push(Err(Status::unavailable("plexd-core is stopping")));
        }
        self.answer(Box::pin(tokio_stream::iter(pieces)))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.tokens.send(request.into_inner().token).unwrap();
        if self.enrolled {
            return Err(Status::already_exists("this node is already enrolled as n-a1"));
        }
        self.answer(JoinResponse { node_id: "n-a1".into(), mesh_ip: "10.100.0.1".into() })
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        let DeregisterRequest { purge, force } = request.into_inner();
        let remains = if purge && force { vec!["cannot remove /x: no".to_owned()] } else { Vec::new() };
        let farewell = if force { Farewell::NotAsked } else { Farewell::Confirmed };
        self.answer(DeregisterResponse { node_id: "n-a1".into(), farewell: farewell.into(), remains })
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<WatchEventsResponse, Status>> + Send>>;

    /// Of the last events, as many as asked for; with `follow`, nothing more ever comes.
    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let WatchEventsRequest { recent, follow } = request.into_inner();
        let events = tokio_stream::iter((0..recent).map(|n| {
            let mut event = Event { event_type: "peer_added".into(), ..Event::default() };
            event.event_id = format!("evt-{n}");
            event.set_outcome(EventOutcome::Applied);
            Ok(WatchEventsResponse { event: Some(event), missed: 0 })
        }));
        self.answer(if follow { Box::pin(events.chain(tokio_stream::pending())) } else { Box::pin(events) })
    }

    type PingStream = Pin<Box<dyn Stream<Item = Result<PingResponse, Status>> + Send>>;

    /// `n-b` answers each echo, `n-slow` the first one and then nothing ever comes, others answer none.
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<Self::PingStream>, Status> {
        let PingRequest { peer, count, interval_ms } = request.into_inner();
        let answers = peer == "n-b" || peer == "n-slow";
        let interface = format!("every{interval_ms}");
        let start = PingStart { peer_id: peer.clone(), interface, ..PingStart::default() };
        let mut parts = vec![Part::Start(start)];
        parts.extend((1..=count).map(|sequence| {
            let mut echo = PingEcho { sequence, rtt_us: answers.then_some(1500), ..PingEcho::default() };
            echo.set_outcome(if answers { EchoOutcome::Answered } else { EchoOutcome::Timeout });
            Part::Echo(echo)
        }));
        let reason = if answers { String::new() } else { "the last handshake was 200 s ago".to_owned() };
        parts.push(Part::End(PingEnd { reason }));
        let slow = peer == "n-slow";
        parts.truncate(if slow { 2 } else { parts.len() });
        let parts = tokio_stream::iter(parts).map(|part| Ok(PingResponse { part: Some(part) }));
        self.answer(if slow { Box::pin(parts.chain(tokio_stream::pending())) } else { Box::pin(parts) })
    }
}

/// A fake core that serves until dropped, and a folder of its own.
struct Core {
    folder: TempDir,
    tokens: mpsc::Receiver<String>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: Option<std::thread::JoinHandle<()>>,
}

impl Core {
    fn start(refusal: Option<Status>) -> Self {
        Self::serve(refusal, false)
    }

    /// A core whose node is enrolled already.
    fn start_enrolled() -> Self {
        Self::serve(None, true)
    }

    fn serve(refusal: Option<Status>, enrolled: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let owner = SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode: 0o660 };
        let listener = bind(&folder.path().join("admin.sock"), owner).unwrap();
        let (sender, tokens) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let service = AdminServer::new(FakeCore { refusal, enrolled, tokens: sender });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = std::thread::spawn(move || {
            runtime.block_on(async {
                let incoming = Incoming::new(listener).unwrap();
                let serve = tonic::transport::Server::builder().add_service(service);
                tokio::select! {
                    served = serve.serve_with_incoming(incoming) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { folder, tokens, stop: Some(stop), server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn ctl(&self, arguments: &[&str]) -> Answer {
        Answer::of(&mut ctl(&self.socket(), arguments))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        drop(self.stop.take());
        let server = self.server.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(server, Some(Ok(()))), "the fake core failed");
    }
}

fn ctl(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plexd-ctl"));
    command.args(arguments).arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

/// What a run of plexd-ctl left.
#[derive(Debug)]
struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn of(command: &mut Command) -> Self {
        Self::from(command.output().unwrap())
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Checks a failure: the code, nothing on stdout, and exactly one line on stderr, which is returned.
    fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "");
        let line = self.stderr.strip_suffix('\n').unwrap();
        assert!(!line.contains('\n'), "{line}");
        line.strip_prefix("plexd-ctl: ").unwrap()
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

#[test]
fn every_command_answers_as_table_and_as_json() {
    let core = Core::start(None);
    assert!(core.ctl(&["status"]).stdout.contains("node           n-a1, enrolled\n"));
    assert_eq!(core.ctl(&["status", "-o", "json"]).json()["identity"]["node_id"], "n-a1");
    assert_eq!(core.ctl(&["-o", "json", "peers"]).json()["peers"][19_999]["id"], "n-19999");
    assert_eq!(core.ctl(&["peers"]).stdout.lines().count(), 20_001);
    assert_eq!(core.ctl(&["policies", "--output=json"]).json()["denied_packets"], 7);
    assert!(core.ctl(&["policies", "--no-color"]).stdout.ends_with("7 packets denied; 0 packets invalid\n"));
}

#[test]
fn wrong_usage_is_code_2_and_help_is_not() {
    let core = Core::start(None);
    assert_eq!(core.ctl(&["stauts"]).code, 2);
    assert_eq!(core.ctl(&["status", "-o", "yaml"]).code, 2);
    let help = core.ctl(&["--help"]);
    assert!(help.code == 0 && help.stdout.contains("4  plexd-core cannot be reached"), "{help:?}");
}

#[test]
fn a_core_that_does_not_run_is_code_4_with_the_way_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let start = "plexd-core is not running; start it with: systemctl start plexd-core";
    let expected = format!("cannot reach plexd-core at {}: no such file: {start}", socket.display());
    assert_eq!(Answer::of(&mut ctl(&socket, &["status"])).error(4), expected);

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let expected = format!("cannot reach plexd-core at {}: connection refused: {start}", socket.display());
    assert_eq!(Answer::of(&mut ctl(&socket, &["peers"])).error(4), expected);
}

#[test]
fn a_core_that_accepts_and_never_answers_is_code_4_after_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let answer = Answer::of(&mut ctl(&socket, &["status"]));
    assert!(answer.error(4).contains("no answer within 5 s"), "{answer:?}");
}

#[test]
fn root_only_a_user_outside_the_group_is_told_its_groups_and_the_way_in() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root, to become somebody else");
    let core = Core::start(None);
    // A path that everybody may run: the build folder may be closed to others.
    let program = core.folder.path().join("plexd-ctl");
    fs::copy(env!("CARGO_BIN_EXE_plexd-ctl"), &program).unwrap();
    // Group 65534 is `nogroup` on Debian.
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.arg(program).arg("status").arg("--socket").arg(core.socket());
    let expected = format!(
        "cannot reach plexd-core at {}: permission denied. You are in group nogroup; join group plexd-admin or use \
         sudo.",
        core.socket().display()
    );
    assert_eq!(Answer::of(&mut command).error(5), expected);
}

#[test]
fn what_core_refuses_is_code_5_and_what_needs_enrolment_code_3() {
    let core = Core::start(Some(Status::permission_denied("this caller may not make this call")));
    let answer = core.ctl(&["status"]);
    assert!(
        answer.error(5).starts_with("plexd-core refuses: this caller may not make this call. You are in"),
        "{answer:?}"
    );
    let core = Core::start(Some(Status::failed_precondition("not enrolled; enrol with: plexd-ctl join")));
    assert_eq!(core.ctl(&["peers"]).error(3), "not enrolled; enrol with: plexd-ctl join");
    let core = Core::start(Some(Status::unavailable("the control plane does not answer\x1b[2J\nat all")));
    let answer = core.ctl(&["join", "--token-file", "/dev/null"]);
    assert_eq!(answer.error(1), "the token is empty; get one from your control plane");
    assert_eq!(
        core.ctl(&["policies"]).error(1),
        "plexd-core: the control plane does not answer\\u{1b}[2J at all"
    );
}

#[test]
fn join_hands_over_the_token_of_a_file_and_deletes_it_after() {
    let core = Core::start(None);
    let file = core.folder.path().join("token");
    fs::write(&file, "plx_enroll_1\n").unwrap();
    let answer = core.ctl(&["join", "--token-file", file.to_str().unwrap()]);
    assert_eq!((answer.code, answer.stdout.as_str()), (0, "enrolled as n-a1, mesh IP 10.100.0.1\n"));
    assert_eq!(core.tokens.recv().unwrap(), "plx_enroll_1");
    assert!(!file.exists());
}

#[test]
fn join_keeps_the_token_file_when_enrolment_fails() {
    let core = Core::start(Some(Status::internal("the control plane refuses the token; get a new one")));
    let file = core.folder.path().join("token");
    fs::write(&file, "plx_enroll_1\n").unwrap();
    let answer = core.ctl(&["join", "--token-file", file.to_str().unwrap()]);
    assert_eq!(answer.error(1), "plexd-core: the control plane refuses the token; get a new one");
    assert_eq!(fs::read_to_string(file).unwrap(), "plx_enroll_1\n");
}

#[test]
fn join_deletes_the_token_file_of_a_node_that_is_enrolled_already() {
    let core = Core::start_enrolled();
    let file = core.folder.path().join("token");
    let arguments = ["join", "--token-file", file.to_str().unwrap()];
    fs::write(&file, "plx_enroll_1\n").unwrap();
    let answer = core.ctl(&arguments);
    let expected = "already enrolled as n-a1, mesh IP 10.100.0.1; the token was not used now\n";
    assert_eq!((answer.code, answer.stdout.as_str(), answer.stderr.as_str()), (0, expected, ""));
    assert!(!file.exists());
    fs::write(&file, "plx_enroll_1\n").unwrap();
    let json = core.ctl(&[&arguments[..], &["-o", "json"]].concat()).json();
    assert_eq!((&json["node_id"], &json["already_enrolled"]), (&"n-a1".into(), &true.into()));
    assert!(!file.exists());
    // Without a file there is nothing to clear away, and the person asking learns that nothing was done.
    let mut child = ctl(&core.socket(), &["join", "-"]);
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"plx_enroll_1").unwrap();
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_eq!(answer.error(1), "plexd-core: this node is already enrolled as n-a1");
}

#[test]
fn join_deletes_the_token_file_also_where_nothing_can_be_printed() {
    let core = Core::start(None);
    let file = core.folder.path().join("token");
    fs::write(&file, "plx_enroll_1\n").unwrap();
    let mut command = ctl(&core.socket(), &["join", "--token-file", file.to_str().unwrap()]);
    command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap()).stderr(Stdio::piped());
    let answer = Answer::from(command.spawn().unwrap().wait_with_output().unwrap());
    assert!(answer.error(1).starts_with("cannot write to standard output: "), "{answer:?}");
    assert!(!file.exists());
}

#[test]
fn join_reads_standard_input_that_is_no_terminal() {
    let core = Core::start(None);
    for arguments in [&["join"][..], &["join", "-"], &["join", "--token-file", "-", "-o", "json"]] {
        let mut command = ctl(&core.socket(), arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"plx_enroll_2\n").unwrap();
        let answer = Answer::from(child.wait_with_output().unwrap());
        assert_eq!(answer.code, 0, "{answer:?}");
        assert!(answer.stdout.contains("n-a1") && !answer.stdout.contains("plx_enroll"), "{answer:?}");
        assert_eq!(core.tokens.recv().unwrap(), "plx_enroll_2");
    }
}

#[test]
fn join_refuses_a_token_among_the_arguments_without_showing_it() {
    let core = Core::start(None);
    let answer = core.ctl(&["join", "plx_enroll_3"]);
    assert!(answer.error(2).contains("--token-file FILE"), "{answer:?}");
    assert!(!answer.stderr.contains("plx_enroll_3"));
    assert!(core.tokens.try_recv().is_err());
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let core = Core::start(None);
    let mut child =
        ctl(&core.socket(), &["peers"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
}

#[test]
fn deregister_says_what_was_done_and_fails_if_something_is_left() {
    let core = Core::start(None);
    let done = "n-a1 is deregistered; to enrol again: plexd-ctl join\n";
    let answer = core.ctl(&["deregister"]);
    assert_eq!((answer.code, answer.stdout.as_str(), answer.stderr.as_str()), (0, done, ""));
    let json = core.ctl(&["deregister", "--purge", "--json"]).json();
    let expected =
        serde_json::json!({ "node_id": "n-a1", "control_plane": "confirmed", "purged": true, "remains": [] });
    assert_eq!(json, expected);
    let answer = core.ctl(&["deregister", "--purge", "--force"]);
    assert_eq!(answer.code, 1);
    assert!(answer.stdout.contains("the control plane still lists it"), "{answer:?}");
    assert!(answer.stderr.contains("not everything could be removed: cannot remove /x: no"), "{answer:?}");

    let core = Core::start(Some(Status::failed_precondition("this node is not enrolled")));
    assert_eq!(core.ctl(&["deregister"]).error(3), "this node is not enrolled");
    let core = Core::start(Some(Status::permission_denied("this caller may not make this call")));
    assert!(core.ctl(&["deregister"]).error(5).starts_with("plexd-core refuses: this caller may not"));
}

#[test]
fn events_are_lines_and_end_unless_they_are_followed() {
    let core = Core::start(None);
    let answer = core.ctl(&["events", "-n", "2"]);
    assert_eq!((answer.code, answer.stdout.lines().count()), (0, 3), "{answer:?}");
    assert!(answer.stdout.starts_with("RECEIVED ") && answer.stdout.ends_with("evt-1\n"), "{answer:?}");
    let answer = core.ctl(&["events", "--json"]);
    let ids: Vec<serde_json::Value> = answer
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event_id"].clone())
        .collect();
    assert_eq!((ids.len(), &ids[49]), (50, &"evt-49".into()));
    assert_eq!(core.ctl(&["events", "-n", "0", "-o", "json"]).stdout, "");

    let mut command = ctl(&core.socket(), &["events", "--follow", "-n", "1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("RECEIVED"));
    assert!(lines.next().unwrap().unwrap().ends_with("evt-0"), "shown at once, not when the pipe is full");
    assert_eq!(child.try_wait().unwrap(), None, "it waits for more");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_reader_of_events_that_leaves_early_is_no_failure() {
    let core = Core::start(None);
    let mut command = ctl(&core.socket(), &["events", "-n", "100000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
}

#[test]
fn a_ping_is_0_with_an_answer_and_1_with_none_and_says_why() {
    let core = Core::start(None);
    let answer = core.ctl(&["ping", "n-b", "-c", "2", "-i", "0.25"]);
    let expected = "echoes to n-b () through every250\n1: 1.500 ms\n2: 1.500 ms\n\
                    2 echoes sent, 2 answered, 0% lost; min/avg/max 1.500/1.500/1.500 ms\n";
    assert_eq!((answer.code, answer.stdout.as_str(), answer.stderr.as_str()), (0, expected, ""));
    let json = core.ctl(&["ping", "n-b", "--json"]).json();
    assert_eq!(
        (&json["peer"], &json["received"], &json["rtt_us"]["avg"]),
        (&"n-b".into(), &4.into(), &1500.into())
    );

    let answer = core.ctl(&["ping", "n-c", "-c", "1"]);
    assert_eq!(answer.code, 1);
    assert!(answer.stdout.ends_with("1: timeout\n1 echo sent, 0 answered, 100% lost\n"), "{answer:?}");
    assert_eq!(answer.stderr, "plexd-ctl: n-c does not answer: the last handshake was 200 s ago\n");
    let answer = core.ctl(&["ping", "n-c", "-c", "1", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((answer.code, &json["reason"]), (1, &"the last handshake was 200 s ago".into()));

    let core = Core::start(Some(Status::not_found("there is no peer n-d; for their ids: plexd-ctl peers")));
    assert!(core.ctl(&["ping", "n-d"]).error(1).contains("there is no peer n-d"));
    let core = Core::start(Some(Status::failed_precondition("this node is not enrolled")));
    assert_eq!(core.ctl(&["ping", "n-b"]).error(3), "this node is not enrolled");
    assert_eq!(core.ctl(&["ping", "n-b", "-c", "101"]).code, 2);
}

#[test]
fn an_explanation_is_0_whatever_the_answer_is() {
    let core = Core::start(None);
    let explain = |more: &[&str]| {
        core.ctl(&[&["policies", "explain", "--src", "n-a", "--dst", "10.0.0.2"], more].concat())
    };
    let answer = explain(&["--proto", "tcp", "--port", "443"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.contains("n-a (n-a) -> 10.0.0.2 tcp 443, tcp port 443;"), "{answer:?}");
    assert!(answer.stdout.contains("\ndeny: no rule matches"), "{answer:?}");
    let json = explain(&["--json"]).json();
    assert_eq!((&json["verdict"], &json["protocol"]), (&"deny".into(), &serde_json::Value::Null));
    let wrong = "--port needs a protocol that has ports: --proto tcp or --proto udp";
    assert_eq!(explain(&["--proto", "icmp", "--port", "1"]).error(2), wrong);
    assert_eq!(explain(&["--port", "1"]).code, 2);
    let core = Core::start(Some(Status::not_found("there is no node n-a now")));
    let answer = core.ctl(&["policies", "explain", "--src", "n-a", "--dst", "n-b"]);
    assert_eq!(answer.error(1), "plexd-core: there is no node n-a now");
}

#[test]
fn expectations_are_0_if_all_hold_1_if_some_fail_and_2_if_the_file_is_wrong() {
    let core = Core::start(None);
    let file = core.folder.path().join("expectations");
    let path = file.to_str().unwrap();
    let test = |text: &str| {
        fs::write(&file, text).unwrap();
        core.ctl(&["policies", "test", path])
    };
    let answer = test("# nothing passes\ndeny n-a -> n-b\ndeny tcp n-a -> n-b:22\n");
    assert_eq!((answer.code, answer.stdout.as_str()), (0, "2 expectations, all hold\n"), "{answer:?}");
    let answer = test("deny n-a -> n-b\n\nallow tcp n-a -> n-b:22  # ssh\n");
    let failed = "line 3: allow tcp n-a -> n-b:22: it is denied, by the default\n2 expectations, 1 failed\n";
    assert_eq!((answer.code, answer.stdout.as_str()), (1, failed), "{answer:?}");
    assert_eq!(answer.stderr, "plexd-ctl: 1 of 2 expectations failed\n");
    let answer = test("deny n-a -> n-b\nallow tcp n-a n-b\n");
    assert!(answer.error(2).starts_with(&format!("{path}: line 2: ")), "{answer:?}");
    let answer = test("# all of it is a comment\n");
    assert!(answer.error(2).contains("there is no expectation in it"), "{answer:?}");
    let answer = core.ctl(&["policies", "test", "/nowhere"]);
    assert!(answer.error(2).starts_with("/nowhere: No such file"), "{answer:?}");

    let mut command = ctl(&core.socket(), &["policies", "test", "-", "--json"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"allow n-a -> n-b").unwrap();
    let answer = Answer::from(child.wait_with_output().unwrap());
    let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((answer.code, &json["failures"][0]["line"]), (1, &1.into()), "{answer:?}");
}

#[test]
fn an_export_is_the_whole_text_or_a_failure() {
    let core = Core::start(None);
    let text = format!("# a table\n{}", "# more\n".repeat(10));
    assert_eq!(core.ctl(&["policies", "export"]).stdout, text);
    assert_eq!(core.ctl(&["policies", "export", "--json"]).json()["text"], text);
    let core = Core::start_enrolled();
    let answer = core.ctl(&["policies", "export"]);
    assert_eq!((answer.code, answer.stderr.as_str()), (1, "plexd-ctl: plexd-core: plexd-core is stopping\n"));
    assert_eq!(core.ctl(&["policies", "export", "--json"]).error(1), "plexd-core: plexd-core is stopping");
}

#[test]
fn an_interrupted_ping_ends_with_its_summary() {
    let core = Core::start(None);
    let mut command = ctl(&core.socket(), &["ping", "n-slow"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("echoes to n-slow"));
    assert_eq!(lines.next().unwrap().unwrap(), "1: 1.500 ms", "shown at once");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert!(lines.next().unwrap().unwrap().starts_with("1 echo sent, 1 answered, 0% lost"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
