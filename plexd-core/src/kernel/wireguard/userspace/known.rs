//! What the embedded WireGuard was told, and from it the least that a change has to touch, so that nothing but what
//! differs is set. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::Bound;

use ipnet::IpNet;

use super::owners::Owners;
use crate::kernel::{ObservedPeer, PeerChange, PeerConfig};
use crate::types::{AllowedIps, PresharedKey, PublicKey};

/// One edit of the device.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// A peer that is not there yet.
    Add(PeerConfig),
    /// Members of a peer that is there; its session stays.
    Modify(Modification),
    /// A peer that goes.
    Remove(PublicKey),
}

/// A member of a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Member<T> {
    /// Stays as it is.
    Keep,
    /// Is to be this.
    Set(T),
}

impl<T: PartialEq> Member<T> {
    fn from_difference(known: &T, desired: T) -> Self {
        if *known == desired { Self::Keep } else { Self::Set(desired) }
    }
}

/// What to change of a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Modification {
    pub(super) public_key: PublicKey,
    pub(super) preshared_key: Member<Option<PresharedKey>>,
    pub(super) endpoint: Member<SocketAddr>,
    pub(super) allowed_ips: Member<AllowedIps>,
    pub(super) persistent_keepalive: Member<Option<NonZeroU16>>,
}

impl Modification {
    fn of(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: Member::Keep,
            endpoint: Member::Keep,
            allowed_ips: Member::Keep,
            persistent_keepalive: Member::Keep,
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::of(self.public_key)
    }
}

/// The peers as they were set.
#[derive(Debug, Default)]
pub(super) struct Known {
    peers: BTreeMap<PublicKey, PeerConfig>,
    owners: Owners,
}

impl Known {
    /// Returns how a peer was set.
    pub(super) fn get(&self, key: &PublicKey) -> Option<&PeerConfig> {
        self.peers.get(key)
    }

    /// Returns the peers whose keys come after `last`, as they were set.
    pub(super) fn after(&self, last: Option<PublicKey>) -> impl Iterator<Item = (&PublicKey, &PeerConfig)> {
        let start = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.peers.range((start, Bound::Unbounded))
    }

    /// Returns the peer to which an address belongs.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&PublicKey> {
        self.owners.find(address)
    }

    /// Returns whether the device has of a peer what it was told.
    pub(super) fn agrees(&self, key: &PublicKey, observed: &ObservedPeer) -> bool {
        self.peers.get(key).is_some_and(|known| {
            known.preshared_key == observed.preshared_key
                && known.allowed_ips == observed.allowed_ips
                && known.persistent_keepalive == observed.persistent_keepalive
        })
    }

    /// Takes over what the device really has of a peer, so that a change that was broken off halfway is made up for.
    pub(super) fn correct(&mut self, key: &PublicKey, observed: &ObservedPeer) {
        if self.agrees(key, observed) {
            return;
        }
        self.remove(key);
        self.take_from_others(key, &observed.allowed_ips);
        let config = PeerConfig {
            public_key: *key,
            preshared_key: observed.preshared_key.clone(),
            endpoint: observed.endpoint,
            allowed_ips: observed.allowed_ips.clone(),
            persistent_keepalive: observed.persistent_keepalive,
        };
        self.peers.insert(*key, config);
    }

    /// Returns the keys of the peers that are to be kept alive.
    pub(super) fn kept_alive(&self) -> Vec<PublicKey> {
        let kept_alive = self.peers.values().filter(|config| config.persistent_keepalive.is_some());
        kept_alive.map(|config| config.public_key).collect()
    }

    /// Takes `change` over and returns the edits that carry it out, in order.
    pub(super) fn edits(&mut self, change: &PeerChange) -> Vec<Edit> {
        match change {
            PeerChange::Remove(public_key) => self.remove(public_key).into_iter().collect(),
            PeerChange::Set(config) => {
                let mut config = config.clone();
                if config.allowed_ips.iter().any(|net| *net != net.trunc()) {
                    config.allowed_ips = config.allowed_ips.iter().map(IpNet::trunc).collect();
                }
                let mut edits = self.take_over(&config);
                edits.extend(self.set(config));
                edits
            }
        }
    }

    /// Forgets a peer that the device does not have.
    pub(super) fn remove(&mut self, public_key: &PublicKey) -> Option<Edit> {
        let config = self.peers.remove(public_key)?;
        for allowed_ip in &config.allowed_ips {
            self.owners.remove(allowed_ip, public_key);
        }
        Some(Edit::Remove(*public_key))
    }

    /// Takes the allowed IPs of `config` from the peers that have them: the last one set has it, as in the kernel.
    fn take_over(&mut self, config: &PeerConfig) -> Vec<Edit> {
        let losers = self.take_from_others(&config.public_key, &config.allowed_ips);
        let shrink = |loser: PublicKey| {
            let allowed_ips = self.peers.get(&loser).map(|config| config.allowed_ips.clone());
            let allowed_ips = Member::Set(allowed_ips.unwrap_or_default());
            Edit::Modify(Modification { allowed_ips, ..Modification::of(loser) })
        };
        losers.into_iter().map(shrink).collect()
    }

    /// Gives `allowed_ips` to the peer `key`, and returns who had one of them.
    fn take_from_others(&mut self, key: &PublicKey, allowed_ips: &AllowedIps) -> BTreeSet<PublicKey> {
        let owners = allowed_ips.iter().filter_map(|net| self.owners.insert(*net, *key));
        let losers: BTreeSet<PublicKey> = owners.filter(|owner| owner != key).collect();
        for loser in &losers {
            if let Some(loser) = self.peers.get_mut(loser) {
                loser.allowed_ips.retain(|net| !allowed_ips.contains(net));
            }
        }
        losers
    }

    fn set(&mut self, config: PeerConfig) -> Option<Edit> {
        let known = self.peers.insert(config.public_key, config.clone());
        let Some(known) = known else { return Some(Edit::Add(config)) };
        if let (None, Some(peer)) = (config.endpoint, self.peers.get_mut(&config.public_key)) {
            peer.endpoint = known.endpoint;
        }
        for dropped in known.allowed_ips.iter().filter(|net| !config.allowed_ips.contains(net)) {
            self.owners.remove(dropped, &config.public_key);
        }
        let modification = Modification {
            public_key: config.public_key,
            preshared_key: Member::from_difference(&known.preshared_key, config.preshared_key),
            // The peer may have roamed since, so what was set last time says nothing.
            endpoint: config.endpoint.map_or(Member::Keep, Member::Set),
            allowed_ips: Member::from_difference(&known.allowed_ips, config.allowed_ips),
            persistent_keepalive: Member::from_difference(
                &known.persistent_keepalive,
                config.persistent_keepalive,
            ),
        };
        (!modification.is_empty()).then_some(Edit::Modify(modification))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn nets(texts: &[&str]) -> AllowedIps {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn peer(byte: u8, allowed_ips: &[&str]) -> PeerConfig {
        PeerConfig {
            public_key: key(byte),
            preshared_key: Some(PresharedKey::from_bytes([byte; 32])),
            endpoint: None,
            allowed_ips: nets(allowed_ips),
            persistent_keepalive: NonZeroU16::new(25),
        }
    }

    #[test]
    fn setting_what_is_set_edits_nothing() {
        let mut known = Known::default();
        let change = PeerChange::Set(peer(1, &["10.0.0.1/32"]));
        assert_eq!(known.edits(&change), [Edit::Add(peer(1, &["10.0.0.1/32"]))]);
        assert_eq!(known.edits(&change), []);
    }

    #[test]
    fn a_change_touches_only_what_differs() {
        let mut known = Known::default();
        known.edits(&PeerChange::Set(peer(1, &["10.0.0.1/32"])));
        let changed = PeerConfig {
            preshared_key: None,
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            ..peer(1, &["10.0.0.1/32"])
        };
        let expected = Modification {
            preshared_key: Member::Set(None),
            endpoint: Member::Set("192.0.2.1:51820".parse().unwrap()),
            ..Modification::of(key(1))
        };
        assert_eq!(known.edits(&PeerChange::Set(changed)), [Edit::Modify(expected)]);
    }

    #[test]
    fn an_allowed_ip_moves_from_one_peer_to_the_other() {
        let mut known = Known::default();
        known.edits(&PeerChange::Set(peer(1, &["10.0.0.1/32", "10.9.0.0/16"])));
        let edits = known.edits(&PeerChange::Set(peer(2, &["10.9.0.0/16"])));
        let shrunk =
            Modification { allowed_ips: Member::Set(nets(&["10.0.0.1/32"])), ..Modification::of(key(1)) };
        assert_eq!(edits, [Edit::Modify(shrunk), Edit::Add(peer(2, &["10.9.0.0/16"]))]);
        // The loser's later changes do not take it back.
        assert_eq!(known.edits(&PeerChange::Set(peer(1, &["10.0.0.1/32"]))), []);
    }

    #[test]
    fn an_allowed_ip_given_up_is_free_for_another_peer() {
        let mut known = Known::default();
        known.edits(&PeerChange::Set(peer(1, &["10.0.0.1/32", "10.9.0.0/16"])));
        known.edits(&PeerChange::Set(peer(1, &["10.0.0.1/32"])));
        let edits = known.edits(&PeerChange::Set(peer(2, &["10.9.0.0/16"])));
        assert_eq!(edits, [Edit::Add(peer(2, &["10.9.0.0/16"]))]);
        known.edits(&PeerChange::Remove(key(2)));
        let edits = known.edits(&PeerChange::Set(peer(3, &["10.9.0.0/16"])));
        assert_eq!(edits, [Edit::Add(peer(3, &["10.9.0.0/16"]))]);
    }

    #[test]
    fn what_the_device_has_counts_more_than_what_it_was_told() {
        let told = PeerChange::Set(peer(1, &["10.0.0.1/32"]));
        let mut known = Known::default();
        known.edits(&told);
        let observed = ObservedPeer {
            preshared_key: Some(PresharedKey::from_bytes([1; 32])),
            allowed_ips: nets(&["10.0.0.9/32"]),
            persistent_keepalive: NonZeroU16::new(25),
            ..ObservedPeer::default()
        };
        known.correct(&key(1), &observed);
        assert_eq!(known.owner("10.0.0.1".parse().unwrap()), None);
        assert_eq!(known.owner("10.0.0.9".parse().unwrap()), Some(&key(1)));
        let allowed_ips = Member::Set(nets(&["10.0.0.1/32"]));
        let expected = Edit::Modify(Modification { allowed_ips, ..Modification::of(key(1)) });
        assert_eq!(known.edits(&told), [expected]);
        known.remove(&key(1));
        assert_eq!(known.edits(&told), [Edit::Add(peer(1, &["10.0.0.1/32"]))]);
    }

    #[test]
    fn what_the_device_has_moved_is_with_one_peer_only() {
        let mut known = Known::default();
        known.edits(&PeerChange::Set(peer(1, &["10.0.0.1/32", "10.9.0.0/16"])));
        known.edits(&PeerChange::Set(peer(2, &[])));
        let observed = ObservedPeer { allowed_ips: nets(&["10.9.0.0/16"]), ..ObservedPeer::default() };
        known.correct(&key(2), &observed);
        assert_eq!(known.get(&key(1)).unwrap().allowed_ips, nets(&["10.0.0.1/32"]));
        assert_eq!(known.owner("10.9.0.1".parse().unwrap()), Some(&key(2)));
        let edits = known.edits(&PeerChange::Set(peer(1, &["10.0.0.1/32", "10.9.0.0/16"])));
        let back = Modification { allowed_ips: Member::Set(nets(&[])), ..Modification::of(key(2)) };
        assert_eq!(edits[0], Edit::Modify(back));
        assert!(matches!(&edits[1..], [Edit::Modify(edit)] if edit.public_key == key(1)));
    }

    #[test]
    fn removing_a_peer_that_is_not_there_edits_nothing() {
        let mut known = Known::default();
        assert_eq!(known.edits(&PeerChange::Remove(key(1))), []);
        known.edits(&PeerChange::Set(peer(1, &[])));
        assert_eq!(known.edits(&PeerChange::Remove(key(1))), [Edit::Remove(key(1))]);
        assert_eq!(known.edits(&PeerChange::Remove(key(1))), []);
    }
}
