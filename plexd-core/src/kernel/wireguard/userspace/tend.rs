//! Looks after the peers that gotatun knows: those that are to be kept alive and do not answer are called again, those
//! that nobody speaks with are put to sleep.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use gotatun::device::configure::DeviceWrite;
use gotatun::x25519;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::convert::observed;
use super::{INITIATIONS, Running, Shared, Transports};
use crate::kernel::ObservedPeer;
use crate::types::PublicKey;

/// Peers put to sleep at a time: packets wait meanwhile, and removing one is work that grows with all that are awake.
const TIRED_AT_ONCE: usize = 16;

/// Peers put to sleep in one look, for the same reason.
const TIRED: usize = 256;

impl Shared {
    /// Looks after all peers, once.
    pub(super) async fn tend(&self) {
        let Ok(running) = self.device() else { return };
        let (missing, tired) = running
            .device
            .read(async |device| {
                let mut awake = observed(unconstrained(device.peers()).await);
                let tired = running.gate.look(&awake, Instant::now(), self.idle);
                let missing = without_session(&awake);
                let take = |key: PublicKey| Some((key, awake.remove(&key)?));
                (missing, tired.into_iter().take(TIRED).filter_map(take).collect::<Vec<_>>())
            })
            .await;
        self.initiate(&missing).await;
        for tired in tired.chunks(TIRED_AT_ONCE) {
            let _changing = self.changing.lock().await;
            put_to_sleep(&running, tired).await;
            tokio::task::yield_now().await;
        }
    }

    /// Initiates a handshake with those of `peers` that have no fresh session. gotatun gives up after 90 s without an
    /// answer, where the kernel goes on as long as there is a keepalive to send.
    pub(super) async fn initiate(&self, peers: &[PublicKey]) {
        let Ok(Running { device, .. }) = self.device() else { return };
        // One poll sends the initiation; what follows would only wait for its answer. Unconstrained, as that poll is not to be
        // used up by tokio's own idea of how much a task may do.
        let begin = |peer: &PublicKey| {
            let key = x25519::PublicKey::from(*peer.as_bytes());
            unconstrained(device.force_handshake(&key)).now_or_never().is_none()
        };
        for peers in peers.chunks(INITIATIONS) {
            let waiting: Vec<&PublicKey> = peers.iter().filter(|peer| begin(peer)).collect();
            tokio::task::yield_now().await;
            if !waiting.is_empty() {
                // Some of them may have waited for somebody who changes the device instead: once more, when there is nobody.
                // Where a handshake is under way this begins no other.
                device.read(async |_| ()).await;
                for peer in waiting {
                    begin(peer);
                }
            }
        }
    }
}

/// Takes those of `tired`, as they were just seen, out of gotatun that are drowsy still. Nothing reaches gotatun for one of
/// them without waking it first, and without a session gotatun does nothing by itself.
async fn put_to_sleep(Running { device, gate }: &Running, tired: &[(PublicKey, ObservedPeer)]) {
    let written = device
        .write(async |device: &mut DeviceWrite<'_, Transports>| {
            for (key, peer) in tired {
                if gate.change(|roster| roster.fall_asleep(key, peer)) {
                    device.remove_peer(&x25519::PublicKey::from(*key.as_bytes())).await;
                    tracing::debug!(peer = %key, "peer asleep");
                }
            }
        })
        .await;
    if let Err(error) = written {
        tracing::debug!(%error, "putting peers to sleep failed");
    }
}

/// Peers that are to be kept alive, can be reached, and have had no handshake for so long that no session is left.
fn without_session(awake: &BTreeMap<PublicKey, ObservedPeer>) -> Vec<PublicKey> {
    // REJECT_AFTER_TIME of the WireGuard paper, section 6.1.
    let stale = Duration::from_mins(3);
    let has_session = |peer: &ObservedPeer| {
        peer.last_handshake.is_some_and(|time| time.elapsed().unwrap_or_default() < stale)
    };
    let peers = awake.iter().filter(|(_, peer)| {
        peer.persistent_keepalive.is_some() && peer.endpoint.is_some() && !has_session(peer)
    });
    peers.map(|(key, _)| *key).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_peers_to_keep_alive_without_a_session_are_initiated() {
        let key = |byte| PublicKey::from_bytes([byte; 32]);
        let silent = ObservedPeer {
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            persistent_keepalive: NonZeroU16::new(25),
            ..ObservedPeer::default()
        };
        let now = SystemTime::now();
        let peers = [
            (key(1), silent.clone()),
            (key(2), ObservedPeer { endpoint: None, ..silent.clone() }),
            (key(3), ObservedPeer { persistent_keepalive: None, ..silent.clone() }),
            (key(4), ObservedPeer { last_handshake: Some(now), ..silent.clone() }),
            (key(5), ObservedPeer { last_handshake: Some(now - Duration::from_secs(200)), ..silent }),
        ];
        assert_eq!(without_session(&peers.into()), [key(1), key(5)]);
    }
}
