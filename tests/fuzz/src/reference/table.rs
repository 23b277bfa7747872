//! What a compiled policy table decides on a connection: its lookups, one after the other.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use plexd_core::policy::table::{Detail, Expr, Key, Map, Part, Verdict};
use plexd_core::policy::{Action, Flow, Service, Table};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Decides on a connection; `default` is what happens to one that the table says nothing of.
pub fn decide(table: &Table, flow: &Flow, default: Action) -> Action {
    if flow.source.is_ipv4() != flow.destination.is_ipv4() {
        return default;
    }
    let chain = if flow.source.is_ipv4() { "rules4" } else { "rules6" };
    let chain = table.chains.iter().find(|known| known.name == chain).expect("a chain per family");
    for rule in &chain.rules {
        for step in rule {
            let verdict = match step {
                Expr::Lookup(maps) => maps.iter().find_map(|map| look_up(table, &table.maps[*map], flow)),
                Expr::Verdict(verdict) => Some(verdict),
                _ => None,
            };
            match verdict {
                Some(Verdict::Accept) => return Action::Allow,
                Some(Verdict::Drop | Verdict::Goto(_)) => return Action::Deny,
                Some(Verdict::Jump(chain)) => panic!("a rule that jumps to {chain}"),
                None => {}
            }
        }
    }
    default
}

fn look_up<'a>(table: &Table, map: &'a Map, flow: &Flow) -> Option<&'a Verdict> {
    let port = NonZeroU16::new(flow.port);
    let service = match (map.shape.service, flow.protocol) {
        (Detail::Nothing, _) => Service::Any,
        (Detail::Protocol, TCP) => Service::Tcp(None),
        (Detail::Protocol, UDP) => Service::Udp(None),
        (Detail::Port, TCP) => Service::Tcp(Some(port?)),
        (Detail::Port, UDP) => Service::Udp(Some(port?)),
        (Detail::Protocol | Detail::Port, _) => return None,
    };
    let cut = |address: IpAddr, part: Part| match part {
        Part::Bits(bits) => IpNet::new(address, bits).expect("a shape of the family").trunc(),
        Part::Class(at) => {
            let begun = table.classes[at].starts.iter().rfind(|(start, _)| **start <= address);
            begun.map_or(table.classes[at].rest, |(_, class)| *class).into()
        }
    };
    let key = Key {
        source: cut(flow.source, map.shape.source),
        destination: cut(flow.destination, map.shape.destination),
        service,
    };
    map.entries.get(&key).map(|entry| &entry.verdict)
}
