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

use self::divide::Grading;
use self::emit::Parts;
use super::table::{Family, Table};
use super::{Action, Context, PolicySet, Service};

/// Most rules of a policy set (contract, section 5).
pub const MAX_RULES: usize = 20_000;
/// Most entries of a compiled table (contract, section 5).
pub const MAX_ENTRIES: usize = 200_000;

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
    /// More than [`MAX_ENTRIES`], or ten times as many counting those that earlier rules decide already.
    #[error(
        "the policy set needs more than {MAX_ENTRIES} firewall entries, or repeats too many, from rule {rule} of \
         policy {policy:?} on: merge rules, or use networks instead of nodes with many addresses"
    )]
    TooManyEntries {
        /// The policy's id.
        policy: String,
        /// The rule's position in it, from 1.
        rule: usize,
    },
    /// The interface cannot be one.
    #[error("{0:?} cannot be the name of a network interface (1 to 15 bytes)")]
    Interface(String),
}

/// Ways to divide a side; the last makes no more entries than there are matches.
const GRADINGS: [Grading; 4] =
    [Grading::ByLength, Grading::ByNesting(16), Grading::ByNesting(4), Grading::ByNesting(1)];

/// Compiles a policy set for this node; `None` when policy is disabled, and there is to be no table.
///
/// # Errors
/// The set is too large, or the interface name cannot be one: nothing of the set may be applied.
pub fn compile(policies: &PolicySet, context: &Context) -> Result<Option<Table>, CompileError> {
    compile_by(&GRADINGS, false, policies, context)
}

/// As [`compile()`], into a table that decides alike, whose keys are networks and never classes, and whose maps are looked up
/// one by one: as many lookups as there are pairs of prefix lengths, and all of it can be said in the language of `nft`.
///
/// # Errors
/// As [`compile()`].
pub fn compile_plainly(policies: &PolicySet, context: &Context) -> Result<Option<Table>, CompileError> {
    compile_by(&[Grading::ByLength], true, policies, context)
}

fn compile_by(
    gradings: &[Grading],
    plain: bool,
    policies: &PolicySet,
    context: &Context,
) -> Result<Option<Table>, CompileError> {
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
    let [v4, v6] = matches(policies, context)?;
    // Either family may have half of what the matches leave.
    let spare = (MAX_ENTRIES - v4.len() - v6.len()) / 2;
    let mut parts = Parts { one_by_one: plain, ..Parts::default() };
    let rules = [(Family::V4, v4), (Family::V6, v6)].map(|(family, matches)| {
        let most = matches.len() + spare;
        let sides = choose::divide(&matches, gradings, most);
        let sides = sides.each_ref();
        parts.add(family, sides, stages::stages(&matches, sides, most))
    });
    let table = skeleton::skeleton(context, rules);
    Ok(Some(Table { classes: parts.classes, maps: parts.maps, ..table }))
}

/// What a rule matches, between two networks.
#[derive(Debug, Clone, Copy)]
struct Match {
    source: IpNet,
    destination: IpNet,
    service: Service,
    action: Action,
    /// The rule's position.
    rule: usize,
}

/// Returns what the rules match, by family, without what an earlier rule matches exactly.
fn matches(policies: &PolicySet, context: &Context) -> Result<[Vec<Match>; 2], CompileError> {
    let (mut matches, mut known) = ([Vec::new(), Vec::new()], HashSet::new());
    let (mut rule, mut tried) = (0, 0_usize);
    for policy in &policies.policies {
        for (number, of) in policy.rules.iter().enumerate() {
            let (sources, destinations) = (context.networks(&of.src), context.networks(&of.dst));
            let keys = sources.len().saturating_mul(destinations.len());
            tried = tried.saturating_add(keys).saturating_add(sources.len() + destinations.len());
            let too_many = || CompileError::TooManyEntries { policy: policy.id.clone(), rule: number + 1 };
            if keys > MAX_ENTRIES || tried > MAX_TRIED {
                return Err(too_many());
            }
            for &source in &sources {
                for &destination in &destinations {
                    let family = Family::of(&source);
                    if family == Family::of(&destination) && known.insert((source, destination, of.service)) {
                        let found =
                            Match { source, destination, service: of.service, action: of.action, rule };
                        matches[family as usize].push(found);
                    }
                }
            }
            if known.len() > MAX_ENTRIES {
                return Err(too_many());
            }
            rule += 1;
        }
    }
    Ok(matches)
}
