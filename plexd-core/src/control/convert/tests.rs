//! Conversions, case by case.

use std::num::NonZero;

use crate::state::SecretRef;

use super::*;
use crate::policy::{Action, Selector, Service};

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const SIGNING: &str = "lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=";

fn state_of(text: &str) -> FullState {
    let text = text.replace("KEY", KEY).replace("SIGNING", SIGNING);
    state(&wire::parse_object(text.as_bytes()).unwrap())
}

fn base64_of(byte: u8) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode([byte; 32])
}

#[test]
fn absent_and_null_lists_and_maps_are_empty() {
    for text in [
        "{}",
        r#"{"peers":null,"policies":null,"signing_keys":null,"metadata":null,"data":null,"secret_refs":null,"relay_config":null,"new":1}"#,
    ] {
        let state = state_of(text);
        assert!(state.peers.is_empty() && state.metadata.is_empty() && state.data.is_empty(), "{text}");
        assert!(state.secret_refs.is_empty() && state.sections.is_empty(), "{text}");
        assert!(state.rejected_peers.is_empty() && state.rejected_data.is_empty(), "{text}");
        assert_eq!(state.policies, Ok(PolicySet::default()));
        assert_eq!((state.signing_keys, state.rejected_signing_keys), (None, None));
    }
}

#[test]
fn a_peer_is_read_with_host_bits_cleared_and_empty_texts_absent() {
    let peer = peer(
        &r#"{"id":"n_1","public_key":"KEY","mesh_ip":"fd00::2","endpoint":"","psk":null,
            "allowed_ips":["10.100.1.2","10.1.2.3/8","fd00::2","fd01::1/64"],"zone":"x"}"#
            .replace("KEY", KEY),
    )
    .unwrap();
    assert_eq!((peer.endpoint, peer.psk), (None, None));
    let nets: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.0.0.0/8", "10.100.1.2/32", "fd00::2/128", "fd01::/64"]);
}

#[test]
fn a_bad_peer_is_left_out_with_its_name_and_the_others_stay() {
    let good =
        |id: &str, key: &str| format!(r#"{{"id":"{id}","public_key":"{key}","mesh_ip":"10.100.0.1"}}"#);
    let short = r#"{"id":"n_short","public_key":"AAAA","mesh_ip":"10.100.0.1"}"#;
    let psk = format!(r#"{{"id":"n_psk","public_key":"{KEY}","mesh_ip":"10.0.0.1","psk":"hunter2"}}"#);
    let cidr =
        format!(r#"{{"id":"n_ip","public_key":"{KEY}","mesh_ip":"10.0.0.1","allowed_ips":["10.0.0.0/33"]}}"#);
    let list = [
        good("n_1", KEY),
        short.to_owned(),
        psk,
        cidr,
        good("n_1", &base64_of(7)),
        good("n_2", KEY),
        good("1bad", &base64_of(7)),
        "7".to_owned(),
        good("n_3", &base64_of(7)),
    ]
    .join(",");
    let state = state_of(&format!(r#"{{"peers":[{list}]}}"#));
    let ids: Vec<_> = state.peers.iter().map(|peer| peer.id.as_str()).collect();
    assert_eq!(ids, ["n_1", "n_3"]);
    let rejected: Vec<_> = state.rejected_peers.iter().map(ToString::to_string).collect();
    let expected = [
        "n_short: public_key has 3 bytes, not 32",
        "n_psk: psk is not base64",
        "n_ip: allowed_ips: \"10.0.0.0/33\" is neither an address nor a network",
        "n_1: an earlier peer has the same id",
        "n_2: an earlier peer has the same public key",
        "1bad: id: \"1bad\" is not a node id",
        "peers[7]: expected an object",
    ];
    assert_eq!(rejected.len(), expected.len(), "{rejected:?}");
    for (rejected, expected) in rejected.iter().zip(expected) {
        assert!(rejected.starts_with(expected), "{rejected}");
    }
}

#[test]
fn an_endpoint_is_read_to_its_end_or_refused() {
    let peer_at = |endpoint: &str| {
        let text =
            format!(r#"{{"id":"n_1","public_key":"{KEY}","mesh_ip":"10.0.0.1","endpoint":"{endpoint}"}}"#);
        peer(&text).map(|peer| peer.endpoint.unwrap().to_string())
    };
    // A name may have 253 bytes; one that is cut off must not be taken for another port.
    for labels in [60, 61, 62, 63, 126] {
        let endpoint = format!("{}c:51820", "b.".repeat(labels));
        assert_eq!(peer_at(&endpoint).as_deref(), Ok(endpoint.as_str()));
    }
    let error = peer_at(&format!("{}c:51820", "b.".repeat(127))).unwrap_err();
    assert!(error.contains("is not HOST:PORT") && error.len() < 500, "{error}");
}

#[test]
fn of_very_many_refusals_the_first_are_named_and_the_others_counted() {
    let ones = |count: usize| vec!["1"; count].join(",");
    let rejected = |list: &[Rejected]| (list.len(), list[0].to_string(), list[256].to_string());
    let state = state_of(&format!(r#"{{"peers":[{0}],"data":[{0}]}}"#, ones(1000)));
    let others = |list: &str| format!("{list} (others): 744 more are invalid");
    let first = |list: &str| format!("{list}[0]: expected an object");
    assert_eq!(rejected(&state.rejected_peers), (257, first("peers"), others("peers")));
    assert_eq!(rejected(&state.rejected_data), (257, first("data entry"), others("data")));
    assert_eq!(state_of(&format!(r#"{{"peers":[{}]}}"#, ones(256))).rejected_peers.len(), 256);
}

#[test]
fn entries_keep_their_payload_byte_for_byte_and_the_first_of_a_key_stays() {
    let long = "k".repeat(257);
    let state = state_of(&format!(
        r#"{{"data":[{{"key":"a","content_type":"application/json","payload":{{ "z": 1.0, "a":"\u00e9" }},"version":3,"updated_at":"2025-01-15T10:30:00Z"}},
            {{"key":"a","payload":1,"version":4}}, {{"key":"","payload":1,"version":1}}, {{"key":"n","payload":null,"version":1}},
            {{"key":"x","version":1}}, {{"key":"{long}","payload":1,"version":1}}, {{"key":"t\n","payload":1,"version":1}}],
          "secret_refs":[{{"key":"tls","version":2}},{{"key":"tls","version":3}}],
          "metadata":{{"env":"prod","n":1,"":"x"}}}}"#
    ));
    let payload = |entry: &crate::state::DataEntry| entry.payload.in_memory().unwrap();
    let entries: Vec<_> = state.data.iter().map(|entry| (&*entry.key, payload(entry))).collect();
    assert_eq!(entries, [("a", r#"{ "z": 1.0, "a":"\u00e9" }"#.into()), ("n", "null".into())]);
    assert_eq!(state.secret_refs, [SecretRef { key: "tls".into(), version: 2 }]);
    assert_eq!(state.metadata.into_iter().collect::<Vec<_>>(), [("env".into(), "prod".into())]);
    let rejected: Vec<_> = state.rejected_data.iter().map(ToString::to_string).collect();
    let expected = [
        "data a: an earlier entry has the same key",
        "data entry[2]: the key is empty",
        "data x: missing field `payload`",
        "data kkk",
        "data t\\n: the key has control characters",
        "metadata : the key is empty",
        "metadata n: expected a string",
        "secret tls: an earlier entry has the same key",
    ];
    assert_eq!(rejected.len(), expected.len(), "{rejected:?}");
    for (rejected, expected) in rejected.iter().zip(expected) {
        assert!(rejected.starts_with(expected), "{rejected}");
    }
}

#[test]
fn invalid_signing_keys_are_refused_and_say_so() {
    let state = state_of(r#"{"signing_keys":{"current":"SIGNING","previous":"SIGNING"}}"#);
    assert_eq!(state.signing_keys.unwrap().previous, None);
    let state = state_of(r#"{"signing_keys":{"current":"SIGNING","previous":"","transition_expires":null}}"#);
    assert_eq!(state.signing_keys.unwrap().transition_expires, None);
    for (text, reason) in [
        (r#"{"signing_keys":{"current":""}}"#, "current has 0 bytes"),
        (r#"{"signing_keys":{"current":"SIGNING","transition_expires":"soon"}}"#, "transition_expires"),
        (r#"{"signing_keys":["SIGNING",null,null]}"#, "expected an object"),
    ] {
        let state = state_of(text);
        assert_eq!(state.signing_keys, None, "{text}");
        let told = state.rejected_signing_keys.unwrap();
        assert!(told.contains(reason), "{text}: {told}");
    }
}

#[test]
fn rules_are_read_as_the_contract_has_them() {
    let set = policies(
        r#"[{"id":"p1","rules":[
            {"src":"10.100.1.7/24","dst":"10.100.1.5","port":443,"protocol":"tcp","action":"allow"},
            {"src":"n_abc","dst":"*","port":0,"protocol":"udp","action":"deny","comment":"x"},
            {"src":"fd00::1/64","dst":"face","action":"allow","port":null,"protocol":null}]},
          {"id":"p2","rules":null},{"id":"p3"}]"#,
    )
    .unwrap();
    assert_eq!(set.policies.len(), 3);
    let rules: Vec<_> = set.rules().collect();
    assert_eq!(rules[0].src, Selector::Net("10.100.1.0/24".parse().unwrap()));
    assert_eq!(rules[0].dst, Selector::Net("10.100.1.5/32".parse().unwrap()));
    assert_eq!((rules[0].service, rules[0].action), (Service::Tcp(NonZero::new(443)), Action::Allow));
    assert_eq!(rules[1].src, Selector::Node("n_abc".parse().unwrap()));
    assert_eq!(
        (&rules[1].dst, rules[1].service, rules[1].action),
        (&Selector::Any, Service::Udp(None), Action::Deny)
    );
    assert_eq!(rules[2].src, Selector::Net("fd00::/64".parse().unwrap()));
    assert_eq!((&rules[2].dst, rules[2].service), (&Selector::Node("face".parse().unwrap()), Service::Any));
}

#[test]
fn one_invalid_rule_makes_the_set_invalid_and_is_named() {
    let rule = |changes: &str| {
        let mut rule: serde_json::Map<String, serde_json::Value> = serde_json::from_str(
            r#"{"src":"*","dst":"10.0.0.1","port":443,"protocol":"tcp","action":"allow"}"#,
        )
        .unwrap();
        rule.extend(serde_json::from_str::<serde_json::Map<_, _>>(changes).unwrap());
        let good = r#"{"src":"*","dst":"*","action":"deny"}"#;
        format!(
            r#"[{{"id":"a","rules":[]}},{{"id":"b","rules":[{good},{}]}}]"#,
            serde_json::Value::from(rule)
        )
    };
    for (changes, reason) in [
        (r#"{"action":"Allow"}"#, "action \"Allow\" is neither"),
        (r#"{"action":""}"#, "action \"\" is neither"),
        (r#"{"protocol":"icmp"}"#, "protocol \"icmp\" is not tcp"),
        (r#"{"protocol":""}"#, "port 443 needs a protocol"),
        (r#"{"port":65536}"#, "port 65536 is not between"),
        (r#"{"port":-1}"#, "port -1 is not between"),
        (r#"{"port":"443"}"#, "expected i64"),
        (r#"{"port":443.5}"#, "expected i64"),
        (r#"{"src":""}"#, "src is empty"),
        (r#"{"src":null}"#, "src is empty"),
        (r#"{"src":"10.0.0.0/33"}"#, "src \"10.0.0.0/33\" is neither an address nor a network"),
        (r#"{"src":"10.0.0"}"#, "src \"10.0.0\" is neither"),
        (r#"{"src":"300.0.0.1"}"#, "is neither"),
        (r#"{"src":"fd00::12345"}"#, "src \"fd00::12345\" is neither"),
        (r#"{"dst":"n b"}"#, "dst: \"n b\" is not a node id"),
        (r#"{"dst":"n_abc/32"}"#, "is not a node id"),
        (r#"{"dst":["10.0.0.1"]}"#, "expected a string"),
    ] {
        let error = policies(&rule(changes)).unwrap_err();
        assert!(error.starts_with("policy \"b\", rule 2: ") && error.contains(reason), "{changes}: {error}");
    }
}

#[test]
fn sets_that_are_wrong_as_a_whole_are_invalid() {
    let rules = vec![r#"{"src":"*","dst":"*","action":"deny"}"#; MAX_RULES].join(",");
    assert!(policies(&format!(r#"[{{"id":"a","rules":[{rules}]}}]"#)).is_ok());
    let one_more = format!(
        r#"[{{"id":"a","rules":[{rules}]}},{{"id":"b","rules":[{{"src":"*","dst":"*","action":"deny"}}]}}]"#
    );
    for (text, reason) in [
        (one_more.as_str(), "policy \"b\": more than 20000 rules in all"),
        (r#"[{"id":"a"},{"id":"a"}]"#, "policy \"a\" occurs twice"),
        (r#"[{"id":""}]"#, "policy number 1 has an empty id"),
        (r#"[{"id":"a"},{"rules":[]}]"#, "policy number 2: missing field `id`"),
        (r#"[{"id":"a","rules":{}}]"#, "policy number 1: expected a sequence"),
        (r#"{"id":"a"}"#, "policies: expected a sequence"),
        (r#"[["a",[]]]"#, "policy number 1: expected an object"),
        (r#"[{"id":"a","rules":[["*","*",0,"","allow"]]}]"#, "policy \"a\", rule 1: expected an object"),
        (
            r#"[{"id":"a","rules":[{"src":"*","dst":"*","action":"deny","action":"allow"}]}]"#,
            "duplicate field `action`",
        ),
    ] {
        let error = policies(text).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_registration_names_the_member_that_is_wrong() {
    let good = format!(
        r#"{{"node_id":"n_abc123","mesh_ip":"10.100.1.1","signing_public_key":"{SIGNING}","node_secret_key":"{KEY}","peers":null}}"#
    );
    let registered = |text: &str| registration(&wire::parse_object(text.as_bytes()).unwrap());
    let registration = registered(&good).unwrap();
    assert_eq!(registration.node_secret_key.as_str(), KEY);
    assert!(!format!("{registration:?}").contains(KEY));
    for (from, to, reason) in [
        ("n_abc123", "../x", "node_id: "),
        ("10.100.1.1", "10.100.1", "mesh_ip \"10.100.1\" is not an address"),
        (SIGNING, "AAAA", "signing_public_key has 3 bytes, not 32"),
        (KEY, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", ""),
        (KEY, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==", "node_secret_key has 31 bytes, not 32"),
    ] {
        match registered(&good.replace(from, to)) {
            Ok(_) => assert!(reason.is_empty(), "{to}"),
            Err(error) => assert!(!reason.is_empty() && error.starts_with(reason), "{error}"),
        }
    }
}
