//! Faults on purpose: rules per endpoint, or for all of them, set through the admin API and gone after a restart.
//! Knows nothing of what the endpoints do.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::reply::{self, Refusal, Reply};

/// The names by which rules select an endpoint.
pub(crate) const ENDPOINTS: [&str; 17] = [
    "register",
    "events",
    "heartbeat",
    "deregister",
    "rotate",
    "capabilities",
    "endpoint",
    "state",
    "drift",
    "secrets",
    "report",
    "ack",
    "result",
    "metrics",
    "logs",
    "audit",
    "artifacts",
];
const ALL: &str = "all";
const MAX_LATENCY_MS: u64 = 600_000;
const GARBAGE: &[u8] = b"\x00\xff<html>{\"garbage\": [not JSON";

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// Waits this long before anything else, milliseconds, at most ten minutes.
    latency_ms: u64,
    /// Answers with this status instead of doing anything.
    status: Option<u16>,
    /// Cuts the open event streams, and new ones right after their head.
    drop_streams: bool,
    /// Answers 200 with bytes that are not JSON.
    garbage: bool,
    /// Closes every connection, open and new, without a word. For all endpoints only.
    refuse_connections: bool,
}

/// A rule as `PUT /admin/faults` takes it; without `endpoint` for all of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rule {
    endpoint: Option<String>,
    latency_ms: u64,
    status: Option<u16>,
    drop_streams: bool,
    garbage: bool,
    refuse_connections: bool,
}

impl Rule {
    fn fault(&self) -> Fault {
        Fault {
            latency_ms: self.latency_ms,
            status: self.status.filter(|status| *status != 0),
            drop_streams: self.drop_streams,
            garbage: self.garbage,
            refuse_connections: self.refuse_connections,
        }
    }
}

/// The rules in force. An endpoint's own rule replaces the one for all.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Mutex<BTreeMap<String, Fault>>,
    cut: watch::Sender<u64>,
    refusing: watch::Sender<bool>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { rules: Mutex::default(), cut: watch::Sender::new(0), refusing: watch::Sender::new(false) }
    }

    /// Sets the rule of an endpoint, or of all; one that does nothing is removed.
    pub(crate) fn set(&self, rule: &Rule) -> Result<(), Refusal> {
        let name = rule.endpoint.as_deref().unwrap_or(ALL);
        let fault = rule.fault();
        check(name, fault)?;
        let cuts = fault.drop_streams && (name == ALL || name == "events");
        let refusing = {
            let mut rules = self.rules();
            if fault == Fault::default() {
                rules.remove(name);
            } else {
                rules.insert(name.to_owned(), fault);
            }
            rules.get(ALL).is_some_and(|fault| fault.refuse_connections)
        };
        self.refusing.send_replace(refusing);
        if cuts {
            self.cut.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Removes every rule.
    pub(crate) fn clear(&self) {
        self.rules().clear();
        self.refusing.send_replace(false);
    }

    /// The rules in force, by endpoint name or `all`.
    pub(crate) fn shown(&self) -> BTreeMap<String, Fault> {
        self.rules().clone()
    }

    /// Suffers what is set for `endpoint`; an answer means that nothing else is to be done.
    pub(crate) async fn suffer(&self, endpoint: &'static str) -> Option<Reply> {
        let fault = self.of(endpoint)?;
        if fault.latency_ms > 0 {
            tokio::time::sleep(Duration::from_millis(fault.latency_ms)).await;
        }
        if let Some(status) = fault.status {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Some(Refusal::new(status, "injected fault").into_reply());
        }
        if fault.garbage {
            let content_type = if endpoint == "events" { "text/event-stream" } else { "application/json" };
            return Some(reply::with_type(StatusCode::OK, content_type, Bytes::from_static(GARBAGE)));
        }
        None
    }

    /// Whether a new event stream is to end right away.
    pub(crate) fn drops_streams(&self) -> bool {
        self.of("events").is_some_and(|fault| fault.drop_streams)
    }

    /// Changes whenever the open streams are to be cut.
    pub(crate) fn cut(&self) -> watch::Receiver<u64> {
        self.cut.subscribe()
    }

    /// Says whether connections are refused.
    pub(crate) fn refusing(&self) -> watch::Receiver<bool> {
        self.refusing.subscribe()
    }

    fn of(&self, endpoint: &str) -> Option<Fault> {
        let rules = self.rules();
        rules.get(endpoint).or_else(|| rules.get(ALL)).copied()
    }

    fn rules(&self) -> MutexGuard<'_, BTreeMap<String, Fault>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(name: &str, fault: Fault) -> Result<(), Refusal> {
    if name != ALL && !ENDPOINTS.contains(&name) {
        return Err(Refusal::bad_request(format!("unknown endpoint; one of {}", ENDPOINTS.join(", "))));
    }
    if fault.refuse_connections && name != ALL {
        return Err(Refusal::bad_request(
            "refuse_connections is for all endpoints: a connection comes before its request",
        ));
    }
    if fault.latency_ms > MAX_LATENCY_MS {
        return Err(Refusal::bad_request("latency_ms is at most 600000"));
    }
    match fault.status {
        None | Some(200..=599) => Ok(()),
        Some(_) => Err(Refusal::bad_request("status is between 200 and 599")),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::{Faults, Rule};

    fn rule(text: &str) -> Rule {
        serde_json::from_str(text).unwrap()
    }

    #[tokio::test]
    async fn an_endpoints_own_rule_replaces_the_one_for_all() {
        let faults = Faults::new();
        faults.set(&rule(r#"{"status":503}"#)).unwrap();
        faults.set(&rule(r#"{"endpoint":"state","garbage":true}"#)).unwrap();
        assert_eq!(faults.suffer("heartbeat").await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(faults.suffer("state").await.unwrap().status(), StatusCode::OK);
        faults.set(&rule(r#"{"endpoint":"state"}"#)).unwrap();
        assert_eq!(faults.suffer("state").await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        faults.clear();
        assert!(faults.suffer("state").await.is_none());
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        let faults = Faults::new();
        for bad in [
            r#"{"endpoint":"nowhere","status":500}"#,
            r#"{"endpoint":"state","refuse_connections":true}"#,
            r#"{"status":99}"#,
            r#"{"latency_ms":600001}"#,
        ] {
            assert_eq!(faults.set(&rule(bad)).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
        assert!(faults.shown().is_empty());
    }

    #[test]
    fn connections_are_refused_until_the_rule_is_gone() {
        let faults = Faults::new();
        faults.set(&rule(r#"{"refuse_connections":true}"#)).unwrap();
        assert!(*faults.refusing().borrow());
        faults.set(&rule("{}")).unwrap();
        assert!(!*faults.refusing().borrow());
    }
}
