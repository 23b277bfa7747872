//! Heartbeats: at start and every `heartbeat.interval`; the answer may ask for a reconciliation or for a new key.

use std::time::Duration;

use super::Session;
use crate::control::backoff::{self, Backoff};
use crate::control::wire::{HeartbeatRequest, HeartbeatResponse, MeshInfo};
use crate::identity::{Identity, Machine};
use crate::reconcile::Mesh;
use crate::state::State;
use crate::supervisor::Shutdown;
use crate::types::Clock;

/// How long the mesh may take to say how it is, before the heartbeat goes without.
const MESH_DEADLINE: Duration = Duration::from_secs(2);

/// The task.
#[derive(Debug)]
pub struct Heart {
    /// Shared with the other loops.
    pub session: Session,
    /// Tells how the mesh is, and takes requests to reconcile.
    pub mesh: Mesh,
    /// Takes requests to rotate the key.
    pub state: State,
    /// What the node tells of its binary.
    pub machine: Machine,
    /// The time to state.
    pub clock: std::sync::Arc<dyn Clock>,
    /// Name and port of the mesh interface.
    pub interface: (String, u16),
    /// Period of heartbeats.
    pub interval: Duration,
    /// Longest wait of a node that finds its identity on disk, before the first.
    pub first_contact: Duration,
}

impl Heart {
    /// Beats until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new();
        if !self.session.first_contact(self.first_contact, &shutdown).await {
            return Ok(());
        }
        while let Some(identity) = self.session.identity(&shutdown).await {
            let request = self.request(&identity).await;
            let credentials = identity.credentials();
            // Cancel safe: a heartbeat that is lost is followed by another.
            let result = tokio::select! {
                () = shutdown.cancelled() => break,
                result = self.session.client.heartbeat(&credentials, &request) => result,
            };
            let delay = match result {
                Ok(answer) => {
                    backoff.reset();
                    self.session.answered();
                    self.obey(answer).await;
                    backoff::jittered(self.interval, backoff::random())
                }
                Err(error) => self.session.failed(&error, &mut backoff),
            };
            if !self.session.pause(delay, &shutdown).await {
                break;
            }
        }
        Ok(())
    }

    async fn obey(&self, answer: HeartbeatResponse) {
        if answer.reconcile {
            self.session.pulls.notify_one();
            self.mesh.reconcile();
        }
        if answer.rotate_keys {
            // Fails only when the process stops.
            let _ = self.state.want_rotation().await;
        }
    }

    async fn request(&self, identity: &Identity) -> HeartbeatRequest {
        let mesh = tokio::time::timeout(MESH_DEADLINE, self.mesh.status()).await.ok().flatten();
        let (interface, listen_port) = self.interface.clone();
        let info = mesh.map(|mesh| MeshInfo { interface, peer_count: mesh.peers_up(), listen_port });
        HeartbeatRequest {
            node_id: identity.node_id.to_string(),
            timestamp: self.clock.now(),
            status: if self.session.board.is_degraded() { "degraded" } else { "healthy" }.to_owned(),
            uptime: uptime(),
            binary_checksum: self.machine.binary_checksum().await,
            mesh: info,
            nat: None,
            bridge: None,
            user_access: None,
            ingress: None,
            site_to_site: None,
        }
    }
}

/// The machine's uptime, as `72h15m`.
fn uptime() -> String {
    let uptime = nix::sys::sysinfo::sysinfo().map_or(Duration::ZERO, |info| info.uptime());
    hours_and_minutes(uptime)
}

fn hours_and_minutes(uptime: Duration) -> String {
    let minutes = uptime.as_secs() / 60;
    format!("{}h{}m", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_written_as_the_document_has_it() {
        assert_eq!(hours_and_minutes(Duration::from_secs(72 * 3600 + 15 * 60 + 59)), "72h15m");
        assert_eq!(hours_and_minutes(Duration::from_secs(59)), "0h0m");
    }
}
