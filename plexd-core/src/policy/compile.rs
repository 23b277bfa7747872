//! Rules to table. Every packet of the mesh interface goes through chain `judge`, then the chain of its family: a list of
//! lookups, each in a hash map of exact matches on the connection's original tuple, cut down to one shape: which level of
//! either side's [division](divide), and how much of the service. Rules of one shape share one lookup however many they are;
//! all a packet pays for is the number of shapes. Hash maps fill in linear time on every kernel, intervals of several fields
//! at once do not (6.1).
//!
//! - [`divide`]: a side's networks on levels, and the addresses in classes; [`choose`]: the way that makes the cheapest lookups
//! - [`resolve`]: first match, in lookups that are ordered by shape; [`stages`]: in as few as the limits allow
//! - [`emit`], [`skeleton`]: the table

mod choose;
mod divide;
mod emit;
mod resolve;
mod skeleton;
mod stages;

use std::collections::HashSet;

use ipnet::IpNet;

use self::choose::Limits;
use self::divide::Grading;
use self::emit::Parts;
use super::table::{Family, Table};
use super::{Action, Context, PolicySet, Service};

/// Most rules of a policy set (contract, section 5).
pub const MAX_RULES: usize = 20_000;
/// Most entries of a compiled table (contract, section 5).
pub const MAX_ENTRIES: usize = 200_000;

/// Most maps that a packet of one family is looked up in. Sets as people write them take a handful; this is
/// twice what 20,000 rules take that allow and deny in turn, each crossing all of the others. A packet that nothing matches
/// pays for all of them.
pub const MAX_LOOKUPS: usize = 2_048;

/// As [`MAX_LOOKUPS`], of a table that is only to be written: one for each pair of prefix lengths of IPv4, and service.
const MAX_PLAIN: usize = 2 * MAX_LOOKUPS;

/// Most keys tried, those that an earlier rule decided among them, with the networks they are made of: bounds the time that
/// a set takes however often its rules repeat each other.
const MAX_TRIED: usize = 10 * MAX_ENTRIES;

/// The policy set cannot be compiled; the old one stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More than [`MAX_RULES`].
    #[error(
        "the policy set has {rules} rules, more than {MAX_RULES}: merge rules, or use networks for addresses"
    )]
    TooManyRules {
        /// How many there are.
        rules: usize,
    },
    /// More than [`MAX_ENTRIES`], or ten times as many counting those that earlier rules decide already, or so many that
    /// cross each other that it takes too long to find what they share.
    #[error(
        "the policy set needs more than {MAX_ENTRIES} firewall entries, or repeats or crosses too many, from rule {rule} of \
         policy {policy:?} on: merge rules, or use networks instead of nodes with many addresses"
    )]
    TooManyEntries {
        /// The policy's id.
        policy: String,
        /// The rule's position in it, from 1.
        rule: usize,
    },
    /// More than [`MAX_LOOKUPS`], or as many as a table may have that is only to be written.
    #[error(
        "the policy set needs more than {most} lookups for each packet, from rule {rule} of policy {policy:?} on: use \
         fewer prefix lengths, or put rules that allow and rules that deny the same addresses together, so that they \
         alternate less"
    )]
    TooManyLookups {
        /// How many there may be.
        most: usize,
        /// The policy's id.
        policy: String,
        /// The rule's position in it, from 1.
        rule: usize,
    },
    /// The interface cannot be one.
    #[error("{0:?} cannot be the name of a network interface (1 to 15 bytes)")]
    Interface(String),
}

/// What a family needs too much of, from a rule on, by its position among all rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Lookups { rule: usize },
    Work { rule: usize },
}

/// Ways to divide a side.
const GRADINGS: [Grading; 4] =
    [Grading::ByLength, Grading::ByNesting(16), Grading::ByNesting(4), Grading::ByNesting(1)];

/// What a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Enforced,
    Written,
}

/// Compiles a policy set for this node; `None` when policy is disabled, and there is to be no table.
///
/// # Errors
/// The set is too large, or the interface name cannot be one: nothing of the set may be applied.
pub fn compile(policies: &PolicySet, context: &Context) -> Result<Option<Table>, CompileError> {
    compile_for(Use::Enforced, policies, context)
}

/// As [`compile()`], into a table that decides alike, whose keys are networks and never classes, and whose maps are looked up
/// one by one: as many lookups as there are pairs of prefix lengths, and all of it can be said in the language of `nft`.
///
/// # Errors
/// As [`compile()`].
pub fn compile_plainly(policies: &PolicySet, context: &Context) -> Result<Option<Table>, CompileError> {
    compile_for(Use::Written, policies, context)
}

fn compile_for(of: Use, policies: &PolicySet, context: &Context) -> Result<Option<Table>, CompileError> {
    if !context.enabled {
        return Ok(None);
    }
    if !(1..=15).contains(&context.interface.len()) {
        return Err(CompileError::Interface(context.interface.clone()));
    }
    let rules = policies.rules().count();
    if rules > MAX_RULES {
        return Err(CompileError::TooManyRules { rules });
    }
    let (gradings, lookups) = match of {
        Use::Enforced => (&GRADINGS[..], MAX_LOOKUPS),
        Use::Written => (&[Grading::ByLength][..], MAX_PLAIN),
    };
    let found = matches(policies, context)?;
    let all: usize = found.families.iter().map(Vec::len).sum();
    // What the matches leave is shared in the same proportion.
    let spare = |of: &[Found]| (MAX_ENTRIES - found.entries) * of.len() / all.max(1);
    let mut parts = Parts { one_by_one: of == Use::Written, ..Parts::default() };
    let mut rules = [Vec::new(), Vec::new()];
    for ((family, of), rules) in [Family::V4, Family::V6].into_iter().zip(&found.families).zip(&mut rules) {
        let limits = Limits { entries: of.len() + spare(of), lookups };
        let (matches, networks) = numbered(of);
        let sides = choose::divide(&matches, &networks, gradings, limits);
        let sides = sides.each_ref();
        let stages =
            stages::stages(&matches, sides, limits).map_err(|beyond| beyond.told(policies, lookups))?;
        *rules = parts.add(family, sides, stages, context.default);
    }
    let table = skeleton::skeleton(context, rules);
    let rule_names = policies.rule_names().collect();
    Ok(Some(Table { classes: parts.classes, maps: parts.maps, rule_names, ..table }))
}

impl Beyond {
    fn told(self, policies: &PolicySet, most: usize) -> CompileError {
        let (Self::Lookups { rule } | Self::Work { rule }) = self;
        let (policy, rule) = policies.locate(rule).expect("a rule of these");
        let policy = policy.id.clone();
        match self {
            Self::Lookups { .. } => CompileError::TooManyLookups { most, policy, rule },
            Self::Work { .. } => CompileError::TooManyEntries { policy, rule },
        }
    }
}

/// What a rule matches, between two networks.
#[derive(Debug, Clone, Copy)]
struct Found {
    source: IpNet,
    destination: IpNet,
    service: Service,
    action: Action,
    /// The rule's position.
    rule: usize,
}

/// The same, with the positions of the networks among those of their side.
#[derive(Debug, Clone, Copy)]
struct Match {
    source: u32,
    destination: u32,
    service: Service,
    action: Action,
    rule: usize,
}

/// What the rules match, by family, without what an earlier rule matches exactly.
#[derive(Debug, Default)]
struct Matches {
    families: [Vec<Found>; 2],
    /// Entries that they take at least, with those of the default.
    entries: usize,
}

fn matches(policies: &PolicySet, context: &Context) -> Result<Matches, CompileError> {
    let mut found = Matches::default();
    if context.default == Action::Allow {
        found.entries = 2 * emit::EVERYTHING;
    }
    let (mut known, mut rule, mut tried) = (HashSet::new(), 0, 0_usize);
    for policy in &policies.policies {
        for (number, of) in policy.rules.iter().enumerate() {
            let too_many = || CompileError::TooManyEntries { policy: policy.id.clone(), rule: number + 1 };
            let [sources, destinations] = [&of.src, &of.dst].map(|side| by_family(context.networks(side)));
            let pairs = sources.iter().zip(&destinations);
            let keys =
                pairs.clone().fold(0_usize, |sum, (from, to)| sum.saturating_add(from.len() * to.len()));
            tried = sources
                .iter()
                .chain(&destinations)
                .fold(tried.saturating_add(keys), |sum, of| sum + of.len());
            if keys > MAX_ENTRIES || tried > MAX_TRIED {
                return Err(too_many());
            }
            for ((sources, destinations), matches) in pairs.zip(&mut found.families) {
                for (&source, &destination) in
                    sources.iter().flat_map(|from| destinations.iter().map(move |to| (from, to)))
                {
                    if known.insert((source, destination, of.service)) {
                        let new = Found { source, destination, service: of.service, action: of.action, rule };
                        found.entries += if new.is_everything() { emit::EVERYTHING } else { 1 };
                        matches.push(new);
                    }
                }
            }
            if found.entries > MAX_ENTRIES {
                return Err(too_many());
            }
            rule += 1;
        }
    }
    Ok(found)
}

fn by_family(networks: Vec<IpNet>) -> [Vec<IpNet>; 2] {
    let (v4, v6) = networks.into_iter().partition(|net| Family::of(net) == Family::V4);
    [v4, v6]
}

impl Found {
    fn is_everything(&self) -> bool {
        self.service == Service::Any && self.source.prefix_len() == 0 && self.destination.prefix_len() == 0
    }
}

/// Returns the networks of either side in order, those nested in a network behind it, and the matches by their positions.
fn numbered(found: &[Found]) -> (Vec<Match>, [Vec<IpNet>; 2]) {
    let networks = [|of: &Found| of.source, |of: &Found| of.destination].map(|side| {
        let mut networks: Vec<IpNet> = found.iter().map(side).collect();
        networks.sort_unstable();
        networks.dedup();
        networks
    });
    let position = |networks: &[IpNet], of: &IpNet| {
        let position = networks.binary_search(of).expect("it is one of them");
        u32::try_from(position).expect("the contract bounds what a set names")
    };
    let matches = found.iter().map(|of| Match {
        source: position(&networks[0], &of.source),
        destination: position(&networks[1], &of.destination),
        service: of.service,
        action: of.action,
        rule: of.rule,
    });
    (matches.collect(), networks)
}
