//! Links, addresses and routes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use plexd_core::kernel::network::{ROUTE_PROTOCOL, RtNetlink};
use plexd_core::kernel::{Network, RouteConflict};

use crate::namespace::Namespace;

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn list(texts: &[&str]) -> Vec<IpNet> {
    nets(texts).into_iter().collect()
}

/// A namespace with an interface that is down.
fn with_interface() -> Namespace {
    let namespace = Namespace::new();
    namespace.command("ip link add plexd0 type veth peer name far0");
    namespace.command("ip link set far0 up");
    namespace
}

#[test]
fn root_an_interface_that_is_not_there_is_none_and_nothing_is_left_to_remove() {
    Namespace::new().run(|| async {
        let network = RtNetlink::new().unwrap();
        assert_eq!(network.observe("plexd0").await.unwrap(), None);
        network.remove_routes("plexd0", &list(&["10.0.0.0/8"])).await.unwrap();
        network.remove_address("plexd0", "10.0.0.1/32".parse().unwrap()).await.unwrap();
        let error = network.bring_up("plexd0", 1420).await.unwrap_err().to_string();
        assert!(error.contains("plexd0") && error.contains("no such interface"), "{error}");
    });
}

#[test]
fn root_what_was_set_is_observed_and_setting_it_again_is_no_error() {
    let namespace = with_interface();
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        let before = network.observe("plexd0").await.unwrap().unwrap();
        assert!(!before.up && before.addresses.is_empty() && before.routes.is_empty());
        let addresses = nets(&["10.100.0.1/32", "fd00::1/128"]);
        let routes = list(&["0.0.0.0/0", "10.100.0.2/32", "10.9.0.0/16", "fd00::2/128", "::/0"]);
        for _ in 0..2 {
            network.bring_up("plexd0", 1420).await.unwrap();
            for address in &addresses {
                network.add_address("plexd0", *address).await.unwrap();
            }
            assert_eq!(network.add_routes("plexd0", &routes).await.unwrap(), []);
            let link = network.observe("plexd0").await.unwrap().unwrap();
            assert_eq!((link.up, link.mtu), (true, 1420));
            // The kernel's own link-local address, and its routes of our addresses, are not told.
            assert_eq!(link.addresses, addresses);
            assert_eq!(link.routes, routes.iter().copied().collect());
        }
    });
    let shown = namespace.command(&format!("ip route show proto {ROUTE_PROTOCOL}"));
    assert!(shown.contains("10.9.0.0/16 dev plexd0"), "{shown}");
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        let routes = list(&["0.0.0.0/0", "10.9.0.0/16", "fd00::2/128"]);
        for _ in 0..2 {
            network.remove_routes("plexd0", &routes).await.unwrap();
            network.remove_address("plexd0", "fd00::1/128".parse().unwrap()).await.unwrap();
        }
        let link = network.observe("plexd0").await.unwrap().unwrap();
        assert_eq!(link.addresses, nets(&["10.100.0.1/32"]));
        assert_eq!(link.routes, nets(&["10.100.0.2/32", "::/0"]));
    });
}

#[test]
fn root_routes_of_others_are_reported_with_their_interface_and_left_alone() {
    let namespace = with_interface();
    for line in [
        "ip link set plexd0 up",
        "ip link add other0 type bridge",
        "ip link set other0 up",
        "ip route add 10.1.0.0/16 dev other0",
        "ip -6 route add fd01::/64 dev other0",
        "ip route add blackhole 10.2.0.0/16",
        "ip route add 10.3.0.0/16 dev plexd0",
    ] {
        namespace.command(line);
    }
    let before = namespace.command("ip route show table main");
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        let wanted = list(&["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16", "fd01::/64"]);
        let conflicts = network.add_routes("plexd0", &wanted).await.unwrap();
        let conflict = |destination: &str, owner: Option<&str>| RouteConflict {
            destination: destination.parse().unwrap(),
            owner: owner.map(str::to_owned),
        };
        let expected = [
            conflict("10.1.0.0/16", Some("other0")),
            conflict("10.2.0.0/16", None),
            conflict("fd01::/64", Some("other0")),
        ];
        assert_eq!(conflicts, expected);
        // Ours, whoever added it, because it goes through our interface.
        let link = network.observe("plexd0").await.unwrap().unwrap();
        assert_eq!(link.routes, nets(&["10.3.0.0/16", "10.4.0.0/16"]));
        network.remove_routes("plexd0", &wanted).await.unwrap();
    });
    let after = namespace.command("ip route show table main");
    assert_eq!(after, before.replace("10.3.0.0/16 dev plexd0 scope link \n", ""));
}

/// A few single addresses are asked for one by one.
#[test]
fn root_routes_of_others_to_single_addresses_are_reported_whatever_their_metric_and_kind() {
    let namespace = with_interface();
    for line in [
        "ip link set plexd0 up",
        "ip link add other0 type bridge",
        "ip link set other0 up",
        "ip route add 10.0.0.0/8 dev other0",
        "ip route add 10.1.0.1/32 dev other0 metric 50",
        "ip -6 route add fd01::1/128 dev other0 metric 50",
        "ip -6 route add fd02::/64 dev other0",
        "ip address add 10.4.0.1/32 dev other0",
        "ip route add 10.5.0.1/32 dev plexd0",
    ] {
        namespace.command(line);
    }
    let told = |wanted: &[&str]| {
        let wanted = list(wanted);
        namespace.run(|| async move {
            let network = RtNetlink::new().unwrap();
            let conflicts = network.add_routes("plexd0", &wanted).await.unwrap();
            let told =
                conflicts.into_iter().map(|conflict| (conflict.destination.to_string(), conflict.owner));
            let told: Vec<_> = told.collect();
            let routes = network.observe("plexd0").await.unwrap().unwrap().routes;
            for route in wanted {
                let is_told = told.iter().any(|(told, _)| *told == route.to_string());
                assert_ne!(routes.contains(&route), is_told, "{route}");
            }
            told
        })
    };
    let other = Some("other0".to_owned());
    let wanted = [
        "10.1.0.1/32",
        "10.2.0.1/32",
        "10.5.0.1/32",
        "172.16.0.1/32",
        "fd01::1/128",
        "fd02::1/128",
        "fd03::1/128",
    ];
    for _ in 0..2 {
        assert_eq!(
            told(&wanted),
            [("10.1.0.1/32".to_owned(), other.clone()), ("fd01::1/128".to_owned(), other.clone())]
        );
    }
    namespace.command("ip route add blackhole 10.3.0.1/32");
    namespace.command("ip route add prohibit 10.3.0.2/32 metric 7");
    let wanted = ["10.3.0.1/32", "10.3.0.2/32", "10.3.0.3/32"];
    assert_eq!(told(&wanted), [("10.3.0.1/32".to_owned(), None), ("10.3.0.2/32".to_owned(), None)]);
}

#[test]
fn root_a_route_of_somebody_else_with_another_metric_is_neither_overridden_nor_overlooked() {
    let namespace = with_interface();
    for line in [
        "ip link set plexd0 up",
        "ip link add other0 type bridge",
        "ip link set other0 up",
        // As a network manager's route of its network, and as the kernel's own for IPv6.
        "ip route add 192.168.1.0/24 dev other0 metric 100",
        "ip address add fd02::1/64 dev other0 nodad",
        "ip -6 route add fd03::/64 dev other0 metric 2000",
    ] {
        namespace.command(line);
    }
    let shown = |namespace: &Namespace| {
        namespace.command("ip route show table main; ip -6 route show table main | grep -v ^fe80")
    };
    let before = shown(&namespace);
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        let taken = list(&["192.168.1.0/24", "fd02::/64", "fd03::/64"]);
        for _ in 0..2 {
            let conflicts = network.add_routes("plexd0", &taken).await.unwrap();
            let told: Vec<_> = conflicts.iter().map(|conflict| conflict.destination).collect();
            assert_eq!(told, taken);
            assert!(conflicts.iter().all(|conflict| conflict.owner.as_deref() == Some("other0")));
        }
        assert_eq!(network.observe("plexd0").await.unwrap().unwrap().routes, BTreeSet::new());
    });
    assert_eq!(shown(&namespace), before);
}

#[test]
fn root_an_interface_that_is_taken_down_carries_no_routes_and_comes_up_again() {
    let namespace = with_interface();
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        network.bring_down("plexd1").await.unwrap();
        network.bring_up("plexd0", 1420).await.unwrap();
        network.add_routes("plexd0", &list(&["10.9.0.0/16", "fd00::2/128"])).await.unwrap();
        for _ in 0..2 {
            network.bring_down("plexd0").await.unwrap();
            let link = network.observe("plexd0").await.unwrap().unwrap();
            assert!(!link.up && link.routes.is_empty(), "{link:?}");
        }
        network.bring_up("plexd0", 1420).await.unwrap();
        assert!(network.observe("plexd0").await.unwrap().unwrap().up);
    });
}

#[test]
fn root_one_route_that_cannot_be_added_does_not_keep_the_others_out() {
    let namespace = with_interface();
    namespace.command("ip link set plexd0 up");
    namespace.command("echo 1 > /proc/sys/net/ipv6/conf/plexd0/disable_ipv6");
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        let error = network.add_routes("plexd0", &list(&["fd00::1/128", "10.0.0.1/32"])).await.unwrap_err();
        assert!(error.to_string().contains("add route fd00::1/128 through plexd0"), "{error}");
        let link = network.observe("plexd0").await.unwrap().unwrap();
        assert!(link.routes.contains(&"10.0.0.1/32".parse().unwrap()));
    });
}

#[test]
fn root_an_address_with_another_prefix_length_is_not_taken_for_the_one_asked_for() {
    let namespace = with_interface();
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        network.bring_up("plexd0", 1420).await.unwrap();
        network.add_address("plexd0", "fd00::1/64".parse().unwrap()).await.unwrap();
        let error = network.add_address("plexd0", "fd00::1/128".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("fd00::1/128 to plexd0"), "{error}");
    });
}

#[test]
fn root_ten_thousand_routes_are_added_and_removed() {
    let namespace = with_interface();
    namespace.run(|| async {
        let network = RtNetlink::new().unwrap();
        network.bring_up("plexd0", 1420).await.unwrap();
        let route = |number: u32| Ipv4Net::new(Ipv4Addr::from(0x0a64_0000 + number), 32).unwrap().into();
        let routes: Vec<IpNet> = (0..10_000_u32).map(route).collect();
        assert_eq!(network.add_routes("plexd0", &routes).await.unwrap(), []);
        // The same again: every one is answered with EEXIST and found to be ours.
        assert_eq!(network.add_routes("plexd0", &routes).await.unwrap(), []);
        assert_eq!(network.observe("plexd0").await.unwrap().unwrap().routes.len(), routes.len());
        network.remove_routes("plexd0", &routes).await.unwrap();
        assert_eq!(network.observe("plexd0").await.unwrap().unwrap().routes, BTreeSet::new());
    });
}
