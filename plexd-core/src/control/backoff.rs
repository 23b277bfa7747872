//! How long to wait before trying again (contract, section 2): from a base, doubling to a minute, each time jittered by
//! a quarter either way, so that a thousand nodes do not come back at once. The randomness is injected.

use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;

/// First delay, unless the control plane sets another.
pub const BASE: Duration = Duration::from_secs(1);
/// Longest delay, before jitter.
pub const MAX: Duration = Duration::from_mins(1);
/// Shortest base that the control plane can set: never reconnect without delay.
const MIN_BASE: Duration = Duration::from_millis(100);
/// Bounds of what `Retry-After` may ask for.
const RETRY_AFTER_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));

/// The delays between attempts at one thing.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// Starts at [`BASE`].
    pub fn new() -> Self {
        Self { base: BASE, failures: 0 }
    }

    /// Sets the first delay, as `retry:` of the event stream does; brought within 100 ms and [`MAX`].
    pub fn set_base(&mut self, base: Duration) {
        self.base = base.clamp(MIN_BASE, MAX);
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns how long to wait after one more failure. `random` is any number; all of its range is used.
    pub fn next(&mut self, random: u32) -> Duration {
        let delay = self.base.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        jittered(delay, random)
    }
}

/// Returns `delay` changed by at most a quarter either way: 0 makes it shortest, `u32::MAX` longest.
pub fn jittered(delay: Duration, random: u32) -> Duration {
    delay.mul_f64(0.75) + part_of(delay / 2, random)
}

/// Returns a part of `delay`: none of it for 0, all for `u32::MAX`.
pub fn part_of(delay: Duration, random: u32) -> Duration {
    delay.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Returns `delay` made longer by at most a quarter: for a wait that somebody asked for, which must not be shorter.
pub fn extended(delay: Duration, random: u32) -> Duration {
    delay.saturating_add(part_of(delay / 4, random))
}

/// Returns a number from the system's random source; were there none, the middle of the range.
pub fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// Returns how long the `Retry-After` header, in seconds or as a date, asks to wait from `now`; brought within 1 s and
/// 1 h.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
        Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO)
    };
    Some(delay.clamp(RETRY_AFTER_BOUNDS.0, RETRY_AFTER_BOUNDS.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of the range: no jitter.
    const MIDDLE: u32 = u32::MAX / 2;

    fn seconds(backoff: &mut Backoff) -> u64 {
        backoff.next(MIDDLE).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
    }

    #[test]
    fn delays_double_to_a_minute_and_start_over_after_a_success() {
        let mut backoff = Backoff::new();
        let delays: Vec<_> = (0..8).map(|_| seconds(&mut backoff)).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..100 {
            backoff.next(0);
        }
        assert_eq!(seconds(&mut backoff), 60);
        backoff.reset();
        assert_eq!(seconds(&mut backoff), 1);
    }

    #[test]
    fn jitter_is_a_quarter_either_way() {
        assert_eq!(Backoff::new().next(0), Duration::from_millis(750));
        assert_eq!(Backoff::new().next(u32::MAX), Duration::from_millis(1250));
    }

    #[test]
    fn a_wait_that_was_asked_for_only_grows() {
        let delay = Duration::from_secs(4);
        assert_eq!([0, u32::MAX].map(|random| extended(delay, random).as_secs()), [4, 5]);
        assert_eq!([0, u32::MAX].map(|random| part_of(delay, random).as_secs()), [0, 4]);
    }

    #[test]
    fn the_base_can_be_set_within_bounds() {
        let mut backoff = Backoff::new();
        for (base, first) in [(0, 100), (3000, 3000), (1_000_000, 60_000)] {
            backoff.set_base(Duration::from_millis(base));
            backoff.reset();
            assert_eq!(backoff.next(MIDDLE).as_millis().next_multiple_of(100), first);
        }
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date_within_bounds() {
        let now = "2015-10-21T07:27:00Z".parse().unwrap();
        for (value, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(1)),
            ("99999999999999999999999", Some(3600)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(60)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(1)),
            ("Wed, 21 Oct 2099 07:28:00 GMT", Some(3600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
