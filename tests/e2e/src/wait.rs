//! Waiting for what real processes do: polling with a deadline. But for the beat of a barrage nothing else of the harness
//! sleeps.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Time between the first two attempts, and between late ones: most attempts start a program, and tests that wait are not
/// to keep others from their work.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// The outcome of one attempt: what was waited for, or why not yet.
pub trait Attempt {
    /// What was waited for.
    type Value;

    /// Returns the value, or why it is not there yet (empty if that is plain).
    fn outcome(self) -> Result<Self::Value, String>;
}

impl Attempt for bool {
    type Value = ();

    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err(String::new()) }
    }
}

impl<T> Attempt for Option<T> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(String::new)
    }
}

impl<T, E: Display> Attempt for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// Returns `deadline` times `PLEXD_E2E_PATIENCE`, for a machine that is many times slower than others, as one that is
/// emulated.
pub fn patient(deadline: Duration) -> Duration {
    let factor = std::env::var("PLEXD_E2E_PATIENCE").ok().and_then(|factor| factor.parse().ok());
    deadline.saturating_mul(factor.unwrap_or(1))
}

/// Attempts until it works, and returns what came of it. Panics after `deadline`, naming `what` was waited for and why
/// the last attempt failed; the logs of all daemons follow when they are dropped.
#[track_caller]
pub fn wait_until<A: Attempt>(deadline: Duration, what: &str, mut attempt: impl FnMut() -> A) -> A::Value {
    let deadline = patient(deadline);
    let end = Instant::now() + deadline;
    let mut pause = PAUSE.0;
    loop {
        let why = match attempt().outcome() {
            Ok(value) => return value,
            Err(why) => why,
        };
        if Instant::now() >= end {
            let last = if why.is_empty() { why } else { format!("; the last attempt: {why}") };
            panic!("waited {deadline:?} in vain for: {what}{last}");
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(PAUSE.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_the_first_success_is_returned() {
        let mut attempts = 0;
        let value = wait_until(Duration::from_secs(5), "three", || {
            attempts += 1;
            (attempts == 3).then_some(attempts)
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "in vain for: the moon; the last attempt: too far")]
    fn the_last_reason_is_told() {
        wait_until(Duration::ZERO, "the moon", || Err::<(), _>("too far"));
    }
}
