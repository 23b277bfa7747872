//! What gotatun is told and what it says, in the words of the rest of plexd.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU16;
use std::time::SystemTime;

use gotatun::device::configure::{DeviceWrite, PeerMut, PeerStats};
use gotatun::device::{self, Peer};
use gotatun::x25519;
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use zeroize::Zeroize;

use super::Transports;
use super::known::{Edit, Member, Modification};
use crate::kernel::{ObservedPeer, PeerConfig};
use crate::types::{PresharedKey, PublicKey};

/// Carries out one edit.
pub(super) async fn carry_out(device: &mut DeviceWrite<'_, Transports>, edit: Edit) {
    match edit {
        Edit::Add(config) => {
            device.add_peer(peer_from(&config));
        }
        Edit::Modify(modification) => {
            let key = x25519::PublicKey::from(*modification.public_key.as_bytes());
            device.modify_peer(&key, |peer| modify(peer, &modification)).await;
        }
        Edit::Remove(key) => {
            device.remove_peer(&x25519::PublicKey::from(*key.as_bytes())).await;
        }
    }
}

/// How gotatun is told of a peer.
pub(super) fn peer_from(config: &PeerConfig) -> Peer {
    let mut peer = Peer::new(x25519::PublicKey::from(*config.public_key.as_bytes()));
    peer.endpoint = config.endpoint;
    peer.allowed_ips = config.allowed_ips.iter().map(network).collect();
    peer.preshared_key = config.preshared_key.as_ref().map(|key| *key.as_bytes());
    peer.keepalive = config.persistent_keepalive.map(Into::into);
    peer
}

fn modify(peer: &mut PeerMut, modification: &Modification) {
    if let Member::Set(preshared_key) = &modification.preshared_key {
        peer.set_preshared_key(preshared_key.as_ref().map(|key| *key.as_bytes()));
    }
    if let Member::Set(endpoint) = modification.endpoint {
        peer.set_endpoint(Some(endpoint));
    }
    if let Member::Set(allowed_ips) = &modification.allowed_ips {
        peer.clear_allowed_ips();
        peer.add_allowed_ips(allowed_ips.iter().map(network));
    }
    if let Member::Set(keepalive) = modification.persistent_keepalive {
        peer.set_keepalive(keepalive.map(Into::into));
    }
}

fn network(net: &IpNet) -> IpNetwork {
    IpNetwork::new(net.addr(), net.prefix_len()).expect("the prefix length of an IpNet fits its family")
}

/// Takes the peers over that gotatun knows.
pub(super) fn observed(peers: Vec<PeerStats>) -> BTreeMap<PublicKey, ObservedPeer> {
    peers.into_iter().map(observed_peer).collect()
}

/// Takes a peer over, wiping gotatun's copy of its preshared key.
fn observed_peer(mut stats: PeerStats) -> (PublicKey, ObservedPeer) {
    let public_key = PublicKey::from_bytes(stats.peer.public_key.to_bytes());
    let preshared_key = stats.peer.preshared_key.map(PresharedKey::from_bytes);
    stats.peer.preshared_key.zeroize();
    let net = |net: &IpNetwork| IpNet::new(net.ip(), net.prefix()).ok();
    let peer = ObservedPeer {
        preshared_key,
        endpoint: stats.peer.endpoint,
        allowed_ips: stats.peer.allowed_ips.iter().filter_map(net).collect(),
        persistent_keepalive: stats.peer.keepalive.and_then(NonZeroU16::new),
        last_handshake: stats.stats.last_handshake.and_then(|age| SystemTime::now().checked_sub(age)),
        rx_bytes: stats.stats.rx_bytes as u64,
        tx_bytes: stats.stats.tx_bytes as u64,
    };
    (public_key, peer)
}

/// The error of gotatun, as one of the system.
pub(super) fn into_io(error: device::Error) -> io::Error {
    match error {
        device::Error::Bind(error, _) if error.kind() == io::ErrorKind::AddrInUse => io::Error::new(
            io::ErrorKind::AddrInUse,
            "the port is in use; stop what uses it (ss -ulpn shows it) or set mesh.listen_port",
        ),
        device::Error::IoError(error) | device::Error::Bind(error, _) => error,
        error => io::Error::other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_explained() {
        let error = into_io(device::Error::IoError(io::Error::from(io::ErrorKind::PermissionDenied)));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
