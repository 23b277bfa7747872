//! Somebody who calls, by gotatun, and the messages that somebody without any key can make. For tests.

use std::sync::Arc;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::Packet;
use gotatun::x25519;

use crate::types::{PrivateKey, PublicKey};

/// One end of a tunnel.
pub(super) struct Caller(Tunn);

impl Caller {
    pub(super) fn new(from: &PrivateKey, to: PublicKey) -> Self {
        let limiter = RateLimiter::new(&x25519::PublicKey::from(*from.public().as_bytes()), 1_000);
        let (from, to) = (*from.as_bytes(), *to.as_bytes());
        let table = IndexTable::from_os_rng();
        Self(Tunn::new(from.into(), to.into(), None, None, table, Arc::new(limiter)))
    }

    /// Begins a handshake, with a cookie if there is one.
    pub(super) fn call(&mut self) -> Vec<u8> {
        self.0.format_handshake_initiation(true).unwrap().into_bytes().to_vec()
    }

    /// Takes a demand for a cookie.
    pub(super) fn takes(&mut self, demand: &[u8]) {
        self.0.handle_incoming_packet(Packet::copy_from(demand).try_into_wg().unwrap());
    }
}

/// Makes the first mac of `message` fit the key `to`.
pub(super) fn forge(message: &mut [u8], to: PublicKey) {
    let covered = message.len() - 32;
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(to.as_bytes()).finalize();
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).unwrap();
    mac.update(&message[..covered]);
    message[covered..covered + 16].copy_from_slice(&mac.finalize_fixed());
}

/// The `number`th initiation of nobody with the key `to`.
pub(super) fn forged(number: u32, to: PublicKey) -> Vec<u8> {
    let mut message = vec![7; 148];
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    message[8..12].copy_from_slice(&number.to_be_bytes());
    forge(&mut message, to);
    message
}
