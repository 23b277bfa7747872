//! What is left out and why, and that the rest is exactly what was asked for.

use proptest::prelude::*;

use super::*;
use crate::policy::Action;
use crate::reconcile::tests::{self, config, desired, identity, ips, key, nets, peer, policies};
use crate::state::Peer;

fn with_input<T>(
    desired: &Desired,
    settings: &str,
    resolved: &Resolved,
    test: impl FnOnce(Input<'_>) -> T,
) -> T {
    let config = config(settings);
    test(Input {
        desired,
        policies: &desired.policies,
        identity: &identity(),
        mesh: &config.mesh,
        settings: config.policy,
        resolved,
    })
}

fn wanted(desired: &Desired, settings: &str, resolved: &Resolved) -> Wanted {
    with_input(desired, settings, resolved, |input| input.wanted().unwrap())
}

/// What policy takes for the addresses of whom.
fn context(desired: &Desired) -> Context {
    with_input(desired, "", &Resolved::new(), |input| input.context(&input.ownership()))
}

/// Who may open a connection to TCP port 22 of whom, by policy.
fn admits(desired: &Desired, source: &str, destination: &str) -> bool {
    let flow = policy::Flow {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: policy::TCP,
        port: 22,
    };
    policy::evaluate(&desired.policies, &context(desired), &flow).action == Action::Allow
}

const ALLOW: &str = "policy:\n  default: allow\n";

#[test]
fn an_ordinary_peer_is_wanted_with_its_keys_addresses_routes_and_the_configured_keepalive() {
    let desired = desired([Peer {
        psk: Some(crate::types::PresharedKey::from_bytes([9; 32])),
        ..peer("n_b", 2, Some("192.0.2.2:51820"))
    }]);
    let wanted = wanted(
        &desired,
        "policy:\n  default: allow\nmesh:\n  mtu: 1380\n  listen_port: 5182\n",
        &Resolved::new(),
    );
    let config = &wanted.peers[&key(2)].config;
    assert_eq!(wanted.peers[&key(2)].id.as_str(), "n_b");
    assert_eq!(config.endpoint, Some("192.0.2.2:51820".parse().unwrap()));
    assert_eq!(config.allowed_ips, ips(&["10.100.0.2/32"]));
    assert_eq!(config.persistent_keepalive.map(std::num::NonZeroU16::get), Some(25));
    assert_eq!(config.preshared_key, Some(crate::types::PresharedKey::from_bytes([9; 32])));
    assert_eq!(wanted.routes, nets(&["10.100.0.2/32"]));
    assert_eq!(wanted.address.to_string(), "10.100.0.1/32");
    assert_eq!((wanted.mtu, wanted.device.listen_port), (1380, 5182));
    assert!(wanted.problems.is_empty() && wanted.table.is_some());
}

#[test]
fn a_peer_that_no_rule_connects_with_this_node_is_left_out() {
    let peers = [peer("n_b", 2, None), peer("n_c", 3, None), peer("n_d", 4, None), peer("n_e", 5, None)];
    let mut desired = desired(peers);
    // To this node, from this node, past this node, and denied.
    desired.policies = policies(&[
        ("n_b", "n_a", Action::Allow),
        ("n_a", "n_c", Action::Allow),
        ("n_b", "n_d", Action::Allow),
        ("n_e", "n_a", Action::Deny),
    ]);
    let enforced = wanted(&desired, "", &Resolved::new());
    assert_eq!(enforced.peers.keys().copied().collect::<Vec<_>>(), {
        let mut keys = vec![key(2), key(3)];
        keys.sort();
        keys
    });
    assert_eq!(enforced.routes, nets(&["10.100.0.2/32", "10.100.0.3/32"]));
    let problems: Vec<_> = enforced.problems.iter().map(|(id, why)| (id.as_str(), why.as_str())).collect();
    assert_eq!(problems, [("n_d", HIDDEN), ("n_e", HIDDEN)]);
    for everything in [ALLOW, "policy:\n  enabled: false\n"] {
        assert_eq!(wanted(&desired, everything, &Resolved::new()).peers.len(), 4, "{everything}");
    }
    assert!(wanted(&desired, "policy:\n  enabled: false\n", &Resolved::new()).table.is_none());
}

#[test]
fn a_peer_with_this_nodes_own_id_or_key_is_left_out() {
    let own_key = Peer { public_key: identity().private_key.public(), ..peer("n_b", 2, None) };
    for peer in [peer("n_a", 2, None), own_key] {
        let wanted = wanted(&desired([peer.clone()]), ALLOW, &Resolved::new());
        assert!(wanted.peers.is_empty() && wanted.routes.is_empty());
        assert!(wanted.problems[&peer.id].contains("own id or key"));
    }
}

#[test]
fn an_allowed_ip_that_two_peers_claim_stays_with_the_first_by_id() {
    let shared = ips(&["10.7.0.0/16", "10.100.0.9/32"]);
    let first = Peer { allowed_ips: shared.clone(), ..peer("n_b", 200, None) };
    let second = Peer { allowed_ips: ips(&["10.7.0.0/16", "10.8.0.0/16"]), ..peer("n_c", 3, None) };
    let wanted = wanted(&desired([second, first]), ALLOW, &Resolved::new());
    assert_eq!(wanted.peers[&key(200)].config.allowed_ips, shared);
    assert_eq!(wanted.peers[&key(3)].config.allowed_ips, ips(&["10.8.0.0/16"]));
    assert_eq!(wanted.problems.len(), 1);
    let problem = &wanted.problems[&"n_c".parse::<NodeId>().unwrap()];
    assert_eq!(problem, "allowed IP 10.7.0.0/16 already belongs to n_b; it is left there");
}

#[test]
fn nobody_takes_this_nodes_own_address() {
    let thief = Peer { allowed_ips: ips(&["10.100.0.1/32", "10.100.0.2/32"]), ..peer("n_b", 2, None) };
    let wanted = wanted(&desired([thief]), ALLOW, &Resolved::new());
    assert_eq!(wanted.routes, nets(&["10.100.0.2/32"]));
    assert!(wanted.problems.values().next().unwrap().contains("already belongs to n_a"));
}

#[test]
fn policy_takes_a_claimed_address_for_the_one_whom_wireguard_gives_it_to() {
    let own = "10.100.0.1";
    let thief = Peer { allowed_ips: ips(&["10.100.0.1/32", "10.100.0.3/32"]), ..peer("n_b", 2, None) };
    let mut desired = desired([thief, peer("n_c", 3, None)]);
    desired.policies = policies(&[("*", "n_b", Action::Allow)]);
    assert!(!admits(&desired, "10.100.0.3", own), "this node's address is not n_b's, whatever it claims");
    desired.policies = policies(&[("n_b", "n_a", Action::Allow)]);
    assert!(admits(&desired, "10.100.0.2", own));
    assert!(!admits(&desired, "10.100.0.3", own), "another peer's mesh address is not n_b's");
    desired.policies = policies(&[("n_c", "n_a", Action::Allow)]);
    assert!(admits(&desired, "10.100.0.3", own));
    let given = wanted(&desired, ALLOW, &Resolved::new());
    assert!(given.peers[&key(2)].config.allowed_ips.is_empty());
    assert_eq!(given.peers[&key(3)].config.allowed_ips, ips(&["10.100.0.3/32"]));
    // Of what two claim and is nobody's mesh address, only the first by id speaks for it.
    let claims = |id: &str, seed| Peer { allowed_ips: ips(&["10.7.0.0/16"]), ..peer(id, seed, None) };
    let mut desired = tests::desired([claims("n_b", 2), claims("n_c", 3)]);
    for (id, expected) in [("n_b", true), ("n_c", false)] {
        desired.policies = policies(&[(id, "n_a", Action::Allow)]);
        assert_eq!(admits(&desired, "10.7.0.1", own), expected, "{id}");
    }
}

#[test]
fn a_wide_network_does_not_speak_for_what_others_have_in_it() {
    let wide = Peer { allowed_ips: ips(&["10.0.0.0/8", "10.7.1.0/24"]), ..peer("n_b", 2, None) };
    let inner = Peer { allowed_ips: ips(&["10.100.0.3/32", "10.7.0.0/16"]), ..peer("n_c", 3, None) };
    let mut desired = desired([wide, inner]);
    for (id, theirs, others) in [
        ("n_b", ["10.1.1.1", "10.7.1.1", "10.100.0.2"], ["10.7.0.1", "10.100.0.3", "10.100.0.1"]),
        ("n_c", ["10.7.0.1", "10.7.2.1", "10.100.0.3"], ["10.7.1.1", "10.8.0.1", "10.100.0.2"]),
    ] {
        // Neither to allow nor to deny.
        for (rules, admitted) in [
            (vec![(id, "n_a", Action::Allow)], true),
            (vec![(id, "*", Action::Deny), ("*", "*", Action::Allow)], false),
        ] {
            desired.policies = policies(&rules);
            for address in theirs {
                assert_eq!(admits(&desired, address, "10.100.0.1"), admitted, "{id} {address}");
            }
            for address in others {
                assert_eq!(admits(&desired, address, "10.100.0.1"), !admitted, "{id} {address}");
            }
        }
    }
    assert_eq!(wanted(&desired, ALLOW, &Resolved::new()).problems, BTreeMap::new());
}

#[test]
fn a_network_that_covers_everything_is_allowed_and_routed_and_is_the_first_ones_of_two() {
    let exit = Peer { allowed_ips: ips(&["0.0.0.0/0", "::/0", "10.100.0.2/32"]), ..peer("n_b", 2, None) };
    let other = Peer { allowed_ips: ips(&["0.0.0.0/0", "10.100.0.3/32"]), ..peer("n_c", 3, None) };
    let wanted = wanted(&desired([exit, other]), ALLOW, &Resolved::new());
    assert_eq!(wanted.routes, nets(&["0.0.0.0/0", "::/0", "10.100.0.2/32", "10.100.0.3/32"]));
    assert_eq!(wanted.peers[&key(2)].config.allowed_ips.len(), 3);
    assert_eq!(wanted.peers[&key(3)].config.allowed_ips, ips(&["10.100.0.3/32"]));
    let problems: Vec<_> =
        wanted.problems.iter().map(|(id, problem)| (id.as_str(), problem.as_str())).collect();
    assert_eq!(problems, [("n_c", "allowed IP 0.0.0.0/0 already belongs to n_b; it is left there")]);
}

#[test]
fn an_endpoint_that_is_a_name_is_wanted_once_its_address_is_known() {
    let name = "vpn.example.com:51820";
    let desired = desired([peer("n_b", 2, Some(name))]);
    let unknown = wanted(&desired, ALLOW, &Resolved::new());
    assert_eq!(unknown.peers[&key(2)].config.endpoint, None);
    assert_eq!(
        unknown.problems.values().next().unwrap(),
        "endpoint vpn.example.com:51820 cannot be resolved"
    );
    let resolved = Resolved::from([(name.parse().unwrap(), "192.0.2.7:51820".parse().unwrap())]);
    let known = wanted(&desired, ALLOW, &resolved);
    assert_eq!(known.peers[&key(2)].config.endpoint, Some("192.0.2.7:51820".parse().unwrap()));
    assert!(known.problems.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_allowed_ip_is_given_twice_and_every_route_leads_to_exactly_one_peer(
        peers in proptest::collection::vec((2_u8..12, proptest::collection::btree_set(0_u8..10, 0..5)), 0..8)
    ) {
        let desired = desired(peers.into_iter().map(|(seed, hosts)| Peer {
            allowed_ips: hosts.iter().map(|host| IpNet::from(std::net::IpAddr::from([10, 100, 0, *host]))).collect(),
            ..peer(&format!("n_{seed}"), seed, None)
        }));
        let wanted = wanted(&desired, ALLOW, &Resolved::new());
        let given: Vec<IpNet> = wanted.peers.values().flat_map(|peer| peer.config.allowed_ips.iter().copied()).collect();
        prop_assert_eq!(given.len(), wanted.routes.len());
        prop_assert_eq!(given.into_iter().collect::<BTreeSet<_>>(), wanted.routes.clone());
        prop_assert!(!wanted.routes.contains(&wanted.address));
        for peer in desired.peers.values() {
            let got = &wanted.peers[&peer.public_key].config.allowed_ips;
            prop_assert!(*got == peer.allowed_ips || wanted.problems.contains_key(&peer.id));
        }
    }

    #[test]
    fn an_address_is_for_policy_whose_it_is_for_wireguard(
        peers in proptest::collection::vec(
            (2_u8..8, proptest::collection::btree_set((0_u8..16, 26_u8..=32), 0..5)), 0..6,
        ),
        low in 0_u8..64,
    ) {
        let net = |(host, bits): &(u8, u8)| IpNet::new([10, 100, 0, *host].into(), *bits).unwrap().trunc();
        let desired = desired(peers.iter().map(|(seed, claims)| {
            let mut peer = peer(&format!("n_{seed}"), *seed, None);
            peer.allowed_ips.extend(claims.iter().map(net));
            peer
        }));
        let wanted = wanted(&desired, ALLOW, &Resolved::new());
        let address = std::net::IpAddr::from([10, 100, 0, low]);
        let given = wanted.peers.values().flat_map(|peer| peer.config.allowed_ips.iter().map(move |net| (net, &peer.id)));
        let longest = given.filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
        let by_wireguard = if low == 1 { Some("n_a") } else { longest.map(|(_, id)| id.as_str()) };
        let members = context(&desired).members;
        let holds = |nets: &BTreeSet<IpNet>| nets.iter().any(|net| net.contains(&address));
        let by_policy: Vec<&str> =
            members.iter().filter(|(_, nets)| holds(nets)).map(|(id, _)| id.as_str()).collect();
        prop_assert_eq!(by_policy, by_wireguard.into_iter().collect::<Vec<_>>());
    }
}
