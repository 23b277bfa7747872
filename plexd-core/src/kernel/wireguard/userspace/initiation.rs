//! Handshake initiations, as far as the one who is called needs them to tell who calls: the initiation is authenticated
//! as gotatun will do it again, and the time it was begun at read from it, which gotatun does not tell. Answers nothing
//! and keeps nothing but the key and what follows from it.
//!
//! WireGuard paper, section 5.4.2: type (1), reserved (3), sender (4), ephemeral (32), static (48), timestamp (28), mac1
//! (16), mac2 (16). Section 5.4.3, the response: type (1), reserved (3), sender (4), receiver (4), ephemeral (32), empty
//! (16), mac1 (16), mac2 (16).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use hmac::{Mac, SimpleHmac};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use subtle::ConstantTimeEq;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::types::{PrivateKey, PublicKey};

const EPHEMERAL: Range<usize> = 8..40;
const STATIC: Range<usize> = 40..88;
const TIMESTAMP: Range<usize> = 88..116;

/// Length of each of the two macs that end a message, in bytes.
const MAC: usize = 16;

/// Peers of whom the secret that is shared with them is kept.
const SECRETS: usize = 4_096;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const LABEL_MAC1: &[u8] = b"mac1----";

type Block = [u8; 32];

/// The time at which an initiation was begun, by the clock of who began it: TAI64N, which sorts as its bytes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Stamp([u8; 12]);

#[cfg(test)]
impl Stamp {
    pub(super) fn of(second: u8) -> Self {
        let mut stamp = [0; 12];
        stamp[7] = second;
        Self(stamp)
    }
}

/// What a datagram claims to be, of those that end with two macs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// Begins a handshake.
    Initiation,
    /// Answers an initiation.
    Response,
}

impl Message {
    /// Returns what `datagram` claims to be, by type and length.
    pub(super) fn of(datagram: &[u8]) -> Option<Self> {
        match (datagram.first()?, datagram.len()) {
            (1, 148) => Some(Self::Initiation),
            (2, 92) => Some(Self::Response),
            _ => None,
        }
    }
}

/// Returns the first mac of a message.
pub(super) fn first_mac(message: &[u8]) -> Option<[u8; MAC]> {
    Some(*split(message)?.1)
}

/// Returns what the first mac of a message is of, and the mac.
fn split(message: &[u8]) -> Option<(&[u8], &[u8; MAC])> {
    let (before, _second) = message.split_last_chunk::<MAC>()?;
    before.split_last_chunk::<MAC>()
}

/// The one who is called: what reads an initiation, and what can be computed of it beforehand.
pub(super) struct Responder {
    private_key: StaticSecret,
    public_key: PublicKey,
    mac1_key: Block,
    chaining_key: Block,
    hash: Block,
    /// What the own key and those of peers that were named make together, so that naming one again costs nothing. The lock
    /// guards leaf data only.
    secrets: Mutex<HashMap<PublicKey, Zeroizing<Block>>>,
    #[cfg(test)]
    pub(super) exchanges: std::sync::atomic::AtomicU32,
}

/// Who an initiation claims to be from. Not authenticated: whoever has both public keys can claim it.
pub(super) struct Caller {
    pub(super) public_key: PublicKey,
    chaining_key: Zeroizing<Block>,
    hash: Block,
}

impl Responder {
    pub(super) fn new(private_key: &PrivateKey) -> Self {
        let public_key = private_key.public();
        let chaining_key = hash(CONSTRUCTION, &[]);
        Self {
            private_key: StaticSecret::from(*private_key.as_bytes()),
            public_key,
            mac1_key: hash(LABEL_MAC1, public_key.as_bytes()),
            chaining_key,
            hash: hash(&hash(&chaining_key, IDENTIFIER), public_key.as_bytes()),
            secrets: Mutex::default(),
            #[cfg(test)]
            exchanges: 0.into(),
        }
    }

    /// Returns the key with which it is called.
    pub(super) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Returns whether `message` was made by somebody who knows this public key. Costs one hash.
    pub(super) fn is_meant(&self, message: &[u8]) -> bool {
        let Some((covered, claimed)) = split(message) else { return false };
        let Ok(mut mac) = <Blake2sMac<U16> as KeyInit>::new_from_slice(&self.mac1_key) else { return false };
        Update::update(&mut mac, covered);
        bool::from(mac.finalize_fixed().as_slice().ct_eq(claimed))
    }

    /// Reads who `initiation`, which [is meant](Self::is_meant), claims to be from. Costs one key exchange.
    pub(super) fn caller(&self, initiation: &[u8]) -> Option<Caller> {
        let ephemeral = <Block>::try_from(initiation.get(EPHEMERAL)?).ok()?;
        let hashed = hash(&self.hash, &ephemeral);
        let chaining_key = derive(&self.chaining_key, &ephemeral).0;
        let (chaining_key, key) = derive(&chaining_key, &*self.exchange(&ephemeral));
        let sealed = initiation.get(STATIC)?;
        let public_key = open::<32>(&key, &hashed, sealed)?;
        let public_key = PublicKey::from_bytes(public_key);
        Some(Caller { public_key, chaining_key, hash: hash(&hashed, sealed) })
    }

    /// Authenticates the caller, a peer, and reads when it began `initiation`. Costs one key exchange for each peer, as a
    /// rule.
    pub(super) fn stamp(&self, caller: &Caller, initiation: &[u8]) -> Option<Stamp> {
        let (_, key) = derive(&caller.chaining_key, &*self.secret(&caller.public_key));
        open::<12>(&key, &caller.hash, initiation.get(TIMESTAMP)?).map(Stamp)
    }

    /// Returns the secret shared with a peer.
    fn secret(&self, peer: &PublicKey) -> Zeroizing<Block> {
        if let Some(secret) = self.secrets().get(peer) {
            return secret.clone();
        }
        let secret = self.exchange(peer.as_bytes());
        let mut secrets = self.secrets();
        if secrets.len() >= SECRETS
            && let Some(any) = secrets.keys().next().copied()
        {
            secrets.remove(&any);
        }
        secrets.insert(*peer, secret.clone());
        secret
    }

    fn secrets(&self) -> MutexGuard<'_, HashMap<PublicKey, Zeroizing<Block>>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, public_key: &Block) -> Zeroizing<Block> {
        #[cfg(test)]
        self.exchanges.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let public_key = x25519_dalek::PublicKey::from(*public_key);
        Zeroizing::new(self.private_key.diffie_hellman(&public_key).to_bytes())
    }
}

fn hash(first: &[u8], second: &[u8]) -> Block {
    Blake2s256::new().chain_update(first).chain_update(second).finalize().into()
}

/// KDF2 of the paper; its first half is KDF1.
fn derive(chaining_key: &Block, input: &[u8]) -> (Zeroizing<Block>, Zeroizing<Block>) {
    let temporary = Zeroizing::new(authenticate(chaining_key, &[input]));
    let first = Zeroizing::new(authenticate(&temporary, &[&[1]]));
    let second = Zeroizing::new(authenticate(&temporary, &[&*first, &[2]]));
    (first, second)
}

fn authenticate(key: &Block, parts: &[&[u8]]) -> Block {
    let mut mac =
        <SimpleHmac<Blake2s256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        Mac::update(&mut mac, part);
    }
    mac.finalize().into_bytes().into()
}

/// Opens what was sealed with a key that is used once.
fn open<const PLAIN: usize>(key: &Block, hash: &Block, sealed: &[u8]) -> Option<[u8; PLAIN]> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?);
    let mut buffer = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let plain = key.open_in_place(nonce, Aad::from(hash), &mut buffer).ok()?;
    <[u8; PLAIN]>::try_from(&*plain).ok()
}

#[cfg(test)]
mod tests {
    use super::super::caller::{Caller as Client, forge};
    use super::*;

    const MAC1: Range<usize> = 116..132;

    fn keys() -> (PrivateKey, PrivateKey) {
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap())
    }

    fn read(responder: &Responder, initiation: &[u8]) -> Option<(PublicKey, Stamp)> {
        if Message::of(initiation) != Some(Message::Initiation) || !responder.is_meant(initiation) {
            return None;
        }
        let caller = responder.caller(initiation)?;
        responder.stamp(&caller, initiation).map(|stamp| (caller.public_key, stamp))
    }

    #[test]
    fn an_initiation_tells_who_calls_and_when() {
        let (own, other) = keys();
        let responder = Responder::new(&other);
        let mut client = Client::new(&own, other.public());
        let (first, second) = (client.call(), client.call());
        let (who, earlier) = read(&responder, &first).unwrap();
        assert_eq!(who, own.public());
        assert_eq!(read(&responder, &first), Some((who, earlier)));
        assert!(read(&responder, &second).unwrap().1 > earlier && earlier > Stamp::default());
    }

    #[test]
    fn one_that_is_meant_for_somebody_else_is_seen_without_a_key_exchange() {
        let (own, other) = keys();
        let initiation = Client::new(&own, own.public()).call();
        assert!(!Responder::new(&other).is_meant(&initiation));
        assert!(Responder::new(&own).is_meant(&initiation));
    }

    #[test]
    fn a_changed_bit_anywhere_before_the_second_mac_is_noticed() {
        let (own, other) = keys();
        let responder = Responder::new(&other);
        let initiation = Client::new(&own, other.public()).call();
        for at in 0..MAC1.end {
            let mut changed = initiation.clone();
            changed[at] ^= 1;
            assert!(!responder.is_meant(&changed), "{at}");
        }
        // With the first mac made to fit, which takes only the public key.
        for at in EPHEMERAL.start..MAC1.start {
            let mut changed = initiation.clone();
            changed[at] ^= 1;
            forge(&mut changed, other.public());
            assert!(responder.is_meant(&changed));
            assert_eq!(read(&responder, &changed), None, "{at}");
        }
    }

    #[test]
    fn the_second_initiation_of_a_peer_costs_one_key_exchange_less() {
        let (own, other) = keys();
        let responder = Responder::new(&other);
        let mut client = Client::new(&own, other.public());
        for exchanges in [2, 3, 4] {
            assert!(read(&responder, &client.call()).is_some());
            assert_eq!(responder.exchanges.load(std::sync::atomic::Ordering::Relaxed), exchanges);
        }
    }

    #[test]
    fn secrets_are_kept_of_so_many_peers_only() {
        let responder = Responder::new(&keys().0);
        let peer = |number: u16| {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&number.to_be_bytes());
            PublicKey::from_bytes(key)
        };
        responder.secrets().extend((0..4_096).map(|number| (peer(number), Zeroizing::default())));
        for number in [4_096, 4_097] {
            responder.secret(&peer(number));
            assert!(responder.secrets().len() == SECRETS && responder.secrets().contains_key(&peer(number)));
        }
    }

    #[test]
    fn type_and_length_tell_what_a_datagram_claims_to_be() {
        assert_eq!(Message::of(&[1; 148]), Some(Message::Initiation));
        assert_eq!(Message::of(&[2; 92]), Some(Message::Response));
        for datagram in [&[][..], &[1], &[1; 147], &[1; 149], &[1; 92], &[2; 148], &[4; 148], &[3; 64]] {
            assert_eq!(Message::of(datagram), None);
            assert!(datagram.len() >= 32 || first_mac(datagram).is_none());
        }
    }
}
