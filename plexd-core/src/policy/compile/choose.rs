//! The choice of a division for either side: the one that makes the cheapest lookups, of those that do not make too many
//! entries of the matches.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Match;
use super::divide::{Division, Grading};
use super::resolve::Shape;

/// Entries of a family for each connection of a rule, on average, that a division may cost beside the first thousands.
const DEAREST: usize = 4;
const FREE: usize = 4_096;

/// What finding an address's class costs, in lookups in a hash map.
const INTERVALS: f64 = 1.5;

/// Divides both sides in the way that makes the cheapest lookups, of those with few entries.
pub(super) fn divide(matches: &[Match], gradings: &[Grading], most: usize) -> [Division; 2] {
    let networks = |of: fn(&Match) -> IpNet| matches.iter().map(of).collect::<BTreeSet<_>>();
    let (sources, destinations) = (networks(|of| of.source), networks(|of| of.destination));
    let ways = |networks: &BTreeSet<IpNet>| {
        let divided = gradings.iter().map(|grading| Division::new(networks, *grading));
        divided.collect::<Vec<_>>()
    };
    let (mut sources, mut destinations) = (ways(&sources), ways(&destinations));
    let most = most.min(FREE + DEAREST * matches.len());
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
        shapes.insert(Shape::new(source.level, destination.level, found.service));
        pairs.insert((source.level, destination.level));
    }
    let classes = pairs.iter().flat_map(|(from, to)| {
        [sides[0].needs_classes(*from), sides[1].needs_classes(*to)].into_iter().filter(|needed| *needed)
    });
    let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    Some(count(shapes.len()) + INTERVALS * count(classes.count()))
}
