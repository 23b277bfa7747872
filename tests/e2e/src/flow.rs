//! A flow of numbered datagrams between two hosts, 1,000 a second each way, and what of it was lost.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Daemon, Host};

/// UDP port of a flow's two ends.
const FIRST_PORT: u16 = 7000;

/// How long a flow may take to begin and to end beside its time, in seconds.
const GRACE: u64 = 30;

/// How long a flow goes on that nobody stops, in seconds.
const ENDLESS: u64 = 3_600;

/// A flow that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Flow {
    ends: [Daemon; 2],
    seconds: u64,
}

/// What was lost of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Datagrams sent, both ways together.
    pub sent: u64,
    /// Datagrams that did not arrive within a second, both ways together.
    pub lost: u64,
    /// How many of those arrived later.
    pub late: u64,
    /// The longest time in which none arrived in time at one of the ends, in milliseconds.
    pub longest_gap_ms: u64,
    /// How late one of the senders was at most, in milliseconds: what of a gap is the machine's, not the tunnel's.
    pub latest_ms: u64,
}

impl Loss {
    /// Returns how many never arrived, not even late.
    pub fn never_arrived(&self) -> u64 {
        self.lost.saturating_sub(self.late)
    }
}

impl Flow {
    /// Starts one between two hosts, each with its address, that lasts `seconds`. `number` tells flows of the same hosts
    /// apart.
    #[track_caller]
    pub fn start(a: (&Host, &str), b: (&Host, &str), number: u16, seconds: u64) -> Self {
        let port = FIRST_PORT + number;
        let end = |(host, address): (&Host, &str), other: &str| {
            let (own, peer) = (format!("{address}:{port}"), format!("{other}:{port}"));
            let program = host.program("plexd-demo");
            let name = format!("flow-{number}-{seconds}s");
            host.spawn(&name, &[&program, "datagrams", &own, &peer, &seconds.to_string()])
        };
        Self { ends: [end(a, b.1), end(b, a.1)], seconds }
    }

    /// Starts one that lasts until [`Flow::stop`].
    #[track_caller]
    pub fn endless(a: (&Host, &str), b: (&Host, &str), number: u16) -> Self {
        Self::start(a, b, number, ENDLESS)
    }

    /// Ends it, and tells what was lost of it.
    #[track_caller]
    pub fn stop(mut self) -> Loss {
        for end in &self.ends {
            end.signal(Signal::SIGTERM);
        }
        self.seconds = 0;
        self.finish()
    }

    /// Waits until it is over.
    #[track_caller]
    pub fn finish(mut self) -> Loss {
        let figures = self.ends.each_mut().map(|end| {
            let status = end.wait(Duration::from_secs(self.seconds + GRACE));
            let log = end.log();
            assert!(status.success(), "{log}");
            let last = log.lines().last().unwrap_or_default();
            let figures: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {log}"));
            ["sent", "in_time", "too_late", "longest_gap_ms", "latest_ms"]
                .map(|name| figures[name].as_u64().unwrap_or_else(|| panic!("no {name}: {log}")))
        });
        let [[sent_a, in_time_a, late_a, gap_a, latest_a], [sent_b, in_time_b, late_b, gap_b, latest_b]] =
            figures;
        Loss {
            sent: sent_a + sent_b,
            lost: (sent_a + sent_b).saturating_sub(in_time_a + in_time_b),
            late: late_a + late_b,
            longest_gap_ms: gap_a.max(gap_b),
            latest_ms: latest_a.max(latest_b),
        }
    }
}
