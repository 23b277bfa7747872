//! Calls plexd-core over `admin.sock`, each call with a deadline, and turns what can go wrong into a [`Failure`] that
//! says the way out. Never retries: the person asking is there.

use std::collections::BTreeSet;
use std::error::Error;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgroups};
use plexd_proto::admin::v1::admin_client::AdminClient;
use plexd_proto::admin::v1::{
    DeregisterRequest, DeregisterResponse, ExplainPolicyRequest, ExplainPolicyResponse, ExportPolicyRequest,
    ExportPolicyResponse, JoinRequest, JoinResponse, ListPeersRequest, ListPeersResponse,
    ListPoliciesRequest, ListPoliciesResponse, PingRequest, PingResponse, StatusRequest, StatusResponse,
    TestPolicyRequest, TestPolicyResponse, WatchEventsRequest, WatchEventsResponse, ping_response,
};
use plexd_proto::transport;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// How long a call that waits for nothing may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long thousands of expectations, or a table of as many entries, may take.
const LONG_ANSWER: Duration = Duration::from_secs(30);

/// How long enrolment may take: connecting (10 s), registering (30 s) and a few retries.
const ENROLMENT: Duration = Duration::from_secs(90);

/// How long deregistration may take, after an enrolment that is under way.
const DEREGISTRATION: Duration = Duration::from_secs(90);

/// Largest answer, in bytes; 10,000 peers are about 2 MiB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The group whose members may administer plexd-core.
const ADMINISTRATORS: &str = "plexd-admin";

/// A client of plexd-core. Connects with the first call.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    admin: AdminClient<Channel>,
}

impl Client {
    /// Creates a client of the plexd-core that serves `socket`; inside a tokio runtime.
    pub(crate) fn new(socket: &Path) -> Self {
        let admin = AdminClient::new(transport::connect(socket)).max_decoding_message_size(MAX_ANSWER);
        Self { socket: socket.into(), admin }
    }

    /// Asks for the status.
    pub(crate) async fn status(mut self) -> Result<StatusResponse, Failure> {
        answer(&self.socket, ANSWER, self.admin.status(StatusRequest {})).await
    }

    /// Asks for the peers.
    pub(crate) async fn peers(mut self) -> Result<ListPeersResponse, Failure> {
        answer(&self.socket, ANSWER, self.admin.list_peers(ListPeersRequest {})).await
    }

    /// Asks for the policies.
    pub(crate) async fn policies(mut self) -> Result<ListPoliciesResponse, Failure> {
        answer(&self.socket, ANSWER, self.admin.list_policies(ListPoliciesRequest {})).await
    }

    /// Asks what policy says of a connection.
    pub(crate) async fn explain(
        mut self,
        request: ExplainPolicyRequest,
    ) -> Result<ExplainPolicyResponse, Failure> {
        answer(&self.socket, ANSWER, self.admin.explain_policy(request)).await
    }

    /// Asks whether policy says what is expected.
    pub(crate) async fn test(mut self, request: TestPolicyRequest) -> Result<TestPolicyResponse, Failure> {
        answer(&self.socket, LONG_ANSWER, self.admin.test_policy(request)).await
    }

    /// Asks for the table as text.
    pub(crate) async fn export(mut self) -> Result<Pieces, Failure> {
        let stream = answer(&self.socket, ANSWER, self.admin.export_policy(ExportPolicyRequest {})).await?;
        Ok(Pieces { socket: self.socket, stream })
    }

    /// Enrols the node.
    pub(crate) async fn join(mut self, token: &Zeroizing<String>) -> Result<JoinResponse, Failure> {
        let request = JoinRequest { token: token.as_str().into() };
        answer(&self.socket, ENROLMENT, self.admin.join(request)).await
    }

    /// Gives the node's identity up.
    pub(crate) async fn deregister(
        mut self,
        request: DeregisterRequest,
    ) -> Result<DeregisterResponse, Failure> {
        answer(&self.socket, DEREGISTRATION, self.admin.deregister(request)).await
    }

    /// Asks for events.
    pub(crate) async fn events(mut self, request: WatchEventsRequest) -> Result<Events, Failure> {
        let stream = answer(&self.socket, ANSWER, self.admin.watch_events(request)).await?;
        Ok(Events { socket: self.socket, stream })
    }

    /// Has echoes sent, one every `interval`.
    pub(crate) async fn ping(mut self, request: PingRequest, interval: Duration) -> Result<Echoes, Failure> {
        let stream = answer(&self.socket, ANSWER, self.admin.ping(request)).await?;
        // Core waits 2 s for an answer, and sends the next echo after that.
        Ok(Echoes { socket: self.socket, stream, deadline: interval + ANSWER })
    }
}

/// A text, piece by piece.
#[derive(Debug)]
pub(crate) struct Pieces {
    socket: PathBuf,
    stream: Streaming<ExportPolicyResponse>,
}

impl Pieces {
    /// Returns the next piece; `None` when there is no more.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, Failure> {
        match tokio::time::timeout(LONG_ANSWER, self.stream.message()).await {
            Ok(Ok(response)) => Ok(response.map(|response| response.text)),
            Ok(Err(status)) => Err(failure(&self.socket, &status)),
            Err(_) => Err(silent(&self.socket, LONG_ANSWER)),
        }
    }
}

/// Events as they come.
#[derive(Debug)]
pub(crate) struct Events {
    socket: PathBuf,
    stream: Streaming<WatchEventsResponse>,
}

impl Events {
    /// Returns the next event, as late as it comes; `None` when there are no more.
    pub(crate) async fn next(&mut self) -> Result<Option<WatchEventsResponse>, Failure> {
        self.stream.message().await.map_err(|status| failure(&self.socket, &status))
    }
}

/// What becomes of echoes, as it is known.
#[derive(Debug)]
pub(crate) struct Echoes {
    socket: PathBuf,
    stream: Streaming<PingResponse>,
    deadline: Duration,
}

impl Echoes {
    /// Returns what comes next; `None` when there is no more.
    pub(crate) async fn next(&mut self) -> Result<Option<ping_response::Part>, Failure> {
        match tokio::time::timeout(self.deadline, self.stream.message()).await {
            Ok(Ok(response)) => Ok(response.and_then(|response| response.part)),
            Ok(Err(status)) => Err(failure(&self.socket, &status)),
            Err(_) => Err(silent(&self.socket, self.deadline)),
        }
    }
}

async fn answer<T>(
    socket: &Path,
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failure(socket, &status)),
        Err(_) => Err(silent(socket, deadline)),
    }
}

fn silent(socket: &Path, deadline: Duration) -> Failure {
    let seconds = deadline.as_secs();
    let reason = format!("no answer within {seconds} s; see what it is doing with: journalctl -u plexd-core");
    Failure::Unreachable { socket: socket.into(), reason }
}

fn failure(socket: &Path, status: &Status) -> Failure {
    if let Some(error) = io_error(status) {
        return connection_failure(socket, error);
    }
    let message = status.message().trim_end_matches('.').to_owned();
    match status.code() {
        Code::PermissionDenied => Failure::Refused { message, advice: advice(&Caller::current()) },
        Code::FailedPrecondition => Failure::NotEnrolled(message),
        Code::AlreadyExists => Failure::AlreadyEnrolled(message),
        _ if message.is_empty() => Failure::Core(format!("{:?}", status.code())),
        _ => Failure::Core(message),
    }
}

/// Finds the system call's error under a status that the transport made up.
fn io_error(status: &Status) -> Option<&io::Error> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

fn connection_failure(socket: &Path, error: &io::Error) -> Failure {
    let start = "plexd-core is not running; start it with: systemctl start plexd-core";
    let reason = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            return Failure::Forbidden { socket: socket.into(), advice: advice(&Caller::current()) };
        }
        io::ErrorKind::NotFound => format!("no such file: {start}"),
        io::ErrorKind::ConnectionRefused => format!("connection refused: {start}"),
        _ => format!("{error}; see: systemctl status plexd-core"),
    };
    Failure::Unreachable { socket: socket.into(), reason }
}

/// Who calls, as far as advice goes.
#[derive(Debug)]
struct Caller {
    /// Groups of this process, by name where they have one.
    groups: BTreeSet<String>,
    /// Whether the user database lists the caller as an administrator.
    listed: bool,
}

impl Caller {
    fn current() -> Self {
        let groups = getgroups().unwrap_or_default().into_iter().chain([getegid()]).map(group_name).collect();
        Self { groups, listed: is_listed(geteuid()) }
    }
}

fn group_name(gid: Gid) -> String {
    let group = Group::from_gid(gid).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}

fn is_listed(uid: Uid) -> bool {
    let user = User::from_uid(uid).ok().flatten();
    let group = Group::from_name(ADMINISTRATORS).ok().flatten();
    user.zip(group).is_some_and(|(user, group)| user.gid == group.gid || group.mem.contains(&user.name))
}

fn advice(caller: &Caller) -> String {
    if caller.groups.contains(ADMINISTRATORS) {
        return format!(
            "You are in group {ADMINISTRATORS}; check that the socket is plexd-core:{ADMINISTRATORS} 0660 and that \
             its directory is 0755."
        );
    }
    if caller.listed {
        return format!(
            "You became a member of {ADMINISTRATORS} after you logged in; log in again or use sudo."
        );
    }
    let groups: Vec<&str> = caller.groups.iter().map(String::as_str).collect();
    let noun = if groups.len() == 1 { "group" } else { "groups" };
    format!("You are in {noun} {}; join group {ADMINISTRATORS} or use sudo.", groups.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(groups: &[&str], listed: bool) -> Caller {
        Caller { groups: groups.iter().map(ToString::to_string).collect(), listed }
    }

    #[test]
    fn advice_depends_on_the_groups_the_process_has() {
        let cases = [
            (
                caller(&["users", "adm"], false),
                "You are in groups adm, users; join group plexd-admin or use sudo.",
            ),
            (caller(&["users"], false), "You are in group users; join group plexd-admin or use sudo."),
            (
                caller(&["users"], true),
                "You became a member of plexd-admin after you logged in; log in again or use sudo.",
            ),
            (
                caller(&["plexd-admin"], true),
                "You are in group plexd-admin; check that the socket is plexd-core:plexd-admin 0660 and that its \
                 directory is 0755.",
            ),
        ];
        for (caller, expected) in cases {
            assert_eq!(advice(&caller), expected, "{caller:?}");
        }
    }

    #[test]
    fn what_core_answers_decides_the_exit_code() {
        let cases = [
            (Status::permission_denied("this caller may not make this call"), 5),
            (Status::failed_precondition("not enrolled; enrol with: plexd-ctl join"), 3),
            (Status::already_exists("this node is enrolled as n-1"), 1),
            (Status::unavailable("the control plane does not answer"), 1),
            (Status::internal(""), 1),
        ];
        for (status, code) in cases {
            let failure = failure(Path::new("/run/plexd/admin.sock"), &status);
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
    }
}
