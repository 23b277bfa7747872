//! How `Ping` is answered: whom it is for, why no echo can be sent, else what becomes of each. Echoes go out one after the
//! other, each once the one before is answered or lost, so that a slow caller or peer costs nothing.

mod echo;
mod why;

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use plexd_proto::admin::v1;
use plexd_proto::admin::v1::ping_response::Part;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tonic::Status;

use self::echo::{EchoSocket, Outcome};
use super::Sources;
use crate::identity::Identity;
use crate::reconcile::{Input, MeshStatus, PeerStatus, Resolved};

/// Echoes of a call.
const COUNT: RangeInclusive<u16> = 1..=100;

/// Milliseconds from one echo to the next.
const INTERVAL_MS: RangeInclusive<u32> = 100..=60_000;

/// Characters of what a caller takes for a peer that are shown.
const SHOWN: usize = 64;

/// Where the kernel says which groups may open a socket for echoes, those of IPv6 as well.
const GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";

/// What the RPC answers with.
pub(super) type PingStream = Pin<Box<dyn Stream<Item = Result<v1::PingResponse, Status>> + Send>>;

/// A ping under way.
struct Run {
    sources: Sources,
    identity: Arc<Identity>,
    socket: EchoSocket,
    peer: PeerStatus,
    interval: Duration,
    /// Sequence of the next echo.
    next: u16,
    count: u16,
    /// When it is due.
    due: Instant,
    answered: bool,
    stage: Stage,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Start,
    Echoes,
    Over,
}

/// Begins the ping that `request` asks for; `permit` is held for as long as the stream lives.
pub(super) async fn stream(
    sources: Sources,
    request: v1::PingRequest,
    permit: OwnedSemaphorePermit,
) -> Result<PingStream, Status> {
    let (count, interval) = limits(&request).map_err(Status::invalid_argument)?;
    let identity = sources.identity.borrow().clone().ok_or_else(|| {
        Status::failed_precondition("this node is not enrolled; enrol it with: plexd-ctl join")
    })?;
    let mesh = sources.mesh_status().await.ok_or_else(|| Status::unavailable("the mesh does not answer"))?;
    let peer = find(&identity, &mesh, &request.peer)?.clone();
    if let Some(reason) = why::unconfigured(&identity.node_id, &peer) {
        return Err(Status::unavailable(reason));
    }
    if let Some(reason) = denied(&sources, &identity, &mesh, &peer) {
        return Err(Status::unavailable(reason));
    }
    let socket = open(&sources, &identity, &peer).map_err(Status::unavailable)?;
    let run = Run {
        sources,
        identity,
        socket,
        peer,
        interval,
        next: 1,
        count,
        due: Instant::now(),
        answered: false,
        stage: Stage::Start,
        _permit: permit,
    };
    Ok(Box::pin(unfold(run, |mut run| async move { run.next().await.map(|part| (part, run)) })))
}

/// Returns the number of echoes and the time from one to the next.
fn limits(request: &v1::PingRequest) -> Result<(u16, Duration), String> {
    let count = u16::try_from(request.count)
        .ok()
        .filter(|count| COUNT.contains(count))
        .ok_or_else(|| format!("{} echoes cannot be sent: 1 to 100", request.count))?;
    if !INTERVAL_MS.contains(&request.interval_ms) {
        return Err(format!("an interval of {} ms is not possible: 100 to 60000 ms", request.interval_ms));
    }
    Ok((count, Duration::from_millis(request.interval_ms.into())))
}

/// Finds the peer that has the id or the address `text`.
fn find<'a>(identity: &Identity, mesh: &'a MeshStatus, text: &str) -> Result<&'a PeerStatus, Status> {
    let address = text.parse().ok();
    let shown: String = text.chars().take(SHOWN).collect();
    if identity.node_id.as_str() == text || address == Some(identity.mesh_ip) {
        return Err(Status::invalid_argument(format!("{shown} is this node itself")));
    }
    let peer = mesh.peers.iter().find(|peer| peer.id.as_str() == text || Some(peer.mesh_ip) == address);
    peer.ok_or_else(|| {
        Status::not_found(format!("there is no peer {shown}; for their ids and addresses: plexd-ctl peers"))
    })
}

/// Returns how the policies in force deny the echo, if they do.
fn denied(sources: &Sources, identity: &Identity, mesh: &MeshStatus, peer: &PeerStatus) -> Option<String> {
    let desired = Arc::clone(&sources.desired.borrow());
    let resolved = Resolved::new();
    let input = Input {
        desired: &desired,
        policies: &mesh.policies,
        identity,
        mesh: &sources.config.mesh,
        settings: sources.config.policy,
        resolved: &resolved,
    };
    why::denied(&mesh.policies, &input.policy_context(), peer)
}

fn open(sources: &Sources, identity: &Identity, peer: &PeerStatus) -> Result<EchoSocket, String> {
    let (from, to) = (identity.mesh_ip, peer.mesh_ip);
    if from.is_ipv4() != to.is_ipv4() {
        return Err(format!(
            "{} has the mesh address {to}, which cannot be reached from this node's, {from}: they are of two families",
            peer.id
        ));
    }
    EchoSocket::open(&sources.config.mesh.interface, from, to).map_err(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            let range = fs::read_to_string(GROUPS).unwrap_or_default();
            return why::not_permitted(&range, nix::unistd::getegid().as_raw());
        }
        let interface = &sources.config.mesh.interface;
        format!("cannot send echoes from {from} through {interface}: {error}; see: plexd-ctl status")
    })
}

impl Run {
    async fn next(&mut self) -> Option<Result<v1::PingResponse, Status>> {
        let shutdown = self.sources.shutdown.clone();
        // Cancel safe: nothing is asked of this again once the shutdown is told.
        let part = tokio::select! {
            () = shutdown.cancelled() => {
                if matches!(self.stage, Stage::Over) {
                    return None;
                }
                self.stage = Stage::Over;
                return Some(Err(Status::unavailable("plexd-core is stopping")));
            }
            part = self.part() => part?,
        };
        Some(Ok(v1::PingResponse { part: Some(part) }))
    }

    async fn part(&mut self) -> Option<Part> {
        match self.stage {
            Stage::Start => {
                self.stage = Stage::Echoes;
                Some(Part::Start(self.start()))
            }
            Stage::Echoes if self.next <= self.count => Some(Part::Echo(self.echo().await)),
            Stage::Echoes => {
                self.stage = Stage::Over;
                let reason = if self.answered { String::new() } else { self.why_none().await };
                Some(Part::End(v1::PingEnd { reason }))
            }
            Stage::Over => None,
        }
    }

    fn start(&self) -> v1::PingStart {
        v1::PingStart {
            peer_id: self.peer.id.to_string(),
            mesh_ip: self.peer.mesh_ip.to_string(),
            interface: self.sources.config.mesh.interface.clone(),
            remark: why::remark(&self.peer).unwrap_or_default(),
        }
    }

    async fn echo(&mut self) -> v1::PingEcho {
        tokio::time::sleep_until(self.due).await;
        self.due = Instant::now() + self.interval;
        let sequence = self.next;
        self.next += 1;
        let mut echo = v1::PingEcho { sequence: sequence.into(), ..v1::PingEcho::default() };
        match self.socket.echo(sequence).await {
            Outcome::Answered(after) => {
                self.answered = true;
                echo.set_outcome(v1::EchoOutcome::Answered);
                echo.rtt_us = Some(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
            }
            Outcome::Timeout => echo.set_outcome(v1::EchoOutcome::Timeout),
            Outcome::Unreachable(error) => {
                echo.set_outcome(v1::EchoOutcome::Unreachable);
                echo.reason = why::unreachable(&error);
            }
        }
        echo
    }

    /// Returns why no echo was answered, by how peer and policy are now.
    async fn why_none(&self) -> String {
        let mesh = self.sources.mesh_status().await;
        let peer = mesh.as_ref().and_then(|mesh| mesh.peers.iter().find(|peer| peer.id == self.peer.id));
        let (Some(mesh), Some(peer)) = (&mesh, peer) else {
            return format!("{} is not a peer any more; see: plexd-ctl peers", self.peer.id);
        };
        why::unconfigured(&self.identity.node_id, peer)
            .or_else(|| denied(&self.sources, &self.identity, mesh, peer))
            .unwrap_or_else(|| why::unanswered(&self.identity.node_id, peer))
    }
}
