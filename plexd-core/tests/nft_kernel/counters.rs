//! Counters over a replacement: what was counted for a rule stays that rule's, and is nobody else's.

use plexd_core::kernel::Firewall;
use plexd_core::kernel::nft::NfTables;
use plexd_core::policy::table::Part;
use plexd_core::policy::{Policy, PolicySet, Table, compile};

use super::classes::{classes, flow, judged, made_of, map, with_networks};
use super::support::{PASSES, Peer, at, connect, context, counters, in_namespace, policy, serve, wait};

/// Policies of these ids and rules.
fn policies(of: &[(&str, &[&str])]) -> Table {
    let policy = |(id, rules): &(&str, &[&str])| {
        let rules = policy(rules).policies.remove(0).rules;
        Policy { id: (*id).to_owned(), rules }
    };
    compile(&PolicySet { policies: of.iter().map(policy).collect() }, &context()).unwrap().unwrap()
}

/// Packets that each rule counted, of those that counted any.
fn counted(nft: &NfTables, table: &Table) -> Vec<(usize, u64)> {
    let counters = counters(wait(nft.observe(table)).unwrap());
    let packets = counters.rules.into_iter().map(|(rule, count)| (rule, count.packets));
    packets.filter(|(_, packets)| *packets > 0).collect()
}

/// The rules that counted any.
fn counting(nft: &NfTables, table: &Table) -> Vec<usize> {
    counted(nft, table).into_iter().map(|(rule, _)| rule).collect()
}

#[test]
fn root_what_was_counted_stays_with_the_rule_of_the_same_policy_and_text() {
    in_namespace(|| {
        let peer = Peer::joined();
        serve("10.100.0.1", &[80]);
        let nft = NfTables::new().unwrap();
        let rule = "allow n_peer n_here tcp/80";
        let first = policies(&[("p", &["allow n_here n_peer udp/1", rule])]);
        wait(nft.replace(&first)).unwrap();
        peer.run(|| assert!(connect(at("10.100.0.1", 80), PASSES).is_some()));
        let packets = |table: &Table, position: usize| {
            wait(nft.replace(table)).unwrap();
            let counted = counted(&nft, table);
            assert!(counted.len() <= 1, "{counted:?}");
            // Packets of the connection may still come.
            counted.first().filter(|(rule, _)| *rule == position).map_or(0, |(_, packets)| *packets)
        };
        let had = packets(&first, 1);
        assert!(had > 0);
        // In another place, beside others, in other maps, and written twice.
        for (table, position) in [
            (policies(&[("o", &["deny * n_peer any"]), ("p", &[rule])]), 1),
            (policies(&[("p", &[rule, "allow n_peer n_here any", "deny 10.0.0.0/8 * tcp/80"])]), 0),
            (policies(&[("p", &["deny 10.100.0.7 n_here tcp/80", rule, rule])]), 1),
        ] {
            assert!(packets(&table, position) >= had);
        }
        // The same entry, but of another policy, or for a rule that says it otherwise.
        let of_another = policies(&[("q", &[rule])]);
        assert_eq!(packets(&of_another, 0), 0);
        let otherwise = policies(&[("q", &["allow 10.100.0.2 n_here tcp/80"])]);
        assert_eq!(packets(&otherwise, 0), 0);
    });
}

/// Sources in one class, which is named by its first address, and one entry for it, of the rule at this position.
fn of_a_class(starts: &[&str], rule: usize) -> Table {
    let sources = classes("source4", starts, "0.0.0.0");
    let parts = (Part::Class(0), Part::Bits(0));
    let by_class = map("by_class", parts, &["10.201.0.0 0.0.0.0/0 any"], rule);
    let exact = map("exact", (Part::Bits(32), Part::Bits(0)), &["10.201.9.9 0.0.0.0/0 any"], 50);
    made_of(vec![sources], vec![by_class, exact], &[&[0], &[1]])
}

#[test]
fn root_a_class_that_has_other_addresses_brings_no_count_along() {
    in_namespace(|| {
        let peer = Peer::joined();
        with_networks(&peer);
        let wide = of_a_class(&["10.201.0.0 10.201.0.0", "10.201.8.0 0.0.0.0"], 0);
        let narrow = of_a_class(&["10.201.0.0 10.201.0.0", "10.201.0.1 0.0.0.0"], 1);
        let nft = NfTables::new().unwrap();
        wait(nft.replace(&wide)).unwrap();
        assert_eq!(judged(&nft, &wide, &peer, &flow("10.201.7.7", "10.200.0.1", 9)), Some(0));
        assert_eq!(judged(&nft, &wide, &peer, &flow("10.201.9.9", "10.200.0.1", 9)), Some(50));
        // The entry has the same key and verdict, but nothing came from its one address.
        wait(nft.replace(&narrow)).unwrap();
        assert_eq!(counting(&nft, &narrow), [50]);
        // Who does not know what the entries were for goes by keys, as far as they mean the same.
        wait(nft.replace(&wide)).unwrap();
        assert_eq!(judged(&nft, &wide, &peer, &flow("10.201.7.7", "10.200.0.1", 9)), Some(0));
        let restarted = NfTables::new().unwrap();
        wait(restarted.replace(&of_a_class(&["10.201.0.0 10.201.0.0", "10.201.8.0 0.0.0.0"], 2))).unwrap();
        assert_eq!(counting(&nft, &of_a_class(&["10.201.0.0 10.201.0.0", "10.201.8.0 0.0.0.0"], 2)), [2, 50]);
        let restarted = NfTables::new().unwrap();
        wait(restarted.replace(&narrow)).unwrap();
        assert_eq!(counting(&restarted, &narrow), [50]);
    });
}
