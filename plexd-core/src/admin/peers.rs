//! How `ListPeers` is answered.

use plexd_proto::admin::v1;

use super::milliseconds;
use crate::reconcile::{MeshStatus, PeerStatus, Routes, Unrouted, Why};

pub(super) fn response(mesh: MeshStatus) -> v1::ListPeersResponse {
    let backend = mesh.backend.to_string();
    v1::ListPeersResponse { peers: mesh.peers.into_iter().map(peer).collect(), backend }
}

fn peer(peer: PeerStatus) -> v1::Peer {
    let (route_state, unrouted) = match peer.routes {
        Routes::Routed => (v1::RouteState::Routed, Vec::new()),
        Routes::Incomplete(unrouted) => (v1::RouteState::Incomplete, unrouted),
        Routes::NotRouted => (v1::RouteState::NotRouted, Vec::new()),
        Routes::Hidden => (v1::RouteState::Hidden, Vec::new()),
        Routes::Unknown => (v1::RouteState::Unknown, Vec::new()),
    };
    v1::Peer {
        id: peer.id.to_string(),
        public_key: peer.public_key.to_string(),
        mesh_ip: peer.mesh_ip.to_string(),
        endpoint: peer.endpoint.unwrap_or_default(),
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
        configured: peer.configured,
        problem: peer.problem.unwrap_or_default(),
        handshake_age_ms: peer.handshake_age.map(milliseconds),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        route_state: route_state.into(),
        unrouted: unrouted.into_iter().map(unrouted_network).collect(),
    }
}

fn unrouted_network(unrouted: Unrouted) -> v1::UnroutedNetwork {
    let (reason, owner) = match unrouted.why {
        Why::Missing => (v1::UnroutedReason::Missing, String::new()),
        Why::Route(interface) => (v1::UnroutedReason::Route, interface.unwrap_or_default()),
        Why::Node(id) => (v1::UnroutedReason::Node, id.to_string()),
    };
    v1::UnroutedNetwork { network: unrouted.network.to_string(), reason: reason.into(), owner }
}
