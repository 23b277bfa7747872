//! Faults on purpose: rules per endpoint, or for all of them, set through the admin API and gone after a restart.
//! Knows nothing of what the endpoints do. What becomes of their answers is in [`spoil`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::reply::{Refusal, Reply};

pub(crate) mod spoil;

use spoil::{RetryAfter, Truncation};

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
/// Largest answer that is padded: beyond what any client takes.
const MAX_PADDING: usize = 256 << 20;

/// What goes wrong: a rule as `PUT /admin/faults` takes it, but for the endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the admin API")]
pub(crate) struct Fault {
    /// Waits this long before anything else, milliseconds, at most ten minutes.
    latency_ms: u64,
    /// Answers with this status instead of doing anything.
    status: Option<u16>,
    /// Says with that status when to come again.
    retry_after: Option<RetryAfter>,
    /// Cuts the open event streams, and new ones right after their head.
    drop_streams: bool,
    /// Cuts event streams within the first character of an event that takes several bytes.
    tear_streams: bool,
    /// Answers 200 with bytes that are not JSON.
    garbage: bool,
    /// Answers 200 with a small body that claims to be compressed, and is huge when it is unpacked.
    gzip_bomb: bool,
    /// Does what is asked, and sends half of the answer.
    truncate: Option<Truncation>,
    /// Does what is asked, and calls the answer a web page.
    wrong_type: bool,
    /// Does what is asked, and makes a JSON answer this long with white space, bytes.
    pad_to: Option<usize>,
    /// Closes every connection, open and new, without a word. For all endpoints only.
    refuse_connections: bool,
}

/// A rule as `PUT /admin/faults` takes it; without `endpoint` for all of them.
#[derive(Debug, Default)]
pub(crate) struct Rule {
    endpoint: Option<String>,
    fault: Fault,
}

/// By hand: members that are not known cannot be refused where a struct is flattened into another.
impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut members = Map::deserialize(deserializer)?;
        let endpoint = members.remove("endpoint").unwrap_or_default();
        let endpoint = Option::deserialize(endpoint).map_err(D::Error::custom)?;
        let fault: Fault = Fault::deserialize(Value::Object(members)).map_err(D::Error::custom)?;
        let status = fault.status.filter(|status| *status != 0);
        Ok(Self { endpoint, fault: Fault { status, ..fault } })
    }
}

/// The rules in force. An endpoint's own rule replaces the one for all.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Mutex<BTreeMap<String, Fault>>,
    cut: watch::Sender<u64>,
    tearing: watch::Sender<bool>,
    refusing: watch::Sender<bool>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        let [tearing, refusing] = [(); 2].map(|()| watch::Sender::new(false));
        Self { rules: Mutex::default(), cut: watch::Sender::new(0), tearing, refusing }
    }

    /// Sets the rule of an endpoint, or of all; one that does nothing is removed.
    pub(crate) fn set(&self, rule: &Rule) -> Result<(), Refusal> {
        let name = rule.endpoint.as_deref().unwrap_or(ALL);
        let fault = rule.fault;
        check(name, fault)?;
        {
            let mut rules = self.rules();
            if fault == Fault::default() {
                rules.remove(name);
            } else {
                rules.insert(name.to_owned(), fault);
            }
        }
        self.tell();
        if fault.drop_streams && (name == ALL || name == "events") {
            self.cut.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Removes every rule.
    pub(crate) fn clear(&self) {
        self.rules().clear();
        self.tell();
    }

    /// Tells connections and streams what is in force.
    fn tell(&self) {
        let refusing = self.rules().get(ALL).is_some_and(|fault| fault.refuse_connections);
        self.refusing.send_replace(refusing);
        self.tearing.send_replace(self.of("events").is_some_and(|fault| fault.tear_streams));
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
            let reply = Refusal::new(status, "injected fault").into_reply();
            return Some(spoil::with_retry_after(reply, fault.retry_after));
        }
        if fault.garbage {
            return Some(spoil::garbage(endpoint));
        }
        if fault.gzip_bomb {
            return Some(spoil::gzip_bomb(endpoint));
        }
        None
    }

    /// Spoils an answer as is set for `endpoint`. A stream is never read here.
    pub(crate) async fn spoil(&self, endpoint: &'static str, reply: Reply) -> Reply {
        let Some(fault) = self.of(endpoint) else {
            return reply;
        };
        let mut reply = reply;
        if endpoint != "events" {
            if let Some(length) = fault.pad_to {
                reply = spoil::padded(reply, length).await;
            }
            if let Some(truncation) = fault.truncate {
                reply = spoil::truncated(reply, truncation).await;
            }
        }
        if fault.wrong_type { spoil::as_web_page(reply) } else { reply }
    }

    /// Whether a new event stream is to end right away.
    pub(crate) fn drops_streams(&self) -> bool {
        self.of("events").is_some_and(|fault| fault.drop_streams)
    }

    /// Changes whenever the open streams are to be cut.
    pub(crate) fn cut(&self) -> watch::Receiver<u64> {
        self.cut.subscribe()
    }

    /// Says whether event streams are torn.
    pub(crate) fn tearing(&self) -> watch::Receiver<bool> {
        self.tearing.subscribe()
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
    if fault.pad_to.is_some_and(|length| length > MAX_PADDING) {
        return Err(Refusal::bad_request("pad_to is at most 268435456"));
    }
    if fault.retry_after.is_some() && fault.status.is_none() {
        return Err(Refusal::bad_request("retry_after goes with a status"));
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

    #[test]
    fn a_rule_with_a_member_that_is_not_known_is_none() {
        for bad in [r#"{"latncy_ms":1}"#, r#"{"endpoint":1}"#, r#"{"truncate":"half"}"#, "[]"] {
            assert!(serde_json::from_str::<Rule>(bad).is_err(), "{bad}");
        }
    }

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
            r#"{"pad_to":268435457}"#,
            r#"{"retry_after":{"seconds":1}}"#,
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
