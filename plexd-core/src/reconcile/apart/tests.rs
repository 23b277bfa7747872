//! What is kept apart; and by a model of the kernel's routing that the longest prefix wins as ever, and that no packet of
//! the tunnel or of plexd-core enters the mesh.

use std::collections::BTreeMap;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::kernel::PeerConfig;
use crate::kernel::fake::UIDS;
use crate::kernel::rules::{Family, MARK};
use crate::reconcile::plan::Memory;
use crate::reconcile::plan::tests::{any_observed, any_wanted, net, plan, rules, settled, simulate};
use crate::reconcile::tests::{key, nets};

fn routed(routes: &[&str], outside: &[&str]) -> Wanted {
    let (mut wanted, _) = settled();
    wanted.peers.clear();
    wanted.routes = nets(routes);
    wanted.outside = outside.iter().map(|address| address.parse().unwrap()).collect();
    wanted
}

#[test]
fn apart_is_what_covers_the_internet_or_an_address_outside_and_nothing_else() {
    let all: &[&str] = &["10.0.0.0/8", "192.0.2.0/24", "192.0.2.9/32", "fd00::/8", "2001:db8::/32"];
    for (routes, outside, expected) in [
        (all, &[] as &[&str], &[] as &[&str]),
        (&["0.0.0.0/0", "::/0", "10.0.0.0/8"], &[], &["0.0.0.0/0", "::/0"]),
        (&["0.0.0.0/1", "128.0.0.0/1", "2000::/3"], &[], &["0.0.0.0/1", "128.0.0.0/1", "2000::/3"]),
        (&["8.0.0.0/7", "fc00::/7", "fc00::/6"], &[], &["8.0.0.0/7", "fc00::/6"]),
        (all, &["192.0.2.9"], &["192.0.2.0/24", "192.0.2.9/32"]),
        (all, &["192.0.2.8", "2001:db8::1", "198.51.100.1"], &["192.0.2.0/24", "2001:db8::/32"]),
        // As a socket of both families tells it.
        (all, &["::ffff:192.0.2.8"], &["192.0.2.0/24"]),
    ] {
        assert_eq!(
            Apart::of(&routed(routes, outside), BTreeSet::new()).routes,
            nets(expected),
            "{routes:?} {outside:?}"
        );
    }
}

#[test]
fn where_a_peer_is_wanted_and_where_it_was_heard_is_outside() {
    let (mut wanted, mut observed) = settled();
    wanted.routes.extend(nets(&["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"]));
    let Reading::There(device) = &mut observed.device else { panic!("a device") };
    device.peers.get_mut(&key(3)).unwrap().endpoint = Some("198.51.100.7:1".parse().unwrap());
    assert_eq!(Apart::of(&wanted, heard(None, &[])).routes, nets(&["192.0.2.0/24"]));
    let apart = Apart::of(&wanted, heard(Some(device), &[]));
    assert_eq!(apart.routes, nets(&["192.0.2.0/24", "198.51.100.0/24"]));
    assert_eq!(apart.towards.len(), 2);
    assert_eq!(apart.tables().len(), 1);
    let moved = PeerConfig {
        endpoint: Some("203.0.113.7:1".parse().unwrap()),
        ..wanted.peers[&key(3)].config.clone()
    };
    let changes = [PeerChange::Remove(key(2)), PeerChange::Set(moved)];
    let after: Vec<IpAddr> = heard(Some(device), &changes).into_iter().collect();
    assert_eq!(after, ["203.0.113.7".parse::<IpAddr>().unwrap()]);
}

fn steps(wanted: &Wanted, observed: &Observed) -> Vec<Step> {
    let plan = plan(wanted, observed, &Memory::default(), SystemTime::UNIX_EPOCH);
    plan.steps.into_iter().map(|planned| planned.step).collect()
}

#[test]
fn a_route_that_moves_is_in_the_other_table_first() {
    let (mut wanted, mut observed) = settled();
    let moving = nets(&["10.7.0.0/16"]);
    let table = OwnTable { family: Family::V4, length: 16 };
    wanted.outside.insert("10.7.0.1".parse().unwrap());
    let net: Vec<IpNet> = moving.iter().copied().collect();
    assert_eq!(
        steps(&wanted, &observed),
        [Step::AddRules(table.rules(UIDS)), Step::AddApart(net.clone()), Step::RemoveRoutes(net.clone())]
    );
    wanted.outside.clear();
    let Reading::There(link) = &mut observed.link else { panic!("a link") };
    link.apart = moving.clone();
    link.routes.retain(|route| !moving.contains(route));
    observed.rules = rules(table.rules(UIDS));
    assert_eq!(
        steps(&wanted, &observed),
        [Step::AddRoutes(net.clone()), Step::RemoveRules(table.rules(UIDS)), Step::RemoveApart(net)]
    );
}

#[test]
fn what_somebody_else_uses_is_left_alone_and_named_and_the_rest_is_routed() {
    let (mut wanted, mut observed) = settled();
    wanted.routes.extend(nets(&["0.0.0.0/0", "::/0"]));
    let Reading::There(rules) = &mut observed.rules else { panic!("rules") };
    let table = OwnTable { family: Family::V4, length: 0 };
    rules.taken.insert(table, "IPv4 routing table 11200 has somebody else's route to 0.0.0.0/0".to_owned());
    rules.strict.insert("eth0".to_owned());
    let other = OwnTable { family: Family::V6, length: 0 };
    let plan = plan(&wanted, &observed, &Memory::default(), SystemTime::UNIX_EPOCH);
    assert!(
        plan.blocked[0].starts_with("0.0.0.0/0 not routed: IPv4 routing table 11200"),
        "{:?}",
        plan.blocked
    );
    assert!(plan.blocked[1].contains("net.ipv4.conf.eth0.rp_filter=2"), "{:?}", plan.blocked);
    let steps: Vec<Step> = plan.steps.into_iter().map(|planned| planned.step).collect();
    assert_eq!(
        steps,
        [Step::AddRules(other.rules(UIDS)), Step::AddApart(nets(&["::/0"]).into_iter().collect())]
    );
}

#[test]
fn while_the_rules_cannot_be_read_nothing_that_covers_everything_is_routed() {
    let (mut wanted, mut observed) = settled();
    wanted.routes.extend(nets(&["0.0.0.0/0", "128.0.0.0/1"]));
    observed.rules = Reading::Unreadable;
    assert_eq!(steps(&wanted, &observed), []);
}

/// A packet, as far as routing looks at it.
#[derive(Debug, Clone, Copy)]
struct Packet {
    to: IpAddr,
    mark: u32,
    uid: u32,
}

/// What a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    Mesh,
    Elsewhere,
}

/// Does what `fib_rules_lookup` does, with the main table behind plexd's rules.
fn kernel_routes(packet: Packet, elsewhere: &BTreeSet<IpNet>, observed: &Observed) -> Option<Via> {
    let (Reading::There(rules), Reading::There(link)) = (&observed.rules, &observed.link) else {
        panic!("all is there")
    };
    let mut main: BTreeMap<IpNet, Via> = elsewhere.iter().map(|net| (*net, Via::Elsewhere)).collect();
    main.extend(link.routes.iter().map(|net| (*net, Via::Mesh)));
    let longest = |routes: &BTreeMap<IpNet, Via>| {
        let around = routes.iter().filter(|(net, _)| net.contains(&packet.to));
        around.max_by_key(|(net, _)| net.prefix_len()).map(|(net, via)| (*net, *via))
    };
    for rule in &rules.rules {
        assert!(rule.is_plain);
        let is_for_it = (rule.family == Family::V4) == packet.to.is_ipv4()
            && rule.mark.is_none_or(|(mark, mask)| packet.mark & mask == mark)
            && rule.uids.is_none_or(|(first, last)| (first..=last).contains(&packet.uid));
        if !is_for_it {
            continue;
        }
        let found = if rule.table == 254 {
            longest(&main)
        } else {
            let apart = link.apart.iter().filter(|net| OwnTable::of(net).number() == rule.table);
            longest(&apart.map(|net| (*net, Via::Mesh)).collect())
        };
        if let Some((net, via)) = found
            && rule.suppress.is_none_or(|length| u32::from(net.prefix_len()) > length)
        {
            return Some(via);
        }
    }
    longest(&main).map(|(_, via)| via)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_longest_prefix_wins_and_the_tunnels_own_packets_stay_outside(
        mut wanted in any_wanted(), observed in any_observed(),
        elsewhere in proptest::collection::btree_set(net(), 0..4),
        host in (0_u8..4, 0_u8..4),
    ) {
        wanted.outside.insert([198, 51, 100, 1].into());
        let now = SystemTime::UNIX_EPOCH;
        // What is somebody else's stays in the main table, and none of it is what we want.
        wanted.routes.retain(|net| !elsewhere.contains(net));
        let there = simulate(&wanted, &observed, plan(&wanted, &observed, &Memory::default(), now));
        let all: BTreeMap<IpNet, Via> = elsewhere.iter().map(|net| (*net, Via::Elsewhere))
            .chain(wanted.routes.iter().map(|net| (*net, Via::Mesh))).collect();
        let targets: [IpAddr; 5] = [
            [192, 0, 2, host.0].into(), [10, host.0, 0, host.1].into(), [198, 51, 100, host.0].into(),
            format!("fd00:{}::1", host.0).parse().unwrap(), "2001:db8::1".parse().unwrap(),
        ];
        for to in targets {
            let ordinary = Packet { to, mark: 0xca6c, uid: 1000 };
            let around = all.iter().filter(|(net, _)| net.contains(&to));
            let expected = around.max_by_key(|(net, _)| net.prefix_len()).map(|(_, via)| *via);
            prop_assert_eq!(kernel_routes(ordinary, &elsewhere, &there), expected, "{:?}", ordinary);
        }
        let Reading::There(device) = &there.device else { panic!("a device") };
        for to in outside(&wanted, heard(Some(device), &[])) {
            for packet in [Packet { to, mark: MARK, uid: 0 }, Packet { to, mark: 0, uid: UIDS.own }] {
                let via = kernel_routes(packet, &elsewhere, &there);
                prop_assert!(via != Some(Via::Mesh), "{:?} {:?}", packet, there);
            }
        }
    }
}
