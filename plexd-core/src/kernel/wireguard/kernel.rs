//! The kernel's WireGuard, through `wireguard-control`. Only that crate's kernel backend is used: its userspace backend
//! would execute `wireguard-go`. Its errors can hold a preshared key and its `Key` prints itself, so that neither
//! leaves this file; what it copies of a key it does not wipe.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::link::InfoKind;
use wireguard_control::{self as control, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo};
use zeroize::Zeroize;

use crate::kernel::rtnl::{self, Rtnl, within};
use crate::kernel::rules::MARK;
use crate::kernel::{
    Backend, DeviceConfig, Ensured, KernelError, ObservedDevice, ObservedPeer, PeerChange, PeerConfig,
    WireGuard,
};
use crate::types::{PresharedKey, PublicKey};

/// Allowed IPs told of a peer at a time: one message holds 8 KiB, 40 bytes for each of IPv6, and a peer is not split.
const ALLOWED_IPS: usize = 128;

/// The only backend of `wireguard-control` that is ever named.
const BACKEND: control::Backend = control::Backend::Kernel;

/// Whether this kernel has WireGuard. Asks for its generic netlink family, which loads the module where there is one;
/// nothing is made.
///
/// # Errors
/// If the kernel does not let this process ask.
pub fn available() -> io::Result<bool> {
    // The loopback interface always exists and is never WireGuard's, so that the answer is either that the family is
    // unknown or that the interface is none of WireGuard's.
    match control::Device::get(&name("lo")?, BACKEND).map_err(scrubbed) {
        Ok(_) => Ok(true),
        Err(error) if rtnl::is(&error, Errno::EOPNOTSUPP) || rtnl::is(&error, Errno::ENODEV) => Ok(true),
        Err(error) if rtnl::is(&error, Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// [`WireGuard`] of the kernel, in the network namespace of the process.
pub struct KernelWireGuard {
    interface: String,
    name: InterfaceName,
    rtnl: Rtnl,
    /// Index of the interface as it was last seen under its name, by which it is found when it has another.
    known: Mutex<Option<u32>>,
}

impl KernelWireGuard {
    /// Creates the backend of `interface`, inside a tokio runtime. Makes nothing yet.
    ///
    /// # Errors
    /// If the name cannot be an interface's, or the kernel refuses an rtnetlink socket.
    pub fn new(interface: &str) -> Result<Self, KernelError> {
        let failed = |error| KernelError::new("prepare the interface", interface, error);
        let name = name(interface).map_err(failed)?;
        Ok(Self {
            interface: interface.to_owned(),
            name,
            rtnl: Rtnl::new().map_err(failed)?,
            known: Mutex::new(None),
        })
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> KernelError {
        move |error| KernelError::new(operation, &self.interface, error)
    }

    /// Returns the index of the interface if it is there, and remembers it; one that is not WireGuard is an error.
    async fn index(&self) -> io::Result<Option<u32>> {
        let Some(link) = self.rtnl.link(&self.interface).await? else { return Ok(None) };
        if link.kind == Some(InfoKind::Wireguard) {
            self.remember(Some(link.index));
            return Ok(Some(link.index));
        }
        let kind = link.kind.map_or_else(|| "physical".to_owned(), |kind| kind.to_string());
        let reason =
            format!("a {kind} interface of that name exists, not WireGuard; remove it or set mesh.interface");
        Err(io::Error::new(io::ErrorKind::AlreadyExists, reason))
    }

    fn remember(&self, index: Option<u32>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = index;
    }

    /// Removes the interface that is no longer there under its name but under another: policy goes by the name, so that
    /// nothing judges its packets, and it keeps the port. Of another kind, it is a later one with the same index.
    async fn remove_renamed(&self) -> io::Result<()> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = known else { return Ok(()) };
        let link = self.rtnl.link_by_index(index).await?;
        if let Some(link) = link.filter(|link| link.kind == Some(InfoKind::Wireguard)) {
            tracing::warn!(
                iface = self.interface,
                renamed = link.name,
                "interface removed: somebody renamed it"
            );
            self.rtnl.delete(index).await?;
        }
        self.remember(None);
        Ok(())
    }

    /// Applies `update` to the interface, which must be there: `wireguard-control` would make it.
    async fn update(&self, update: impl FnOnce() -> DeviceUpdate + Send + 'static) -> io::Result<()> {
        if self.index().await?.is_none() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such interface"));
        }
        let name = self.name;
        blocking(move || update().apply(&name, BACKEND)).await
    }
}

#[async_trait]
impl WireGuard for KernelWireGuard {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    async fn ensure(&self) -> Result<Ensured, KernelError> {
        if self.index().await.map_err(self.failed("make"))?.is_some() {
            return Ok(Ensured::Existing);
        }
        self.remove_renamed().await.map_err(self.failed("remove what was renamed from"))?;
        self.rtnl.add_wireguard(&self.interface).await.map_err(self.failed("make"))?;
        // From now on it is known whatever somebody names it.
        self.index().await.map_err(self.failed("make"))?;
        Ok(Ensured::Created)
    }

    async fn observe(&self) -> Result<Option<ObservedDevice>, KernelError> {
        if self.index().await.map_err(self.failed("read"))?.is_none() {
            return Ok(None);
        }
        let name = self.name;
        match blocking(move || control::Device::get(&name, BACKEND).map(observed)).await {
            Ok(device) => Ok(Some(device)),
            // Removed between the two questions.
            Err(error) if rtnl::is(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(self.failed("read")(error)),
        }
    }

    async fn configure(&self, config: &DeviceConfig) -> Result<(), KernelError> {
        let config = config.clone();
        let update = move || {
            DeviceUpdate::new()
                .set_private_key(Key(*config.private_key.as_bytes()))
                .set_listen_port(config.listen_port)
                .set_fwmark(MARK)
        };
        self.update(update).await.map_err(self.failed("configure"))
    }

    async fn apply(&self, changes: &[PeerChange]) -> Result<(), KernelError> {
        if changes.is_empty() {
            return Ok(());
        }
        let changes = changes.to_vec();
        let update = move || {
            let peers: Vec<PeerConfigBuilder> = changes.iter().flat_map(peer_updates).collect();
            DeviceUpdate::new().add_peers(&peers)
        };
        self.update(update).await.map_err(self.failed("change the peers of"))
    }

    /// Key and peers go in one update, which is one message unless there are very many peers.
    async fn rekey(&self, config: &DeviceConfig, changes: &[PeerChange]) -> Result<(), KernelError> {
        let (config, changes) = (config.clone(), changes.to_vec());
        let update = move || {
            let peers: Vec<PeerConfigBuilder> = changes.iter().flat_map(rekeyed_peer_updates).collect();
            DeviceUpdate::new()
                .set_private_key(Key(*config.private_key.as_bytes()))
                .set_listen_port(config.listen_port)
                .set_fwmark(MARK)
                .add_peers(&peers)
        };
        self.update(update).await.map_err(self.failed("change the key of"))
    }

    async fn remove(&self) -> Result<(), KernelError> {
        match self.index().await.map_err(self.failed("remove"))? {
            Some(index) => self.rtnl.delete(index).await.map_err(self.failed("remove")),
            None => self.remove_renamed().await.map_err(self.failed("remove what was renamed from")),
        }
    }
}

/// Runs a call of `wireguard-control`, which blocks and has no deadline of its own.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let call = tokio::task::spawn_blocking(move || call().map_err(scrubbed));
    within(async { call.await.unwrap_or_else(|_| Err(io::Error::other("the call did not finish"))) }).await
}

/// Keeps the number or the kind of an error of `wireguard-control`: its text can hold keys.
#[expect(clippy::needless_pass_by_value, reason = "the text must not outlive the call")]
fn scrubbed(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::from(error.kind()),
    }
}

fn name(interface: &str) -> io::Result<InterfaceName> {
    InterfaceName::from_str(interface).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Turns a change into updates of the peer, several when it has many allowed IPs: the first replaces those that are
/// there, the others add.
fn peer_updates(change: &PeerChange) -> Vec<PeerConfigBuilder> {
    match change {
        PeerChange::Remove(key) => vec![PeerConfigBuilder::new(&Key(*key.as_bytes())).remove()],
        PeerChange::Set(config) => set_updates(config),
    }
}

/// As [`peer_updates`], with a handshake at once. Without traffic the kernel initiates one only when a keepalive is
/// switched on (`set_peer` in drivers/net/wireguard/netlink.c), so it is switched off just before.
fn rekeyed_peer_updates(change: &PeerChange) -> Vec<PeerConfigBuilder> {
    let mut updates = peer_updates(change);
    if let PeerChange::Set(config) = change
        && config.persistent_keepalive.is_some()
    {
        let key = Key(*config.public_key.as_bytes());
        updates.insert(0, PeerConfigBuilder::new(&key).unset_persistent_keepalive());
    }
    updates
}

fn set_updates(config: &PeerConfig) -> Vec<PeerConfigBuilder> {
    let key = Key(*config.public_key.as_bytes());
    let allowed_ips: Vec<control::AllowedIp> = config
        .allowed_ips
        .iter()
        .map(|net| control::AllowedIp { address: net.network(), cidr: net.prefix_len() })
        .collect();
    let (first, others) = allowed_ips.split_at(allowed_ips.len().min(ALLOWED_IPS));
    let mut update = PeerConfigBuilder::new(&key).replace_allowed_ips().add_allowed_ips(first);
    update = match &config.preshared_key {
        Some(key) => update.set_preshared_key(Key(*key.as_bytes())),
        None => update.unset_preshared_key(),
    };
    update = match config.persistent_keepalive {
        Some(seconds) => update.set_persistent_keepalive_interval(seconds.get()),
        None => update.unset_persistent_keepalive(),
    };
    if let Some(endpoint) = config.endpoint {
        update = update.set_endpoint(endpoint);
    }
    let others = others.chunks(ALLOWED_IPS).map(|chunk| PeerConfigBuilder::new(&key).add_allowed_ips(chunk));
    std::iter::once(update).chain(others).collect()
}

/// Takes a device over, wiping the copies of its keys.
fn observed(mut device: control::Device) -> ObservedDevice {
    if let Some(key) = &mut device.private_key {
        key.0.zeroize();
    }
    ObservedDevice {
        public_key: device.public_key.map(|key| PublicKey::from_bytes(key.0)),
        listen_port: device.listen_port.unwrap_or(0),
        mark: device.fwmark.unwrap_or(0),
        peers: merged(device.peers),
    }
}

/// Merges by key: the kernel splits a peer with many allowed IPs over several messages, and tells all but those IPs in
/// the first of them only.
fn merged(infos: Vec<PeerInfo>) -> BTreeMap<PublicKey, ObservedPeer> {
    let mut peers: BTreeMap<PublicKey, ObservedPeer> = BTreeMap::new();
    for info in infos {
        let key = PublicKey::from_bytes(info.config.public_key.0);
        let part = observed_peer(info);
        match peers.get_mut(&key) {
            Some(peer) => peer.allowed_ips.extend(part.allowed_ips.iter().copied()),
            None => drop(peers.insert(key, part)),
        }
    }
    peers
}

fn observed_peer(mut info: PeerInfo) -> ObservedPeer {
    // All zeroes is the kernel's way to say that there is none.
    let preshared_key = info.config.preshared_key.as_ref().filter(|key| key.0 != [0; 32]);
    let preshared_key = preshared_key.map(|key| PresharedKey::from_bytes(key.0));
    if let Some(key) = &mut info.config.preshared_key {
        key.0.zeroize();
    }
    let net = |ip: &control::AllowedIp| IpNet::new(ip.address, ip.cidr).ok();
    ObservedPeer {
        preshared_key,
        endpoint: info.config.endpoint,
        allowed_ips: info.config.allowed_ips.iter().filter_map(net).collect(),
        persistent_keepalive: info.config.persistent_keepalive_interval.and_then(NonZeroU16::new),
        last_handshake: info.stats.last_handshake_time,
        rx_bytes: info.stats.rx_bytes,
        tx_bytes: info.stats.tx_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn config(allowed_ips: u32) -> PeerConfig {
        PeerConfig {
            public_key: PublicKey::from_bytes([1; 32]),
            preshared_key: Some(PresharedKey::from_bytes([2; 32])),
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            allowed_ips: (0..allowed_ips)
                .map(|number| IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 32).unwrap())
                .collect(),
            persistent_keepalive: NonZeroU16::new(25),
        }
    }

    #[test]
    fn many_allowed_ips_are_told_in_parts_of_which_the_first_replaces() {
        for (count, parts) in [(0, 1), (1, 1), (128, 1), (129, 2), (1_000, 8)] {
            let updates = peer_updates(&PeerChange::Set(config(count)));
            assert_eq!(updates.len(), parts, "{count}");
            let configs: Vec<_> = updates.into_iter().map(PeerConfigBuilder::into_peer_config).collect();
            assert!(configs.iter().all(|part| part.allowed_ips.len() <= 200));
            assert_eq!(configs.iter().map(|part| part.allowed_ips.len()).sum::<usize>(), count as usize);
            assert!(configs[0].preshared_key.is_some());
            assert!(configs[1..].iter().all(|part| part.preshared_key.is_none() && part.endpoint.is_none()));
        }
    }

    #[test]
    fn a_part_of_200_allowed_ips_or_less_replaces_only_when_it_is_the_first() {
        let updates = set_updates(&config(300));
        let key = Key([1; 32]);
        let first = PeerConfigBuilder::new(&key)
            .replace_allowed_ips()
            .set_preshared_key(Key([2; 32]))
            .set_persistent_keepalive_interval(25)
            .set_endpoint("192.0.2.1:51820".parse().unwrap())
            .add_allowed_ips(&updates[0].clone().into_peer_config().allowed_ips);
        let last =
            PeerConfigBuilder::new(&key).add_allowed_ips(&updates[2].clone().into_peer_config().allowed_ips);
        assert!(updates[0] == first && updates[2] == last);
    }

    #[test]
    fn with_a_new_key_the_keepalive_is_switched_off_and_on() {
        let updates = rekeyed_peer_updates(&PeerChange::Set(config(200)));
        let configs: Vec<_> = updates.into_iter().map(PeerConfigBuilder::into_peer_config).collect();
        let keepalives: Vec<_> = configs.iter().map(|part| part.persistent_keepalive_interval).collect();
        assert_eq!(keepalives, [Some(0), Some(25), None]);
        assert!(configs[0].preshared_key.is_none() && configs[1].preshared_key.is_some());
        let silent = PeerConfig { persistent_keepalive: None, ..config(1) };
        assert_eq!(rekeyed_peer_updates(&PeerChange::Set(silent)).len(), 1);
        assert_eq!(rekeyed_peer_updates(&PeerChange::Remove(PublicKey::from_bytes([1; 32]))).len(), 1);
    }

    #[test]
    fn what_is_absent_is_cleared() {
        let config = PeerConfig { preshared_key: None, persistent_keepalive: None, ..config(0) };
        let update = set_updates(&config).remove(0).into_peer_config();
        assert!(update.preshared_key.is_some_and(|key| key.0 == [0; 32]));
        assert_eq!(update.persistent_keepalive_interval, Some(0));
    }

    fn info(byte: u8, allowed_ips: &[(&str, u8)]) -> PeerInfo {
        let mut info = PeerInfo::from_public_key(Key([byte; 32]));
        info.config.allowed_ips = allowed_ips
            .iter()
            .map(|(address, cidr)| control::AllowedIp { address: address.parse().unwrap(), cidr: *cidr })
            .collect();
        info
    }

    #[test]
    fn a_peer_in_several_messages_is_one_peer() {
        let mut first = info(1, &[("10.0.0.1", 32), ("10.0.0.2", 32)]);
        first.config.preshared_key = Some(Key([9; 32]));
        first.config.persistent_keepalive_interval = Some(25);
        first.stats.rx_bytes = 7;
        first.stats.last_handshake_time = Some(UNIX_EPOCH + Duration::from_secs(5));
        let peers = merged(vec![first, info(1, &[("10.0.0.3", 32)]), info(2, &[("fd00::", 64)])]);
        assert_eq!(peers.len(), 2);
        let peer = &peers[&PublicKey::from_bytes([1; 32])];
        assert_eq!(peer.allowed_ips.len(), 3);
        assert_eq!(peer.preshared_key, Some(PresharedKey::from_bytes([9; 32])));
        assert_eq!((peer.rx_bytes, peer.persistent_keepalive), (7, NonZeroU16::new(25)));
    }

    #[test]
    fn zeroes_read_from_the_kernel_mean_none() {
        let mut info = info(1, &[]);
        info.config.preshared_key = Some(Key([0; 32]));
        info.config.persistent_keepalive_interval = Some(0);
        assert_eq!(observed_peer(info), ObservedPeer::default());
    }

    #[test]
    fn errors_lose_their_text() {
        let error =
            scrubbed(io::Error::new(io::ErrorKind::InvalidInput, "encoded peer: PresharedKey(secret)"));
        assert!(!error.to_string().contains("secret"));
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(scrubbed(io::Error::from_raw_os_error(95)).raw_os_error(), Some(95));
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for bad in ["", "a/b", "sixteen-bytes-xx"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
