//! `plexd-ctl status`: one screen on the whole node.

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use crate::commands::policies::PolicyState;
use crate::output::{Moment, Terminal, Tone, View, counted, known, one_line, or_dash, span};

/// The status. Its fields are the stable JSON shape; null is what is not known (yet).
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// Version of plexd-core.
    version: String,
    /// When plexd-core started.
    started_at: Moment,
    /// Seconds since.
    uptime_seconds: u64,
    /// `healthy`, `degraded` or `unknown`.
    health: &'static str,
    /// What is wrong, each with the way out; empty when healthy.
    problems: Vec<Problem>,
    identity: Identity,
    control_plane: ControlPlane,
    mesh: Mesh,
    policy: PolicyState,
    reports: Reports,
    /// `metrics`, `log_entries` and `audit_records` on their way to the control plane; what was never sent is absent.
    uploads: BTreeMap<String, Upload>,
    local_state: LocalState,
    /// Capabilities that plexd-core keeps, as `CAP_` names, sorted.
    capabilities: Vec<String>,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
struct Problem {
    /// The part of the node: `control_plane`, `enrolment`, `mesh`, `policy`, `reports`, `clock` …
    subsystem: String,
    /// What is wrong and what to do.
    message: String,
}

/// Who the node is.
#[derive(Debug, Serialize)]
struct Identity {
    /// `waiting_for_token`, `registering`, `enrolled`, `unauthorized` or `unknown`.
    enrolment: &'static str,
    node_id: Option<String>,
    mesh_ip: Option<String>,
    hostname: Option<String>,
    /// WireGuard public key, base64.
    public_key: Option<String>,
}

/// The way to the control plane.
#[derive(Debug, Serialize)]
struct ControlPlane {
    url: String,
    /// `disconnected`, `connecting`, `connected` or `unknown`.
    stream: &'static str,
    last_byte_at: Option<Moment>,
    last_answer_at: Option<Moment>,
    last_error: Option<String>,
    last_event_id: Option<String>,
    events_accepted: u64,
    /// By reason: `malformed`, `signature`, `stale`, `future`, `replay`, `payload`, `too_large`.
    events_rejected: BTreeMap<String, u64>,
    /// By event type.
    events_unsupported: BTreeMap<String, u64>,
}

/// The mesh interface.
#[derive(Debug, Serialize)]
struct Mesh {
    interface: String,
    /// `kernel` or `userspace`.
    backend: Option<String>,
    backend_reason: Option<String>,
    listen_port: u32,
    mtu: u32,
    /// Peers the control plane wants.
    peers_desired: u32,
    /// Peers configured in WireGuard.
    peers_configured: u32,
    /// Peers with a handshake younger than 180 s.
    peers_up: u32,
    last_reconcile_at: Option<Moment>,
}

/// The reports of local applications.
#[derive(Debug, Serialize)]
struct Reports {
    entries: u32,
    /// Changes the control plane has not confirmed.
    pending: u32,
    /// Entries the control plane refused for their version.
    conflicted: u32,
}

/// What became of one kind of what is observed, since plexd-core started.
#[derive(Debug, Serialize)]
struct Upload {
    /// Records that wait to be sent.
    waiting: u64,
    /// Records the control plane accepted.
    sent: u64,
    /// Records lost because too many waited.
    overflowed: u64,
    /// Records lost because the control plane refused them.
    refused: u64,
}

/// Counts of the local state.
#[derive(Debug, Serialize)]
struct LocalState {
    metadata: u32,
    data: u32,
    secrets: u32,
}

impl Status {
    /// Creates the view of an answer that came at `now`.
    pub(crate) fn new(response: wire::StatusResponse, now: Timestamp) -> Self {
        let health = match response.health() {
            wire::Health::Healthy => "healthy",
            wire::Health::Degraded => "degraded",
            wire::Health::Unspecified => "unknown",
        };
        let problems = response.problems.into_iter();
        let reports = response.reports.unwrap_or_default();
        let local = response.local_state.unwrap_or_default();
        Self {
            version: response.version,
            started_at: Moment::before(now, response.uptime_ms),
            uptime_seconds: response.uptime_ms / 1000,
            health,
            problems: problems.map(|p| Problem { subsystem: p.subsystem, message: p.message }).collect(),
            identity: Identity::new(response.identity.unwrap_or_default()),
            control_plane: ControlPlane::new(response.control_plane.unwrap_or_default(), now),
            mesh: Mesh::new(response.mesh.unwrap_or_default(), now),
            policy: PolicyState::new(response.policy.unwrap_or_default()),
            reports: Reports {
                entries: reports.entries,
                pending: reports.pending,
                conflicted: reports.conflicted,
            },
            uploads: response.uploads.into_iter().map(Upload::new).collect(),
            local_state: LocalState { metadata: local.metadata, data: local.data, secrets: local.secrets },
            capabilities: response.capabilities,
        }
    }
}

impl Upload {
    fn new(upload: wire::Upload) -> (String, Self) {
        let wire::Upload { kind, waiting, sent, overflowed, refused } = upload;
        (kind.replace(' ', "_"), Self { waiting, sent, overflowed, refused })
    }
}

impl Identity {
    fn new(identity: wire::Identity) -> Self {
        let enrolment = match identity.enrolment() {
            wire::Enrolment::WaitingForToken => "waiting_for_token",
            wire::Enrolment::Registering => "registering",
            wire::Enrolment::Enrolled => "enrolled",
            wire::Enrolment::Unauthorized => "unauthorized",
            wire::Enrolment::Unspecified => "unknown",
        };
        Self {
            enrolment,
            node_id: known(identity.node_id),
            mesh_ip: known(identity.mesh_ip),
            hostname: known(identity.hostname),
            public_key: known(identity.public_key),
        }
    }
}

impl ControlPlane {
    fn new(control: wire::ControlPlane, now: Timestamp) -> Self {
        let stream = match control.stream() {
            wire::StreamState::Disconnected => "disconnected",
            wire::StreamState::Connecting => "connecting",
            wire::StreamState::Connected => "connected",
            wire::StreamState::Unspecified => "unknown",
        };
        Self {
            url: control.url,
            stream,
            last_byte_at: control.last_byte_age_ms.map(|age| Moment::before(now, age)),
            last_answer_at: control.last_answer_age_ms.map(|age| Moment::before(now, age)),
            last_error: known(control.last_error),
            last_event_id: known(control.last_event_id),
            events_accepted: control.events_accepted,
            events_rejected: control.events_rejected,
            events_unsupported: control.events_unsupported,
        }
    }
}

impl Mesh {
    fn new(mesh: wire::Mesh, now: Timestamp) -> Self {
        Self {
            interface: mesh.interface,
            backend: known(mesh.backend),
            backend_reason: known(mesh.backend_reason),
            listen_port: mesh.listen_port,
            mtu: mesh.mtu,
            peers_desired: mesh.peers_desired,
            peers_configured: mesh.peers_configured,
            peers_up: mesh.peers_up,
            last_reconcile_at: mesh.last_reconcile_age_ms.map(|age| Moment::before(now, age)),
        }
    }
}

impl View for Status {
    fn render(&self, terminal: &Terminal) -> String {
        let lines = [
            ("health", self.health_line(terminal)),
            ("node", self.identity.line()),
            ("mesh", self.mesh.line(self.identity.mesh_ip.as_deref())),
            ("peers", self.mesh.peers_line(terminal)),
            ("control plane", self.control_plane.line(terminal)),
            ("events", self.control_plane.events_line()),
            ("policy", one_line(&self.policy.line())),
            ("reports", self.reports.line()),
            ("state", self.local_state.line()),
            ("process", self.process_line()),
        ];
        let mut text = String::new();
        for (label, line) in lines {
            append(&mut text, label, &line);
        }
        for (kind, upload) in self.uploads.iter().filter(|(_, upload)| upload.lost() > 0) {
            append(&mut text, "lost", &terminal.paint(Tone::Bad, &upload.lost_line(kind)));
        }
        for problem in &self.problems {
            let line = format!("{}: {}", one_line(&problem.subsystem), one_line(&problem.message));
            append(&mut text, "problem", &terminal.paint(Tone::Bad, &line));
        }
        text
    }
}

fn append(text: &mut String, label: &str, line: &str) {
    writeln!(text, "{label:<14} {line}").expect("a String takes all that is written");
}

impl Status {
    fn health_line(&self, terminal: &Terminal) -> String {
        let tone = if self.health == "healthy" { Tone::Good } else { Tone::Bad };
        terminal.paint(tone, self.health)
    }

    fn process_line(&self) -> String {
        let capabilities = match self.capabilities.join(", ") {
            none if none.is_empty() => "no capabilities".into(),
            some => some,
        };
        one_line(&format!("plexd-core {}, up {}, {capabilities}", self.version, span(self.uptime_seconds)))
    }
}

impl Identity {
    fn line(&self) -> String {
        let node = or_dash(self.node_id.as_deref());
        let host = self.hostname.as_deref().map(|host| format!(" ({host})")).unwrap_or_default();
        one_line(&format!("{node}{host}, {}", self.enrolment.replace('_', " ")))
    }
}

impl Mesh {
    fn line(&self, mesh_ip: Option<&str>) -> String {
        let backend = match (self.backend.as_deref(), self.backend_reason.as_deref()) {
            (Some(backend), Some(reason)) => format!("{backend} backend ({reason})"),
            (Some(backend), None) => format!("{backend} backend"),
            (None, _) => "no backend yet".into(),
        };
        one_line(&format!(
            "{} on {}, UDP port {}, MTU {}, {backend}",
            or_dash(mesh_ip),
            self.interface,
            self.listen_port,
            self.mtu
        ))
    }

    fn peers_line(&self, terminal: &Terminal) -> String {
        let reconciled = self
            .last_reconcile_at
            .map_or_else(|| "never reconciled".into(), |at| format!("reconciled {}", at.ago(terminal.now)));
        format!(
            "{} up / {} configured / {} desired, {reconciled}",
            self.peers_up, self.peers_configured, self.peers_desired
        )
    }
}

impl ControlPlane {
    fn line(&self, terminal: &Terminal) -> String {
        let ago = |at: Option<Moment>| at.map_or_else(|| "never".into(), |at| at.ago(terminal.now));
        let error = self.last_error.as_deref().map(|error| format!(", failing: {error}")).unwrap_or_default();
        one_line(&format!(
            "{}, stream {} (last byte {}), last answer {}{error}",
            self.url,
            self.stream,
            ago(self.last_byte_at),
            ago(self.last_answer_at)
        ))
    }

    fn events_line(&self) -> String {
        let total = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
        one_line(&format!(
            "{} accepted, {} rejected{}, {} unsupported{}",
            self.events_accepted,
            total(&self.events_rejected),
            kinds(&self.events_rejected),
            total(&self.events_unsupported),
            kinds(&self.events_unsupported)
        ))
    }
}

/// Returns counts by kind in parentheses, or nothing when there are none.
fn kinds(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let each: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    format!(" ({})", each.join(", "))
}

impl Reports {
    fn line(&self) -> String {
        let entries = counted(self.entries, "entry", "entries");
        format!("{entries}, {} pending, {} conflicted", self.pending, self.conflicted)
    }
}

impl Upload {
    fn lost(&self) -> u64 {
        self.overflowed.saturating_add(self.refused)
    }

    fn lost_line(&self, kind: &str) -> String {
        one_line(&format!(
            "{} {kind}: {} because too many waited, {} refused by the control plane ({} sent, {} waiting)",
            self.lost(),
            self.overflowed,
            self.refused,
            self.sent,
            self.waiting,
            kind = kind.replace('_', " ")
        ))
    }
}

impl LocalState {
    fn line(&self) -> String {
        let data = counted(self.data, "data entry", "data entries");
        format!("{} metadata, {data}, {}", self.metadata, counted(self.secrets, "secret", "secrets"))
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
