//! The table as the kernel has it, read back whole, however often others change tables of theirs meanwhile. Those are
//! skipped unread where older kernels list them along. What it should be is not known here.

use std::collections::BTreeMap;
use std::io;

use super::data::Data;
use super::encode::ours;
use super::maps::{Extra, Kind, Place};
use super::numbers::{
    CHAIN_IS_BOUND, DATA_IS_VERDICT, OBJECT_IS_COUNTER, SET_IS_ANONYMOUS, attribute, message,
};
use super::socket::{Channel, Listed};
use super::wire::{Attributes, Message, Reader};
use crate::kernel::Count;
use crate::policy::Table;

/// How often to begin again when somebody changes our table while we read it.
const ATTEMPTS: usize = 10;
/// How often to list objects again that changes of other tables may have made the kernel leave out.
const LISTINGS: usize = 100;
/// How often to list what only changes of our own table can have made it leave out.
const OWN_LISTINGS: usize = 3;

/// Among what the kernel counts objects that it lists, to go on where it was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// Among those of our table, or of one map of it: changes of other tables do not matter.
    Own,
    /// Among those of all tables of the family.
    All,
}

/// The table as it is.
#[derive(Debug, Default)]
pub(super) struct Dump {
    /// What it is made of.
    pub(super) frame: Frame,
    /// What is in its maps, by their names.
    pub(super) elements: BTreeMap<String, Elements>,
}

/// All of a table but the elements of its maps.
#[derive(Debug, Default)]
pub(super) struct Frame {
    /// `NFT_TABLE_F_*`.
    pub(super) flags: u32,
    handle: Handle,
    /// Chains by name.
    pub(super) chains: BTreeMap<String, DumpedChain>,
    /// Rules by the name of their chain.
    rules: BTreeMap<String, Vec<DumpedRule>>,
    /// Maps, and sets, by name.
    pub(super) maps: BTreeMap<String, DumpedMap>,
    /// Objects by type (`NFT_OBJECT_*`) and name.
    pub(super) objects: BTreeMap<(u32, String), DumpedObject>,
    /// Flowtables by name.
    pub(super) flowtables: BTreeMap<String, Handle>,
}

/// What the kernel calls an object of a table: no two of one table have ever had the same.
pub(super) type Handle = Option<u64>;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DumpedChain {
    handle: Handle,
    /// Hook, priority, policy and type, of a base chain.
    pub(super) base: Option<(u32, i32, i32, String)>,
    /// Whether it belongs to a rule, and goes with it.
    pub(super) is_bound: bool,
}

/// A rule, as its expressions.
#[derive(Debug, Default)]
pub(super) struct DumpedRule {
    handle: Handle,
    /// In order.
    pub(super) expressions: Vec<DumpedExpression>,
}

#[derive(Debug)]
pub(super) struct DumpedExpression {
    pub(super) name: String,
    pub(super) attributes: BTreeMap<u16, Value>,
    /// What a `counter` has counted; not part of what it is.
    pub(super) count: Count,
}

/// The value of an attribute, such that equal values are equal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    Data(Option<Data>),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DumpedMap {
    handle: Handle,
    pub(super) kind: Kind,
}

impl DumpedMap {
    /// Returns whether it belongs to a rule, and goes with it.
    pub(super) fn is_anonymous(&self) -> bool {
        self.kind.flags & SET_IS_ANONYMOUS != 0
    }
}

#[derive(Debug, Default)]
pub(super) struct DumpedObject {
    handle: Handle,
    /// What a counter has counted.
    pub(super) count: Count,
}

/// The elements of a map.
pub(super) type Elements = BTreeMap<Place, DumpedElement>;

/// An element of a map.
#[derive(Debug, Default)]
pub(super) struct DumpedElement {
    /// What it says.
    pub(super) data: Option<Data>,
    /// What it does besides.
    pub(super) extra: Extra,
    /// What it has counted.
    pub(super) count: Count,
}

impl Dump {
    /// Reads the table; `None` if there is none.
    ///
    /// What is read was there at one time, also where others changed tables of theirs meanwhile; where they changed elements
    /// of our maps, those may be of before and of after it.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if our table itself is changed all the time.
    pub(super) fn read(channel: &mut Channel) -> io::Result<Option<Self>> {
        for _ in 0..ATTEMPTS {
            match Self::read_once(channel) {
                Ok(Reading::Whole(dump)) => return Ok(Some(dump)),
                Ok(Reading::Absent) => return Ok(None),
                Ok(Reading::Changed) => {}
                // What was listed was no longer there when it was asked for, or listing came to no end.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the ruleset is being changed all the time; will try again",
        ))
    }

    fn read_once(channel: &mut Channel) -> io::Result<Reading> {
        let before = generation(channel)?;
        let Some(frame) = Frame::read(channel)? else { return Ok(Reading::Absent) };
        let mut elements = BTreeMap::new();
        for name in frame.maps.keys() {
            elements.insert(name.clone(), read_elements(channel, name)?);
        }
        // A change of another table changes the number, too.
        let is_whole =
            generation(channel)? == before || Frame::read(channel)?.is_some_and(|now| now.is_still(&frame));
        Ok(if is_whole { Reading::Whole(Self { frame, elements }) } else { Reading::Changed })
    }

    /// Returns the rules of a chain.
    pub(super) fn rules(&self, chain: &str) -> &[DumpedRule] {
        self.frame.rules.get(chain).map(Vec::as_slice).unwrap_or_default()
    }
}

/// What came of an attempt to read.
enum Reading {
    Whole(Dump),
    Absent,
    /// Somebody changed our table meanwhile.
    Changed,
}

impl Frame {
    fn read(channel: &mut Channel) -> io::Result<Option<Self>> {
        let table = channel.get(message::GETTABLE, &ours(), |answer| {
            let table = answer.attributes();
            Some((table.u32(attribute::TABLE_FLAGS).unwrap_or(0), table.u64(attribute::TABLE_HANDLE)))
        })?;
        let Some((flags, handle)) = table else { return Ok(None) };
        Ok(Some(Self {
            flags,
            handle,
            chains: list(channel, message::GETCHAIN, Counted::All, add_chain)?,
            rules: list(channel, message::GETRULE, Counted::Own, add_rule)?,
            objects: list(channel, message::GETOBJ, Counted::All, add_object)?,
            maps: list(channel, message::GETSET, Counted::Own, add_map)?,
            flowtables: list(channel, message::GETFLOWTABLE, Counted::All, add_flowtable)?,
        }))
    }

    /// Returns whether nothing was changed since `before`. A rule is never another without another handle.
    pub(super) fn is_still(&self, before: &Self) -> bool {
        self.flags == before.flags
            && self.chains == before.chains
            && self.maps == before.maps
            && self.flowtables == before.flowtables
            && self.handles().eq(before.handles())
    }

    fn handles(&self) -> impl Iterator<Item = Handle> {
        let rules = self.rules.values().flatten().map(|rule| rule.handle);
        let objects = self.objects.values().map(|object| object.handle);
        [self.handle].into_iter().chain(rules).chain(objects)
    }
}

/// Lists all objects of a kind that are in our table.
fn list<T: Default>(
    channel: &mut Channel,
    kind: u16,
    counted: Counted,
    add: fn(&mut T, Reader<'_>),
) -> io::Result<T> {
    listed(channel, (kind, counted), &ours(), |list, answer| {
        if answer.attributes().text(attribute::TABLE).as_deref() == Some(Table::NAME) {
            add(list, answer.attributes());
        }
    })
}

/// Lists objects of a kind, again while changes came in between.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] if some may be missing.
fn listed<T: Default>(
    channel: &mut Channel,
    (kind, counted): (u16, Counted),
    request: &Attributes,
    add: impl Fn(&mut T, &Message<'_>),
) -> io::Result<T> {
    let most = if counted == Counted::Own { OWN_LISTINGS } else { LISTINGS };
    for attempt in 1..=most {
        let mut list = T::default();
        let outcome = channel.dump(kind, request, |answer| add(&mut list, answer))?;
        // Changes of our own table are found out in other ways.
        if outcome == Listed::Undisturbed || (counted == Counted::Own && attempt == most) {
            return Ok(list);
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Lists the elements of a map. Of changes that were made to them meanwhile the [`Monitor`](super::Monitor) tells.
fn read_elements(channel: &mut Channel, map: &str) -> io::Result<Elements> {
    let mut request = ours();
    request.text(attribute::SET_NAME, map);
    let kind = (message::GETSETELEM, Counted::Own);
    listed(channel, kind, &request, |elements, answer| add_elements(elements, answer.attributes()))
}

fn add_chain(chains: &mut BTreeMap<String, DumpedChain>, chain: Reader<'_>) {
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
    let flags = chain.u32(attribute::CHAIN_FLAGS).unwrap_or_default();
    let handle = chain.u64(attribute::CHAIN_HANDLE);
    let found = DumpedChain { handle, base, is_bound: flags & CHAIN_IS_BOUND != 0 };
    chains.insert(chain.text(attribute::CHAIN_NAME).unwrap_or_default(), found);
}

fn add_rule(rules: &mut BTreeMap<String, Vec<DumpedRule>>, rule: Reader<'_>) {
    let expressions = rule.within(attribute::RULE_EXPRESSIONS);
    let expressions = expressions.iter().map(|(_, element)| DumpedExpression::parse(Reader(element)));
    let found = DumpedRule { handle: rule.u64(attribute::RULE_HANDLE), expressions: expressions.collect() };
    rules.entry(rule.text(attribute::RULE_CHAIN).unwrap_or_default()).or_default().push(found);
}

fn add_object(objects: &mut BTreeMap<(u32, String), DumpedObject>, object: Reader<'_>) {
    let name = object.text(attribute::OBJECT_NAME).unwrap_or_default();
    let kind = object.u32(attribute::OBJECT_TYPE).unwrap_or_default();
    let count = if kind == OBJECT_IS_COUNTER {
        count(object.within(attribute::OBJECT_DATA))
    } else {
        Count::default()
    };
    let handle = object.u64(attribute::OBJECT_HANDLE);
    objects.insert((kind, name), DumpedObject { handle, count });
}

fn add_map(maps: &mut BTreeMap<String, DumpedMap>, set: Reader<'_>) {
    let number = |kind| set.u32(kind).unwrap_or_default();
    let data_type = number(attribute::SET_DATA_TYPE);
    let kind = Kind {
        flags: number(attribute::SET_FLAGS),
        key_length: number(attribute::SET_KEY_LEN),
        data_type,
        data_length: if data_type == DATA_IS_VERDICT { 0 } else { number(attribute::SET_DATA_LEN) },
        extra: extra(set, attribute::SET_EXPR, attribute::SET_EXPRESSIONS).0,
    };
    let handle = set.u64(attribute::SET_HANDLE);
    maps.insert(set.text(attribute::SET_NAME).unwrap_or_default(), DumpedMap { handle, kind });
}

fn add_flowtable(flowtables: &mut BTreeMap<String, Handle>, flowtable: Reader<'_>) {
    let name = flowtable.text(attribute::FLOWTABLE_NAME).unwrap_or_default();
    flowtables.insert(name, flowtable.u64(attribute::FLOWTABLE_HANDLE));
}

fn add_elements(elements: &mut Elements, message: Reader<'_>) {
    for (_, element) in message.within(attribute::ELEMENTS).iter() {
        let element = Reader(element);
        let key = element.within(attribute::ELEMENT_KEY).get(attribute::DATA_VALUE).unwrap_or_default();
        let flags = element.u32(attribute::ELEMENT_FLAGS).unwrap_or_default();
        let data = Data::parse(element.within(attribute::ELEMENT_DATA));
        let (stateful, count) = extra(element, attribute::ELEMENT_EXPR, attribute::ELEMENT_EXPRESSIONS);
        let is_more = element.iter().any(|(kind, _)| {
            matches!(
                kind,
                attribute::ELEMENT_TIMEOUT | attribute::ELEMENT_OBJREF | attribute::ELEMENT_KEY_END
            )
        });
        let extra = if is_more { Extra::Other } else { stateful };
        elements.insert(Place { key: key.to_vec(), flags }, DumpedElement { data, extra, count });
    }
}

/// Returns what is done by the expressions of an element, or of each element of a map: the attribute for one of them, and
/// the one for a list. With what was counted.
fn extra(of: Reader<'_>, one: u16, several: u16) -> (Extra, Count) {
    let listed = of.within(several);
    let mut expressions =
        of.get(one).map(Reader).into_iter().chain(listed.iter().map(|(_, expression)| Reader(expression)));
    let Some(first) = expressions.next() else { return (Extra::Nothing, Count::default()) };
    if expressions.next().is_none() && first.get(attribute::EXPR_NAME) == Some(b"counter\0") {
        (Extra::Counter, count(first.within(attribute::EXPR_DATA)))
    } else {
        (Extra::Other, Count::default())
    }
}

impl DumpedRule {
    /// Returns what its counter has counted.
    pub(super) fn count(&self) -> Count {
        let counter = self.expressions.iter().find(|expression| expression.name == "counter");
        counter.map(|counter| counter.count).unwrap_or_default()
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

/// Returns the attributes of an expression in a form that can be compared; none of a counter, which has only counts.
pub(super) fn attributes(name: &str, data: Reader<'_>) -> BTreeMap<u16, Value> {
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

fn count(data: Reader<'_>) -> Count {
    let number = |kind| data.u64(kind).unwrap_or_default();
    Count { packets: number(attribute::COUNTER_PACKETS), bytes: number(attribute::COUNTER_BYTES) }
}

/// Returns the number of the ruleset, which every change raises.
fn generation(channel: &mut Channel) -> io::Result<Option<u32>> {
    channel.get(message::GETGEN, &Attributes::default(), |answer| {
        answer.attributes().u32(attribute::GENERATION_ID)
    })
}

#[cfg(test)]
mod tests;
