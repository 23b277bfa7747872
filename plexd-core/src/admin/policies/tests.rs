//! What is said of a connection on this node, by a policy in force that is made up.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::policy::Context;
use crate::reconcile::tests::policies;
use crate::types::NodeId;

fn id(text: &str) -> NodeId {
    text.parse().unwrap()
}

/// Node `n_a`; `n_b` has a tunnel, with a network behind it of which somebody else routes a part; `n_c` is hidden.
fn in_force() -> InForce {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<BTreeSet<_>>();
    let members = [
        (id("n_a"), nets(&["10.100.0.1/32"])),
        (id("n_b"), nets(&["10.100.0.2/32", "10.7.0.0/16", "10.8.0.0/16"])),
        (id("n_c"), nets(&["10.100.0.3/32"])),
    ];
    let tunnels = ["10.100.0.2/32", "10.7.0.0/16", "10.8.0.0/16"];
    let rules = [
        ("n_b", "n_a", Action::Allow),
        ("n_a", "10.7.0.0/16", Action::Allow),
        ("10.7.0.0/16", "n_gone", Action::Deny),
    ];
    InForce {
        policies: policies(&rules),
        context: Context {
            node: id("n_a"),
            mesh_ip: "10.100.0.1".parse().unwrap(),
            members: BTreeMap::from(members),
            interface: "plexd0".to_owned(),
            default: Action::Deny,
            enabled: true,
            log_denied: false,
        },
        refused: None,
        settled: true,
        addresses: [("n_a", "10.100.0.1"), ("n_b", "10.100.0.2"), ("n_c", "10.100.0.3")]
            .map(|(node, address)| (id(node), address.parse().unwrap()))
            .into(),
        tunnels: tunnels.map(|net| (net.parse().unwrap(), id("n_b"))).into(),
        problems: [(id("n_c"), "no policy lets this node and the peer talk".to_owned())].into(),
        conflicts: [("10.8.0.0/16".parse().unwrap(), Some("eth1".to_owned()))].into(),
    }
}

fn explain(in_force: &InForce, source: &str, destination: &str) -> v1::ExplainPolicyResponse {
    let (source, destination) = (source.to_owned(), destination.to_owned());
    let flow = v1::Flow { source, destination, protocol: "tcp".to_owned(), port: 443 };
    explain::answer(in_force, &flow, v1::PolicyState::default()).unwrap()
}

#[test]
fn the_way_by_this_node_is_told_and_what_keeps_packets_off_the_mesh() {
    use v1::Direction::{In, Local, Out, Through};

    let never = "so such packets never come by plexd0";
    let other_way = "the other way round it is allowed, by rule 1 of policy pol: 10.";
    for (source, destination, direction, crosses, words) in [
        ("n_b", "n_a", In, true, &[][..]),
        ("n_a", "n_b", Out, true, &[other_way]),
        ("n_a", "10.7.0.9", Out, true, &[]),
        (
            "n_a",
            "10.8.0.9",
            Out,
            false,
            &["10.8.0.0/16 is not routed through plexd0: it belongs to eth1", never, other_way],
        ),
        ("10.8.0.9", "n_a", In, true, &[]),
        ("n_a", "n_c", Out, false, &["n_c is hidden from this node", never]),
        ("n_c", "n_a", In, false, &["n_c is hidden from this node", never]),
        ("n_a", "192.0.2.1", Out, false, &["192.0.2.1 is in no peer's allowed IPs", never]),
        ("n_a", "10.100.0.1", Local, false, &["both ends are this node"]),
        (
            "n_b",
            "192.168.0.9",
            Through,
            true,
            &["only if they pass through this node", "192.168.0.9 is in no"],
        ),
        (
            "192.168.0.9",
            "n_c",
            Through,
            false,
            &["only on this node", "192.168.0.9 is", "n_c is hidden", never],
        ),
    ] {
        let answer = explain(&in_force(), source, destination);
        assert_eq!(
            (answer.direction(), answer.crosses_mesh),
            (direction, crosses),
            "{source} -> {destination}"
        );
        assert_eq!(answer.remarks.len(), words.len(), "{source} -> {destination}: {:?}", answer.remarks);
        for (remark, words) in answer.remarks.iter().zip(words) {
            assert!(remark.contains(words), "{source} -> {destination}: {remark}");
        }
    }
}

#[test]
fn what_is_not_as_it_should_be_is_told_first() {
    let mut in_force = in_force();
    in_force.context.enabled = false;
    in_force.settled = false;
    in_force.addresses.insert(id("n_d"), "10.100.0.2".parse().unwrap());
    let flow = v1::Flow { source: "n_d".to_owned(), destination: "n_a".to_owned(), ..v1::Flow::default() };
    let state = v1::PolicyState { rejected: "too many".to_owned(), ..v1::PolicyState::default() };
    let answer = explain::answer(&in_force, &flow, state).unwrap();
    assert_eq!(answer.verdict(), v1::Verdict::Allow);
    let words =
        ["policy is disabled", "not in force: too many", "may not have all of this", "belongs to n_b"];
    assert_eq!(answer.remarks.len(), words.len(), "{:?}", answer.remarks);
    for (remark, words) in answer.remarks.iter().zip(words) {
        assert!(remark.contains(words), "{remark}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused_with_what_to_write() {
    let in_force = in_force();
    let ask = |source: &str, destination: &str, protocol: &str, port| {
        let [source, destination, protocol] = [source, destination, protocol].map(str::to_owned);
        ask::question(&in_force, &v1::Flow { source, destination, protocol, port })
    };
    for (source, destination, protocol, port, words) in [
        ("n_x", "n_a", "", 0, "there is no node n_x now"),
        ("10.0.0.0/8", "n_a", "", 0, "\"10.0.0.0/8\" is neither an address nor the id"),
        ("", "n_a", "", 0, "\"\" is neither"),
        ("n_a", "fd00::1", "", 0, "n_a (10.100.0.1) and fd00::1 are of two address families"),
        ("n_a", "n_b", "sctp", 0, "protocol \"sctp\" is not"),
        ("n_a", "n_b", "icmp", 1, "port 1 needs a protocol that has ports"),
        ("n_a", "n_b", "", 1, "port 1 needs a protocol"),
        ("n_a", "n_b", "tcp", 65_536, "port 65536 is not between"),
    ] {
        let refused = ask(source, destination, protocol, port).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    let protocol = |source, destination, text| ask(source, destination, text, 0).unwrap().protocol;
    assert_eq!(protocol("n_a", "n_b", ""), None);
    assert_eq!(protocol("n_a", "n_b", "icmp"), Some(1));
    assert_eq!(protocol("fd00::1", "fd00::2", "icmp"), Some(58));
    assert_eq!(protocol("n_a", "n_b", "47"), Some(47));
    assert_eq!(ask("n_a", "n_b", "6", 443).unwrap().port.map(u16::from), Some(443));
}

#[test]
fn of_many_rules_the_first_are_named_and_all_are_counted() {
    let port = |port: u16| Rule {
        service: Service::Tcp(std::num::NonZeroU16::new(port)),
        src: "n_b".parse().map(crate::policy::Selector::Node).unwrap(),
        dst: crate::policy::Selector::Any,
        action: Action::Allow,
    };
    let set = policy::Policy { id: "many".to_owned(), rules: (1..=40).map(port).collect() };
    let policies = Arc::new(PolicySet { policies: vec![set] });
    let in_force = InForce { policies, ..in_force() };
    let answer = explain(&in_force, "n_b", "n_a");
    assert_eq!((answer.nearly.len(), answer.nearly_total), (16, 40));
    assert_eq!(answer.nearly[1].why, "it is for tcp port 2, this is tcp port 443");
    let flow = v1::Flow {
        protocol: "tcp".to_owned(),
        port: 0,
        source: "n_b".to_owned(),
        destination: "n_a".to_owned(),
    };
    let answer = explain::answer(&in_force, &flow, v1::PolicyState::default()).unwrap();
    assert_eq!(answer.verdict(), v1::Verdict::Depends);
    assert_eq!((answer.depends_on.len(), answer.depends_on_total), (16, 40));
}

#[test]
fn counters_are_told_apart_and_one_that_cannot_be_read_is_not_zero() {
    let count = |packets| crate::kernel::Count { packets, bytes: 0 };
    let named = [("denied".to_owned(), count(7)), ("invalid".to_owned(), count(0))];
    let counters = Counters { named: named.into(), ..Counters::default() };
    assert_eq!(packets_named(Some(&counters), "denied"), Some(7));
    assert_eq!(packets_named(Some(&counters), "invalid"), Some(0));
    assert_eq!(packets_named(Some(&Counters::default()), "denied"), None);
    assert_eq!(packets_named(None, "denied"), None);
}
