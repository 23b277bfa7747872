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
    handshake: Option<SystemTime>,
    /// When the latest initiation that was taken from it was begun. gotatun forgets it with the peer, and would take an
    /// earlier one again: it answers it, and sends to where it came from.
    latest: Stamp,
}

/// All peers.
#[derive(Debug, Default)]
pub(super) struct Roster {
    known: Known,
    /// The pasts of those that have one. The others have been asleep ever since they were set.
    pasts: BTreeMap<PublicKey, Past>,
    has_sleepers: bool,
}

impl Roster {
    /// Returns whether gotatun has no peers.
    pub(super) fn is_all_asleep(&self) -> bool {
        self.pasts.values().all(|past| past.rest == Rest::Asleep)
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
        edits.into_iter().filter_map(|edit| self.edit(edit, now)).collect()
    }

    fn edit(&mut self, edit: Edit, now: Instant) -> Option<Edit> {
        match edit {
            Edit::Add(config) => self.rouse(&config.public_key, now),
            Edit::Modify(modification) => {
                let key = modification.public_key;
                if let (Some(past), Member::Set(endpoint)) =
                    (self.pasts.get_mut(&key), &modification.endpoint)
                {
                    past.endpoint = Some(*endpoint);
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
    pub(super) fn look(
        &mut self,
        awake: &BTreeMap<PublicKey, ObservedPeer>,
        now: Instant,
        idle: Duration,
    ) -> Vec<PublicKey> {
        awake.iter().filter(|(key, peer)| self.is_tired(key, peer, now, idle)).map(|(key, _)| *key).collect()
    }

    fn is_tired(&mut self, key: &PublicKey, peer: &ObservedPeer, now: Instant, idle: Duration) -> bool {
        let stays = self.known.get(key).is_none_or(|config| stays_awake(config, peer.endpoint));
        let Some(past) = self.pasts.get_mut(key) else { return false };
        if let Some(time) = peer.last_handshake {
            past.remember(time);
        }
        let counted = Counted::from(peer);
        if counted != past.counted {
            (past.counted, past.active) = (counted, now);
        }
        let is_idle = now.duration_since(past.active) >= idle && has_no_session(peer, idle);
        let was = past.rest;
        past.rest = if stays || !is_idle { Rest::Awake } else { Rest::Drowsy };
        (was, past.rest) == (Rest::Drowsy, Rest::Drowsy)
    }

    /// Takes a peer over from gotatun, as it was just seen there, if it is as idle as it was when it became drowsy.
    pub(super) fn fall_asleep(&mut self, key: &PublicKey, peer: &ObservedPeer) -> bool {
        let Some(past) = self.pasts.get_mut(key) else { return false };
        let counted = Counted::from(peer);
        if past.rest != Rest::Drowsy || counted != past.counted {
            return false;
        }
        past.rest = Rest::Asleep;
        past.endpoint = peer.endpoint;
        past.before = Counted { rx: past.before.rx + counted.rx, tx: past.before.tx + counted.tx };
        past.counted = Counted::default();
        true
    }

    /// Returns all peers as they are, given those that gotatun knows. What gotatun has counts more than what it was told:
    /// a change that was broken off halfway is made up for.
    pub(super) fn observe(
        &mut self,
        mut awake: BTreeMap<PublicKey, ObservedPeer>,
        now: Instant,
    ) -> BTreeMap<PublicKey, ObservedPeer> {
        let missing = |(key, past): (&PublicKey, &Past)| {
            (past.rest != Rest::Asleep && !awake.contains_key(key)).then_some(*key)
        };
        let missing: Vec<PublicKey> = self.pasts.iter().filter_map(missing).collect();
        for key in missing {
            self.known.remove(&key);
            self.pasts.remove(&key);
        }
        for (key, peer) in &mut awake {
            self.known.correct(key, peer);
            let past = self.pasts.entry(*key).or_insert_with(|| Past::new(peer.endpoint, now));
            past.rest = if past.rest == Rest::Asleep { Rest::Awake } else { past.rest };
            past.complete(peer);
        }
        let asleep = self.known.peers().filter(|(key, _)| self.rest(key) == Rest::Asleep);
        let mut peers: BTreeMap<PublicKey, ObservedPeer> =
            asleep.map(|(key, config)| (*key, asleep_peer(config, self.pasts.get(key)))).collect();
        peers.append(&mut awake);
        peers
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

    /// Adds to what gotatun knows of a peer what it has forgotten.
    fn complete(&mut self, peer: &mut ObservedPeer) {
        if let Some(time) = peer.last_handshake {
            self.remember(time);
        }
        peer.last_handshake = self.handshake;
        peer.rx_bytes += self.before.rx;
        peer.tx_bytes += self.before.tx;
    }

    /// Keeps the last handshake. It is computed from an age, so that the same handshake comes out a little different each
    /// time.
    fn remember(&mut self, time: SystemTime) {
        let known = self.handshake.get_or_insert(time);
        let difference = time.duration_since(*known).unwrap_or_else(|error| error.duration());
        if difference > Duration::from_secs(1) {
            *known = time;
        }
    }
}

/// How a peer that is asleep is seen.
fn asleep_peer(config: &PeerConfig, past: Option<&Past>) -> ObservedPeer {
    let before = past.map(|past| past.before).unwrap_or_default();
    ObservedPeer {
        preshared_key: config.preshared_key.clone(),
        endpoint: past.map_or(config.endpoint, |past| past.endpoint),
        allowed_ips: config.allowed_ips.clone(),
        persistent_keepalive: config.persistent_keepalive,
        last_handshake: past.and_then(|past| past.handshake),
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
