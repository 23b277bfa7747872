//! The short way leads where the long one does, and the changes that must not take it do not.

use proptest::prelude::*;

use super::*;
use crate::policy::Action;
use crate::reconcile::apart::Apart;
use crate::reconcile::tests::{config, desired, identity, ips, key, peer, policies};
use crate::reconcile::wanted::Resolved;

/// What is wanted after the change by the short way, if there is one, and by the long way.
fn both(before: &Desired, after: &Desired, settings: &str) -> (Option<Advance>, Wanted) {
    let (config, identity, resolved) = (config(settings), identity(), Resolved::new());
    let input = |desired| Input {
        desired,
        policies: &before.policies,
        identity: &identity,
        mesh: &config.mesh,
        settings: config.policy,
        resolved: &resolved,
    };
    let mut wanted = input(before).wanted().unwrap();
    wanted.outside.insert("198.51.100.1".parse().unwrap());
    wanted.reached = Apart::of(&wanted, BTreeSet::new()).reached;
    (advance(wanted, before, &input(after)), input(after).wanted().unwrap())
}

fn is_same(short: &Wanted, long: &Wanted) -> bool {
    let parts = |wanted: &Wanted| {
        (
            wanted.peers.clone(),
            wanted.routes.clone(),
            wanted.problems.clone(),
            wanted.table.clone(),
            wanted.ownership.clone(),
        )
    };
    parts(short) == parts(long)
}

const ALLOW: &str = "policy:\n  default: allow\n";

fn steps(before: &Desired, after: &Desired) -> Option<Vec<Step>> {
    let (short, long) = both(before, after, ALLOW);
    let short = short?;
    assert!(is_same(&short.wanted, &long));
    Some(short.plan.steps.into_iter().map(|planned| planned.step).collect())
}

fn without(desired: &Desired, id: &str) -> Desired {
    let mut desired = desired.clone();
    desired.peers.remove(&id.parse::<NodeId>().unwrap());
    desired
}

fn with(desired: &Desired, peer: Peer) -> Desired {
    let mut desired = desired.clone();
    desired.peers.insert(peer.id.clone(), peer.into());
    desired
}

fn pair() -> Desired {
    desired([peer("n_b", 2, Some("192.0.2.2:51820")), peer("n_c", 3, None)])
}

#[test]
fn a_peer_that_comes_goes_or_changes_is_all_that_is_touched() {
    let both = pair();
    let one = without(&both, "n_b");
    let config = PeerConfig {
        public_key: key(2),
        preshared_key: None,
        endpoint: Some("192.0.2.2:51820".parse().unwrap()),
        allowed_ips: ips(&["10.100.0.2/32"]),
        persistent_keepalive: std::num::NonZeroU16::new(25),
    };
    let route = || vec!["10.100.0.2/32".parse().unwrap()];
    let set = |config: &PeerConfig| Step::Peers(vec![PeerChange::Set(config.clone())]);
    assert_eq!(steps(&one, &both), Some(vec![set(&config), Step::AddRoutes(route())]));
    let removed = Step::Peers(vec![PeerChange::Remove(key(2))]);
    assert_eq!(steps(&both, &one), Some(vec![removed, Step::RemoveRoutes(route())]));

    assert_eq!(steps(&both, &both.clone()), Some(Vec::new()), "nothing");

    let moved = with(&both, peer("n_b", 2, Some("192.0.2.9:51820")));
    let to = PeerConfig { endpoint: Some("192.0.2.9:51820".parse().unwrap()), ..config.clone() };
    assert_eq!(steps(&both, &moved), Some(vec![set(&to)]));

    let wider = Peer {
        allowed_ips: ips(&["10.100.0.2/32", "10.7.0.0/16"]),
        ..peer("n_b", 2, Some("192.0.2.2:51820"))
    };
    let to = PeerConfig { endpoint: None, allowed_ips: wider.allowed_ips.clone(), ..config };
    let more = Step::AddRoutes(vec!["10.7.0.0/16".parse().unwrap()]);
    assert_eq!(steps(&both, &with(&both, wider)), Some(vec![set(&to), more]));
}

#[test]
fn a_route_that_goes_from_one_peer_to_another_stays() {
    let net = |id: &str, seed, nets_of: &[&str]| Peer { allowed_ips: ips(nets_of), ..peer(id, seed, None) };
    let before = desired([net("n_b", 2, &["10.7.0.0/16"]), net("n_c", 3, &[])]);
    let after = desired([net("n_b", 2, &[]), net("n_c", 3, &["10.7.0.0/16"])]);
    let steps = steps(&before, &after).unwrap();
    assert!(matches!(steps.as_slice(), [Step::Peers(changes)] if changes.len() == 2), "{steps:?}");
}

#[test]
fn what_concerns_more_than_the_peer_takes_the_long_way() {
    let before = pair();
    let claims = |nets_of: &[&str]| Peer { allowed_ips: ips(nets_of), ..peer("n_d", 4, None) };
    for (what, after) in [
        ("another's address", with(&before, claims(&["10.100.0.2/32"]))),
        ("a network around another's", with(&before, claims(&["10.100.0.0/24"]))),
        ("everything", with(&before, claims(&["0.0.0.0/0"]))),
        ("half of everything", with(&before, claims(&["128.0.0.0/1"]))),
        ("where another is reached", with(&before, claims(&["192.0.2.0/24"]))),
        ("where plexd-core speaks to", with(&before, claims(&["198.51.100.0/24"]))),
        (
            "itself",
            with(
                &before,
                Peer { allowed_ips: ips(&["203.0.113.0/24"]), ..peer("n_d", 4, Some("203.0.113.9:1")) },
            ),
        ),
        ("a place in another's network", with(&before, peer("n_d", 4, Some("10.100.0.3:51820")))),
        ("a name to be looked up", with(&before, peer("n_d", 4, Some("vpn.example.com:51820")))),
        ("another key", with(&before, peer("n_b", 20, Some("192.0.2.2:51820")))),
        ("another's key", with(&before, peer("n_d", 3, None))),
        ("this node's own id", with(&before, peer("n_a", 4, None))),
    ] {
        assert_eq!(steps(&before, &after), None, "{what}");
    }
    let wide = with(&before, Peer { allowed_ips: ips(&["10.100.0.0/24"]), ..peer("n_d", 4, None) });
    assert_eq!(steps(&wide, &without(&wide, "n_b")), None, "within another's network");
    let contested = with(&before, claims(&["10.100.0.2/32"]));
    assert_eq!(steps(&contested, &without(&contested, "n_b")), None, "somebody waits for it");
}

#[test]
fn a_peer_that_rules_name_takes_the_long_way() {
    let mut before = pair();
    before.policies = policies(&[("n_b", "n_a", Action::Allow), ("10.100.0.3/32", "n_a", Action::Allow)]);
    let (named, _) = both(&without(&before, "n_b"), &before, "");
    assert!(named.is_none());
    // By its address it is another matter.
    let (short, long) = both(&without(&before, "n_c"), &before, "");
    assert!(short.is_some_and(|short| is_same(&short.wanted, &long) && short.plan.steps.len() == 2));
}

#[test]
fn many_changes_take_the_long_way() {
    let many = |count: u8| desired((0..count).map(|number| peer(&format!("n_{number}"), number + 2, None)));
    assert!(steps(&many(1), &many(65)).is_some());
    assert!(steps(&many(0), &many(65)).is_none());
}

fn any_peers() -> impl Strategy<Value = Desired> {
    let net = prop_oneof![
        (0_u8..12).prop_map(|host| format!("10.100.0.{host}/32")),
        (0_u8..3).prop_map(|net| format!("10.{net}.0.0/16")),
        (0_u8..3).prop_map(|net| format!("10.{net}.7.0/24")),
        (1_u8..3).prop_map(|host| format!("192.0.2.{host}/32")),
    ];
    let nets = proptest::collection::btree_set(net.prop_map(|net| net.parse::<IpNet>().unwrap()), 0..3);
    let endpoint = proptest::option::of((1_u8..3).prop_map(|host| format!("192.0.2.{host}:51820")));
    proptest::collection::vec((2_u8..9, 0_u8..12, nets, endpoint), 0..7).prop_map(|peers| {
        // A key is one peer's: the control plane's answers and events are taken over so.
        let mut keys = BTreeSet::new();
        let peers = peers.into_iter().map(|(id, seed, allowed_ips, endpoint)| Peer {
            allowed_ips: allowed_ips.into_iter().collect(),
            ..peer(&format!("n_{id}"), if seed < 9 { id } else { seed }, endpoint.as_deref())
        });
        let peers: BTreeMap<NodeId, Peer> = peers.map(|peer| (peer.id.clone(), peer)).collect();
        desired(peers.into_values().filter(|peer| keys.insert(peer.public_key)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_short_way_leads_where_the_long_one_does(
        before in any_peers(), after in any_peers(), default_allow in any::<bool>(), rule in 0_u8..4,
    ) {
        let rules: [&[_]; 4] = [
            &[],
            &[("*", "*", Action::Allow)],
            &[("10.0.0.0/16", "10.100.0.1/32", Action::Allow)],
            &[("n_3", "*", Action::Deny), ("10.100.0.5/32", "n_a", Action::Allow)],
        ];
        let (mut before, mut after) = (before, after);
        before.policies = policies(rules[usize::from(rule)]);
        after.policies = Arc::clone(&before.policies);
        let settings = if default_allow { ALLOW } else { "" };
        let (_, first) = both(&after, &before, settings);
        let (short, long) = both(&before, &after, settings);
        if let Some(short) = short {
            prop_assert!(is_same(&short.wanted, &long), "{:?}\n{long:?}", short.wanted);
            // What is kept apart is not touched by the short way.
            let apart = |wanted: &Wanted| Apart::of(wanted, BTreeSet::new());
            let was = apart(&Wanted { outside: short.wanted.outside.clone(), ..first });
            let is = apart(&Wanted { outside: short.wanted.outside.clone(), ..long });
            prop_assert_eq!(&was.routes, &is.routes);
            prop_assert!(is.reached.is_subset(&short.wanted.reached));
            let steps = short.plan.steps.iter().flat_map(|planned| match &planned.step {
                Step::AddRoutes(nets) | Step::RemoveRoutes(nets) => nets.clone(),
                _ => Vec::new(),
            });
            for net in steps {
                prop_assert!(!is.routes.contains(&net), "{}", net);
            }
        }
    }
}
