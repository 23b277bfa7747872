//! First match, without an order: entries of rules, looked up from the finest shape to the coarsest, where the first that is
//! found is to be of the action of the first rule that matches.
//!
//! Two entries are nested, apart, or crossed (one finer by its source, the other by its destination or service). Of nested
//! ones the finer is found first: an entry within one of an earlier rule is therefore left out, and one around it is right to
//! come later. Of crossed ones the one whose shape comes first is found first; where it is of a later rule and another
//! action, what they share gets an entry of its own, finer than both. Those could be many: beyond a quota the rules go on in
//! another stage, looked up after the one before.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

use super::divide::Division;
use crate::policy::table::Detail;
use crate::policy::{Action, Service};

/// Fewer entries of a shape than this are walked through, without an index.
const FEW: usize = 16;

/// What it takes to look at a shape or an entry, to look one up, and to put one in an index.
const LOOKED_AT: usize = 4;
const LOOKED_UP: usize = 40;
const INDEXED: usize = 120;

/// Numbers of the classes of source and destination, and the service.
pub(super) type Key = (u32, u32, Service);

/// Levels of source and destination, and how much of the service; the finest shape is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Shape {
    pub(super) source: usize,
    pub(super) destination: usize,
    /// 0 for protocol and port, 1 for the protocol, 2 for nothing.
    service: u8,
}

/// Entries by shape, the finest shape first.
pub(super) type Entries = BTreeMap<Shape, Fixed<Key, Decision>>;

/// A map that is walked through in the same order every time, so that what a set costs is the same every time.
type Fixed<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) action: Action,
    /// The rule's position.
    pub(super) rule: usize,
}

/// Rules whose entries are looked up together.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    sides: [&'a Division; 2],
    shapes: Entries,
    /// Shapes with an entry that allows, and with one that denies.
    allowing: BTreeSet<Shape>,
    denying: BTreeSet<Shape>,
    /// By shape and a coarser one: the entries of the first by what the second sees of them, and by action.
    seen: Fixed<Shape, Fixed<Shape, Sighted>>,
    /// Entries that no rule named.
    pub(super) shared: usize,
    /// Entries in what is seen: what all of it takes of the memory.
    pub(super) indexed: usize,
    /// What it took so far, in about a nanosecond where it is optimised.
    pub(super) work: usize,
}

type Sighted = Fixed<(Key, bool), Vec<Sighting>>;

/// An entry, and its rule's position.
#[derive(Debug, Clone, Copy)]
struct Sighting {
    key: Key,
    rule: usize,
}

impl Shape {
    /// Details of a service that there are.
    pub(super) const SERVICES: usize = 3;

    pub(super) fn new(source: usize, destination: usize, service: Service) -> Self {
        let service = match Detail::of(service) {
            Detail::Port => 0,
            Detail::Protocol => 1,
            Detail::Nothing => 2,
        };
        Self { source, destination, service }
    }

    /// Returns how much of the service it sees as a number below [`Shape::SERVICES`].
    pub(super) fn service_number(self) -> usize {
        self.service.into()
    }

    /// Returns how much of the service it sees.
    pub(super) fn detail(self) -> Detail {
        match self.service {
            0 => Detail::Port,
            1 => Detail::Protocol,
            _ => Detail::Nothing,
        }
    }

    fn join(self, other: Self) -> Self {
        Self {
            source: self.source.max(other.source),
            destination: self.destination.max(other.destination),
            service: self.service.max(other.service),
        }
    }

    fn is_within(self, coarser: Self) -> bool {
        self.join(coarser) == coarser
    }

    fn is_crossed_with(self, other: Self) -> bool {
        !self.is_within(other) && !other.is_within(self)
    }
}

impl<'a> Stage<'a> {
    pub(super) fn new(sides: [&'a Division; 2]) -> Self {
        Self {
            sides,
            shapes: BTreeMap::new(),
            allowing: BTreeSet::new(),
            denying: BTreeSet::new(),
            seen: Fixed::default(),
            shared: 0,
            indexed: 0,
            work: 0,
        }
    }

    /// Returns the entries.
    pub(super) fn into_entries(self) -> Entries {
        self.shapes
    }

    /// Returns in how many maps a packet is looked up.
    pub(super) fn lookups(&self) -> usize {
        self.shapes.len()
    }

    /// Returns for how many entries of the other action an entry, of a rule that comes after all those that are there, would
    /// have to share one with.
    pub(super) fn crossings(&mut self, shape: Shape, key: Key, action: Action) -> usize {
        if self.covering(shape, key).is_some() {
            return 0;
        }
        let others = self.crossed_shapes(shape, action).into_iter().filter(|other| shape < *other);
        others
            .collect::<Vec<_>>()
            .into_iter()
            .map(|other| self.crossed(shape, key, action, other).len())
            .sum()
    }

    /// Adds an entry of a rule that comes after all those that are there.
    pub(super) fn add(&mut self, shape: Shape, key: Key, decision: Decision) {
        if self.covering(shape, key).is_some() {
            return;
        }
        self.insert(shape, key, decision);
        let newest = decision.rule;
        let mut new = vec![(shape, key, decision)];
        while let Some((shape, key, Decision { action, rule })) = new.pop() {
            for other in self.crossed_shapes(shape, action) {
                if rule == newest && other < shape {
                    continue;
                }
                let crossed = self.crossed(shape, key, action, other).into_owned();
                self.work += LOOKED_UP * crossed.len();
                let is_found_wrongly =
                    |of: &Sighting| if shape < other { of.rule < rule } else { rule < of.rule };
                for of in crossed.into_iter().filter(is_found_wrongly) {
                    let (shape, key) = shared(shape, key, other, of.key);
                    if self.shapes.get(&shape).is_some_and(|entries| entries.contains_key(&key)) {
                        continue;
                    }
                    let Some(decision) = self.covering(shape, key) else { continue };
                    self.insert(shape, key, decision);
                    self.shared += 1;
                    new.push((shape, key, decision));
                }
            }
        }
    }

    /// Returns the shapes that are crossed with this one and have entries of the other action.
    fn crossed_shapes(&mut self, shape: Shape, action: Action) -> Vec<Shape> {
        let others = if action == Action::Allow { &self.denying } else { &self.allowing };
        self.work += LOOKED_AT * others.len();
        others.iter().copied().filter(|other| shape.is_crossed_with(*other)).collect()
    }

    /// Returns what the first of the rules says that have an entry around this one, or this one.
    fn covering(&mut self, shape: Shape, key: Key) -> Option<Decision> {
        self.work += LOOKED_AT * self.shapes.len();
        let around = self.shapes.iter().filter(|(coarser, _)| shape.is_within(**coarser));
        let found = around
            .filter_map(|(coarser, entries)| entries.get(&self.project(shape, key, *coarser)?).copied());
        found.min_by_key(|decision| decision.rule)
    }

    /// Returns the entries of a crossed shape that share something with this one and are of the other action.
    fn crossed(&mut self, shape: Shape, key: Key, action: Action, other: Shape) -> Cow<'_, [Sighting]> {
        let join = shape.join(other);
        let (Some(seen), Some(entries)) = (self.project(shape, key, join), self.shapes.get(&other)) else {
            return Cow::Borrowed(&[]);
        };
        self.work += LOOKED_UP;
        let is_known = self.seen.get(&other).is_some_and(|seen| seen.contains_key(&join));
        if !is_known {
            if entries.len() < FEW {
                self.work += LOOKED_AT * entries.len();
                let shares = |key| self.project(other, key, join) == Some(seen);
                let found = entries.iter().filter(|(key, of)| of.action != action && shares(**key));
                return found.map(|(key, of)| Sighting { key: *key, rule: of.rule }).collect();
            }
            self.work += INDEXED * entries.len();
            let mut sighted = Sighted::default();
            for (key, of) in entries {
                if let Some(seen) = self.project(other, *key, join) {
                    sighted
                        .entry(sight(seen, of.action))
                        .or_default()
                        .push(Sighting { key: *key, rule: of.rule });
                    self.indexed += 1;
                }
            }
            self.seen.entry(other).or_default().insert(join, sighted);
        }
        let opposite = if action == Action::Allow { Action::Deny } else { Action::Allow };
        let found = self.seen[&other][&join].get(&sight(seen, opposite));
        Cow::Borrowed(found.map_or(&[], Vec::as_slice))
    }

    fn insert(&mut self, shape: Shape, key: Key, decision: Decision) {
        self.shapes.entry(shape).or_default().insert(key, decision);
        let alike = if decision.action == Action::Allow { &mut self.allowing } else { &mut self.denying };
        alike.insert(shape);
        let Some(mut seen) = self.seen.remove(&shape) else { return };
        self.work += INDEXED * seen.len();
        for (by, sighted) in &mut seen {
            if let Some(seen) = self.project(shape, key, *by) {
                let sighting = Sighting { key, rule: decision.rule };
                sighted.entry(sight(seen, decision.action)).or_default().push(sighting);
                self.indexed += 1;
            }
        }
        self.seen.insert(shape, seen);
    }

    /// Returns what a coarser shape sees of a key; `None` where it sees nothing that has a name.
    fn project(&self, shape: Shape, (source, destination, service): Key, coarser: Shape) -> Option<Key> {
        Some((
            self.sides[0].above(shape.source, source, coarser.source)?,
            self.sides[1].above(shape.destination, destination, coarser.destination)?,
            match (coarser.detail(), service) {
                (Detail::Port, service) => service,
                (Detail::Protocol, Service::Tcp(_)) => Service::Tcp(None),
                (Detail::Protocol, Service::Udp(_)) => Service::Udp(None),
                (Detail::Nothing, _) | (_, Service::Any) => Service::Any,
            },
        ))
    }
}

fn sight(seen: Key, action: Action) -> (Key, bool) {
    (seen, action == Action::Allow)
}

/// Returns what two crossed entries share: of each part, the finer.
fn shared(a: Shape, of_a: Key, b: Shape, of_b: Key) -> (Shape, Key) {
    let (source, from) = if a.source <= b.source { (a.source, of_a.0) } else { (b.source, of_b.0) };
    let (destination, to) =
        if a.destination <= b.destination { (a.destination, of_a.1) } else { (b.destination, of_b.1) };
    let (service, of) = if a.service <= b.service { (a.service, of_a.2) } else { (b.service, of_b.2) };
    (Shape { source, destination, service }, (from, to, of))
}
