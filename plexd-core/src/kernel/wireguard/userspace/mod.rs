//! The embedded WireGuard: gotatun on a TUN device that was opened before privileges were dropped. The interface lives
//! as long as the process; its sessions survive changes of peers and even the removal of the interface.

mod known;
mod service;
mod sockets;
mod tun;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt;
use gotatun::device::configure::{DeviceWrite, PeerMut, PeerStats};
use gotatun::device::{self, DeviceBuilder, Peer};
use gotatun::x25519;
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rtnetlink::packet_route::link::InfoKind;
use tokio::sync::watch;
use zeroize::Zeroize;

use self::known::{Edit, Known, Member, Modification};
use self::tun::{Attachment, Reader, Writer};
use crate::kernel::rtnl::{Link, Rtnl};
use crate::kernel::rules::MARK;
use crate::kernel::{
    Backend, DeviceConfig, Ensured, KernelError, ObservedDevice, ObservedPeer, PeerChange, PeerConfig,
    WireGuard,
};
use crate::types::{PresharedKey, PublicKey};

pub use self::service::UserspaceService;
pub use self::tun::MAX_MTU;

type Transports = (sockets::Sockets, Writer, Reader);
type Device = device::Device<Transports>;

/// Changes applied at a time: packets wait while the device is being edited.
const BATCH: usize = 64;

/// [`WireGuard`] by gotatun. Calls that change something are made by one caller, the reconciler, one after the other.
pub struct UserspaceWireGuard {
    shared: Arc<Shared>,
}

struct Shared {
    interface: String,
    rtnl: Rtnl,
    /// The open `/dev/net/tun`, attached to the interface while there is one. Never closed: after the drop of
    /// privileges it could not be opened again.
    tun: OwnedFd,
    attachment: watch::Sender<Attachment>,
    mtu: watch::Sender<u16>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Index of the interface that was made, which tells it from a later one of the same name.
    index: Option<u32>,
    device: Option<Arc<Device>>,
    public_key: Option<PublicKey>,
    /// Whether the UDP socket is open.
    bound: bool,
    known: Known,
    /// Last handshakes: gotatun forgets one with its session, after 180 s.
    handshakes: BTreeMap<PublicKey, SystemTime>,
}

impl UserspaceWireGuard {
    /// Takes over `tun`, an open `/dev/net/tun` that is attached to nothing yet, for the interface `interface`. `mtu`
    /// counts until the interface's own MTU is read; at most [`MAX_MTU`]. Called inside a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses an rtnetlink socket.
    pub fn new(interface: &str, tun: OwnedFd, mtu: u16) -> Result<Self, KernelError> {
        let failed = |error| KernelError::new("prepare the interface", interface, error);
        let flags =
            OFlag::from_bits_retain(fcntl(&tun, FcntlArg::F_GETFL).map_err(io::Error::from).map_err(failed)?);
        fcntl(&tun, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(io::Error::from).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(Shared {
                interface: interface.to_owned(),
                rtnl: Rtnl::new().map_err(failed)?,
                tun,
                attachment: watch::Sender::new(None),
                mtu: watch::Sender::new(mtu.min(MAX_MTU)),
                state: Mutex::new(State::default()),
            }),
        })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> KernelError {
        move |error| KernelError::new(operation, &self.interface, error)
    }

    /// Returns the interface if it is there; one of its name that was not made here is an error, so that nobody looks for
    /// addresses and routes on it.
    async fn link(&self) -> io::Result<Option<Link>> {
        let Some(link) = self.rtnl.link(&self.interface).await? else { return Ok(None) };
        let index = self.state().index;
        if Some(link.index) != index {
            return Err(foreign(&link));
        }
        self.follow_mtu(link.mtu);
        Ok(Some(link))
    }

    fn follow_mtu(&self, mtu: u32) {
        let mtu = u16::try_from(mtu).map_or(MAX_MTU, |mtu| mtu.min(MAX_MTU));
        self.mtu.send_if_modified(|known| std::mem::replace(known, mtu) != mtu);
    }

    fn device(&self) -> io::Result<Arc<Device>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the interface has not been made yet");
        self.state().device.clone().ok_or_else(missing)
    }

    /// Makes the interface, and attaches it to the device that is there.
    async fn attach(&self) -> io::Result<()> {
        self.attachment.send_replace(None);
        let previous = self.state().index;
        if let Some(index) = previous {
            // Ours, renamed: a descriptor attached to it could not be attached to another. Of another kind, it is somebody
            // else's, made with the same index since ours was removed.
            let link = self.rtnl.link_by_index(index).await?;
            if link.is_some_and(|link| link.kind == Some(InfoKind::Tun)) {
                self.rtnl.delete(index).await?;
            }
            self.state().index = None;
        }
        plexd_sys::attach_tun(&self.tun, &self.interface)?;
        self.state().index = Some(nix::net::if_::if_nametoindex(self.interface.as_str())?);
        self.attachment.send_replace(tun::attachment(self.tun.as_fd().try_clone_to_owned()?)?);
        Ok(())
    }

    fn is_attached(&self) -> bool {
        self.attachment.borrow().is_some()
    }

    /// Builds the device, without a key and therefore without a socket.
    async fn build(&self) -> Result<Device, device::Error> {
        let reader = Reader::new(self.attachment.subscribe(), self.mtu.subscribe());
        let writer = Writer::new(self.attachment.subscribe());
        DeviceBuilder::new()
            .with_udp(sockets::Sockets::new())
            .with_ip_pair(writer, reader)
            .with_fwmark(MARK)
            .build()
            .await
    }

    /// Reads the device; `None` if there is no such interface.
    async fn observe(&self) -> io::Result<Option<ObservedDevice>> {
        if self.link().await?.is_none() {
            return Ok(None);
        }
        let device = self.device()?;
        let (port, mark, peers) =
            device.read(async |device| (device.listen_port(), device.fwmark(), device.peers().await)).await;
        let mut state = self.state();
        let peers = peers.into_iter().map(|peer| observed(peer, &mut state.handshakes)).collect();
        Ok(Some(ObservedDevice {
            public_key: state.public_key,
            listen_port: if state.bound { port } else { 0 },
            mark: mark.unwrap_or(0),
            peers,
        }))
    }

    /// Applies changes of peers, at most [`BATCH`] of them.
    async fn edit(&self, device: &Device, changes: &[PeerChange]) -> io::Result<()> {
        let edits: Vec<Edit> = {
            let mut state = self.state();
            changes.iter().flat_map(|change| state.known.edits(change)).collect()
        };
        device
            .write(async |device: &mut DeviceWrite<'_, Transports>| {
                for edit in edits {
                    carry_out(device, edit).await;
                }
            })
            .await
            .map_err(into_io)?;
        let removed = changes.iter().filter_map(|change| match change {
            PeerChange::Remove(key) => Some(key),
            PeerChange::Set(_) => None,
        });
        let mut state = self.state();
        for key in removed {
            state.handshakes.remove(key);
        }
        Ok(())
    }

    /// Notes the key that was set, and whether the socket is open.
    fn configured(
        &self,
        config: &DeviceConfig,
        result: Result<(), device::Error>,
    ) -> Result<(), KernelError> {
        let mut state = self.state();
        state.public_key = Some(config.private_key.public());
        state.bound = result.is_ok();
        result.map_err(|error| {
            let object = format!("UDP port {} for {}", config.listen_port, self.interface);
            KernelError::new("listen on", object, into_io(error))
        })
    }

    /// Returns the device for a change of its peers, which takes a private key.
    fn device_with_key(&self) -> io::Result<Arc<Device>> {
        let device = self.device()?;
        if self.state().public_key.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no private key yet"));
        }
        Ok(device)
    }

    /// Initiates a handshake with those of `peers` that have no fresh session. gotatun gives up after 90 s without an
    /// answer, where the kernel goes on as long as there is a keepalive to send.
    async fn initiate(&self, peers: &[PublicKey]) {
        let Ok(device) = self.device() else { return };
        for peers in peers.chunks(BATCH) {
            for peer in peers {
                // One poll sends the initiation; what follows would only wait for its answer.
                let _ = device.force_handshake(&x25519::PublicKey::from(*peer.as_bytes())).now_or_never();
            }
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait]
impl WireGuard for UserspaceWireGuard {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    async fn ensure(&self) -> Result<Ensured, KernelError> {
        let shared = &*self.shared;
        let link = shared.rtnl.link(&shared.interface).await.map_err(shared.failed("look up"))?;
        match link {
            Some(link) if Some(link.index) != shared.state().index => {
                return Err(shared.failed("make")(foreign(&link)));
            }
            Some(_) if shared.is_attached() => return Ok(Ensured::Existing),
            _ => {}
        }
        shared.attach().await.map_err(shared.failed("make"))?;
        if shared.state().device.is_none() {
            let device = shared.build().await.map_err(into_io).map_err(shared.failed("make"))?;
            shared.state().device = Some(Arc::new(device));
        }
        Ok(Ensured::Created)
    }

    async fn observe(&self) -> Result<Option<ObservedDevice>, KernelError> {
        let observed = self.shared.observe().await.map_err(self.shared.failed("read"))?;
        if let Some(device) = &observed {
            self.shared.state().known = Known::from_observed(&device.peers);
        }
        Ok(observed)
    }

    async fn configure(&self, config: &DeviceConfig) -> Result<(), KernelError> {
        let shared = &*self.shared;
        let device = shared.device().map_err(shared.failed("configure"))?;
        let private_key = x25519::StaticSecret::from(*config.private_key.as_bytes());
        // Not bound until the write is through: a device that lost its socket opens it only when something changes.
        let bound = std::mem::take(&mut shared.state().bound);
        let port = config.listen_port;
        let result = device
            .write(async |device: &mut DeviceWrite<'_, Transports>| {
                device.set_private_key(private_key).await;
                if !bound {
                    device.set_listen_port(!port);
                }
                if port != 0 || !bound {
                    device.set_listen_port(port);
                }
            })
            .await;
        shared.configured(config, result)
    }

    async fn apply(&self, changes: &[PeerChange]) -> Result<(), KernelError> {
        let shared = &*self.shared;
        let failed = || shared.failed("change the peers of");
        let device = shared.device_with_key().map_err(failed())?;
        for changes in changes.chunks(BATCH) {
            shared.edit(&device, changes).await.map_err(failed())?;
        }
        let kept_alive: Vec<PublicKey> = changes.iter().filter_map(kept_alive).collect();
        if kept_alive.len() > BATCH {
            // Nobody waits for thousands of handshakes; the task ends by itself, or with the device.
            let shared = Arc::downgrade(&self.shared);
            tokio::spawn(async move {
                for keys in kept_alive.chunks(BATCH) {
                    let Some(shared) = shared.upgrade() else { return };
                    shared.initiate(keys).await;
                }
            });
        } else {
            shared.initiate(&kept_alive).await;
        }
        Ok(())
    }

    /// The peers go first: a preshared key counts from the next handshake on, and the sessions live until the key is
    /// replaced. Meanwhile the device is suspended: gotatun opens its socket anew for a new key, and a handshake that
    /// the old socket's tasks began with the new key would fail, and be begun again after 5 s only.
    async fn rekey(&self, config: &DeviceConfig, changes: &[PeerChange]) -> Result<(), KernelError> {
        let shared = &*self.shared;
        let failed = || shared.failed("change the peers of");
        let device = shared.device_with_key().map_err(failed())?;
        for changes in changes.chunks(BATCH) {
            shared.edit(&device, changes).await.map_err(failed())?;
        }
        if shared.state().known.is_empty() {
            // Without peers gotatun would resume without a socket.
            return self.configure(config).await;
        }
        shared.state().bound = false;
        device.suspend().await;
        let private_key = x25519::StaticSecret::from(*config.private_key.as_bytes());
        let replaced = device
            .write(async |device: &mut DeviceWrite<'_, Transports>| {
                device.set_private_key(private_key).await;
                if config.listen_port != 0 {
                    device.set_listen_port(config.listen_port);
                }
            })
            .await;
        let resumed = device.resume().await;
        shared.configured(config, replaced.and(resumed))?;
        let kept_alive = shared.state().known.kept_alive();
        shared.initiate(&kept_alive).await;
        Ok(())
    }

    async fn remove(&self) -> Result<(), KernelError> {
        let shared = &*self.shared;
        let state = std::mem::take(&mut *shared.state());
        shared.attachment.send_replace(None);
        // gotatun stops the device's tasks once the last reference is gone.
        drop(state.device);
        match state.index {
            Some(index) => shared.rtnl.delete(index).await.map_err(shared.failed("remove")),
            None => Ok(()),
        }
    }
}

/// Returns the key of a peer that is set and to be kept alive.
fn kept_alive(change: &PeerChange) -> Option<PublicKey> {
    match change {
        PeerChange::Set(peer) => peer.persistent_keepalive.map(|_| peer.public_key),
        PeerChange::Remove(_) => None,
    }
}

/// The error of an interface that has the name and is somebody else's.
fn foreign(link: &Link) -> io::Error {
    let kind = link.kind.as_ref().map_or_else(|| "physical".to_owned(), ToString::to_string);
    let reason = format!(
        "a {kind} interface of that name exists and is not this process's; remove it or set mesh.interface"
    );
    io::Error::new(io::ErrorKind::AlreadyExists, reason)
}

async fn carry_out(device: &mut DeviceWrite<'_, Transports>, edit: Edit) {
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

fn peer_from(config: &PeerConfig) -> Peer {
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

/// Takes a peer over, wiping gotatun's copy of its preshared key, and keeps its last handshake.
fn observed(
    mut stats: PeerStats,
    handshakes: &mut BTreeMap<PublicKey, SystemTime>,
) -> (PublicKey, ObservedPeer) {
    let public_key = PublicKey::from_bytes(stats.peer.public_key.to_bytes());
    let preshared_key = stats.peer.preshared_key.map(PresharedKey::from_bytes);
    stats.peer.preshared_key.zeroize();
    let last_handshake = stats.stats.last_handshake.and_then(|age| SystemTime::now().checked_sub(age));
    if let Some(time) = last_handshake {
        remember(handshakes, public_key, time);
    }
    let net = |net: &IpNetwork| IpNet::new(net.ip(), net.prefix()).ok();
    let peer = ObservedPeer {
        preshared_key,
        endpoint: stats.peer.endpoint,
        allowed_ips: stats.peer.allowed_ips.iter().filter_map(net).collect(),
        persistent_keepalive: stats.peer.keepalive.and_then(std::num::NonZeroU16::new),
        last_handshake: handshakes.get(&public_key).copied(),
        rx_bytes: stats.stats.rx_bytes as u64,
        tx_bytes: stats.stats.tx_bytes as u64,
    };
    (public_key, peer)
}

/// Keeps `time` as the last handshake of `peer`. It is computed from an age, so that the same handshake comes out a
/// little different each time.
fn remember(handshakes: &mut BTreeMap<PublicKey, SystemTime>, peer: PublicKey, time: SystemTime) {
    let known = handshakes.entry(peer).or_insert(time);
    let difference = time.duration_since(*known).unwrap_or_else(|error| error.duration());
    if difference > Duration::from_secs(1) {
        *known = time;
    }
}

fn into_io(error: device::Error) -> io::Error {
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
    fn the_same_handshake_keeps_its_time() {
        let peer = PublicKey::from_bytes([1; 32]);
        let first = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let mut handshakes = BTreeMap::new();
        for (offset, expected) in [(0, 0), (3, 0), (5_000, 5_000)] {
            remember(&mut handshakes, peer, first + Duration::from_millis(offset));
            assert_eq!(handshakes.get(&peer), Some(&(first + Duration::from_millis(expected))));
        }
    }

    #[test]
    fn a_port_in_use_is_explained() {
        let error = into_io(device::Error::IoError(io::Error::from(io::ErrorKind::PermissionDenied)));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
