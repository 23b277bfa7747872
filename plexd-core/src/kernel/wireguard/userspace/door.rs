//! The door in front of gotatun: bounds what handshakes cost that strangers begin. Whoever knows the public key can make
//! initiations that pass the first mac, from any address it likes to write on them, and to find out that one is nobody's
//! costs a key exchange. So only a few are heard of those that prove nothing; of the others a cookie is demanded, which
//! costs some hashes and comes back only from where it was sent to (WireGuard paper, section 5.4.7). Reads no initiation
//! and sends nothing itself.
//!
//! gotatun has such a limiter of its own, and sees everything that passes here. It counts by source address, which
//! bounds nothing where addresses are forged, and its cookies are others: who is asked for both could never have the right
//! one. So while this door demands cookies, no address gets as far as that gotatun would demand one of it; the responses,
//! which count there as well, are limited here for that reason only.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use gotatun::noise::TunnResult;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::Packet;
use gotatun::x25519;
use tokio::time::Instant;

use super::initiation::{Message, Responder, first_mac};

/// Initiations heard without a cookie, of all senders together: twice what 10,000 peers with sessions need.
const STRANGERS: Rate = Rate { at_once: 200, interval: Duration::from_millis(5) };

/// Initiations heard with a cookie, of all senders together. Enough for 10,000 peers that all call at once, and again every
/// 5 s until they are answered.
const PROVEN: Rate = Rate { at_once: 2_000, interval: Duration::from_micros(500) };

/// Handshake messages of one address, with a cookie and again as many without, while cookies are demanded. gotatun takes
/// 100 in 1.25 s (it counts for a second, and looks every 250 ms), which both together do not reach: 2 x (35 + 12.5).
const ADDRESS: Rate = Rate { at_once: 35, interval: Duration::from_millis(100) };

/// How long cookies are demanded from the last time there was a reason to.
const LOADED: Duration = Duration::from_secs(10);

/// Addresses that are told apart, with a cookie and again as many without.
const ADDRESSES: usize = 16_384;

/// How often is forgotten what has ended.
const SWEEP: Duration = Duration::from_secs(1);

/// When the secret of the cookies, with what grew along with it, is given up after no cookie was demanded for so long. Longer
/// than a cookie counts (2 minutes).
const QUIET: Duration = Duration::from_mins(5);

/// What to do with a message.
pub(super) enum Verdict {
    /// Hear it.
    Heard,
    /// Drop it.
    Refused,
    /// Drop it, and send this demand for a cookie to where it came from.
    Demanded(Packet),
}

/// Knows who was heard how often. Of one key: another one has another door.
pub(super) struct Door {
    responder: Arc<Responder>,
    /// Makes and checks the cookies. Its own limit is 0: who asks it is over the limit here.
    cookies: RateLimiter,
    demanded: Option<Instant>,
    loaded_until: Instant,
    strangers: Bucket,
    proven: Bucket,
    strange_addresses: Addresses,
    proven_addresses: Addresses,
    /// First macs of the initiations heard since the last sweep: the copy of one tells nothing new, and may use up nothing.
    heard: HashSet<[u8; 16]>,
    swept: Instant,
}

impl Door {
    pub(super) fn new(responder: Arc<Responder>, now: Instant) -> Self {
        Self {
            cookies: cookies(&responder),
            responder,
            demanded: None,
            loaded_until: now,
            strangers: Bucket(now),
            proven: Bucket(now),
            strange_addresses: Addresses::default(),
            proven_addresses: Addresses::default(),
            heard: HashSet::new(),
            swept: now,
        }
    }

    /// Returns whether it is the door of `responder`.
    pub(super) fn is_of(&self, responder: &Arc<Responder>) -> bool {
        Arc::ptr_eq(&self.responder, responder)
    }

    /// Judges `packet`, which claims to be a `message`, from `sender`. Costs no key exchange.
    pub(super) fn judge(
        &mut self,
        message: Message,
        packet: &Packet,
        sender: SocketAddr,
        now: Instant,
    ) -> Verdict {
        self.sweep(now);
        let Some(mac) = first_mac(packet).filter(|_| self.responder.is_meant(packet)) else {
            return Verdict::Refused;
        };
        if self.heard.contains(&mac) {
            return Verdict::Refused;
        }
        if !self.hears_stranger(message, sender, now) {
            match self.cookies.verify_packet(sender, Packet::copy_from(packet)) {
                Ok(_) if self.hears_proven(message, sender, now) => {}
                Err(TunnResult::WriteToNetwork(demand)) => {
                    self.demanded = Some(now);
                    return Verdict::Demanded(demand.into());
                }
                _ => return Verdict::Refused,
            }
        }
        if message == Message::Initiation {
            self.heard.insert(mac);
        }
        Verdict::Heard
    }

    fn hears_stranger(&mut self, message: Message, sender: SocketAddr, now: Instant) -> bool {
        let is_loaded = now < self.loaded_until;
        // Asked first, so that one address cannot use up what there is for all, and taken from last, so that forged ones do not
        // fill the table.
        if is_loaded && !self.strange_addresses.may_take(sender, now) {
            return false;
        }
        if message == Message::Initiation && !self.strangers.take(&STRANGERS, now) {
            self.loaded_until = now + LOADED;
            return false;
        }
        !is_loaded || self.strange_addresses.take(sender, now)
    }

    fn hears_proven(&mut self, message: Message, sender: SocketAddr, now: Instant) -> bool {
        self.proven_addresses.take(sender, now)
            && (message == Message::Response || self.proven.take(&PROVEN, now))
    }

    fn sweep(&mut self, now: Instant) {
        if now.duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.heard.clear();
        self.strange_addresses.sweep(now);
        self.proven_addresses.sweep(now);
        self.cookies.try_reset_count();
        if self.demanded.is_some_and(|demanded| now.duration_since(demanded) >= QUIET) {
            self.demanded = None;
            self.cookies = cookies(&self.responder);
            self.heard.shrink_to_fit();
        }
    }
}

fn cookies(responder: &Responder) -> RateLimiter {
    RateLimiter::new(&x25519::PublicKey::from(*responder.public_key().as_bytes()), 0)
}

/// So many at once, and from then on one in each interval.
struct Rate {
    at_once: u32,
    interval: Duration,
}

/// What was taken of a [`Rate`], as the time at which all of it will be there again.
struct Bucket(Instant);

impl Bucket {
    /// Returns when all will be there again if one is taken, which may be.
    fn after(&self, rate: &Rate, now: Instant) -> Option<Instant> {
        let full_at = self.0.max(now) + rate.interval;
        (full_at.duration_since(now) <= rate.interval * rate.at_once).then_some(full_at)
    }

    fn take(&mut self, rate: &Rate, now: Instant) -> bool {
        let after = self.after(rate, now);
        self.0 = after.unwrap_or(self.0);
        after.is_some()
    }
}

/// What the addresses took of [`ADDRESS`]. A network of /64 counts as one, as who has an address of it may have all.
#[derive(Default)]
struct Addresses(HashMap<IpAddr, Bucket>);

impl Addresses {
    fn may_take(&self, sender: SocketAddr, now: Instant) -> bool {
        let bucket = self.0.get(&counted(sender.ip()));
        bucket.map_or(self.0.len() < ADDRESSES, |bucket| bucket.after(&ADDRESS, now).is_some())
    }

    fn take(&mut self, sender: SocketAddr, now: Instant) -> bool {
        self.may_take(sender, now)
            && self.0.entry(counted(sender.ip())).or_insert(Bucket(now)).take(&ADDRESS, now)
    }

    fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, bucket| bucket.0 > now);
        if self.0.is_empty() {
            self.0.shrink_to_fit();
        }
    }
}

fn counted(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
    }
}

#[cfg(test)]
mod tests;
