//! The table as it is, compared with what it should be, and what its rules counted.

use std::collections::{BTreeMap, BTreeSet};

use super::dump::{Dump, DumpedRule, Elements, attributes};
use super::encode::hook_number;
use super::expression::{Expression, expressions};
use super::maps::{self, Place, Stored};
use super::numbers::OBJECT_IS_COUNTER;
use super::wire::Reader;
use crate::kernel::{Count, Counters, ObservedTable};
use crate::policy::Table;
use crate::policy::table::{Chain, Expr};

impl Dump {
    /// Compares with what should be.
    pub(super) fn compare(&self, expected: &Table) -> ObservedTable {
        match self.difference(expected) {
            Some(what) => ObservedTable::Differs { what },
            None => ObservedTable::Same { counters: self.counters(expected) },
        }
    }

    fn difference(&self, expected: &Table) -> Option<String> {
        if self.frame.flags != 0 {
            return Some("the table is switched off, or has another owner".to_owned());
        }
        let chains = || expected.chains.iter().map(|chain| &chain.name);
        let classes = || expected.classes.iter().map(|classes| &classes.name);
        let maps = || expected.maps.iter().map(|map| &map.name).chain(classes());
        names("chain", chains(), self.frame.chains.keys())
            .or_else(|| names("map", maps(), self.frame.maps.keys()))
            .or_else(|| names("counter", expected.counters.iter(), self.named().map(|(name, _)| name)))
            .or_else(|| {
                self.added_objects(expected).next().map(|(_, name)| format!("object {name} was added"))
            })
            .or_else(|| self.flowtables().next().map(|name| format!("flowtable {name} was added")))
            .or_else(|| self.chain_difference(expected))
            .or_else(|| self.map_difference(expected))
    }

    /// Returns whether everything is there that `expected` has outside of chains' rules, of chains that nothing but rules
    /// leads to, and of maps: the table itself, where the kernel calls it, and counters.
    pub(super) fn has_frame_of(&self, expected: &Table) -> bool {
        let has_chain = |chain: &Chain| {
            let base = base(chain);
            base.is_none() || self.frame.chains.get(&chain.name).is_some_and(|found| found.base == base)
        };
        let counters: BTreeSet<_> = self.named().map(|(name, _)| name).collect();
        self.frame.flags == 0
            && expected.chains.iter().all(has_chain)
            && expected.counters.iter().all(|counter| counters.contains(counter))
    }

    /// Returns the names of chains that are not those which the kernel is to call, but for those that go with a rule.
    pub(super) fn passing_chains(&self, expected: &Table) -> impl Iterator<Item = &String> {
        let stays =
            |name: &String| expected.chains.iter().any(|chain| chain.hook.is_some() && chain.name == *name);
        let chains = self.frame.chains.iter().filter(move |(name, chain)| !chain.is_bound && !stays(name));
        chains.map(|(name, _)| name)
    }

    /// Returns the names of maps, but for those that go with a rule.
    pub(super) fn maps(&self) -> impl Iterator<Item = &String> {
        self.frame.maps.iter().filter(|(_, map)| !map.is_anonymous()).map(|(name, _)| name)
    }

    /// Returns type and name of objects that are not to be there.
    pub(super) fn added_objects(&self, expected: &Table) -> impl Iterator<Item = &(u32, String)> {
        let is_ours =
            |(kind, name): &(u32, String)| *kind == OBJECT_IS_COUNTER && expected.counters.contains(name);
        self.frame.objects.keys().filter(move |object| !is_ours(object))
    }

    /// Returns the names of flowtables, none of which is ours.
    pub(super) fn flowtables(&self) -> impl Iterator<Item = &String> {
        self.frame.flowtables.keys()
    }

    /// Returns the counters that have a name.
    pub(super) fn named(&self) -> impl Iterator<Item = (&String, Count)> {
        let counters = self.frame.objects.iter().filter(|((kind, _), _)| *kind == OBJECT_IS_COUNTER);
        counters.map(|((_, name), object)| (name, object.count))
    }

    fn chain_difference(&self, expected: &Table) -> Option<String> {
        for chain in &expected.chains {
            let name = &chain.name;
            let Some(found) = self.frame.chains.get(name) else { continue };
            if found.base != base(chain) {
                return Some(format!("chain {name} has another hook, priority or policy"));
            }
            let rules = self.rules(name);
            if rules.len() != chain.rules.len() {
                let (found, expected) = (rules.len(), chain.rules.len());
                return Some(format!("chain {name} has {found} rules instead of {expected}"));
            }
            for (number, (rule, found)) in chain.rules.iter().zip(rules).enumerate() {
                if !same_rule(&expressions(expected, rule), found) {
                    return Some(format!("rule {} of chain {name} is another", number + 1));
                }
            }
        }
        None
    }

    fn map_difference(&self, expected: &Table) -> Option<String> {
        maps::of(expected)
            .filter(|map| self.frame.maps.contains_key(map.name))
            .find_map(|map| self.differs(map))
    }

    /// Says what of a map is not as it should be.
    pub(super) fn differs(&self, expected: Stored<'_>) -> Option<String> {
        let Stored { name, kind, elements, .. } = expected;
        let found = self.frame.maps.get(name).map(|map| map.kind);
        if found != Some(kind) {
            return Some(format!("map {name} is of another type"));
        }
        let there = self.elements(name);
        let mut places = Vec::new();
        for element in elements {
            let Some(found) = there.get(&element.place) else {
                return Some(format!("map {name} has no entry for {}", element.at));
            };
            if found.data != element.data {
                return Some(format!("map {name} has another entry for {}", element.at));
            }
            if found.extra != element.place.extra(kind) {
                return Some(format!("the entry of map {name} for {} does something else", element.at));
            }
            places.push(element.place);
        }
        if places.len() == there.len() {
            return None;
        }
        let places = BTreeSet::from_iter(places);
        let added = there.keys().find(|place| !places.contains(place));
        added.map(|place| format!("map {name} has an entry too many, for {}", place.shown(kind)))
    }

    /// Returns what is in a map.
    pub(super) fn elements(&self, map: &str) -> &Elements {
        const NONE: &Elements = &Elements::new();
        self.elements.get(map).unwrap_or(NONE)
    }

    /// Collects what was counted for the rules of `expected`, as far as this is that table.
    pub(super) fn counters(&self, expected: &Table) -> Counters {
        let mut rules: BTreeMap<usize, Count> = BTreeMap::new();
        let mut add = |rule: usize, count: Count| {
            let sum = rules.entry(rule).or_default();
            sum.packets = sum.packets.saturating_add(count.packets);
            sum.bytes = sum.bytes.saturating_add(count.bytes);
        };
        for map in maps::of(expected) {
            let there = self.elements(map.name);
            for element in map.elements {
                let found = there.get(&element.place).filter(|found| found.data == element.data);
                if let Some((rule, found)) = element.rule.zip(found) {
                    add(rule, found.count);
                }
            }
        }
        for chain in &expected.chains {
            let there = self.rules(&chain.name);
            if there.len() != chain.rules.len() {
                continue;
            }
            for (rule, found) in chain.rules.iter().zip(there) {
                for expr in rule {
                    if let Expr::CountRule(position) = expr
                        && same_rule(&expressions(expected, rule), found)
                    {
                        add(*position, found.count());
                    }
                }
            }
        }
        Counters { named: self.named().map(|(name, count)| (name.clone(), count)).collect(), rules }
    }
}

impl Place {
    /// Returns what an element here does besides: the end of an interval nothing.
    fn extra(&self, kind: maps::Kind) -> maps::Extra {
        if self.flags == super::numbers::ELEMENT_IS_END { maps::Extra::Nothing } else { kind.extra }
    }
}

/// Hook, priority, policy and type of a base chain.
fn base(chain: &Chain) -> Option<(u32, i32, i32, String)> {
    chain.hook.map(|hook| (hook_number(hook), 0, 1, "filter".to_owned()))
}

/// Returns whether a rule is the expected one. Attributes that we did not send are not looked at: newer kernels may tell
/// more, and what gives an expression its meaning we always send.
fn same_rule(expected: &[Expression], found: &DumpedRule) -> bool {
    let found = &found.expressions;
    expected.len() == found.len()
        && expected.iter().zip(found).all(|(expected, found)| {
            let wanted = attributes(expected.name, Reader(expected.data.as_slice()));
            expected.name == found.name
                && wanted.iter().all(|(kind, value)| found.attributes.get(kind) == Some(value))
        })
}

/// Says which names are missing or too many.
fn names<'a>(
    kind: &str,
    expected: impl Iterator<Item = &'a String>,
    found: impl Iterator<Item = &'a String>,
) -> Option<String> {
    let (wanted, there): (BTreeSet<_>, BTreeSet<_>) = (expected.collect(), found.collect());
    let missing = wanted.difference(&there).next().map(|name| format!("{kind} {name} is missing"));
    missing.or_else(|| there.difference(&wanted).next().map(|name| format!("{kind} {name} was added")))
}
