//! Properties of every wire type: what is sent is read back as the same, whatever its texts and numbers; members of later
//! versions change nothing; and what is absent, null or empty is the same.

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::control::convert;
use crate::state::FullState;

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const SIGNING: &str = "lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=";
const TIME: &str = "2025-01-15T10:30:00Z";

/// Values of any JSON, which are passed on as they are.
const OPAQUE: [&str; 4] = ["payload", "data", "subject", "object"];

fn again<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    let read: T = parse_object(value.to_string().as_bytes())?;
    serde_json::to_value(read).map_err(|error| error.to_string())
}

type Again = fn(&Value) -> Result<Value, String>;

/// Every request with all its members.
fn requests() -> Vec<(Value, Again)> {
    let parameters = json!([{"name": "n", "type": "t", "required": true, "description": "d"}]);
    let capabilities = json!({
        "binary": {"version": "v", "checksum": "c"},
        "builtin_actions": [{"name": "n", "description": "d", "parameters": parameters}],
        "hooks": [{"name": "n", "description": "d", "source": "s", "checksum": "c", "parameters": parameters,
            "timeout": "t", "sandbox": "s"}],
    });
    vec![
        (
            json!({"token": "t", "public_key": "p", "hostname": "h", "capabilities": capabilities,
                "metadata": {"os": "o", "arch": "a", "kernel": "k"}}),
            again::<RegisterRequest>,
        ),
        (capabilities, again::<CapabilitiesPayload>),
        (
            json!({"node_id": "n", "timestamp": TIME, "status": "s", "uptime": "u", "binary_checksum": "c",
                "mesh": {"interface": "i", "peer_count": 1, "listen_port": 2},
                "nat": {"public_endpoint": "p", "type": "t"},
                "bridge": {"enabled": true, "access_interface": "a", "active_routes": 1, "relay_enabled": true,
                    "active_relay_sessions": 1, "ingress_enabled": true, "active_ingress_rules": 1,
                    "site_to_site_enabled": true, "active_site_to_site_tunnels": 1},
                "user_access": {"enabled": true, "interface_name": "i", "peer_count": 1, "listen_port": 1},
                "ingress": {"enabled": true, "rule_count": 1, "connection_count": 1},
                "site_to_site": {"enabled": true, "tunnel_count": 1}}),
            again::<HeartbeatRequest>,
        ),
        (json!({"timestamp": TIME, "corrections": [{"type": "t", "detail": "d"}]}), again::<DriftReport>),
        (
            json!({"entries": [{"key": "k", "content_type": "c", "payload": [1], "version": 1,
                "updated_at": TIME}], "deleted": ["d"]}),
            again::<ReportSyncRequest>,
        ),
        (json!({"public_endpoint": "p", "nat_type": "n"}), again::<EndpointReport>),
        (json!({"node_id": "n", "new_public_key": "k"}), again::<KeyRotateRequest>),
        (json!({"execution_id": "e", "status": "s", "reason": "r"}), again::<ExecutionAck>),
        (
            json!({"execution_id": "e", "status": "s", "exit_code": 1, "stdout": "o", "stderr": "e",
                "duration": "d", "finished_at": TIME,
                "triggered_by": {"type": "t", "session_id": "s", "user_id": "u", "email": "e"}}),
            again::<ExecutionResult>,
        ),
        (json!({"timestamp": TIME, "group": "g", "peer_id": "p", "data": {"a": 1}}), again::<MetricPoint>),
        (
            json!({"timestamp": TIME, "source": "s", "unit": "u", "message": "m", "severity": "s",
                "hostname": "h"}),
            again::<LogEntry>,
        ),
        (
            json!({"timestamp": TIME, "source": "s", "event_type": "e", "subject": 1, "object": null,
                "action": "a", "result": "r", "hostname": "h", "raw": "r"}),
            again::<AuditEntry>,
        ),
    ]
}

/// Replaces texts, numbers and flags by others.
fn vary(
    value: &mut Value,
    texts: &mut impl Iterator<Item = String>,
    numbers: &mut impl Iterator<Item = u16>,
) {
    match value {
        Value::Object(members) => {
            let open = members.iter_mut().filter(|(name, _)| !OPAQUE.contains(&name.as_str()));
            open.for_each(|(_, value)| vary(value, texts, numbers));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| vary(value, texts, numbers)),
        Value::String(text) if text != TIME => *text = texts.next().unwrap_or_default(),
        Value::Number(_) => *value = numbers.next().unwrap_or_default().into(),
        Value::Bool(_) => *value = numbers.next().unwrap_or_default().is_multiple_of(2).into(),
        Value::String(_) | Value::Null => {}
    }
}

/// Adds a member that no version has to every object.
fn extend(value: &mut Value, unknown: &Value) {
    match value {
        Value::Object(members) => {
            let open = members.iter_mut().filter(|(name, _)| !OPAQUE.contains(&name.as_str()));
            open.for_each(|(_, value)| extend(value, unknown));
            members.insert("x_unknown".to_owned(), unknown.clone());
        }
        Value::Array(list) => list.iter_mut().for_each(|value| extend(value, unknown)),
        _ => {}
    }
}

/// A state with every member that may be absent, and where they are.
fn full_state() -> (Value, Vec<&'static str>) {
    let state = json!({
        "peers": [{"id": "n_1", "public_key": KEY, "mesh_ip": "10.0.0.1", "endpoint": "192.0.2.1:5",
            "allowed_ips": ["10.0.0.1/32"], "psk": KEY}],
        "policies": [{"id": "p", "rules": [{"src": "*", "dst": "*", "port": 1, "protocol": "tcp", "action": "allow"}]}],
        "signing_keys": {"current": SIGNING, "previous": "GUnpgjkh9DVLngRw/Xgbqy4CM9RZM6bQ38chRh0yMlQ=",
            "transition_expires": TIME},
        "metadata": {"a": "b"},
        "bridge_config": {}, "relay_config": {}, "user_access_config": {}, "ingress_config": {},
        "site_to_site_config": {},
        "data": [{"key": "k", "content_type": "c", "payload": 1, "version": 1, "updated_at": TIME}],
        "secret_refs": [{"key": "k", "version": 1}],
    });
    let optional = vec![
        "/peers",
        "/peers/0/endpoint",
        "/peers/0/allowed_ips",
        "/peers/0/psk",
        "/policies",
        "/policies/0/rules",
        "/policies/0/rules/0/port",
        "/policies/0/rules/0/protocol",
        "/policies/0/rules/0/src",
        "/policies/0/rules/0/action",
        "/signing_keys",
        "/signing_keys/previous",
        "/signing_keys/transition_expires",
        "/metadata",
        "/bridge_config",
        "/relay_config",
        "/user_access_config",
        "/ingress_config",
        "/site_to_site_config",
        "/data",
        "/data/0/content_type",
        "/data/0/updated_at",
        "/secret_refs",
    ];
    (state, optional)
}

fn converted(state: &Value) -> FullState {
    let text = state.to_string();
    convert::state(&parse_object::<StateResponse<'_>>(text.as_bytes()).unwrap())
}

fn assert_alike(one: &FullState, other: &FullState, what: &str) {
    // Debug leaves preshared keys out.
    assert_eq!(one.peers, other.peers, "{what}");
    assert_eq!(format!("{one:?}"), format!("{other:?}"), "{what}");
    assert_eq!(one.rejected_signing_keys, other.rejected_signing_keys, "{what}");
}

fn without(state: &Value, path: &str) -> Value {
    let mut state = state.clone();
    let (parent, name) = path.rsplit_once('/').unwrap();
    state.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
    state
}

fn with(state: &Value, path: &str, value: Value) -> Value {
    let mut state = state.clone();
    *state.pointer_mut(path).unwrap() = value;
    state
}

#[test]
fn what_is_absent_or_null_in_a_state_is_the_same() {
    let (state, optional) = full_state();
    for path in optional {
        let absent = converted(&without(&state, path));
        assert_alike(&converted(&with(&state, path, Value::Null)), &absent, path);
        assert_ne!(
            format!("{absent:?}{:?}", absent.peers),
            format!("{0:?}{1:?}", converted(&state), converted(&state).peers),
            "{path}"
        );
    }
}

#[test]
fn what_is_absent_or_an_empty_text_is_the_same() {
    let (state, _) = full_state();
    for path in
        ["/peers/0/endpoint", "/peers/0/psk", "/signing_keys/previous", "/signing_keys/transition_expires"]
    {
        let absent = converted(&without(&state, path));
        assert_alike(&converted(&with(&state, path, json!(""))), &absent, path);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_read_back_as_it_was_written(
        texts in prop::collection::vec(any::<String>(), 1..8),
        numbers in prop::collection::vec(any::<u16>(), 1..8),
        unknown in "[a-z]{0,9}",
    ) {
        let (mut texts, mut numbers) = (texts.into_iter().cycle(), numbers.into_iter().cycle());
        for (mut request, again) in requests() {
            vary(&mut request, &mut texts, &mut numbers);
            prop_assert_eq!(again(&request), Ok(request.clone()));
            let mut extended = request.clone();
            for unknown in [json!(unknown), json!({ "x": [null] })] {
                extend(&mut extended, &unknown);
                prop_assert_eq!(again(&extended), Ok(request.clone()));
            }
        }
    }

    #[test]
    fn members_of_later_versions_change_nothing_of_a_state(
        texts in prop::collection::vec("[a-z0-9./:]{0,12}", 1..6),
        numbers in prop::collection::vec(any::<u16>(), 1..6),
    ) {
        let (state, _) = full_state();
        let mut varied = state.clone();
        vary(&mut varied, &mut texts.into_iter().cycle(), &mut numbers.into_iter().cycle());
        for state in [state, varied] {
            let mut extended = state.clone();
            extend(&mut extended, &json!({"psk": 1}));
            // Metadata has no members of its own, and sections are kept as they are.
            extended["metadata"].clone_from(&state["metadata"]);
            assert_alike(&converted(&extended), &converted(&state), "extended");
        }
    }
}
