//! Matches in stages: as few as can be, where entries that crossed ones share are within the limits.

use super::choose::Limits;
use super::divide::Division;
use super::resolve::{Decision, Entries, Key, Shape, Stage};
use super::{Beyond, Match};

/// Most entries that a stage keeps by what coarser shapes see of them: bounds the memory it takes, to about 200 MiB.
const MAX_INDEXED: usize = 2_000_000;

/// Most that is looked at to find what crosses, in all: bounds the time, to a few seconds where it is
/// optimised.
const MAX_WORK: usize = 1_500_000_000;

/// Returns the entries that the matches need, stage by stage: about as few stages as can be within the limits.
///
/// # Errors
/// They would take more lookups, or too long to be found.
pub(super) fn stages(
    matches: &[Match],
    sides: [&Division; 2],
    limits: Limits,
) -> Result<Vec<Entries>, Beyond> {
    let classes = |side: usize, network| sides[side].home(network).classes.len();
    let named: usize = matches.iter().map(|of| classes(0, of.source) * classes(1, of.destination)).sum();
    let starts = sides[0].starts() + sides[1].starts();
    let spare = limits.entries.saturating_sub(named + starts);
    let (mut quota, mut work) = (spare, 0);
    loop {
        let stages = Stages { sides, quota, spare, lookups: limits.lookups };
        match stages.of(matches, &mut work)? {
            Outcome::Fits(stages) => return Ok(stages),
            // Where everything crosses, what is shared in all grows with the square root of the quota. With none, which
            // always fits, each crossing begins a stage.
            Outcome::SharesTooMany { taken } => {
                let part = |of: usize| of * taken / matches.len();
                quota = part(part(quota)).min(quota * 3 / 4);
            }
        }
    }
}

/// What stages may take.
struct Stages<'a> {
    sides: [&'a Division; 2],
    /// About so many entries that are shared, in each stage.
    quota: usize,
    /// In all of them.
    spare: usize,
    /// Lookups, in all of them.
    lookups: usize,
}

enum Outcome {
    Fits(Vec<Entries>),
    /// How many matches fitted.
    SharesTooMany {
        taken: usize,
    },
}

impl Stages<'_> {
    /// Returns the entries by stage.
    fn of(&self, matches: &[Match], work: &mut usize) -> Result<Outcome, Beyond> {
        let mut done = Vec::new();
        let (mut stage, mut shared, mut lookups, mut taken) = (Stage::new(self.sides), 0, 0, 0);
        for matches in matches.chunk_by(|a, b| a.rule == b.rule) {
            let entries: Vec<_> = matches.iter().flat_map(|of| entries(of, self.sides)).collect();
            let crossings: usize = entries
                .iter()
                .map(|(shape, key, decision)| stage.crossings(*shape, *key, decision.action))
                .sum();
            if stage.shared + crossings > self.quota || stage.indexed > MAX_INDEXED {
                shared += stage.shared;
                lookups += stage.lookups();
                *work += stage.work;
                done.push(std::mem::replace(&mut stage, Stage::new(self.sides)).into_entries());
            }
            for (shape, key, decision) in entries {
                stage.add(shape, key, decision);
                if shared + stage.shared > self.spare {
                    *work += stage.work;
                    return Ok(Outcome::SharesTooMany { taken });
                }
                if lookups + stage.lookups() > self.lookups {
                    return Err(Beyond::Lookups { rule: decision.rule });
                }
                if *work + stage.work > MAX_WORK {
                    return Err(Beyond::Work { rule: decision.rule });
                }
            }
            taken += matches.len();
        }
        done.push(stage.into_entries());
        Ok(Outcome::Fits(done))
    }
}

/// Returns the entries that say what a match says.
fn entries(of: &Match, sides: [&Division; 2]) -> impl Iterator<Item = (Shape, Key, Decision)> {
    let (source, destination) = (sides[0].home(of.source).clone(), sides[1].home(of.destination).clone());
    let shape = Shape::new(source.level, destination.level, of.service);
    let decision = Decision { action: of.action, rule: of.rule };
    let service = of.service;
    source.classes.flat_map(move |from| {
        destination.classes.clone().map(move |to| (shape, (from, to, service), decision))
    })
}
