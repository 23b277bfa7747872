//! Clocks that go back, as WireGuard sees it. A handshake carries the time at which it was begun, and a peer takes only
//! handshakes later than the latest one it took from the same key, for as long as it has that key. A clock behind that
//! time makes peers refuse the handshakes that this node begins; those that peers begin carry their time and still work.
//! Compares, and does nothing about it.

use std::num::NonZeroU16;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Reading;
use super::kept::Highest;
use crate::kernel::Backend;
use crate::types::PublicKey;

/// Steps back that a time service makes now and then, and that no handshake notices.
const SLACK: SignedDuration = SignedDuration::from_secs(2);

/// Where a backend takes the time of its handshakes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamps {
    /// From the machine's clock, at each handshake (Linux, `drivers/net/wireguard/noise.c`, `tai64n_now`), or at the first
    /// one after a peer slept.
    Clock,
    /// From the machine's clock when a peer is set up, and from there in steady time (gotatun, `TimeStamper`): it goes back
    /// only where a peer is set up anew, at a start.
    SteadyFromStart,
}

impl Stamps {
    /// Returns where the handshakes of `backend` take the time from, given the interval at which peers are kept alive. In the
    /// built-in WireGuard those that are not may sleep, and are set up anew when they wake.
    pub fn of(backend: Backend, keepalive: Option<NonZeroU16>) -> Self {
        match (backend, keepalive) {
            (Backend::Kernel, _) | (Backend::Userspace, None) => Self::Clock,
            (Backend::Userspace, Some(_)) => Self::SteadyFromStart,
        }
    }
}

/// Follows the times that this node's handshakes carry.
#[derive(Debug)]
pub(super) struct Handshakes {
    stamps: Stamps,
    started: Reading,
    /// From before this process.
    before: Option<Highest>,
    highest: Option<Highest>,
    /// Uptime at which handshakes were first seen to be behind.
    behind_since: Option<Duration>,
}

/// Handshakes carry an earlier time than they did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Behind {
    /// The time that they have to pass.
    pub(super) until: Timestamp,
    /// How far that is.
    pub(super) by: Duration,
    /// For how long it has been so.
    pub(super) lasting: Duration,
}

impl Handshakes {
    pub(super) fn new(stamps: Stamps, before: Option<Highest>, wall: Timestamp, uptime: Duration) -> Self {
        let started = Reading { time: wall, at: uptime };
        Self { stamps, started, before, highest: before, behind_since: None }
    }

    /// Looks at the clock, once in a while. Without a `key` there are no handshakes, and those of an earlier one are done.
    pub(super) fn look(
        &mut self,
        key: Option<PublicKey>,
        wall: Timestamp,
        uptime: Duration,
    ) -> Option<Behind> {
        let Some(key) = key else {
            (self.before, self.highest, self.behind_since) = (None, None, None);
            return None;
        };
        let stamp = match self.stamps {
            Stamps::Clock => wall,
            Stamps::SteadyFromStart => self.started.after(uptime),
        };
        // Peers that are set up later begin with the clock as it is then.
        let latest = stamp.max(wall);
        let highest = self.highest.filter(|highest| highest.key == key && highest.time >= latest);
        let highest = highest.unwrap_or(Highest { time: latest, key });
        self.highest = Some(highest);
        let limit = match self.stamps {
            Stamps::Clock => highest.time,
            Stamps::SteadyFromStart => self.before.filter(|before| before.key == key)?.time,
        };
        let by = limit.duration_since(stamp);
        if by <= SLACK {
            self.behind_since = None;
            return None;
        }
        let since = *self.behind_since.get_or_insert(uptime);
        Some(Behind { until: limit, by: by.unsigned_abs(), lasting: uptime.saturating_sub(since) })
    }

    /// Returns what to keep.
    pub(super) fn highest(&self) -> Option<Highest> {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn up(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn key(seed: u8) -> PublicKey {
        PublicKey::from_bytes([seed; 32])
    }

    /// What is seen with the key of `seed`, when the machine's clock says `wall`: until when handshakes are refused, by how
    /// much, and for how long so far, in seconds.
    fn look(handshakes: &mut Handshakes, seed: u8, wall: i64, uptime: u64) -> Option<(i64, u64, u64)> {
        let behind = handshakes.look(Some(key(seed)), at(wall), up(uptime))?;
        Some((behind.until.duration_since(at(0)).as_secs(), behind.by.as_secs(), behind.lasting.as_secs()))
    }

    #[test]
    fn with_the_kernel_a_clock_that_is_set_back_is_behind_until_it_has_passed_where_it_was() {
        let mut handshakes = Handshakes::new(Stamps::Clock, None, at(0), up(10));
        assert_eq!(look(&mut handshakes, 1, 0, 10), None);
        assert_eq!(look(&mut handshakes, 1, 100, 110), None);
        assert_eq!(look(&mut handshakes, 1, 99, 111), None, "a small step");
        assert_eq!(look(&mut handshakes, 1, 100 - HOUR, 120), Some((100, 3600, 0)));
        assert_eq!(look(&mut handshakes, 1, 105 - HOUR, 125), Some((100, 3595, 5)));
        assert_eq!(handshakes.highest(), Some(Highest { time: at(100), key: key(1) }));
        assert_eq!(look(&mut handshakes, 1, 101, 3720), None);
        assert_eq!(look(&mut handshakes, 1, 101 - HOUR, 3730), Some((101, 3600, 0)));
        assert_eq!(look(&mut handshakes, 2, 102 - HOUR, 3731), None, "a new key begins anew");
        assert_eq!(look(&mut handshakes, 2, 103 - HOUR, 3732), None);
    }

    #[test]
    fn the_built_in_wireguard_looks_at_the_clock_again_where_peers_sleep() {
        let keepalive = NonZeroU16::new(25);
        assert_eq!(Stamps::of(Backend::Userspace, keepalive), Stamps::SteadyFromStart);
        assert_eq!(Stamps::of(Backend::Userspace, None), Stamps::Clock);
        for keepalive in [None, keepalive] {
            assert_eq!(Stamps::of(Backend::Kernel, keepalive), Stamps::Clock);
        }
    }

    #[test]
    fn the_built_in_wireguard_that_keeps_peers_alive_is_behind_only_after_a_start_with_an_earlier_clock() {
        let mut handshakes = Handshakes::new(Stamps::SteadyFromStart, None, at(HOUR), up(10));
        assert_eq!(look(&mut handshakes, 1, HOUR, 10), None);
        assert_eq!(look(&mut handshakes, 1, 0, 20), None, "it does not look at the clock again");
        let before = handshakes.highest();
        assert_eq!(before, Some(Highest { time: at(HOUR + 10), key: key(1) }));
        let mut handshakes = Handshakes::new(Stamps::SteadyFromStart, before, at(10), up(30));
        assert_eq!(look(&mut handshakes, 1, 10, 30), Some((HOUR + 10, 3600, 0)));
        // Setting the clock right does not help what has begun with the wrong one.
        assert_eq!(look(&mut handshakes, 1, 2 * HOUR, 40), Some((HOUR + 10, 3590, 10)));
        assert_eq!(look(&mut handshakes, 2, 2 * HOUR, 50), None);
    }

    #[test]
    fn a_clock_that_was_later_before_the_start_is_behind_from_the_start() {
        let before = Some(Highest { time: at(500), key: key(1) });
        let mut handshakes = Handshakes::new(Stamps::Clock, before, at(0), up(1));
        assert_eq!(look(&mut handshakes, 1, 1, 2), Some((500, 499, 0)));
        assert_eq!((handshakes.look(None, at(2), up(3)), handshakes.highest()), (None, None));
        assert_eq!(look(&mut handshakes, 1, 3, 4), None, "the identity was given up");
        let mut handshakes = Handshakes::new(Stamps::Clock, before, at(0), up(1));
        assert_eq!(look(&mut handshakes, 2, 1, 2), None);
    }
}
