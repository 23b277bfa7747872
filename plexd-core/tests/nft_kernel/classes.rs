//! Classes of addresses, and lists of maps that a rule looks up one after the other: tables made by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use plexd_core::kernel::nft::NfTables;
use plexd_core::kernel::{Applied, Firewall, ObservedTable};
use plexd_core::policy::Flow;
use plexd_core::policy::table::{
    Classes, Detail, Entry, Expr, Family, Key, Map, Part, Shape, Table, Verdict,
};

use super::support::{PASSES, Peer, counters, in_namespace, run, service, table, wait};

const ADDRESSES4: (&str, &str) = ("10.201", "10.200");
const UDP: u8 = 17;

/// A division: `start class` each, and the class that is the rest.
pub(super) fn classes(name: &str, starts: &[&str], rest: &str) -> Classes {
    let rest: IpAddr = rest.parse().unwrap();
    let start = |line: &&str| {
        let (start, class) = line.split_once(' ').unwrap();
        (start.parse().unwrap(), class.parse().unwrap())
    };
    let family = if rest.is_ipv4() { Family::V4 } else { Family::V6 };
    Classes { name: name.to_owned(), family, starts: starts.iter().map(start).collect(), rest }
}

/// A map: `source destination service` each, accepted; rules are counted from `first`.
pub(super) fn map(name: &str, parts: (Part, Part), entries: &[&str], first: usize) -> Map {
    let net = |text: &str| text.parse::<IpNet>().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into());
    let entry = |(line, rule): (&&str, usize)| {
        let words: Vec<_> = line.split(' ').collect();
        let key = Key { source: net(words[0]), destination: net(words[1]), service: service(words[2]) };
        (key, Entry { verdict: Verdict::Accept, rule: Some(rule) })
    };
    let entries: BTreeMap<_, _> = entries.iter().zip(first..).map(entry).collect();
    let (key, _) = entries.first_key_value().unwrap();
    let service = Detail::of(key.service);
    let shape = Shape { family: Family::of(&key.source), source: parts.0, destination: parts.1, service };
    Map { name: name.to_owned(), shape, entries }
}

/// A table of these maps, each list of which is a rule; what none of them has is denied.
pub(super) fn made_of(classes: Vec<Classes>, maps: Vec<Map>, lists: &[&[usize]]) -> Table {
    let mut table = table(&["deny 192.0.2.1 192.0.2.1 any"]);
    let chain = |family| if family == Family::V4 { "rules4" } else { "rules6" };
    for chain in &mut table.chains {
        chain.rules.retain(|rule| !rule.iter().any(|expr| matches!(expr, Expr::Lookup(_))));
    }
    for list in lists {
        let name = chain(maps[list[0]].shape.family);
        let chain = table.chains.iter_mut().find(|chain| chain.name == name).unwrap();
        chain.rules.push(vec![Expr::Lookup(list.to_vec())]);
    }
    let rule_names = (0..200).map(|number| format!("rule {number}")).collect();
    Table { classes, maps, rule_names, ..table }
}

/// Nested, adjacent, coming again, of one address, and up to the last address.
fn division4(name: &str, net: &str) -> Classes {
    let starts = [
        "NET.0.0 NET.0.0",
        "NET.0.64 NET.0.64",
        "NET.0.128 NET.0.0",
        "NET.1.0 NET.1.0",
        "NET.2.0 0.0.0.0",
        "NET.4.0 NET.0.64",
        "NET.4.7 NET.4.7",
        "NET.4.8 0.0.0.0",
        "NET.128.0 NET.128.0",
    ];
    let starts = starts.map(|line| line.replace("NET", net));
    classes(name, &starts.each_ref().map(String::as_str), "0.0.0.0")
}

fn division6(name: &str, net: &str) -> Classes {
    let starts = [
        "NET:: NET::",
        "NET::40 NET::40",
        "NET::80 NET::",
        "NET:1:: NET:1::",
        "NET:2:: ::",
        "NET:4:: NET::40",
        "NET:4::7 NET:4::7",
        "NET:4::8 ::",
        "NET:8000:: NET:8000::",
    ];
    let starts = starts.map(|line| line.replace("NET", net));
    classes(name, &starts.each_ref().map(String::as_str), "::")
}

/// Classes on both sides, on one side, and on none; lists of three maps, of two, and of one.
pub(super) fn both_families() -> Table {
    let (s4, d4) = ADDRESSES4;
    let divisions = vec![
        division4("source4", s4),
        division4("destination4", d4),
        division6("source6", "fd00:201"),
        division6("destination6", "fd00:200"),
    ];
    let class = |source, destination| (Part::Class(source), Part::Class(destination));
    let maps = vec![
        map(
            "v4_port",
            class(0, 1),
            &["10.201.0.0 10.200.0.0 udp/53", "10.201.0.64 10.200.0.64 udp/53", "0.0.0.0 10.200.1.0 udp/53"],
            0,
        ),
        map("v4_proto", class(0, 1), &["10.201.0.0 10.200.0.0 udp/0", "10.201.1.0 10.200.1.0 udp/0"], 10),
        map(
            "v4_any",
            class(0, 1),
            &["10.201.0.64 10.200.0.64 any", "10.201.4.7 10.200.4.7 any", "10.201.128.0 10.200.128.0 any"],
            20,
        ),
        map("v4_source", (Part::Class(0), Part::Bits(0)), &["10.201.1.0 0.0.0.0/0 udp/54"], 30),
        map("v4_mixed", (Part::Class(0), Part::Bits(16)), &["10.201.4.7 10.200.0.0/16 udp/55"], 40),
        map("v4_mixed_any", (Part::Class(0), Part::Bits(16)), &["10.201.0.0 10.200.0.0/16 any"], 50),
        map("v4_bits", (Part::Bits(24), Part::Bits(0)), &["10.201.9.0/24 0.0.0.0/0 any"], 60),
        map(
            "v6_port",
            class(2, 3),
            &["fd00:201:: fd00:200:: udp/53", "fd00:201::40 fd00:200::40 udp/53", ":: fd00:200:1:: udp/53"],
            100,
        ),
        map("v6_proto", class(2, 3), &["fd00:201:: fd00:200:: udp/0"], 110),
        map(
            "v6_any",
            class(2, 3),
            &["fd00:201::40 fd00:200::40 any", "fd00:201:8000:: fd00:200:8000:: any"],
            120,
        ),
        map("v6_destination", (Part::Bits(0), Part::Class(3)), &["::/0 fd00:200:4::7 udp/0"], 130),
        map("v6_mixed", (Part::Bits(48), Part::Class(3)), &["fd00:201:9::/48 fd00:200:: udp/55"], 140),
        map("v6_mixed_any", (Part::Bits(48), Part::Class(3)), &["fd00:201:9::/48 fd00:200:1:: any"], 150),
    ];
    made_of(divisions, maps, &[&[0, 1, 2], &[3], &[4, 5], &[6], &[7, 8, 9], &[10], &[11, 12]])
}

/// The rule that decides, by what the types say.
fn decided(table: &Table, flow: &Flow) -> Option<usize> {
    let part = |part, address: IpAddr| match part {
        Part::Bits(bits) => IpNet::new(address, bits).unwrap().trunc(),
        Part::Class(position) => table.classes[position].class_of(address).into(),
    };
    let lists = table.chains.iter().flat_map(|chain| chain.rules.iter().flatten());
    let maps = lists.flat_map(|expr| if let Expr::Lookup(list) = expr { list.as_slice() } else { &[] });
    let mut maps = maps.map(|map| &table.maps[*map]);
    maps.find_map(|map| {
        let Shape { family, source, destination, service: detail } = map.shape;
        if (family == Family::V4) != flow.source.is_ipv4() {
            return None;
        }
        let service = match detail {
            Detail::Nothing => service("any"),
            Detail::Protocol => service("udp/0"),
            Detail::Port => service(&format!("udp/{}", flow.port)),
        };
        let key = Key {
            source: part(source, flow.source),
            destination: part(destination, flow.destination),
            service,
        };
        map.entries.get(&key).and_then(|entry| entry.rule)
    })
}

/// Everything in the two networks of each family is here, or at the peer.
pub(super) fn with_networks(peer: &Peer) {
    let family = |here: &str, there: &str, via: &str| {
        run(&format!("ip route add local {here} dev lo"));
        run(&format!("ip route add {there} via {via}"));
    };
    family("10.200.0.0/16", "10.201.0.0/16", "10.100.0.2");
    family("fd00:200::/32", "fd00:201::/32", "fd00:100::2");
    peer.run(move || {
        run("ip link set lo up");
        std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
        family("10.201.0.0/16", "10.200.0.0/16", "10.100.0.1");
        family("fd00:201::/32", "fd00:200::/32", "fd00:100::1");
    });
}

/// Sends a datagram from the peer and says which rule counted it; `None` if it was denied.
pub(super) fn judged(nft: &NfTables, table: &Table, peer: &Peer, flow: &Flow) -> Option<usize> {
    let read = || counters(wait(nft.observe(table)).unwrap());
    let before = read();
    let (from, to) = (SocketAddr::new(flow.source, 0), SocketAddr::new(flow.destination, flow.port));
    peer.run(move || UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap());
    let until = Instant::now() + PASSES;
    loop {
        let after = read();
        let grown = |(rule, count): (&usize, _)| (before.rules.get(rule) != Some(count)).then_some(*rule);
        let grown: BTreeSet<_> = after.rules.iter().filter_map(grown).collect();
        let denied = after.named["denied"] != before.named["denied"];
        if denied || !grown.is_empty() {
            assert!(grown.len() + usize::from(denied) == 1, "{flow:?}: {grown:?}, denied: {denied}");
            return grown.first().copied();
        }
        assert!(Instant::now() < until, "{flow:?}: nothing was counted");
        // The counters are asked again and again: nothing announces that one has grown.
        thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn flow(source: &str, destination: &str, port: u16) -> Flow {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    Flow { source, destination, protocol: UDP, port }
}

#[test]
fn root_packets_are_judged_by_classes_and_by_all_maps_of_a_list() {
    in_namespace(|| {
        let peer = Peer::joined();
        with_networks(&peer);
        let nft = NfTables::new().unwrap();
        let table = both_families();
        assert_eq!(wait(nft.replace(&table)).unwrap(), Applied::Complete);
        // The host's half of an address: where classes begin and end, and just before.
        let hosts = [
            "0.0", "0.63", "0.64", "0.127", "0.128", "0.255", "1.0", "1.255", "2.0", "3.255", "4.0", "4.6",
            "4.7", "4.8", "9.1", "127.255", "128.0", "255.254",
        ];
        let hosts6 = [
            "::",
            "::3f",
            "::40",
            "::7f",
            "::80",
            "0:ffff::",
            "1::",
            "1:ffff::",
            "2::",
            "3:ffff::",
            "4::",
            "4::6",
            "4::7",
            "4::8",
            "9::1",
            "7fff:ffff::",
            "8000::",
            "ffff::fffe",
        ];
        let mut seen = BTreeSet::new();
        let mut probe = |flow: Flow| {
            let expected = decided(&table, &flow);
            assert_eq!(judged(&nft, &table, &peer, &flow), expected, "{flow:?}");
            seen.insert(expected);
        };
        for (number, source) in hosts.iter().enumerate() {
            // The same one on the other side, and one that is another each time.
            for destination in [source, hosts[(number * 7 + 1) % hosts.len()], "0.5", "1.5"] {
                for port in [53, 54, 55] {
                    let (from, to) = (format!("10.201.{source}"), format!("10.200.{destination}"));
                    probe(flow(&from, &to, port));
                }
            }
        }
        for (number, source) in hosts6.iter().enumerate() {
            for destination in [source, hosts6[(number * 7 + 1) % hosts6.len()], "::5", "1::5"] {
                for port in [53, 54, 55] {
                    let colon = |host: &str| if host.starts_with(':') { "" } else { ":" };
                    let of = |net, host| format!("fd00:{net}{}{host}", colon(host));
                    probe(flow(&of("201", source), &of("200", destination), port));
                }
            }
        }
        let rules = table.maps.iter().flat_map(|map| map.entries.values().map(|entry| entry.rule));
        let unseen: Vec<_> = rules.filter(|rule| !seen.contains(rule)).collect();
        assert!(unseen.is_empty() && seen.contains(&None), "{unseen:?} decided nothing");
    });
}

/// Changes a table, as no one should.
type Edit = fn(&mut Table);

#[test]
fn root_every_edit_of_classes_is_observed_and_named() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = both_families();
        // `nft` 1.0.6 dies of elements of intervals beside one for all else, whoever made them: these edits are made by us.
        let edits: [(Edit, &str); 11] = [
            (
                |t| start(t, 0, "10.201.3.0", "10.201.1.0"),
                "source4 has an entry too many, for addresses from 10.201.3.0",
            ),
            (
                |t| start(t, 0, "10.201.4.8", "10.201.4.0"),
                "source4 has an entry too many, for addresses from 10.201.4.8",
            ),
            (
                |t| start(t, 0, "10.201.4.7", "10.201.1.0"),
                "source4 has another entry for addresses from 10.201.4.7",
            ),
            (
                |t| start(t, 0, "10.201.4.7", "10.201.0.64"),
                "source4 has no entry for the end of a class before 10.201.4.7",
            ),
            (|t| start(t, 0, "10.201.4.7", "0.0.0.0"), "source4 has no entry for addresses from 10.201.4.7"),
            (
                |t| start(t, 0, "255.255.255.255", "0.0.0.0"),
                "source4 has an entry too many, for the end of a class before 255.255.255.255",
            ),
            (
                |t| start(t, 0, "0.0.0.0", "10.201.1.0"),
                "source4 has an entry too many, for addresses from 0.0.0.0",
            ),
            (|t| t.classes[1].rest = "10.200.1.0".parse().unwrap(), "destination4"),
            (
                |t| start(t, 3, "fd00:200:3::", "fd00:200:1::"),
                "destination6 has an entry too many, for addresses from fd00:200:3::",
            ),
            (
                |t| start(t, 3, "fd00:200:4::7", "::"),
                "destination6 has no entry for addresses from fd00:200:4::7",
            ),
            (
                |t| t.classes[2].starts.retain(|_, class| !class.to_string().starts_with("fd00:201:8000")),
                "source6",
            ),
        ];
        for (edit, named) in edits {
            let mut edited = table.clone();
            edit(&mut edited);
            wait(nft.replace(&edited)).unwrap();
            counters(wait(nft.observe(&edited)).unwrap());
            let difference = difference(&nft, &table);
            assert!(difference.starts_with("map ") && difference.contains(named), "{named}: {difference}");
        }
        let edits = [
            (
                "flush map inet plexd destination4",
                "map destination4 has no entry for addresses from 10.200.0.0",
            ),
            ("delete element inet plexd v4_port { * }", "map v4_port has no entry for all else"),
            (
                "delete element inet plexd v4_port { * } ; add element inet plexd v4_port { * : drop }",
                "map v4_port has another entry for all else",
            ),
            (
                "add element inet plexd v4_any { * : accept }",
                "map v4_any has an entry too many, for all else",
            ),
            (
                "delete element inet plexd v4_bits { 10.201.9.0 } ; add element inet plexd v4_bits { 10.201.3.0 : accept }",
                "map v4_bits has no entry for 10.201.9.0/24 -> 0.0.0.0/0",
            ),
            (
                "add map inet plexd more { type ipv4_addr : ipv4_addr ; flags interval ; }",
                "map more was added",
            ),
            ("flush chain inet plexd rules6", "chain rules6"),
        ];
        for (edit, named) in edits {
            wait(nft.replace(&table)).unwrap();
            counters(wait(nft.observe(&table)).unwrap());
            let output = Command::new("nft").arg(edit).output().unwrap();
            assert!(output.status.success(), "{edit}: {}", String::from_utf8_lossy(&output.stderr));
            let difference = difference(&nft, &table);
            assert!(difference.contains(named), "{edit}: {difference}");
        }
    });
}

fn start(table: &mut Table, position: usize, at: &str, class: &str) {
    table.classes[position].starts.insert(at.parse().unwrap(), class.parse().unwrap());
}

pub(super) fn difference(nft: &NfTables, table: &Table) -> String {
    match wait(nft.observe(table)).unwrap() {
        ObservedTable::Differs { what } => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn root_classes_and_lists_are_shown_by_nft() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        wait(nft.replace(&both_families())).unwrap();
        let listed = run("nft list table inet plexd");
        for text in [
            "type ipv4_addr : mark . ipv4_addr",
            "10.201.0.64/26 : 0x00000000 . 10.201.0.64",
            "10.201.128.0-255.255.255.255 : 0x00000000 . 10.201.128.0",
            "* : 0x00000000 . 0.0.0.0",
            "* counter packets 0 bytes 0 : continue",
            "vmap @v4_port ct original ip saddr . ct original ip daddr . ct protocol vmap @v4_proto",
        ] {
            assert!(listed.contains(text), "{text} in {listed}");
        }
        let listed = run("nft -j list ruleset");
        assert!(listed.contains("\"source4\"") && listed.contains("\"v6_mixed_any\""), "{listed}");
    });
}

#[test]
fn root_counters_of_lists_survive_a_replacement() {
    in_namespace(|| {
        let peer = Peer::joined();
        with_networks(&peer);
        let nft = NfTables::new().unwrap();
        let mut table = both_families();
        wait(nft.replace(&table)).unwrap();
        let flow = flow("10.201.0.64", "10.200.0.64", 99);
        assert_eq!(judged(&nft, &table, &peer, &flow), Some(20));
        let old = counters(wait(nft.observe(&table)).unwrap());
        // What decides keeps its count, though the classes around it are others.
        table.classes[0].starts.insert("10.201.77.0".parse().unwrap(), "10.201.1.0".parse().unwrap());
        wait(nft.replace(&table)).unwrap();
        let new = counters(wait(nft.observe(&table)).unwrap());
        assert!(new.rules[&20].packets >= old.rules[&20].packets, "{new:?}");
        assert_eq!(new.rules.values().filter(|count| count.packets > 0).count(), 1, "{new:?}");
    });
}

#[test]
fn root_what_is_refused_of_classes_is_named() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let mut table = both_families();
        table.classes[0].rest = "::".parse().unwrap();
        let error = wait(nft.replace(&table)).unwrap_err().to_string();
        assert!(error.starts_with("cannot replace entries of map source4 of table inet plexd: "), "{error}");
    });
}

/// Three intervals for every two of `count`, two of the three side by side.
fn large(family: Family, count: u32) -> Table {
    let address = |n: u32| match family {
        Family::V4 => IpAddr::from((0x0b00_0000 + n).to_be_bytes()),
        Family::V6 => IpAddr::from(((0xfd00_u128 << 112) + (u128::from(n) << 64)).to_be_bytes()),
    };
    let rest = if family == Family::V4 { "0.0.0.0" } else { "::" }.parse().unwrap();
    let starts = (0..count).flat_map(|n| {
        let (first, second) = (address(4 * n), address(4 * n + 2));
        [(first, first), (second, if n % 2 == 0 { second } else { rest })]
    });
    let divided = Classes { name: "c".to_owned(), family, starts: starts.collect(), rest };
    let any = if family == Family::V4 { "0.0.0.0" } else { "::" };
    let entry = format!("{any} {any} any");
    let map = map("v", (Part::Class(0), Part::Class(0)), &[entry.as_str()], 0);
    made_of(vec![divided], vec![map], &[&[0]])
}

#[test]
fn root_more_than_ten_thousand_intervals_are_applied_in_one_transaction() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        for (family, count) in [(Family::V4, 13_334), (Family::V6, 26_667)] {
            let table = large(family, count);
            wait(nft.replace(&table)).unwrap();
            counters(wait(nft.observe(&table)).unwrap());
        }
    });
}
