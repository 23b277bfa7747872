//! Rules as the kernel's expressions: small instructions that load something into a register, compare it, or decide. The
//! order of their attributes and the numbering of registers are those in which the kernel gives them back.

use super::data::{Data, value};
use super::layout::{Cut, Layout};
use super::numbers::{OBJECT_IS_COUNTER, PAYLOAD_OF_TRANSPORT, attribute, ct, meta};
use super::wire::Attributes;
use crate::kernel::Count;
use crate::policy::table::{Expr, Family, Map};
use crate::policy::{TCP, Table};

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    /// The kernel's name for it.
    pub(super) name: &'static str,
    /// Its attributes.
    pub(super) data: Attributes,
}

/// Returns a rule as the kernel's expressions; counters begin at zero.
pub(super) fn expressions(table: &Table, rule: &[Expr]) -> Vec<Expression> {
    rule.iter().flat_map(|expr| expression(table, expr)).collect()
}

/// Sets what a counting rule begins with.
pub(super) fn begin_with(rule: &mut [Expression], count: Count) {
    for expression in rule.iter_mut().filter(|expression| expression.name == "counter") {
        expression.data = counts(count);
    }
}

fn expression(table: &Table, expr: &Expr) -> Vec<Expression> {
    match expr {
        Expr::InputInterface(name) => interface(meta::IIFNAME, name),
        Expr::OutputInterface(name) => interface(meta::OIFNAME, name),
        Expr::Family(family) => {
            let number = match family {
                Family::V4 => 2,
                Family::V6 => 10,
            };
            vec![packet(meta::NFPROTO), compare(Comparison::Equal, &[number])]
        }
        Expr::Untracked => state(ct::STATE_INVALID | ct::STATE_UNTRACKED),
        Expr::MidStream => {
            let mut expressions = vec![packet(meta::L4PROTO), compare(Comparison::Equal, &[TCP])];
            expressions.extend(state(ct::STATE_NEW));
            expressions.extend([
                transport(TCP_FLAGS_AT, 1),
                mask(0, &[SYN | ACK]),
                compare(Comparison::NotEqual, &[SYN]),
            ]);
            expressions
        }
        Expr::Limit { per_second, burst } => {
            // Per second, in packets, not inverted.
            let mut data = Attributes::default();
            data.u64(attribute::LIMIT_RATE, u64::from(*per_second))
                .u64(attribute::LIMIT_UNIT, 1)
                .u32(attribute::LIMIT_BURST, *burst)
                .u32(attribute::LIMIT_TYPE, 0)
                .u32(attribute::LIMIT_FLAGS, 0);
            vec![Expression { name: "limit", data }]
        }
        Expr::Log { prefix } => {
            let mut data = Attributes::default();
            data.text(attribute::LOG_PREFIX, prefix).u32(attribute::LOG_LEVEL, LOG_LEVEL_WARNING);
            vec![Expression { name: "log", data }]
        }
        Expr::Count(name) => {
            let mut data = Attributes::default();
            data.u32(attribute::OBJREF_TYPE, OBJECT_IS_COUNTER).text(attribute::OBJREF_NAME, name);
            vec![Expression { name: "objref", data }]
        }
        Expr::CountRule(_) => vec![Expression { name: "counter", data: counts(Count::default()) }],
        Expr::Lookup(list) => lookups(table, list),
        Expr::Verdict(verdict) => {
            let mut data = Attributes::default();
            data.u32(attribute::IMMEDIATE_DREG, REGISTER_VERDICT)
                .nest(attribute::IMMEDIATE_DATA, &Data::from(verdict).attributes());
            vec![Expression { name: "immediate", data }]
        }
    }
}

/// Where a TCP header has its flags, and two of them.
const TCP_FLAGS_AT: u32 = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

const LOG_LEVEL_WARNING: u32 = 4;
const REGISTER_VERDICT: u32 = 0;

/// Interface names are compared whole, with the zeros that fill them up.
fn interface(key: u32, name: &str) -> Vec<Expression> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(16, 0);
    vec![packet(key), compare(Comparison::Equal, &padded)]
}

/// Returns the number of a register by its 32-bit word, as the kernel dumps it: where four words make a 128-bit one, by
/// that one's number.
fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

/// Loads something of the packet into the first register.
fn packet(key: u32) -> Expression {
    let mut data = Attributes::default();
    data.u32(attribute::META_KEY, key).u32(attribute::META_DREG, register(0));
    Expression { name: "meta", data }
}

/// Loads bytes of the transport header into the first register.
fn transport(offset: u32, length: u32) -> Expression {
    let mut data = Attributes::default();
    data.u32(attribute::PAYLOAD_DREG, register(0))
        .u32(attribute::PAYLOAD_BASE, PAYLOAD_OF_TRANSPORT)
        .u32(attribute::PAYLOAD_OFFSET, offset)
        .u32(attribute::PAYLOAD_LEN, length);
    Expression { name: "payload", data }
}

/// Asks whether the connection is in one of these states.
fn state(any_of: u32) -> Vec<Expression> {
    vec![
        tracked(ct::STATE, None, 0),
        mask(0, &any_of.to_ne_bytes()),
        compare(Comparison::NotEqual, &0_u32.to_ne_bytes()),
    ]
}

/// Loads what connection tracking knows into the register at `word`.
fn tracked(key: u32, direction: Option<u8>, word: u32) -> Expression {
    let mut data = Attributes::default();
    data.u32(attribute::CT_KEY, key).u32(attribute::CT_DREG, register(word));
    if let Some(direction) = direction {
        data.bytes(attribute::CT_DIRECTION, &[direction]);
    }
    Expression { name: "ct", data }
}

#[derive(Clone, Copy)]
enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

/// Compares the first register.
fn compare(comparison: Comparison, with: &[u8]) -> Expression {
    let mut data = Attributes::default();
    data.u32(attribute::CMP_SREG, register(0))
        .u32(attribute::CMP_OP, comparison as u32)
        .nest(attribute::CMP_DATA, &value(with));
    Expression { name: "cmp", data }
}

/// Masks the register at `word` in place.
fn mask(word: u32, bits: &[u8]) -> Expression {
    let length = u32::try_from(bits.len()).expect("a mask is 16 bytes at most");
    let mut data = Attributes::default();
    data.u32(attribute::BITWISE_SREG, register(word))
        .u32(attribute::BITWISE_DREG, register(word))
        .u32(attribute::BITWISE_LEN, length)
        .u32(attribute::BITWISE_OP, 0)
        .nest(attribute::BITWISE_MASK, &value(bits))
        .nest(attribute::BITWISE_XOR, &value(&vec![0; bits.len()]));
    Expression { name: "bitwise", data }
}

/// Loads the parts of the original tuple side by side, as many as the map that looks at most of them needs, and looks them
/// up in one map after the other: the key of each is what the registers hold from the same one on.
///
/// What gives a class writes a word of no meaning before it, so that it goes to the register before that of the address:
/// `nft` (1.0.6) ends with a failed assertion if a part of a key is what a map gave, but knows registers only by the first
/// of what was loaded. Then the last part is loaded first, as the word before it is overwritten by the part before it.
fn lookups(table: &Table, list: &[usize]) -> Vec<Expression> {
    let maps = list.iter().map(|map| table.maps.get(*map).expect("a table has the maps it looks up"));
    let maps: Vec<&Map> = maps.collect();
    let Some(most) = maps.iter().max_by_key(|map| map.shape.service) else { return Vec::new() };
    let parts: Vec<_> = Layout::of(most.shape).parts().collect();
    let first = u32::from(parts.iter().any(|part| matches!(part.cut, Cut::Class(_))));
    let mut word = first;
    let mut loads: Vec<Vec<Expression>> = Vec::new();
    for part in &parts {
        let load = tracked(part.key, part.direction, word);
        loads.push(match &part.cut {
            Cut::Nothing => vec![load],
            Cut::Bits(bits) => vec![load, mask(word, bits)],
            Cut::Class(position) => {
                let classes = table.classes.get(*position).expect("a table has the classes its maps look at");
                vec![load, lookup(&classes.name, register(word), register(word - 1))]
            }
        });
        word += part.words;
    }
    if first > 0 {
        loads.reverse();
    }
    let mut expressions = loads.concat();
    expressions.extend(maps.iter().map(|map| lookup(&map.name, register(first), REGISTER_VERDICT)));
    expressions
}

/// Looks up in a map what is in the registers from `key` on; what is found goes to `found`.
fn lookup(map: &str, key: u32, found: u32) -> Expression {
    let mut data = Attributes::default();
    data.text(attribute::LOOKUP_SET, map)
        .u32(attribute::LOOKUP_SREG, key)
        .u32(attribute::LOOKUP_DREG, found)
        .u32(attribute::LOOKUP_FLAGS, 0);
    Expression { name: "lookup", data }
}

/// Returns an expression by its name.
pub(super) fn named(name: &str, data: &Attributes) -> Attributes {
    let mut expression = Attributes::default();
    expression.text(attribute::EXPR_NAME, name).nest(attribute::EXPR_DATA, data);
    expression
}

/// Returns the attributes of a counter.
pub(super) fn counts(count: Count) -> Attributes {
    let mut data = Attributes::default();
    data.u64(attribute::COUNTER_BYTES, count.bytes).u64(attribute::COUNTER_PACKETS, count.packets);
    data
}
