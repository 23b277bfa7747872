//! What is found, printed as it comes; at the end the lines for whoever keeps the history, each once.

use std::collections::BTreeMap;

/// Which of several values of a line stands: the one that flatters least.
#[derive(Debug, Clone, Copy)]
enum Stands {
    Lowest,
    Highest,
}

/// The lines: name, unit, which value stands when sizes or circumstances give several.
const LINES: [(&str, &str, Stands); 14] = [
    ("api.read.unix.c1.rps", "req/s", Stands::Lowest),
    ("api.read.unix.c64.rps", "req/s", Stands::Lowest),
    ("api.read.unix.c64.over_bare", "ratio", Stands::Lowest),
    ("api.summary_10000.unix.c64.rps", "req/s", Stands::Lowest),
    ("api.summary_10000.unix.c64.over_bare", "ratio", Stands::Lowest),
    ("api.secret.unix.c64.rps", "req/s", Stands::Lowest),
    ("api.secret.unix.c64.over_upstream", "ratio", Stands::Lowest),
    ("api.put.unix.c64.rps", "req/s", Stands::Lowest),
    ("api.put.unix.c64.syncs_per_put", "ratio", Stands::Highest),
    ("api.idle.pss_mb.10", "MB", Stands::Highest),
    ("api.idle.pss_mb.10000", "MB", Stands::Highest),
    ("api.start_ms.10", "ms", Stands::Highest),
    ("api.start_ms.10000", "ms", Stands::Highest),
    ("api.idle.wakeups_per_s", "per_s", Stands::Highest),
];

/// What a figure is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// This or more.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
    /// This or less.
    AtMost(f64),
}

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    lines: BTreeMap<&'static str, f64>,
    missed: Vec<String>,
}

impl Findings {
    /// Takes the value of a line.
    pub(crate) fn line(&mut self, name: &str, value: f64) {
        let line = LINES.into_iter().find(|(known, ..)| *known == name);
        let (name, _, stands) = line.unwrap_or_else(|| panic!("no line {name}"));
        let kept = self.lines.entry(name).or_insert(value);
        *kept = match stands {
            Stands::Lowest => kept.min(value),
            Stands::Highest => kept.max(value),
        };
    }

    /// Prints `what` is `value` beside what it is to be.
    pub(crate) fn judge(&mut self, what: &str, value: f64, target: Target) {
        let (met, bound) = match target {
            Target::AtLeast(least) => (value >= least, format!(">= {least}")),
            Target::Below(bound) => (value < bound, format!("< {bound}")),
            Target::AtMost(most) => (value <= most, format!("<= {most}")),
        };
        let verdict = if met { "met" } else { "MISSED" };
        let line = format!("{what}: {value:.3}, target {bound}");
        say(&format!("  target {verdict:<6} {line}"));
        if !met {
            self.missed.push(line);
        }
    }

    /// Prints the lines, and what was missed once more.
    pub(crate) fn conclude(&self) {
        for line in &self.missed {
            say(&format!("missed: {line}"));
        }
        for (name, unit, _) in LINES {
            if let Some(value) = self.lines.get(name) {
                let digits = if unit == "req/s" { 0 } else { 3 };
                say(&format!("bench {name} {value:.digits$} {unit}"));
            }
        }
    }
}

/// Prints a line.
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_that_flatters_least_stands() {
        let mut findings = Findings::default();
        for value in [2.0, 1.0, 3.0] {
            findings.line("api.read.unix.c1.rps", value);
            findings.line("api.start_ms.10", value);
        }
        let expected = [("api.read.unix.c1.rps", 1.0), ("api.start_ms.10", 3.0)];
        assert_eq!(findings.lines, BTreeMap::from(expected));
    }

    #[test]
    fn a_target_is_met_or_missed() {
        let mut findings = Findings::default();
        findings.judge("enough", 0.9, Target::AtLeast(0.9));
        findings.judge("few", 0.1, Target::AtMost(0.1));
        assert!(findings.missed.is_empty());
        findings.judge("time", 10.0, Target::Below(10.0));
        assert_eq!(findings.missed, ["time: 10.000, target < 10"]);
    }
}
