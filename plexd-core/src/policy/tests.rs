//! The compiled table decides as the reference does: tables of cases, and random policies run through an interpreter of the
//! table model.

mod export;
mod judge;
mod limits;
mod shadow;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;

use super::table::{Detail, Expr, Family, Hook, Key, Map, Part, Verdict};
use super::*;
use crate::types::NodeId;

fn selector(text: &str) -> Selector {
    match text {
        "*" => Selector::Any,
        text if text.starts_with("n_") => Selector::Node(text.parse().unwrap()),
        text if text.contains('/') => Selector::Net(text.parse().unwrap()),
        text => Selector::Net(text.parse::<IpAddr>().unwrap().into()),
    }
}

/// `allow SRC DST`, and `tcp` or `udp` with a port, 0 for any.
fn rule(text: &str) -> Rule {
    let words: Vec<_> = text.split(' ').collect();
    let port = || NonZeroU16::new(words[4].parse().unwrap());
    Rule {
        action: if words[0] == "allow" { Action::Allow } else { Action::Deny },
        src: selector(words[1]),
        dst: selector(words[2]),
        service: match words.get(3) {
            None => Service::Any,
            Some(&"tcp") => Service::Tcp(port()),
            Some(&"udp") => Service::Udp(port()),
            Some(other) => panic!("{other}"),
        },
    }
}

fn set(rules: impl IntoIterator<Item = Rule>) -> PolicySet {
    PolicySet { policies: vec![Policy { id: "p_1".to_owned(), rules: rules.into_iter().collect() }] }
}

fn policy(rules: &[&str]) -> PolicySet {
    set(rules.iter().map(|text| rule(text)))
}

fn context() -> Context {
    let member = |id: &str, nets: &[&str]| {
        (
            id.parse::<NodeId>().unwrap(),
            nets.iter().map(|net| net.parse().unwrap()).collect::<BTreeSet<IpNet>>(),
        )
    };
    Context {
        node: "n_here".parse().unwrap(),
        mesh_ip: "10.0.0.1".parse().unwrap(),
        members: BTreeMap::from([
            member("n_here", &["10.0.0.1/32"]),
            member("n_a", &["10.0.0.2/32", "fd00::2/128"]),
            member("n_b", &["10.0.0.3/32", "10.0.0.4/30", "fd00::4/126"]),
            member("n_six", &["fd00::8/128"]),
        ]),
        interface: "plexd0".to_owned(),
        default: Action::Deny,
        enabled: true,
        log_denied: true,
    }
}

fn flow(source: &str, destination: &str, protocol: u8, port: u16) -> Flow {
    Flow { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol, port }
}

/// Runs a packet of a tracked connection through a chain; `None` if the chain comes to its end.
fn run(table: &Table, chain: &str, by: Hook, flow: &Flow) -> Option<Action> {
    let chain = table.chains.iter().find(|candidate| candidate.name == chain).unwrap();
    chain.rules.iter().find_map(|rule| {
        for expr in rule {
            let verdict = match expr {
                Expr::InputInterface(name) if by != Hook::Output && name == "plexd0" => continue,
                Expr::OutputInterface(name) if by != Hook::Input && name == "plexd0" => continue,
                Expr::Family(family) if *family == family_of(flow) => continue,
                Expr::InputInterface(_)
                | Expr::OutputInterface(_)
                | Expr::Family(_)
                | Expr::Untracked
                | Expr::MidStream => return None,
                Expr::Limit { .. } | Expr::Log { .. } | Expr::Count(_) | Expr::CountRule(_) => continue,
                Expr::Lookup(maps) => &maps.iter().find_map(|map| look_up(table, &table.maps[*map], flow))?,
                Expr::Verdict(verdict) => verdict,
            };
            return match verdict {
                Verdict::Accept => Some(Action::Allow),
                Verdict::Drop => Some(Action::Deny),
                Verdict::Jump(chain) => run(table, chain, by, flow),
                Verdict::Goto(chain) => Some(run(table, chain, by, flow).expect("a chain that decides")),
            };
        }
        None
    })
}

fn family_of(flow: &Flow) -> Family {
    if flow.source.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn look_up(table: &Table, map: &Map, flow: &Flow) -> Option<Verdict> {
    let cut = |address: IpAddr, part| match part {
        Part::Bits(bits) => IpNet::new(address, bits).unwrap().trunc(),
        Part::Class(at) => IpNet::from(table.classes[at].class_of(address)),
    };
    let port = NonZeroU16::new(flow.port).filter(|_| map.shape.service == Detail::Port);
    let service = match (map.shape.service, flow.protocol) {
        (Detail::Nothing, _) => Service::Any,
        (_, TCP) => Service::Tcp(port),
        (_, UDP) => Service::Udp(port),
        _ => return None,
    };
    if map.shape.family != family_of(flow) {
        return None;
    }
    let key = Key {
        source: cut(flow.source, map.shape.source),
        destination: cut(flow.destination, map.shape.destination),
        service,
    };
    map.entries.get(&key).map(|entry| entry.verdict.clone())
}

fn decides(table: &Table, flow: &Flow) -> Action {
    let hooks = [("input", Hook::Input), ("forward", Hook::Forward), ("output", Hook::Output)];
    let decisions =
        hooks.map(|(chain, hook)| run(table, chain, hook, flow).expect("the mesh interface is judged"));
    assert!(decisions.iter().all(|decision| *decision == decisions[0]), "{flow:?}: {decisions:?}");
    decisions[0]
}

#[test]
fn first_match_decides_then_the_default() {
    let policies = policy(&[
        "deny 10.0.0.2 n_here tcp 22",
        "allow n_a n_here tcp 0",
        "allow 10.0.0.0/24 * udp 53",
        "deny * fd00::8",
        "allow n_b n_six",
        "allow n_b n_a",
        "allow n_nobody n_here",
    ]);
    let cases = [
        (flow("10.0.0.2", "10.0.0.1", TCP, 22), Action::Deny, Some(0)),
        (flow("10.0.0.2", "10.0.0.1", TCP, 23), Action::Allow, Some(1)),
        (flow("10.0.0.2", "10.0.0.1", UDP, 22), Action::Deny, None),
        (flow("10.0.0.9", "10.0.0.1", UDP, 53), Action::Allow, Some(2)),
        (flow("10.0.1.9", "10.0.0.1", UDP, 53), Action::Deny, None),
        (flow("fd00::5", "fd00::8", TCP, 1), Action::Deny, Some(3)),
        (flow("10.0.0.6", "10.0.0.2", ICMP, 0), Action::Allow, Some(5)),
        (flow("fd00::5", "fd00::2", ICMP, 0), Action::Allow, Some(5)),
        (flow("10.0.0.8", "10.0.0.2", ICMP, 0), Action::Deny, None),
    ];
    let table = compile(&policies, &context()).unwrap().unwrap();
    for (flow, action, rule) in cases {
        assert_eq!(evaluate(&policies, &context(), &flow), Decision { action, rule }, "{flow:?}");
        assert_eq!(decides(&table, &flow), action, "{flow:?}");
    }
}

#[test]
fn only_the_mesh_interface_is_judged() {
    let table = compile(&policy(&[]), &context()).unwrap().unwrap();
    let flow = flow("10.0.0.2", "10.0.0.1", TCP, 22);
    assert_eq!(run(&table, "input", Hook::Output, &flow), None);
    assert_eq!(run(&table, "output", Hook::Input, &flow), None);
    assert_eq!(decides(&table, &flow), Action::Deny);
}

#[test]
fn default_allow_and_disabled_policy_let_pass() {
    let flow = flow("10.0.0.2", "10.0.0.1", TCP, 22);
    let allow = Context { default: Action::Allow, ..context() };
    for rules in [&[][..], &["deny n_b *"], &["allow * *"], &["deny * * udp 0", "allow n_a * tcp 22"]] {
        let table = compile(&policy(rules), &allow).unwrap().unwrap();
        assert_eq!(decides(&table, &flow), Action::Allow);
        // What allows is always found in a map: a packet that is judged while the maps are replaced passes by no other way.
        let judge = table.chains.iter().find(|chain| chain.name == "judge").unwrap();
        assert_eq!(judge.rules.last().unwrap(), &[Expr::Verdict(Verdict::Goto("deny".to_owned()))]);
        let verdicts = table.chains.iter().flat_map(|chain| chain.rules.iter().flatten());
        assert!(!verdicts.into_iter().any(|expr| *expr == Expr::Verdict(Verdict::Accept)));
    }
    let disabled = Context { enabled: false, ..context() };
    assert_eq!(compile(&policy(&["deny * *"]), &disabled), Ok(None));
    assert_eq!(evaluate(&policy(&["deny * *"]), &disabled, &flow).action, Action::Allow);
}

#[test]
fn log_is_there_only_when_wanted_and_can_be_left_out() {
    let with = compile(&policy(&[]), &context()).unwrap().unwrap();
    let without = compile(&policy(&[]), &Context { log_denied: false, ..context() }).unwrap().unwrap();
    assert_ne!(with, without);
    assert_eq!(with.without_log(), without);
}

#[test]
fn own_id_is_the_mesh_address_even_without_a_member_entry() {
    let mut context = context();
    context.members.remove("n_here");
    let table = compile(&policy(&["allow * n_here"]), &context).unwrap().unwrap();
    assert_eq!(decides(&table, &flow("10.0.0.2", "10.0.0.1", ICMP, 0)), Action::Allow);
    assert_eq!(decides(&table, &flow("10.0.0.2", "10.0.0.3", ICMP, 0)), Action::Deny);
}

#[test]
fn rules_of_one_shape_share_one_lookup() {
    let rules = (0..1_000_u32).map(|n| {
        let action = if n % 3 == 0 { "deny" } else { "allow" };
        let source = Ipv4Addr::from(0x0a01_0000 + n);
        let service = ["", " tcp 80", " udp 0"][n as usize % 3];
        rule(&format!("{action} {source} n_here{service}"))
    });
    let table = compile(&set(rules), &context()).unwrap().unwrap();
    assert_eq!(table.maps.len(), 3, "{:?}", table.maps.iter().map(|map| &map.name).collect::<Vec<_>>());
    assert_eq!(table.maps.iter().map(|map| map.entries.len()).sum::<usize>(), 1_000);
}

/// Returns how many lookups a packet takes at most.
fn lookups(rules: impl IntoIterator<Item = Rule>) -> usize {
    compile(&set(rules), &context()).unwrap().unwrap().maps.len()
}

#[test]
fn neither_prefix_lengths_nor_denials_in_between_make_lookups() {
    let rules = (0..3_000_u32).map(|n| {
        let action = if n % 10 == 0 { "deny" } else { "allow" };
        let (source, length) = (Ipv4Addr::from(0x0a80_0000 + n * 2_654), 9 + n % 24);
        let destination = ["n_here", "10.0.0.1", "10.0.0.0/16", "10.0.0.0/24"][n as usize % 4];
        rule(&format!("{action} {source}/{length} {destination} tcp {}", 1 + n % 7))
    });
    // 24 lengths, and denials in between: a lookup for each level, and what crosses.
    let found = lookups(rules);
    assert!(found <= 4, "{found}");
    let crossed = (0..400_u32).map(|n| {
        let peer = Ipv4Addr::from(0x0a01_0000 + n);
        rule(&if n % 2 == 0 { format!("allow {peer} *") } else { format!("deny * {peer}") })
    });
    assert_eq!(lookups(crossed), 3);
}

#[test]
fn peers_are_visible_only_through_allow_rules_that_connect_them_with_this_node() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &[]),
        (&["allow n_a n_here"], &["n_a"]),
        (&["allow n_here n_b tcp 80"], &["n_b"]),
        (&["deny n_a n_here"], &[]),
        (&["allow n_a n_b"], &[]),
        (&["allow n_a 10.0.0.0/24"], &["n_a"]),
        (&["allow 10.0.0.3 *"], &["n_b"]),
        (&["allow 10.0.0.6/31 10.0.0.1"], &["n_b"]),
        // This node has no IPv6 address: nothing connects it with a peer that has no other.
        (&["allow * *"], &["n_a", "n_b"]),
        (&["allow n_six n_here"], &[]),
        (&["allow fd00::/16 *"], &[]),
        (&["allow n_nobody n_here"], &[]),
    ];
    for (rules, expected) in cases {
        let seen: Vec<_> = visible(&policy(rules), &context()).iter().map(ToString::to_string).collect();
        assert_eq!(&seen, expected, "{rules:?}");
    }
    let all = ["n_a", "n_b", "n_six"].map(|id| id.parse().unwrap());
    for open in [Context { enabled: false, ..context() }, Context { default: Action::Allow, ..context() }] {
        assert_eq!(visible(&policy(&[]), &open), BTreeSet::from(all.clone()));
    }
}

/// An address of either family, among few, so that rules and flows meet.
fn low_address(v4: bool, low: u8) -> IpAddr {
    if v4 {
        IpAddr::from(Ipv4Addr::new(10, 0, 0, low))
    } else {
        IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low.into()))
    }
}

fn address() -> impl Strategy<Value = IpAddr> + Clone {
    (any::<bool>(), 0_u8..16).prop_map(|(v4, low)| low_address(v4, low))
}

fn network() -> impl Strategy<Value = IpNet> + Clone {
    (address(), prop_oneof![3 => 0_u8..5, 1 => 5_u8..=32]).prop_map(|(address, short)| {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, bits - short).unwrap().trunc()
    })
}

fn any_selector() -> impl Strategy<Value = Selector> + Clone {
    let ids = ["n_here", "n_a", "n_b", "n_c", "n_nobody"];
    prop_oneof![
        1 => Just(Selector::Any),
        4 => network().prop_map(Selector::Net),
        4 => proptest::sample::select(ids.to_vec()).prop_map(|id| Selector::Node(id.parse().unwrap())),
    ]
}

fn any_service() -> impl Strategy<Value = Service> + Clone {
    let port = (0_u16..4).prop_map(NonZeroU16::new);
    prop_oneof![Just(Service::Any), port.clone().prop_map(Service::Tcp), port.prop_map(Service::Udp)]
}

fn any_rule() -> impl Strategy<Value = Rule> + Clone {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    (any_selector(), any_selector(), any_service(), action).prop_map(|(src, dst, service, action)| Rule {
        src,
        dst,
        service,
        action,
    })
}

fn any_flow() -> impl Strategy<Value = Flow> + Clone {
    let protocol = prop_oneof![Just(TCP), Just(UDP), Just(ICMP)];
    (any::<bool>(), 0_u8..16, 0_u8..16, protocol, 1_u16..5).prop_map(
        |(v4, source, destination, protocol, port)| Flow {
            source: low_address(v4, source),
            destination: low_address(v4, destination),
            protocol,
            port,
        },
    )
}

fn any_context() -> impl Strategy<Value = Context> {
    let nets = || proptest::collection::btree_set(network(), 0..4);
    let default = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    (nets(), nets(), nets(), nets(), address(), default).prop_map(|(here, a, b, c, mesh_ip, default)| {
        let id = |id: &str| id.parse::<NodeId>().unwrap();
        let members = [(id("n_here"), here), (id("n_a"), a), (id("n_b"), b), (id("n_c"), c)];
        Context { mesh_ip, default, members: BTreeMap::from(members), ..context() }
    })
}

/// An address of either family among a thousand, and networks around it of every length.
fn wide_address() -> impl Strategy<Value = IpAddr> + Clone {
    (any::<bool>(), 0_u16..1_024).prop_map(|(v4, low)| {
        let [high, low] = low.to_be_bytes();
        if v4 { [10, 0, high, low].into() } else { [0xfd00, 0, 0, 0, 0, 0, high.into(), low.into()].into() }
    })
}

fn wide_network() -> impl Strategy<Value = IpNet> + Clone {
    (wide_address(), prop_oneof![2 => Just(0_u8), 4 => 0_u8..10, 1 => 10_u8..=32]).prop_map(
        |(address, short)| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, bits - short).unwrap().trunc()
        },
    )
}

fn wide_rule() -> impl Strategy<Value = Rule> + Clone {
    let selector = || {
        let ids = ["n_here", "n_a", "n_b", "n_c"];
        prop_oneof![
            1 => Just(Selector::Any),
            12 => wide_network().prop_map(Selector::Net),
            3 => proptest::sample::select(ids.to_vec()).prop_map(|id| Selector::Node(id.parse().unwrap())),
        ]
    };
    let action = prop_oneof![4 => Just(Action::Allow), 1 => Just(Action::Deny)];
    (selector(), selector(), any_service(), action).prop_map(|(src, dst, service, action)| Rule {
        src,
        dst,
        service,
        action,
    })
}

fn wide_flow() -> impl Strategy<Value = Flow> + Clone {
    let protocol = prop_oneof![Just(TCP), Just(UDP), Just(ICMP)];
    let ends =
        (wide_address(), wide_address()).prop_filter("one family", |(a, b)| a.is_ipv4() == b.is_ipv4());
    (ends, protocol, 1_u16..5).prop_map(|((source, destination), protocol, port)| Flow {
        source,
        destination,
        protocol,
        port,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4) })]

    #[test]
    fn thousands_of_rules_decide_as_the_reference(
        rules in vec(wide_rule(), 1_000..4_000),
        context in any_context(),
        flows in vec(wide_flow(), 500),
    ) {
        let policies = set(rules);
        let tables = [compile, compile_plainly].map(|by| by(&policies, &context).unwrap().unwrap());
        for flow in flows {
            let action = evaluate(&policies, &context, &flow).action;
            prop_assert_eq!(tables.each_ref().map(|table| decides(table, &flow)), [action; 2], "{:?}", flow);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn compiled_tables_decide_as_the_reference(
        rules in vec(any_rule(), 0..60),
        context in any_context(),
        flows in vec(any_flow(), 40),
    ) {
        let policies = set(rules);
        let tables = [compile, compile_plainly].map(|by| by(&policies, &context).unwrap().unwrap());
        for flow in flows {
            let action = evaluate(&policies, &context, &flow).action;
            prop_assert_eq!(tables.each_ref().map(|table| decides(table, &flow)), [action; 2], "{:?}", flow);
        }
    }

    #[test]
    fn a_connection_that_is_allowed_is_with_a_visible_peer(
        rules in vec(any_rule(), 0..20),
        context in any_context(),
        flows in vec(any_flow(), 40),
    ) {
        let policies = set(rules);
        let seen = visible(&policies, &context);
        let of = |id: &NodeId, address: &IpAddr| context.addresses(id).iter().any(|net| net.contains(address));
        for flow in flows {
            if evaluate(&policies, &context, &flow).action == Action::Deny {
                continue;
            }
            let ends = [(&flow.source, &flow.destination), (&flow.destination, &flow.source)];
            for (near, far) in ends {
                let peers = context.members.keys().filter(|id| **id != context.node && of(id, far));
                for peer in peers.filter(|_| of(&context.node, near)) {
                    prop_assert!(seen.contains(peer), "{peer} {flow:?}");
                }
            }
        }
    }
}
