//! What `plexd-ctl status` prints, to the letter.

use super::*;
use crate::output::{Colours, json};

fn terminal(colours: Colours) -> Terminal {
    Terminal { now: "2026-11-21T12:00:00Z".parse().unwrap(), colours }
}

fn upload(kind: &str, overflowed: u64, refused: u64) -> wire::Upload {
    wire::Upload { kind: kind.into(), waiting: 4, sent: 100, overflowed, refused }
}

fn healthy() -> wire::StatusResponse {
    wire::StatusResponse {
        version: "0.1.0".into(),
        uptime_ms: 303_500,
        health: wire::Health::Healthy.into(),
        problems: Vec::new(),
        identity: Some(wire::Identity {
            enrolment: wire::Enrolment::Enrolled.into(),
            node_id: "n-a1".into(),
            mesh_ip: "10.100.0.1".into(),
            hostname: "edge".into(),
            public_key: "c29tZSBwdWJsaWMga2V5IG9mIHRoaXJ0eS10d28gIQ==".into(),
        }),
        control_plane: Some(wire::ControlPlane {
            url: "https://192.0.2.1:8443".into(),
            stream: wire::StreamState::Connected.into(),
            last_byte_age_ms: Some(2_000),
            last_answer_age_ms: Some(12_000),
            last_error: String::new(),
            last_event_id: "evt-9".into(),
            events_accepted: 12,
            events_rejected: [("replay".into(), 1), ("stale".into(), 2)].into(),
            events_unsupported: [("action_request".into(), 1)].into(),
        }),
        mesh: Some(wire::Mesh {
            interface: "plexd0".into(),
            backend: "userspace".into(),
            backend_reason: "the kernel has no WireGuard".into(),
            listen_port: 51820,
            mtu: 1420,
            peers_desired: 3,
            peers_configured: 2,
            peers_up: 1,
            last_reconcile_age_ms: Some(7_000),
        }),
        policy: Some(wire::PolicyState {
            enabled: true,
            default_action: "deny".into(),
            policies: 1,
            rules: 2,
            rejected: String::new(),
        }),
        reports: Some(wire::Reports { entries: 3, pending: 1, conflicted: 0 }),
        capabilities: vec!["CAP_NET_ADMIN".into()],
        local_state: Some(wire::LocalState { metadata: 3, data: 2, secrets: 1 }),
        uploads: vec![upload("metrics", 0, 0)],
    }
}

fn render(response: wire::StatusResponse, colours: Colours) -> String {
    let terminal = terminal(colours);
    Status::new(response, terminal.now).render(&terminal)
}

#[test]
fn a_healthy_node_fits_one_screen() {
    let expected = "\
health         healthy
node           n-a1 (edge), enrolled
mesh           10.100.0.1 on plexd0, UDP port 51820, MTU 1420, userspace backend (the kernel has no WireGuard)
peers          1 up / 2 configured / 3 desired, reconciled 7s ago
control plane  https://192.0.2.1:8443, stream connected (last byte 2s ago), last answer 12s ago
events         12 accepted, 3 rejected (replay 1, stale 2), 1 unsupported (action_request 1)
policy         1 policy, 2 rules, default deny
reports        3 entries, 1 pending, 0 conflicted
state          3 metadata, 2 data entries, 1 secret
process        plexd-core 0.1.0, up 5m 3s, CAP_NET_ADMIN
";
    assert_eq!(render(healthy(), Colours::Plain), expected);
}

#[test]
fn a_degraded_node_says_what_is_wrong_and_what_to_do() {
    let mut response = healthy();
    response.set_health(wire::Health::Degraded);
    response.problems = vec![wire::Problem {
        subsystem: "control_plane".into(),
        message: "the certificate is not signed by /etc/plexd/ca.pem; set api_ca_file".into(),
    }];
    response.control_plane.as_mut().unwrap().last_error = "invalid peer certificate\nUnknownIssuer".into();
    let text = render(response, Colours::Plain);
    assert!(text.starts_with("health         degraded\n"), "{text}");
    assert!(
        text.contains("last answer 12s ago, failing: invalid peer certificate UnknownIssuer\n"),
        "{text}"
    );
    assert!(
        text.ends_with(
            "problem        control_plane: the certificate is not signed by /etc/plexd/ca.pem; set api_ca_file\n"
        ),
        "{text}"
    );
}

#[test]
fn a_fresh_node_says_that_it_waits_for_a_token() {
    let text = render(wire::StatusResponse::default(), Colours::Plain);
    assert!(text.starts_with("health         unknown\nnode           -, unknown\n"), "{text}");
    let mut response = wire::StatusResponse::default();
    response.identity.get_or_insert_default().set_enrolment(wire::Enrolment::WaitingForToken);
    let text = render(response, Colours::Plain);
    assert!(text.contains("node           -, waiting for token\n"), "{text}");
    assert!(text.contains("never reconciled") && text.contains("last byte never"), "{text}");
}

#[test]
fn health_is_coloured_on_a_terminal() {
    assert!(render(healthy(), Colours::Ansi).starts_with("health         \x1b[32mhealthy\x1b[0m\n"));
}

#[test]
fn a_control_plane_cannot_write_to_the_terminal() {
    let mut response = healthy();
    response.identity.as_mut().unwrap().node_id = "\x1b]0;owned\x07".into();
    response.problems = vec![wire::Problem { subsystem: "mesh".into(), message: "\x1b[2J".into() }];
    let text = render(response, Colours::Plain);
    assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
}

#[test]
fn the_json_has_its_documented_shape() {
    let expected = r#"{
  "version": "0.1.0",
  "started_at": "2026-11-21T11:54:56.500Z",
  "uptime_seconds": 303,
  "health": "healthy",
  "problems": [],
  "identity": {
    "enrolment": "enrolled",
    "node_id": "n-a1",
    "mesh_ip": "10.100.0.1",
    "hostname": "edge",
    "public_key": "c29tZSBwdWJsaWMga2V5IG9mIHRoaXJ0eS10d28gIQ=="
  },
  "control_plane": {
    "url": "https://192.0.2.1:8443",
    "stream": "connected",
    "last_byte_at": "2026-11-21T11:59:58.000Z",
    "last_answer_at": "2026-11-21T11:59:48.000Z",
    "last_error": null,
    "last_event_id": "evt-9",
    "events_accepted": 12,
    "events_rejected": {
      "replay": 1,
      "stale": 2
    },
    "events_unsupported": {
      "action_request": 1
    }
  },
  "mesh": {
    "interface": "plexd0",
    "backend": "userspace",
    "backend_reason": "the kernel has no WireGuard",
    "listen_port": 51820,
    "mtu": 1420,
    "peers_desired": 3,
    "peers_configured": 2,
    "peers_up": 1,
    "last_reconcile_at": "2026-11-21T11:59:53.000Z"
  },
  "policy": {
    "enabled": true,
    "default_action": "deny",
    "policies": 1,
    "rules": 2,
    "rejected": null
  },
  "reports": {
    "entries": 3,
    "pending": 1,
    "conflicted": 0
  },
  "uploads": {
    "metrics": {
      "waiting": 4,
      "sent": 100,
      "overflowed": 0,
      "refused": 0
    }
  },
  "local_state": {
    "metadata": 3,
    "data": 2,
    "secrets": 1
  },
  "capabilities": [
    "CAP_NET_ADMIN"
  ]
}
"#;
    let view = Status::new(healthy(), terminal(Colours::Plain).now);
    assert_eq!(json(&view).unwrap(), expected);
}

#[test]
fn what_was_lost_on_the_way_up_has_a_line_of_its_own_and_nothing_else_has() {
    let mut response = healthy();
    assert!(!render(response.clone(), Colours::Plain).contains("\nlost "));
    response.uploads.push(upload("audit records", 7, 1));
    let text = render(response.clone(), Colours::Plain);
    let line = "lost           8 audit records: 7 because too many waited, 1 refused by the control plane (100 sent, 4 \
                waiting)\n";
    assert!(text.contains(line) && text.matches("\nlost ").count() == 1, "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&json(&Status::new(response, terminal(Colours::Plain).now)).unwrap()).unwrap();
    let expected = serde_json::json!({ "waiting": 4, "sent": 100, "overflowed": 7, "refused": 1 });
    assert_eq!(json["uploads"]["audit_records"], expected);
    assert_eq!(json["uploads"]["metrics"]["overflowed"], 0);
}
