//! Beside the rulesets of others, as their own programs load them (`tests/e2e/rulesets`): what plexd denies does not pass
//! whatever they accept, what both allow does, and their tables are as they were.

use plexd_core::kernel::Firewall;
use plexd_core::kernel::nft::NfTables;

use super::support::{
    DROPPED, PASSES, Peer, at, connect, echo, feed, in_namespace, run, serve, set_sysctl, table, wait,
};

const DOCKER: &str = include_str!("../../../tests/e2e/rulesets/docker.iptables");
const UFW: &str = include_str!("../../../tests/e2e/rulesets/ufw.iptables");
const UFW_V6: &str = include_str!("../../../tests/e2e/rulesets/ufw.ip6tables");
const FIREWALLD: &str = include_str!("../../../tests/e2e/rulesets/firewalld.nft");

fn load_docker() {
    feed("iptables-nft-restore", DOCKER);
}

fn load_ufw() {
    feed("iptables-nft-restore", UFW);
    feed("ip6tables-nft-restore", UFW_V6);
}

fn load_firewalld() {
    feed("nft -f -", FIREWALLD);
}

/// The tables of others, with their handles and without what they counted.
fn others() -> String {
    let listed = run("nft --handle --stateless list ruleset");
    // A table ends with a brace at the beginning of a line.
    listed.split("\n}\n").filter(|table| !table.contains("table inet plexd ")).collect()
}

/// Both load before plexd, and after it.
fn in_either_order(load: fn(), test: impl Fn(&NfTables, &Peer) + Copy + Send + 'static) {
    for theirs_first in [true, false] {
        in_namespace(move || {
            let peer = Peer::joined();
            let nft = NfTables::new().unwrap();
            if theirs_first {
                load();
            }
            wait(nft.replace(&table(&[]))).unwrap();
            if !theirs_first {
                load();
            }
            let before = others();
            test(&nft, &peer);
            assert_eq!(others(), before);
            wait(nft.remove()).unwrap();
            assert_eq!(others(), before);
        });
    }
}

/// Port 22 is what their rules open, 23 what they do not.
fn enforces_beside_a_host_firewall(nft: &NfTables, peer: &Peer) {
    serve("10.100.0.1", &[22, 23]);
    serve("fd00:100::1", &[22]);
    peer.run(|| assert!(connect(at("10.100.0.1", 22), DROPPED).is_none(), "they accept, we deny"));
    wait(nft.replace(&table(&["allow n_peer n_here tcp/0"]))).unwrap();
    peer.run(|| {
        assert!(connect(at("10.100.0.1", 22), PASSES).is_some(), "both accept");
        assert!(connect(at("fd00:100::1", 22), PASSES).is_some(), "both accept IPv6");
        assert!(connect(at("10.100.0.1", 23), DROPPED).is_none(), "we accept, they deny");
    });
    let mut open = peer.run(|| connect(at("10.100.0.1", 22), PASSES)).unwrap();
    wait(nft.replace(&table(&["allow n_peer n_here udp/0"]))).unwrap();
    assert!(!echo(&mut open, DROPPED), "they accept what is established, we do not");
}

#[test]
fn root_policy_holds_beside_ufw() {
    in_either_order(load_ufw, enforces_beside_a_host_firewall);
}

#[test]
fn root_policy_holds_beside_firewalld() {
    in_either_order(load_firewalld, enforces_beside_a_host_firewall);
}

#[test]
fn root_policy_holds_for_the_published_ports_of_docker() {
    in_either_order(load_docker, |nft, peer| {
        let container = Peer::joined_by("docker0", 117);
        set_sysctl("net/ipv4/ip_forward", "1");
        run("ip address add 172.17.0.1/16 dev docker0");
        run("ip neigh add 172.17.0.2 lladdr 02:00:00:00:00:02 dev docker0 nud permanent");
        container.run(|| {
            run("ip address add 172.17.0.2/16 dev docker0");
            run("ip route add default via 172.17.0.1");
            run("ip neigh add 172.17.0.1 lladdr 02:00:00:00:00:01 dev docker0 nud permanent");
            serve("172.17.0.2", &[80]);
        });
        serve("10.100.0.1", &[22]);
        peer.run(|| serve("10.100.0.2", &[80]));
        let published = || connect(at("10.100.0.1", 8080), DROPPED).is_some();
        assert!(!peer.run(published), "a published port is as closed as any other");
        // By the address and port that the peer asks for.
        wait(nft.replace(&table(&["allow n_peer n_here tcp/8080"]))).unwrap();
        assert!(peer.run(|| connect(at("10.100.0.1", 8080), PASSES)).is_some(), "both accept");
        assert!(!peer.run(|| connect(at("10.100.0.1", 22), DROPPED).is_some()), "they accept, we deny");
        // The container's own connections leave by the address of this node.
        let outwards = || connect(at("10.100.0.2", 80), DROPPED).is_some();
        assert!(!container.run(outwards), "they accept, we deny");
        wait(nft.replace(&table(&["allow 172.17.0.0/16 n_peer tcp/80"]))).unwrap();
        assert!(container.run(|| connect(at("10.100.0.2", 80), PASSES)).is_some(), "both accept");
        assert!(!peer.run(published), "and not any more");
    });
}
