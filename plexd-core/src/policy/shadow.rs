//! Which rules can never match: earlier ones decide all that they match, or there is nobody to match. Certain of every rule
//! that it names, and finds each that one earlier rule covers; of those that only several cover together it finds the ones
//! whose addresses they cover one by one, or halve by halve.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use super::index::{Index, keys};
use super::table::{Family, Key};
use super::{Context, PolicySet, Rule, Selector, Service};
use crate::types::NodeId;

/// Steps taken at most, so that no set takes longer than a moment; rules that are left are not named. 20,000 rules of
/// usual shapes take a part of it.
const EFFORT: usize = 2_000_000;

/// Candidates tried for the one rule that covers another alone.
const CANDIDATES: usize = 16;

/// Why a rule can never match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shadow {
    /// These earlier rules, by their positions among all rules, decide all that it matches: one, where one does alone.
    Covered(BTreeSet<usize>),
    /// It matches nothing now.
    Nobody(Nobody),
}

/// Why a rule matches nothing now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nobody {
    /// No node has this id.
    NoNode(NodeId),
    /// The node has no address that is not another's.
    NoAddress(NodeId),
    /// Source and destination are of different address families.
    Families,
}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode(id) => write!(f, "there is no node {id}"),
            Self::NoAddress(id) => write!(f, "{id} has no address of its own"),
            Self::Families => f.write_str("source and destination are of different address families"),
        }
    }
}

/// Returns for each rule, in the order of all rules, why it can never match; `None` where it can, or that is not known.
/// Without policy no rule is of any use, and none is named.
pub fn shadows(policies: &PolicySet, context: &Context) -> Vec<Option<Shadow>> {
    let rules: Vec<&Rule> = policies.rules().collect();
    let mut found = vec![None; rules.len()];
    if !context.enabled {
        return found;
    }
    let mut earlier = Earlier::default();
    for (position, rule) in rules.iter().enumerate() {
        if earlier.index.spent > EFFORT {
            break;
        }
        found[position] = match nobody(rule, context) {
            Some(nobody) => Some(Shadow::Nobody(nobody)),
            None => earlier
                .take(position, rule, context)
                .map(|by| Shadow::Covered(alone(by, &rules, rule, context))),
        };
    }
    found
}

/// Returns why a rule matches nothing, if that is so.
fn nobody(rule: &Rule, context: &Context) -> Option<Nobody> {
    let nets = [&rule.src, &rule.dst].map(|side| context.networks(side));
    for (side, nets) in [&rule.src, &rule.dst].into_iter().zip(&nets) {
        if let (Selector::Node(id), true) = (side, nets.is_empty()) {
            let is_known = context.members.contains_key(id) || *id == context.node;
            return Some(if is_known { Nobody::NoAddress(id.clone()) } else { Nobody::NoNode(id.clone()) });
        }
    }
    let [sources, destinations] = nets.map(|nets| nets.iter().map(Family::of).collect::<BTreeSet<_>>());
    sources.is_disjoint(&destinations).then_some(Nobody::Families)
}

/// Returns the one of these rules that covers a rule alone, if there is one; else all of them.
fn alone(by: BTreeSet<usize>, rules: &[&Rule], rule: &Rule, context: &Context) -> BTreeSet<usize> {
    if by.len() < 2 {
        return by;
    }
    let within = |inner: &Selector, outer: &Selector| {
        let outer = context.networks(outer);
        context.networks(inner).iter().all(|net| is_within(net, &outer))
    };
    let covers = |earlier: &Rule| {
        includes(earlier.service, rule.service)
            && within(&rule.src, &earlier.src)
            && within(&rule.dst, &earlier.dst)
    };
    let one = by.iter().take(CANDIDATES).copied().find(|position| covers(rules[*position]));
    one.map_or(by, |position| BTreeSet::from([position]))
}

/// Returns whether a network lies within one of these, which are sorted and apart.
fn is_within(net: &IpNet, others: &[IpNet]) -> bool {
    let after = others.partition_point(|other| other.network() <= net.network());
    after.checked_sub(1).is_some_and(|before| others[before].contains(net))
}

fn includes(outer: Service, inner: Service) -> bool {
    outer == Service::Any
        || outer == inner
        || matches!(
            (outer, inner),
            (Service::Tcp(None), Service::Tcp(_)) | (Service::Udp(None), Service::Udp(_))
        )
}

/// What the rules so far decide.
#[derive(Default)]
struct Earlier {
    /// To positions in `covers`.
    index: Index,
    covers: Vec<Cover>,
}

/// Why a key is decided.
#[derive(Clone, Copy)]
enum Cover {
    /// By this rule.
    Rule(usize),
    /// Its halves are, by these.
    Halves(usize, usize),
}

impl Earlier {
    /// Adds a rule, and returns the rules before it that decide all that it matches, if they do.
    fn take(&mut self, position: usize, rule: &Rule, context: &Context) -> Option<BTreeSet<usize>> {
        let (mut by, mut open) = (Vec::new(), Vec::new());
        for key in keys(rule, context) {
            match self.index.lowest_covering(&key) {
                Some(cover) => by.push(cover),
                None => open.push(key),
            }
        }
        if open.is_empty() {
            return Some(self.rules(by));
        }
        self.covers.push(Cover::Rule(position));
        let cover = self.covers.len() - 1;
        for key in open {
            self.add(key, cover);
        }
        None
    }

    /// Adds a key, and those around it whose two halves are decided now.
    fn add(&mut self, key: Key, cover: usize) {
        let mut added = vec![(key, cover)];
        while let Some((key, cover)) = added.pop() {
            self.index.insert(key, cover);
            for (whole, other) in wholes(&key).into_iter().flatten() {
                if self.index.spent > EFFORT || self.index.lowest_covering(&whole).is_some() {
                    continue;
                }
                if let Some(half) = self.index.lowest_covering(&other) {
                    self.covers.push(Cover::Halves(cover, half));
                    added.push((whole, self.covers.len() - 1));
                }
            }
        }
    }

    /// Returns the rules that covers are made of.
    fn rules(&self, mut covers: Vec<usize>) -> BTreeSet<usize> {
        let (mut rules, mut seen) = (BTreeSet::new(), BTreeSet::new());
        while let Some(cover) = covers.pop() {
            if !seen.insert(cover) {
                continue;
            }
            match self.covers[cover] {
                Cover::Rule(position) => {
                    rules.insert(position);
                }
                Cover::Halves(one, other) => covers.extend([one, other]),
            }
        }
        rules
    }
}

/// Returns the keys of which this one is a half, by its source and by its destination, each with the other half.
fn wholes(key: &Key) -> [Option<(Key, Key)>; 2] {
    let by_source = halved(&key.source)
        .map(|(whole, other)| (Key { source: whole, ..*key }, Key { source: other, ..*key }));
    let by_destination = halved(&key.destination)
        .map(|(whole, other)| (Key { destination: whole, ..*key }, Key { destination: other, ..*key }));
    [by_source, by_destination]
}

/// Returns the network of which this one is a half, and the other half.
fn halved(net: &IpNet) -> Option<(IpNet, IpNet)> {
    let whole = net.supernet()?.trunc();
    let other = whole.subnets(net.prefix_len()).ok()?.find(|half| half != net)?;
    Some((whole, other))
}
