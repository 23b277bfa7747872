//! There is no moment without policy: of datagrams that must be dropped, into the node and through it, none passes while one
//! table replaces another.

use std::net::UdpSocket;
use std::time::Instant;

use plexd_core::kernel::nft::NfTables;
use plexd_core::kernel::{Firewall, ObservedTable};
use plexd_core::policy::{Action, Context, Table, compile};
use plexd_e2e::Barrage;

use super::support::{PASSES, Peer, context, in_namespace, policy, run, set_sysctl, table, wait};

/// Replacements in `make test`, and in `make test-long`.
const FEW: u32 = 100;
const MANY: u32 = 1_000;

/// Where nothing may arrive: here by either family, and behind this node.
const FORBIDDEN: [&str; 3] = ["10.100.0.1:9999", "[fd00:100::1]:9999", "10.101.0.2:9999"];

/// One of two policies, which differ in every address and allow much, but not UDP to port 9999.
fn one_of_two(number: u32, denial: &Denial) -> Table {
    let one = |n: u32| match n % 3 {
        0 => format!("allow 10.102.{}.{n} n_here tcp/{}", number % 2, 1 + n % 7),
        1 => format!("allow n_peer 10.10{}.{n}.0/24 any", 3 + number % 2),
        _ => format!("deny fd00:{}::{n} fd00:101::/64 udp/{n}", 200 + number % 2),
    };
    let mut rules: Vec<_> = (0..60).map(one).collect();
    rules.extend(["allow n_peer n_here udp/53".to_owned(), format!("allow * * tcp/{}", 80 + number % 2)]);
    rules.extend(denial.rules.iter().map(|rule| (*rule).to_owned()));
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    compile(&policy(&rules), &Context { default: denial.default, ..context() }).unwrap().unwrap()
}

/// What denies: the last rules, and the default.
struct Denial {
    rules: &'static [&'static str],
    default: Action,
}

const BY_DEFAULT: Denial = Denial { rules: &[], default: Action::Deny };
/// Before one that allows everything.
const BY_A_RULE: Denial = Denial { rules: &["deny * * udp/9999", "allow * * any"], default: Action::Deny };
const BY_A_RULE_ALONE: Denial = Denial { rules: &["deny * * udp/9999"], default: Action::Allow };

fn nothing_passes_during(replacements: u32, denial: &'static Denial) {
    in_namespace(move || {
        let (mesh, lan) = (Peer::joined(), Peer::joined_by("lan0", 101));
        set_sysctl("net/ipv4/ip_forward", "1");
        let nft = NfTables::new().unwrap();
        let tables = [0, 1].map(|number| one_of_two(number, denial));
        wait(nft.replace(&tables[0])).unwrap();
        let senders = mesh.run(|| {
            run("ip route add 10.101.0.0/24 via 10.100.0.1");
            FORBIDDEN.map(|to| {
                let own = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(own).unwrap();
                socket.connect(to).unwrap();
                socket
            })
        });
        let there = lan.run(|| UdpSocket::bind(FORBIDDEN[2]).unwrap());
        let here = [FORBIDDEN[0], FORBIDDEN[1]].map(|to| UdpSocket::bind(to).unwrap());
        let barrage = Barrage::start(senders.into(), here.into_iter().chain([there]).collect());
        barrage.wait_sent(100);
        for number in 1..=replacements {
            wait(nft.replace(&tables[number as usize % 2])).unwrap();
        }
        barrage.wait_sent(100);
        assert_eq!(barrage.arrivals().len(), 0, "of {} datagrams", barrage.sent());
        let current = &tables[replacements as usize % 2];
        let ObservedTable::Same { counters } = wait(nft.observe(current)).unwrap() else { panic!() };
        // They were there to be dropped.
        let (dropped, sent) = (counters.named["denied"].packets, barrage.sent());
        assert!(dropped > sent / 2, "{dropped} counted of {sent}");
        #[expect(clippy::print_stdout, reason = "shown with a failure, and by --no-capture")]
        {
            println!("{replacements} replacements under {sent} datagrams: none arrived");
        }

        // And arrive where they may.
        wait(nft.replace(&table(&["allow * * udp/9999"]))).unwrap();
        let deadline = Instant::now() + PASSES;
        while barrage.arrivals().len() < 100 && Instant::now() < deadline {
            barrage.wait_sent(100);
        }
        assert!(barrage.stop().1.len() >= 100, "what is allowed does not arrive either");
    });
}

#[test]
fn root_nothing_that_is_denied_passes_while_the_policy_is_replaced() {
    nothing_passes_during(FEW, &BY_DEFAULT);
}

#[test]
fn root_nothing_that_is_denied_among_what_is_allowed_passes_while_the_policy_is_replaced() {
    nothing_passes_during(FEW, &BY_A_RULE);
}

#[test]
fn root_nothing_that_is_denied_where_the_default_is_to_allow_passes_while_the_policy_is_replaced() {
    nothing_passes_during(FEW, &BY_A_RULE_ALONE);
}

#[test]
#[ignore = "two minutes; make test-long"]
fn long_root_nothing_that_is_denied_passes_while_the_policy_is_replaced_a_thousand_times() {
    nothing_passes_during(MANY, &BY_DEFAULT);
    nothing_passes_during(MANY, &BY_A_RULE);
    nothing_passes_during(MANY, &BY_A_RULE_ALONE);
}
