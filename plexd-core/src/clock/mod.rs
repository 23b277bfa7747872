//! What time it is. The machine's clock counts, but never as earlier than the build or than the last time at which it
//! agreed with the control plane; once the control plane has answered, its `Date` counts, as far as its certificate
//! allows, and time goes on from there whatever happens to the machine's clock. Sets no clock and asks nobody.

mod built;
mod jump;
mod keeper;
mod kept;
mod source;
#[cfg(test)]
pub(crate) mod standing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use crate::types::Clock;

pub use built::built;
pub use jump::Stamps;
pub use keeper::ClockKeeper;
pub use kept::{ClockFile, Kept};
pub use source::{Machine, Source};

/// `Date` has whole seconds, so that a difference of this much says nothing, and half the time a request took on top.
const NOISE: Duration = Duration::from_secs(2);

/// The machine's clock and the control plane agree as long as they are no further apart: then both are hardly wrong by
/// years, as either may be alone.
const AGREEMENT: SignedDuration = SignedDuration::from_hours(24);

/// The node's clock. Its lock guards leaf data only.
#[derive(Debug)]
pub struct NodeClock {
    source: Arc<dyn Source>,
    state: Mutex<State>,
    answered: Notify,
}

#[derive(Debug)]
struct State {
    /// Nothing counts as earlier.
    built: Timestamp,
    /// When the machine's clock and the control plane last agreed; nothing counts as earlier, unless they agree on it.
    known: Reading,
    /// What the control plane last said, if the machine's clock did not agree. One of the two is wrong, so it counts only
    /// for a machine whose clock cannot be right.
    told: Option<Reading>,
    /// The time by the last answer of this process.
    anchor: Option<Reading>,
    /// How far the machine's clock is ahead of the control plane's.
    skew: Option<SignedDuration>,
    /// A `Date` that was not believed.
    disbelieved: Option<Timestamp>,
}

/// A time, and the machine's uptime then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    time: Timestamp,
    at: Duration,
}

impl Reading {
    /// Returns the time at `uptime`, as no clock was set meanwhile.
    fn after(self, uptime: Duration) -> Timestamp {
        later(self.time, uptime.saturating_sub(self.at))
    }
}

/// What there is to say of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// What the machine's clock says.
    pub wall: Timestamp,
    /// The machine's uptime, sleep included.
    pub uptime: Duration,
    /// What the node takes for the time.
    pub now: Timestamp,
    /// Whether that is by what the control plane said.
    pub is_told: bool,
    /// The time before which nothing counts.
    pub floor: Timestamp,
    /// How far the machine's clock is ahead of the control plane's; zero if that cannot be told from none. `None` before
    /// the first answer.
    pub skew: Option<SignedDuration>,
    /// A `Date` of the control plane that was not believed, if it was the last.
    pub disbelieved: Option<Timestamp>,
    /// What is to be kept.
    pub kept: Kept,
}

impl NodeClock {
    /// Creates the clock of this machine. Nothing is known but the build.
    pub fn system() -> Self {
        Self::new(Arc::new(Machine), built())
    }

    /// Creates a clock on `source`, of a program that was `built` then.
    pub fn new(source: Arc<dyn Source>, built: Timestamp) -> Self {
        let known = Reading { time: built, at: source.uptime() };
        let state = State { built, known, told: None, anchor: None, skew: None, disbelieved: None };
        Self { source, state: Mutex::new(state), answered: Notify::new() }
    }

    /// Takes over what was known before this process.
    pub fn remember(&self, kept: &Kept) {
        let at = self.uptime();
        let mut state = self.state();
        if let Some(known) = kept.known {
            state.known = Reading { time: known.max(state.built), at };
        }
        state.told = kept.told.map(|time| Reading { time, at });
    }

    /// Returns the machine's uptime, sleep included.
    pub fn uptime(&self) -> Duration {
        self.source.uptime()
    }

    /// Takes over the `date` of an authenticated answer to a request that was sent at `sent` (uptime). `allows` tells
    /// whether the control plane's certificate is valid at a time: a date for which it is not is not believed, unless the
    /// machine's clock says the same, nor is one before the build.
    pub fn answered(&self, date: Timestamp, sent: Duration, allows: impl FnOnce(Timestamp) -> bool) {
        let (wall, uptime) = (self.source.wall(), self.uptime());
        // The answer was written somewhere in between, and within the second that it names.
        let half = uptime.saturating_sub(sent) / 2;
        let noise = NOISE + half;
        let told = later(later(date, half), Duration::from_millis(500));
        let skew = wall.duration_since(told);
        let agrees = skew.unsigned_abs() <= noise;
        let time = if agrees { wall } else { told };
        // Where both agree there is nothing to be led astray by. The certificate is asked each time, or small steps would add up.
        let is_believed = time >= self.state().built && (agrees || allows(time));
        let mut state = self.state();
        let before = state.gist();
        if is_believed {
            let reading = |time| Reading { time, at: uptime };
            state.anchor = Some(reading(time));
            state.skew = Some(if agrees { SignedDuration::ZERO } else { skew });
            state.disbelieved = None;
            if skew.abs() <= AGREEMENT {
                state.known = reading(time.min(wall).max(state.built));
                state.told = None;
            } else {
                state.told = Some(reading(time));
            }
        } else {
            state.disbelieved = Some(date);
        }
        let is_news = state.gist() != before;
        drop(state);
        if is_news {
            self.answered.notify_one();
        }
    }

    /// Gives up the time by the last answer: by it the control plane's certificate is not valid. The machine may have been
    /// asleep in a way that no clock of it counts, or the control plane may have been wrong.
    pub fn distrust(&self) {
        self.state().anchor = None;
    }

    /// Waits for an answer by which there is something else to say.
    pub async fn changed(&self) {
        self.answered.notified().await;
    }

    /// Returns what there is to say.
    pub fn view(&self) -> View {
        let (wall, uptime) = (self.source.wall(), self.uptime());
        let state = self.state();
        View {
            wall,
            uptime,
            now: state.now(wall, uptime),
            is_told: state.anchor.is_some(),
            floor: state.known.after(uptime),
            skew: state.skew,
            disbelieved: state.disbelieved,
            kept: Kept {
                known: Some(state.known.after(uptime)).filter(|_| state.known.time != state.built),
                told: state.told.map(|told| told.after(uptime)),
                highest: None,
            },
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns what there is to say, but for what only goes on with the time.
    fn gist(&self) -> impl PartialEq + use<> {
        let Self { built, known, told, anchor, skew, disbelieved } = self;
        (known.time != *built, told.is_some(), anchor.is_some(), *skew, *disbelieved)
    }

    fn now(&self, wall: Timestamp, uptime: Duration) -> Timestamp {
        if let Some(anchor) = self.anchor {
            return anchor.after(uptime);
        }
        let floor = self.known.after(uptime);
        if wall >= floor {
            return wall;
        }
        // The machine's clock was never set, or was set wrong: better what the control plane said last.
        self.told.map_or(floor, |told| told.after(uptime).max(floor))
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Timestamp {
        let (wall, uptime) = (self.source.wall(), self.uptime());
        self.state().now(wall, uptime)
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
