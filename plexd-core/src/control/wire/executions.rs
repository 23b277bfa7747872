//! Acknowledgement and result of actions.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::time;

/// Body of `POST /v1/nodes/{node_id}/executions/{execution_id}/ack`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionAck {
    /// Execution id.
    pub execution_id: String,
    /// `accepted` or `rejected`.
    pub status: String,
    /// Why it was rejected, else empty.
    pub reason: String,
}

/// Body of `POST /v1/nodes/{node_id}/executions/{execution_id}/result`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionResult {
    /// Execution id.
    pub execution_id: String,
    /// `success`, `failure`, `timeout` or `cancelled`.
    pub status: String,
    /// Exit code.
    pub exit_code: i32,
    /// Standard output, at most 64 KiB.
    pub stdout: String,
    /// Standard error, at most 64 KiB.
    pub stderr: String,
    /// How long it ran, as `2.34s`.
    pub duration: String,
    /// When it ended.
    #[serde(with = "time")]
    pub finished_at: Timestamp,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<TriggeredBy>,
}

/// Who asked for an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggeredBy {
    /// `control_plane` or `session`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Session, or empty.
    pub session_id: String,
    /// User, or empty.
    pub user_id: String,
    /// The user's address, or empty.
    pub email: String,
}
