//! Matches in stages: as few as can be, where entries that crossed ones share are within the limits.

use super::Match;
use super::divide::Division;
use super::resolve::{Decision, Key, Shape, Stage};

/// Adds what the matches need to stages, as few as can be without more than `most` entries.
pub(super) fn stages<'a>(matches: &[Match], sides: [&'a Division; 2], most: usize) -> Vec<Stage<'a>> {
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
fn entries(of: &Match, sides: [&Division; 2]) -> impl Iterator<Item = (Shape, Key, Decision)> {
    let (source, destination) = (sides[0].home(&of.source).clone(), sides[1].home(&of.destination).clone());
    let shape = Shape::new(source.level, destination.level, of.service);
    let decision = Decision { action: of.action, rule: of.rule };
    let service = of.service;
    source.classes.flat_map(move |from| {
        destination.classes.clone().map(move |to| (shape, (from, to, service), decision))
    })
}
