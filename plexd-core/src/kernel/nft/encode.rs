//! A table as nftables messages: every chain, map, entry and rule as attributes, and what of it can be compared with a
//! dump. Order of the attributes and numbering of the registers are those in which the kernel gives them back.

use std::net::IpAddr;

use ipnet::IpNet;

use super::wire::{Attributes, NLM_F_APPEND, NLM_F_CREATE};
use crate::kernel::Count;
use crate::policy::table::{Chain, Detail, Expr, Family, Hook, Key, Map, Shape, Table, Verdict};
use crate::policy::{Service, TCP, UDP};

/// Message types of nftables (`enum nf_tables_msg_types`).
pub(super) mod message {
    pub(in super::super) const NEWTABLE: u16 = 0;
    pub(in super::super) const GETTABLE: u16 = 1;
    pub(in super::super) const DELTABLE: u16 = 2;
    pub(in super::super) const NEWCHAIN: u16 = 3;
    pub(in super::super) const GETCHAIN: u16 = 4;
    pub(in super::super) const NEWRULE: u16 = 6;
    pub(in super::super) const GETRULE: u16 = 7;
    pub(in super::super) const NEWSET: u16 = 9;
    pub(in super::super) const GETSET: u16 = 10;
    pub(in super::super) const NEWSETELEM: u16 = 12;
    pub(in super::super) const GETSETELEM: u16 = 13;
    pub(in super::super) const NEWGEN: u16 = 15;
    pub(in super::super) const GETGEN: u16 = 16;
    pub(in super::super) const NEWOBJ: u16 = 18;
    pub(in super::super) const GETOBJ: u16 = 19;
}

/// Attribute types, by what they are of (`enum nft_*_attributes`).
pub(super) mod attribute {
    /// In messages about a table and all that is in one.
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const TABLE_FLAGS: u16 = 2;

    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;

    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
    pub(in super::super) const LIST_ELEMENT: u16 = 1;
    pub(in super::super) const EXPR_NAME: u16 = 1;
    pub(in super::super) const EXPR_DATA: u16 = 2;

    pub(in super::super) const SET_NAME: u16 = 2;
    pub(in super::super) const SET_FLAGS: u16 = 3;
    pub(in super::super) const SET_KEY_TYPE: u16 = 4;
    pub(in super::super) const SET_KEY_LEN: u16 = 5;
    pub(in super::super) const SET_DATA_TYPE: u16 = 6;
    pub(in super::super) const SET_DESC: u16 = 9;
    pub(in super::super) const SET_ID: u16 = 10;
    pub(in super::super) const SET_EXPR: u16 = 17;
    pub(in super::super) const DESC_SIZE: u16 = 1;

    pub(in super::super) const ELEMENTS: u16 = 3;
    pub(in super::super) const ELEMENT_KEY: u16 = 1;
    pub(in super::super) const ELEMENT_DATA: u16 = 2;
    pub(in super::super) const ELEMENT_FLAGS: u16 = 3;
    pub(in super::super) const ELEMENT_EXPR: u16 = 7;

    pub(in super::super) const DATA_VALUE: u16 = 1;
    pub(in super::super) const DATA_VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;

    pub(in super::super) const OBJECT_NAME: u16 = 2;
    pub(in super::super) const OBJECT_TYPE: u16 = 3;
    pub(in super::super) const OBJECT_DATA: u16 = 4;
    pub(in super::super) const COUNTER_BYTES: u16 = 1;
    pub(in super::super) const COUNTER_PACKETS: u16 = 2;

    pub(in super::super) const GENERATION_ID: u16 = 1;
}

/// `NFT_SET_MAP`.
pub(super) const SET_IS_MAP: u32 = 0x8;
/// `NFT_DATA_VERDICT`: a map's values are verdicts.
pub(super) const DATA_IS_VERDICT: u32 = 0xffff_ff00;
/// `NFT_OBJECT_COUNTER`.
pub(super) const OBJECT_IS_COUNTER: u32 = 1;
/// Priority `filter`.
const PRIORITY_FILTER: i32 = 0;
/// `NF_ACCEPT`, `NF_DROP`, `NFT_JUMP`, `NFT_GOTO`.
const ACCEPT: i32 = 1;
const DROP: i32 = 0;
const JUMP: i32 = -3;
const GOTO: i32 = -4;

/// Bytes of entries in one message; an attribute holds 64 KiB at most.
const ENTRIES_PER_MESSAGE: usize = 48 * 1024;

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    /// The kernel's name for it.
    pub(super) name: &'static str,
    /// Its attributes.
    pub(super) data: Attributes,
}

/// What a new table's counters begin with.
pub(super) trait Carried {
    /// Returns what the named counter is to begin with.
    fn named(&self, counter: &str) -> Count;
    /// Returns what the entry of a map is to begin with.
    fn entry(&self, map: &str, key: &[u8], verdict: &Verdict) -> Count;
    /// Returns what a counting rule is to begin with.
    fn rule(&self, chain: &str, rule: &[Expression]) -> Count;
}

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
            .bytes(attribute::CHAIN_POLICY, &ACCEPT.to_be_bytes())
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
pub(super) fn map(map: &Map, id: u32) -> Request {
    let layout = Layout::of(map.shape);
    let size = u32::try_from(map.entries.len()).expect("entries are bounded by the contract");
    let mut description = Attributes::default();
    description.u32(attribute::DESC_SIZE, size);
    let mut attributes = ours();
    attributes
        .text(attribute::SET_NAME, &map.name)
        .u32(attribute::SET_FLAGS, SET_IS_MAP)
        .u32(attribute::SET_KEY_TYPE, layout.key_type())
        .u32(attribute::SET_KEY_LEN, layout.key_length())
        .u32(attribute::SET_DATA_TYPE, DATA_IS_VERDICT)
        .nest(attribute::SET_DESC, &description)
        .u32(attribute::SET_ID, id)
        .nest(attribute::SET_EXPR, &named("counter", &counts(Count::default())));
    (message::NEWSET, NLM_F_CREATE, attributes)
}

/// Returns the messages that fill a map.
pub(super) fn entries<'a>(
    map: &'a Map,
    id: u32,
    carried: &'a dyn Carried,
) -> impl Iterator<Item = Request> + use<'a> {
    let mut left = map.entries.iter();
    std::iter::from_fn(move || {
        let mut list = Attributes::default();
        while list.len() < ENTRIES_PER_MESSAGE {
            let Some((key, entry)) = left.next() else { break };
            let key = key_bytes(key, map.shape);
            let count = carried.entry(&map.name, &key, &entry.verdict);
            list.nest(attribute::LIST_ELEMENT, &element(&key, &entry.verdict, count));
        }
        (list.len() > 0).then(|| {
            let mut attributes = ours();
            // The type numbers of a list of elements are those of a set's name and id but for these.
            attributes.text(attribute::SET_NAME, &map.name).u32(4, id).nest(attribute::ELEMENTS, &list);
            (message::NEWSETELEM, NLM_F_CREATE, attributes)
        })
    })
}

fn element(key: &[u8], verdict: &Verdict, count: Count) -> Attributes {
    let mut element = Attributes::default();
    element
        .nest(attribute::ELEMENT_KEY, &value(key))
        .nest(attribute::ELEMENT_DATA, &verdict_data(verdict))
        .nest(attribute::ELEMENT_EXPR, &named("counter", &counts(count)));
    element
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
        Expr::InputInterface(name) => interface(META_IIFNAME, name),
        Expr::OutputInterface(name) => interface(META_OIFNAME, name),
        Expr::Family(family) => {
            let number = match family {
                Family::V4 => 2,
                Family::V6 => 10,
            };
            vec![meta(META_NFPROTO), compare(Comparison::Equal, &[number])]
        }
        Expr::Untracked => {
            let states = (CT_STATE_INVALID | CT_STATE_UNTRACKED).to_ne_bytes();
            vec![
                tracked(CT_STATE, None, 0),
                mask(0, &states),
                compare(Comparison::NotEqual, &0_u32.to_ne_bytes()),
            ]
        }
        Expr::Limit { per_second, burst } => {
            // Per second, in packets, not inverted.
            let mut data = Attributes::default();
            data.u64(1, u64::from(*per_second)).u64(2, 1).u32(3, *burst).u32(4, 0).u32(5, 0);
            vec![Expression { name: "limit", data }]
        }
        Expr::Log { prefix } => {
            let mut data = Attributes::default();
            data.text(2, prefix).u32(5, LOG_LEVEL_WARNING);
            vec![Expression { name: "log", data }]
        }
        Expr::Count(name) => {
            let mut data = Attributes::default();
            data.u32(1, OBJECT_IS_COUNTER).text(2, name);
            vec![Expression { name: "objref", data }]
        }
        Expr::CountRule(_) => vec![Expression { name: "counter", data: counts(Count::default()) }],
        Expr::Lookup(name) => lookup(table, name),
        Expr::Verdict(verdict) => {
            let mut data = Attributes::default();
            data.u32(1, REGISTER_VERDICT).nest(2, &verdict_data(verdict));
            vec![Expression { name: "immediate", data }]
        }
    }
}

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const CT_STATE: u32 = 0;
const CT_PROTOCOL: u32 = 10;
const CT_PORT_DESTINATION: u32 = 12;
const CT_SOURCE_V4: u32 = 19;
const CT_DESTINATION_V4: u32 = 20;
const CT_SOURCE_V6: u32 = 21;
const CT_DESTINATION_V6: u32 = 22;
/// `NF_CT_STATE_INVALID_BIT`, `NF_CT_STATE_UNTRACKED_BIT`.
const CT_STATE_INVALID: u32 = 1;
const CT_STATE_UNTRACKED: u32 = 1 << 6;
/// `IP_CT_DIR_ORIGINAL`.
const ORIGINAL: u8 = 0;
const LOG_LEVEL_WARNING: u32 = 4;
const REGISTER_VERDICT: u32 = 0;

/// Interface names are compared whole, with the zeros that fill them up.
fn interface(key: u32, name: &str) -> Vec<Expression> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(16, 0);
    vec![meta(key), compare(Comparison::Equal, &padded)]
}

/// Returns the number of a register by its 32-bit word, as the kernel dumps it: where four words make a 128-bit one, by
/// that one's number.
fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

fn meta(key: u32) -> Expression {
    let mut data = Attributes::default();
    data.u32(2, key).u32(1, register(0));
    Expression { name: "meta", data }
}

/// Loads what connection tracking knows into the register at `word`.
fn tracked(key: u32, direction: Option<u8>, word: u32) -> Expression {
    let mut data = Attributes::default();
    data.u32(2, key).u32(1, register(word));
    if let Some(direction) = direction {
        data.bytes(3, &[direction]);
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
    data.u32(1, register(0)).u32(2, comparison as u32).nest(3, &value(with));
    Expression { name: "cmp", data }
}

/// Masks the register at `word` in place.
fn mask(word: u32, bits: &[u8]) -> Expression {
    let length = u32::try_from(bits.len()).expect("a mask is 16 bytes at most");
    let mut data = Attributes::default();
    data.u32(1, register(word))
        .u32(2, register(word))
        .u32(3, length)
        .u32(6, 0)
        .nest(4, &value(bits))
        .nest(5, &value(&vec![0; bits.len()]));
    Expression { name: "bitwise", data }
}

/// Loads the parts of the original tuple that the map looks at side by side, and looks them up.
fn lookup(table: &Table, name: &str) -> Vec<Expression> {
    let shape = table.maps.iter().find(|map| map.name == name).map(|map| map.shape);
    let layout = Layout::of(shape.expect("a compiled table has the maps it looks up"));
    let mut expressions = Vec::new();
    let mut word = 0;
    for part in layout.parts() {
        expressions.push(tracked(part.key, part.direction, word));
        if let Some(bits) = part.mask {
            expressions.push(mask(word, &bits));
        }
        word += part.words;
    }
    let mut data = Attributes::default();
    data.text(1, name).u32(2, register(0)).u32(3, REGISTER_VERDICT).u32(5, 0);
    expressions.push(Expression { name: "lookup", data });
    expressions
}

/// How the key of a map lies in registers: in order source, destination, protocol, port, those that count.
struct Layout(Shape);

/// A part of a key.
struct Part {
    /// What connection tracking is asked for.
    key: u32,
    /// Of which direction, where directions differ.
    direction: Option<u8>,
    /// Registers of 32 bits.
    words: u32,
    /// The bits that count, unless all do.
    mask: Option<Vec<u8>>,
    /// Number of the type in `nft`, which alone reads it.
    datatype: u32,
}

impl Layout {
    fn of(shape: Shape) -> Self {
        Self(shape)
    }

    fn parts(&self) -> impl Iterator<Item = Part> {
        let Shape { family, source, destination, service } = self.0;
        let (source_key, destination_key) = match family {
            Family::V4 => (CT_SOURCE_V4, CT_DESTINATION_V4),
            Family::V6 => (CT_SOURCE_V6, CT_DESTINATION_V6),
        };
        let address = move |key, bits| {
            let (words, datatype) = match family {
                Family::V4 => (1, 7),
                Family::V6 => (4, 8),
            };
            let mask = prefix_mask(family, bits);
            (bits > 0).then_some(Part { key, direction: Some(ORIGINAL), words, mask, datatype })
        };
        let number = |key, direction, datatype| Part { key, direction, words: 1, mask: None, datatype };
        let protocol = (service >= Detail::Protocol).then(|| number(CT_PROTOCOL, None, 12));
        let port = (service == Detail::Port).then(|| number(CT_PORT_DESTINATION, Some(ORIGINAL), 13));
        [address(source_key, source), address(destination_key, destination), protocol, port]
            .into_iter()
            .flatten()
    }

    fn key_length(&self) -> u32 {
        self.parts().map(|part| part.words * 4).sum()
    }

    /// `nft` packs the types of a concatenation, six bits each.
    fn key_type(&self) -> u32 {
        self.parts().fold(0, |packed, part| packed << 6 | part.datatype)
    }
}

/// Returns the mask of a prefix; `None` where all bits count.
fn prefix_mask(family: Family, bits: u8) -> Option<Vec<u8>> {
    match family {
        Family::V4 if bits < 32 => Some((!(u32::MAX >> bits)).to_be_bytes().to_vec()),
        Family::V6 if bits < 128 => Some((!(u128::MAX >> bits)).to_be_bytes().to_vec()),
        Family::V4 | Family::V6 => None,
    }
}

/// Returns a key as it lies in the registers.
pub(super) fn key_bytes(key: &Key, shape: Shape) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    let mut address = |net: &IpNet| match net.network() {
        IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
    };
    if shape.source > 0 {
        address(&key.source);
    }
    if shape.destination > 0 {
        address(&key.destination);
    }
    let (protocol, port) = match key.service {
        Service::Any => return bytes,
        Service::Tcp(port) => (TCP, port),
        Service::Udp(port) => (UDP, port),
    };
    bytes.extend_from_slice(&[protocol, 0, 0, 0]);
    if let Some(port) = port {
        bytes.extend_from_slice(&port.get().to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
    }
    bytes
}

/// Returns the flags, key type and key length of a map, as a dump has them.
pub(super) fn map_header(map: &Map) -> (u32, u32, u32) {
    let layout = Layout::of(map.shape);
    (SET_IS_MAP, layout.key_length(), DATA_IS_VERDICT)
}

fn named(name: &str, data: &Attributes) -> Attributes {
    let mut expression = Attributes::default();
    expression.text(attribute::EXPR_NAME, name).nest(attribute::EXPR_DATA, data);
    expression
}

fn counts(count: Count) -> Attributes {
    let mut data = Attributes::default();
    data.u64(attribute::COUNTER_BYTES, count.bytes).u64(attribute::COUNTER_PACKETS, count.packets);
    data
}

fn value(bytes: &[u8]) -> Attributes {
    let mut data = Attributes::default();
    data.bytes(attribute::DATA_VALUE, bytes);
    data
}

/// Returns the kernel's code for a verdict, and the chain it names.
pub(super) fn verdict_code(verdict: &Verdict) -> (i32, Option<&str>) {
    match verdict {
        Verdict::Accept => (ACCEPT, None),
        Verdict::Drop => (DROP, None),
        Verdict::Jump(chain) => (JUMP, Some(chain)),
        Verdict::Goto(chain) => (GOTO, Some(chain)),
    }
}

fn verdict_data(verdict: &Verdict) -> Attributes {
    let (code, chain) = verdict_code(verdict);
    let mut inner = Attributes::default();
    inner.bytes(attribute::VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        inner.text(attribute::VERDICT_CHAIN, chain);
    }
    let mut data = Attributes::default();
    data.nest(attribute::DATA_VERDICT, &inner);
    data
}
