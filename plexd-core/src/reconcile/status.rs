//! How the mesh is, for the administrator and the heartbeat.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::plan::FRESH;
use super::routes::{Routes, Routing};
use super::wanted::Wanted;
use super::{Reconciler, reading};
use crate::kernel::{Backend, Counters, ObservedDevice, ObservedTable};
use crate::policy::PolicySet;
use crate::state::Desired;
use crate::types::{AllowedIps, NodeId, PublicKey};

/// How the mesh is.
#[derive(Debug, Clone)]
pub struct MeshStatus {
    /// Which WireGuard.
    pub backend: Backend,
    /// Why that one.
    pub backend_reason: String,
    /// Every peer the control plane wants, by id.
    pub peers: Vec<PeerStatus>,
    /// The policies in force.
    pub policies: Arc<PolicySet>,
    /// Why a newer set of policies cannot be enforced.
    pub refused: Option<String>,
    /// When a reconciliation last ended well.
    pub last_success: Option<Instant>,
}

impl MeshStatus {
    /// Returns whether a peer in WireGuard has had no fresh handshake `lasting` until now. WireGuard tells when a handshake
    /// was by the clock: where the clock went back, one from before is in the future now and of no age at all.
    pub fn lacks_handshakes(&self, lasting: Duration) -> bool {
        let is_since = |age: Duration| !age.is_zero() && age <= lasting && age < FRESH;
        self.peers.iter().any(|peer| peer.configured && !peer.handshake_age.is_some_and(is_since))
    }

    /// Returns the number of peers with a fresh handshake.
    pub fn peers_up(&self) -> usize {
        self.peers.iter().filter(|peer| peer.handshake_age.is_some_and(|age| age < FRESH)).count()
    }
}

/// How a peer is.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its id.
    pub id: NodeId,
    /// Its key.
    pub public_key: PublicKey,
    /// Its address in the mesh.
    pub mesh_ip: IpAddr,
    /// Where it is reached: as WireGuard has it, else as the control plane says.
    pub endpoint: Option<String>,
    /// Its allowed IPs.
    pub allowed_ips: AllowedIps,
    /// Whether it is in WireGuard.
    pub configured: bool,
    /// Why it is not, or what else is wrong with it.
    pub problem: Option<String>,
    /// How long ago its last handshake was.
    pub handshake_age: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Whether its allowed IPs are routed through the interface.
    pub routes: Routes,
}

/// Returns how each peer is.
pub(super) fn peers(
    desired: &Desired,
    wanted: Option<&Wanted>,
    device: &ObservedDevice,
    routing: &Routing<'_>,
) -> Vec<PeerStatus> {
    let now = SystemTime::now();
    let status = |peer: &Arc<crate::state::Peer>| {
        let observed = device.peers.get(&peer.public_key);
        let heard: Option<SocketAddr> = observed.and_then(|observed| observed.endpoint);
        PeerStatus {
            id: peer.id.clone(),
            public_key: peer.public_key,
            mesh_ip: peer.mesh_ip,
            endpoint: heard
                .map(|at| at.to_string())
                .or_else(|| peer.endpoint.as_ref().map(ToString::to_string)),
            allowed_ips: peer.allowed_ips.clone(),
            configured: observed.is_some(),
            problem: wanted.and_then(|wanted| wanted.problems.get(&peer.id).cloned()),
            handshake_age: observed
                .and_then(|observed| observed.last_handshake)
                .map(|at| now.duration_since(at).unwrap_or_default()),
            rx_bytes: observed.map_or(0, |observed| observed.rx_bytes),
            tx_bytes: observed.map_or(0, |observed| observed.tx_bytes),
            routes: routing.of(peer, wanted),
        }
    };
    desired.peers.values().map(status).collect()
}

impl Reconciler {
    /// Returns how the mesh is, read from the kernel now.
    pub(super) async fn status(&self) -> MeshStatus {
        let device = self.kernel.wireguard.observe().await.ok().flatten().unwrap_or_default();
        let link = reading(self.kernel.network.observe(&self.config.mesh.interface).await, &mut Vec::new());
        let routing = Routing::new(&link, &self.conflicts);
        MeshStatus {
            backend: self.kernel.wireguard.backend(),
            backend_reason: self.backend_reason.clone(),
            peers: peers(&self.wiring.desired.borrow(), self.wanted.as_ref(), &device, &routing),
            policies: Arc::clone(&self.policies),
            refused: self.refused.clone(),
            last_success: self.last_success,
        }
    }

    /// Returns what the firewall counted, read from the kernel now.
    pub(super) async fn counters(&self) -> Option<Counters> {
        match self.kernel.firewall.observe(self.wanted.as_ref()?.table.as_ref()?).await {
            Ok(ObservedTable::Same { counters }) => Some(counters),
            Ok(_) | Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_count_from_when_the_clock_went_back_and_while_they_are_fresh() {
        let lacking = |configured, age: Option<u64>, lasting| {
            let peer = PeerStatus {
                id: "n_b".parse().unwrap(),
                public_key: PublicKey::from_bytes([2; 32]),
                mesh_ip: [10, 100, 0, 2].into(),
                endpoint: None,
                allowed_ips: AllowedIps::default(),
                configured,
                problem: None,
                handshake_age: age.map(Duration::from_secs),
                rx_bytes: 0,
                tx_bytes: 0,
                routes: Routes::Unknown,
            };
            let status = MeshStatus {
                backend: Backend::Kernel,
                backend_reason: String::new(),
                peers: vec![peer],
                policies: Arc::default(),
                refused: None,
                last_success: None,
            };
            status.lacks_handshakes(Duration::from_secs(lasting))
        };
        for (age, lasting, expected) in [
            (None, 60, true),
            (Some(30), 60, false),
            (Some(90), 60, true),
            (Some(179), 900, false),
            (Some(180), 900, true),
            // Of the future: from before the clock went back.
            (Some(0), 60, true),
        ] {
            assert_eq!(lacking(true, age, lasting), expected, "{age:?} {lasting}");
            assert!(!lacking(false, age, lasting));
        }
    }
}
