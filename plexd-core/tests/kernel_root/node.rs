//! A mesh node of the tests: a namespace with the embedded WireGuard in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use plexd_core::kernel::network::RtNetlink;
use plexd_core::kernel::wireguard::uapi::bind_uapi;
use plexd_core::kernel::wireguard::userspace::{UserspaceService, UserspaceWireGuard};
use plexd_core::kernel::{
    DeviceConfig, Network, ObservedDevice, ObservedPeer, PeerChange, PeerConfig, WireGuard,
};
use plexd_core::types::{PresharedKey, PrivateKey, PublicKey};
use tokio_util::sync::CancellationToken;

use crate::namespace::Namespace;

pub(crate) const INTERFACE: &str = "plexd0";
pub(crate) const PORT: u16 = 51820;

/// Two nodes, the first reached at 192.0.2.1, the second at 192.0.2.2, with mesh IPs 10.100.0.1 and 10.100.0.2.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) wireguard: Arc<UserspaceWireGuard>,
    pub(crate) network: Arc<RtNetlink>,
    pub(crate) key: PrivateKey,
    number: u8,
}

pub(crate) fn open_tun() -> std::os::fd::OwnedFd {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap().into()
}

impl Node {
    /// Makes a node in new namespaces, with its service running, and no interface yet.
    pub(crate) fn new(number: u8) -> Self {
        Self::with_idle(number, Duration::from_mins(3))
    }

    /// Makes a node whose peers may sleep after `idle`.
    pub(crate) fn with_idle(number: u8, idle: Duration) -> Self {
        let namespace = Namespace::new();
        let (wireguard, network) = namespace.run(move || async move {
            let uapi = bind_uapi(INTERFACE).unwrap();
            let wireguard = UserspaceWireGuard::with_idle(INTERFACE, open_tun(), 1420, idle).unwrap();
            let wireguard = Arc::new(wireguard);
            let service = UserspaceService::new(&wireguard, uapi).unwrap();
            tokio::spawn(service.run(CancellationToken::new()));
            (wireguard, Arc::new(RtNetlink::new().unwrap()))
        });
        Self { namespace, wireguard, network, key: PrivateKey::generate().unwrap(), number }
    }

    pub(crate) fn mesh_ip(&self) -> String {
        format!("10.100.0.{}", self.number)
    }

    /// Does what the reconciler does for a node without peers.
    pub(crate) fn set_up(&self) {
        let config = DeviceConfig { private_key: self.key.clone(), listen_port: PORT };
        let (wireguard, network) = (Arc::clone(&self.wireguard), Arc::clone(&self.network));
        self.namespace.run(|| async move {
            wireguard.ensure().await.unwrap();
            wireguard.configure(&config).await.unwrap();
            drop(network);
        });
        self.set_up_network();
    }

    pub(crate) fn set_up_network(&self) {
        let network = Arc::clone(&self.network);
        let address = format!("{}/32", self.mesh_ip()).parse().unwrap();
        let route = "10.100.0.0/24".parse().unwrap();
        self.namespace.run(move || async move {
            network.bring_up(INTERFACE, 1420).await.unwrap();
            network.add_address(INTERFACE, address).await.unwrap();
            assert_eq!(network.add_routes(INTERFACE, &[route]).await.unwrap(), []);
        });
    }

    /// Where it is reached from the other end of the cable.
    pub(crate) fn reached_at(&self) -> std::net::SocketAddr {
        format!("192.0.2.{}:{PORT}", self.number).parse().unwrap()
    }

    /// How `other` is configured here, with a preshared key.
    pub(crate) fn peer(&self, other: &Self) -> PeerConfig {
        PeerConfig {
            public_key: other.key.public(),
            preshared_key: Some(PresharedKey::from_bytes([self.number ^ other.number; 32])),
            endpoint: Some(other.reached_at()),
            allowed_ips: [format!("{}/32", other.mesh_ip()).parse().unwrap()].into(),
            persistent_keepalive: None,
        }
    }

    pub(crate) fn apply(&self, changes: Vec<PeerChange>) {
        let wireguard = Arc::clone(&self.wireguard);
        self.namespace.run(|| async move { wireguard.apply(&changes).await.unwrap() });
    }

    pub(crate) fn observe(&self) -> Option<ObservedDevice> {
        let wireguard = Arc::clone(&self.wireguard);
        self.namespace.run(|| async move { wireguard.observe().await.unwrap() })
    }

    pub(crate) fn observe_peer(&self, key: PublicKey) -> ObservedPeer {
        self.observe().unwrap().peers.remove(&key).unwrap()
    }

    /// How many peers are awake.
    pub(crate) fn awake(&self) -> usize {
        let wireguard = Arc::clone(&self.wireguard);
        self.namespace.run(|| async move { wireguard.awake().await })
    }

    /// Pings `other` through the mesh until an answer comes.
    pub(crate) fn reaches(&self, other: &Self) {
        self.namespace.command(&format!("ping -n -c 1 -w 10 {}", other.mesh_ip()));
    }

    /// Waits until `condition` holds.
    pub(crate) fn eventually(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < Duration::from_secs(15), "{what}");
            self.namespace.run(|| tokio::time::sleep(Duration::from_millis(20)));
        }
    }
}

/// Two nodes joined by a cable that have each other as peers.
pub(crate) fn pair() -> (Node, Node) {
    joined(Node::new(1), Node::new(2))
}

/// Joins two nodes by a cable, each as a peer of the other.
pub(crate) fn joined(first: Node, second: Node) -> (Node, Node) {
    first.namespace.join(&second.namespace);
    for (node, other) in [(&first, &second), (&second, &first)] {
        node.set_up();
        node.apply(vec![PeerChange::Set(node.peer(other))]);
    }
    (first, second)
}
