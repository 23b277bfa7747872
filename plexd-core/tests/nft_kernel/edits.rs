//! What others put into the table, or do to it while it is read: noticed, removed, and no reason to make it anew.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use plexd_core::kernel::nft::NfTables;
use plexd_core::kernel::{Applied, Firewall, ObservedTable};
use plexd_core::policy::{Table, compile_plainly, export};

use super::classes::{both_families, difference};
use super::raw::{DELSETELEM, INET, NEWSETELEM, Raw, Request, attribute, nest, text, while_others_change};
use super::support::{
    DROPPED, PASSES, attempt, context, counters, feed, in_namespace, policy, run, table, wait,
};

/// The handles of the table and of the chains that the kernel calls: who made them anew made others.
fn handles() -> Vec<String> {
    let listed = run("nft --handle list table inet plexd");
    let named = |line: &&str| {
        ["table", "chain input", "chain forward", "chain output"]
            .iter()
            .any(|name| line.trim_start().starts_with(name))
    };
    let made: Vec<_> = listed.lines().filter(named).map(str::to_owned).collect();
    assert_eq!(made.len(), 4, "{made:?}");
    made
}

/// Asserts that an edit was noticed, and puts the table right without making the chains anew that the kernel calls.
fn put_right(nft: &NfTables, table: &Table, what: &str) {
    let before = handles();
    let observed = wait(nft.observe(table)).unwrap();
    assert!(matches!(observed, ObservedTable::Differs { .. }), "{what}: {observed:?}");
    assert_eq!(wait(nft.replace(table)).unwrap(), Applied::Complete);
    counters(wait(nft.observe(table)).unwrap());
    assert_eq!(handles(), before, "{what}");
}

#[test]
fn root_what_was_added_goes_without_the_called_chains_being_made_anew() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = table(&["allow n_peer n_here tcp/80", "deny * * any"]);
        wait(nft.replace(&table)).unwrap();
        let edits = [
            // Sets and chains that belong to a rule.
            "add rule inet plexd input ip saddr { 192.0.2.1, 192.0.2.2 } accept",
            "insert rule inet plexd judge ip saddr vmap { 192.0.2.1 : accept, 192.0.2.2 : jump deny }",
            "add rule inet plexd judge tcp dport { 1-5, 9 } counter accept",
            "add rule inet plexd judge jump { ip saddr { 192.0.2.1, 192.0.2.2 } accept ; counter ; }",
            "add rule inet plexd forward goto { accept ; }",
            // Objects, with and without somebody who uses them.
            "add counter inet plexd extra",
            "add quota inet plexd denied { over 25 mbytes ; }",
            "add quota inet plexd extra { over 25 mbytes ; } ; insert rule inet plexd input quota name extra accept",
            "add limit inet plexd extra { rate 1/second ; }",
            "add set inet plexd extra { type ipv4_addr ; } ; insert rule inet plexd judge ip saddr @extra accept",
            "add map inet plexd extra { type ipv4_addr : verdict ; } ; add element inet plexd extra { 192.0.2.1 : goto deny }",
            // Chains that the kernel calls, and one that they lead to.
            "add chain inet plexd extra { type filter hook input priority -5 ; policy drop ; }",
            "add chain inet plexd extra { type filter hook prerouting priority 0 ; } ; add rule inet plexd extra accept",
            "add chain inet plexd extra ; add rule inet plexd extra accept ; insert rule inet plexd input jump extra",
        ];
        for edit in edits {
            feed("nft -f -", &edit.replace(" ; add", "\nadd").replace(" ; insert", "\ninsert"));
            put_right(&nft, &table, edit);
        }
    });
}

#[test]
#[ignore = "this needs a kernel with flowtables; tests/vm/test"]
fn vm_root_flowtables_are_noticed_and_removed() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let table = table(&["allow n_peer n_here tcp/80"]);
        wait(nft.replace(&table)).unwrap();
        run("nft add flowtable inet plexd fast { hook ingress priority 0 ; devices = { lo } ; }");
        assert_eq!(difference(&nft, &table), "flowtable fast was added");
        put_right(&nft, &table, "a flowtable");
        run("nft add flowtable inet plexd fast { hook ingress priority 0 ; devices = { lo } ; }");
        run("nft insert rule inet plexd forward flow add @fast");
        put_right(&nft, &table, "a flowtable that is used");
    });
}

/// What an element of a map is asked to do besides.
fn limit() -> Vec<u8> {
    // One packet per day, five at once.
    let data = [
        attribute(1, &1_u64.to_be_bytes()),
        attribute(2, &86_400_u64.to_be_bytes()),
        attribute(3, &5_u32.to_be_bytes()),
        attribute(4, &0_u32.to_be_bytes()),
        attribute(5, &0_u32.to_be_bytes()),
    ];
    [text(1, "limit"), nest(2, &data)].concat()
}

fn quota() -> Vec<u8> {
    let data = [attribute(1, &1_000_u64.to_be_bytes()), attribute(2, &0_u32.to_be_bytes())];
    [text(1, "quota"), nest(2, &data)].concat()
}

fn counter() -> Vec<u8> {
    let data = [attribute(1, &0_u64.to_be_bytes()), attribute(2, &0_u64.to_be_bytes())];
    [text(1, "counter"), nest(2, &data)].concat()
}

/// An element of a map: `None` is the one for all else.
fn element(key: Option<[u8; 4]>, more: &[Vec<u8>]) -> Vec<u8> {
    let place = key.map_or_else(|| attribute(3, &2_u32.to_be_bytes()), |key| nest(1, &[attribute(1, &key)]));
    nest(1, &[vec![place], more.to_vec()].concat())
}

/// A change of elements of a map.
fn change(kind: u16, map: &str, elements: &[Vec<u8>]) -> Request {
    (kind, INET, vec![text(1, "plexd"), text(2, map), nest(3, elements)])
}

#[test]
fn root_what_an_element_does_besides_is_noticed_and_put_right() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let nft = NfTables::new().unwrap();
            let mut monitor = nft.monitor().unwrap();
            let table = both_families();
            nft.replace(&table).await.unwrap();
            let raw = Raw::open();
            // Elements of the classes of IPv4 sources, replaced by ones that say the same.
            let class = |class: [u8; 4]| nest(2, &[attribute(1, &[[0; 4], class].concat())]);
            let again = |key: Option<[u8; 4]>, named: [u8; 4], more: Vec<u8>| {
                let there = element(key, &[]);
                let anew = element(key, &[class(named), more]);
                raw.commit(&[change(DELSETELEM, "source4", &[there]), change(NEWSETELEM, "source4", &[anew])])
            };
            let lone = Some([10, 201, 128, 0]);
            let edits = [
                ("a limit for all else", None, [0; 4], nest(7, &[limit()])),
                ("a quota for all else", None, [0; 4], nest(7, &[quota()])),
                ("a counter where none is written", None, [0; 4], nest(7, &[counter()])),
                ("a limit for a class", lone, [10, 201, 128, 0], nest(7, &[limit()])),
                ("a quota for a class", lone, [10, 201, 128, 0], nest(7, &[quota()])),
            ];
            for (what, key, named, more) in edits {
                again(key, named, more).unwrap();
                tokio::time::timeout(PASSES, monitor.changed()).await.expect(what).unwrap();
                let observed = nft.observe(&table).await.unwrap();
                let ObservedTable::Differs { what: told } = observed else { panic!("{what}: {observed:?}") };
                assert!(
                    told.contains("map source4") && told.contains("does something else"),
                    "{what}: {told}"
                );
                nft.replace(&table).await.unwrap();
                counters(nft.observe(&table).await.unwrap());
                assert!(tokio::time::timeout(DROPPED, monitor.changed()).await.is_err(), "told of itself");
            }
            // As it was, it is no difference.
            again(lone, [10, 201, 128, 0], Vec::new()).unwrap();
            counters(nft.observe(&table).await.unwrap());
        });
    });
}

#[test]
fn root_what_all_elements_of_a_map_do_besides_is_noticed_and_put_right() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let rules = ["deny 10.100.0.0/24 n_here any", "allow * 10.0.0.0/8 udp/0", "deny * * any"];
        let policies = policy(&rules);
        let table = compile_plainly(&policies, &context()).unwrap().unwrap();
        wait(nft.replace(&table)).unwrap();
        let said: String = export::text(&table, &policies).collect();
        feed("nft -f -", &said);
        counters(wait(nft.observe(&table)).unwrap());
        // The same table by `nft`, but for what its elements do besides.
        for statements in ["", "counter limit rate 1/day", "limit rate 1/day", "quota over 1 mbytes"] {
            feed("nft -f -", &said.replace("\t\tcounter\n", &format!("\t\t{statements}\n")));
            let told = difference(&nft, &table);
            assert!(told.ends_with("is of another type"), "{statements:?}: {told}");
            put_right(&nft, &table, statements);
        }
        // And one of its elements.
        let map = &table.maps.last().unwrap().name;
        run(&format!("nft add element inet plexd {map} {{ * counter : accept }}"));
        put_right(&nft, &table, "an element");
    });
}

/// A table that takes many answers to list.
fn large() -> Table {
    let rules: Vec<_> = (0..1_000_u32)
        .map(|n| {
            let [_, b, c, d] = n.to_be_bytes();
            format!("allow 10.{}.{c}.{d} n_here tcp/80", 101 + b)
        })
        .collect();
    table(&rules.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn root_changes_of_other_tables_keep_nobody_from_reading_and_replacing_ours() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let tables = [large(), table(&["allow n_peer n_here tcp/80"])];
        // Whose chains are listed before ours.
        run("nft add table inet other");
        wait(nft.replace(&tables[0])).unwrap();
        let made = handles();
        while_others_change(|changes| {
            for number in 0..8 {
                let table = &tables[number % 2];
                let before = changes();
                // As often as it takes for changes to come in between, on a busy machine too.
                while changes() <= before + 10 {
                    wait(nft.replace(table)).unwrap();
                    // What is there is told, be it the same or not.
                    counters(wait(nft.observe(table)).unwrap());
                    let observed = wait(nft.observe(&tables[(number + 1) % 2])).unwrap();
                    assert!(matches!(observed, ObservedTable::Differs { .. }), "{observed:?}");
                }
            }
            // Also what somebody did to ours meanwhile.
            run("nft insert rule inet plexd judge ip saddr { 192.0.2.1, 192.0.2.2 } accept");
            assert!(difference(&nft, &tables[1]).starts_with("map __set"), "a set was added");
            wait(nft.replace(&tables[1])).unwrap();
            counters(wait(nft.observe(&tables[1])).unwrap());
        });
        assert_eq!(handles(), made, "the chains that the kernel calls were made anew");
        assert!(attempt("nft list table inet other").0);
    });
}

#[test]
fn root_a_table_that_is_changed_while_it_is_read_is_read_before_or_after() {
    in_namespace(|| {
        let nft = NfTables::new().unwrap();
        let tables = [large(), table(&["allow n_peer n_here tcp/80"])];
        wait(nft.replace(&tables[0])).unwrap();
        let made = handles();
        while_others_change(|_| {
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let reader = NfTables::new().unwrap();
                    while !is_over.load(Ordering::Relaxed) {
                        match wait(reader.observe(&tables[0])) {
                            Ok(ObservedTable::Same { .. }) => {}
                            Ok(ObservedTable::Differs { what }) => {
                                assert_eq!(what, "map v6_s128_d128_port_1 was added");
                            }
                            Ok(ObservedTable::Absent) => panic!("there was a moment without policy"),
                            Err(error) => assert!(error.to_string().contains("all the time"), "{error}"),
                        }
                    }
                });
                let until = Instant::now() + Duration::from_secs(1);
                for number in 1.. {
                    wait(nft.replace(&tables[number % 2])).unwrap();
                    if (Instant::now() > until && number > 4) || reader.is_finished() {
                        break;
                    }
                }
                is_over.store(true, Ordering::Relaxed);
                reader.join().unwrap();
            });
        });
        assert_eq!(handles(), made, "the chains that the kernel calls were made anew");
    });
}
