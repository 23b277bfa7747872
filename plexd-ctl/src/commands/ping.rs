//! `plexd-ctl ping`: how long echoes through the tunnel take, one line per echo and a summary, or one JSON value at the end.
//! plexd-core sends them, and says why where none is answered.

use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use plexd_proto::admin::v1::ping_response::Part;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Format, Global, Ping};
use crate::client::{Client, Echoes};
use crate::failure::Failure;
use crate::output::{self, Reader, Terminal, Tone, counted, known, one_line};

/// A ping. Its fields are the stable JSON shape; null is what there is none of.
#[derive(Debug, Serialize)]
struct Report {
    /// Id of the peer.
    peer: String,
    mesh_ip: String,
    interface: String,
    /// What else there is to know.
    remark: Option<String>,
    echoes: Vec<Echo>,
    /// Null where none was answered.
    rtt_us: Option<RoundTrip>,
    sent: u32,
    received: u32,
    loss_percent: f64,
    /// Why none was answered.
    reason: Option<String>,
}

/// An echo.
#[derive(Debug, Serialize)]
struct Echo {
    sequence: u32,
    /// `answered`, `timeout` or `unreachable`.
    outcome: &'static str,
    /// Microseconds until it was answered.
    rtt_us: Option<u64>,
    /// Why it could not be sent, or did not arrive.
    reason: Option<String>,
}

/// Of the echoes that were answered, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct RoundTrip {
    min: u64,
    avg: u64,
    max: u64,
}

/// Sends echoes and prints what becomes of them; no answer at all is a failure. An interrupt ends it with the summary.
pub(crate) async fn run(client: Client, arguments: &Ping, global: &Global) -> Result<(), Failure> {
    let request = wire::PingRequest {
        peer: arguments.peer.clone(),
        count: arguments.count,
        interval_ms: arguments.interval_ms(),
    };
    let patience = Duration::from_millis(request.interval_ms.into());
    let echoes = client.ping(request, patience).await?;
    let mut report = Report::new();
    follow(&mut report, echoes, global).await?;
    report.sum_up();
    let text = match global.format() {
        Format::Json => output::json(&report)?,
        Format::Table => report.summary(),
    };
    output::write(&text)?;
    if report.received > 0 {
        return Ok(());
    }
    let reason = report.reason.unwrap_or_else(|| "interrupted".to_owned());
    Err(Failure::NoAnswer { peer: report.peer, reason })
}

/// Takes over what comes and prints it for people, until all echoes are sent, nobody reads, or an interrupt.
async fn follow(report: &mut Report, mut echoes: Echoes, global: &Global) -> Result<(), Failure> {
    let terminal = output::terminal(global, Timestamp::now());
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|source| Failure::Local { operation: "wait for interrupts", source })?;
    loop {
        // Cancel safe: after an interrupt no more of the stream is read.
        let part = tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            part = echoes.next() => part?,
        };
        let Some(part) = part else { return Ok(()) };
        let text = report.take(part, &terminal);
        if global.format() == Format::Table && output::write(&text)? == Reader::Gone {
            return Ok(());
        }
    }
}

impl Report {
    fn new() -> Self {
        Self {
            peer: String::new(),
            mesh_ip: String::new(),
            interface: String::new(),
            remark: None,
            echoes: Vec::new(),
            rtt_us: None,
            sent: 0,
            received: 0,
            loss_percent: 0.0,
            reason: None,
        }
    }

    /// Takes a part over and returns it as people see it.
    fn take(&mut self, part: Part, terminal: &Terminal) -> String {
        match part {
            Part::Start(start) => {
                self.peer = start.peer_id;
                self.mesh_ip = start.mesh_ip;
                self.interface = start.interface;
                self.remark = known(start.remark);
                self.header(terminal)
            }
            Part::Echo(echo) => {
                let echo = Echo::new(echo);
                let line = echo.line(terminal);
                self.echoes.push(echo);
                line
            }
            Part::End(end) => {
                self.reason = known(end.reason);
                String::new()
            }
        }
    }

    fn header(&self, terminal: &Terminal) -> String {
        let [peer, address, interface] =
            [&self.peer, &self.mesh_ip, &self.interface].map(|text| one_line(text));
        let mut text = format!("echoes to {peer} ({address}) through {interface}\n");
        if let Some(remark) = &self.remark {
            text.push_str(&terminal.paint(Tone::Bad, &one_line(remark)));
            text.push('\n');
        }
        text
    }

    /// Counts what came.
    fn sum_up(&mut self) {
        for echo in &self.echoes {
            self.sent += 1;
            let Some(rtt) = echo.rtt_us else { continue };
            self.received += 1;
            let RoundTrip { min, avg, max } = self.rtt_us.unwrap_or(RoundTrip { min: rtt, avg: 0, max: rtt });
            self.rtt_us = Some(RoundTrip { min: min.min(rtt), avg: avg + rtt, max: max.max(rtt) });
        }
        // Summed up so far.
        if let Some(times) = &mut self.rtt_us {
            times.avg /= u64::from(self.received);
        }
        let [sent, lost] = [self.sent.max(1), self.sent - self.received].map(f64::from);
        self.loss_percent = (lost * 1000.0 / sent).round() / 10.0;
    }

    /// Returns the summary for people.
    fn summary(&self) -> String {
        let sent = counted(self.sent, "echo", "echoes");
        let mut text = format!("{sent} sent, {} answered, {}% lost", self.received, self.loss_percent);
        if let Some(RoundTrip { min, avg, max }) = self.rtt_us {
            let [min, avg, max] = [min, avg, max].map(milliseconds);
            write!(text, "; min/avg/max {min}/{avg}/{max} ms").expect("a String takes all that is written");
        }
        text + "\n"
    }
}

impl Echo {
    fn new(echo: wire::PingEcho) -> Self {
        let outcome = match echo.outcome() {
            wire::EchoOutcome::Answered => "answered",
            wire::EchoOutcome::Timeout => "timeout",
            wire::EchoOutcome::Unreachable | wire::EchoOutcome::Unspecified => "unreachable",
        };
        Self { sequence: echo.sequence, outcome, rtt_us: echo.rtt_us, reason: known(echo.reason) }
    }

    fn line(&self, terminal: &Terminal) -> String {
        let Self { sequence, .. } = self;
        let what = match (self.rtt_us, &self.reason) {
            (Some(rtt), _) => return format!("{sequence}: {} ms\n", milliseconds(rtt)),
            (None, Some(reason)) => format!("{}: {}", self.outcome, one_line(reason)),
            (None, None) => self.outcome.to_owned(),
        };
        format!("{sequence}: {}\n", terminal.paint(Tone::Bad, &what))
    }
}

/// Returns microseconds as milliseconds with three decimals.
fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03}", microseconds / 1000, microseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Colours;

    const TERMINAL: Terminal = Terminal { now: Timestamp::UNIX_EPOCH, colours: Colours::Plain };

    fn start(remark: &str) -> Part {
        Part::Start(wire::PingStart {
            peer_id: "n-b".into(),
            mesh_ip: "10.100.0.2".into(),
            interface: "plexd0".into(),
            remark: remark.into(),
        })
    }

    fn echo(sequence: u32, outcome: wire::EchoOutcome, rtt_us: Option<u64>, reason: &str) -> Part {
        Part::Echo(wire::PingEcho { sequence, outcome: outcome.into(), rtt_us, reason: reason.into() })
    }

    fn report(parts: Vec<Part>) -> (Report, String) {
        let mut report = Report::new();
        let mut text: String = parts.into_iter().map(|part| report.take(part, &TERMINAL)).collect();
        report.sum_up();
        text.push_str(&report.summary());
        (report, text)
    }

    #[test]
    fn each_echo_is_a_line_and_the_summary_the_last_one() {
        let (_, text) = report(vec![
            start("10.100.0.2/32 belongs to eth1: so\nit is"),
            echo(1, wire::EchoOutcome::Answered, Some(412), ""),
            echo(2, wire::EchoOutcome::Timeout, None, ""),
            echo(3, wire::EchoOutcome::Unreachable, None, "no route to host"),
            echo(4, wire::EchoOutcome::Answered, Some(12_005), ""),
            Part::End(wire::PingEnd::default()),
        ]);
        let expected = "\
echoes to n-b (10.100.0.2) through plexd0
10.100.0.2/32 belongs to eth1: so it is
1: 0.412 ms
2: timeout
3: unreachable: no route to host
4: 12.005 ms
4 echoes sent, 2 answered, 50% lost; min/avg/max 0.412/6.208/12.005 ms
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_json_has_its_documented_shape() {
        let (report, text) = report(vec![
            start(""),
            echo(1, wire::EchoOutcome::Answered, Some(300), ""),
            echo(2, wire::EchoOutcome::Answered, Some(500), ""),
            echo(3, wire::EchoOutcome::Timeout, None, ""),
        ]);
        assert!(text.ends_with("3 echoes sent, 2 answered, 33.3% lost; min/avg/max 0.300/0.400/0.500 ms\n"));
        let expected = r#"{"peer":"n-b","mesh_ip":"10.100.0.2","interface":"plexd0","remark":null,"echoes":["#
            .to_owned()
            + r#"{"sequence":1,"outcome":"answered","rtt_us":300,"reason":null},"#
            + r#"{"sequence":2,"outcome":"answered","rtt_us":500,"reason":null},"#
            + r#"{"sequence":3,"outcome":"timeout","rtt_us":null,"reason":null}],"#
            + r#""rtt_us":{"min":300,"avg":400,"max":500},"sent":3,"received":2,"loss_percent":33.3,"reason":null}"#
            + "\n";
        assert_eq!(output::json_line(&report).unwrap(), expected);
    }

    #[test]
    fn nothing_answered_has_no_times() {
        let end = Part::End(wire::PingEnd { reason: "n-b never had a handshake".into() });
        let (report, text) = report(vec![start(""), echo(1, wire::EchoOutcome::Timeout, None, ""), end]);
        assert!(text.ends_with("1: timeout\n1 echo sent, 0 answered, 100% lost\n"), "{text}");
        assert_eq!((report.rtt_us, report.reason.as_deref()), (None, Some("n-b never had a handshake")));
        let (report, _) = self::report(vec![start("")]);
        assert!(report.loss_percent.abs() < f64::EPSILON, "{report:?}");
    }
}
