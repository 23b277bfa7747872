//! What became of an action: `POST …/executions/{execution_id}/ack` and `…/result`.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{fields, node_mut};
use crate::encoding;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::received::Kind;

/// Longest `stdout` and `stderr`, bytes (endpoints, "Action Execution Callbacks").
const MAX_OUTPUT: usize = 64 << 10;

#[derive(Deserialize)]
struct Ack {
    execution_id: String,
    status: String,
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Deserialize)]
struct ExecutionResult {
    execution_id: String,
    status: String,
    #[serde(rename = "exit_code")]
    _exit_code: i64,
    stdout: String,
    stderr: String,
    #[serde(rename = "duration")]
    _duration: String,
    finished_at: String,
    #[serde(default, rename = "triggered_by")]
    _triggered_by: Option<TriggeredBy>,
}

#[derive(Deserialize)]
struct TriggeredBy {
    #[serde(rename = "type")]
    _kind: String,
    #[serde(rename = "session_id")]
    _session_id: String,
    #[serde(rename = "user_id")]
    _user_id: String,
    #[serde(rename = "email")]
    _email: String,
}

pub(super) fn ack(app: &App, id: &str, execution: &str, body: Box<RawValue>) -> Result<Reply, Refusal> {
    let ack: Ack = fields(&body)?;
    same_execution(&ack.execution_id, execution)?;
    one_of(&ack.status, &["accepted", "rejected"])?;
    node_mut(&mut app.store.lock(), id)?.received.push(Kind::Acks, body)?;
    Ok(reply::acknowledged())
}

pub(super) fn result(app: &App, id: &str, execution: &str, body: Box<RawValue>) -> Result<Reply, Refusal> {
    let result: ExecutionResult = fields(&body)?;
    same_execution(&result.execution_id, execution)?;
    one_of(&result.status, &["success", "failure", "timeout", "cancelled"])?;
    if result.stdout.len() > MAX_OUTPUT || result.stderr.len() > MAX_OUTPUT {
        return Err(Refusal::bad_request("stdout and stderr have at most 64 KiB each"));
    }
    if encoding::parse_time(&result.finished_at).is_none() {
        return Err(Refusal::bad_request("finished_at must be RFC 3339"));
    }
    node_mut(&mut app.store.lock(), id)?.received.push(Kind::Results, body)?;
    Ok(reply::acknowledged())
}

fn same_execution(given: &str, path: &str) -> Result<(), Refusal> {
    if given == path { Ok(()) } else { Err(Refusal::bad_request("execution_id is not the one of the path")) }
}

fn one_of(status: &str, allowed: &[&str]) -> Result<(), Refusal> {
    if allowed.contains(&status) {
        return Ok(());
    }
    Err(Refusal::bad_request(format!("status must be one of {}", allowed.join(", "))))
}
