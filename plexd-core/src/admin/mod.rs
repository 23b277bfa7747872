//! What core serves to administrators on admin.sock. Nothing here waits for the network but `Join`, `Deregister` and
//! `Ping`.

mod events;
mod leave;
mod peers;
mod ping;
mod policies;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use plexd_proto::access::{Permit, Rule};
use plexd_proto::admin::v1;
use plexd_proto::admin::v1::admin_server::Admin;
use plexd_proto::transport::PeerCredentials;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::control::batch;
use crate::identity::{CurrentIdentity, JoinError, JoinRequests, LeaveRequests, Token};
use crate::policy;
use crate::reconcile::{Mesh, MeshStatus};
use crate::reports::Counts;
use crate::state::Desired;
use crate::status::{Board, Enrolment, Stream};
use crate::supervisor::Shutdown;

/// How long the mesh may take to say how it is.
const MESH_DEADLINE: Duration = Duration::from_secs(2);

/// How long a registration may take.
const JOIN_DEADLINE: Duration = Duration::from_secs(80);

/// Streams of events at a time.
const MAX_STREAMS: usize = 16;

/// Pings at a time.
const MAX_PINGS: usize = 8;

/// Who may call an RPC of admin.sock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root, or a member of group plexd-admin.
    Administrator,
}

/// Who may call what.
pub const RULES: &[Rule<Who>] = &[
    Rule { rpc: "/plexd.admin.v1.Admin/Status", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/ListPeers", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/ListPolicies", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/ExplainPolicy", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/TestPolicy", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/ExportPolicy", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/Join", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/Deregister", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/WatchEvents", who: Who::Administrator },
    Rule { rpc: "/plexd.admin.v1.Admin/Ping", who: Who::Administrator },
];

/// Knows administrators by their group.
#[derive(Debug, Clone, Copy)]
pub struct Administrators {
    /// The gid of plexd-admin.
    pub gid: u32,
}

impl Permit<Who> for Administrators {
    fn permits(&self, peer: &PeerCredentials, who: Who) -> bool {
        match who {
            Who::Administrator => peer.uid == 0 || peer.has_group(self.gid),
        }
    }
}

/// Where the answers come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The configuration.
    pub config: Arc<Config>,
    /// Host name the node registers under.
    pub hostname: String,
    /// Capabilities the process keeps.
    pub capabilities: Vec<String>,
    /// Problems, and the connection to the control plane.
    pub board: Board,
    /// Who the node is.
    pub identity: CurrentIdentity,
    /// What the control plane wants.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// Counts of the reports.
    pub reports: watch::Receiver<Counts>,
    /// The mesh.
    pub mesh: Mesh,
    /// Takes tokens.
    pub join: JoinRequests,
    /// Takes requests to give the identity up.
    pub leave: LeaveRequests,
    /// Ends streams that would go on for ever.
    pub shutdown: Shutdown,
}

impl Sources {
    /// Returns how the mesh is; `None` when it does not say so in time.
    async fn mesh_status(&self) -> Option<MeshStatus> {
        tokio::time::timeout(MESH_DEADLINE, self.mesh.status()).await.ok().flatten()
    }
}

/// The service.
#[derive(Debug, Clone)]
pub struct AdminService {
    sources: Sources,
    started: Instant,
    streams: Arc<Semaphore>,
    pings: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    exports: Arc<Semaphore>,
}

impl AdminService {
    /// Creates the service.
    pub fn new(sources: Sources) -> Self {
        let most = [MAX_STREAMS, MAX_PINGS, policies::MAX_QUESTIONS, policies::MAX_EXPORTS];
        let [streams, pings, questions, exports] = most.map(|most| Arc::new(Semaphore::new(most)));
        Self { sources, started: Instant::now(), streams, pings, questions, exports }
    }

    fn identity(&self) -> v1::Identity {
        let identity = self.sources.identity.borrow().clone();
        let text = |value: Option<String>| value.unwrap_or_default();
        v1::Identity {
            enrolment: match self.sources.board.enrolment() {
                Enrolment::WaitingForToken => v1::Enrolment::WaitingForToken,
                Enrolment::Registering => v1::Enrolment::Registering,
                Enrolment::Enrolled => v1::Enrolment::Enrolled,
                Enrolment::Unauthorized => v1::Enrolment::Unauthorized,
            }
            .into(),
            node_id: text(identity.as_ref().map(|identity| identity.node_id.to_string())),
            mesh_ip: text(identity.as_ref().map(|identity| identity.mesh_ip.to_string())),
            hostname: self.sources.hostname.clone(),
            public_key: text(identity.as_ref().map(|identity| identity.private_key.public().to_string())),
        }
    }

    fn control_plane(&self) -> v1::ControlPlane {
        let control = self.sources.board.control_status();
        v1::ControlPlane {
            url: self.sources.config.api.to_string(),
            stream: match control.stream {
                Stream::Disconnected => v1::StreamState::Disconnected,
                Stream::Connecting => v1::StreamState::Connecting,
                Stream::Connected => v1::StreamState::Connected,
            }
            .into(),
            last_byte_age_ms: control.last_byte.map(age),
            last_answer_age_ms: control.last_answer.map(age),
            last_error: control.last_error.unwrap_or_default(),
            last_event_id: control.last_event_id.unwrap_or_default(),
            events_accepted: control.accepted,
            events_rejected: control
                .rejected
                .iter()
                .map(|(reason, count)| ((*reason).to_owned(), *count))
                .collect(),
            events_unsupported: control.unsupported,
            clock_skew_ms: control.clock_skew.map(|skew| {
                i64::try_from(skew.as_millis()).unwrap_or(if skew.is_negative() {
                    i64::MIN
                } else {
                    i64::MAX
                })
            }),
        }
    }

    fn mesh_state(&self, mesh: Option<&MeshStatus>) -> v1::Mesh {
        let settings = &self.sources.config.mesh;
        let peers = mesh.map_or(&[][..], |mesh| &mesh.peers);
        v1::Mesh {
            interface: settings.interface.clone(),
            backend: mesh.map(|mesh| mesh.backend.to_string()).unwrap_or_default(),
            backend_reason: mesh.map(|mesh| mesh.backend_reason.clone()).unwrap_or_default(),
            listen_port: settings.listen_port.into(),
            mtu: settings.mtu,
            peers_desired: count(self.sources.desired.borrow().peers.len()),
            peers_configured: count(peers.iter().filter(|peer| peer.configured).count()),
            peers_up: count(mesh.map_or(0, MeshStatus::peers_up)),
            last_reconcile_age_ms: mesh.and_then(|mesh| mesh.last_success).map(age),
        }
    }

    fn policy_state(&self, policies: &policy::PolicySet, refused: Option<&str>) -> v1::PolicyState {
        let settings = self.sources.config.policy;
        let desired = self.sources.desired.borrow();
        v1::PolicyState {
            enabled: settings.enabled,
            default_action: settings.default.to_string(),
            policies: count(policies.policies.len()),
            rules: count(policies.rules().count()),
            // Refused as it came, or when it was compiled.
            rejected: desired.policies_rejected.as_deref().or(refused).unwrap_or_default().to_owned(),
        }
    }

    fn problems(&self, mesh: Option<&MeshStatus>) -> Vec<v1::Problem> {
        let mut problems: Vec<v1::Problem> = self
            .sources
            .board
            .problems()
            .into_iter()
            .map(|problem| v1::Problem {
                subsystem: problem.subsystem.as_str().to_owned(),
                message: problem.message,
            })
            .collect();
        if mesh.is_none() {
            let message =
                "the mesh does not answer: a kernel operation hangs; see the log of plexd-core".to_owned();
            problems.push(v1::Problem { subsystem: "mesh".to_owned(), message });
        }
        problems
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type WatchEventsStream = events::EventStream;
    type PingStream = ping::PingStream;
    type ExportPolicyStream = policies::ExportStream;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let mesh = self.sources.mesh_status().await;
        let problems = self.problems(mesh.as_ref());
        let desired = Arc::clone(&self.sources.desired.borrow());
        let policies =
            mesh.as_ref().map_or_else(|| Arc::clone(&desired.policies), |mesh| Arc::clone(&mesh.policies));
        let reports = *self.sources.reports.borrow();
        let health = if problems.is_empty() { v1::Health::Healthy } else { v1::Health::Degraded };
        Ok(Response::new(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: age(self.started),
            health: health.into(),
            problems,
            identity: Some(self.identity()),
            control_plane: Some(self.control_plane()),
            mesh: Some(self.mesh_state(mesh.as_ref())),
            policy: Some(
                self.policy_state(&policies, mesh.as_ref().and_then(|mesh| mesh.refused.as_deref())),
            ),
            reports: Some(v1::Reports {
                entries: count(reports.entries),
                pending: count(reports.pending),
                conflicted: count(reports.conflicted),
            }),
            capabilities: self.sources.capabilities.clone(),
            local_state: Some(v1::LocalState {
                metadata: count(desired.metadata.len()),
                data: count(desired.data.len()),
                secrets: count(desired.secret_refs.len()),
            }),
            uploads: uploads(&self.sources.board.control_status().uploads),
        }))
    }

    async fn list_peers(
        &self,
        _: Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::ListPeersResponse>, Status> {
        let mesh = self
            .sources
            .mesh_status()
            .await
            .ok_or_else(|| Status::unavailable("the mesh does not answer"))?;
        Ok(Response::new(peers::response(mesh)))
    }

    async fn list_policies(
        &self,
        _: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        self.answer_list().await.map(Response::new)
    }

    async fn explain_policy(
        &self,
        request: Request<v1::ExplainPolicyRequest>,
    ) -> Result<Response<v1::ExplainPolicyResponse>, Status> {
        self.answer_explain(request.into_inner()).await.map(Response::new)
    }

    async fn test_policy(
        &self,
        request: Request<v1::TestPolicyRequest>,
    ) -> Result<Response<v1::TestPolicyResponse>, Status> {
        self.answer_test(request.into_inner()).await.map(Response::new)
    }

    async fn export_policy(
        &self,
        _: Request<v1::ExportPolicyRequest>,
    ) -> Result<Response<Self::ExportPolicyStream>, Status> {
        self.answer_export().await.map(Response::new)
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let token = zeroize::Zeroizing::new(request.into_inner().token);
        let token = Token::parse(&token).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let joined =
            tokio::time::timeout(JOIN_DEADLINE, self.sources.join.join(token)).await.map_err(|_| {
                Status::deadline_exceeded("the control plane did not answer in time; see: plexd-ctl status")
            })?;
        let joined = joined.map_err(|error| match error {
            JoinError::AlreadyEnrolled(_) => Status::already_exists(error.to_string()),
            JoinError::Busy => Status::aborted(error.to_string()),
            JoinError::Refused(_) => Status::failed_precondition(error.to_string()),
            JoinError::Unreachable(_) | JoinError::Stopping => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(v1::JoinResponse {
            node_id: joined.node_id.to_string(),
            mesh_ip: joined.mesh_ip.to_string(),
        }))
    }

    async fn deregister(
        &self,
        request: Request<v1::DeregisterRequest>,
    ) -> Result<Response<v1::DeregisterResponse>, Status> {
        leave::answer(&self.sources.leave, request.into_inner()).await.map(Response::new)
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let permit = Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many streams of events; end one of them"))?;
        let history = self.sources.board.history().clone();
        let request = request.into_inner();
        Ok(Response::new(events::stream(history, request, self.sources.shutdown.clone(), permit)))
    }

    async fn ping(&self, request: Request<v1::PingRequest>) -> Result<Response<Self::PingStream>, Status> {
        let permit = Arc::clone(&self.pings)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many pings; end one of them"))?;
        ping::stream(self.sources.clone(), request.into_inner(), permit).await.map(Response::new)
    }
}

fn uploads(counts: &BTreeMap<&'static str, batch::Counts>) -> Vec<v1::Upload> {
    let upload = |(kind, counts): (&&str, &batch::Counts)| v1::Upload {
        kind: (*kind).to_owned(),
        waiting: counts.waiting,
        sent: counts.sent,
        overflowed: counts.overflowed,
        refused: counts.refused,
    };
    counts.iter().map(upload).collect()
}

fn age(since: Instant) -> u64 {
    milliseconds(since.elapsed())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn count(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
