//! The nonces of events whose signature held: each is refused a second time for as long as its event would be young
//! enough to be accepted. Bounded; when full, the one that would be forgotten first goes first.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::control::envelope::NonceSet;
use crate::types::Checksum;

/// Most nonces kept: far more than a control plane signs for one node in ten minutes.
const MAX: usize = 65_536;

/// Longest nonce that is kept as it is, in bytes. An event has room for one of 8 MiB.
const MAX_LENGTH: usize = 128;

/// The set.
#[derive(Debug, Default)]
pub struct Nonces {
    expiries: BTreeMap<String, Timestamp>,
    by_expiry: BTreeSet<(Timestamp, String)>,
}

impl Nonces {
    /// Returns what a nonce is kept as, here and on disk: itself, or the digest of a long one.
    pub fn kept_as(nonce: &str) -> Cow<'_, str> {
        if nonce.len() <= MAX_LENGTH {
            return nonce.into();
        }
        Checksum::from(<[u8; 32]>::from(Sha256::digest(nonce))).to_string().into()
    }

    /// Remembers a nonce until `expires`.
    pub fn insert(&mut self, nonce: &str, expires: Timestamp) {
        let nonce = &*Self::kept_as(nonce);
        if let Some(previous) = self.expiries.insert(nonce.to_owned(), expires) {
            self.by_expiry.remove(&(previous, nonce.to_owned()));
        }
        self.by_expiry.insert((expires, nonce.to_owned()));
        if self.expiries.len() > MAX
            && let Some((_, first)) = self.by_expiry.pop_first()
        {
            self.expiries.remove(&first);
        }
    }

    /// Forgets what expired before `now`; returns whether anything did.
    pub fn forget_expired(&mut self, now: Timestamp) -> bool {
        let before = self.expiries.len();
        while self.by_expiry.first().is_some_and(|(expires, _)| *expires < now) {
            if let Some((_, nonce)) = self.by_expiry.pop_first() {
                self.expiries.remove(&nonce);
            }
        }
        before != self.expiries.len()
    }
}

impl NonceSet for Nonces {
    fn contains(&self, nonce: &str) -> bool {
        self.expiries.contains_key(&*Self::kept_as(nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_nonce_is_known_until_it_expires() {
        let mut nonces = Nonces::default();
        nonces.insert("a", at(10));
        nonces.insert("b", at(20));
        assert!(!nonces.forget_expired(at(10)) && nonces.contains("a"));
        assert!(nonces.forget_expired(at(11)) && !nonces.contains("a") && nonces.contains("b"));
    }

    #[test]
    fn a_long_nonce_is_known_and_takes_no_more_room_than_a_short_one() {
        let long = "n".repeat(8 * 1024 * 1024);
        for kept in [long.as_str(), &Nonces::kept_as(&long)] {
            let mut nonces = Nonces::default();
            nonces.insert(kept, at(10));
            assert!(nonces.contains(&long) && !nonces.contains(&long[1..]));
            assert!(nonces.expiries.keys().all(|nonce| nonce.len() <= MAX_LENGTH));
        }
        assert_eq!(Nonces::kept_as(&long[..MAX_LENGTH]), long[..MAX_LENGTH]);
    }

    #[test]
    fn the_set_is_bounded_and_loses_what_expires_first() {
        let mut nonces = Nonces::default();
        for n in 0..=i64::try_from(MAX).unwrap() {
            nonces.insert(&n.to_string(), at(n));
        }
        assert!(!nonces.contains("0") && nonces.contains("1") && nonces.contains(&MAX.to_string()));
    }
}
