//! Events that must not be applied: what they would do is easily seen, and each is counted by the node under its reason.

use plexd_e2e::wait_until;
use serde_json::{Value, json};

use super::trial::Trial;
use crate::support::{Mesh, SOON};

/// Key of the peer that bad events would add: 32 bytes, base64.
const KEY: &str = "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=";

/// Name of the data entry that bad events would add.
const DATA: &str = "evil";

/// Payload of more than the 8 MiB that an event may have, in bytes.
const TOO_MUCH: usize = (8 << 20) + 1;

/// What was sent to `a` and has to be refused.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Under which reason, and how many.
    refused: Option<(&'static str, u64)>,
    /// The event that is sent again and again.
    replayed: Option<String>,
}

impl Sent {
    /// Checks that `a` has refused all that was to be refused, for its reason, and has applied none of it.
    #[track_caller]
    pub(super) fn check(&self, mesh: &Mesh) {
        assert_nothing_applied(mesh);
        let Some((reason, count)) = self.refused else { return };
        wait_until(SOON, "the refusals", || {
            let status = mesh.a.node.status();
            let rejected = &status["control_plane"]["events_rejected"];
            if rejected[reason].as_u64() >= Some(count) { Ok(()) } else { Err(rejected.to_string()) }
        });
    }

    fn count(&mut self, reason: &'static str, more: u64) {
        let (_, count) = self.refused.unwrap_or((reason, 0));
        self.refused = Some((reason, count + more));
    }
}

#[track_caller]
fn assert_nothing_applied(mesh: &Mesh) {
    mesh.a.node.curl_unix(&format!("/v1/state/data/{DATA}"), &[]).expect_status(404);
    let peers = mesh.a.wg("peers");
    assert!(!peers.contains(KEY), "{peers}");
}

fn data(payload: &Value) -> Value {
    json!({ "metadata": {}, "data": [{ "key": DATA, "content_type": "text/plain", "payload": payload,
        "version": 1, "updated_at": "2026-01-15T10:30:00Z" }] })
}

/// Sends `a` one of each kind that would do harm, with `members` that make them bad.
fn send_harm(trial: &mut Trial, members: &Value, reason: &'static str) {
    let peer = json!({ "id": "n_evil", "public_key": KEY, "mesh_ip": "10.100.6.6", "endpoint": "192.0.2.66:51820",
        "allowed_ips": ["10.100.6.6/32"], "psk": "" });
    let anything = json!({ "src": "*", "dst": "*", "action": "allow" });
    let harm = [
        ("peer_added", peer),
        ("policy_updated", json!({ "policies": [{ "id": DATA, "rules": [anything] }] })),
        ("node_state_updated", data(&json!(DATA))),
        ("signing_key_rotated", json!({ "current": KEY })),
        ("rotate_keys", json!({})),
    ];
    for (event_type, payload) in &harm {
        let mut event = json!({ "event_type": event_type, "payload": payload });
        if let (Some(event), Some(members)) = (event.as_object_mut(), members.as_object()) {
            event.extend(members.clone());
        }
        trial.mesh.control_plane.send_crafted(&trial.mesh.a.id, &event);
    }
    trial.events.count(reason, 5);
    assert_nothing_applied(&trial.mesh);
}

pub(super) fn send_forged(trial: &mut Trial, _: u32) {
    send_harm(trial, &json!({ "forged": true }), "signature");
}

/// Issued more than five minutes ago.
pub(super) fn send_stale(trial: &mut Trial, _: u32) {
    send_harm(trial, &json!({ "issued_at_offset": -310 }), "stale");
}

/// Issued in more than five minutes.
pub(super) fn send_from_the_future(trial: &mut Trial, _: u32) {
    send_harm(trial, &json!({ "issued_at_offset": 330 }), "future");
}

/// Sends an honest event whose effect the next pull undoes, so that it would be seen if it came back.
pub(super) fn send_what_is_replayed(trial: &mut Trial) {
    let Mesh { a, control_plane, .. } = &trial.mesh;
    let id = control_plane.send_event(&a.id, "node_state_updated", &data(&json!(DATA)));
    wait_until(SOON, "the event", || {
        let status = a.node.status();
        let last = &status["control_plane"]["last_event_id"];
        if *last == id.as_str() { Ok(()) } else { Err(status.to_string()) }
    });
    wait_until(SOON, "the pull after it", || {
        a.node.curl_unix(&format!("/v1/state/data/{DATA}"), &[]).status == 404
    });
    trial.events.replayed = Some(id);
}

pub(super) fn send_again(trial: &mut Trial, _: u32) {
    let id = trial.events.replayed.clone().unwrap_or_default();
    for _ in 0..5 {
        trial.mesh.control_plane.send_again(&trial.mesh.a.id, &id);
    }
    trial.events.count("replay", 5);
    assert_nothing_applied(&trial.mesh);
}

/// Sends both nodes the policy as it was before the change, after the one of the change.
pub(super) fn send_reversed(trial: &mut Trial, _: u32) {
    let Mesh { a, b, control_plane, .. } = &trial.mesh;
    for member in [a, b] {
        let node = control_plane.admin("GET", &format!("/admin/nodes/{}", member.id), None);
        let event =
            |policies: Value| json!({ "event_type": "policy_updated", "payload": { "policies": policies } });
        let before = json!([{ "id": "test", "rules": [trial.mesh.allow(8080)] }]);
        let events = json!([event(before), event(node["state"]["policies"].clone())]);
        control_plane.send_reversed(&member.id, &events);
    }
}

pub(super) fn send_too_large(trial: &mut Trial, _: u32) {
    let Mesh { a, control_plane, .. } = &trial.mesh;
    control_plane.send_event(&a.id, "node_state_updated", &data(&json!("x".repeat(TOO_MUCH))));
    assert_nothing_applied(&trial.mesh);
}
