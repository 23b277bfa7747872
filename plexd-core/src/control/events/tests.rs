//! Every row of the contract's table of events.

use super::*;

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const NEW_KEY: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
const SIGNING: &str = "lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=";

fn event(kind: &str, payload: &str) -> Result<Event, PayloadError> {
    let payload = payload.replace("NEWKEY", NEW_KEY).replace("KEY", KEY).replace("SIGNING", SIGNING);
    decode(kind, &RawValue::from_string(payload).unwrap())
}

#[test]
fn a_peer_is_added_under_either_name_of_its_id() {
    for member in ["id", "peer_id"] {
        let payload =
            format!(r#"{{"{member}":"n_1","public_key":"KEY","mesh_ip":"10.100.0.2","psk":"NEWKEY"}}"#);
        let Ok(Event::PeerAdded(peer)) = event("peer_added", &payload) else { panic!("{member}") };
        assert_eq!((peer.id.as_str(), peer.psk.is_some()), ("n_1", true));
    }
    let error = event("peer_added", r#"{"public_key":"KEY","mesh_ip":"10.100.0.2"}"#).unwrap_err();
    assert_eq!(error.to_string(), "payload of peer_added: has no id");
}

#[test]
fn a_peer_is_removed_and_moved() {
    let id: NodeId = "n_1".parse().unwrap();
    assert_eq!(event("peer_removed", r#"{"peer_id":"n_1"}"#), Ok(Event::PeerRemoved(id.clone())));
    let moved = |payload: &str| match event("peer_endpoint_changed", payload) {
        Ok(Event::PeerEndpointChanged(PeerEndpoint { id: of, endpoint })) if of == id => {
            endpoint.map(|endpoint| endpoint.to_string())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(moved(r#"{"peer_id":"n_1","endpoint":"203.0.113.1:5"}"#).as_deref(), Some("203.0.113.1:5"));
    assert_eq!(moved(r#"{"id":"n_1","endpoint":""}"#), None);
    assert_eq!(moved(r#"{"id":"n_1","endpoint":null}"#), None);
    assert!(event("peer_endpoint_changed", r#"{"id":"n_1","endpoint":"nowhere"}"#).is_err());
    for bad in ["null", "{}", r#"{"peer_id":7}"#, r#"{"peer_id":"../x"}"#] {
        assert!(event("peer_removed", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_key_rotation_is_read_in_all_its_forms() {
    let rotation = |payload: &str| match event("peer_key_rotated", payload) {
        Ok(Event::PeerKeyRotated(rotation)) => rotation,
        other => panic!("{other:?}"),
    };
    for payload in [
        r#"{"peer_id":"n_1","public_key":"NEWKEY","psk":"KEY"}"#,
        r#"{"peer_id":"n_1","new_public_key":"NEWKEY","new_psk":"KEY"}"#,
        r#"{"id":"n_1","public_key":"KEY","new_public_key":"NEWKEY","psk":"NEWKEY","new_psk":"KEY"}"#,
    ] {
        let rotation = rotation(payload);
        assert_eq!((rotation.id.as_str(), rotation.public_key.to_string().as_str()), ("n_1", NEW_KEY));
        assert_eq!(rotation.psk.unwrap().to_base64().as_str(), KEY, "{payload}");
        assert_eq!(rotation.peer, None);
    }
    let whole = rotation(
        r#"{"id":"n_1","public_key":"NEWKEY","mesh_ip":"10.100.0.2","allowed_ips":["10.100.0.2/32"],"psk":""}"#,
    );
    let peer = whole.peer.unwrap();
    assert_eq!((peer.public_key, peer.psk, whole.psk), (whole.public_key, None, None));
    for bad in [
        r#"{"peer_id":"n_1"}"#,
        r#"{"public_key":"KEY"}"#,
        r#"{"peer_id":"n_1","public_key":"KEY","psk":"x"}"#,
    ] {
        assert!(event("peer_key_rotated", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_policy_set_comes_in_two_forms_and_anything_else_asks_for_a_pull() {
    for payload in [r#"{"policies":[{"id":"p","rules":[]}]}"#, r#"[{"id":"p","rules":[]}]"#] {
        let Ok(Event::PolicyUpdated(Ok(set))) = event("policy_updated", payload) else { panic!("{payload}") };
        assert_eq!(set.policies.len(), 1);
    }
    let bad = r#"{"policies":[{"id":"p","rules":[{"src":"x y","dst":"*","action":"allow"}]}]}"#;
    let Ok(Event::PolicyUpdated(Err(reason))) = event("policy_updated", bad) else { panic!("not invalid") };
    assert!(reason.starts_with("policy \"p\", rule 1: src"), "{reason}");
    for payload in ["null", "{}", "7", r#""x""#, r#"{"policies":null}"#, r#"{"policies":{}}"#] {
        assert_eq!(event("policy_updated", payload), Ok(Event::Reconcile), "{payload}");
    }
}

#[test]
fn state_and_secret_updates_upsert_what_is_valid() {
    let payload =
        r#"{"metadata":{"a":"b","c":1},"data":[{"key":"k","payload":[1.0],"version":2},{"key":""}]}"#;
    let Ok(Event::NodeStateUpdated(delta)) = event("node_state_updated", payload) else { panic!("refused") };
    assert_eq!(delta.metadata.get("a").map(String::as_str), Some("b"));
    assert_eq!((delta.data.len(), delta.data[0].payload.in_memory().unwrap()), (1, "[1.0]".into()));
    assert_eq!(delta.rejected.len(), 2);
    assert!(event("node_state_updated", "null").is_err());
    assert!(event("node_state_updated", r#"{"metadata":null}"#).is_ok());

    let refs = event("node_secrets_updated", r#"{"secret_refs":[{"key":"tls","version":2}]}"#);
    assert_eq!(refs, Ok(Event::NodeSecretsUpdated(vec![SecretRef { key: "tls".into(), version: 2 }])));
    assert!(event("node_secrets_updated", r#"{"secret_refs":[{"key":"tls"}]}"#).is_err());
}

#[test]
fn every_type_of_the_documents_is_known_and_no_other() {
    assert_eq!(EventKind::ALL.len(), 24);
    for kind in EventKind::ALL {
        assert_eq!(EventKind::from_name(kind.as_str()), Some(*kind));
    }
    assert_eq!(event("rotate_keys", "7"), Ok(Event::RotateKeys));
    assert!(matches!(
        event("signing_key_rotated", r#"{"current":"SIGNING"}"#),
        Ok(Event::SigningKeyRotated(rotation)) if rotation.current().to_string() == SIGNING
    ));
    assert_eq!(event("something_new", "{}"), Ok(Event::Unknown("something_new".into())));
    for section in ["bridge", "user_access", "ingress", "site_to_site"] {
        assert_eq!(event(&format!("{section}_config_updated"), "7"), Ok(Event::Reconcile));
    }
    for kind in ["action_request", "session_revoked", "ssh_session_setup", "relay_session_assigned"] {
        assert_eq!(event(kind, "7"), Ok(Event::Unsupported(EventKind::from_name(kind).unwrap())));
    }
}

#[test]
fn no_error_quotes_a_key() {
    for payload in [
        r#"{"peer_id":"n","public_key":"hunter2","psk":["hunter2"]}"#,
        r#"{"id":{"hunter2":1}}"#,
        r#""hunter2""#,
    ] {
        for kind in EventKind::ALL {
            if let Err(error) = event(kind.as_str(), payload) {
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
        }
    }
}

#[test]
fn every_event_of_the_documents_has_an_example_that_is_read_as_what_it_is() {
    #[derive(Deserialize)]
    struct Example<'a> {
        event_type: &'a str,
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    // The end-to-end tests send the same to a node.
    let examples: Vec<Example<'_>> =
        serde_json::from_str(include_str!("../../../tests/fixtures/events.json")).unwrap();
    let names: Vec<&str> = examples.iter().map(|example| example.event_type).collect();
    let wanted: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(names, wanted);
    for Example { event_type, payload } in examples {
        let event = decode(event_type, payload).unwrap();
        assert!(!matches!(event, Event::Unknown(_) | Event::PolicyUpdated(Err(_))), "{event:?}");
        if let Event::NodeStateUpdated(delta) = &event {
            assert!(delta.rejected.is_empty() && delta.metadata.len() == 2 && delta.data.len() == 1);
        }
    }
}
