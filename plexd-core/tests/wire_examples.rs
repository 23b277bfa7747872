//! The JSON examples of the endpoints document: what plexd sends is produced exactly, member for member, and what it
//! receives is read. The keys in them are placeholders, so nothing is validated here.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use plexd_core::control::wire::{
    self, AuditEntry, CapabilitiesPayload, DriftReport, EndpointReport, EndpointResponse, ExecutionAck,
    ExecutionResult, HeartbeatRequest, HeartbeatResponse, KeyRotateRequest, KeyRotateResponse, LogEntry,
    MetricPoint, RegisterRequest, RegisterResponse, ReportSyncRequest, SecretResponse, SigningKeys,
    StateResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns JSON without white space between its tokens.
fn compact(json: &str) -> String {
    let mut in_string = false;
    let mut escaped = false;
    let mut out = String::new();
    for character in json.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_string = !in_string,
            _ if !in_string && character.is_ascii_whitespace() => continue,
            _ => {}
        }
        out.push(character);
    }
    out
}

/// Reads the example into `T` and writes it again.
fn assert_produced<T: DeserializeOwned + Serialize>(name: &str, example: &str) {
    let value: T = wire::parse(example.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let written = serde_json::to_string(&value).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(compact(&written), compact(example), "{name}");
}

#[test]
fn every_request_of_the_document_is_produced_exactly() {
    type Check = fn(&str, &str);
    let checks: [(&str, Check); 10] = [
        ("register_request.json", assert_produced::<RegisterRequest>),
        ("capabilities_request.json", assert_produced::<CapabilitiesPayload>),
        ("heartbeat_request.json", assert_produced::<HeartbeatRequest>),
        ("rotate_request.json", assert_produced::<KeyRotateRequest>),
        ("endpoint_request.json", assert_produced::<EndpointReport>),
        ("drift_request.json", assert_produced::<DriftReport>),
        ("report_request.json", assert_produced::<ReportSyncRequest>),
        ("ack_request.json", assert_produced::<ExecutionAck>),
        ("result_request.json", assert_produced::<ExecutionResult>),
        ("metrics_request.json", assert_produced::<Vec<MetricPoint>>),
    ];
    for (name, check) in checks {
        check(name, &fixture(name));
    }
    for line in fixture("logs_request.ndjson").lines() {
        assert_produced::<LogEntry>("logs_request.ndjson", line);
    }
    for line in fixture("audit_request.ndjson").lines() {
        assert_produced::<AuditEntry>("audit_request.ndjson", line);
    }
}

#[test]
fn what_is_optional_is_left_out() {
    let heartbeat: HeartbeatRequest = wire::parse(
        br#"{"node_id":"n","timestamp":"2025-01-15T10:30:00Z","status":"healthy","uptime":"1h","binary_checksum":""}"#,
    )
    .unwrap();
    assert_eq!(
        serde_json::to_string(&heartbeat).unwrap(),
        r#"{"node_id":"n","timestamp":"2025-01-15T10:30:00Z","status":"healthy","uptime":"1h","binary_checksum":""}"#
    );
    let capabilities = serde_json::to_string(&CapabilitiesPayload::default()).unwrap();
    assert_eq!(capabilities, r#"{"builtin_actions":[],"hooks":[]}"#);
}

#[test]
fn every_section_of_a_heartbeat_has_the_members_of_the_types_document() {
    let heartbeat = r#"{
        "node_id": "n_abc123", "timestamp": "2025-01-15T10:30:00Z", "status": "healthy", "uptime": "72h15m",
        "binary_checksum": "sha256:a1b2c3d4e5f6",
        "mesh": { "interface": "plexd0", "peer_count": 12, "listen_port": 51820 },
        "nat": { "public_endpoint": "203.0.113.10:51820", "type": "full_cone" },
        "bridge": {
            "enabled": true, "access_interface": "eth1", "active_routes": 2, "relay_enabled": true,
            "active_relay_sessions": 1, "ingress_enabled": true, "active_ingress_rules": 3,
            "site_to_site_enabled": true, "active_site_to_site_tunnels": 1
        },
        "user_access": { "enabled": true, "interface_name": "plexd-ua0", "peer_count": 4, "listen_port": 51821 },
        "ingress": { "enabled": true, "rule_count": 3, "connection_count": 7 },
        "site_to_site": { "enabled": true, "tunnel_count": 1 }
    }"#;
    assert_produced::<HeartbeatRequest>("heartbeat with every section", heartbeat);
}

#[test]
fn a_registration_is_read() {
    let text = fixture("register_response.json");
    let response: RegisterResponse<'_> = wire::parse_object(text.as_bytes()).unwrap();
    assert_eq!((response.node_id.as_str(), response.mesh_ip.as_str()), ("n_abc123", "10.100.1.1"));
    assert_eq!(response.signing_public_key, "base64-encoded-ed25519-public-key");
    assert_eq!(response.node_secret_key.expose(), "base64-encoded-aes-256-key");
    assert_peer(response.peers[0].text(), "base64-encoded-psk");
}

fn assert_peer(text: &str, psk: &str) {
    let peer: wire::Peer = wire::parse_object(text.as_bytes()).unwrap();
    assert_eq!((peer.id.as_deref(), peer.mesh_ip.as_str()), (Some("n_peer456"), "10.100.1.2"));
    assert_eq!(peer.endpoint.as_deref(), Some("203.0.113.10:51820"));
    assert_eq!(peer.allowed_ips, ["10.100.1.2/32"]);
    assert_eq!(peer.psk.as_ref().map(wire::SecretText::expose), Some(psk));
}

#[test]
fn a_state_is_read() {
    let text = fixture("state_response.json");
    let state: StateResponse<'_> = wire::parse_object(text.as_bytes()).unwrap();
    assert_peer(state.peers[0].text(), "...");

    let policies: Vec<wire::Policy<'_>> = wire::parse(state.policies.unwrap().text().as_bytes()).unwrap();
    let rule: wire::PolicyRule = wire::parse_object(policies[0].rules[0].text().as_bytes()).unwrap();
    assert_eq!((policies[0].id.as_str(), rule.src.as_str()), ("pol_abc", "10.100.1.0/24"));
    assert_eq!((rule.dst.as_str(), rule.port), ("10.100.1.5/32", 443));
    assert_eq!((rule.protocol.as_str(), rule.action.as_str()), ("tcp", "allow"));

    let keys: SigningKeys = wire::parse_object(state.signing_keys.unwrap().text().as_bytes()).unwrap();
    assert_eq!(keys.current, "base64-encoded-ed25519-public-key");
    assert_eq!(keys.previous.as_deref(), Some("base64-encoded-ed25519-public-key-or-null"));
    assert_eq!(keys.transition_expires.as_deref(), Some("2025-01-16T10:30:00Z"));

    assert_eq!(state.metadata["environment"].text(), "\"production\"");
    assert_eq!(state.metadata["region"].text(), "\"eu-west-1\"");
    let entry: wire::DataEntry<'_> = wire::parse_object(state.data[0].text().as_bytes()).unwrap();
    assert_eq!((entry.key.as_str(), entry.content_type.as_str()), ("database-config", "application/json"));
    assert_eq!(entry.payload.text(), r#"{ "host": "db.internal", "port": 5432 }"#);
    assert_eq!((entry.version, entry.updated_at.as_str()), (3, "2025-01-15T10:30:00Z"));
    let secret: wire::SecretRef = wire::parse_object(state.secret_refs[0].text().as_bytes()).unwrap();
    assert_eq!((secret.key.as_str(), secret.version), ("tls-cert", 2));
}

#[test]
fn the_other_answers_are_read() {
    let heartbeat = |name: &str| -> HeartbeatResponse { wire::parse(fixture(name).as_bytes()).unwrap() };
    assert_eq!(
        heartbeat("heartbeat_response_reconcile.json"),
        HeartbeatResponse { reconcile: true, rotate_keys: false }
    );
    assert_eq!(
        heartbeat("heartbeat_response_rotate_keys.json"),
        HeartbeatResponse { reconcile: false, rotate_keys: true }
    );

    let text = fixture("rotate_response.json");
    let rotated: KeyRotateResponse<'_> = wire::parse_object(text.as_bytes()).unwrap();
    assert_peer(rotated.updated_peers[0].text(), "base64-encoded-new-psk");

    let text = fixture("endpoint_response.json");
    let endpoints: EndpointResponse<'_> = wire::parse_object(text.as_bytes()).unwrap();
    let endpoint: wire::PeerEndpoint =
        wire::parse_object(endpoints.peer_endpoints[0].text().as_bytes()).unwrap();
    assert_eq!(endpoint.peer_id.as_deref(), Some("n_peer456"));
    assert_eq!(endpoint.endpoint.as_deref(), Some("198.51.100.5:51820"));

    let secret: SecretResponse = wire::parse(fixture("secret_response.json").as_bytes()).unwrap();
    assert_eq!((secret.key.as_str(), secret.version), ("tls-cert", 2));
    assert_eq!(secret.ciphertext, "base64-encoded-aes-256-gcm-ciphertext");
    assert_eq!(secret.nonce, "base64-encoded-gcm-nonce");
}
