//! The table as the kernel has it: read back whole, compared with what it should be, its counters collected. The other
//! tables' chains that older kernels list along are skipped unread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::data::Data;
use super::encode::{Carried, hook_number, ours};
use super::expression::{Expression, expressions};
use super::maps::{self, Kind, Place, Stored};
use super::numbers::{DATA_IS_VERDICT, OBJECT_IS_COUNTER, attribute, message};
use super::socket::Channel;
use super::wire::{Attributes, Message, Reader};
use crate::kernel::{Count, Counters, ObservedTable};
use crate::policy::Table;
use crate::policy::table::{Chain, Expr};

/// How often to begin again when somebody changes something while we read.
const ATTEMPTS: usize = 10;

/// The table as it is.
#[derive(Debug, Default)]
pub(super) struct Dump {
    flags: u32,
    chains: BTreeMap<String, DumpedChain>,
    maps: BTreeMap<String, DumpedMap>,
    counters: BTreeMap<String, Count>,
    /// Objects that are no counters.
    strange: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct DumpedChain {
    /// Hook, priority, policy and type, of a base chain.
    base: Option<(u32, i32, i32, String)>,
    rules: Vec<Vec<DumpedExpression>>,
}

#[derive(Debug, PartialEq, Eq)]
struct DumpedExpression {
    name: String,
    attributes: BTreeMap<u16, Value>,
    /// What a `counter` has counted; not part of what it is.
    count: Count,
}

/// The value of an attribute, such that equal values are equal.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Data(Option<Data>),
}

#[derive(Debug, Default)]
struct DumpedMap {
    kind: Kind,
    /// What each element says, and what it has counted.
    elements: BTreeMap<Place, (Option<Data>, Count)>,
}

impl Dump {
    /// Reads the table; `None` if there is none.
    pub(super) fn read(channel: &mut Channel) -> io::Result<Option<Self>> {
        for _ in 0..ATTEMPTS {
            let before = generation(channel)?;
            match Self::read_once(channel) {
                Ok(dump) if generation(channel)? == before => return Ok(dump),
                // Somebody changed something: what was read may not fit together, or was no longer there.
                Ok(_) => {}
                Err(_) if generation(channel)? != before => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the ruleset is being changed all the time; will try again",
        ))
    }

    fn read_once(channel: &mut Channel) -> io::Result<Option<Self>> {
        let flags = channel.get(message::GETTABLE, &ours(), |answer| {
            answer.attributes().u32(attribute::TABLE_FLAGS).or(Some(0))
        })?;
        let Some(flags) = flags else { return Ok(None) };
        let mut dump = Self { flags, ..Self::default() };
        let mine = |read: Reader<'_>| read.text(attribute::TABLE).as_deref() == Some(Table::NAME);
        let mut each = |kind: u16, add: &mut dyn FnMut(Reader<'_>)| {
            channel.dump(kind, &ours(), |answer: &Message<'_>| {
                if mine(answer.attributes()) {
                    add(answer.attributes());
                }
            })
        };
        each(message::GETCHAIN, &mut |chain| dump.add_chain(chain))?;
        each(message::GETRULE, &mut |rule| dump.add_rule(rule))?;
        each(message::GETOBJ, &mut |object| dump.add_object(object))?;
        each(message::GETSET, &mut |set| dump.add_map(set))?;
        for (name, map) in &mut dump.maps {
            let mut request = ours();
            request.text(attribute::SET_NAME, name);
            channel.dump(message::GETSETELEM, &request, |answer| map.add_entries(answer.attributes()))?;
        }
        Ok(Some(dump))
    }

    fn add_chain(&mut self, chain: Reader<'_>) {
        let hook = chain.get(attribute::CHAIN_HOOK).map(Reader);
        let base = hook.map(|hook| {
            let number = |read: Reader<'_>, kind| read.u32(kind).unwrap_or_default();
            (
                number(hook, attribute::HOOK_NUMBER),
                number(hook, attribute::HOOK_PRIORITY).cast_signed(),
                number(chain, attribute::CHAIN_POLICY).cast_signed(),
                chain.text(attribute::CHAIN_TYPE).unwrap_or_default(),
            )
        });
        self.chains.entry(chain.text(attribute::CHAIN_NAME).unwrap_or_default()).or_default().base = base;
    }

    fn add_rule(&mut self, rule: Reader<'_>) {
        let chain = self.chains.entry(rule.text(attribute::RULE_CHAIN).unwrap_or_default()).or_default();
        let expressions = rule.within(attribute::RULE_EXPRESSIONS);
        chain
            .rules
            .push(expressions.iter().map(|(_, element)| DumpedExpression::parse(Reader(element))).collect());
    }

    fn add_object(&mut self, object: Reader<'_>) {
        let name = object.text(attribute::OBJECT_NAME).unwrap_or_default();
        if object.u32(attribute::OBJECT_TYPE) == Some(OBJECT_IS_COUNTER) {
            self.counters.insert(name, count(object.within(attribute::OBJECT_DATA)));
        } else {
            self.strange.push(name);
        }
    }

    fn add_map(&mut self, set: Reader<'_>) {
        let number = |kind| set.u32(kind).unwrap_or_default();
        let data_type = number(attribute::SET_DATA_TYPE);
        let kind = Kind {
            flags: number(attribute::SET_FLAGS),
            key_length: number(attribute::SET_KEY_LEN),
            data_type,
            data_length: if data_type == DATA_IS_VERDICT { 0 } else { number(attribute::SET_DATA_LEN) },
        };
        let name = set.text(attribute::SET_NAME).unwrap_or_default();
        self.maps.insert(name, DumpedMap { kind, elements: BTreeMap::new() });
    }

    /// Compares with what should be.
    pub(super) fn compare(&self, expected: &Table) -> ObservedTable {
        match self.difference(expected) {
            Some(what) => ObservedTable::Differs { what },
            None => ObservedTable::Same { counters: self.counters(expected) },
        }
    }

    fn difference(&self, expected: &Table) -> Option<String> {
        if self.flags != 0 {
            return Some("the table is switched off, or has another owner".to_owned());
        }
        let chains = || expected.chains.iter().map(|chain| &chain.name);
        let classes = || expected.classes.iter().map(|classes| &classes.name);
        let maps = || expected.maps.iter().map(|map| &map.name).chain(classes());
        names("chain", chains(), self.chains.keys())
            .or_else(|| names("map", maps(), self.maps.keys()))
            .or_else(|| names("counter", expected.counters.iter(), self.counters.keys()))
            .or_else(|| self.strange.first().map(|name| format!("object {name} was added")))
            .or_else(|| self.chain_difference(expected))
            .or_else(|| self.map_difference(expected))
    }

    /// Returns whether everything is there that `expected` has outside of chains' rules, of chains that nothing but rules
    /// leads to, and of maps: the table itself, where the kernel calls it, and counters.
    pub(super) fn has_frame_of(&self, expected: &Table) -> bool {
        let there = self.chains.iter().filter_map(|(name, chain)| Some((name, chain.base.clone()?)));
        let wanted: BTreeMap<_, _> =
            expected.chains.iter().filter_map(|chain| Some((&chain.name, base(chain)?))).collect();
        self.flags == 0
            && self.strange.is_empty()
            && there.eq(wanted)
            && self.counters.keys().eq(expected.counters.iter().collect::<BTreeSet<_>>())
    }

    /// Returns the names of chains that only rules and entries lead to.
    pub(super) fn regular_chains(&self) -> impl Iterator<Item = &String> {
        self.chains.iter().filter(|(_, chain)| chain.base.is_none()).map(|(name, _)| name)
    }

    /// Returns the names of maps.
    pub(super) fn maps(&self) -> impl Iterator<Item = &String> {
        self.maps.keys()
    }

    fn chain_difference(&self, expected: &Table) -> Option<String> {
        for chain in &expected.chains {
            let name = &chain.name;
            let Some(found) = self.chains.get(name) else { continue };
            if found.base != base(chain) {
                return Some(format!("chain {name} has another hook, priority or policy"));
            }
            if found.rules.len() != chain.rules.len() {
                let (found, expected) = (found.rules.len(), chain.rules.len());
                return Some(format!("chain {name} has {found} rules instead of {expected}"));
            }
            for (number, (rule, found)) in chain.rules.iter().zip(&found.rules).enumerate() {
                if !same_rule(&expressions(expected, rule), found) {
                    return Some(format!("rule {} of chain {name} is another", number + 1));
                }
            }
        }
        None
    }

    fn map_difference(&self, expected: &Table) -> Option<String> {
        let mut maps = maps::of(expected).filter_map(|map| self.maps.get(map.name).map(|found| (map, found)));
        maps.find_map(|(map, found)| found.difference(map))
    }

    /// Collects what was counted; only of a table that is the expected one.
    fn counters(&self, expected: &Table) -> Counters {
        let mut rules: BTreeMap<usize, Count> = BTreeMap::new();
        let mut add = |rule: usize, count: Count| {
            let sum = rules.entry(rule).or_default();
            sum.packets += count.packets;
            sum.bytes += count.bytes;
        };
        for map in &expected.maps {
            let Some(found) = self.maps.get(&map.name) else { continue };
            for (key, entry) in &map.entries {
                if let (Some(rule), Some((_, count))) = (entry.rule, found.elements.get(&Place::of(key, map)))
                {
                    add(rule, *count);
                }
            }
        }
        for chain in &expected.chains {
            let Some(found) = self.chains.get(&chain.name) else { continue };
            for (rule, found) in chain.rules.iter().zip(&found.rules) {
                for expr in rule {
                    if let Expr::CountRule(position) = expr {
                        add(*position, rule_count(found));
                    }
                }
            }
        }
        Counters { named: self.counters.clone(), rules }
    }
}

impl Carried for Dump {
    fn named(&self, counter: &str) -> Count {
        self.counters.get(counter).copied().unwrap_or_default()
    }

    fn entry(&self, map: &str, place: &Place, verdict: &Data) -> Count {
        let entry = self.maps.get(map).and_then(|map| map.elements.get(place));
        let same = entry.filter(|(data, _)| data.as_ref() == Some(verdict));
        same.map(|(_, count)| *count).unwrap_or_default()
    }

    fn rule(&self, chain: &str, rule: &[Expression]) -> Count {
        let rules = self.chains.get(chain).map(|chain| &chain.rules);
        let same = rules.into_iter().flatten().find(|found| same_rule(rule, found));
        same.map(|found| rule_count(found)).unwrap_or_default()
    }
}

impl DumpedExpression {
    fn parse(element: Reader<'_>) -> Self {
        let name = element.text(attribute::EXPR_NAME).unwrap_or_default();
        let data = element.within(attribute::EXPR_DATA);
        let attributes = attributes(&name, data);
        let count = if name == "counter" { count(data) } else { Count::default() };
        Self { name, attributes, count }
    }
}

impl DumpedMap {
    fn add_entries(&mut self, message: Reader<'_>) {
        for (_, element) in message.within(attribute::ELEMENTS).iter() {
            let element = Reader(element);
            let key = element.within(attribute::ELEMENT_KEY).get(attribute::DATA_VALUE).unwrap_or_default();
            let flags = element.u32(attribute::ELEMENT_FLAGS).unwrap_or_default();
            let data = Data::parse(element.within(attribute::ELEMENT_DATA));
            let counter = element.within(attribute::ELEMENT_EXPR).within(attribute::EXPR_DATA);
            self.elements.insert(Place { key: key.to_vec(), flags }, (data, count(counter)));
        }
    }

    /// Says what is not as it should be.
    fn difference(&self, expected: Stored<'_>) -> Option<String> {
        let name = expected.name;
        if self.kind != expected.kind {
            return Some(format!("map {name} is of another type"));
        }
        let mut places = Vec::new();
        for element in expected.elements {
            let Some((data, _)) = self.elements.get(&element.place) else {
                return Some(format!("map {name} has no entry for {}", element.at));
            };
            if *data != element.data {
                return Some(format!("map {name} has another entry for {}", element.at));
            }
            places.push(element.place);
        }
        if places.len() == self.elements.len() {
            return None;
        }
        let places = BTreeSet::from_iter(places);
        let added = self.elements.keys().find(|place| !places.contains(place));
        added.map(|place| format!("map {name} has an entry too many, for {}", place.shown(expected.kind)))
    }
}

/// Hook, priority, policy and type of a base chain.
fn base(chain: &Chain) -> Option<(u32, i32, i32, String)> {
    chain.hook.map(|hook| (hook_number(hook), 0, 1, "filter".to_owned()))
}

/// Returns whether a rule is the expected one. Attributes that we did not send are not looked at: newer kernels may tell
/// more, and what gives an expression its meaning we always send.
fn same_rule(expected: &[Expression], found: &[DumpedExpression]) -> bool {
    let same = |expected: &Expression, found: &DumpedExpression| {
        let wanted = attributes(expected.name, Reader(expected.data.as_slice()));
        expected.name == found.name
            && wanted.iter().all(|(kind, value)| found.attributes.get(kind) == Some(value))
    };
    expected.len() == found.len() && expected.iter().zip(found).all(|(expected, found)| same(expected, found))
}

/// Returns the attributes of an expression in a form that can be compared; none of a counter, which has only counts.
fn attributes(name: &str, data: Reader<'_>) -> BTreeMap<u16, Value> {
    let holds_data = |kind: u16| {
        matches!(
            (name, kind),
            ("cmp", attribute::CMP_DATA)
                | ("bitwise", attribute::BITWISE_MASK | attribute::BITWISE_XOR)
                | ("immediate", attribute::IMMEDIATE_DATA)
        )
    };
    let value = |kind, value: &[u8]| {
        if holds_data(kind) { Value::Data(Data::parse(Reader(value))) } else { Value::Bytes(value.to_vec()) }
    };
    data.iter().filter(|_| name != "counter").map(|(kind, bytes)| (kind, value(kind, bytes))).collect()
}

fn rule_count(rule: &[DumpedExpression]) -> Count {
    rule.iter().find(|expression| expression.name == "counter").map(|e| e.count).unwrap_or_default()
}

fn count(data: Reader<'_>) -> Count {
    let number = |kind| data.u64(kind).unwrap_or_default();
    Count { packets: number(attribute::COUNTER_PACKETS), bytes: number(attribute::COUNTER_BYTES) }
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

/// Returns the number of the ruleset, which every change raises.
fn generation(channel: &mut Channel) -> io::Result<Option<u32>> {
    channel.get(message::GETGEN, &Attributes::default(), |answer| {
        answer.attributes().u32(attribute::GENERATION_ID)
    })
}
