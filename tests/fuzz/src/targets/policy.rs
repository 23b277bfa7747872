//! Policies: a set that converts compiles within the limits or is refused, and the table decides as the rules do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use plexd_core::control::convert;
use plexd_core::policy::table::{Detail, Key, Part};
use plexd_core::policy::{
    Action, Context, Flow, MAX_ENTRIES, MAX_RULES, PolicySet, Selector, Service, compile, evaluate, visible,
};

use super::{assert_message, assert_stored};
use crate::reference;

/// Most rules whose flows are tried.
const MAX_TRIED: usize = 12;

/// A list of policies.
pub fn policies(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let set = match convert::policies(text) {
        Ok(set) => set,
        Err(reason) => return assert_message(&reason),
    };
    assert_eq!(convert::policies(text).as_ref(), Ok(&set));
    assert_stored(&set);
    assert!(set.rules().count() <= MAX_RULES);
    for default in [Action::Allow, Action::Deny] {
        check(&set, &context(default));
    }
}

fn check(set: &PolicySet, context: &Context) {
    let seen = visible(set, context);
    assert!(seen.iter().all(|id| *id != context.node && context.members.contains_key(id)));
    let table = match compile(set, context) {
        Ok(table) => table.expect("policy is enabled"),
        Err(error) => return assert_message(&error.to_string()),
    };
    assert_eq!(compile(set, context).as_ref(), Ok(&Some(table.clone())));
    assert!(table.maps.iter().map(|map| map.entries.len()).sum::<usize>() <= MAX_ENTRIES);
    for map in &table.maps {
        let fits = |net: &IpNet, part: Part| match part {
            Part::Bits(bits) => net.prefix_len() == bits,
            Part::Class(at) => table.classes[at].starts.values().any(|class| IpNet::from(*class) == *net),
        };
        let shape = map.shape;
        let fit = |key: &Key| {
            fits(&key.source, shape.source)
                && fits(&key.destination, shape.destination)
                && Detail::of(key.service) == shape.service
        };
        assert!(map.entries.keys().all(fit), "{}", map.name);
    }
    for flow in flows(set, context) {
        let (meant, done) =
            (evaluate(set, context, &flow).action, reference::table::decide(&table, &flow, context.default));
        assert_eq!(meant, done, "{flow:?} with {set:?}");
    }
}

fn context(default: Action) -> Context {
    let members = [
        ("n_here", &["10.100.0.1/32"][..]),
        ("n_a", &["10.100.0.2/32", "fd00::2/128"]),
        ("n_b", &["10.100.0.3/32", "10.1.0.0/16", "fd00:1::/32"]),
        ("n_none", &[]),
    ];
    let nets =
        |nets: &[&str]| -> BTreeSet<IpNet> { nets.iter().map(|net| net.parse().expect("a net")).collect() };
    Context {
        node: "n_here".parse().expect("an id"),
        mesh_ip: [10, 100, 0, 1].into(),
        members: BTreeMap::from(members.map(|(id, of)| (id.parse().expect("an id"), nets(of)))),
        interface: "plexd0".to_owned(),
        default,
        enabled: true,
        log_denied: true,
    }
}

/// Flows between the edges of what the first rules name.
fn flows(set: &PolicySet, context: &Context) -> Vec<Flow> {
    let (mut addresses, mut services) = (BTreeSet::new(), BTreeSet::from([(1, 0), (6, 22), (17, 53)]));
    for rule in set.rules().take(MAX_TRIED) {
        for selector in [&rule.src, &rule.dst] {
            addresses.extend(edges(selector, context));
        }
        services.extend(match rule.service {
            Service::Any => None,
            Service::Tcp(port) => port.map(|port| (6, port.get())),
            Service::Udp(port) => port.map(|port| (17, port.get())),
        });
    }
    let addresses: Vec<IpAddr> = addresses.into_iter().take(12).collect();
    let mut flows = Vec::new();
    for &source in &addresses {
        for &destination in &addresses {
            if source.is_ipv4() == destination.is_ipv4() {
                let of = |(protocol, port)| Flow { source, destination, protocol, port };
                flows.extend(services.iter().copied().take(6).map(of));
            }
        }
    }
    flows
}

fn edges(selector: &Selector, context: &Context) -> Vec<IpAddr> {
    let of = |net: &IpNet| [net.network(), net.broadcast()];
    match selector {
        Selector::Any => vec![[10, 100, 0, 2].into()],
        Selector::Net(net) => of(net).to_vec(),
        Selector::Node(id) => context.members.get(id).into_iter().flatten().flat_map(of).collect(),
    }
}
