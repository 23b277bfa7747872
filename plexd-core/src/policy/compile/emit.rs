//! Entries, stage by stage, as maps, classes, and the rules that look them up.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::divide::Division;
use super::resolve::{self, Decision, Entries};
use super::skeleton::verdict;
use crate::policy::table::{Classes, Detail, Entry, Expr, Family, Key, Map, Part, Shape};
use crate::policy::{Action, Service};

/// The maps and the classes of the table, of both families.
#[derive(Default)]
pub(super) struct Parts {
    /// Whether each map is looked up in a rule of its own.
    pub(super) one_by_one: bool,
    pub(super) classes: Vec<Classes>,
    pub(super) maps: Vec<Map>,
}

impl Parts {
    /// Adds those of a family, with what allows by default, and returns the rules that look them up.
    pub(super) fn add(
        &mut self,
        family: Family,
        sides: [&Division; 2],
        stages: Vec<Entries>,
        default: Action,
    ) -> Vec<Vec<Expr>> {
        let parts = [("src", sides[0]), ("dst", sides[1])].map(|(side, of)| self.parts(side, family, of));
        let mut rules = Vec::new();
        let mut occurrences = BTreeMap::new();
        let mut is_decided = false;
        for stage in stages {
            // Maps that look at the same parts of the addresses stand side by side.
            let mut list: Vec<usize> = Vec::new();
            let mut listed = None;
            for (levels, entries) in stage {
                let [source, destination] = [parts[0][levels.source], parts[1][levels.destination]];
                let shape = Shape { family, source, destination, service: levels.detail() };
                let ends = listed.replace((source, destination)) != Some((source, destination));
                if (ends || self.one_by_one || shape.is_empty()) && !list.is_empty() {
                    rules.push(vec![Expr::Lookup(std::mem::take(&mut list))]);
                }
                let (shape, entries) = if shape.is_empty() {
                    // One entry, which matches all that is left.
                    let Some(decision) = entries.into_values().next() else { continue };
                    is_decided = true;
                    if decision.action == Action::Deny {
                        rules.push(vec![
                            Expr::CountRule(decision.rule),
                            Expr::Verdict(verdict(decision.action)),
                        ]);
                        continue;
                    }
                    everything(family, Some(decision.rule))
                } else {
                    (shape, named(entries, levels, sides))
                };
                list.push(self.add_map(shape, entries, &mut occurrences));
            }
            if !list.is_empty() {
                rules.push(vec![Expr::Lookup(list)]);
            }
        }
        if default == Action::Allow && !is_decided {
            let (shape, entries) = everything(family, None);
            rules.push(vec![Expr::Lookup(vec![self.add_map(shape, entries, &mut occurrences)])]);
        }
        rules
    }

    /// Adds a map and returns its position.
    fn add_map(
        &mut self,
        shape: Shape,
        entries: BTreeMap<Key, Entry>,
        occurrences: &mut BTreeMap<Shape, usize>,
    ) -> usize {
        let occurrence = occurrences.entry(shape).and_modify(|n| *n += 1).or_insert(1);
        let name = self.name(shape, *occurrence);
        self.maps.push(Map { name, shape, entries });
        self.maps.len() - 1
    }

    /// Returns what of an address each level of a side looks at, and has added the classes for it.
    fn parts(&mut self, side: &str, family: Family, division: &Division) -> Vec<Part> {
        let mut number = 0;
        let part = |level| {
            if division.needs_classes(level) {
                number += 1;
                self.classes.push(division.classes(level, format!("{side}{}_{number}", digit(family))));
            }
            division.part(level, self.classes.len().saturating_sub(1))
        };
        (0..division.levels()).map(part).collect()
    }

    /// Names a map by its shape, so that it keeps its name, and its counters, as long as its shape is used.
    fn name(&self, shape: Shape, occurrence: usize) -> String {
        let part = |part, side| match part {
            Part::Bits(bits) => format!("{side}{bits}"),
            Part::Class(at) => self.classes[at].name.clone(),
        };
        let service = match shape.service {
            Detail::Nothing => "any",
            Detail::Protocol => "proto",
            Detail::Port => "port",
        };
        let (source, destination) = (part(shape.source, "s"), part(shape.destination, "d"));
        format!("v{}_{source}_{destination}_{service}_{occurrence}", digit(shape.family))
    }
}

/// Entries of a map that has one for every packet.
pub(super) const EVERYTHING: usize = 2;

/// Returns a map that has an entry for every packet, for a rule that allows it or for the default: one for either half of the
/// source addresses.
///
/// What allows the rest is looked up as everything else. Before Linux 6.17 a packet that is being judged while the table is
/// replaced finds the maps empty: a denial in one of them would be missed, and a verdict that is no map's let it pass.
fn everything(family: Family, rule: Option<usize>) -> (Shape, BTreeMap<Key, Entry>) {
    let (low, high, all) = match family {
        Family::V4 => ("0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0"),
        Family::V6 => ("::/1", "8000::/1", "::/0"),
    };
    let shape = Shape { family, source: Part::Bits(1), destination: Part::Bits(0), service: Detail::Nothing };
    let network = |text: &str| text.parse::<IpNet>().expect("a network");
    let entry = Entry { verdict: verdict(Action::Allow), rule };
    let key = |half| Key { source: network(half), destination: network(all), service: Service::Any };
    (shape, [low, high].map(|half| (key(half), entry.clone())).into())
}

/// Returns the entries by their keys in the table, but for classes that have no address.
fn named(
    entries: impl IntoIterator<Item = (resolve::Key, Decision)>,
    levels: resolve::Shape,
    sides: [&Division; 2],
) -> BTreeMap<Key, Entry> {
    let named = entries.into_iter().filter_map(|((source, destination, service), decision)| {
        let source = sides[0].name(levels.source, source)?;
        let destination = sides[1].name(levels.destination, destination)?;
        let entry = Entry { verdict: verdict(decision.action), rule: Some(decision.rule) };
        Some((Key { source, destination, service }, entry))
    });
    named.collect()
}

fn digit(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

impl Shape {
    fn is_empty(self) -> bool {
        self.source.is_nothing() && self.destination.is_nothing() && self.service == Detail::Nothing
    }
}
