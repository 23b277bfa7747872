//! Metrics, logs and audit records.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::time;

/// One element of the array of `POST /v1/nodes/{node_id}/metrics`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricPoint {
    /// When it was measured.
    #[serde(with = "time")]
    pub timestamp: Timestamp,
    /// Group, as `tunnel_health`.
    pub group: String,
    /// Peer it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_id: Option<String>,
    /// One JSON object.
    pub data: Box<RawValue>,
}

/// One line of `POST /v1/nodes/{node_id}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When it was logged.
    #[serde(with = "time")]
    pub timestamp: Timestamp,
    /// Where it comes from, as `journald`.
    pub source: String,
    /// systemd unit.
    pub unit: String,
    /// Message.
    pub message: String,
    /// Severity.
    pub severity: String,
    /// Host name.
    pub hostname: String,
}

/// One line of `POST /v1/nodes/{node_id}/audit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When it happened.
    #[serde(with = "time")]
    pub timestamp: Timestamp,
    /// Where it comes from, as `auditd` or `plexd`.
    pub source: String,
    /// Type, as `SYSCALL` or `SECRET_READ`.
    pub event_type: String,
    /// Who did it: one JSON object.
    pub subject: Box<RawValue>,
    /// On what: one JSON object.
    pub object: Box<RawValue>,
    /// What was done.
    pub action: String,
    /// `success`, `denied` or `error`.
    pub result: String,
    /// Host name.
    pub hostname: String,
    /// The record as its source wrote it, or empty.
    pub raw: String,
}
