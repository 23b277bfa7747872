//! One side of a connection, source or destination, divided: the networks that rules name there are put on levels, and each
//! level divides the addresses into classes, such that a map whose key is made of classes says exactly what the rules say.
//!
//! Networks are nested or apart, never crossed. On a level, the class of a network is what it has that no network nested in
//! it on the same level has; a network is the sum of its own class and theirs. Fewer levels are fewer lookups, but a network
//! with many others in it needs an entry for each; such a one goes on a level further up. So a network is never on a lower
//! level than one nested in it, and a class of a lower level lies within one of a higher level or apart from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use ipnet::IpNet;

use crate::policy::table::{Classes, Family, Part};

/// How networks are put on levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grading {
    /// One level for each prefix length: no network needs more than one entry.
    ByLength,
    /// As low as can be, where no network has more classes than this.
    ByNesting(usize),
}

/// The levels of a side, the lowest, which tells most addresses apart, first.
#[derive(Debug)]
pub(super) struct Division {
    levels: Vec<Level>,
    /// By the networks' positions.
    homes: Vec<Home>,
    /// By level, how much higher another is, and class: the class of that level that it lies in, or [`NONE`].
    above: Vec<Vec<Vec<u32>>>,
}

/// No class.
const NONE: u32 = u32::MAX;

/// Where a network is.
#[derive(Debug, Clone)]
pub(super) struct Home {
    /// The level.
    pub(super) level: usize,
    /// The classes of the level that it consists of.
    pub(super) classes: Range<u32>,
}

#[derive(Debug)]
struct Level {
    /// Its networks, those in others behind them; their positions are the numbers of the classes.
    networks: Vec<IpNet>,
    /// The length of all of them, if they have one.
    length: Option<u8>,
    /// Where a class begins, and which; `None` is none. Empty where all networks have one length.
    starts: BTreeMap<IpAddr, Option<u32>>,
    /// The first address of each class; `None` for one whose network is nothing but those nested in it.
    firsts: Vec<Option<IpAddr>>,
}

impl Division {
    /// Divides a side by the networks that rules name there, all of one family, in order: those nested in a network follow it.
    pub(super) fn new(networks: &[IpNet], grading: Grading) -> Self {
        let grades = match grading {
            Grading::ByLength => by_length(networks),
            Grading::ByNesting(most) => by_nesting(networks, most),
        };
        let count = grades.iter().max().map_or(0, |highest| highest + 1);
        let mut members = vec![Vec::new(); count];
        // Where each begins on its level; where it ends follows once the level has all of its own.
        let mut homes: Vec<Home> = Vec::with_capacity(networks.len());
        for (network, level) in networks.iter().zip(grades) {
            let first = number(members[level].len());
            homes.push(Home { level, classes: first..first });
            members[level].push(*network);
        }
        for (network, home) in networks.iter().zip(&mut homes) {
            let behind = &members[home.level][home.classes.start as usize..];
            let nested = behind.iter().take_while(|other| network.contains(*other)).count();
            home.classes.end += number(nested);
        }
        Self { levels: members.into_iter().map(Level::new).collect(), homes, above: Vec::new() }
    }

    /// Prepares to be asked which class lies in which.
    pub(super) fn related(mut self) -> Self {
        let within = |higher: &Level, network: &IpNet| higher.class_of(network.network()).unwrap_or(NONE);
        let above = self.levels.iter().enumerate().map(|(at, level)| {
            let higher = self.levels[at + 1..].iter();
            higher.map(|higher| level.networks.iter().map(|of| within(higher, of)).collect()).collect()
        });
        self.above = above.collect();
        self
    }

    /// Returns how many levels there are.
    pub(super) fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Returns where the network at a position of those is that the division was made for.
    pub(super) fn home(&self, network: u32) -> &Home {
        &self.homes[network as usize]
    }

    /// Returns how many beginnings of classes the levels have that need any.
    pub(super) fn starts(&self) -> usize {
        self.levels.iter().map(|level| level.starts.len()).sum()
    }

    /// Returns the class of level `to` that a class of level `from`, no higher one, lies in; `None` if in none.
    pub(super) fn above(&self, from: usize, class: u32, to: usize) -> Option<u32> {
        if from == to {
            return Some(class);
        }
        Some(self.above[from][to - from - 1][class as usize]).filter(|above| *above != NONE)
    }

    /// Returns whether a level needs [`Classes`], as its networks are of several lengths.
    pub(super) fn needs_classes(&self, level: usize) -> bool {
        self.levels[level].length.is_none()
    }

    /// Returns what of an address tells the classes of a level apart, where classes are at `position` in the table.
    pub(super) fn part(&self, level: usize, position: usize) -> Part {
        self.levels[level].length.map_or(Part::Class(position), Part::Bits)
    }

    /// Returns what stands for a class in a key; `None` for a class without an address.
    pub(super) fn name(&self, level: usize, class: u32) -> Option<IpNet> {
        let level = &self.levels[level];
        let network = level.networks[class as usize];
        match level.length {
            Some(_) => Some(network),
            None => level.firsts[class as usize].map(IpNet::from),
        }
    }

    /// Returns the classes of a level that needs them, for the table.
    pub(super) fn classes(&self, level: usize, name: String) -> Classes {
        let level = &self.levels[level];
        let family = level.networks.first().map_or(Family::V4, Family::of);
        let names: BTreeSet<u128> = level.firsts.iter().flatten().map(|first| bits(*first)).collect();
        // The first address that names no class.
        let rest =
            (0..).take(names.len() + 1).find(|candidate| !names.contains(candidate)).unwrap_or_default();
        let rest = address(family, rest);
        let name_of =
            |class: Option<u32>| class.and_then(|class| level.firsts[class as usize]).unwrap_or(rest);
        let starts = level.starts.iter().map(|(start, class)| (*start, name_of(*class))).collect();
        Classes { name, family, starts, rest }
    }
}

impl Level {
    fn new(networks: Vec<IpNet>) -> Self {
        let length = networks.first().map(IpNet::prefix_len);
        if networks.iter().all(|network| Some(network.prefix_len()) == length) {
            let firsts = networks.iter().map(|network| Some(network.network())).collect();
            return Self { networks, length, starts: BTreeMap::new(), firsts };
        }
        let starts = starts(&networks);
        let mut firsts = vec![None; networks.len()];
        for (start, class) in &starts {
            if let Some(class) = class {
                firsts[*class as usize].get_or_insert(*start);
            }
        }
        Self { networks, length: None, starts, firsts }
    }

    /// Returns the class that an address is in, if it is in one.
    fn class_of(&self, address: IpAddr) -> Option<u32> {
        match self.length {
            Some(length) => {
                let network = IpNet::new(address, length).ok()?.trunc();
                self.networks.binary_search(&network).ok().map(number)
            }
            None => *self.starts.range(..=address).next_back()?.1,
        }
    }
}

/// Walks along the addresses: where a class begins, and which. Those nested in a network follow it.
fn starts(networks: &[IpNet]) -> BTreeMap<IpAddr, Option<u32>> {
    let mut starts = BTreeMap::new();
    let mut around: Vec<(IpAddr, u32)> = Vec::new();
    // What begins behind a network is what is around it; or, at the same address, what is told later.
    let leave = |starts: &mut BTreeMap<_, _>, around: &mut Vec<(IpAddr, u32)>, until: Option<IpAddr>| {
        while let Some((last, _)) = around.pop_if(|(last, _)| until.is_none_or(|until| *last < until)) {
            if let Some(next) = following(last) {
                starts.insert(next, around.last().map(|(_, class)| *class));
            }
        }
    };
    for (class, network) in networks.iter().enumerate() {
        leave(&mut starts, &mut around, Some(network.network()));
        starts.insert(network.network(), Some(number(class)));
        around.push((network.broadcast(), number(class)));
    }
    leave(&mut starts, &mut around, None);
    starts
}

/// Returns the levels of the networks: the longest on the lowest.
fn by_length(networks: &[IpNet]) -> Vec<usize> {
    let lengths: BTreeSet<u8> = networks.iter().map(IpNet::prefix_len).collect();
    let level = |network: &IpNet| lengths.range(network.prefix_len() + 1..).count();
    networks.iter().map(level).collect()
}

/// Returns the levels of the networks, where none is to have more than `most` classes.
fn by_nesting(networks: &[IpNet], most: usize) -> Vec<usize> {
    let mut around: Vec<usize> = Vec::new();
    let mut parents = Vec::with_capacity(networks.len());
    for (at, network) in networks.iter().enumerate() {
        while around.pop_if(|around| !networks[*around].contains(network)).is_some() {}
        parents.push(around.last().copied());
        around.push(at);
    }
    let mut levels = vec![0; networks.len()];
    // How many networks are nested in each, by level; those nested come first.
    let mut nested: Vec<Vec<usize>> = vec![Vec::new(); networks.len()];
    for at in (0..networks.len()).rev() {
        let mut counts = std::mem::take(&mut nested[at]);
        let level = counts.iter().position(|count| *count < most).unwrap_or(counts.len());
        levels[at] = level;
        add(&mut counts, level, 1);
        if let Some(parent) = parents[at] {
            for (level, count) in counts.into_iter().enumerate() {
                add(&mut nested[parent], level, count);
            }
        }
    }
    levels
}

fn add(counts: &mut Vec<usize>, level: usize, count: usize) {
    counts.resize(counts.len().max(level + 1), 0);
    counts[level] += count;
}

fn number(position: usize) -> u32 {
    u32::try_from(position).expect("the contract bounds what a set names")
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from_bits(bits).into(),
    }
}

/// Returns the address behind one; `None` behind the last.
fn following(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network() -> impl Strategy<Value = IpNet> {
        (any::<bool>(), 0_u8..32, 0_u8..=6).prop_map(|(edge, low, short)| {
            // Near either end of the addresses.
            let address = if edge { [255, 255, 255, 255 - low] } else { [0, 0, 0, low] };
            IpNet::new(IpAddr::from(address), if short == 6 { 0 } else { 32 - short }).unwrap().trunc()
        })
    }

    fn grading() -> impl Strategy<Value = Grading> {
        prop_oneof![Just(Grading::ByLength), (1_usize..6).prop_map(Grading::ByNesting)]
    }

    proptest! {
        #[test]
        fn a_network_is_the_sum_of_its_classes(
            networks in proptest::collection::btree_set(network(), 1..40),
            grading in grading(),
        ) {
            let networks = Vec::from_iter(networks);
            let division = Division::new(&networks, grading);
            let edges = (0..40).flat_map(|low| [[0, 0, 0, low], [255, 255, 255, 255 - low], [9, 9, 9, low]]);
            for address in edges.map(IpAddr::from) {
                for (network, position) in networks.iter().zip(0..) {
                    let home = division.home(position);
                    let looked_up = match division.part(home.level, 0) {
                        Part::Bits(bits) => IpNet::new(address, bits).unwrap().trunc(),
                        Part::Class(_) => division.classes(home.level, String::new()).class_of(address).into(),
                    };
                    let mut names = home.classes.clone().filter_map(|class| division.name(home.level, class));
                    prop_assert_eq!(names.any(|name| name == looked_up), network.contains(&address));
                }
            }
        }

        #[test]
        fn a_class_lies_within_one_further_up_or_apart_from_all(
            networks in proptest::collection::btree_set(network(), 1..40),
            grading in grading(),
        ) {
            let division = Division::new(&Vec::from_iter(networks), grading).related();
            for address in (0..40).flat_map(|low| [[0, 0, 0, low], [255, 255, 255, 255 - low]]).map(IpAddr::from) {
                for from in 0..division.levels() {
                    let Some(class) = division.levels[from].class_of(address) else { continue };
                    for to in from..division.levels() {
                        let expected = division.levels[to].class_of(address);
                        prop_assert_eq!(division.above(from, class, to), expected);
                    }
                }
            }
        }

        #[test]
        fn no_network_has_more_classes_than_asked_for(
            networks in proptest::collection::btree_set(network(), 1..40),
            most in 1_usize..6,
        ) {
            let networks = Vec::from_iter(networks);
            let division = Division::new(&networks, Grading::ByNesting(most));
            prop_assert!(division.homes.iter().all(|home| home.classes.len() <= most));
            let by_length = Division::new(&networks, Grading::ByLength);
            prop_assert!(by_length.homes.iter().all(|home| home.classes.len() == 1));
            prop_assert_eq!(by_length.starts(), 0);
        }
    }
}
