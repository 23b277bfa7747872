//! The table as text, as `plexd-ctl policies export` prints it: nft loads it, and it decides as the table does.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};

use plexd_core::kernel::Firewall;
use plexd_core::kernel::nft::NfTables;
use plexd_core::policy::{PolicySet, Table, compile_plainly, export};

use super::support::{
    DROPPED, PASSES, Peer, at, attempt, connect, context, counters, in_namespace, policy, run, serve,
    udp_answers, wait,
};

/// As [`super::support::table`], in what nft's language can say.
fn plain(rules: &[&str]) -> Table {
    compile_plainly(&policy(rules), &context()).unwrap().unwrap()
}

/// Loads a table's text by `nft`, as `policies export` prints it, in place of what is there.
fn load(table: &Table, policies: &PolicySet) {
    let text: String = export::text(table, policies).collect();
    let file = std::env::temp_dir().join(format!(
        "plexd-export-{}-{}.nft",
        std::process::id(),
        nix::unistd::gettid()
    ));
    std::fs::write(&file, &text).unwrap();
    let loaded = ["nft -c -f", "nft -f"].map(|how| attempt(&format!("{how} {}", file.display())));
    std::fs::remove_file(&file).unwrap();
    for (is_loaded, output) in loaded {
        assert!(is_loaded, "{output}\n{}", text.lines().take(60).collect::<Vec<_>>().join("\n"));
    }
}

#[test]
fn root_exported_text_without_ports_is_loaded_by_nft_as_the_same_table() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let rules = [
            "deny 10.100.0.0/24 n_here tcp/0",
            "allow 10.0.0.0/8 * udp/0",
            "allow * 192.168.0.0/17 any",
            "allow fd00:100::/64 fd00::/15 tcp/0",
            "deny fd00:100::2 * any",
            "allow n_peer n_here any",
            "deny n_here * udp/0",
            "deny * * udp/0",
            "allow * * any",
        ];
        let (policies, table) = (policy(&rules), plain(&rules));
        // As plexd puts it in place, and then as nft does.
        wait(nft.replace(&table)).unwrap();
        let ours = run("nft list table inet plexd");
        load(&table, &policies);
        counters(wait(nft.observe(&table)).unwrap());
        assert_eq!(run("nft list table inet plexd"), ours);
        // Once more, in place of itself.
        load(&table, &policies);
        counters(wait(nft.observe(&table)).unwrap());
    });
}

#[test]
fn root_exported_text_with_ports_differs_only_by_how_often_its_maps_are_asked() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let rules = [
            "deny 10.100.0.2 n_here tcp/81",
            "allow n_peer n_here tcp/0",
            "allow 10.100.0.0/24 * udp/80",
            "allow 10.100.0.0/24 * tcp/443",
            "allow fd00:100::/64 fd00:100::1 udp/53",
            "deny * * tcp/22",
        ];
        let (policies, table) = (policy(&rules), plain(&rules));
        wait(nft.replace(&table)).unwrap();
        let ours = run("nft list table inet plexd");
        load(&table, &policies);
        let loaded = run("nft list table inet plexd");
        // All maps with all their entries, and all else but the protocol that a map of ports is asked for.
        let without_protocols = |text: &str| {
            let lines =
                text.lines().map(|line| line.replace("ct protocol tcp ", "").replace("ct protocol udp ", ""));
            let mut lines: Vec<String> =
                lines.map(|line| line.replace("meta nfproto ipv6 ct", "ct")).collect();
            lines.dedup();
            lines
        };
        assert_eq!(without_protocols(&loaded), without_protocols(&ours));
        assert_ne!(loaded, ours);
    });
}

#[test]
fn root_exported_text_judges_packets_as_the_table_does() {
    in_namespace(|| {
        let peer = Peer::joined();
        serve("0.0.0.0", &[80, 81]);
        serve("::", &[90, 91]);
        let rules = [
            "deny 10.100.0.2 n_here tcp/81",
            "allow n_peer n_here tcp/0",
            "allow 10.100.0.0/24 * udp/80",
            "deny * fd00:100::1 udp/90",
            "allow fd00:100::/64 fd00:100::1 udp/0",
            "allow n_peer n_here udp/99",
        ];
        load(&plain(&rules), &policy(&rules));
        peer.run(|| {
            assert!(connect(at("10.100.0.1", 80), PASSES).is_some(), "an allowed port");
            assert!(connect(at("10.100.0.1", 81), DROPPED).is_none(), "a deny before the allow");
            assert!(connect(at("fd00:100::1", 90), PASSES).is_some(), "an allowed port by IPv6");
            assert!(udp_answers(at("10.100.0.1", 80), PASSES), "allowed by a network");
            assert!(!udp_answers(at("10.100.0.1", 81), DROPPED), "no rule");
            assert!(udp_answers(at("fd00:100::1", 91), PASSES), "allowed by an IPv6 network");
            assert!(!udp_answers(at("fd00:100::1", 90), DROPPED), "a deny inside an allow");
            assert!(!attempt("ping -c 1 -W 1 10.100.0.1").0, "a protocol that no rule names");
            // Nothing listens: the ICMP error follows its connection, whose port is asked for.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(at("10.100.0.1", 99)).unwrap();
            socket.set_read_timeout(Some(PASSES)).unwrap();
            socket.send(b"x").unwrap();
            assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn root_large_exported_text_is_loaded() {
    in_namespace(|| {
        let wide = |count: u32| {
            let address = |n: u32| IpAddr::from((0x0a64_0000 + n).to_be_bytes());
            (0..count).map(|n| format!("allow {} n_here tcp/{}", address(n), 1 + n % 9)).collect::<Vec<_>>()
        };
        let rules = wide(20_000);
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let table = plain(&rules);
        load(&table, &policy(&rules));
        let listed = run("nft list map inet plexd v4_s32_d32_port_1");
        assert_eq!(listed.matches(" : accept").count(), 20_000);
    });
}
