//! What the embedded WireGuard does on its own: it follows the interface's MTU, goes on initiating handshakes with peers
//! that do not answer, and answers `wg show`.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Shared, UserspaceWireGuard};
use crate::kernel::changes::{LinkChanges, Watched};
use crate::kernel::wireguard::uapi;
use crate::kernel::{KernelError, ObservedDevice};
use crate::types::PublicKey;

/// How often peers without a session are looked for.
const INTERVAL: Duration = Duration::from_secs(10);

/// UAPI connections served at a time; others wait in the kernel.
const CONNECTIONS: usize = 4;

/// The running part of [`UserspaceWireGuard`], for the supervisor.
pub struct UserspaceService {
    shared: Arc<Shared>,
    changes: LinkChanges,
    uapi: Option<UnixListener>,
}

impl UserspaceService {
    /// Creates the service of `wireguard`, which answers on `uapi` if there is one.
    ///
    /// # Errors
    /// If the kernel refuses a netlink socket, or the runtime the listener.
    pub fn new(wireguard: &UserspaceWireGuard, uapi: Option<StdListener>) -> Result<Self, KernelError> {
        let shared = Arc::clone(&wireguard.shared);
        let interface = shared.interface.clone();
        let failed = |operation| {
            let interface = interface.clone();
            move |error| KernelError::new(operation, interface, error)
        };
        let changes = LinkChanges::new(&interface, Watched::Link).map_err(failed("follow changes of"))?;
        let uapi = uapi
            .map(|listener| {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)
            })
            .transpose()
            .map_err(failed("serve the UAPI socket of"))?;
        Ok(Self { shared, changes, uapi })
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connections = JoinSet::new();
        // Every arm only waits, for an event that stays until it is taken; the work is done in the bodies.
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = interval.tick() => self.initiate_missing().await,
                result = self.changes.changed() => {
                    if let Err(error) = result {
                        tracing::warn!(%error, iface = %self.shared.interface, "changes of the interface are not seen");
                        tokio::time::sleep(INTERVAL).await;
                    }
                    self.follow_mtu().await;
                }
                stream = accept(self.uapi.as_ref()), if connections.len() < CONNECTIONS => match stream {
                    Ok(stream) => {
                        let shared = Arc::clone(&self.shared);
                        connections.spawn(uapi::serve(stream, async move { shared.observe().await }));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "accepting a UAPI connection failed");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn follow_mtu(&self) {
        // Looking the interface up is what follows its MTU.
        if let Err(error) = self.shared.link().await {
            tracing::debug!(%error, iface = %self.shared.interface, "the MTU is not known");
        }
    }

    async fn initiate_missing(&self) {
        match self.shared.observe().await {
            Ok(Some(device)) => self.shared.initiate(&without_session(&device)).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, iface = %self.shared.interface, "the peers are not known"),
        }
    }
}

async fn accept(listener: Option<&UnixListener>) -> std::io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Peers that are to be kept alive, can be reached, and have had no handshake for so long that no session is left.
fn without_session(device: &ObservedDevice) -> Vec<PublicKey> {
    // REJECT_AFTER_TIME of the WireGuard paper, section 6.1.
    let stale = Duration::from_mins(3);
    let has_session = |peer: &crate::kernel::ObservedPeer| {
        peer.last_handshake.is_some_and(|time| time.elapsed().unwrap_or_default() < stale)
    };
    let peers = device.peers.iter().filter(|(_, peer)| {
        peer.persistent_keepalive.is_some() && peer.endpoint.is_some() && !has_session(peer)
    });
    peers.map(|(key, _)| *key).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::time::SystemTime;

    use super::*;
    use crate::kernel::ObservedPeer;

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
        let device = ObservedDevice { peers: peers.into(), ..ObservedDevice::default() };
        assert_eq!(without_session(&device), [key(1), key(5)]);
    }
}
