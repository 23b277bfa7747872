//! What the counters of a table begin with when it takes another one's place: with what was counted before for the same
//! rule of the same policy, however the entries of either table are made.

use std::collections::{BTreeMap, BTreeSet};

use super::dump::Dump;
use super::maps::{self, Element};
use crate::kernel::Count;
use crate::policy::Table;
use crate::policy::table::Part;

/// What was counted, to be given out once.
pub(super) struct Carried<'a> {
    old: &'a Dump,
    by: By<'a>,
}

/// How counts find their rule.
enum By<'a> {
    /// By the rule's name, as it is known what every entry of the old table was for. The first of its entries has all of it.
    Rule(BTreeMap<&'a str, Count>),
    /// It is not known what the old table's entries were for, as it is of another process: an entry has what the one of the
    /// same key and verdict has counted, in these maps, where the same key means the same addresses.
    Entry(BTreeSet<&'a str>),
}

impl<'a> Carried<'a> {
    /// Collects what `old` counted, for a table that takes its place. `known` is what `old` is, if that is known.
    pub(super) fn new(old: &'a Dump, known: Option<&'a Table>, table: &'a Table) -> Self {
        let by = match known {
            Some(known) => By::Rule(by_rule(old, known)),
            None => By::Entry(of_one_meaning(old, table)),
        };
        Self { old, by }
    }

    /// Returns what the named counter is to begin with.
    pub(super) fn named(&self, counter: &str) -> Count {
        let found = self.old.named().find(|(name, _)| *name == counter);
        found.map(|(_, count)| count).unwrap_or_default()
    }

    /// Returns what the entry of a map is to begin with.
    pub(super) fn entry(&mut self, table: &Table, map: &str, element: &Element<'_>) -> Count {
        match &mut self.by {
            By::Rule(_) => element.rule.map(|rule| self.rule(table, rule)).unwrap_or_default(),
            By::Entry(maps) if maps.contains(map) => {
                let there = self.old.elements(map).get(&element.place);
                let same = there.filter(|there| there.data == element.data);
                same.map(|there| there.count).unwrap_or_default()
            }
            By::Entry(_) => Count::default(),
        }
    }

    /// Returns what a rule of a chain is to begin with that counts for the rule at this position.
    pub(super) fn rule(&mut self, table: &Table, position: usize) -> Count {
        let By::Rule(counts) = &mut self.by else { return Count::default() };
        let name = table.rule_names.get(position);
        name.and_then(|name| counts.remove(name.as_str())).unwrap_or_default()
    }
}

/// Returns what each rule counted, by its name; rules of one name together.
fn by_rule<'a>(old: &Dump, known: &'a Table) -> BTreeMap<&'a str, Count> {
    let mut sums: BTreeMap<&str, Count> = BTreeMap::new();
    for (position, count) in old.counters(known).rules {
        let Some(name) = known.rule_names.get(position) else { continue };
        let sum = sums.entry(name).or_default();
        sum.packets = sum.packets.saturating_add(count.packets);
        sum.bytes = sum.bytes.saturating_add(count.bytes);
    }
    sums
}

/// Returns the names of those maps of `table` whose keys mean in `old` what they mean here: a class is named by one of its
/// addresses, and may have had others.
fn of_one_meaning<'a>(old: &Dump, table: &'a Table) -> BTreeSet<&'a str> {
    let classes = maps::of(table).take(table.classes.len());
    let same: Vec<bool> = classes.map(|classes| old.differs(classes).is_none()).collect();
    let means_the_same = |part| match part {
        Part::Bits(_) => true,
        Part::Class(position) => same.get(position) == Some(&true),
    };
    let maps = table.maps.iter();
    let maps = maps.filter(|map| means_the_same(map.shape.source) && means_the_same(map.shape.destination));
    maps.map(|map| map.name.as_str()).collect()
}
