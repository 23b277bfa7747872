//! What is measured, and in which order: the quiet before the load, as Go's figures are of a node that has just started.

use crate::findings::{Findings, say};
use crate::scene::Scene;
use crate::{idle, puts, reads, secrets, start};

/// Measures a part, and leaves both processes running.
type Measure = fn(&mut Scene, &mut Findings);

/// The parts, in their order.
const PARTS: [(&str, Measure); 5] = [
    ("idle", idle::measure),
    ("start", start::measure),
    ("reads", reads::measure),
    ("secrets", secrets::measure),
    ("puts", puts::measure),
];

/// What to measure.
#[derive(Debug)]
pub(crate) struct Plan {
    sizes: Vec<usize>,
    parts: Vec<String>,
}

impl Plan {
    /// Reads the arguments; without any, it is everything.
    pub(crate) fn of(arguments: &[&str]) -> Self {
        let (sizes, parts) = match arguments {
            ["--entries", sizes, parts @ ..] => (*sizes, parts),
            parts => ("10,10000", parts),
        };
        let sizes = sizes.split(',').map(|size| size.parse().expect("a number of entries")).collect();
        let known = |part: &&str| PARTS.iter().any(|(name, _)| name == part);
        assert!(
            parts.iter().all(known),
            "{parts:?}: no such part, they are idle, start, reads, secrets, puts"
        );
        Self { sizes, parts: parts.iter().map(|part| (*part).to_owned()).collect() }
    }

    /// Measures, and prints what is found.
    pub(crate) fn carry_out(self) {
        let mut findings = Findings::default();
        for size in self.sizes {
            say(&format!("api: {size} entries of 1 KiB"));
            let mut scene = Scene::new(size);
            for (name, measure) in PARTS {
                if self.parts.is_empty() || self.parts.iter().any(|part| part == name) {
                    measure(&mut scene, &mut findings);
                }
            }
            scene.end();
        }
        findings.conclude();
    }
}
