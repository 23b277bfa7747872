//! What the embedded WireGuard does on its own: it follows the interface's MTU, looks after the peers, and answers
//! `wg show`.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Shared, UserspaceWireGuard};
use crate::kernel::KernelError;
use crate::kernel::changes::{LinkChanges, Watched};
use crate::kernel::wireguard::uapi;

/// How often the peers are looked after.
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
        let mut interval = tokio::time::interval(INTERVAL.min(self.shared.idle / 4));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connections = JoinSet::new();
        // Every arm only waits, for an event that stays until it is taken; the work is done in the bodies.
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = interval.tick() => self.shared.tend().await,
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
}

async fn accept(listener: Option<&UnixListener>) -> std::io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}
