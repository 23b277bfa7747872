//! Rules to table. Every packet of the mesh interface goes through chain `judge`, then the chain of its family: a list of
//! lookups, each in a hash map of exact matches on the connection's original tuple, cut down to one shape: which level of
//! either side's [division](divide), and how much of the service. Rules of one shape share one lookup however many they are;
//! all a packet pays for is the number of shapes. Hash maps fill in linear time on every kernel, intervals of several fields
//! at once do not (6.1).
//!
//! Both sides are divided in the way that makes the fewest and cheapest lookups. First match wins: see [`resolve`].

mod divide;
mod resolve;
mod skeleton;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnet::IpNet;

use self::divide::{Division, Grading};
use self::resolve::{Shape as Levels, Stage};
use super::table::{Detail, Entry, Expr, Family, Key, Map, Part, Shape, Table};
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

/// Entries of a family for each connection of a rule, on average, that a division may cost beside the first thousands.
const DEAREST: usize = 4;
const FREE: usize = 4_096;

/// What finding an address's class costs, in lookups in a hash map.
const INTERVALS: f64 = 1.5;

/// Ways to divide a side.
const GRADINGS: [Grading; 4] =
    [Grading::ByLength, Grading::ByNesting(16), Grading::ByNesting(4), Grading::ByNesting(1)];

/// Compiles a policy set for this node; `None` when policy is disabled, and there is to be no table.
///
/// # Errors
/// The set is too large, or the interface name cannot be one: nothing of the set may be applied.
pub fn compile(policies: &PolicySet, context: &Context) -> Result<Option<Table>, CompileError> {
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
    // What one family does not need the other may have.
    let spare = (MAX_ENTRIES - v4.len() - v6.len()) / 2;
    let mut parts = Parts::default();
    let rules = [(Family::V4, v4), (Family::V6, v6)].map(|(family, matches)| {
        let most = matches.len() + spare;
        parts.add(family, &matches, most)
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

/// The parts of the table, of both families.
#[derive(Default)]
struct Parts {
    classes: Vec<super::table::Classes>,
    maps: Vec<Map>,
}

impl Parts {
    /// Adds the maps that decide on these matches, with no more than `most` entries, and returns the rules that look them up.
    fn add(&mut self, family: Family, matches: &[Match], most: usize) -> Vec<Vec<Expr>> {
        let sides = divide(matches, most);
        let stages = stages(matches, [&sides[0], &sides[1]], most);
        let positions = [("src", &sides[0]), ("dst", &sides[1])].map(|(side, division)| {
            let levels = (0..division.levels()).filter(|level| division.needs_classes(*level));
            let mut place = |(number, level): (usize, usize)| {
                let name = format!("{side}{}_{number}", digit(family));
                self.classes.push(division.classes(level, name));
                (level, self.classes.len() - 1)
            };
            (1..).zip(levels).map(&mut place).collect::<BTreeMap<_, _>>()
        });
        let mut rules = Vec::new();
        let mut seen = BTreeMap::new();
        for stage in stages {
            let mut list: Option<(Part, Part, Vec<usize>)> = None;
            for (levels, entries) in stage.into_shapes() {
                let part = |side: usize, level| {
                    sides[side].part(level, positions[side].get(&level).copied().unwrap_or_default())
                };
                let (source, destination) = (part(0, levels.source), part(1, levels.destination));
                let shape = Shape { family, source, destination, service: levels.detail() };
                if list.as_ref().is_some_and(|(from, to, _)| (*from, *to) != (source, destination)) {
                    rules.extend(list.take().map(|(.., maps)| vec![Expr::Lookup(maps)]));
                }
                if shape.is_empty() {
                    // One entry, which matches all that is left.
                    rules.extend(list.take().map(|(.., maps)| vec![Expr::Lookup(maps)]));
                    rules.extend(entries.into_values().map(|decision| {
                        let verdict = skeleton::verdict(decision.action);
                        vec![Expr::CountRule(decision.rule), Expr::Verdict(verdict)]
                    }));
                    continue;
                }
                let entries = entries.into_iter().filter_map(|((source, destination, service), decision)| {
                    let source = sides[0].name(levels.source, source)?;
                    let destination = sides[1].name(levels.destination, destination)?;
                    let entry = Entry { verdict: skeleton::verdict(decision.action), rule: decision.rule };
                    Some((Key { source, destination, service }, entry))
                });
                let occurrence = seen.entry(shape).and_modify(|n| *n += 1).or_insert(1);
                let name = self.map_name(shape, *occurrence);
                list.get_or_insert((source, destination, Vec::new())).2.push(self.maps.len());
                self.maps.push(Map { name, shape, entries: entries.collect() });
            }
            rules.extend(list.take().map(|(.., maps)| vec![Expr::Lookup(maps)]));
        }
        rules
    }

    /// Names a map by its shape, so that it keeps its name, and its counters, as long as its shape is used.
    fn map_name(&self, shape: Shape, occurrence: usize) -> String {
        let part = |part, side| match part {
            Part::Bits(bits) => format!("{side}{bits}"),
            Part::Class(at) => self.classes[at].name.clone(),
        };
        let service = match shape.service {
            Detail::Nothing => "any",
            Detail::Protocol => "proto",
            Detail::Port => "port",
        };
        let (source, destination) = (part(shape.source, "s"), part(shape.destination, "d"));
        format!("v{}_{source}_{destination}_{service}_{occurrence}", digit(shape.family))
    }
}

fn digit(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// Divides both sides in the way that makes the cheapest lookups, of those with few entries.
fn divide(matches: &[Match], most: usize) -> [Division; 2] {
    let networks = |of: fn(&Match) -> IpNet| matches.iter().map(of).collect::<BTreeSet<_>>();
    let (sources, destinations) = (networks(|of| of.source), networks(|of| of.destination));
    let ways = |networks: &BTreeSet<IpNet>| {
        let divided = GRADINGS.into_iter().map(|grading| Division::new(networks, grading));
        divided.collect::<Vec<_>>()
    };
    let (mut sources, mut destinations) = (ways(&sources), ways(&destinations));
    let most = most.min(FREE + DEAREST * matches.len());
    // The last way of each side needs no more entries than there are matches.
    let mut best = (sources.len() - 1, destinations.len() - 1, f64::INFINITY);
    for (from, source) in sources.iter().enumerate() {
        for (to, destination) in destinations.iter().enumerate() {
            if let Some(cost) = cost(matches, [source, destination], most).filter(|cost| *cost < best.2) {
                best = (from, to, cost);
            }
        }
    }
    [sources.swap_remove(best.0), destinations.swap_remove(best.1)]
}

/// Returns what a packet pays for at most, in lookups in a hash map; `None` if there would be more than `most` entries.
fn cost(matches: &[Match], sides: [&Division; 2], most: usize) -> Option<f64> {
    let (mut shapes, mut pairs, mut entries) = (BTreeSet::new(), BTreeSet::new(), 0);
    for found in matches {
        let (source, destination) = (sides[0].home(&found.source), sides[1].home(&found.destination));
        entries += source.classes.len() * destination.classes.len();
        if entries > most {
            return None;
        }
        shapes.insert(Levels::new(source.level, destination.level, found.service));
        pairs.insert((source.level, destination.level));
    }
    let classes = pairs.iter().flat_map(|(from, to)| {
        [sides[0].needs_classes(*from), sides[1].needs_classes(*to)].into_iter().filter(|needed| *needed)
    });
    let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    Some(count(shapes.len()) + INTERVALS * count(classes.count()))
}

/// Adds what the matches need to stages, as few as can be without more than `most` entries.
fn stages<'a>(matches: &[Match], sides: [&'a Division; 2], most: usize) -> Vec<Stage<'a>> {
    let named: usize = matches
        .iter()
        .map(|of| sides[0].home(&of.source).classes.len() * sides[1].home(&of.destination).classes.len())
        .sum();
    let spare = most.saturating_sub(named);
    // Without entries that are shared, each crossing begins a stage.
    let quotas = [spare, spare / 8, spare / 64, spare / 512, 0];
    quotas.into_iter().find_map(|quota| staged(matches, sides, quota, spare)).unwrap_or_default()
}

/// Returns the stages, each with about `quota` shared entries; `None` if there are more than `most` in all.
fn staged<'a>(
    matches: &[Match],
    sides: [&'a Division; 2],
    quota: usize,
    most: usize,
) -> Option<Vec<Stage<'a>>> {
    let mut done: Vec<Stage<'_>> = Vec::new();
    let (mut stage, mut shared) = (Stage::new(sides), 0);
    for matches in matches.chunk_by(|a, b| a.rule == b.rule) {
        let entries: Vec<_> = matches.iter().flat_map(|of| entries(of, sides)).collect();
        let crossings: usize =
            entries.iter().map(|(shape, key, decision)| stage.crossings(*shape, *key, decision.action)).sum();
        if stage.shared + crossings > quota {
            shared += stage.shared;
            done.push(std::mem::replace(&mut stage, Stage::new(sides)));
        }
        for (shape, key, decision) in entries {
            stage.add(shape, key, decision);
            if shared + stage.shared > most {
                return None;
            }
        }
    }
    done.push(stage);
    Some(done)
}

/// Returns the entries that say what a match says.
fn entries(
    of: &Match,
    sides: [&Division; 2],
) -> impl Iterator<Item = (Levels, resolve::Key, resolve::Decision)> {
    let (source, destination) = (sides[0].home(&of.source).clone(), sides[1].home(&of.destination).clone());
    let shape = Levels::new(source.level, destination.level, of.service);
    let decision = resolve::Decision { action: of.action, rule: of.rule };
    let service = of.service;
    source.classes.flat_map(move |from| {
        destination.classes.clone().map(move |to| (shape, (from, to, service), decision))
    })
}

impl Shape {
    fn is_empty(self) -> bool {
        self.source.is_nothing() && self.destination.is_nothing() && self.service == Detail::Nothing
    }
}
