//! The table's maps as the kernel keeps them, verdict maps and classes alike: of which kind they are, and element by
//! element what is in them. What is sent and what is expected back is made here, so that it is the same.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::classes;
use super::data::Data;
use super::layout::{Layout, address_from, key_bytes};
use super::numbers::{DATA_IS_VERDICT, ELEMENT_IS_END, ELEMENT_IS_REST, SET_IS_INTERVAL, SET_IS_MAP};
use crate::policy::Table;
use crate::policy::table::{Expr, Key, Map};

/// A map that the table is to have.
pub(super) struct Stored<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Of which kind it is.
    pub(super) kind: Kind,
    /// Number of the key's type in `nft`, which alone reads it.
    pub(super) key_type: u32,
    /// How many entries it has room for; without bound if this is not said.
    pub(super) size: Option<u32>,
    /// What is in it, in the order of its keys.
    pub(super) elements: Box<dyn Iterator<Item = Element<'a>> + 'a>,
}

/// Of which kind a map is, as a dump has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kind {
    /// `NFT_SET_*`.
    pub(super) flags: u32,
    /// Bytes of a key.
    pub(super) key_length: u32,
    /// Number of the data's type in `nft`, or that they are verdicts.
    pub(super) data_type: u32,
    /// Bytes of the data; 0 for verdicts, whose length is the kernel's business.
    pub(super) data_length: u32,
    /// What each of its elements does besides.
    pub(super) extra: Extra,
}

/// What an element does beside saying something, each time it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Extra {
    /// Nothing.
    #[default]
    Nothing,
    /// It counts.
    Counter,
    /// Something else, by which a packet may also be as if it had not been found; or it is found no longer after a time, or
    /// for more than its key. None of ours does.
    Other,
}

/// An element of a map.
pub(super) struct Element<'a> {
    /// What it is, for people.
    pub(super) at: At<'a>,
    /// Where it is in the kernel.
    pub(super) place: Place,
    /// What it says; an end says nothing.
    pub(super) data: Option<Data>,
    /// The rule that it is of, by its position among all rules; classes are of none.
    pub(super) rule: Option<usize>,
}

/// Where an element of a map is: no two are in the same place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Its key; empty for the element that stands for all else.
    pub(super) key: Vec<u8>,
    /// `NFT_SET_ELEM_*`: where an interval ends another one may begin.
    pub(super) flags: u32,
}

/// What an element of a map is.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    /// An entry of a verdict map.
    Key(&'a Key),
    /// Where a class begins.
    Start(IpAddr),
    /// The first address after a class.
    End(IpAddr),
    /// What stands for all that has no element.
    Rest,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "{key}"),
            Self::Start(address) => write!(f, "addresses from {address} on"),
            Self::End(address) => write!(f, "the end of a class before {address}"),
            Self::Rest => write!(f, "all else"),
        }
    }
}

impl Element<'_> {
    /// Returns the element that stands for all that has none.
    pub(super) fn rest(data: Data) -> Self {
        let place = Place { key: Vec::new(), flags: ELEMENT_IS_REST };
        Self { at: At::Rest, place, data: Some(data), rule: None }
    }
}

impl Place {
    /// Returns where the entry of a verdict map is.
    pub(super) fn of(key: &Key, map: &Map) -> Self {
        Self { key: key_bytes(key, map.shape), flags: 0 }
    }

    /// Returns what an element in this place would be, for people, in a map of this kind.
    pub(super) fn shown(&self, kind: Kind) -> String {
        let address = (kind.flags & SET_IS_INTERVAL != 0).then(|| address_from(&self.key)).flatten();
        match (self.flags, address) {
            (ELEMENT_IS_REST, _) => At::Rest.to_string(),
            (ELEMENT_IS_END, Some(address)) => At::End(address).to_string(),
            (_, Some(address)) => At::Start(address).to_string(),
            (_, None) => format!("the key {:02x?}", self.key),
        }
    }
}

/// Returns all maps of a table: classes before the maps whose keys are made of them.
pub(super) fn of(table: &Table) -> impl Iterator<Item = Stored<'_>> {
    let passed_over = passed_over(table);
    let maps = table.maps.iter().enumerate();
    let maps = maps.map(move |(position, map)| verdicts(map, passed_over.contains(&position)));
    table.classes.iter().map(classes::stored).chain(maps)
}

/// Returns the positions of the maps after which a rule may go on with the next map of its list.
fn passed_over(table: &Table) -> BTreeSet<usize> {
    let lists =
        table.chains.iter().flat_map(|chain| chain.rules.iter().flatten()).filter_map(|expr| match expr {
            Expr::Lookup(list) => list.split_last(),
            _ => None,
        });
    lists.flat_map(|(_, before)| before).copied().collect()
}

/// Returns a verdict map. In one after which a rule goes on, what has no entry has a verdict that says so: without it the
/// rule would end there.
fn verdicts(map: &Map, is_passed_over: bool) -> Stored<'_> {
    let layout = Layout::of(map.shape);
    let size = u32::try_from(map.entries.len()).expect("entries are bounded by the contract");
    let entries = map.entries.iter().map(|(key, entry)| Element {
        at: At::Key(key),
        place: Place::of(key, map),
        data: Some(Data::from(&entry.verdict)),
        rule: entry.rule,
    });
    let rest = is_passed_over.then(|| Element::rest(Data::CONTINUE));
    Stored {
        name: &map.name,
        kind: Kind {
            flags: SET_IS_MAP,
            key_length: layout.key_length(),
            data_type: DATA_IS_VERDICT,
            data_length: 0,
            extra: Extra::Counter,
        },
        key_type: layout.key_type(),
        size: Some(size),
        elements: Box::new(entries.chain(rest)),
    }
}
