//! A table's objects as nftables messages: counters, chains, maps with their elements, rules. What rules are made of is in
//! `expression`, what is in maps in `maps`.

use super::carry::Carried;
use super::data::value;
use super::expression::{Expression, counts, named};
use super::maps::{Element, Extra, Place, Stored};
use super::numbers::{ELEMENT_IS_END, OBJECT_IS_COUNTER, attribute, message};
use super::wire::{Attributes, NLM_F_APPEND, NLM_F_CREATE};
use crate::kernel::Count;
use crate::policy::Table;
use crate::policy::table::{Chain, Hook};

/// Priority `filter`.
const PRIORITY_FILTER: i32 = 0;
/// `NF_ACCEPT`, the policy of base chains.
const POLICY_ACCEPT: u32 = 1;

/// Bytes of elements in one message; an attribute holds 64 KiB at most.
const ELEMENTS_PER_MESSAGE: usize = 48 * 1024;

/// A message to send: type, flags, attributes.
pub(super) type Request = (u16, u16, Attributes);

/// Returns the attributes that name our table.
pub(super) fn ours() -> Attributes {
    let mut attributes = Attributes::default();
    attributes.text(attribute::TABLE, Table::NAME);
    attributes
}

/// Returns the message that makes the table.
pub(super) fn table() -> Request {
    let mut attributes = ours();
    attributes.u32(attribute::TABLE_FLAGS, 0);
    (message::NEWTABLE, NLM_F_CREATE, attributes)
}

/// Returns the message that removes the table with all that is in it.
pub(super) fn no_table() -> Request {
    (message::DELTABLE, 0, ours())
}

/// Returns the message that removes all rules of all chains.
pub(super) fn no_rules() -> Request {
    (message::DELRULE, 0, ours())
}

/// Returns the message that removes a map with its entries; no rule may use it any more.
pub(super) fn no_map(name: &str) -> Request {
    let mut attributes = ours();
    attributes.text(attribute::SET_NAME, name);
    (message::DELSET, 0, attributes)
}

/// Returns the message that removes a chain without rules; no rule or entry may lead to it any more.
pub(super) fn no_chain(name: &str) -> Request {
    let mut attributes = ours();
    attributes.text(attribute::CHAIN_NAME, name);
    (message::DELCHAIN, 0, attributes)
}

/// Returns the message that removes an object of this type that no rule or entry uses any more.
pub(super) fn no_object(kind: u32, name: &str) -> Request {
    let mut attributes = ours();
    attributes.text(attribute::OBJECT_NAME, name).u32(attribute::OBJECT_TYPE, kind);
    (message::DELOBJ, 0, attributes)
}

/// Returns the message that removes a flowtable that no rule uses any more.
pub(super) fn no_flowtable(name: &str) -> Request {
    let mut attributes = ours();
    attributes.text(attribute::FLOWTABLE_NAME, name);
    (message::DELFLOWTABLE, 0, attributes)
}

/// Returns the message that makes a counter.
pub(super) fn counter(name: &str, count: Count) -> Request {
    let mut attributes = ours();
    attributes
        .text(attribute::OBJECT_NAME, name)
        .u32(attribute::OBJECT_TYPE, OBJECT_IS_COUNTER)
        .nest(attribute::OBJECT_DATA, &counts(count));
    (message::NEWOBJ, NLM_F_CREATE, attributes)
}

/// Returns the message that makes a chain.
pub(super) fn chain(chain: &Chain) -> Request {
    let mut attributes = ours();
    attributes.text(attribute::CHAIN_NAME, &chain.name);
    if let Some(hook) = chain.hook {
        let mut at = Attributes::default();
        at.u32(attribute::HOOK_NUMBER, hook_number(hook))
            .bytes(attribute::HOOK_PRIORITY, &PRIORITY_FILTER.to_be_bytes());
        attributes
            .nest(attribute::CHAIN_HOOK, &at)
            .u32(attribute::CHAIN_POLICY, POLICY_ACCEPT)
            .text(attribute::CHAIN_TYPE, "filter");
    }
    (message::NEWCHAIN, NLM_F_CREATE, attributes)
}

/// Returns the kernel's number for a hook.
pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
    }
}

/// Returns the message that makes a map; `id` tells maps of one transaction apart.
pub(super) fn map(map: &Stored<'_>, id: u32) -> Request {
    let mut attributes = ours();
    attributes
        .text(attribute::SET_NAME, map.name)
        .u32(attribute::SET_FLAGS, map.kind.flags)
        .u32(attribute::SET_KEY_TYPE, map.key_type)
        .u32(attribute::SET_KEY_LEN, map.kind.key_length)
        .u32(attribute::SET_DATA_TYPE, map.kind.data_type)
        .u32(attribute::SET_ID, id);
    if map.kind.data_length > 0 {
        attributes.u32(attribute::SET_DATA_LEN, map.kind.data_length);
    }
    if let Some(size) = map.size {
        let mut description = Attributes::default();
        description.u32(attribute::DESC_SIZE, size);
        attributes.nest(attribute::SET_DESC, &description);
    }
    if map.kind.extra == Extra::Counter {
        attributes.nest(attribute::SET_EXPR, &named("counter", &counts(Count::default())));
    }
    (message::NEWSET, NLM_F_CREATE, attributes)
}

/// Returns the messages that fill a map. The end of an interval is in the message of its start: one without an end would
/// reach to the last address.
pub(super) fn elements<'a>(
    map: Stored<'a>,
    id: u32,
    table: &'a Table,
    carried: &mut Carried<'a>,
) -> impl Iterator<Item = Request> {
    let Stored { name, kind, elements, .. } = map;
    let mut left = elements.peekable();
    let is_end = |element: &Element<'_>| element.place.flags == ELEMENT_IS_END;
    std::iter::from_fn(move || {
        let mut list = Attributes::default();
        while let Some(next) = left.next_if(|next| list.len() < ELEMENTS_PER_MESSAGE || is_end(next)) {
            // An element that is not said to count gets a counter of its own all the same, if the map has them.
            let counts = kind.extra == Extra::Counter && next.place.flags == 0;
            let count = counts.then(|| carried.entry(table, name, &next));
            list.nest(attribute::LIST_ELEMENT, &element(&next, count));
        }
        (list.len() > 0).then(|| {
            let mut attributes = ours();
            attributes
                .text(attribute::SET_NAME, name)
                .u32(attribute::ELEMENTS_SET_ID, id)
                .nest(attribute::ELEMENTS, &list);
            (message::NEWSETELEM, NLM_F_CREATE, attributes)
        })
    })
}

fn element(element: &Element<'_>, count: Option<Count>) -> Attributes {
    let Place { key, flags } = &element.place;
    let mut attributes = Attributes::default();
    if *flags != 0 {
        attributes.u32(attribute::ELEMENT_FLAGS, *flags);
    }
    if !key.is_empty() {
        attributes.nest(attribute::ELEMENT_KEY, &value(key));
    }
    if let Some(data) = &element.data {
        attributes.nest(attribute::ELEMENT_DATA, &data.attributes());
    }
    if let Some(count) = count {
        attributes.nest(attribute::ELEMENT_EXPR, &named("counter", &counts(count)));
    }
    attributes
}

/// Returns the message that appends a rule to a chain.
pub(super) fn rule(chain: &str, expressions: &[Expression]) -> Request {
    let mut list = Attributes::default();
    for expression in expressions {
        list.nest(attribute::LIST_ELEMENT, &named(expression.name, &expression.data));
    }
    let mut attributes = ours();
    attributes.text(attribute::RULE_CHAIN, chain).nest(attribute::RULE_EXPRESSIONS, &list);
    (message::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes)
}
