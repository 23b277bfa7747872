//! `plexd-ctl policies test`: holds the policy in force against a file of expectations, for pipelines: the exit code tells.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use super::expectations::{self, Expectation};
use super::{RuleReference, references, verdict};
use crate::cli::{Global, Test};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Terminal, Tone, View, counted, known, one_line};

/// Largest file, in bytes: 10,000 expectations with the longest ids and a comment each.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// What became of the expectations. Its fields are the stable JSON shape.
#[derive(Debug, Serialize)]
struct Tested {
    checked: u32,
    failed: u32,
    /// Those that do not hold, in the order of the file.
    failures: Vec<Failed>,
    /// Why a newer set of policies is not in force, and was not tried; null when there is none.
    rejected: Option<String>,
}

/// An expectation that does not hold.
#[derive(Debug, Serialize)]
struct Failed {
    /// Its line, from 1.
    line: usize,
    /// As it was written.
    expectation: String,
    /// `allow`, `deny`, `depends` (on the protocol or port that the line does not name), or null: it cannot be judged.
    verdict: Option<&'static str>,
    /// The rule that decides; null is the default.
    decided_by: Option<RuleReference>,
    /// Rules that decide a protocol or port of their own; the first 16.
    depends_on: Vec<RuleReference>,
    /// Why it cannot be judged.
    reason: Option<String>,
}

/// Tries the expectations and prints those that fail; that some do is a failure.
pub(super) async fn run(client: Client, arguments: &Test, global: &Global) -> Result<(), Failure> {
    let shown = arguments.file.display();
    let wrong = |reason: String| Failure::File { file: shown.to_string(), reason };
    let text = read(&arguments.file).map_err(|error| wrong(error.to_string()))?;
    let expectations = expectations::parse(&text)
        .map_err(|mistake| wrong(format!("line {}: {}", mistake.line, mistake.reason)))?;
    if expectations.is_empty() {
        return Err(wrong("there is no expectation in it, as: allow tcp n_a -> n_b:443".to_owned()));
    }
    let request = expectations.iter().map(|expectation| expectation.wire.clone()).collect();
    let response = client.test(wire::TestPolicyRequest { expectations: request }).await?;
    let tested = Tested::new(response, &expectations);
    output::print(&tested, global, Timestamp::now())?;
    if tested.failed == 0 {
        return Ok(());
    }
    Err(Failure::Expectations { failed: tested.failed, checked: tested.checked })
}

/// Reads the file, or standard input where it is `-`.
fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().take(MAX_FILE + 1).read_to_string(&mut text)?
    } else {
        File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?
    };
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE) {
        return Err(io::Error::other("it is larger than 8 MiB; is it the right file?"));
    }
    Ok(text)
}

impl Tested {
    fn new(response: wire::TestPolicyResponse, expectations: &[Expectation]) -> Self {
        let failed = |failed: wire::FailedExpectation| {
            let expectation = usize::try_from(failed.index).ok().and_then(|index| expectations.get(index))?;
            Some(Failed::new(failed, expectation))
        };
        let failures: Vec<Failed> = response.failed.into_iter().filter_map(failed).collect();
        Self {
            checked: response.checked,
            failed: u32::try_from(failures.len()).unwrap_or(u32::MAX),
            failures,
            rejected: known(response.state.unwrap_or_default().rejected),
        }
    }
}

impl Failed {
    fn new(failed: wire::FailedExpectation, expectation: &Expectation) -> Self {
        let outcome = failed.verdict();
        Self {
            line: expectation.line,
            expectation: expectation.text.clone(),
            verdict: (outcome != wire::Verdict::Unspecified).then(|| verdict(outcome)),
            decided_by: failed.decided_by.map(RuleReference::new),
            depends_on: references(failed.depends_on),
            reason: known(failed.reason),
        }
    }

    fn words(&self) -> String {
        let Self { line, expectation, .. } = self;
        let by = self.decided_by.as_ref().map_or_else(|| "the default".to_owned(), RuleReference::text);
        let parts: Vec<String> = self.depends_on.iter().map(RuleReference::text).collect();
        let why = match (self.verdict, &self.reason) {
            (None, reason) => reason.clone().unwrap_or_else(|| "it cannot be judged".to_owned()),
            (Some("depends"), _) => {
                format!("it depends on the protocol or port: {}; otherwise {by}", parts.join(", "))
            }
            (Some("allow"), _) => format!("it is allowed, by {by}"),
            (Some(_), _) => format!("it is denied, by {by}"),
        };
        format!("line {line}: {expectation}: {why}")
    }
}

impl View for Tested {
    fn render(&self, terminal: &Terminal) -> String {
        let mut text: String = self.failures.iter().map(|failed| one_line(&failed.words()) + "\n").collect();
        let checked = counted(self.checked, "expectation", "expectations");
        let (line, tone) = match self.failed {
            0 => (format!("{checked}, all hold"), Tone::Good),
            failed => (format!("{checked}, {failed} failed"), Tone::Bad),
        };
        text += &terminal.paint(tone, &line);
        text.push('\n');
        let rejected = self
            .rejected
            .as_deref()
            .map(|why| format!("a newer set of policies is refused and was not tried: {}\n", one_line(why)));
        text + &rejected.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Colours, json};

    const TERMINAL: Terminal = Terminal { now: Timestamp::UNIX_EPOCH, colours: Colours::Plain };

    fn tested() -> Tested {
        let lines = "deny tcp n_a -> n_b:22\n\nallow tcp n_a -> n_b\nallow n_a -> n_x\nallow n_a -> n_b\n";
        let expectations = expectations::parse(lines).unwrap();
        let rule =
            wire::RuleReference { policy: "web".into(), rule: 2, text: "allow tcp n_a -> n_b:22".into() };
        let failed = |index, verdict: wire::Verdict, decided_by, depends_on, reason: &str| {
            let (verdict, reason) = (verdict.into(), reason.to_owned());
            wire::FailedExpectation { index, verdict, decided_by, depends_on, reason }
        };
        let failed = vec![
            failed(0, wire::Verdict::Allow, Some(rule.clone()), Vec::new(), ""),
            failed(1, wire::Verdict::Depends, None, vec![rule], ""),
            failed(2, wire::Verdict::Unspecified, None, Vec::new(), "there is no node n_x now"),
        ];
        Tested::new(wire::TestPolicyResponse { checked: 4, failed, state: None }, &expectations)
    }

    #[test]
    fn what_fails_is_told_with_its_line_and_the_rule() {
        let expected = "\
line 1: deny tcp n_a -> n_b:22: it is allowed, by rule 2 of policy web (allow tcp n_a -> n_b:22)
line 3: allow tcp n_a -> n_b: it depends on the protocol or port: rule 2 of policy web (allow tcp n_a -> n_b:22); otherwise the default
line 4: allow n_a -> n_x: there is no node n_x now
4 expectations, 3 failed
";
        assert_eq!(tested().render(&TERMINAL), expected);
        let fine = Tested { checked: 4, failed: 0, failures: Vec::new(), rejected: Some("too many".into()) };
        let expected =
            "4 expectations, all hold\na newer set of policies is refused and was not tried: too many\n";
        assert_eq!(fine.render(&TERMINAL), expected);
    }

    #[test]
    fn the_json_has_its_documented_shape() {
        let mut tested = tested();
        tested.failures.truncate(1);
        let expected = r#"{
  "checked": 4,
  "failed": 3,
  "failures": [
    {
      "line": 1,
      "expectation": "deny tcp n_a -> n_b:22",
      "verdict": "allow",
      "decided_by": {
        "policy": "web",
        "rule": 2,
        "text": "allow tcp n_a -> n_b:22"
      },
      "depends_on": [],
      "reason": null
    }
  ],
  "rejected": null
}
"#;
        assert_eq!(json(&tested).unwrap(), expected);
    }
}
