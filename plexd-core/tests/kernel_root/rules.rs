//! Routing rules and plexd's own tables, and what the kernel makes of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use plexd_core::kernel::Network;
use plexd_core::kernel::changes::{LinkChanges, Watched};
use plexd_core::kernel::network::RtNetlink;
use plexd_core::kernel::rules::{MARK, OwnTable, Rule, Uids};

use crate::changes::is_told;
use crate::namespace::{Namespace, run_command};

/// Somebody who is not this process, which is root's.
const UIDS: Uids = Uids { own: 994, last: Uids::LAST };

fn list(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn tables(routes: &[IpNet]) -> BTreeSet<OwnTable> {
    routes.iter().map(OwnTable::of).collect()
}

fn rules(routes: &[IpNet]) -> Vec<Rule> {
    tables(routes).into_iter().flat_map(|table| table.rules(UIDS)).collect()
}

/// A namespace with a mesh interface that is up, and a default route elsewhere.
fn prepared() -> Namespace {
    let namespace = Namespace::new();
    for line in [
        "ip link add plexd0 type veth peer name far0",
        "ip link add eth0 type veth peer name far1",
        "for link in far0 far1 plexd0 eth0; do ip link set $link up; done",
        "ip address add 198.51.100.2/24 dev eth0; ip address add 10.100.0.1/32 dev plexd0",
        "ip address add 2001:db8:1::2/64 dev eth0 nodad; ip address add fd00::1/128 dev plexd0 nodad",
        "ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:1::1",
    ] {
        namespace.command(line);
    }
    namespace
}

/// Sets up `routes` apart, and returns what there was before.
async fn set_up(network: &RtNetlink, routes: &[IpNet]) {
    network.add_rules(&rules(routes)).await.unwrap();
    network.add_apart("plexd0", routes).await.unwrap();
}

/// The interface by which a packet leaves.
fn way(to: &str, more: &str) -> String {
    let route = run_command(&format!("ip -o route get {to} {more}"));
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).unwrap().to_owned()
}

#[test]
fn root_what_covers_everything_takes_all_but_the_marked_packets_and_those_of_one_user() {
    prepared().run(|| async {
        let network = RtNetlink::new().unwrap();
        set_up(&network, &list(&["0.0.0.0/0", "::/0", "203.0.113.0/24"])).await;
        run_command("ip route add 203.0.113.128/25 via 198.51.100.1");
        let mark = format!("mark {MARK:#x}");
        let both = format!("{mark} uid 1000");
        for (to, more, expected) in [
            ("192.0.2.7", "uid 1000", "plexd0"),
            ("192.0.2.7", "uid 0 mark 0xca6c", "plexd0"),
            ("192.0.2.7", "uid 994", "eth0"),
            ("192.0.2.7", &both, "eth0"),
            ("203.0.113.7", "uid 1000", "plexd0"),
            ("203.0.113.7", "uid 994", "eth0"),
            ("203.0.113.7", &mark, "eth0"),
            // The longer route, and the network of the machine itself.
            ("203.0.113.130", "uid 1000", "eth0"),
            ("198.51.100.9", "uid 1000", "eth0"),
            ("2001:db8:2::7", "uid 1000", "plexd0"),
            ("2001:db8:2::7", "uid 994", "eth0"),
            ("2001:db8:2::7", &both, "eth0"),
            ("2001:db8:1::7", "uid 1000", "eth0"),
        ] {
            assert_eq!(way(to, more), expected, "{to} {more}");
        }
    });
}

#[test]
fn root_rules_are_observed_as_they_were_set_and_go_without_touching_those_of_others() {
    prepared().run(|| async {
        let network = RtNetlink::new().unwrap();
        run_command(
            "ip rule add pref 100 from 10.9.0.0/16 lookup 77; ip -6 rule add pref 11000 lookup 77 proto 112",
        );
        // The kernel adds routes to link-local addresses once it has made sure that nobody else has them.
        let shown = "ip rule show; ip -6 rule show; ip route show table all | grep -v fe80:";
        let before = run_command(shown);
        let routes = list(&["0.0.0.0/0", "::/0", "128.0.0.0/1", "203.0.113.0/24"]);
        for _ in 0..2 {
            set_up(&network, &routes).await;
            let observed = network.observe_rules("plexd0", &tables(&routes), &[]).await.unwrap();
            assert_eq!(observed.rules, rules(&routes).into_iter().collect());
            assert!(observed.taken.is_empty(), "{observed:?}");
            let link = network.observe("plexd0").await.unwrap().unwrap();
            assert_eq!(link.apart, routes.iter().copied().collect());
            assert!(link.routes.is_empty());
        }
        // By hand, in our place and under our name: ours to remove, and nothing but it.
        run_command("ip rule add pref 11713 from 10.8.0.0/16 lookup 99 proto 112");
        let observed = network.observe_rules("plexd0", &tables(&routes), &[]).await.unwrap();
        let wanted: BTreeSet<Rule> = rules(&routes).into_iter().collect();
        let odd: Vec<Rule> = observed.rules.difference(&wanted).cloned().collect();
        assert_eq!(odd.len(), 1);
        network.remove_rules(&odd).await.unwrap();
        let observed = network.observe_rules("plexd0", &tables(&routes), &[]).await.unwrap();
        assert_eq!(observed.rules, wanted);
        for _ in 0..2 {
            network.remove_rules(&Vec::from_iter(wanted.clone())).await.unwrap();
            network.remove_apart("plexd0", &routes).await.unwrap();
        }
        assert_eq!(run_command(shown), before);
    });
}

#[test]
fn root_numbers_that_somebody_else_uses_are_told() {
    prepared().run(|| async {
        let network = RtNetlink::new().unwrap();
        run_command("ip rule add pref 11714 lookup 77; ip -6 route add 2001:db8:5::/48 dev eth0 table 11200");
        let routes = list(&["0.0.0.0/0", "::/0", "0.0.0.0/1"]);
        let observed = network.observe_rules("plexd0", &tables(&routes), &[]).await.unwrap();
        let taken: Vec<&str> = observed.taken.values().map(String::as_str).collect();
        assert_eq!(
            taken,
            [
                "the priority of IPv4 routing rule 11714 is used by somebody else's rule",
                "IPv6 routing table 11200 has somebody else's route to 2001:db8:5::/48",
            ]
        );
    });
}

#[test]
fn root_an_interface_that_judges_by_the_way_back_is_told() {
    prepared().run(|| async {
        let network = RtNetlink::new().unwrap();
        let towards = ["192.0.2.7", "2001:db8:2::7"].map(|text| text.parse::<IpAddr>().unwrap());
        for (all, eth0, strict) in [(0, 0, false), (0, 1, true), (1, 0, true), (1, 2, false), (2, 1, false)] {
            run_command(&format!("echo {all} > /proc/sys/net/ipv4/conf/all/rp_filter"));
            run_command(&format!("echo {eth0} > /proc/sys/net/ipv4/conf/eth0/rp_filter"));
            let observed = network.observe_rules("plexd0", &BTreeSet::new(), &towards).await.unwrap();
            assert_eq!(observed.strict.contains("eth0"), strict, "all {all} eth0 {eth0}");
        }
    });
}

#[test]
fn root_changes_of_plexds_rules_are_told_and_those_of_others_are_not() {
    Namespace::new().run(|| async {
        let mut changes = LinkChanges::new("plexd0", Watched::Everything).unwrap();
        run_command("ip rule add pref 100 lookup 77; ip -6 rule add pref 100 lookup 77");
        assert!(!is_told(&mut changes).await);
        RtNetlink::new().unwrap().add_rules(&rules(&list(&["0.0.0.0/0", "::/0"]))).await.unwrap();
        while is_told(&mut changes).await {}
        for line in [
            "ip rule del pref 11713",
            "ip -6 rule del pref 11712",
            "ip rule add pref 11713 lookup 77",
            "ip rule del pref 11713",
        ] {
            run_command(line);
            assert!(is_told(&mut changes).await, "{line}");
            while is_told(&mut changes).await {}
        }
    });
}
