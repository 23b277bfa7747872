//! `plexd-ctl events`: the newest events of the control plane and what became of each, one line per event, also as they
//! come. plexd-core never tells what is in them.

use std::fmt::Write;

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use crate::cli::{Events, Format, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Moment, Reader, Terminal, Tone, counted, known, one_line, or_dash};

/// An event. Its fields are the stable JSON shape; null is what could not be read.
#[derive(Debug, Serialize)]
struct Line {
    received_at: Moment,
    /// As the event says of itself, proven unless it was rejected; the same holds for the next two.
    event_type: Option<String>,
    event_id: Option<String>,
    issued_at: Option<Moment>,
    /// `applied`, `unsupported`, `unknown` or `rejected`.
    outcome: &'static str,
    /// Why it was rejected; null otherwise.
    reason: Option<String>,
    /// Events before this one that plexd-core no longer remembers, as they came faster than they were read.
    missed: u64,
}

impl Line {
    fn new(response: wire::WatchEventsResponse) -> Self {
        let event = response.event.unwrap_or_default();
        let outcome = match event.outcome() {
            wire::EventOutcome::Applied => "applied",
            wire::EventOutcome::Unsupported => "unsupported",
            wire::EventOutcome::Rejected => "rejected",
            wire::EventOutcome::Unknown | wire::EventOutcome::Unspecified => "unknown",
        };
        Self {
            received_at: Moment::at_unix_ms(event.received_unix_ms),
            event_type: known(event.event_type),
            event_id: known(event.event_id),
            issued_at: event.issued_unix_ms.map(Moment::at_unix_ms),
            outcome,
            reason: known(event.reason),
            missed: response.missed,
        }
    }

    /// Renders the event for people, after a line on those that were missed.
    fn render(&self, terminal: &Terminal) -> String {
        let mut text = String::new();
        if self.missed > 0 {
            let missed = format!("({} missed)", counted(self.missed, "event", "events"));
            text.push_str(&terminal.paint(Tone::Bad, &missed));
            text.push('\n');
        }
        let outcome = match &self.reason {
            Some(reason) => format!("{}: {reason}", self.outcome),
            None => self.outcome.to_owned(),
        };
        let columns = [
            self.received_at.to_string(),
            format!("{:<20}", one_line(&outcome)),
            format!("{:<30}", one_line(or_dash(self.event_type.as_deref()))),
            self.issued_at.map_or_else(|| format!("{:<24}", "-"), |at| at.to_string()),
            one_line(or_dash(self.event_id.as_deref())),
        ];
        let [received, outcome, kind, issued, id] = columns;
        let outcome = match self.outcome {
            "rejected" => terminal.paint(Tone::Bad, &outcome),
            _ => outcome,
        };
        writeln!(text, "{received}  {outcome}  {kind}  {issued}  {id}")
            .expect("a String takes all that is written");
        text
    }
}

fn header() -> String {
    format!("{:<24}  {:<20}  {:<30}  {:<24}  EVENT ID\n", "RECEIVED", "OUTCOME", "TYPE", "ISSUED")
}

/// Prints events until there are no more, or nobody reads.
pub(crate) async fn run(client: Client, arguments: &Events, global: &Global) -> Result<(), Failure> {
    let request = wire::WatchEventsRequest { recent: arguments.recent, follow: arguments.follow };
    let mut events = client.events(request).await?;
    let terminal = output::terminal(global, Timestamp::now());
    if global.format() == Format::Table && output::write(&header())? == Reader::Gone {
        return Ok(());
    }
    while let Some(response) = events.next().await? {
        let event = Line::new(response);
        let line = match global.format() {
            Format::Json => output::json_line(&event)?,
            Format::Table => event.render(&terminal),
        };
        if output::write(&line)? == Reader::Gone {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Colours;

    fn response(outcome: wire::EventOutcome, reason: &str, missed: u64) -> wire::WatchEventsResponse {
        let event = wire::Event {
            received_unix_ms: 1_795_262_400_123,
            event_type: "peer_added".into(),
            event_id: "evt\n1".into(),
            issued_unix_ms: (outcome != wire::EventOutcome::Rejected).then_some(1_795_262_399_000),
            outcome: outcome.into(),
            reason: reason.into(),
        };
        wire::WatchEventsResponse { event: Some(event), missed }
    }

    #[test]
    fn an_event_is_one_line_under_its_header() {
        let terminal = Terminal { now: Timestamp::UNIX_EPOCH, colours: Colours::Plain };
        let lines = header()
            + &Line::new(response(wire::EventOutcome::Applied, "", 0)).render(&terminal)
            + &Line::new(response(wire::EventOutcome::Rejected, "signature", 2)).render(&terminal);
        let expected = "\
RECEIVED                  OUTCOME               TYPE                            ISSUED                    EVENT ID
2026-11-21T12:00:00.123Z  applied               peer_added                      2026-11-21T11:59:59.000Z  evt 1
(2 events missed)
2026-11-21T12:00:00.123Z  rejected: signature   peer_added                      -                         evt 1
";
        assert_eq!(lines, expected);
    }

    #[test]
    fn json_is_one_line_with_null_for_what_is_not_known() {
        let line = output::json_line(&Line::new(response(wire::EventOutcome::Rejected, "stale", 0))).unwrap();
        let expected = "{\"received_at\":\"2026-11-21T12:00:00.123Z\",\"event_type\":\"peer_added\",\"event_id\":\"evt\\n1\",\
                        \"issued_at\":null,\"outcome\":\"rejected\",\"reason\":\"stale\",\"missed\":0}\n";
        assert_eq!(line, expected);
    }
}
