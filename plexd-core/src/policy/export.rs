//! A table of [`compile_plainly`](super::compile_plainly) as text that `nft -f` loads, and that then decides as the table does.
//! Pure: it is the table as plexd means it, without what the kernel counted. Tables that are keyed by classes cannot be said
//! in the language of nft.
//!
//! Written for nft 1.0.6 (Debian 12), which takes the port of the original tuple for a part of a key only where the network
//! and transport protocols are known from what stands before it in the rule: maps with ports are asked once for each of
//! their protocols. So is what `nft list` prints of plexd's own table, which therefore cannot be loaded.

use std::fmt::Write;
use std::iter;
use std::net::IpAddr;

use ipnet::IpNet;

use super::table::{Chain, Detail, Expr, Family, Hook, Key, Map, Part, Shape, Table, Verdict};
use super::{PolicySet, Service};

/// Returns the text of a table, in pieces of whole lines; each entry has a comment that names the rule of `policies` that
/// it is for, the set that the table was compiled from.
pub fn text<'a>(table: &'a Table, policies: &'a PolicySet) -> impl Iterator<Item = String> + use<'a> {
    debug_assert!(table.classes.is_empty(), "a plain table");
    let rules = named(policies);
    let name = Table::NAME;
    // Made if it is not there, so that it can be deleted: all of it in one transaction.
    let begin = format!("add table inet {name}\ndelete table inet {name}\n\ntable inet {name} {{\n");
    let counters = table.counters.iter().map(|counter| format!("\tcounter {counter} {{\n\t}}\n\n"));
    let maps = {
        let rules = rules.clone();
        table.maps.iter().flat_map(move |map| map_text(map, rules.clone()))
    };
    // Those that the kernel calls stand first, as in plexd's own table.
    let (called, others): (Vec<_>, Vec<_>) = table.chains.iter().partition(|chain| chain.hook.is_some());
    let chains = called.into_iter().chain(others).map(move |chain| chain_text(chain, table, &rules));
    iter::once(begin).chain(counters).chain(maps).chain(chains).chain(iter::once("}\n".to_owned()))
}

/// Returns how each rule is named, by its position among all rules.
fn named(policies: &PolicySet) -> Vec<String> {
    let of_policy = |policy: &super::Policy| {
        // Quoted, so that no id can end the comment it stands in.
        let id = format!("{:?}", policy.id);
        (1..=policy.rules.len()).map(move |number| format!("policy {id}, rule {number}")).collect::<Vec<_>>()
    };
    policies.policies.iter().flat_map(of_policy).collect()
}

fn comment(rules: &[String], position: usize) -> String {
    rules.get(position).map_or_else(String::new, |rule| format!(" # {rule}"))
}

fn map_text(map: &Map, rules: Vec<String>) -> impl Iterator<Item = String> + use<'_> {
    let Shape { family, source, destination, service } = map.shape;
    let address = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let parts = [
        (!source.is_nothing()).then_some(address),
        (!destination.is_nothing()).then_some(address),
        (service >= Detail::Protocol).then_some("inet_proto"),
        (service == Detail::Port).then_some("inet_service"),
    ];
    let key: Vec<&str> = parts.into_iter().flatten().collect();
    let mut head = format!("\tmap {} {{\n\t\ttype {} : verdict\n", map.name, key.join(" . "));
    if !map.entries.is_empty() {
        let _ = writeln!(head, "\t\tsize {}", map.entries.len());
    }
    head += "\t\tcounter\n";
    let (begin, end) = if map.entries.is_empty() { ("", "") } else { ("\t\telements = {\n", "\t\t}\n") };
    let last = map.entries.len().saturating_sub(1);
    let entries = map.entries.iter().enumerate().map(move |(number, (key, entry))| {
        let separator = if number == last { "" } else { "," };
        let (key, verdict) = (key_text(key, map.shape), verdict_text(&entry.verdict));
        let by = entry.rule.map_or_else(|| " # the default".to_owned(), |rule| comment(&rules, rule));
        format!("\t\t\t{key} : {verdict}{separator}{by}\n")
    });
    iter::once(head + begin).chain(entries).chain(iter::once(format!("{end}\t}}\n\n")))
}

fn key_text(key: &Key, shape: Shape) -> String {
    let (protocol, port) = match key.service {
        Service::Any => (None, None),
        Service::Tcp(port) => (Some("tcp"), port),
        Service::Udp(port) => (Some("udp"), port),
    };
    let address = |net: &IpNet, part: Part| (!part.is_nothing()).then(|| net.network().to_string());
    let parts = [
        address(&key.source, shape.source),
        address(&key.destination, shape.destination),
        protocol.map(str::to_owned),
        port.map(|port| port.to_string()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" . ")
}

fn chain_text(chain: &Chain, table: &Table, rules: &[String]) -> String {
    let mut text = format!("\tchain {} {{\n", chain.name);
    if let Some(hook) = chain.hook {
        let hook = match hook {
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
        };
        let _ = writeln!(text, "\t\ttype filter hook {hook} priority 0; policy accept;");
    }
    for rule in &chain.rules {
        for line in rule_lines(rule, table) {
            let counted = rule.iter().find_map(|expr| match expr {
                Expr::CountRule(position) => Some(comment(rules, *position)),
                _ => None,
            });
            let _ = writeln!(text, "\t\t{line}{}", counted.unwrap_or_default());
        }
    }
    text + "\t}\n\n"
}

/// Returns a rule as lines: one, but for a lookup by port one for each protocol of the map.
fn rule_lines(rule: &[Expr], table: &Table) -> Vec<String> {
    let mut lines = vec![Vec::new()];
    for expr in rule {
        let spellings = spell(expr, table);
        lines = lines
            .into_iter()
            .flat_map(|line: Vec<String>| {
                spellings.iter().map(move |spelling| line.iter().chain([spelling]).cloned().collect())
            })
            .collect();
    }
    lines.into_iter().map(|line| line.join(" ")).collect()
}

/// Returns a step of a rule as text; several where it takes a rule for each.
fn spell(expr: &Expr, table: &Table) -> Vec<String> {
    let text = match expr {
        Expr::InputInterface(name) => format!("iifname \"{name}\""),
        Expr::OutputInterface(name) => format!("oifname \"{name}\""),
        Expr::Family(family) => format!("meta nfproto {}", family_text(*family)),
        Expr::Untracked => "ct state invalid,untracked".to_owned(),
        Expr::MidStream => "meta l4proto tcp ct state new tcp flags & (syn | ack) != syn".to_owned(),
        Expr::Limit { per_second, burst } => format!("limit rate {per_second}/second burst {burst} packets"),
        Expr::Log { prefix } => format!("log prefix \"{prefix}\""),
        Expr::Count(name) => format!("counter name \"{name}\""),
        Expr::CountRule(_) => "counter".to_owned(),
        // Each in a rule of its own: one that finds nothing ends its rule.
        Expr::Lookup(maps) => {
            return maps.iter().filter_map(|map| table.maps.get(*map)).flat_map(lookups).collect();
        }
        Expr::Verdict(verdict) => verdict_text(verdict),
    };
    vec![text]
}

fn family_text(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// Returns the lookup in a map, or one for each protocol it has ports of.
fn lookups(map: &Map) -> Vec<String> {
    let Shape { family, source, destination, service } = map.shape;
    let address = |side: &str, part: Part| match (part, family) {
        (Part::Bits(0) | Part::Class(_), _) => None,
        (Part::Bits(bits), Family::V4) => Some(format!("ct original ip {side}{}", mask(family, bits))),
        (Part::Bits(bits), Family::V6) => Some(format!("ct original ip6 {side}{}", mask(family, bits))),
    };
    let parts = [
        address("saddr", source),
        address("daddr", destination),
        (service >= Detail::Protocol).then(|| "ct protocol".to_owned()),
        (service == Detail::Port).then(|| "ct original proto-dst".to_owned()),
    ];
    let key = parts.into_iter().flatten().collect::<Vec<_>>().join(" . ");
    let lookup = format!("{key} vmap @{}", map.name);
    if service < Detail::Port {
        return vec![lookup];
    }
    let has = |protocol: fn(&Service) -> bool| map.entries.keys().any(|key| protocol(&key.service));
    let protocols = [
        ("tcp", has(|service| matches!(service, Service::Tcp(_)))),
        ("udp", has(|service| matches!(service, Service::Udp(_)))),
    ];
    let asked = protocols.into_iter().filter(|(_, is_there)| *is_there);
    asked
        .map(|(protocol, _)| format!("meta nfproto {} ct protocol {protocol} {lookup}", family_text(family)))
        .collect()
}

/// Returns what cuts an address down to its leading bits; nothing where all of them count.
fn mask(family: Family, bits: u8) -> String {
    let mask = match family {
        Family::V4 if bits < 32 => IpAddr::from((!(u32::MAX >> bits)).to_be_bytes()),
        Family::V6 if bits < 128 => IpAddr::from((!(u128::MAX >> bits)).to_be_bytes()),
        Family::V4 | Family::V6 => return String::new(),
    };
    format!(" & {mask}")
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}
