//! A compiled table in the kernel: put in place, read back, edited by others, judged by real packets.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use plexd_core::kernel::nft::NfTables;
use plexd_core::kernel::{Applied, Firewall, ObservedTable};
use plexd_core::policy::Table;
use plexd_core::policy::table::{Expr, Verdict};

use super::support::{
    DROPPED, PASSES, Peer, at, attempt, connect, counters, echo, in_namespace, run, serve, set_sysctl, table,
    udp_answers, wait,
};

/// A policy that uses every kind of match, and `count` rules for addresses.
fn large(count: u32) -> Table {
    let address = |n: u32| IpAddr::from((0x0a64_0000 + n).to_be_bytes());
    let mut rules: Vec<String> = (0..count)
        .map(|n| {
            format!("{} {} n_here tcp/{}", if n % 2 == 0 { "allow" } else { "deny" }, address(n), 1 + n % 9)
        })
        .collect();
    rules.extend(
        [
            "deny 10.0.0.0/8 * udp/53",
            "allow fd00:100::/64 fd00::/16 tcp/0",
            "allow n_peer n_here any",
            "deny * * any",
        ]
        .map(str::to_owned),
    );
    table(&rules.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn root_replaced_table_is_listed_by_nft_and_observed_as_the_same() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = large(100);
        assert_eq!(wait(nft.observe(&table)).unwrap(), ObservedTable::Absent);
        assert_eq!(wait(nft.replace(&table)).unwrap(), Applied::Complete);
        let listed = run("nft -j list table inet plexd");
        for word in ["\"input\"", "\"forward\"", "\"output\"", "plexd-denied ", "plexd0", "\"denied\""] {
            assert!(listed.contains(word), "{word} in {listed}");
        }
        assert_eq!(counters(wait(nft.observe(&table)).unwrap()).named.len(), 2);
        assert_eq!(counters(wait(NfTables::new().unwrap().observe(&table)).unwrap()).named.len(), 2);
        // And the other way: a table that differs by one rule is not the same.
        assert!(matches!(wait(nft.observe(&large(99))).unwrap(), ObservedTable::Differs { .. }));
    });
}

#[test]
fn root_refused_table_leaves_the_old_one_and_names_what_was_refused() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let old = large(10);
        wait(nft.replace(&old)).unwrap();
        let mut wrong = large(20);
        wrong.chains[0].rules.push(vec![Expr::Verdict(Verdict::Goto("nowhere".to_owned()))]);
        let error = wait(nft.replace(&wrong)).unwrap_err().to_string();
        assert!(error.starts_with("cannot replace rule 3 of chain deny of table inet plexd: "), "{error}");
        counters(wait(nft.observe(&old)).unwrap());
    });
}

#[test]
fn root_replacement_keeps_the_chains_that_the_kernel_calls_unless_they_were_changed() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let tables = [large(10), table(&["allow n_peer n_here udp/1"])];
        // What a packet meets first must not be made anew: it would be called beside the old one.
        let chains = || {
            let listed = run("nft --handle list table inet plexd");
            let named = |line: &&str| {
                ["table", "chain input", "chain forward", "chain output"]
                    .iter()
                    .any(|name| line.contains(name))
            };
            listed.lines().filter(named).map(str::to_owned).collect::<Vec<_>>()
        };
        wait(nft.replace(&tables[0])).unwrap();
        let made = chains();
        assert_eq!(made.len(), 4, "{made:?}");
        for table in [&tables[1], &tables[0], &tables[1]] {
            wait(nft.replace(table)).unwrap();
            counters(wait(nft.observe(table)).unwrap());
            assert_eq!(chains(), made);
        }
        // Chains, maps and rules that somebody added are nothing to keep.
        run("nft add chain inet plexd more");
        run("nft add rule inet plexd input jump more");
        wait(nft.replace(&tables[0])).unwrap();
        counters(wait(nft.observe(&tables[0])).unwrap());
        assert_eq!(chains(), made);
        run("nft add chain inet plexd input { policy drop ; }");
        wait(nft.replace(&tables[0])).unwrap();
        counters(wait(nft.observe(&tables[0])).unwrap());
        assert_ne!(chains(), made);
    });
}

#[test]
fn root_flush_is_observed_as_absence() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = large(10);
        wait(nft.replace(&table)).unwrap();
        run("nft flush ruleset");
        assert_eq!(wait(nft.observe(&table)).unwrap(), ObservedTable::Absent);
        wait(nft.replace(&table)).unwrap();
        counters(wait(nft.observe(&table)).unwrap());
    });
}

#[test]
fn root_every_edit_is_observed_as_a_difference() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = large(10);
        let map = &table.maps[0].name;
        wait(nft.replace(&table)).unwrap();
        let edits = [
            "nft add rule inet plexd judge accept",
            "nft insert rule inet plexd input accept",
            "nft insert rule inet plexd deny accept",
            "nft add chain inet plexd more",
            "nft add counter inet plexd more",
            "nft add quota inet plexd more 25 mbytes",
            "nft add set inet plexd more { type ipv4_addr ; }",
            "nft flush chain inet plexd output",
            "nft flush chain inet plexd rules4",
            "nft flush table inet plexd",
            "nft add chain inet plexd input { policy drop ; }",
            "nft add table inet plexd { flags dormant ; }",
            &format!("nft flush map inet plexd {map}"),
        ];
        for edit in edits {
            run(edit);
            let observed = wait(nft.observe(&table)).unwrap();
            assert!(matches!(observed, ObservedTable::Differs { .. }), "{edit}: {observed:?}");
            wait(nft.replace(&table)).unwrap();
            counters(wait(nft.observe(&table)).unwrap());
        }
    });
}

#[test]
fn root_other_tables_are_left_alone() {
    in_namespace(|| {
        run("nft add table inet filter");
        run("nft add chain inet filter input { type filter hook input priority 0 ; policy accept ; }");
        run("nft add rule inet filter input tcp dport 22 counter accept");
        run("nft add table ip plexd");
        let others = || (run("nft list table inet filter"), run("nft list table ip plexd"));
        let before = others();
        let nft = NfTables::new().unwrap();
        let table = large(10);
        wait(nft.replace(&table)).unwrap();
        counters(wait(nft.observe(&table)).unwrap());
        wait(nft.remove()).unwrap();
        assert_eq!(others(), before);
    });
}

#[test]
fn root_removing_is_idempotent() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = large(10);
        wait(nft.remove()).unwrap();
        wait(nft.replace(&table)).unwrap();
        wait(nft.remove()).unwrap();
        wait(nft.remove()).unwrap();
        assert_eq!(wait(nft.observe(&table)).unwrap(), ObservedTable::Absent);
    });
}

#[test]
fn root_swap_of_large_tables_is_atomic() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let tables = [large(1_000), large(1_001)];
        wait(nft.replace(&tables[0])).unwrap();
        let until = Instant::now() + Duration::from_secs(1);
        // On a slow machine a second is not enough.
        let swaps = AtomicUsize::new(0);
        let goes_on = || Instant::now() < until || swaps.load(Ordering::Relaxed) < 4;
        thread::scope(|scope| {
            // A second reader never sees anything but one table or the other.
            let reader = scope.spawn(|| {
                let reader = NfTables::new().unwrap();
                let mut seen = [0; 2];
                while goes_on() {
                    let Ok(first) = wait(reader.observe(&tables[0])) else { continue };
                    match first {
                        ObservedTable::Same { .. } => seen[0] += 1,
                        ObservedTable::Absent => panic!("there was a moment without policy"),
                        ObservedTable::Differs { what } => {
                            seen[1] += 1;
                            assert!(what.contains("map v4_s32_d32_port_1"), "{what}");
                        }
                    }
                }
                seen
            });
            while goes_on() {
                let next = 1 + swaps.fetch_add(1, Ordering::Relaxed);
                wait(nft.replace(&tables[next % 2])).unwrap();
            }
            let seen = reader.join().unwrap();
            assert!(seen[0] + seen[1] > 0, "{swaps:?} swaps, {seen:?} seen");
        });
    });
}

#[test]
fn root_ten_thousand_rules_are_applied_in_one_transaction() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = large(10_000);
        wait(nft.replace(&table)).unwrap();
        counters(wait(nft.observe(&table)).unwrap());
    });
}

#[test]
fn root_monitor_tells_of_others_but_not_of_ourselves() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let nft = NfTables::new().unwrap();
            let mut monitor = nft.monitor().unwrap();
            let table = large(1_000);
            nft.replace(&table).await.unwrap();
            run("nft add table inet other");
            run("nft add table ip plexd");
            let quiet = tokio::time::timeout(DROPPED, monitor.changed()).await;
            assert!(quiet.is_err(), "our own change, or one of other tables, was told");
            for edit in ["nft add rule inet plexd judge accept", "nft flush ruleset"] {
                nft.replace(&table).await.unwrap();
                run(edit);
                tokio::time::timeout(PASSES, monitor.changed()).await.expect(edit).unwrap();
                let quiet = tokio::time::timeout(DROPPED, monitor.changed()).await;
                assert!(quiet.is_err(), "{edit} was told twice");
            }
        });
    });
}

#[test]
fn root_only_allowed_packets_pass_in_both_directions() {
    in_namespace(|| {
        let peer = Peer::joined();
        serve("0.0.0.0", &[80, 81]);
        serve("::", &[90, 91]);
        peer.run(|| serve("10.100.0.2", &[80]));
        let nft = NfTables::new().unwrap();
        let rules = table(&[
            "deny 10.100.0.2 n_here tcp/81",
            "allow n_peer n_here tcp/0",
            "allow 10.100.0.0/24 * udp/80",
            "deny * fd00:100::1 udp/90",
            "allow fd00:100::/64 fd00:100::1 udp/0",
        ]);
        assert_eq!(wait(nft.replace(&rules)).unwrap(), Applied::Complete);
        peer.run(|| {
            assert!(
                connect(at("10.100.0.1", 80), PASSES).is_some(),
                "an allowed port, answered by no rule of its own"
            );
            assert!(connect(at("10.100.0.1", 81), DROPPED).is_none(), "a deny before the allow");
            assert!(connect(at("fd00:100::1", 90), PASSES).is_some(), "an allowed port by IPv6");
            assert!(udp_answers(at("10.100.0.1", 80), PASSES), "allowed by a network");
            assert!(!udp_answers(at("10.100.0.1", 81), DROPPED), "no rule");
            assert!(udp_answers(at("fd00:100::1", 91), PASSES), "allowed by an IPv6 network");
            assert!(!udp_answers(at("fd00:100::1", 90), DROPPED), "a deny inside an allow");
            assert!(!attempt("ping -c 1 -W 1 10.100.0.1").0, "a protocol that no rule names");
        });
        assert!(connect(at("10.100.0.2", 80), DROPPED).is_none(), "the other direction has no rule");
        assert!(
            connect(at("127.0.0.1", 81), PASSES).is_some(),
            "packets off the mesh interface are not judged"
        );
        let counters = counters(wait(nft.observe(&rules)).unwrap());
        assert!(counters.named["denied"].packets >= 4, "{counters:?}");
        assert!(counters.rules[&0].packets > 0 && counters.rules[&1].packets > 0, "{counters:?}");
        assert!(counters.rules[&1].bytes > counters.rules[&1].packets, "{counters:?}");
    });
}

#[test]
fn root_counters_survive_a_replacement() {
    in_namespace(|| {
        let peer = Peer::joined();
        serve("10.100.0.1", &[80]);
        let nft = NfTables::new().unwrap();
        let before = table(&["allow n_peer n_here tcp/80", "allow n_here n_here any"]);
        wait(nft.replace(&before)).unwrap();
        peer.run(|| {
            assert!(connect(at("10.100.0.1", 80), PASSES).is_some());
            assert!(!udp_answers(at("10.100.0.1", 80), DROPPED));
        });
        let old = counters(wait(nft.observe(&before)).unwrap());
        let after = table(&["allow n_peer n_here udp/1", "allow n_peer n_here tcp/80"]);
        wait(nft.replace(&after)).unwrap();
        let new = counters(wait(nft.observe(&after)).unwrap());
        assert!(old.rules[&0].packets > 0 && old.named["denied"].packets > 0, "{old:?}");
        assert!(new.rules[&1].packets >= old.rules[&0].packets, "{new:?}");
        assert!(new.named["denied"].packets >= old.named["denied"].packets, "{new:?}");
        assert_eq!(new.rules[&0].packets, 0);
    });
}

#[test]
fn root_established_connection_ends_when_it_is_no_longer_allowed() {
    in_namespace(|| {
        let peer = Peer::joined();
        serve("10.100.0.1", &[80, 81]);
        let nft = NfTables::new().unwrap();
        wait(nft.replace(&table(&["allow n_peer n_here tcp/80", "allow n_peer n_here tcp/81"]))).unwrap();
        let (mut revoked, mut kept) = peer.run(|| {
            let open = |port| connect(at("10.100.0.1", port), PASSES).unwrap();
            (open(80), open(81))
        });
        assert!(echo(&mut revoked, PASSES) && echo(&mut kept, PASSES));
        wait(nft.replace(&table(&["allow n_peer n_here tcp/81"]))).unwrap();
        assert!(!echo(&mut revoked, DROPPED), "a connection that the policy no longer allows");
        assert!(echo(&mut kept, PASSES), "a connection that it still allows");
    });
}

#[test]
fn root_connection_opened_while_there_was_no_table_ends_whoever_speaks_first() {
    in_namespace(|| {
        let peer = Peer::joined();
        let listener = TcpListener::bind("10.100.0.1:22").unwrap();
        let nft = NfTables::new().unwrap();
        // Only this node may open connections, which must not let its half of the peer's go on.
        let rules = table(&["allow n_here n_peer any"]);
        let mut far = peer.run(|| TcpStream::connect_timeout(&at("10.100.0.1", 22), PASSES).unwrap());
        let (mut near, _) = listener.accept().unwrap();
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0]).unwrap();
        wait(nft.replace(&rules)).unwrap();
        near.write_all(b"y").unwrap();
        far.set_read_timeout(Some(DROPPED)).unwrap();
        assert!(far.read_exact(&mut [0]).is_err(), "taken up from its middle, the other way round");
        far.write_all(b"z").unwrap();
        near.set_read_timeout(Some(DROPPED)).unwrap();
        assert!(near.read_exact(&mut [0]).is_err(), "and on from there");
        let counters = counters(wait(nft.observe(&rules)).unwrap());
        assert!(counters.named["invalid"].packets > 0, "{counters:?}");
    });
}

#[test]
fn root_connection_that_was_judged_goes_on_over_a_restart_and_while_the_table_is_away() {
    in_namespace(|| {
        let peer = Peer::joined();
        serve("10.100.0.1", &[80]);
        serve("fd00:100::1", &[80]);
        let rules = table(&["allow n_peer n_here tcp/80"]);
        let nft = NfTables::new().unwrap();
        wait(nft.replace(&rules)).unwrap();
        for host in ["10.100.0.1", "fd00:100::1"] {
            let mut stream = peer.run(move || connect(at(host, 80), PASSES)).unwrap();
            // Another process puts its table in place of this one's.
            wait(NfTables::new().unwrap().replace(&rules)).unwrap();
            assert!(echo(&mut stream, PASSES), "{host}: a restart");
            run("nft flush ruleset");
            assert!(echo(&mut stream, PASSES), "{host}: without a table");
            wait(nft.replace(&rules)).unwrap();
            assert!(echo(&mut stream, PASSES), "{host}: with a table again");
        }
        let counters = counters(wait(nft.observe(&rules)).unwrap());
        // None was a segment of the connections: they are smaller than the kernel's multicast listener reports, which belong
        // to no connection and may come at any time.
        let invalid = &counters.named["invalid"];
        assert!(invalid.bytes >= 76 * invalid.packets, "{counters:?}");
    });
}

#[test]
fn root_icmp_errors_follow_their_connection() {
    in_namespace(|| {
        let peer = Peer::joined();
        let nft = NfTables::new().unwrap();
        // Nothing listens: the answer is an ICMP error, which only the original tuple of its connection lets pass.
        let answer = |patience| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(at("10.100.0.1", 99)).unwrap();
            socket.set_read_timeout(Some(patience)).unwrap();
            socket.send(b"x").unwrap();
            socket.recv(&mut [0]).unwrap_err().kind()
        };
        wait(nft.replace(&table(&["allow n_peer n_here udp/99"]))).unwrap();
        assert_eq!(peer.run(move || answer(PASSES)), ErrorKind::ConnectionRefused);
        wait(nft.replace(&table(&["allow n_peer n_here udp/98"]))).unwrap();
        assert_eq!(peer.run(move || answer(DROPPED)), ErrorKind::WouldBlock);
        wait(nft.replace(&table(&["allow n_peer n_here any"]))).unwrap();
        peer.run(|| run("ping -c 1 -W 5 10.100.0.1"));
    });
}

#[test]
fn root_forwarded_packets_are_judged_in_both_directions() {
    in_namespace(|| {
        let (peer, behind) = (Peer::joined(), Peer::joined_by("lan0", 101));
        set_sysctl("net/ipv4/ip_forward", "1");
        behind.run(|| {
            run("ip route add 10.100.0.0/24 via 10.101.0.1");
            serve("10.101.0.2", &[80, 81]);
        });
        peer.run(|| {
            run("ip route add 10.101.0.0/24 via 10.100.0.1");
            serve("10.100.0.2", &[80]);
        });
        let nft = NfTables::new().unwrap();
        wait(nft.replace(&table(&["allow n_peer 10.101.0.0/24 tcp/80"]))).unwrap();
        peer.run(|| {
            assert!(connect(at("10.101.0.2", 80), PASSES).is_some(), "an allowed port");
            assert!(connect(at("10.101.0.2", 81), DROPPED).is_none(), "another");
        });
        let back = behind.run(|| connect(at("10.100.0.2", 80), DROPPED).is_some());
        assert!(!back, "the other direction has no rule");
    });
}

#[test]
fn root_one_capability_is_enough_and_none_is_an_error() {
    in_namespace(|| {
        let early = NfTables::new().unwrap();
        let table = large(1_000);
        keep_capabilities(&[Capability::CAP_NET_ADMIN]);
        let late = NfTables::new().unwrap();
        for nft in [&early, &late] {
            wait(nft.replace(&table)).unwrap();
            counters(wait(nft.observe(&table)).unwrap());
            wait(nft.remove()).unwrap();
        }
        keep_capabilities(&[]);
        assert_eq!(wait(early.replace(&table)).unwrap_err().source.kind(), ErrorKind::PermissionDenied);
        assert_eq!(NfTables::new().err().unwrap().source.kind(), ErrorKind::PermissionDenied);
    });
}

/// Gives up all capabilities of the calling thread, and of threads it starts, but these.
fn keep_capabilities(kept: &[Capability]) {
    let kept = kept.iter().copied().collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).unwrap();
    }
}
