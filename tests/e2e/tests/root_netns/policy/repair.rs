//! Whatever somebody changes in our table is put right within a second and told once; what plexd changes itself is no drift.

use std::time::Duration;

use plexd_e2e::{table_id, wait_until};
use serde_json::{Value, json};

use super::{allow_tcp, corrections, show, wait_corrections, wait_repaired, wait_replaced};
use crate::support::{Member, SOON, Single, set_rules};

/// A policy with several entries of one kind that decide differently.
fn rules() -> Value {
    let rule = |address: &str, action: &str| json!({ "src": address, "dst": "*", "port": 443, "protocol": "tcp", "action": action });
    json!([
        rule("10.77.0.1", "allow"),
        rule("10.77.0.2", "deny"),
        rule("10.77.0.3", "allow"),
        allow_tcp(8080)
    ])
}

/// An entry of a map of our table, as `nft` writes it.
struct Entry {
    map: String,
    key: String,
    value: String,
}

/// The table as `nft` lists it, to be edited.
struct Listing {
    objects: Vec<Value>,
    entries: Vec<Entry>,
}

impl Listing {
    #[track_caller]
    fn of(member: &Member) -> Self {
        let host = member.node.host();
        let listed = host.run(&["nft", "-j", "list", "table", "inet", "plexd"]).succeeded().json();
        let objects = listed["nftables"].as_array().cloned().unwrap_or_default();
        let maps = objects.iter().filter_map(|object| object["map"]["name"].as_str().map(str::to_owned));
        let entries = maps.flat_map(|map| {
            let line = ["nft", "--stateless", "list", "map", "inet", "plexd", &map];
            let text = host.run(&line).succeeded().stdout;
            let elements = text.split("elements = {").nth(1).and_then(|rest| rest.split('}').next());
            let entry = |element: &str| {
                let (key, value) = element.trim().split_once(" : ")?;
                let key = key.trim_end_matches(" counter").to_owned();
                Some(Entry { map: map.clone(), key, value: value.to_owned() })
            };
            elements.unwrap_or_default().split(',').filter_map(entry).collect::<Vec<_>>()
        });
        let entries = entries.collect();
        Self { objects, entries }
    }

    /// Returns the entry for an address.
    #[track_caller]
    fn entry(&self, address: &str) -> &Entry {
        let found = self.entries.iter().find(|entry| entry.key.split(' ').any(|part| part == address));
        found.unwrap_or_else(|| panic!("no entry for {address}"))
    }

    /// Returns the handle of the first rule of a chain.
    #[track_caller]
    fn rule(&self, chain: &str) -> u64 {
        let mut rules = self.objects.iter().map(|object| &object["rule"]);
        let rule = rules.find(|rule| rule["chain"] == chain).unwrap_or_else(|| panic!("no rule in {chain}"));
        rule["handle"].as_u64().unwrap_or_else(|| panic!("no handle: {rule}"))
    }

    /// Returns the name of a chain that others jump to.
    #[track_caller]
    fn regular_chain(&self) -> &str {
        let mut chains = self.objects.iter().map(|object| &object["chain"]);
        let chain = chains.find(|chain| chain["name"].is_string() && chain["hook"].is_null());
        chain.and_then(|chain| chain["name"].as_str()).unwrap_or_else(|| panic!("no such chain"))
    }
}

/// What somebody does to the table, by `nft`, and a word of what is told.
type Edit = (&'static str, fn(&Listing) -> String, &'static str);

const EDITS: [Edit; 18] = [
    ("a flush of everything", |_| "flush ruleset".into(), "was missing"),
    ("no table", |_| "delete table inet plexd".into(), "was missing"),
    ("an empty table", |_| "flush table inet plexd".into(), "differed"),
    (
        "one rule less",
        |table| format!("delete rule inet plexd forward handle {}", table.rule("forward")),
        "chain forward",
    ),
    ("one rule more at the head", |_| "insert rule inet plexd input accept".into(), "chain input"),
    (
        "one rule more at the head of another chain",
        |table| format!("insert rule inet plexd {} accept", table.regular_chain()),
        "differed",
    ),
    (
        "another rule in the place of one",
        |table| format!("replace rule inet plexd output handle {} accept", table.rule("output")),
        "chain output",
    ),
    (
        "one entry less",
        |table| {
            let Entry { map, key, .. } = table.entry("10.77.0.1");
            format!("delete element inet plexd {map} {{ {key} }}")
        },
        "map",
    ),
    (
        "one entry that decides otherwise",
        |table| {
            let Entry { map, key, .. } = table.entry("10.77.0.2");
            let value = &table.entry("10.77.0.1").value;
            format!(
                "delete element inet plexd {map} {{ {key} }}; add element inet plexd {map} {{ {key} : {value} }}"
            )
        },
        "map",
    ),
    (
        // A map is as large as its entries are many: there is no room for one more.
        "an entry in the place of another",
        |table| {
            let Entry { map, key, value } = table.entry("10.77.0.1");
            let other = key.replace("10.77.0.1", "10.77.0.99");
            format!(
                "delete element inet plexd {map} {{ {key} }}; add element inet plexd {map} {{ {other} : {value} }}"
            )
        },
        "map",
    ),
    ("no entries", |table| format!("flush map inet plexd {}", table.entry("10.77.0.1").map), "map"),
    ("another policy", |_| "add chain inet plexd input { policy drop; }".into(), "chain input"),
    (
        "another priority",
        |_| {
            "flush chain inet plexd output; delete chain inet plexd output; \
             add chain inet plexd output { type filter hook output priority 10; }"
                .into()
        },
        "chain output",
    ),
    ("another name of a chain", |_| "rename chain inet plexd forward backward".into(), "chain forward"),
    ("one chain more", |_| "add chain inet plexd more".into(), "chain more"),
    (
        "a rule with a set of its own",
        |_| "insert rule inet plexd judge ip saddr { 192.0.2.1, 192.0.2.2 } accept".into(),
        "map __set",
    ),
    ("one object more", |_| "add quota inet plexd more { over 25 mbytes; }".into(), "object more"),
    ("a table that is switched off", |_| "add table inet plexd { flags dormant; }".into(), "switched off"),
];

#[test]
fn every_edit_of_the_table_is_put_right_within_a_second_and_told_once() {
    // Far too long for a reconciliation to be what does it.
    let single = Single::new("reconcile:\n  interval: 1h\n");
    let (a, control_plane) = (&single.a, &single.control_plane);
    set_rules(control_plane, a, &rules());
    let table =
        wait_until(SOON, "the policy", || Some(a.table()).filter(|table| table.contains("10.77.0.3")));
    assert_eq!(corrections(control_plane, a, "policy_restored"), Vec::<String>::new());
    let mut slowest = Duration::ZERO;
    for (count, (what, edit, word)) in (1..).zip(EDITS) {
        let edit = edit(&Listing::of(a));
        a.node.host().run(&["nft", &edit]).expect_success();
        slowest = slowest.max(wait_repaired(a, &table, what));
        let told = wait_corrections(control_plane, a, ("policy_restored", count));
        assert!(told.contains(word), "{what}: {told}");
    }
    show(&format!("{} edits put right, the slowest in {slowest:.0?}", EDITS.len()));

    // Changes of the policy are no drift. What comes after them is told after them.
    let mut id = table_id(a.node.host());
    for port in 1..5 {
        set_rules(control_plane, a, &json!([allow_tcp(port)]));
        id = wait_replaced(a.node.host(), id.as_deref());
    }
    a.node.host().run(&["nft", "flush", "ruleset"]).expect_success();
    wait_corrections(control_plane, a, ("policy_restored", EDITS.len() + 1));
}
