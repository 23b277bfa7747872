//! The choice of a division for either side: the one that makes the cheapest lookups, of those that do not make too many
//! entries of the matches.

use ipnet::IpNet;

use super::Match;
use super::divide::{Division, Grading};
use super::resolve::Shape;

/// Entries of a family for each connection of a rule, on average, that a division may cost beside the first thousands,
/// unless there is none with few lookups otherwise.
const DEAREST: usize = 4;
const FREE: usize = 4_096;

/// What finding an address's class costs, in lookups in a hash map.
const INTERVALS: f64 = 1.5;

/// What a division may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Entries, beginnings of classes among them.
    pub(super) entries: usize,
    /// Lookups.
    pub(super) lookups: usize,
}

/// Divides both sides, which have these networks, in the way that makes the cheapest lookups within the limits; where there
/// is none, by the lengths, which takes no more entries than there are matches.
pub(super) fn divide(
    matches: &[Match],
    networks: &[Vec<IpNet>; 2],
    gradings: &[Grading],
    limits: Limits,
) -> [Division; 2] {
    let mut ways = networks.each_ref().map(|networks| {
        let divided = gradings.iter().map(|grading| Division::new(networks, *grading));
        divided.collect::<Vec<_>>()
    });
    let few = limits.entries.min(FREE + DEAREST * matches.len());
    let best = [few, limits.entries].into_iter().find_map(|dearest| {
        let mut best = None;
        for (from, source) in ways[0].iter().enumerate() {
            for (to, destination) in ways[1].iter().enumerate() {
                if let Some(cost) = cost(matches, [source, destination], dearest, limits)
                    && best.is_none_or(|(_, least)| cost < least)
                {
                    best = Some(([from, to], cost));
                }
            }
        }
        best
    });
    match best {
        Some(([from, to], _)) => [ways[0].swap_remove(from).related(), ways[1].swap_remove(to).related()],
        None => networks.each_ref().map(|networks| Division::new(networks, Grading::ByLength).related()),
    }
}

/// Returns what a packet pays for at most, in lookups in a hash map; `None` if there would be more than `dearest` entries, or
/// more of anything than the limits allow.
fn cost(matches: &[Match], sides: [&Division; 2], dearest: usize, limits: Limits) -> Option<f64> {
    let starts = sides[0].starts() + sides[1].starts();
    let levels = sides.map(Division::levels);
    let (mut shapes, mut pairs) = (vec![false; levels[0] * levels[1] * Shape::SERVICES], Vec::new());
    pairs.resize(levels[0] * levels[1], false);
    let (mut entries, mut lookups) = (0, 0);
    for found in matches {
        let (source, destination) = (sides[0].home(found.source), sides[1].home(found.destination));
        entries += source.classes.len() * destination.classes.len();
        if entries > dearest || entries + starts > limits.entries {
            return None;
        }
        let pair = source.level * levels[1] + destination.level;
        pairs[pair] = true;
        let shape = Shape::new(source.level, destination.level, found.service);
        if !std::mem::replace(&mut shapes[pair * Shape::SERVICES + shape.service_number()], true) {
            lookups += 1;
            if lookups > limits.lookups {
                return None;
            }
        }
    }
    let used = pairs.iter().enumerate().filter(|(_, used)| **used).map(|(pair, _)| pair);
    let classes = used.flat_map(|pair| {
        let needed = [sides[0].needs_classes(pair / levels[1]), sides[1].needs_classes(pair % levels[1])];
        needed.into_iter().filter(|needed| *needed)
    });
    let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    Some(count(lookups) + INTERVALS * count(classes.count()))
}
