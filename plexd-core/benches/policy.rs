//! What policy costs: packets of new flows per second that get through a table of 10, 1,000 and 10,000 rules, and how long
//! compiling and applying one takes. As root.
//!
//! The packets come by a plain veth pair that stands for the mesh interface, one packet for each flow, and the last rule of
//! the set decides on them, which names no service and no destination, so that the table finds nothing sooner. They are sent by one thread, whose processor also carries each packet to the receiving socket
//! before the next one leaves; so what the table costs slows the sender down.
//!
//! The rules are of a [`Mix`]. Those of `usual` mix addresses, networks as people divide them (/16, /20, /24 and /28) and node
//! IDs, any service, one port and any port; one in ten denies. Those of `hostile` have networks of every length from /8 to
//! /30 on both sides.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

#[path = "../tests/kernel_root/namespace.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod namespace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};
use plexd_core::kernel::Firewall;
use plexd_core::kernel::nft::NfTables;
use plexd_core::policy::{Action, Context, Policy, PolicySet, Rule, Selector, Service, Table, compile};
use plexd_core::types::NodeId;

use socket2::{Domain, Protocol, Socket, Type};

use namespace::Namespace;

/// Numbers of rules that are compared.
const SIZES: [u32; 3] = [10, 1_000, 10_000];
/// Each is measured so often, in turn.
const ROUNDS: usize = 7;
/// Packets of a measurement, each of a flow of its own: source ports and source addresses.
const PORTS: u16 = 50_000;
const SENDERS: u8 = 2;

const HERE: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
const SERVICE: u16 = 4_789;

fn main() {
    // cargo says `--bench`.
    let only_apply = std::env::args().any(|argument| argument == "apply");
    for mix in [Mix::Usual, Mix::Hostile] {
        let table = table(mix, 10_000);
        println!(
            "policy: {mix:?}: 10,000 rules are {} entries, {} lookups",
            table.size(),
            lookups_of(&table)
        );
        let [compiled, applied] = apply(mix);
        println!("policy: {mix:?}: 10,000 rules compiled in {compiled:.1} ms, applied in {applied:.1} ms");
        if mix == Mix::Usual {
            println!("bench policy.apply_10000_ms {:.1} ms", compiled + applied);
        }
        if only_apply {
            continue;
        }
        let rates = rates(mix);
        for (size, (rate, lookups)) in SIZES.iter().zip(&rates) {
            println!("policy: {mix:?}: {size:>6} rules, {lookups:>4} lookups: {rate:>9.0} new flows/s");
        }
        let ratio = rates[2].0 / rates[0].0;
        println!("policy: {mix:?}: 10,000 rules carry {ratio:.2} of what 10 do");
        if mix == Mix::Usual {
            println!("bench policy.pps_10000_over_10 {ratio:.2} ratio");
        }
    }
}

/// Returns the median rate, in packets per second, and the number of lookups, for each of [`SIZES`].
fn rates(mix: Mix) -> Vec<(f64, usize)> {
    let mut rates = vec![Vec::new(); SIZES.len()];
    let mut lookups = vec![0; SIZES.len()];
    for _ in 0..ROUNDS {
        for (at, size) in SIZES.into_iter().enumerate() {
            let table = table(mix, size);
            lookups[at] = lookups_of(&table);
            rates[at].push(rate(table));
        }
    }
    rates.into_iter().map(median).zip(lookups).collect()
}

/// Returns the times to compile and to apply 10,000 rules, in milliseconds; the medians.
fn apply(mix: Mix) -> [f64; 2] {
    let (mut compiled, mut applied) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (policies, context) = policies(mix, 10_000);
        let begun = Instant::now();
        let table = compile(&policies, &context).unwrap().unwrap();
        compiled.push(milliseconds(begun));
        applied.push(Namespace::new().run(move || async move {
            let nft = NfTables::new().unwrap();
            let begun = Instant::now();
            nft.replace(&table).await.unwrap();
            milliseconds(begun)
        }));
    }
    [median(compiled), median(applied)]
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Returns how many packets of new flows get through a table in a second, in namespaces that have met no flow yet.
fn rate(table: Table) -> f64 {
    let (here, there) = (Namespace::new(), Namespace::new());
    here.connect("plexd0", &there);
    here.command(&format!("ip address add {HERE}/8 dev plexd0"));
    there.command(&format!("ip address add {}/8 dev cable1", sender(0)));
    let receiver = here.run(move || async move {
        NfTables::new().unwrap().replace(&table).await.unwrap();
        std::net::UdpSocket::bind((HERE, SERVICE)).unwrap()
    });
    // The neighbour is known before the first packet.
    there.command(&format!("ping -q -c 1 -W 1 {HERE} >/dev/null || ip neigh show {HERE} | grep -q lladdr"));
    let (packets, before) = (packets(), received(&here));
    let took = there.run(move || async move { send(&packets) });
    let got = received(&here) - before;
    let sent = u64::from(PORTS) * u64::from(SENDERS);
    assert_eq!(got, sent, "all that was sent is to come");
    drop(receiver);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let sent = sent as f64;
    sent / took
}

/// Returns how many packets the firewall let through to sockets.
fn received(here: &Namespace) -> u64 {
    let text = here.command("nstat -asz IpInDelivers");
    text.split_whitespace().skip_while(|word| *word != "IpInDelivers").nth(1).unwrap().parse().unwrap()
}

fn sender(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 100, 1, number + 1)
}

/// Packets with their IP and UDP headers, without a UDP checksum.
fn packets() -> Vec<[u8; 28]> {
    let packet = |sender: Ipv4Addr, port: u16| {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&28_u16.to_be_bytes());
        packet[8] = 64;
        packet[9] = 17;
        packet[12..16].copy_from_slice(&sender.octets());
        packet[16..20].copy_from_slice(&HERE.octets());
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[22..24].copy_from_slice(&SERVICE.to_be_bytes());
        packet[24..26].copy_from_slice(&8_u16.to_be_bytes());
        packet
    };
    (0..SENDERS)
        .flat_map(|number| (1..=PORTS).map(move |port| packet(sender(number), 10_000 + port)))
        .collect()
}

/// Sends the packets and returns how long it took, in seconds.
fn send(packets: &[[u8; 28]]) -> f64 {
    // IPPROTO_RAW: the packets bring their IP headers.
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    raw.connect(&SocketAddrV4::new(HERE, 0).into()).unwrap();
    let begun = Instant::now();
    for packet in packets {
        assert_eq!(raw.send(packet).unwrap(), packet.len());
    }
    begun.elapsed().as_secs_f64()
}

/// What rules are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// As people write them.
    Usual,
    /// As nobody does.
    Hostile,
}

/// Numbers that look like chance and are the same every time (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let high = u32::try_from(self.0 >> 32).unwrap();
        u32::try_from((u64::from(high) * u64::from(end)) >> 32).unwrap()
    }
}

fn table(mix: Mix, rules: u32) -> Table {
    let (policies, context) = policies(mix, rules);
    compile(&policies, &context).unwrap().unwrap()
}

/// Returns `count` rules, the last of which is the first that matches the packets, and the mesh they are read in.
fn policies(mix: Mix, count: u32) -> (PolicySet, Context) {
    let mut dice = Dice(1);
    let mut members = BTreeMap::from([
        (node("here"), BTreeSet::from([IpNet::from(IpAddr::from(HERE))])),
        (node("there"), (0..SENDERS).map(|number| IpAddr::from(sender(number)).into()).collect()),
    ]);
    let mut rules: Vec<Rule> = (1..count)
        .map(|number| {
            // Never from where the packets come from.
            let address = Ipv4Addr::from(0x0a80_0000 + dice.below(1 << 23));
            let src = match dice.below(3) {
                0 => Selector::Net(IpAddr::from(address).into()),
                1 => network(address, mix, &mut dice),
                _ => {
                    let id = node(&number.to_string());
                    members.insert(id.clone(), BTreeSet::from([IpAddr::from(address).into()]));
                    Selector::Node(id)
                }
            };
            let dst = match dice.below(3) {
                0 => Selector::Net(IpAddr::from(HERE).into()),
                1 => network(HERE, mix, &mut dice),
                _ => Selector::Node(node("here")),
            };
            let port = NonZeroU16::new(1 + u16::try_from(dice.below(4_000)).unwrap());
            let service = match dice.below(4) {
                0 => Service::Any,
                1 => Service::Tcp(None),
                2 => Service::Tcp(port),
                _ => Service::Udp(port),
            };
            let action = if dice.below(10) == 0 { Action::Deny } else { Action::Allow };
            Rule { src, dst, service, action }
        })
        .collect();
    rules.push(Rule {
        src: Selector::Node(node("there")),
        dst: Selector::Any,
        service: Service::Any,
        action: Action::Allow,
    });
    let context = Context {
        node: node("here"),
        mesh_ip: HERE.into(),
        members,
        interface: "plexd0".to_owned(),
        default: Action::Deny,
        enabled: true,
        log_denied: true,
    };
    (PolicySet { policies: vec![Policy { id: "bench".to_owned(), rules }] }, context)
}

fn network(address: Ipv4Addr, mix: Mix, dice: &mut Dice) -> Selector {
    let length = match mix {
        Mix::Usual => [16, 20, 24, 28][dice.below(4) as usize],
        Mix::Hostile => u8::try_from(9 + dice.below(22)).unwrap(),
    };
    Selector::Net(Ipv4Net::new_assert(address, length).trunc().into())
}

fn node(name: &str) -> NodeId {
    format!("n_{name}").parse().unwrap()
}

/// Returns how many maps a packet that nothing matches is looked up in.
fn lookups_of(table: &Table) -> usize {
    table.maps.len()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
