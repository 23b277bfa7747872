//! Matches in stages: as few as can be, where entries that crossed ones share are within the limits.

use super::Match;
use super::divide::Division;
use super::resolve::{Decision, Entries, Key, Shape, Stage};

/// Returns the entries that the matches need, stage by stage: about as few stages as can be without more than `most` entries.
pub(super) fn stages(matches: &[Match], sides: [&Division; 2], most: usize) -> Vec<Entries> {
    let named: usize = matches
        .iter()
        .map(|of| sides[0].home(&of.source).classes.len() * sides[1].home(&of.destination).classes.len())
        .sum();
    let spare = most.saturating_sub(named);
    let mut quota = spare;
    loop {
        match staged(matches, sides, quota, spare) {
            Ok(stages) => return stages,
            // Where everything crosses, what is shared in all grows with the square root of the quota. With none, which
            // always fits, each crossing begins a stage.
            Err(done) => {
                let part = |of: usize| of * done / matches.len();
                quota = part(part(quota)).min(quota / 2);
            }
        }
    }
}

/// Returns the entries by stage, about `quota` in each that are shared.
///
/// # Errors
/// There are more than `most` in all: how many matches it could take.
fn staged(
    matches: &[Match],
    sides: [&Division; 2],
    quota: usize,
    most: usize,
) -> Result<Vec<Entries>, usize> {
    let mut done = Vec::new();
    let (mut stage, mut shared, mut taken) = (Stage::new(sides), 0, 0);
    for matches in matches.chunk_by(|a, b| a.rule == b.rule) {
        let entries: Vec<_> = matches.iter().flat_map(|of| entries(of, sides)).collect();
        let crossings: usize =
            entries.iter().map(|(shape, key, decision)| stage.crossings(*shape, *key, decision.action)).sum();
        if stage.shared + crossings > quota {
            shared += stage.shared;
            done.push(std::mem::replace(&mut stage, Stage::new(sides)).into_entries());
        }
        for (shape, key, decision) in entries {
            stage.add(shape, key, decision);
            if shared + stage.shared > most {
                return Err(taken);
            }
        }
        taken += matches.len();
    }
    done.push(stage.into_entries());
    Ok(done)
}

/// Returns the entries that say what a match says.
fn entries(of: &Match, sides: [&Division; 2]) -> impl Iterator<Item = (Shape, Key, Decision)> {
    let (source, destination) = (sides[0].home(&of.source).clone(), sides[1].home(&of.destination).clone());
    let shape = Shape::new(source.level, destination.level, of.service);
    let decision = Decision { action: of.action, rule: of.rule };
    let service = of.service;
    source.classes.flat_map(move |from| {
        destination.classes.clone().map(move |to| (shape, (from, to, service), decision))
    })
}
