//! The machine's own clocks, a seam: tests put theirs in their place.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// What a machine knows of time.
pub trait Source: fmt::Debug + Send + Sync {
    /// Returns what its clock says, right or wrong.
    fn wall(&self) -> Timestamp;
    /// Returns the time since it was started, sleep included; nobody sets it, and it never goes back.
    fn uptime(&self) -> Duration;
}

/// This machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Source for Machine {
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn uptime(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39").into()
    }
}
