//! Which peers are asleep: remembered here, and unknown to gotatun, which holds some 25 KB for each peer it knows. Says
//! when a peer is to be woken and when it may go to sleep, and keeps what of it outlives its time in gotatun. Pure: who
//! carries out what is said here is [`Gate`](super::gate::Gate).
//!
//! A peer goes to sleep in two steps. It becomes *drowsy* when nothing was heard of it, sent to it or agreed with it for
//! a while, and is still in gotatun then; it falls *asleep* when that is still so at the next look. A packet that was on
//! its way to gotatun when the peer became drowsy has got there by then, and is seen in what gotatun counts; a later one
//! wakes the peer before it is on its way.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::initiation::Stamp;
use super::known::{Edit, Known, Member};
use crate::kernel::{ObservedPeer, PeerChange, PeerConfig};
use crate::types::PublicKey;

/// How long a peer has to be silent before it may sleep: a session ends 180 s after its handshake (`REJECT_AFTER_TIME` of
/// the WireGuard paper, section 6.1) and an attempt at one after 90 s, so that then gotatun has neither a session nor a
/// packet of it, and waking it costs no handshake that would not have been made anyway.
pub(super) const IDLE: Duration = Duration::from_mins(3);

/// Where a packet may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To gotatun, which knows its peer, or that there is none.
    Open,
    /// To gotatun once this peer is awake.
    Wake(PublicKey),
    /// Nowhere: its peer is asleep, and nobody knows where it is.
    Closed,
}

/// What an initiation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// From a peer that is awake.
    Expected,
    /// From this peer, which is to be woken for it.
    Wakes(PublicKey),
    /// From nobody known, or not later than one that was taken.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Awake,
    Drowsy,
    Asleep,
}

/// What gotatun says of a peer that changes when anything happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counted {
    rx: u64,
    tx: u64,
}

impl From<&ObservedPeer> for Counted {
    fn from(peer: &ObservedPeer) -> Self {
        Self { rx: peer.rx_bytes, tx: peer.tx_bytes }
    }
}

/// What of a peer outlives its time in gotatun.
#[derive(Debug)]
struct Past {
    rest: Rest,
    /// Where it was heard last, or is said to be. Of a peer that is awake gotatun knows better.
    endpoint: Option<SocketAddr>,
    /// What was counted before it was woken last.
    before: Counted,
    /// What was counted since, and until when that changed.
    counted: Counted,
    active: Instant,
    /// Its last handshake: gotatun forgets one with its session.
    handshake: Option<Handshake>,
    /// When the latest initiation that was taken from it was begun. gotatun forgets it with the peer, and would take an
    /// earlier one again: it answers it, and sends to where it came from.
    latest: Stamp,
}

/// When a handshake was, by a clock that nobody sets.
#[derive(Debug, Clone, Copy)]
struct Handshake {
    at: Instant,
    /// The time that was said for it first.
    said: SystemTime,
}

impl Handshake {
    /// The handshake that gotatun says was at `said`.
    fn new(said: SystemTime, now: Instant) -> Self {
        let age = said.elapsed().unwrap_or_default();
        Self { at: now.checked_sub(age).unwrap_or(now), said }
    }

    /// Returns whether both are the same. Times are computed from ages, so that the same handshake comes out a little
    /// different each time.
    fn is(&self, other: &Self) -> bool {
        let later = self.at.max(other.at);
        later.duration_since(self.at.min(other.at)) <= Duration::from_secs(1)
    }

    /// Returns its time by the machine's clock as it is now: the same one as before unless the clock was set.
    fn time(&self, now: Instant) -> SystemTime {
        let time = SystemTime::now().checked_sub(now.duration_since(self.at)).unwrap_or(self.said);
        let difference = time.duration_since(self.said).unwrap_or_else(|error| error.duration());
        if difference > Duration::from_secs(1) { time } else { self.said }
    }
}

/// Peers that are asleep, and the last one if there may be more.
pub(super) struct Sleepers {
    pub(super) peers: Vec<(PublicKey, ObservedPeer)>,
    pub(super) last: Option<PublicKey>,
}

/// All peers.
#[derive(Debug, Default)]
pub(super) struct Roster {
    known: Known,
    /// The pasts of those that have one. The others have been asleep ever since they were set.
    pasts: BTreeMap<PublicKey, Past>,
    has_sleepers: bool,
    version: u64,
}

impl Roster {
    /// Returns how many peers gotatun has.
    pub(super) fn awake(&self) -> usize {
        self.pasts.values().filter(|past| past.rest != Rest::Asleep).count()
    }

    /// Returns what changes whenever a packet that may pass could become one that may not.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    fn rest(&self, key: &PublicKey) -> Rest {
        self.pasts.get(key).map_or(Rest::Asleep, |past| past.rest)
    }

    /// Returns where a peer is, as far as that is known here.
    fn endpoint(&self, key: &PublicKey) -> Option<SocketAddr> {
        match self.pasts.get(key) {
            Some(past) => past.endpoint,
            None => self.known.get(key)?.endpoint,
        }
    }

    /// Returns the past of a known peer, which begins with it.
    fn past(&mut self, key: &PublicKey, now: Instant) -> Option<(&mut Past, &PeerConfig)> {
        let config = self.known.get(key)?;
        Some((self.pasts.entry(*key).or_insert_with(|| Past::new(config.endpoint, now)), config))
    }

    /// Returns whether there is, or was, a peer that may sleep.
    pub(super) fn has_sleepers(&self) -> bool {
        self.has_sleepers
    }

    /// Returns the keys of the peers that are to be kept alive.
    pub(super) fn kept_alive(&self) -> Vec<PublicKey> {
        self.known.kept_alive()
    }

    /// Takes `change` over and returns the edits of gotatun that carry it out, in order.
    pub(super) fn edits(&mut self, change: &PeerChange, now: Instant) -> Vec<Edit> {
        let edits = self.known.edits(change);
        self.version += u64::from(!edits.is_empty());
        edits.into_iter().filter_map(|edit| self.edit(edit, now)).collect()
    }

    fn edit(&mut self, edit: Edit, now: Instant) -> Option<Edit> {
        match edit {
            Edit::Add(config) => self.rouse(&config.public_key, now),
            Edit::Modify(modification) => {
                let key = modification.public_key;
                if let Some(past) = self.pasts.get_mut(&key) {
                    if let Member::Set(endpoint) = modification.endpoint {
                        past.endpoint = Some(endpoint);
                    }
                    // It may be just falling asleep, as it was seen before this.
                    if past.rest == Rest::Drowsy {
                        (past.rest, past.active) = (Rest::Awake, now);
                    }
                }
                if self.rest(&key) == Rest::Asleep {
                    return self.rouse(&key, now);
                }
                self.stays_awake(&key);
                Some(Edit::Modify(modification))
            }
            Edit::Remove(key) => {
                let past = self.pasts.remove(&key)?;
                (past.rest != Rest::Asleep).then_some(Edit::Remove(key))
            }
        }
    }

    /// Wakes a peer that is to be kept alive.
    fn rouse(&mut self, key: &PublicKey, now: Instant) -> Option<Edit> {
        if self.stays_awake(key) { self.wake(key, now).map(Edit::Add) } else { None }
    }

    fn stays_awake(&mut self, key: &PublicKey) -> bool {
        let endpoint = self.endpoint(key);
        let stays = self.known.get(key).is_none_or(|config| stays_awake(config, endpoint));
        self.has_sleepers |= !stays;
        stays
    }

    /// Returns where a packet to `destination` may go.
    pub(super) fn way(&self, destination: IpAddr) -> Way {
        // Nobody's is nobody's of those that gotatun knows either.
        let Some(key) = self.known.owner(destination) else { return Way::Open };
        match self.rest(key) {
            Rest::Awake => Way::Open,
            Rest::Asleep if self.endpoint(key).is_none() => Way::Closed,
            Rest::Drowsy | Rest::Asleep => Way::Wake(*key),
        }
    }

    /// Returns whether a packet that gotatun took from one of its peers may be from `source`. gotatun goes by the longest
    /// allowed IP of the peers it knows, and would take the addresses of one that is asleep from a peer that has a network
    /// around them. Where the longest of all is that of a peer that is awake, it is the longest that gotatun knows as well.
    pub(super) fn may_send(&self, source: IpAddr) -> bool {
        self.known.owner(source).is_none_or(|key| self.rest(key) != Rest::Asleep)
    }

    /// Returns whether somebody has this key, so that it is worth authenticating who calls with it.
    pub(super) fn contains(&self, key: &PublicKey) -> bool {
        self.known.get(key).is_some()
    }

    /// Takes note of an authenticated initiation.
    pub(super) fn call(&mut self, key: &PublicKey, stamp: Stamp, now: Instant) -> Call {
        let Some((past, _)) = self.past(key, now).filter(|(past, _)| stamp > past.latest) else {
            return Call::Refused;
        };
        past.latest = stamp;
        if past.rest == Rest::Awake { Call::Expected } else { Call::Wakes(*key) }
    }

    /// Wakes a peer, and returns how to add it to gotatun if it is to be.
    pub(super) fn wake(&mut self, key: &PublicKey, now: Instant) -> Option<PeerConfig> {
        let (past, config) = self.past(key, now)?;
        past.active = now;
        if std::mem::replace(&mut past.rest, Rest::Awake) != Rest::Asleep {
            return None;
        }
        past.counted = Counted::default();
        Some(PeerConfig { endpoint: past.endpoint, ..config.clone() })
    }

    /// Looks at the peers that are awake as gotatun knows them, makes drowsy those that were idle for so long, and returns
    /// those that may fall asleep.
    pub(super) fn look<'a>(
        &mut self,
        awake: impl IntoIterator<Item = (&'a PublicKey, &'a ObservedPeer)>,
        now: Instant,
        idle: Duration,
    ) -> Vec<PublicKey> {
        let tired = awake.into_iter().filter(|(key, peer)| self.is_tired(key, peer, now, idle));
        tired.map(|(key, _)| *key).collect()
    }

    fn is_tired(&mut self, key: &PublicKey, peer: &ObservedPeer, now: Instant, idle: Duration) -> bool {
        let stays = self.known.get(key).is_none_or(|config| stays_awake(config, peer.endpoint));
        let Some(past) = self.pasts.get_mut(key) else { return false };
        past.remember(peer, now);
        let counted = Counted::from(peer);
        if counted != past.counted {
            (past.counted, past.active) = (counted, now);
        }
        let is_idle = now.duration_since(past.active) >= idle && has_no_session(peer, idle);
        let was = past.rest;
        past.rest = if stays || !is_idle { Rest::Awake } else { Rest::Drowsy };
        self.version += u64::from(past.rest != was);
        (was, past.rest) == (Rest::Drowsy, Rest::Drowsy)
    }

    /// Takes a peer over from gotatun, as it was just seen there, if it is as idle as it was when it became drowsy, and
    /// nothing that was changed since keeps it awake.
    pub(super) fn fall_asleep(&mut self, key: &PublicKey, peer: &ObservedPeer) -> bool {
        let stays = self.known.get(key).is_none_or(|config| stays_awake(config, peer.endpoint));
        let Some(past) = self.pasts.get_mut(key) else { return false };
        let counted = Counted::from(peer);
        if stays || past.rest != Rest::Drowsy || counted != past.counted {
            return false;
        }
        past.rest = Rest::Asleep;
        past.endpoint = peer.endpoint;
        past.before = Counted { rx: past.before.rx + counted.rx, tx: past.before.tx + counted.tx };
        past.counted = Counted::default();
        self.version += 1;
        true
    }

    /// Returns whether a peer that gotatun knows is here what it is there.
    pub(super) fn agrees(&self, key: &PublicKey, peer: &ObservedPeer) -> bool {
        self.rest(key) != Rest::Asleep && self.known.agrees(key, peer)
    }

    /// Takes over what gotatun has, given all that it knows. It counts more than what it was told: a change that was broken
    /// off halfway is made up for.
    pub(super) fn correct(&mut self, awake: &BTreeMap<PublicKey, ObservedPeer>, now: Instant) {
        let missing = |(key, past): (&PublicKey, &Past)| {
            (past.rest != Rest::Asleep && !awake.contains_key(key)).then_some(*key)
        };
        let missing: Vec<PublicKey> = self.pasts.iter().filter_map(missing).collect();
        for key in missing {
            self.known.remove(&key);
            self.pasts.remove(&key);
        }
        for (key, peer) in awake {
            self.known.correct(key, peer);
            let past = self.pasts.entry(*key).or_insert_with(|| Past::new(peer.endpoint, now));
            past.rest = if past.rest == Rest::Asleep { Rest::Awake } else { past.rest };
        }
        self.version += 1;
    }

    /// Adds to what gotatun says of a peer what it has forgotten, and remembers what it will forget.
    pub(super) fn complete(&mut self, key: &PublicKey, peer: &mut ObservedPeer, now: Instant) {
        let Some(past) = self.pasts.get_mut(key) else { return };
        past.remember(peer, now);
        peer.last_handshake = past.handshake.map(|handshake| handshake.time(now));
        peer.rx_bytes += past.before.rx;
        peer.tx_bytes += past.before.tx;
    }

    /// Returns the peers that are asleep among the next `many` after `last`.
    pub(super) fn asleep(&self, last: Option<PublicKey>, many: usize, now: Instant) -> Sleepers {
        let some = self.known.after(last).take(many);
        let mut sleepers = Sleepers { peers: Vec::with_capacity(many), last: None };
        for (count, (key, config)) in (1..).zip(some) {
            if self.rest(key) == Rest::Asleep {
                sleepers.peers.push((*key, asleep_peer(config, self.pasts.get(key), now)));
            }
            sleepers.last = (count == many).then_some(*key);
        }
        sleepers
    }
}

impl Past {
    fn new(endpoint: Option<SocketAddr>, now: Instant) -> Self {
        Self {
            rest: Rest::Asleep,
            endpoint,
            before: Counted::default(),
            counted: Counted::default(),
            active: now,
            handshake: None,
            latest: Stamp::default(),
        }
    }

    /// Keeps the last handshake.
    fn remember(&mut self, peer: &ObservedPeer, now: Instant) {
        let Some(said) = peer.last_handshake else { return };
        let seen = Handshake::new(said, now);
        self.handshake = self.handshake.filter(|known| known.is(&seen)).or(Some(seen));
    }
}

/// How a peer that is asleep is seen.
fn asleep_peer(config: &PeerConfig, past: Option<&Past>, now: Instant) -> ObservedPeer {
    let before = past.map(|past| past.before).unwrap_or_default();
    ObservedPeer {
        preshared_key: config.preshared_key.clone(),
        endpoint: past.map_or(config.endpoint, |past| past.endpoint),
        allowed_ips: config.allowed_ips.clone(),
        persistent_keepalive: config.persistent_keepalive,
        last_handshake: past.and_then(|past| past.handshake).map(|handshake| handshake.time(now)),
        rx_bytes: before.rx,
        tx_bytes: before.tx,
    }
}

/// Returns whether a peer is never to sleep: it is to be kept alive, and can be.
fn stays_awake(config: &PeerConfig, endpoint: Option<SocketAddr>) -> bool {
    config.persistent_keepalive.is_some() && endpoint.is_some()
}

/// Returns whether a peer as gotatun knows it has had no handshake for so long.
fn has_no_session(peer: &ObservedPeer, idle: Duration) -> bool {
    peer.last_handshake.is_none_or(|time| time.elapsed().unwrap_or_default() >= idle)
}

#[cfg(test)]
mod tests;
